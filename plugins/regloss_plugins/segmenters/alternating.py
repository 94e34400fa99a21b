"""AlternatingSegmenter: a region force, a regularizer and a solver; from scribbles or without any label.

    min over labellings and statistics of   region force(labels, statistics; image) + place(labels) + R(labels; image)

With scribbles, these are the seeds, and the statistics are those of the colours under them. Colours alone forget where
the scribbles were: place, if it has a weight, makes labels cost their distance to the class's nearest scribble, see
`regloss.scribble_distances`. Without scribbles, k-means on the colours gives the phases to start from, and statistics
and labels are found in turn; see `regloss.alternate`.

Who segments an image again after each stroke calls `AlternatingSegmenter.prepare` once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from regloss.alternation import Alternation, alternate
from regloss.checks import (
    at_least_float32,
    check_at_least_one,
    check_choice,
    check_entropy,
    check_image,
    check_labels,
    check_not_negative,
)
from regloss.color import lab
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.region_force import RegionForce
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, Term, combine
from regloss.segmenter import EnergyRecord, Segmentation, Segmenter, Task, check_classes
from regloss.solver import Progress, Solution, negotiate, solve
from regloss_plugins.segmenters.initial_phases import start_labels
from regloss_plugins.segmenters.scribble_distances import scribble_distances

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
        colors: that the region force looks at: "rgb", or "lab" (`regloss.color.lab`), which makes a difference for
            images of three channels alone.
        place: weight of the distance to the class's nearest scribble, >= 0, in units of the region force for each
            diagonal of the image; with scribbles and a region force alone.
        place_limit: the most that place lets a class cost beyond the nearest one, >= 0, in units of the region force.
        barrier: of these distances, >= 0, in diagonals of the image.

    Raises:
        UsageError: a setting outside its range, no regularizer.
        MissingForm: the solver cannot use the regularizer.
    """

    region_force: Any
    regularizer: Any
    solver: Any = "alpha-expansion"
    entropy: float = 0.0
    max_rounds: int | None = None
    colors: Literal["rgb", "lab"] = "rgb"
    place: float = 0.0
    place_limit: float = 6.0
    barrier: float = 0.08

    def __post_init__(self) -> None:
        negotiate(self.prior((1, 1)), resolve("solver", self.solver))
        if self.region_force is not None:
            resolve("region-force", self.region_force)
        check_entropy(self.entropy)
        if self.max_rounds is not None:
            check_at_least_one(max_rounds=self.max_rounds)
        check_choice(("rgb", "lab"), colors=self.colors)
        check_not_negative(place=self.place, place_limit=self.place_limit, barrier=self.barrier)

    def prior(self, shape: Sequence[int], spacing: Sequence[float] | None = None) -> Regularizer:
        """R, for an image with axes of ``shape`` pixels and of that ``spacing``."""
        regularizer = combine(self.regularizer)
        if regularizer is None:
            raise UsageError(f"{name_of(self)} needs a regularizer, such as grid-crf or tv; got none.")
        return regularizer

    def features(self, image: Tensor) -> Tensor:
        """What the region force looks at, (1, C, *S), of ``image`` (1, C, *S) in [0, 1]."""
        return lab(image) if self.colors == "lab" and image.shape[1] == 3 else image

    def color_costs(
        self, features: Tensor, scribbles: Tensor, classes: int | None = None, where: Tensor | None = None
    ) -> Tensor:
        """Costs (1, K, *S) of labels by statistics of what is scribbled; 0 for classes without scribbles.

        Args:
            features: (1, C, *S), as `features` gives them.
            scribbles: (1, *S) integer labels of at least two classes, 255 = none.
            classes: K; None = the largest label + 1.
            where: (1, *S) bool, pixels whose costs are wanted; those of others are 0. None = all.
        """
        scribbles, present = _checked_scribbles(scribbles, (1, *features.shape[2:]), classes, features.device)
        costs = features.new_zeros(1, len(present), *scribbles.shape[1:])
        if self.region_force is None:
            return costs
        force: RegionForce = resolve("region-force", self.region_force)
        choices, seeds = present.nonzero().squeeze(1), (scribbles != IGNORE)[0]
        labels = (scribbles[0][seeds] == choices.unsqueeze(1)).to(costs).unsqueeze(0)
        statistics = force.fit(features[:, :, seeds], labels)
        if where is None:
            costs[:, choices] = force.unary(features, statistics)
        elif bool(where.any()):
            found = torch.zeros_like(costs[:, :, where[0]])
            found[:, choices] = force.unary(features[:, :, where[0]], statistics)
            costs[:, :, where[0]] = found
        return costs

    def place_costs(self, scribbles: Tensor, costs: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """Costs (B, K, *S) of place; 0 for the class whose scribbles are the nearest, and for those without any.

        Args:
            scribbles: (B, *S) integer labels below K, 255 = none.
            costs: (B, K, *S) of colours.
            spacing: distance between neighbouring pixels along each axis in mm; None = 1.
        """
        distances = scribble_distances(scribbles, costs, self.barrier, spacing).to(costs)
        order = torch.arange(costs.shape[1], device=costs.device)
        present = (scribbles.flatten(1).unsqueeze(1) == order.unsqueeze(1)).any(2)
        absent = ~present.reshape(*present.shape, *[1] * (costs.ndim - 2))
        nearest = distances.masked_fill(absent, float("inf")).amin(1, keepdim=True)
        return (self.place * (distances - nearest)).clamp(0, self.place_limit)

    def prepare(self, image: Tensor, spacing: Sequence[float] | None = None) -> PreparedImage:
        """Compute what does not depend on scribbles: colours, and the regularizer's weights.

        Args:
            image: (1, C, *S) in [0, 1].
            spacing: distance between neighbouring pixels along each axis in mm; None = 1.
        """
        check_image(image)
        image = at_least_float32(image.detach())
        term = self.prior(image.shape[2:], spacing).bind(image, spacing=spacing)
        return PreparedImage(self, self.features(image), term, None if spacing is None else tuple(spacing))

    def segment(self, task: Task) -> AlternatingSegmentation:
        """Alternate from the scribbles, or from phases."""
        regularizer, solver = self.prior(task.image.shape[2:], task.spacing), resolve("solver", self.solver)
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
            place = None
            if task.scribbles is not None and self.place > 0:
                place = partial(self.place_costs, task.scribbles, spacing=task.spacing)
            alternation = alternate(
                force,
                regularizer,
                solver,
                task.image,
                start,
                features=self.features(task.image),
                costs=place,
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


@dataclass(frozen=True)
class PreparedImage:
    """One image, to be segmented from one set of scribbles after the other.

    Attributes:
        segmenter: whose settings hold.
        features: (1, C, *S) what its region force looks at.
        term: its regularizer, bound to the image.
        spacing: of the image's pixels in mm, where it is known.

    >>> image = torch.tensor([[[[0.1, 0.1, 0.2, 0.8, 0.9, 0.9]]]])
    >>> from regloss import GraphCut
    >>> prepared = GraphCut().prepare(image)
    >>> first = prepared.solve(torch.tensor([[[0, 255, 255, 255, 255, 1]]]))
    >>> prepared.solve(torch.tensor([[[0, 255, 1, 255, 255, 1]]]), warm=first.labels).labels
    tensor([[[0, 0, 1, 1, 1, 1]]])
    """

    segmenter: AlternatingSegmenter
    features: Tensor
    term: Term
    spacing: tuple[float, ...] | None = None

    def costs(self, scribbles: Tensor, classes: int | None = None) -> Tensor:
        """Costs (1, K, *S) of labels by colour and place; 0 for classes without scribbles.

        Args:
            scribbles: (1, *S) integer labels of at least two classes, 255 = none.
            classes: K; None = the largest label + 1.
        """
        costs = self.segmenter.color_costs(self.features, scribbles, classes)
        if self.segmenter.place > 0 and self.segmenter.region_force is not None:
            costs += self.segmenter.place_costs(scribbles.to(costs.device, torch.int64), costs, self.spacing)
        return costs

    def solve(
        self, scribbles: Tensor, classes: int | None = None, *, warm: Tensor | Solution | None = None
    ) -> Solution:
        """Segment once, as the segmenter does in its first round.

        Args:
            scribbles: (1, *S) integer labels of at least two classes, 255 = none.
            classes: K; None = the largest label + 1.
            warm: labels (1, *S) to start from, of the stroke before, say; or an earlier solution.
        """
        scribbles, present = _checked_scribbles(scribbles, self.term.shape, classes, self.features.device)
        return solve(
            self.term,
            self.costs(scribbles, len(present)),
            self.segmenter.solver,
            entropy=self.segmenter.entropy,
            fixed=scribbles.masked_fill(scribbles == IGNORE, -1),
            allowed=present.unsqueeze(0),
            warm=warm,
        )


def _checked_scribbles(
    scribbles: Tensor, shape: tuple[int, ...], classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The scribbles (1, *S) as int64, and (K,) bool, which classes they hold."""
    check_labels(scribbles, shape, classes)
    found = check_classes(scribbles, "scribbles")
    scribbles = scribbles.to(device, torch.int64)
    present = torch.zeros(found if classes is None else classes, dtype=torch.bool, device=device)
    present[torch.unique(scribbles[scribbles != IGNORE])] = True
    return scribbles, present


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
