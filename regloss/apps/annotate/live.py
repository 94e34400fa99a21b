"""The segmentation that follows from scribbles, soon enough to draw by.

    min over labels that keep the scribbles of   costs(labels)  +  R(labels; image)

Costs are those of `regloss segment`, of a trained network (-log of its probabilities), or none; R is a grid CRF. As
what is exact takes longer than a hand waits, an answer comes in stages, each replacing the one before:

    preview    the problem on a reduced image, and on the image itself, or on half of a large one, only in a band about
               the boundaries found there
    answer     the whole problem, from the labels of the preview: the minimum where there are two classes
    bound      with more classes, how far the answer can be from the minimum

What is the same from stroke to stroke, the image at each size with its colours and pairwise weights, is computed once.
On an image reduced by f a boundary has 1/f and a region 1/f^2 of its pixels, and its diagonal, with which the weight
grows, is 1/f of what it was. In the band costs of place are those of the reduced image.

With a hard constraint (star shape, convex shape, bounds on a class's volume) there is one stage, over probabilities, at
a reduced size, and R is a total variation that follows edges.

Source of the band: Lombaert, Sun, Grady, Xu, "A multilevel banded graph cuts method for fast image segmentation",
ICCV 2005.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from regloss.apps.segment import default_segmenter
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.io.reduction import reduce_image, reduce_scribbles
from regloss.io.types import FloatImage, LabelMap
from regloss.registry import create
from regloss.regularizer import Regularizer, Term, combine
from regloss.solver import Solution, Solver, solve

LARGEST = 2**20
"""Pixels of the images that are solved at their own size; larger ones are reduced."""

_PREVIEWED = 2**15  # pixels above which there is a preview
_PREVIEW = 2**15  # pixels of the reduced image at most
_PREVIEW_SHOWN = 2**18  # pixels of the preview at most: of more, costs and cuts take longer than a hand waits
_PREVIEW_CYCLES = 1  # of alpha-expansion; a second one hardly changes anything, and takes as long
_CONSTRAINED = 2**14  # pixels at which constraints are solved
_BAND = 1  # reduced pixels beyond those on both sides of a boundary
_BOUND_STEPS = 3
_ENTROPY = 1.0  # of solvers over probabilities, in nats


@lru_cache(maxsize=1)
def default_model() -> Any:
    """What `regloss segment` does with scribbles: a `regloss.ScribbleCut`."""
    return default_segmenter("scribbles")


class AnswerSettings(BaseModel):
    """What a tab asks for.

    Attributes:
        costs: "colors" of the scribbles, the "network" of a run, or "seeds": nothing but the scribbles.
        weight: of R, for each pixel of the image's diagonal.
        place: weight of the distance to a class's strokes, beside their colours; 0 = colours alone.
        shaped: the class that the following are about.
        star: it is star-shaped. convex: it is convex.
        least: fraction of the image that it covers at least. most: at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    costs: Literal["colors", "network", "seeds"] = "colors"
    weight: float = Field(default_factory=lambda: float(default_model().smoothness), ge=0, le=1e4)
    place: float = Field(default_factory=lambda: float(default_model().place), ge=0, le=1e4)
    shaped: int = Field(default=1, ge=0, lt=IGNORE)
    star: bool = False
    convex: bool = False
    least: float = Field(default=0.0, ge=0, le=1)
    most: float = Field(default=1.0, ge=0, le=1)

    @property
    def constrained(self) -> bool:
        """Whether there is any hard constraint."""
        return self.star or self.convex or self.least > 0 or self.most < 1


@dataclass(frozen=True)
class Answer:
    """One stage of the segmentation of an image.

    Attributes:
        labels: (h, w) uint8, of the image reduced by ``factor``; None = there is none, and ``message`` says why.
        factor: of the reduction.
        final: whether nothing better will follow.
        state: "waiting" for more scribbles, "problem", "preview", "optimal", "bounded" (with a gap), or "approximate".
        gap: how far its energy may be from the minimum, as a fraction of the energy; None = not known.
        seconds: since the request.
        message: for the reader.
    """

    labels: LabelMap | None
    factor: int = 1
    final: bool = True
    state: Literal["waiting", "problem", "preview", "optimal", "bounded", "approximate"] = "approximate"
    gap: float | None = None
    seconds: float = 0.0
    message: str = ""


