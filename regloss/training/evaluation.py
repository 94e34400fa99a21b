"""Scores of a network on a subset, and the examples that a report shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.data_term import DataTerm
from regloss.dataset import IGNORE, Sample
from regloss.io.types import FloatImage, LabelMap
from regloss.metrics.foreground import ForegroundScores
from regloss.metrics.groups import ScoreMetric
from regloss.metrics.labels import confusion_of
from regloss.metrics.scores import Scores
from regloss.metrics.surface import SurfaceDistances
from regloss.numerics import one_hot
from regloss.registry import resolve
from regloss.regularizer import Regularizer
from regloss.report.advice import TrainingMeasures
from regloss.report.examples import Example
from regloss.solver import Solution
from regloss.training.augmentation import crop_coverage
from regloss.training.config import Config
from regloss.training.devices import Process
from regloss.training.inference import largest_components
from regloss.training.loader import like_groups, whole_batch
from regloss.training.model import SegmentationModel, describe_layer, predict
from regloss.training.sample_reader import SampleReader, supervision_of


def evaluate_samples(
    process: Process,
    segmenter: SegmentationModel,
    reader: SampleReader,
    config: Config,
    subset: str,
    noise: Callable[[FloatImage, str, int], FloatImage] | None = None,
) -> dict[str, Any]:
    """Scores over ``subset``, over the images of all processes; see `regloss.metrics.scores.Scores`.

    With ``evaluation.hausdorff`` set, surfaces are compared, too (`regloss.metrics.surface`): of slices those of the
    volume, where the subset holds all from one to another, else those in each slice.
    With ``evaluation.energy`` set, "energy" is the mean over images of that regularizer's discrete energy per pixel of
    the predicted labels. Behind a layer, "layer" tells its settings and what its solver reported: mean gap per pixel,
    mean steps, fraction of the images that converged. After a training without labels, whose classes have no names,
    "unsupervised" holds what `regloss.metrics.foreground.ForegroundScores` says. ``noise`` makes noisy
    images of images, from their ids and the run's seed.
    """
    classes = reader.source.classes
    scores = Scores(classes, config.evaluation.trimap)
    surfaces = SurfaceDistances(classes, config.evaluation.surface_tolerance)
    foreground, energies, layer = ForegroundScores(len(classes)), MeanEnergy(), LayerReport()
    if process.world_size > 1:  # states are exchanged where the processes' own backend can send them
        for metric in (scores, surfaces, foreground, energies, layer):
            metric.to(process.device)
    energy: Regularizer | None = None
    if config.evaluation.energy is not None:
        energy = resolve("regularizer", config.evaluation.energy)
    ids = list(reader.source.ids(subset))
    volumes = {volume: place for place, volume in enumerate(dict.fromkeys(map(reader.source.volume_of, ids)))}
    mine = [
        sample_id
        for sample_id in ids
        if volumes[reader.source.volume_of(sample_id)] % process.world_size == process.global_rank
    ]

    def predictions() -> Iterator[tuple[Sample, LabelMap]]:
        samples: Iterator[Sample] = (reader.load(sample_id) for sample_id in mine)
        if noise is not None:
            samples = (replace(sample, image=noise(sample.image, sample.id, config.seed)) for sample in samples)
        for chosen in like_groups(samples, config.training.batch_size):
            batch = whole_batch(chosen, None)
            image = batch.image.to(process.device)
            labels = predict(segmenter, image, batch.spacing).argmax(1)
            if segmenter.layer is not None and segmenter.layer.solution is not None:
                layer.update(segmenter.layer.solution, batch.pixels)
            if energy is not None:
                energies.update(_energies(energy, batch, image, labels, len(classes)))
            yield from zip(chosen, labels.to(torch.uint8).cpu().numpy(), strict=True)

    for found in whole_volumes(predictions()):
        if found.label is None:
            continue
        labels = largest_components(found.labels, len(classes)) if config.inference.largest_component else found.labels
        pair = torch.from_numpy(labels).long(), torch.from_numpy(found.label).long()
        scores.update(*pair, found.group)
        foreground.update(*pair, found.id)
        if config.evaluation.hausdorff:
            surfaces.update(*pair, found.group, found.spacing)
    result = scores.compute()
    if config.evaluation.hausdorff:
        result |= surfaces.compute()
    if config.data.supervision == "none":
        result["unsupervised"] = foreground.compute()
    if energy is not None:
        result["energy"] = energies.compute()
    if segmenter.layer is not None:
        result["layer"] = {**describe_layer(segmenter.layer), **layer.compute()}
    return result


def training_energy(process: Process, segmenter: SegmentationModel, reader: SampleReader, config: Config) -> float:
    """Mean discrete energy per pixel of what is predicted for ``evaluation.energy-images`` training images.

    They are evenly spaced, shared out among the processes, and need no labels.
    """
    assert config.evaluation.energy is not None
    energy: Regularizer = resolve("regularizer", config.evaluation.energy)
    energies = MeanEnergy()
    if process.world_size > 1:
        energies.to(process.device)
    ids = _evenly(list(reader.source.ids(config.data.train)), config.evaluation.energy_images)
    samples = (reader.load(sample_id) for sample_id in ids[process.global_rank :: process.world_size])
    for chosen in like_groups(samples, config.training.batch_size):
        batch = whole_batch(chosen, None)
        image = batch.image.to(process.device)
        labels = predict(segmenter, image, batch.spacing).argmax(1)
        energies.update(_energies(energy, batch, image, labels, len(reader.source.classes)))
    return energies.compute()


def _energies(energy: Regularizer, batch: Batch, image: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Discrete energy per pixel of the ``labels`` (B, *S) of whole images, (B,)."""
    hard = one_hot(labels, classes, at_least_float32(image).dtype)
    return energy.bind(image, spacing=batch.spacing).energy(hard) / batch.pixels.to(image.device)


