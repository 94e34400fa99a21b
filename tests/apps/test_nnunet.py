"""A prior in nnU-Net's own training: found by its extension folder, planned and preprocessed by nnU-Net."""

import json

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
