"""A prior in nnU-Net's own training: found by its extension folder, planned and preprocessed by nnU-Net."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import regloss.apps.nnunet_trainers
from regloss.errors import UsageError

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: pip install 'regloss[nnunet]'")
pytest.importorskip("timm", reason="nnU-Net looks for trainers in modules that need timm and torchvision")

# What nnU-Net says of itself.
pytestmark = pytest.mark.filterwarnings("default")

NAME = "Dataset901_Discs"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Five noisy discs of 64 x 64 with scribbles, everything else being the ignore label; planned and preprocessed."""
    root = tmp_path_factory.mktemp("nnunet")
    patch = pytest.MonkeyPatch()
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        patch.setenv(f"nnUNet_{name}", str(root / name))
    patch.setenv("nnUNet_extTrainer", regloss.apps.nnunet_trainers.__path__[0])
    patch.setenv("nnUNet_n_proc_DA", "1")
    patch.setenv("nnUNet_compile", "0")
    raw = root / "raw" / NAME
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.indices((64, 64))
    for number in range(5):
        distance = (rows - rng.integers(24, 40)) ** 2 + (columns - rng.integers(24, 40)) ** 2
        image = np.where(distance < 150, 160, 60) + rng.normal(0, 20, (64, 64))
        labels = np.full((64, 64), 2, np.uint8)
        labels[2, 4:60], labels[distance < 20] = 0, 1
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(raw / "imagesTr" / f"disc_{number}_0000.png")
        Image.fromarray(labels).save(raw / "labelsTr" / f"disc_{number}.png")
    description = {
        "channel_names": {"0": "zscore"},
        "labels": {"background": 0, "disc": 1, "ignore": 2},
        "numTraining": 5,
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([901], num_processes=1)
    plan_experiments([901])
    preprocess([901], configurations=["2d"], num_processes=[1])
    patch.setenv("nnUNet_n_proc_DA", "0")
    yield root
    patch.undo()


@pytest.fixture
def trainer(prepared):
    """An initialised trainer, and a batch of its own loader."""
    from nnunetv2.run.run_training import get_trainer_from_args

    found = get_trainer_from_args("901", "2d", 0, "nnUNetTrainerRegloss", device=torch.device("cpu"))
    torch.manual_seed(0)
    found.initialize()
    return found


def test_its_loss_has_the_prior_beside_and_steps_lower_it(trainer):
    assert type(trainer).__name__ == "nnUNetTrainerRegloss"
    loader, _ = trainer.get_dataloaders()
    batch = next(iter(loader))
    trainer.network.train()
    trainer.loss.image = batch["data"]
    output = trainer.network(batch["data"])
    own, both = trainer.loss.loss(output, batch["target"]), trainer.loss(output, batch["target"])
    assert float(both - own) > 1e-4
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert np.isfinite(trainer.validation_step(batch)["loss"])


def test_proposals_ride_through_the_augmentation_and_are_learnt(prepared):
    """Scribbles are hard in proposals, so wherever one is seen after the augmentation, the proposal says the same."""
    from nnunetv2.run.run_training import get_trainer_from_args

    found = get_trainer_from_args("901", "2d", 0, "nnUNetTrainerTrustRegion", device=torch.device("cpu"))
    torch.manual_seed(0)
    found.on_train_start()
    assert found.proposals.store.generations() == [0]
    assert len(found.proposals.ids) == 4  # a fifth case is for validation
    found.on_train_epoch_start()
    batch = next(found.dataloader_train)
    labels, proposal = batch["target"][0].unbind(1)
    assert [each.shape[1] for each in batch["target"]] == [2] * len(batch["target"])
    scribbled = labels < 2
    assert int(scribbled.sum()) > 50
    assert float((labels == proposal)[scribbled].float().mean()) > 0.95
    assert bool((proposal == 1).any())
    losses = [float(found.train_step(batch)["loss"]) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert set(found.loop.parts) == {"data", "proposal"}
    assert found.loop.parts["data"] == 0
    assert found.loop.parts["proposal"] > 0
    assert np.isfinite(found.validation_step(next(found.dataloader_val))["loss"])
    found.current_epoch = 5
    found.on_train_epoch_start()
    assert found.proposals.store.generations() == [0, 1]


def test_the_prior_is_chosen_by_the_environment(monkeypatch):
    from regloss.apps.nnunet import prior_of_environment

    monkeypatch.setenv("REGLOSS_REGULARIZER", "tv:weight=0.2 gated-crf:weight=0.1")
    assert [type(part).__name__ for part in prior_of_environment().regularizer.parts] == ["TotalVariation", "GatedCRF"]
    monkeypatch.setenv("REGLOSS_REGULARIZER", "no-such-prior")
    with pytest.raises(UsageError, match="no-such-prior"):
        prior_of_environment()


def trainer_of(name, configuration="2d", number="901", going_on=False):
    """A trainer of two epochs of three steps, which keeps a checkpoint after each."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    device = torch.device("cpu")
    made = get_trainer_from_args(number, configuration, 0, name, continue_training=going_on, device=device)
    made.num_epochs, made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = 2, 3, 1
    made.save_every = 1
    torch.manual_seed(0)
    maybe_load_checkpoint(made, going_on, False)
    return made


@pytest.mark.parametrize("name", ["nnUNetTrainerRegloss", "nnUNetTrainerTrustRegion"])
def test_regions_are_refused(name):
    import regloss.apps.nnunet

    trainer = object.__new__(getattr(regloss.apps.nnunet, name))
    trainer.label_manager = SimpleNamespace(has_regions=True)
    with pytest.raises(UsageError, match=f"{name} needs labels that exclude each other; .* Give each label a number"):
        trainer._build_loss()


def test_a_second_stage_has_no_place_for_proposals():
    from regloss.apps.nnunet import nnUNetTrainerTrustRegion

    trainer = object.__new__(nnUNetTrainerTrustRegion)
    trainer.is_cascaded, trainer.configuration_name = True, "3d_cascade_fullres"
    with pytest.raises(UsageError, match=r"cannot train 3d_cascade_fullres\. Train 2d, 3d_fullres or 3d_lowres"):
        trainer.initialize()


class Stopped(Exception):
    """As if the process had been killed."""


def test_a_stopped_training_goes_on_with_its_proposals(prepared, monkeypatch):
    folder = prepared / "resumed"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    first = trainer_of("nnUNetTrainerTrustRegion")
    ends = first.on_epoch_end

    def stop():
        ends()
        raise Stopped

    first.on_epoch_end = stop
    with pytest.raises(Stopped):
        first.run_training()
    kept = {path: path.read_bytes() for path in folder.glob("**/proposals/**/*.png")}
    assert len(kept) == 4
    with pytest.raises(UsageError, match="holds proposals of an earlier run"):
        trainer_of("nnUNetTrainerTrustRegion").run_training()
    again = trainer_of("nnUNetTrainerTrustRegion", going_on=True)
    assert again.current_epoch == 1
    again.run_training()
    assert again.current_epoch == 2
    assert again.proposals.store.generations() == [0]
    assert {path: path.read_bytes() for path in folder.glob("**/proposals/**/*.png")} == kept
    assert len(list(folder.rglob("checkpoint_final.pth"))) == 1


@pytest.fixture(scope="module")
def volumes(prepared):
    """Four noisy balls of 12 x 40 x 40 voxels of 3 x 1 x 1 mm with scribbles, planned and preprocessed in 3D."""
    nibabel = pytest.importorskip("nibabel")
    raw = prepared / "raw" / "Dataset903_Balls"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    rng = np.random.default_rng(1)
    depth, rows, columns = np.indices((12, 40, 40))
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for number in range(5):
        distance = 9 * (depth - 6) ** 2 + (rows - rng.integers(16, 24)) ** 2 + (columns - rng.integers(16, 24)) ** 2
        image = np.where(distance < 120, 160.0, 60.0) + rng.normal(0, 15, distance.shape)
        labels = np.full(distance.shape, 2, np.uint8)
        labels[:, 2, 2:38], labels[distance < 10] = 0, 1
        for part, values in (("images", image.astype(np.float32)), ("labels", labels)):
            name = f"ball_{number}{'_0000' * (part == 'images')}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine), raw / f"{part}Tr" / name)
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ball": 1, "ignore": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")
        extract_fingerprints([903], num_processes=1)
        plan_experiments([903])
        preprocess([903], configurations=["3d_fullres"], num_processes=[1])
    path = prepared / "preprocessed" / "Dataset903_Balls" / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    settings = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    settings["features_per_stage"] = [4] * settings["n_stages"]
    plans["configurations"]["3d_fullres"]["batch_size"] = 2
    path.write_text(json.dumps(plans))
    return prepared


def test_volumes_with_proposals(volumes):
    """Proposals of whole volumes, whose voxels are three times as long as they are wide."""
    found = trainer_of("nnUNetTrainerTrustRegion", "3d_fullres", "903")
    found.run_training()
    assert sorted(found.proposals.ids) == sorted(found.cases.identifiers)
    name = found.proposals.ids[0]
    data, labels, proposal, _ = found.dataloader_train.data_loader._data.load_case(name)
    assert proposal.shape == data.shape[1:] == labels.shape[1:]
    scribbled = (labels[0] >= 0) & (labels[0] < 2)
    assert float((proposal == labels[0])[scribbled].mean()) > 0.99
    bright = np.asarray(data[0]) > 1
    assert float((proposal[bright] == 1).mean()) > 0.7
    assert float((proposal[~bright] == 1).mean()) < 0.1
    assert found.loop.parts["proposal"] > 0


def test_volumes_with_a_prior_know_their_voxels(volumes):
    from regloss.apps.nnunet import relative_spacing

    found = trainer_of("nnUNetTrainerRegloss", "3d_fullres", "903")
    assert relative_spacing(found.configuration_manager) == (3.0, 1.0, 1.0)
    found.run_training()
    assert found.loss.spacing == (3.0, 1.0, 1.0)
    assert np.isfinite(found.logger.get_value("train_losses", step=-1))


PROCESS = """
import sys
import torch
from torch import distributed
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module
from regloss.apps.nnunet import nnUNetTrainerTrustRegion
from nnunetv2.run.run_training import get_trainer_from_args
import nnunetv2.run.run_training as running

# nnU-Net's own way to several processes is for CUDA alone; this is the same on CPUs.
parallel = module.DDP
module.DDP = lambda network, device_ids: parallel(network)


class OnCPU(nnUNetTrainerTrustRegion):
    update_every = 1

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1


distributed.init_process_group("gloo")
running.recursive_find_trainer_class_by_name = lambda name: OnCPU
trainer = get_trainer_from_args("901", "2d", 0, "OnCPU", device=torch.device("cpu"))
trainer.run_training()
weights = torch.cat([value.flatten() for value in trainer.network.parameters()])
others = [torch.empty_like(weights) for _ in range(2)]
distributed.all_gather(others, weights)
assert torch.equal(*others)
print("SHARE", distributed.get_rank(), sorted(trainer.proposals.share), trainer.proposals.store.generations())
"""


@pytest.mark.slow
def test_two_processes_share_the_proposals(prepared, tmp_path, monkeypatch):
    (tmp_path / "process.py").write_text(PROCESS)
    (tmp_path / "results").mkdir()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    settings = {**os.environ, "nnUNet_results": str(tmp_path / "results"), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    settings |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, str(tmp_path / "process.py")]
    running = [
        subprocess.Popen(command, env={**settings, "RANK": str(rank)}, text=True, stdout=-1, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)
    shares = [next(line for line in text.splitlines() if line.startswith("SHARE")) for text in printed]
    names = [line.split("[")[1].split("]")[0].split(", ") for line in shares]
    assert [len(share) for share in names] == [2, 2]
    assert not set(names[0]) & set(names[1])
    assert all(line.endswith("[0, 1]") for line in shares)