@dataclass
class _Level:
    """An image at one size.

    Attributes:
        image: (1, C, h, w).
        factor: of its reduction.
        features: (1, C, h, w), its colours as costs are made of them.
        terms: by their regularizer.
    """

    image: Tensor
    factor: int
    features: Tensor
    terms: dict[Regularizer, Term] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.image.shape[2] * self.image.shape[3]

    def term(self, regularizer: Regularizer) -> Term:
        """The regularizer bound to the image; the last one is kept."""
        with self.lock:
            if regularizer not in self.terms:
                self.terms = {regularizer: regularizer.bind(self.image)}
            return self.terms[regularizer]


class LiveImage:
    """One image, ready to be segmented from one set of scribbles after the other; by several threads if need be.

    Args:
        image: (C, H, W) in [0, 1].
        network: gives logits (1, K, H, W) of the image; called once, when they are first needed. None = there is no
            network.
    """

    def __init__(self, image: FloatImage, network: Callable[[], Tensor] | None = None) -> None:
        self._image = image
        self._network = network
        self._logits: Tensor | None = None
        self._levels: dict[int, _Level] = {}
        self._lock = threading.Lock()
        self._coarse: Tensor | None = None  # labels of the last preview, at its size

    def quick(self, scribbles: LabelMap, classes: int, settings: AnswerSettings) -> Answer | None:
        """The first stage; None where only `thorough` has an answer.

        Args:
            scribbles: (H, W), 255 = unlabelled.
            classes: K.
            settings: what is asked for.
        """
        if settings.costs == "network" and self._network is None:
            return Answer(None, state="problem", message="There is no trained network yet.")
        if settings.costs != "network" and len(_present_in(scribbles)) < 2:
            return Answer(None, state="waiting", message="Draw strokes of two classes, the background for one.")
        if settings.constrained:
            return None
        level = self._level(_factor(self._image, LARGEST))
        if level.pixels > _PREVIEWED:
            shown = self._level(self._shown(level.factor))
            return Answer(_plain(self._preview(scribbles, classes, settings, shown)), shown.factor, False, "preview")
        problem = self._problem(level, scribbles, classes, settings)
        return _answer(problem.solve("alpha-expansion"), level.factor, final=problem.choices <= 2)

    def thorough(
        self, scribbles: LabelMap, classes: int, settings: AnswerSettings, start: LabelMap | None
    ) -> Iterator[Answer]:
        """The other stages; who has no more use for them takes no more.

        Args:
            scribbles: as above.
            classes: as above.
            settings: as above.
            start: labels of the first stage, where there was one, at its size.
        """
        if settings.constrained:
            yield self._constrained(scribbles, classes, settings)
            return
        level = self._level(_factor(self._image, LARGEST))
        problem = self._problem(level, scribbles, classes, settings)
        warm = None if start is None else torch.from_numpy(start.astype(np.int64)).unsqueeze(0)
        if warm is not None and warm.shape != problem.fixed.shape:
            height, width = level.image.shape[2:]
            warm = _enlarged(warm, self._shown(level.factor) // level.factor)[:, :height, :width]
        if level.pixels > _PREVIEWED:
            found = problem.solve("alpha-expansion", warm=warm)
            yield _answer(found, level.factor, final=problem.choices <= 2)
            warm = found.labels
        if problem.choices > 2:
            solver = create("solver", "alpha-expansion", bound_steps=_BOUND_STEPS)
            yield _answer(problem.solve(solver, warm=warm), level.factor, final=True)

    def settled(self, scribbles: LabelMap, classes: int, settings: AnswerSettings) -> Answer:
        """The segmentation that the stages lead to; how far it may be from the minimum is not looked for."""
        answer = self.quick(scribbles, classes, settings)
        if answer is None or answer.state == "preview":
            return next(self.thorough(scribbles, classes, settings, None if answer is None else answer.labels))
        return answer

    # ---- without constraints

    def _shown(self, factor: int) -> int:
        """The factor of previews of an image that is solved at 1/factor."""
        return _factor(self._image, _PREVIEW_SHOWN, multiple_of=factor)

    def _preview(self, scribbles: LabelMap, classes: int, settings: AnswerSettings, level: _Level) -> Tensor:
        """Labels (1, h, w) at the size of ``level``, from a smaller one and a band about its boundaries."""
        shrink = _factor(self._image, _PREVIEW, multiple_of=level.factor)
        coarse = self._level(shrink)
        start = None if self._coarse is None or int(self._coarse.max()) >= classes else self._coarse
        problem, solver = self._problem(coarse, scribbles, classes, settings), _preview_solver()
        found = problem.solve(solver, warm=start).labels
        self._coarse = found
        times = shrink // level.factor
        if times == 1:
            return found
        height, width = level.image.shape[2:]
        near = _near_boundaries(found)
        labels = _enlarged(found, times)[:, :height, :width]
        band = _enlarged(near, times)[:, :height, :width]
        place = _enlarged(problem.place[0], times)[None, :, :height, :width]
        outside = _Outside(labels, band, place)
        return self._problem(level, scribbles, classes, settings, outside).solve(solver).labels

    def _problem(
        self,
        level: _Level,
        scribbles: LabelMap,
        classes: int,
        settings: AnswerSettings,
        outside: _Outside | None = None,
    ) -> _Problem:
        """The problem at one size; of a band alone, where it is said what holds outside."""
        seeds = _seeds(scribbles, level.factor)
        prior = replace(default_model(), smoothness=settings.weight).prior(level.image.shape[2:])
        unary, place = self._costs(level, seeds, classes, settings, outside)
        allowed = None if settings.costs == "network" else _present(seeds, classes)
        fixed = seeds if outside is None else torch.where(outside.band | (seeds >= 0), seeds, outside.labels)
        return _Problem(level.term(prior), unary + place, fixed, allowed, place)

    def _costs(
        self, level: _Level, seeds: Tensor, classes: int, settings: AnswerSettings, outside: _Outside | None = None
    ) -> tuple[Tensor, Tensor]:
        """Costs (1, K, h, w) of what pixels look like, and of place; those outside a band do not matter."""
        none = torch.zeros(1, classes, *seeds.shape[1:])
        if settings.costs == "seeds":
            return none, none
        if settings.costs == "network":
            return self._network_costs(level, classes), none
        segmenter, given = replace(default_model(), place=settings.place), torch.where(seeds < 0, IGNORE, seeds)
        if outside is not None:
            return segmenter.color_costs(level.features, given, classes, outside.band), outside.place
        colors = segmenter.color_costs(level.features, given, classes)
        return colors, none if settings.place == 0 else segmenter.place_costs(given, colors)

    def _network_costs(self, level: _Level, classes: int) -> Tensor:
        with self._lock:
            if self._logits is None:
                assert self._network is not None
                self._logits = self._network().float().cpu()
            if self._logits.shape[1] != classes:
                raise UsageError(
                    f"The network knows {self._logits.shape[1]} classes, and there are {classes} now. Train again."
                )
            costs = -torch.log_softmax(self._logits, dim=1)[0].numpy()
        return torch.from_numpy(reduce_image(costs, level.factor)).unsqueeze(0)

    # ---- with constraints

    def _constrained(self, scribbles: LabelMap, classes: int, settings: AnswerSettings) -> Answer:
        if settings.shaped >= classes:
            raise UsageError(f"There is no class {settings.shaped}; there are {classes} classes.")
        level = self._level(_factor(self._image, _CONSTRAINED))
        seeds = _seeds(scribbles, level.factor)
        weight = settings.weight * math.hypot(*level.image.shape[2:])
        prior: list[Any] = [{"name": "tv", "weight": weight, "edge_scale": _edge_scale(level.image)}]
        if settings.star:
            prior.append({"name": "star", "label": settings.shaped})
        if settings.convex:
            prior.append({"name": "convex", "label": settings.shaped})
        if settings.least > 0 or settings.most < 1:
            lower, upper = [0.0] * classes, [1.0] * classes
            lower[settings.shaped], upper[settings.shaped] = settings.least, settings.most
            prior.append({"name": "volume", "lower": lower, "upper": upper, "unit": "fraction"})
        regularizer = combine(prior)
        assert isinstance(regularizer, Regularizer)
        solver = create("solver", "projected" if settings.convex else "pdhg", max_steps=100, tolerance=1e-3)
        unary, place = self._costs(level, seeds, classes, settings)
        allowed = None if settings.costs == "network" else _present(seeds, classes)
        found = solve(
            regularizer.bind(level.image), unary + place, solver, entropy=_ENTROPY, fixed=seeds, allowed=allowed
        )
        reduced = "" if level.factor == 1 else f"Solved at 1/{level.factor} of the size."
        return Answer(_plain(found.labels), level.factor, state="approximate", message=reduced)

    def _level(self, factor: int) -> _Level:
        with self._lock:
            if factor not in self._levels:
                image = self._image if factor == 1 else reduce_image(self._image, factor)
                pixels = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0)
                self._levels[factor] = _Level(pixels, factor, default_model().features(pixels))
            return self._levels[factor]