@dataclass(frozen=True)
class _Predicted:
    """What is compared of an image or a volume: labels and truth (*S), with its spacing."""

    id: str
    group: str
    labels: LabelMap
    label: LabelMap | None
    spacing: tuple[float, ...] | None


def whole_volumes(predictions: Iterable[tuple[Sample, LabelMap]]) -> Iterator[_Predicted]:
    """Samples with their labels; slices of a volume that follow each other without a gap are put together."""
    for _, members in itertools.groupby(predictions, lambda pair: pair[0].slice and pair[0].slice.volume):
        yield from _stacked(members)


def _stacked(members: Iterator[tuple[Sample, LabelMap]]) -> Iterator[_Predicted]:
    """Slices of one volume as such, or each alone; images and volumes one by one, as they come."""
    parts = []
    for sample, labels in members:
        if sample.slice is None:
            yield _Predicted(sample.id, sample.group, labels, sample.label, sample.spacing)
        else:
            parts.append((sample, sample.slice, labels))
    places = [cut.number for _, cut, _ in parts]
    if len(parts) < 2 or places != list(range(places[0], places[-1] + 1)):
        for sample, _, labels in parts:
            yield _Predicted(sample.id, sample.group, labels, sample.label, sample.spacing)
        return
    first, cut, _ = parts[0]
    axis = cut.axis
    truth = [sample.label for sample, _, _ in parts if sample.label is not None]
    spacing = None if first.spacing is None else list(first.spacing)
    if spacing is not None:
        spacing.insert(axis, cut.spacing)
    yield _Predicted(
        cut.volume,
        first.group,
        np.stack([labels for _, _, labels in parts], axis),
        np.stack(truth, axis) if truth else None,
        None if spacing is None else tuple(spacing),
    )


class MeanEnergy(ScoreMetric):
    """Mean of images' energies."""

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), "sum")
        self.add_state("images", torch.tensor(0), "sum")

    def update(self, energies: Tensor) -> None:
        """Add the images of a batch, (B,)."""
        self.total += float(energies.sum())
        self.images += len(energies)

    def compute(self) -> float:
        """The mean over the images."""
        return float(self.total) / int(self.images)


class LayerReport(ScoreMetric):
    """What a layer's solver reports, over a set of images.

    All are absent where backward = "unrolled", which takes its steps without looking, and the gap also where the solver
    knows no bound.
    """

    sums: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), "sum")  # gap per pixel, steps, converged
        self.add_state("images", torch.tensor(0), "sum")

    def update(self, solution: Solution, pixels: Tensor) -> None:
        """Add the images of the layer's last call, with their numbers of pixels (B,)."""
        gap = float((solution.gap / pixels.to(solution.gap)).sum())
        converged = sum(status.is_done for status in solution.status)
        found = torch.tensor([gap, float(solution.steps.sum()), converged], dtype=torch.float64)
        self.sums += found.to(self.device)
        self.images += len(solution.status)

    def compute(self) -> dict[str, float]:
        """Means over the images."""
        if not int(self.images):
            return {}
        means = dict(zip(("gap", "steps", "converged"), (self.sums / self.images).tolist(), strict=True))
        return {f"layer-{name}": value for name, value in means.items() if np.isfinite(value)}


