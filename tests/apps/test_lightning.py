"""Proposals in Lightning: learnt, and the same after a kill as without one."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import regloss

pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'regloss[lightning]'")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from regloss.apps.lightning import ProposalCallback

# What Lightning, and what it imports, say of this machine and of themselves.
pytestmark = pytest.mark.filterwarnings("default")

IDS = [f"image-{number}" for number in range(4)]


def pictures(noise=0.7):
    """Four noisy halves, each with a click on either side."""
    image = noise * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image[..., 4:] += 1 - noise
    labels = torch.full((4, 8, 8), 255)
    labels[:, 3, 1], labels[:, 3, 6] = 0, 1
    return image, labels


def whole(noise):
    image, labels = pictures(noise)
    return [regloss.Batch(image, labels, ids=IDS)]


class Crops(Dataset):
    def __init__(self, proposals, noise):
        self.proposals = proposals
        self.image, self.labels = pictures(noise)

    def __len__(self):
        return len(IDS)

    def __getitem__(self, place):
        return self.image[place].flip(-1), self.proposals.beside(self.labels[place], IDS[place]).flip(-1)


class Killed(Exception):
    """In place of a signal."""


class Segmentation(LightningModule):
    def __init__(self, loop, killed_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Conv2d(1, 2, 3, padding=1)
        self.loop = loop
        self.killed_at = killed_at
        self.seen = []

    def forward(self, image):
        return self.network(image)

    def training_step(self, batch, number):
        if self.global_step == self.killed_at:
            raise Killed
        image, channels = batch
        labels, proposal = regloss.Proposals.apart(channels)
        self.seen.append((self.current_epoch, proposal.labels.clone()))
        return self.loop.objective(self(image), regloss.Batch(image, labels), proposal)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder: Path, *, killed_at=None, checkpoint=None, epochs=6, every=2, noise=0.7):
    loop = regloss.TrustRegion(regloss.GridCRF(weight=0.3), coupling=1.0, update_every=every)
    proposals = regloss.Proposals(loop, IDS, folder / "proposals")
    module = Segmentation(loop, killed_at)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ProposalCallback(proposals, partial(whole, noise)), ModelCheckpoint(folder, save_last=True)],
    )
    loader = DataLoader(Crops(proposals, noise), batch_size=2)
    with suppress(Killed):
        trainer.fit(module, loader, ckpt_path=checkpoint)
    return module, proposals


def test_proposals_are_made_when_due_and_learnt(tmp_path):
    module, proposals = fit(tmp_path, noise=0.1, epochs=12, every=4)
    assert proposals.store.generations() == [0, 1, 2]
    assert proposals.loop.progress == pytest.approx(23 / 24)
    image, _ = pictures(0.1)
    assert float((module(image).argmax(1)[..., 4:] == 1).float().mean()) > 0.9


@pytest.mark.parametrize("killed_at", [3, 4, 5, 8])  # within an epoch and at the beginning of one, that makes proposals
def test_a_run_killed_and_resumed_keeps_its_proposals(tmp_path, killed_at):
    """The steps see the same proposals as without the kill, and end with the same weights."""
    alone, _ = fit(tmp_path / "alone")
    first, _ = fit(tmp_path / "run", killed_at=killed_at)
    second, proposals = fit(tmp_path / "run", checkpoint=tmp_path / "run" / "last.ckpt")
    assert proposals.store.generations() == [0, 1, 2]
    steps = first.seen[: 2 * (killed_at // 2)] + second.seen
    assert [epoch for epoch, _ in steps] == [epoch for epoch, _ in alone.seen]
    assert any(not torch.equal(alone.seen[0][1], labels) for _, labels in alone.seen), "all proposals are the same"
    for (_, seen), (_, expected) in zip(steps, alone.seen, strict=True):
        torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(second.state_dict(), alone.state_dict(), rtol=0, atol=0)
