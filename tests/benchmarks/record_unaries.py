"""Proposal steps of a real training, two consecutive epochs each: what a warm start is worth is measured on them.

    python tests/benchmarks/record_unaries.py CONFIG.toml FOLDER [--set section.key=value] [--epochs 1 5] [--images 8]

Trains as the configuration says, which must have an outer loop that makes proposals (adm, trust-region), and writes one
file FOLDER/NAME-EPOCH-IMAGE.npz for each chosen epoch and image: the image, its seeds, -log softmax of the network at
the beginning of that epoch and of the next, and what the loop multiplies it by. tests/benchmarks/potts.py reads such
files with --recorded FOLDER. `read` is the reader, `Recorded.problems` gives what the loop's solver would be given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regloss import Batch, Term
from regloss.errors import UsageError
from regloss.hooks import hookimpl, manager
from regloss.outer_loop import seeded_labels, seeds_of
from regloss.registry import create
from regloss.regularizer import combine
from regloss.training.checkpoints import complete, read_weights
from regloss.training.config import Config, build_loop
from regloss.training.config import read as read_config
from regloss.training.loader import whole_batch
from regloss.training.model import SegmentationModel, build_model, predict
from regloss.training.sample_reader import SampleReader, supervision_of
from regloss.training.trainer import train


@dataclass(frozen=True)
class Recorded:
    """One image at the beginning of two consecutive epochs.

    Attributes:
        name: configuration, epoch and image.
        batch: the image (1, C, *S) and its seeds (1, *S), 255 where there is none.
        costs: (2, K, *S) float32, -log softmax at either epoch.
        coupling: what the loop multiplies them by at either epoch.
        seeded_only: whether only seeded labels are allowed.
        regularizer: its table, as in a configuration.
    """

    name: str
    batch: Batch
    costs: Tensor
    coupling: tuple[float, float]
    seeded_only: bool
    regularizer: list[dict[str, Any]]

    def problems(self) -> tuple[Term, list[Tensor], Tensor, Tensor | None]:
        """Bound term, unaries (1, K, *S) at either epoch, seeds (1, *S) with -1 where free, allowed labels (1, K)."""
        regularizer = combine(self.regularizer)
        assert regularizer is not None
        classes = self.costs.shape[1]
        seeds = seeds_of(self.batch, classes)
        unaries = [
            (coupling * cost.unsqueeze(0)).masked_fill((seeds >= 0).unsqueeze(1), 0)
            for coupling, cost in zip(self.coupling, self.costs, strict=True)
        ]
        allowed = seeded_labels(seeds, classes) if self.seeded_only else None
        return regularizer.bind(self.batch.image), unaries, seeds, allowed


def read(folder: Path) -> Iterator[Recorded]:
    """What `record` has written to ``folder``, by name."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            settings = json.loads(str(arrays["settings"]))
            yield Recorded(
                path.stem,
                Batch(torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["seeds"])),
                torch.from_numpy(arrays["costs"]),
                (float(arrays["coupling"][0]), float(arrays["coupling"][1])),
                settings["seeded-only"],
                settings["regularizer"],
            )


class Recorder:
    """A plugin that looks at the network at the beginning of chosen epochs.

    Args:
        config: of the training.
        folder: where files go.
        epochs: the first of each pair, at least 1: the weights of an epoch's beginning are the last one's checkpoint.
        images: how many training images, evenly spaced among those with at least two seeded classes.
    """

    def __init__(self, config: Config, folder: Path, epochs: list[int], images: int) -> None:
        last = config.training.epochs - 1
        if not all(1 <= epoch < last for epoch in epochs):
            raise UsageError(f"--epochs must lie between 1 and {last - 1} for {last + 1} epochs; got {epochs}.")
        self.config, self.folder, self.epochs = config, folder, epochs
        dataset = create("dataset", config.data.dataset, **config.data.component_settings())
        cache = SampleReader(dataset, config.data.cache, config.data.scribble_length)
        samples = [cache.load(sample_id) for sample_id in dataset.ids(config.data.train)]
        samples = [s for s in samples if len(np.unique(supervision_of(s, config.data.supervision))) > 2]
        self.samples = [samples[len(samples) * i // images] for i in range(images)]
        self.segmenter: SegmentationModel = build_model(config, dataset.channels, len(dataset.classes), trained=True)
        self.loop: Any = build_loop(config.loss, config.data.supervision)
        if self.loop.update_every == "never":
            raise UsageError("The configuration's outer loop makes no proposals. Use adm or trust-region.")
        self.costs: dict[tuple[int, str], tuple[float, Tensor]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @hookimpl
    def regloss_epoch(self, epoch: int, folder: Path) -> None:
        """At the end of an epoch, the last checkpoint is still that of its beginning."""
        if not {epoch, epoch - 1} & set(self.epochs):
            return
        weights = complete(folder / "checkpoints")[-1] / "network.safetensors"
        self.segmenter.load_weights(read_weights(weights), str(weights))
        coupling = self.loop.coupling.at(epoch / self.config.training.epochs)
        for sample in self.samples:
            batch = whole_batch([sample], [supervision_of(sample, self.config.data.supervision)])
            cost = -predict(self.segmenter, batch.image).log_softmax(1)[0].float()
            self.costs[epoch, sample.id] = coupling, cost
            before = self.costs.get((epoch - 1, sample.id))
            if epoch - 1 in self.epochs and before is not None:
                self._write(batch, sample.id, epoch - 1, before, (coupling, cost))

    def _write(
        self, batch: Batch, sample_id: str, epoch: int, first: tuple[float, Tensor], second: tuple[float, Tensor]
    ) -> None:
        assert batch.labels is not None
        settings = {"regularizer": self.config.dump()["loss"]["regularizer"], "seeded-only": self.loop.seeded_only}
        np.savez_compressed(
            self.folder / f"{Path(self.config.output).name}-{epoch:02d}-{sample_id}.npz",
            image=batch.image.numpy(),
            seeds=batch.labels.numpy(),
            costs=torch.stack([first[1], second[1]]).numpy(),
            coupling=np.array([first[0], second[0]]),
            settings=json.dumps(settings),
        )


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5, 9])
    parser.add_argument("--images", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(chosen.config, chosen.changes)
    recorder = Recorder(config, chosen.folder, chosen.epochs, chosen.images)
    plugins = manager()
    plugins.register(recorder, name="record-unaries")
    try:
        train(config)
    finally:
        plugins.unregister(recorder)


if __name__ == "__main__":
    main()