def examples_of(
    process: Process,
    segmenter: SegmentationModel,
    reader: SampleReader,
    config: Config,
    read_proposal: Callable[[str], np.ndarray] | None,
    data_term: DataTerm | None = None,
) -> list[Example]:
    """Evenly spaced images of the training and the test subset, with everything that is known of them.

    Args:
        process: for the device.
        segmenter: predicts.
        reader: has the samples.
        config: of the run.
        read_proposal: gives a training image's proposal.
        data_term: its `regloss.data_term.DataTerm.maps` are shown too.
    """
    wanted = config.evaluation.examples
    train_ids = list(reader.source.ids(config.data.train))
    test_ids = list(reader.source.ids(config.data.test)) if config.data.test is not None else []
    chosen = _evenly(train_ids, (wanted + 1) // 2 if test_ids else wanted)
    chosen += [sample_id for sample_id in _evenly(test_ids, wanted - len(chosen)) if sample_id not in chosen]
    examples = []
    for sample_id in chosen:
        sample = reader.load(sample_id)
        image = torch.from_numpy(sample.image).unsqueeze(0).to(process.device)
        prediction = predict(segmenter, image, sample.spacing).argmax(1)[0].cpu().numpy().astype(np.uint8)
        training = sample_id in train_ids
        with torch.no_grad():
            found = {} if data_term is None else data_term.maps(image)
        example = Example(
            id=sample_id,
            image=sample.image,
            scribble=supervision_of(sample, "scribbles") if training and sample.scribble is not None else None,
            proposal=read_proposal(sample_id) if training and read_proposal is not None else None,
            prediction=prediction,
            label=sample.label,
            numbers={name: values[0].float().cpu().numpy() for name, values in found.items()},
        )
        examples.append(example if sample.image.ndim == 3 else _telling_slice(example, sample.spacing))
    return examples


def _telling_slice(example: Example, spacing: tuple[float, ...] | None) -> Example:
    """Of a volume the slice that shows most: labelled pixels, or else foreground, across the largest spacing."""
    axis = 0 if spacing is None else int(np.argmax(spacing))
    others = tuple(other for other in range(3) if other != axis)
    truth = example.prediction if example.label is None else example.label
    drawn = example.scribble if example.scribble is not None else np.where(truth > 0, truth, IGNORE)
    place = int((drawn != IGNORE).sum(others).argmax())

    here = tuple(place if other == axis else slice(None) for other in range(3))

    def cut(labels: LabelMap | None) -> LabelMap | None:
        return None if labels is None else labels[here]

    return Example(
        f"{example.id}, slice {place} of {truth.shape[axis]}",
        example.image[(slice(None), *here)],
        cut(example.scribble),
        cut(example.proposal),
        example.prediction[here],
        cut(example.label),
        {name: values[here] for name, values in example.numbers.items()},
    )


MEASURED = 32
"""Training images that are looked at, after a training, for what to try: enough to see what is wrong in general."""


def measure_training(
    process: Process,
    segmenter: SegmentationModel,
    reader: SampleReader,
    config: Config,
    read_proposal: Callable[[str], np.ndarray] | None,
) -> TrainingMeasures | None:
    """What network and proposals make of evenly spaced training images; None after a training without labels.

    Args:
        process: for the device.
        segmenter: predicts.
        reader: has the samples.
        config: of the run.
        read_proposal: gives a training image's proposal.
    """
    if config.data.supervision == "none":
        return None
    classes, compared = len(reader.source.classes), 0
    ids = _evenly(list(reader.source.ids(config.data.train)), MEASURED)
    at_labels, prediction, proposal = (torch.zeros(classes, classes, dtype=torch.int64) for _ in range(3))
    labelled, images = (np.zeros(classes, dtype=np.int64) for _ in range(2))
    in_crops, crop_shares, pixels = np.zeros(classes), [], 0
    for sample_id in ids:
        sample = reader.load(sample_id)
        given = supervision_of(sample, config.data.supervision)
        counts = np.bincount(given.ravel(), minlength=256)[:classes]
        labelled += counts
        pixels += given.size
        images += counts > 0
        coverage = crop_coverage(given.shape, config.data.crop)
        in_crops += np.bincount(given.ravel(), coverage.ravel(), minlength=256)[:classes]
        crop_shares.append(coverage.mean())
        image = torch.from_numpy(sample.image).unsqueeze(0).to(process.device)
        found = predict(segmenter, image, sample.spacing).argmax(1)[0].cpu()
        at_labels += confusion_of(found, torch.from_numpy(given.astype(np.int64)), classes)
        if sample.label is None:
            continue
        compared += 1
        truth = torch.from_numpy(sample.label.astype(np.int64))
        prediction += confusion_of(found, truth, classes)
        if read_proposal is not None:
            proposed = torch.from_numpy(read_proposal(sample_id).astype(np.int64))
            # Outside the region of interest there is no proposal.
            proposal += confusion_of(proposed, torch.where(proposed == IGNORE, IGNORE, truth), classes)
    return TrainingMeasures(
        images=len(ids),
        compared=compared,
        pixels=pixels,
        scribbles=config.data.supervision == "scribbles",
        labelled=labelled,
        labelled_images=images,
        in_crops=in_crops,
        crop_share=float(np.mean(crop_shares)),
        at_labels=at_labels.numpy(),
        prediction=prediction.numpy() if compared else None,
        proposal=proposal.numpy() if compared and read_proposal is not None else None,
    )


def _evenly(names: list[str], count: int) -> list[str]:
    if count <= 0 or not names:
        return []
    places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    return [names[place] for place in places]
