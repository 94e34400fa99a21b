"""Pseudo-labels from scribbles and colours, as GrabCut makes them: a baseline in which no network has a say.

    min over labellings and statistics of  region force(labels, statistics; image) + R(labels; image)   seeds given

solved for each training image by itself, before the training: `regloss.alternate`, begun with the statistics of the
colours under the scribbles, with only those classes allowed that are scribbled. Trained on, pseudo-labels take the
place of scribbles, and every pixel counts as labelled.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004; as pseudo-labels, Khoreva et al., "Simple does it: weakly
supervised instance and semantic segmentation", CVPR 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from regloss.alternation import alternate
from regloss.dataset import IGNORE, Sample
from regloss.errors import UsageError
from regloss.io.types import LabelMap
from regloss.numerics import one_hot
from regloss.region_force import RegionForce
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, combine
from regloss.solver import Solver, negotiate
from regloss.training.pseudo_labels import PseudoLabels


class ColorPseudoLabels(PseudoLabels):
    """Makes pseudo-labels of the scribbles and of colours.

    Args:
        region_force: an object, a name or a table.
        regularizer: one or several (objects, names or tables).
        solver: an object, a name or a table.
        entropy: weight of the entropy, for solvers over probabilities.
        rounds: how often labels are solved for at most, >= 1; statistics are fitted again between.

    Raises:
        MissingForm: the solver cannot serve the regularizer.
        UsageError: a name or a setting that does not exist or is invalid.
    """

    def __init__(self, region_force: Any, regularizer: Any, solver: Any, entropy: float, rounds: int) -> None:
        self.region_force: RegionForce = resolve("region-force", region_force)
        combined = combine(regularizer)
        if combined is None:
            raise UsageError("Pseudo-labels from colours need a regularizer, grid-crf for example; got none.")
        self.regularizer: Regularizer = combined
        self.solver: Solver = resolve("solver", solver)
        negotiate(self.regularizer, self.solver)
        super().__init__()
        self.entropy = entropy
        self.rounds = rounds

    def propose(self, sample: Sample) -> LabelMap:
        """Solve for one sample's pseudo-labels (*S), of which every pixel has one.

        Its scribbles if fewer than two classes are scribbled, so that colours cannot tell them apart.
        """
        assert sample.scribble is not None
        scribble = sample.scribble
        present = np.unique(scribble[scribble != IGNORE])
        if present.size < 2:
            return scribble
        # Only classes that are scribbled take part, under numbers of their own.
        numbers = np.full(IGNORE + 1, -1, dtype=np.int64)
        numbers[present] = np.arange(present.size)
        seeds = torch.from_numpy(numbers[scribble]).unsqueeze(0)
        start = one_hot(seeds.clamp(min=0), present.size, torch.float32) * (seeds >= 0).unsqueeze(1)
        try:
            found = alternate(
                self.region_force,
                self.regularizer,
                self.solver,
                torch.from_numpy(sample.image).unsqueeze(0),
                start,
                entropy=self.entropy,
                fixed=seeds,
                max_rounds=self.rounds,
            )
        except UsageError as error:
            raise type(error)(f"{sample.id}: no proposal by {name_of(self.region_force)}: {error}") from None
        labels: LabelMap = present[found.labels[0].numpy()].astype(np.uint8)
        return labels