@dataclass(frozen=True)
class _Outside:
    """What is known where a problem is solved in a band alone.

    Attributes:
        labels: (1, h, w), given outside the band.
        band: (1, h, w) bool.
        place: (1, K, h, w) costs of place.
    """

    labels: Tensor
    band: Tensor
    place: Tensor


@dataclass(frozen=True)
class _Problem:
    """Costs and a bound prior, with what is given.

    Attributes:
        term: R.
        unary: (1, K, h, w).
        fixed: (1, h, w), -1 where free.
        allowed: (1, K) bool; None = all.
        place: (1, K, h, w), the part of the unary that is about place.
    """

    term: Term
    unary: Tensor
    fixed: Tensor
    allowed: Tensor | None
    place: Tensor

    @property
    def choices(self) -> int:
        """How many classes a free pixel may take."""
        return self.unary.shape[1] if self.allowed is None else int(self.allowed.sum())

    def solve(self, solver: Solver | str, warm: Tensor | None = None) -> Solution:
        return solve(self.term, self.unary, solver, fixed=self.fixed, allowed=self.allowed, warm=warm)


def _preview_solver() -> Solver:
    found: Solver = create("solver", "alpha-expansion", max_cycles=_PREVIEW_CYCLES)
    return found


def _seeds(scribbles: LabelMap, factor: int) -> Tensor:
    """(1, h, w) int64, -1 where nothing was drawn."""
    reduced = scribbles if factor == 1 else reduce_scribbles(scribbles, factor)
    return torch.from_numpy(np.where(reduced == IGNORE, -1, reduced.astype(np.int64))).unsqueeze(0)


