"""Pseudo-labels made of scribbles and image before the training, which then learns them in the scribbles' place."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from regloss.dataset import Sample
from regloss.io.types import LabelMap


class PseudoLabels(ABC):
    """Makes pseudo-labels, and keeps them compressed: those of an image are made once in a process."""

    def __init__(self) -> None:
        self._of: frozenset[str] = frozenset()
        self._kept: dict[str, bytes] = {}

    @abstractmethod
    def propose(self, sample: Sample) -> LabelMap:
        """Make the pseudo-labels (*S) of a sample with scribbles; 255 = none."""

    def only_of(self, ids: Iterable[str]) -> None:
        """Say which samples get pseudo-labels: those that are trained on."""
        self._of = frozenset(ids)

    def __call__(self, sample: Sample) -> Sample:
        """``sample`` with its pseudo-labels (*S) as scribbles; as it is if it is not among those that get some."""
        if sample.id not in self._of or sample.scribble is None:
            return sample
        if sample.id not in self._kept:
            self._kept[sample.id] = zlib.compress(self.propose(sample).tobytes(), 1)
        flat = np.frombuffer(zlib.decompress(self._kept[sample.id]), dtype=np.uint8)
        return replace(sample, scribble=flat.reshape(sample.scribble.shape).copy())
