"""Samples of a data set as a training reads them: checked, kept in memory, with the labels that it may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regloss.dataset import IGNORE, Sample
from regloss.dataset import Dataset as SampleSource
from regloss.errors import UsageError, listed
from regloss.io.samples import MAX_SCRIBBLED
from regloss.io.scribbles import shorten
from regloss.training.pseudo_labels import PseudoLabels

CACHE_LIMIT = 2 * 1024**3  # bytes of decoded samples kept in memory by a process, or by all that load them together


class SampleReader:
    """Samples of a data set, decoded once while they fit into memory.

    Attributes:
        unlabelled: ids of the samples that are read without what labels they may have.
        scribbled: fraction of the pixels that the scribbles of each sample label, of those that have been read.
        spacings: of each sample that has been read, in mm; None = not known.
        sharers: processes that share the memory for decoded samples.
    """

    def __init__(
        self,
        source: SampleSource,
        enabled: bool = True,
        scribble_length: float = 1.0,
        proposals: PseudoLabels | None = None,
        unlabelled: Iterable[str] = (),
    ) -> None:
        self.source = source
        self.enabled = enabled
        self.scribble_length = scribble_length
        self.proposals = proposals
        self.unlabelled = frozenset(unlabelled)
        self.scribbled: dict[str, float] = {}
        self.spacings: dict[str, tuple[float, ...] | None] = {}
        self.sharers = 1
        self._samples: dict[str, Sample] = {}
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes decode what they need; sending them everything decoded so far would be slower.
        return {**self.__dict__, "_samples": {}, "_bytes": 0}

    def load(self, sample_id: str) -> Sample:
        """One sample; checked, see `check_sample`."""
        if sample_id in self._samples:
            return self._samples[sample_id]
        sample = self.source.load(sample_id)
        check_sample(sample, len(self.source.classes))
        if sample_id in self.unlabelled:
            nothing = np.full(sample.image.shape[1:], IGNORE, dtype=np.uint8)
            sample = replace(sample, label=nothing, scribble=nothing)
        self.spacings[sample_id] = sample.spacing
        if sample.scribble is not None:
            self.scribbled[sample_id] = float((sample.scribble != IGNORE).mean())
        if sample.scribble is not None and self.scribble_length < 1:
            sample = replace(sample, scribble=shorten(sample.scribble, self.scribble_length))
        if self.proposals is not None:
            sample = self.proposals(sample)
        size = sum(a.nbytes for a in (sample.image, sample.label, sample.scribble) if a is not None)
        if self.enabled and self._bytes + size <= CACHE_LIMIT // self.sharers:
            self._samples[sample_id] = sample
            self._bytes += size
        return sample


def check_sample(sample: Sample, classes: int) -> None:
    """Raise `UsageError` unless the sample keeps the contract of `regloss.dataset.Sample`."""
    image = sample.image
    if image.ndim < 3 or image.dtype != np.float32:
        raise UsageError(f"{sample.id}: an image must be (C, *S) float32; got {image.shape} {image.dtype}.")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # false for NaN too
        found = "NaN" if np.isnan(image).any() else f"values from {low:.4g} to {high:.4g}"
        raise UsageError(f"{sample.id}: image values must lie in [0, 1]; got {found}. Rescale the image.")
    for name, labels in (("label", sample.label), ("scribble", sample.scribble)):
        if labels is None:
            continue
        if labels.shape != image.shape[1:]:
            raise UsageError(
                f"{sample.id}: the {name} has the size {labels.shape}, the image {image.shape[1:]}. They must agree."
            )
        wrong = (labels >= classes) & (labels != IGNORE)
        if wrong.any():
            raise UsageError(
                f"{sample.id}: the {name} holds the values {sorted(set(labels[wrong].tolist()))[:10]}, but there are "
                f"{classes} classes: 0 to {classes - 1}, or 255."
            )


def supervision_of(sample: Sample, supervision: str) -> np.ndarray:
    """The labels that training may see; 255 everywhere where that is none."""
    if supervision == "none":
        return np.full(sample.image.shape[1:], IGNORE, dtype=np.uint8)
    labels = sample.scribble if supervision == "scribbles" else sample.label
    if labels is None:
        raise UsageError(f"{sample.id} has no {supervision[:-1]}, and training was asked to use {supervision}.")
    return labels


def check_training_samples(
    reader: SampleReader, ids: Sequence[str], supervision: str, max_scribbled: float = MAX_SCRIBBLED
) -> list[str]:
    """Read every training sample once and check it, before anything is written.

    Args:
        reader: reads them.
        ids: of the samples.
        supervision: "scribbles", "labels" or "none".
        max_scribbled: largest fraction of an image's pixels that scribbles may label.

    Returns:
        Warnings worth telling: images in which only one class is labelled.

    Raises:
        UsageError: a sample breaks the contract, or has no labelled pixel at all; or all are of one class; or scribbles
            label more than ``max_scribbled``.
    """
    empty, single = [], []
    seeded: set[int] = set()
    for sample_id in ids:
        labels = supervision_of(reader.load(sample_id), supervision)
        if supervision == "none" or sample_id in reader.unlabelled:
            continue  # loading has checked the image
        present = np.unique(labels[labels != IGNORE])
        seeded.update(present.tolist())
        if present.size == 0:
            empty.append(sample_id)
        elif present.size == 1 and supervision == "scribbles":
            single.append(sample_id)
    if supervision == "scribbles":
        _check_scribbled({sample_id: reader.scribbled[sample_id] for sample_id in ids}, max_scribbled)
    if empty:
        raise UsageError(
            f"{len(empty)} training images have no labelled pixel in their {supervision}: {listed(empty)}. "
            "Label them, or leave them out of the split."
        )
    if len(seeded) == 1:
        (only,) = seeded
        raise UsageError(
            f"All {supervision} of the training images are of class {only} ({reader.source.classes[only]!r}), so there "
            "is nothing to tell apart. Label at least two classes, background among them."
            + _other_meaning(reader, ids, supervision, only)
        )
    if single:
        return [f"In {len(single)} images only one class is seeded, so proposals may take any class: {listed(single)}."]
    return []


def check_spacings(reader: SampleReader, ids: Sequence[str], batch_size: int) -> None:
    """Raise `UsageError` where training samples, all of which have been read, have no one spacing, as batches must."""
    found: dict[tuple[float, ...] | None, list[str]] = {}
    for sample_id in ids:
        found.setdefault(reader.spacings[sample_id], []).append(sample_id)
    if batch_size > 1 and len(found) > 1:
        told = [f"{spacing} mm: {len(some)} ({some[0]}, say)" for spacing, some in found.items()]
        raise UsageError(
            f"The training images have {len(found)} spacings ({listed(told, 4)}), and those of a batch must have one. "
            "Take batches of one image (training.batch-size = 1), or resample the images to one spacing."
        )


def _check_scribbled(scribbled: Mapping[str, float], largest: float) -> None:
    """Scribbles that label most of an image are masks, or have another value where nothing was drawn."""
    many = [sample_id for sample_id, fraction in scribbled.items() if fraction > largest]
    if many:
        most = max(scribbled[sample_id] for sample_id in many)
        raise UsageError(
            f"In {len(many)} of {len(scribbled)} training images scribbles label more than {100 * largest:.0f} % of "
            f"the pixels, up to {100 * most:.0f} %: {listed(many)}. If another value than {IGNORE} means that nothing "
            "was drawn, give it (data.unlabelled = 0, for the data set folder); if these are dense labels, learn them "
            'as such (data.supervision = "labels"); if it is meant, say so: data.max-scribbled = '
            f"{min(most + 0.005, 1):.2f}."
        )


def _other_meaning(reader: SampleReader, ids: Sequence[str], supervision: str, only: int) -> str:
    """What to do where only one class is labelled because 255 stands for another; "" if no label is 255."""
    dense = [reader.load(sample_id).label for sample_id in ids]
    if not any(label is not None and bool((label == IGNORE).any()) for label in dense):
        if supervision != "scribbles":
            return ""
        return (
            f" {IGNORE} means that nothing was drawn; where it is a class, say what values mean: data.scribble-values "
            f"= {_map_with_ignored(reader.source.classes, only)}."
        )
    return (
        f" The labels also hold {IGNORE}, which means no label; where it is a class, say what values mean: "
        f"data.label-values = {_map_with_ignored(reader.source.classes, only)}."
    )


def _map_with_ignored(classes: Sequence[str], only: int) -> str:
    """The value map in which 255 is the class that is not there."""
    other = next((name for index, name in enumerate(classes) if index != only), "...")
    return f'{{{only} = "{classes[only]}", {IGNORE} = "{other}"}}'


def check_evaluation_samples(reader: SampleReader, subset: str) -> None:
    """Read every sample of ``subset`` once and check it.

    Raises:
        UsageError: a sample breaks the contract or has no dense label, or there is none; or labels hold one class and
            255 alone, as masks of 0 and 255 do, of which only the background would be scored.
    """
    ids = reader.source.ids(subset)
    if not ids:
        raise UsageError(f"The subset {subset!r} of the data set is empty: there is nothing to evaluate.")
    present: set[int] = set()
    for sample_id in ids:
        present.update(np.unique(supervision_of(reader.load(sample_id), "labels")).tolist())
    classes = sorted(present - {IGNORE})
    if IGNORE in present and len(classes) < 2:
        found = f"{classes[0]} ({reader.source.classes[classes[0]]!r}) and {IGNORE}" if classes else f"{IGNORE}"
        raise UsageError(
            f"The labels of {subset!r} hold {found} alone, and {IGNORE} is left out of the scores, so that there is "
            "nothing to tell apart. If it is a class, as in masks of 0 and 255, say what values mean: "
            f"data.label-values = {_map_with_ignored(reader.source.classes, classes[0] if classes else 0)}."
        )