def _present_in(scribbles: LabelMap) -> list[int]:
    """The classes of some scribbles."""
    return [int(label) for label in np.flatnonzero(np.bincount(scribbles.ravel(), minlength=256)[:IGNORE])]


def _present(seeds: Tensor, classes: int) -> Tensor:
    """(1, K) bool: classes with seeds."""
    found = torch.zeros(1, classes, dtype=torch.bool)
    found[0, torch.unique(seeds[seeds >= 0])] = True
    return found


def _factor(image: FloatImage, most: int, *, multiple_of: int = 1) -> int:
    """The least whole factor by which an image is reduced to at most so many pixels."""
    pixels = image.shape[1] * image.shape[2]
    factor = max(1, math.ceil(math.sqrt(pixels / most)))
    return -(-factor // multiple_of) * multiple_of


def _edge_scale(image: Tensor) -> float:
    """1 / the mean squared difference of neighbours, the contrast rule of the grid CRF."""
    steps = [image.diff(dim=axis).square().sum(1).mean() for axis in (2, 3) if image.shape[axis] > 1]
    mean = float(torch.stack(steps).mean()) if steps else 0.0
    return min(1 / mean, 1e6) if mean > 0 else 0.0


def _near_boundaries(labels: Tensor) -> Tensor:
    """(1, h, w) bool: pixels at most `_BAND` from another label."""
    from scipy import ndimage

    plain = labels[0].numpy()
    edge = np.zeros(plain.shape, dtype=bool)
    for axis in (0, 1):
        step = np.diff(plain, axis=axis) != 0
        edge |= np.pad(step, [(0, int(axis == 0)), (0, int(axis == 1))])
        edge |= np.pad(step, [(int(axis == 0), 0), (int(axis == 1), 0)])
    near = ndimage.binary_dilation(edge, np.ones((3, 3), dtype=bool), iterations=_BAND)
    return torch.from_numpy(near).unsqueeze(0)


def _enlarged(values: Tensor, times: int) -> Tensor:
    return values.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _plain(labels: Tensor) -> LabelMap:
    found: LabelMap = labels[0].to(torch.uint8).numpy()
    return found


def _answer(found: Solution, factor: int, *, final: bool) -> Answer:
    energy, gap = float(found.energy[0]), float(found.gap[0])
    labels = _plain(found.labels)
    if not math.isfinite(gap):
        return Answer(labels, factor, final, "approximate")
    if gap <= 1e-6 * abs(energy):
        return Answer(labels, factor, final, "optimal", 0.0)
    return Answer(labels, factor, final, "bounded", gap / max(abs(energy), 1e-12))
