"""Losses, spacings and proposals in MONAI's engine."""

import pytest
import torch

import regloss
from regloss.errors import UsageError

pytest.importorskip("monai", reason="MONAI is not installed: pip install 'regloss[monai]'")
pytest.importorskip("ignite", reason="MONAI's engines need pytorch-ignite: pip install 'regloss[monai]'")
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandAxisFlipd, RandSpatialCropd

from regloss.apps.monai import ImageLoss, ProposalHandler, spacing_of

# What MONAI and ignite say of themselves and of torch.
pytestmark = pytest.mark.filterwarnings("default")

IDS = [f"image-{number}" for number in range(4)]


def samples(spacing=(1.0, 1.0)):
    """Four halves with a click on either side."""
    image = 0.1 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image[..., 4:] += 0.8
    labels = torch.full((4, 1, 8, 8), 255)
    labels[:, :, 3, 1], labels[:, :, 3, 6] = 0, 1
    affine = torch.diag(torch.tensor([*spacing, 1.0, 1.0]))
    return [
        {"image": MetaTensor(image[n], affine=affine), "label": MetaTensor(labels[n], affine=affine), "id": IDS[n]}
        for n in range(4)
    ]


def network():
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 2, 3, padding=1)


def trainer(loss, data, model, epochs=1, **options):
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=2),
        network=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
        loss_function=loss,
        prepare_batch=loss.prepare_batch,
        **options,
    )


def test_the_loss_is_that_of_plain_pytorch_with_the_spacing_of_the_affine():
    data, model = samples(spacing=(2.0, 0.5)), network()
    cross_entropy, prior = torch.nn.CrossEntropyLoss(ignore_index=255), regloss.losses.TotalVariationLoss(weight=0.3)
    engine = trainer(ImageLoss([cross_entropy, prior]), data[:2], model)
    image = torch.stack([sample["image"].as_tensor() for sample in data[:2]])
    label = torch.stack([sample["label"].as_tensor() for sample in data[:2]]).squeeze(1)
    logits = model(image).detach()
    expected = cross_entropy(logits, label) + prior(logits, image=image, spacing=(2.0, 0.5))
    with torch.no_grad():
        assert abs(float(prior(logits, image=image) - prior(logits, image=image, spacing=(2.0, 0.5)))) > 1e-3
    engine.run()
    assert float(engine.state.output[0]["loss"]) == pytest.approx(float(expected), abs=1e-6)


def test_a_bundle_names_losses_by_their_targets():
    parser = ConfigParser(
        {
            "imports": ["$import torch"],
            "data": samples(),
            "loss": {
                "_target_": "regloss.apps.monai.ImageLoss",
                "losses": [
                    {"_target_": "regloss.losses.PartialCrossEntropyLoss"},
                    {"_target_": "regloss.losses.GridCRFLoss", "weight": 0.3},
                ],
            },
            "network": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "device": "$torch.device('cpu')",
                "max_epochs": 15,
                "train_data_loader": {"_target_": "DataLoader", "dataset": "@data", "batch_size": 4},
                "network": "@network",
                "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.3},
                "loss_function": "@loss",
                "prepare_batch": "$@loss.prepare_batch",
            },
        }
    )
    engine = parser.get_parsed_content("trainer")
    losses = []
    engine.add_event_handler("ITERATION_COMPLETED", lambda engine: losses.append(float(engine.state.output[0]["loss"])))
    engine.run()
    assert losses[-1] < 0.5 * losses[0]


class WithProposals(Dataset):
    """Proposals enter before the transforms, which move them like labels."""

    def __init__(self, data, proposals, transform):
        super().__init__(data, transform)
        self.proposals = proposals

    def _transform(self, index):
        sample = dict(self.data[index])
        sample["proposal"] = torch.from_numpy(self.proposals.labels(sample["id"])).unsqueeze(0)
        return self.transform(sample)


def test_proposals_ride_through_the_transforms_and_are_learnt(tmp_path):
    data, model = samples(), network()
    loop = regloss.TrustRegion(regloss.GridCRF(weight=1.0), update_every=5)
    proposals = regloss.Proposals(loop, IDS, tmp_path)
    keys = ("image", "label", "proposal")
    crops = Compose([RandAxisFlipd(keys, prob=0.5), RandSpatialCropd(keys, 6, random_size=False)])
    crops.set_random_state(0)

    def whole():
        batch = list_data_collate(data)
        image, label = batch["image"].as_tensor(), batch["label"].as_tensor().squeeze(1)
        yield regloss.Batch(image, label, ids=batch["id"], spacing=spacing_of(batch["image"]))

    seen = []
    loss = ImageLoss(loop=loop)
    engine = trainer(loss, WithProposals(data, proposals, crops), model, epochs=20)
    ProposalHandler(proposals, model, whole).attach(engine)
    engine.add_event_handler("ITERATION_COMPLETED", lambda engine: seen.append(loss.data))
    engine.run()
    assert proposals.store.generations() == [0, 1, 2, 3]
    assert loop.progress == pytest.approx(39 / 40)
    for batch in seen:
        assert bool((batch["proposal"] == (batch["image"] > 0.5)).all())
    whole_image = torch.stack([sample["image"].as_tensor() for sample in data])
    assert float((model(whole_image).argmax(1, keepdim=True) == (whole_image > 0.5)).float().mean()) > 0.95


def test_what_is_refused():
    with pytest.raises(UsageError, match="losses or an outer loop"):
        ImageLoss()
    loss = ImageLoss(regloss.losses.GridCRFLoss())
    with pytest.raises(UsageError, match="has seen no image"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(UsageError, match="dictionaries with the key 'image'"):
        loss.prepare_batch((torch.zeros(1), torch.zeros(1)))
    with pytest.raises(UsageError, match="gives a list"):
        loss([torch.zeros(1, 2, 4, 4)], torch.zeros(1, 1, 4, 4))
    two = [samples(spacing)[0]["image"] for spacing in ((1.0, 1.0), (1.0, 2.0))]
    with pytest.raises(UsageError, match=r"one spacing; there are \(1.0, 1.0\) and \(1.0, 2.0\) mm"):
        spacing_of(list_data_collate([{"image": image} for image in two])["image"])
    assert spacing_of(torch.zeros(1, 1, 4, 4)) is None
