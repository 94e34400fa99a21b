"""Samples of a data set as a training reads them: checked, kept in memory, with the labels that it may see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from regloss.dataset import IGNORE, Sample
from regloss.dataset import Dataset as SampleSource
from regloss.errors import UsageError
from regloss.io.scribbles import shorten
from regloss.training.pseudo_labels import PseudoLabels

CACHE_LIMIT = 2 * 1024**3  # bytes of decoded samples kept in memory by a process, or by all that load them together


class SampleReader:
    """Samples of a data set, decoded once while they fit into memory.

    Attributes:
        unlabelled: ids of the samples that are read without what labels they may have.
        scribbled: fraction of the pixels that the scribbles of each sample label, of those that have been read.
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
        sample = _for_torch(sample)
        if sample_id in self.unlabelled:
            nothing = np.full(sample.image.shape[1:], IGNORE, dtype=np.uint8)
            sample = replace(sample, label=nothing, scribble=nothing)
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


def _for_torch(sample: Sample) -> Sample:
    """With arrays that torch can look at without a copy: mirrored views and arrays that are only to be read are not."""

    def usable(array: np.ndarray) -> np.ndarray:
        straight = all(step >= 0 for step in array.strides)
        return array if straight and array.flags.writeable else array.copy()

    def labels(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else usable(array.astype(np.uint8, copy=False))

    return replace(sample, image=usable(sample.image), label=labels(sample.label), scribble=labels(sample.scribble))


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
        if labels.dtype.kind not in "iu":
            raise UsageError(f"{sample.id}: the {name} must hold integers; got {labels.dtype}.")
        wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORE)
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
