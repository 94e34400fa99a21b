"""LevelSets: 2^n phases from n level sets, as Vese and Chan represent them.

    min over sides b_1 .. b_n in {0, 1} per pixel and statistics of   sum over pixels of f(I; phase(b_1, .., b_n))
                                                                      + sum over level sets j of R(b_j)

f is a region force, R a regularizer of two labels, by default the length of the boundary. A boundary between two phases
has its length as often as level sets cross there: once between phases whose sides differ in one, twice in two. The
model of `chan-vese` has every boundary once.

Phases are numbered by a Gray code, so that phase k and phase k + 1 differ in one side: from k-means, which numbers them
by brightness, neighbours in brightness are neighbours here.

A round fits the statistics, and then solves for each level set in turn, the others being held: a problem of two labels,
which minimum cuts solve globally. No step raises the energy; all level sets together are not convex, so what is reached
depends on the start.

Source: Vese, Chan, "A multiphase level set framework for image segmentation using the Mumford and Shah model", IJCV
50(3), 2002. Differs from it in: cuts in place of the gradient flow of smoothed level sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regloss.checks import check_at_least_one
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.numerics import one_hot, widest_float
from regloss.region_force import RegionForce
from regloss.registry import resolve
from regloss.regularizer import Regularizer, combine
from regloss.segmenter import EnergyRecord, Segmentation, Segmenter, Task
from regloss.solver import Status, linear_energy, negotiate, solve
from regloss_plugins.regularizers.tv import TotalVariation
from regloss_plugins.segmenters.initial_phases import start_labels

_REGULARIZER = TotalVariation(0.1)
_TOLERANCE = 1e-6  # fall of the energy per pixel at which it ends


@dataclass(frozen=True)
class LevelSets(Segmenter):
    """2, 4, 8 phases from one, two, three level sets.

    Args:
        region_force: a `RegionForce`, a name or a table.
        regularizer: of each level set: a `Regularizer`, a name, a table, or several of them, which add up.
        solver: of two labels, a `Solver`, a name or a table.
        max_rounds: how often statistics are fitted and every level set is solved for, at most; at least 1.

    Raises:
        UsageError: a setting outside its range, no regularizer.
        MissingForm: the solver cannot use the regularizer.

    >>> image = torch.tensor([[[[0.1, 0.1, 0.4, 0.4, 0.6, 0.6, 0.9, 0.9]]]])
    >>> LevelSets(regularizer={"name": "tv", "weight": 0.001})(image, phases=4).labels
    tensor([[[0, 0, 1, 1, 2, 2, 3, 3]]])
    """

    takes_scribbles = False

    region_force: Any = "chan-vese"
    regularizer: Any = _REGULARIZER
    solver: Any = "alpha-expansion"
    max_rounds: int = 50

    def __post_init__(self) -> None:
        negotiate(self._prior(), resolve("solver", self.solver))
        resolve("region-force", self.region_force)
        check_at_least_one(max_rounds=self.max_rounds)

    def segment(self, task: Task) -> Segmentation:
        """Statistics and each level set in turn.

        Raises:
            UsageError: a number of phases that is no power of two.
        """
        count = task.phases.bit_length() - 1
        if task.phases != 2**count:
            raise UsageError(
                f"level-sets divides an image into 2, 4, 8, 16 ... phases, on one side or the other of each level set; "
                f"got {task.phases}. For another number take chan-vese."
            )
        force: RegionForce = resolve("region-force", self.region_force)
        term, image, phases = self._prior().bind(task.image, spacing=task.spacing), task.image, task.phases
        labels = start_labels(image, phases, task.start, task.seed)
        given = labels != IGNORE
        known = one_hot(labels.masked_fill(~given, 0), phases, torch.float32) * given.unsqueeze(1)
        statistics = force.fit(image, known)
        unary = force.unary(image, statistics)
        labels = torch.where(given, labels, unary.argmin(1))
        sides = _sides(labels, count)

        def lengths() -> list[Tensor]:
            return [term.energy(one_hot(side, 2, unary.dtype)).detach() for side in sides]

        def energy_of(labels: Tensor, lengths: list[Tensor]) -> float:
            exact = unary.to(widest_float(unary.device))  # the force of the last fit
            return float(linear_energy(exact, one_hot(labels, phases, unary.dtype), None) + sum(lengths))

        penalties = lengths()
        energy = energy_of(labels, penalties)
        records = [EnergyRecord(0, "start", 0, energy, float("-inf"))]
        converged = False
        for number in range(1, self.max_rounds + 1):
            before = energy
            for level in range(count):
                # What either side costs, the others being as they are.
                both = [[*sides[:level], torch.full_like(labels, side), *sides[level + 1 :]] for side in (0, 1)]
                options = [_phases(each) for each in both]
                costs = torch.cat([unary.gather(1, option.unsqueeze(1)) for option in options], dim=1)
                found = solve(term, costs, self.solver, warm=sides[level]).labels
                changed = [*sides[:level], found, *sides[level + 1 :]]
                penalty = term.energy(one_hot(found, 2, unary.dtype)).detach()
                new = energy_of(_phases(changed), [*penalties[:level], penalty, *penalties[level + 1 :]])
                if new < energy:
                    sides, energy, penalties[level] = changed, new, penalty
            labels = _phases(sides)
            statistics = force.fit(image, one_hot(labels, phases, torch.float32), previous=statistics)
            unary = force.unary(image, statistics)
            energy = energy_of(labels, penalties)
            records.append(EnergyRecord(number, "labels", 0, energy, float("-inf")))
            if task.callback is not None:
                task.callback(f"round {number}: energy {energy:.6g}")
            if before - energy <= _TOLERANCE * labels.numel():
                converged = True
                break
        return Segmentation(
            labels=labels,
            probabilities=one_hot(labels, phases, image.dtype),
            energy=energy,
            steps=len(records) - 1,
            status=Status.CONVERGED if converged else Status.MAX_STEPS,
            history=tuple(records),
        )

    def _prior(self) -> Regularizer:
        regularizer = combine(self.regularizer)
        if regularizer is None:
            raise UsageError("level-sets needs a regularizer, such as tv or grid-crf; got none.")
        return regularizer


def _sides(labels: Tensor, count: int) -> list[Tensor]:
    """The sides (1, *S), 0 or 1, of each of ``count`` level sets, of phases (1, *S)."""
    code = labels ^ (labels >> 1)
    return [(code >> level) & 1 for level in range(count)]


def _phases(sides: list[Tensor]) -> Tensor:
    """The inverse of `_sides`."""
    phase, above = torch.zeros_like(sides[0]), torch.zeros_like(sides[0])
    for level in reversed(range(len(sides))):
        above = above ^ sides[level]
        phase = phase | (above << level)
    return phase
