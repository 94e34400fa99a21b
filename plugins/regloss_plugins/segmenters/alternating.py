"""AlternatingSegmenter: a region force, a regularizer and a solver; from scribbles or without any label.

    min over labellings and statistics of   region force(labels, statistics; image) + R(labels; image)

With scribbles, these are the seeds, and the statistics are those of the colours under them. Without, k-means on the
colours gives the phases to start from, and statistics and labels are found in turn; see `regloss.alternate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regloss.alternation import Alternation, alternate
from regloss.checks import check_at_least_one, check_entropy
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.region_force import RegionForce
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, combine
from regloss.segmenter import EnergyRecord, Segmentation, Segmenter, Task
from regloss.solver import Progress, Solution, Solver, negotiate, solve
from regloss_plugins.segmenters.initial_phases import start_labels

MAX_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class AlternatingSegmentation(Segmentation):
    """What an `AlternatingSegmenter` has found.

    Attributes:
        solution: the solver's last `Solution`, with its certificate.
        alternation: rounds and statistics; None where no region force took part.
        means: (K, C) float64 mean colour of each phase, NaN where it has no pixels; None for scribbles, whose classes
            have names of their own.
    """

    solution: Solution
    alternation: Alternation | None = None
    means: Tensor | None = None

    def summary(self) -> str:
        """Energy, bound and status in one line; of several rounds, how many there were."""
        if self.alternation is None or len(self.alternation.history) <= 2:
            return super().summary()
        bound = f", lower bound {self.bound:.6g} for the last statistics" if math.isfinite(self.bound) else ""
        rounds, status = int(self.alternation.rounds[0]), self.alternation.status[0]
        return f"energy {self.energy:.6g}{bound}; {rounds} rounds; {status.value}"


@dataclass(frozen=True)
class AlternatingSegmenter(Segmenter):
    """Base of segmenters that alternate between the statistics of regions and the labels.

    Args:
        region_force: a `RegionForce`, a name or a table; None = the seeds alone decide, with the regularizer.
        regularizer: a `Regularizer`, a name, a table, or several of them, which add up.
        solver: a `Solver`, a name or a table.
        entropy: weight of the entropy, >= 0, for solvers over probabilities.
        max_rounds: how often labels are solved for, at most; None = once with scribbles, 50 times without.

    Raises:
        UsageError: a setting outside its range, no regularizer.
        MissingForm: the solver cannot use the regularizer.
    """

    region_force: Any
    regularizer: Any
    solver: Any = "alpha-expansion"
    entropy: float = 0.0
    max_rounds: int | None = None

    def __post_init__(self) -> None:
        negotiate(*self._regularizer_and_solver())
        if self.region_force is not None:
            resolve("region-force", self.region_force)
        check_entropy(self.entropy)
        if self.max_rounds is not None:
            check_at_least_one(max_rounds=self.max_rounds)

    def _regularizer_and_solver(self) -> tuple[Regularizer, Solver]:
        regularizer = combine(self.regularizer)
        if regularizer is None:
            raise UsageError(f"{name_of(self)} needs a regularizer, such as grid-crf or tv; got none.")
        return regularizer, resolve("solver", self.solver)

    def segment(self, task: Task) -> AlternatingSegmentation:
        """Alternate from the scribbles, or from phases."""
        regularizer, solver = self._regularizer_and_solver()
        start, fixed = self._start(task)
        rounds = self.max_rounds or (MAX_ROUNDS if task.scribbles is None else 1)
        records: list[EnergyRecord] = []

        def record(known: Progress) -> None:
            records.append(EnergyRecord.of(known))
            if task.callback is not None and known.stage == "labels" and rounds > 1:
                task.callback(f"round {known.round}: energy {float(known.energy[0]):.6g}")

        alternation: Alternation | None = None
        if self.region_force is None:
            solution = solve(
                regularizer.bind(task.image, spacing=task.spacing),
                torch.zeros_like(start),
                solver,
                entropy=self.entropy,
                fixed=fixed,
                allowed=task.allowed,
                callback=record,
            )
        else:
            force: RegionForce = resolve("region-force", self.region_force)
            alternation = alternate(
                force,
                regularizer,
                solver,
                task.image,
                start,
                entropy=self.entropy,
                spacing=task.spacing,
                fixed=fixed,
                allowed=task.allowed,
                max_rounds=rounds,
                callback=record,
            )
            solution = alternation.solution
        means = mean_colors(task.image, solution.labels, task.phases) if task.scribbles is None else None
        return AlternatingSegmentation(
            labels=solution.labels,
            probabilities=solution.probabilities,
            energy=float(solution.energy[0]),
            bound=float(solution.bound[0]),
            steps=int(solution.steps[0]),
            status=solution.status[0],
            history=tuple(records),
            notes=() if means is None else (_in_words(means),),
            solution=solution,
            alternation=alternation,
            means=means,
        )

    def _start(self, task: Task) -> tuple[Tensor, Tensor | None]:
        """Probabilities (1, K, *S) to start from, 0 where there is no label, and seeds (1, *S), -1 where free."""
        if task.scribbles is not None:
            return _one_hot(task.scribbles, task.phases), task.scribbles.masked_fill(task.scribbles == IGNORE, -1)
        if self.region_force is None:
            raise UsageError(
                f"Without a region force {name_of(self)} has nothing but seeds to tell classes apart: give scribbles."
            )
        if isinstance(task.start, Tensor):
            given = int(task.start[task.start != IGNORE].max()) + 1
            if given != task.phases:
                raise UsageError(
                    f"The start has the phases 0 to {given - 1}, but {task.phases} phases are asked for. Each needs "
                    "pixels to start from."
                )
            return _one_hot(task.start, task.phases), None
        labels = start_labels(task.image, task.phases, task.start, task.seed)
        return one_hot(labels, task.phases, torch.float32), None


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(1, K, *S), all 0 where there is no label."""
    given = labels != IGNORE
    return one_hot(labels.masked_fill(~given, 0), classes, torch.float32) * given.unsqueeze(1)


def mean_colors(image: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, C) float64 means of ``image`` (1, C, *S) by ``labels`` (1, *S); NaN where a phase has no pixels any more."""
    flat, places = image[0].flatten(1).cpu().double(), labels.flatten().cpu()
    counts = torch.bincount(places, minlength=classes)
    sums = torch.stack([torch.bincount(places, weights=channel, minlength=classes) for channel in flat], dim=1)
    return sums / counts.unsqueeze(1)  # 0 / 0 is NaN


def _in_words(means: Tensor) -> str:
    colours = [
        "no pixels" if math.isnan(mean[0]) else "(" + ", ".join(f"{value:.3f}" for value in mean) + ")"
        for mean in means.tolist()
    ]
    return "mean colours: " + ", ".join(f"{label}: {text}" for label, text in enumerate(colours))
