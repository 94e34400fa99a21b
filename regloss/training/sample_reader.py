"""Samples of a data set as a training reads them: checked, kept in memory, with the labels that it may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from regloss.dataset import IGNORE, Sample
from regloss.dataset import Dataset as SampleSource
from regloss.errors import UsageError, listed
from regloss.io.scribbles import shorten
from regloss.training.color_pseudo_labels import ColorPseudoLabels

CACHE_LIMIT = 2 * 1024**3  # bytes of decoded samples kept in memory by each process


class SampleReader:
    """Samples of a data set, decoded once while they fit into memory."""

    def __init__(
        self,
        source: SampleSource,
        enabled: bool = True,
        scribble_length: float = 1.0,
        proposals: ColorPseudoLabels | None = None,
    ) -> None:
        self.source = source
        self.enabled = enabled
        self.scribble_length = scribble_length
        self.proposals = proposals
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
        if sample.scribble is not None and self.scribble_length < 1:
            sample = replace(sample, scribble=shorten(sample.scribble, self.scribble_length))
        if self.proposals is not None:
            sample = self.proposals(sample)
        size = sum(a.nbytes for a in (sample.image, sample.label, sample.scribble) if a is not None)
        if self.enabled and self._bytes + size <= CACHE_LIMIT:
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


def check_training_samples(reader: SampleReader, ids: Sequence[str], supervision: str) -> list[str]:
    """Read every training sample once and check it, before anything is written.

    Returns:
        Warnings worth telling: images in which only one class is labelled.

    Raises:
        UsageError: a sample breaks the contract, or has no labelled pixel at all; or all are of one class.
    """
    empty, single = [], []
    seeded: set[int] = set()
    for sample_id in ids:
        labels = supervision_of(reader.load(sample_id), supervision)
        if supervision == "none":
            continue  # loading has checked the image
        present = np.unique(labels[labels != IGNORE])
        seeded.update(present.tolist())
        if present.size == 0:
            empty.append(sample_id)
        elif present.size == 1 and supervision == "scribbles":
            single.append(sample_id)
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
        )
    if single:
        return [f"In {len(single)} images only one class is seeded, so proposals may take any class: {listed(single)}."]
    return []


def check_evaluation_samples(reader: SampleReader, subset: str) -> None:
    """Read every sample of ``subset`` once and check it.

    Raises:
        UsageError: a sample breaks the contract or has no dense label, or there is none.
    """
    ids = reader.source.ids(subset)
    if not ids:
        raise UsageError(f"The subset {subset!r} of the data set is empty: there is nothing to evaluate.")
    for sample_id in ids:
        supervision_of(reader.load(sample_id), "labels")
