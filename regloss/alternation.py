"""Segmentation without a network: statistics and labels in turn.

    E(s, theta) = F(s, theta; features) + <costs, s> + entropy <s, log s> + R(s; image)

with a `RegionForce` F, a `Regularizer` R, and costs of labels that stay the same, where there are any. A round has two
halves, and neither raises E:

    statistics   theta = argmin F(s, .)      in closed form; a force that is not ``exact`` keeps theta if F would rise
    labels       s = argmin E(., theta)      by a `Solver`, from the last s

With two phases and a regularizer whose relaxation is tight (cuts, total variation) the second half is solved globally,
and the solution's bound certifies that; the two together are not convex, so what is reached depends on the start.

A solver may stop early. A labelling that comes out above the last one by no more than the solver's own gap is an
accident of that, and is not taken; by more than the gap, one of the two numbers is wrong, and that is an error.

Source: Chan, Vese, "Active contours without edges", 2001, for the alternation with means; Chan, Esedoglu, Nikolova,
"Algorithms for finding global minimizers of image segmentation and denoising models", 2006, for the second half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from regloss.checks import at_least_float32, check_labels, check_scores
from regloss.dataset import IGNORE
from regloss.errors import ReglossError, UsageError
from regloss.forms import Form, Graph, GridGraph
from regloss.grid import full_roi, spread
from regloss.numerics import one_hot, widest_float
from regloss.region_force import RegionForce, pick_statistics
from regloss.registry import name_of, resolve
from regloss.regularizer import Regularizer, Term, combine
from regloss.settings import checked
from regloss.solver import (
    Callback,
    Progress,
    Solution,
    Solver,
    Status,
    linear_energy,
    negotiate,
    solve,
    statuses,
)


@dataclass(frozen=True)
class Alternation:
    """What alternating has found.

    Attributes:
        solution: the solver's last one, with its certificate for the last statistics.
        statistics: of each class, as the region force has them.
        history: the start and every half step that was taken; energies never rise from one to the next.
        rounds: (B,) int64, how often the labels of each image were solved for.
        status: per image, whether another round would have lowered the energy by no more than the tolerance; never
            converged where the solver itself was not.
    """

    solution: Solution
    statistics: Any
    history: tuple[Progress, ...]
    rounds: Tensor
    status: tuple[Status, ...]

    @property
    def labels(self) -> Tensor:
        """(B, *S) int64."""
        return self.solution.labels

    @property
    def energies(self) -> Tensor:
        """(H, B) energies of the history's half steps."""
        return torch.stack([step.energy for step in self.history])


@checked
def alternate(
    region_force: RegionForce | str,
    regularizer: Any,
    solver: Solver | str,
    image: Tensor,
    start: Tensor,
    *,
    features: Tensor | None = None,
    costs: Tensor | Callable[[Tensor], Tensor] | None = None,
    entropy: float = 0.0,
    roi: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    fixed: Tensor | None = None,
    allowed: Tensor | None = None,
    max_rounds: int = 50,
    tolerance: float = 1e-6,
    callback: Callback | None = None,
) -> Alternation:
    """Alternate between the statistics of regions and the labels, for every image of a batch.

    Args:
        region_force: a `RegionForce`, a name, or a table.
        regularizer: a `Regularizer`, a name, a table, several of them, or a `Term` bound to ``image``.
        solver: a `Solver`, a name or a table.
        image: (B, C, *S) in [0, 1], for the regularizer.
        start: labels (B, *S) integer, 255 where there is none (K is then the largest label + 1), or probabilities
            (B, K, *S), all 0 at a pixel that is not to count. Every class that is allowed needs pixels.
        features: (B, C', *S) what the region force looks at; None = ``image``.
        costs: (B, K, *S), finite, of labels, beside those of the region force; or a function that is called once, with
            the region force's costs (B, K, *S) for the first statistics, and returns them. None = 0.
        entropy: weight of the entropy, >= 0, in the region force's units.
        roi: (B, *S) bool; outside nothing counts. With a `Term` its own applies.
        spacing: of neighbouring pixels along each axis in mm; None = 1. With a `Term` its own applies.
        fixed: (B, *S) labels that are given, -1 where free.
        allowed: (B, K) bool, labels that free pixels may take.
        max_rounds: >= 1; 1 = fit the statistics to the start, and solve once.
        tolerance: fall of the energy per pixel, >= 0, at which an image is done.
        callback: called with the `Progress` of each half step, and within rounds with those of iterative solvers.

    Raises:
        MissingForm: the solver cannot use the regularizer.
        UsageError: a class without pixels, NaN, shapes that disagree, settings out of range.
        ReglossError: the energy rose although the region force is exact, or by more than the solver's gap.

    A boundary costs 2 weight in each row, and the one pixel of a middle value goes with its neighbours:

    >>> image = torch.tensor([[[[0.1, 0.2, 0.6, 0.2, 0.9, 0.9]]]])
    >>> start = (image[:, 0] > 0.5).long()
    >>> found = alternate("chan-vese", {"name": "tv", "weight": 0.1}, "alpha-expansion", image, start)
    >>> found.labels, found.status[0].value
    (tensor([[[0, 0, 0, 0, 1, 1]]]), 'converged: no step improves further')
    >>> [round(float(energy), 3) for energy in found.energies]
    [0.667, 0.414, 0.348, 0.348]
    """
    force: RegionForce = resolve("region-force", region_force)
    chosen: Solver = resolve("solver", solver)
    if max_rounds < 1 or not 0 <= tolerance < float("inf"):
        raise UsageError(
            f"max_rounds must be at least 1 and tolerance finite and not negative; got {max_rounds} and {tolerance}."
        )
    term, kind = _bound(regularizer, chosen, image, roi, spacing)
    features = image if features is None else features
    probabilities = _start(start, term.shape)
    classes = probabilities.shape[1]
    open_to = None
    if allowed is not None:
        if allowed.dtype != torch.bool or tuple(allowed.shape) != tuple(probabilities.shape[:2]):
            raise UsageError(
                f"allowed must be bool of shape (B, K) = {tuple(probabilities.shape[:2])}; got {allowed.dtype} of "
                f"shape {tuple(allowed.shape)}."
            )
        open_to = allowed.reshape(*allowed.shape, *[1] * (probabilities.ndim - 2))

    def fitted(s: Tensor, previous: Any) -> Any:
        # A class that is not allowed needs some statistics; its costs are never looked at.
        return force.fit(features, s if open_to is None else torch.where(open_to, s, 1.0), term.roi, previous)

    def force_costs(statistics: Any) -> Tensor:
        unary = force.unary(features, statistics)
        return unary if open_to is None else unary * open_to

    statistics = fitted(probabilities, None)
    unary = force_costs(statistics)
    beside = torch.zeros((), dtype=unary.dtype, device=unary.device)
    if costs is not None:
        beside = costs if isinstance(costs, Tensor) else costs(unary)
        if beside.shape != unary.shape:
            raise UsageError(
                f"costs {tuple(beside.shape)} must have the shape of the region force's (B, K, *S), "
                f"{tuple(unary.shape)}."
            )
        beside = beside.to(unary)
        unary = unary + beside
    inside = full_roi(term.roi, term.shape, image.device)
    pixels = inside.flatten(1).sum(1)
    complete = bool(((probabilities.sum(1) > 0) | ~inside).all())
    labels = probabilities.argmax(1) if complete else None
    history = [_record(_at_start(term, kind, unary, labels, classes), callback)]

    constrained = bool(term.constraints())
    solution: Solution | None = None
    # A start may violate constraints, or be soft; whatever the first solution's energy is, it stands.
    energy = torch.full_like(history[0].energy, float("inf"))
    running = torch.ones_like(pixels, dtype=torch.bool)
    ended = torch.zeros_like(running)  # whether the solver had no more to do when it was last asked
    rounds = torch.zeros_like(pixels)
    for number in range(1, max_rounds + 1):
        before = energy
        if solution is not None:
            found = fitted(solution.probabilities, statistics)
            better = force_costs(found) + beside
            middle = energy + _change(unary, better, solution.probabilities, term.roi)
            rose = middle > energy + _rounding(unary, solution.probabilities, energy, term.roi)
            if force.exact and bool((rose & running).any()):
                raise ReglossError(
                    f"The statistics that {name_of(force)} fitted raised the energy from {energy.tolist()} to "
                    f"{middle.tolist()}, though it says that its fit is exact. Its estimate and its costs disagree."
                )
            # Where the solver has ended and the statistics would hardly change, the labels would not either.
            running = running & ~rose & ~(ended & (energy - middle <= tolerance * pixels))
            if not bool(running.any()):
                break
            statistics = pick_statistics(running, found, statistics)
            unary = torch.where(spread(running, unary), better, unary)
            energy = torch.where(running, torch.minimum(middle, energy), energy)
            unknown = torch.full_like(energy, -torch.inf)
            history.append(_record(_half_step(number, "statistics", energy, unknown), callback))
        new = solve(
            term,
            unary,
            chosen,
            entropy=entropy,
            fixed=fixed,
            allowed=allowed,
            warm=labels if solution is None else solution,
            callback=_within_round(callback, number),
        )
        rounds = rounds + running
        stopped = torch.tensor([not status.is_done for status in new.status], device=running.device)
        ended = torch.where(running, ~stopped, ended)
        if solution is None:
            solution, rose = new, torch.zeros_like(running)
        else:
            rose = running & (new.energy > energy)
            excess = new.gap.clamp(min=0) + _rounding(unary, new.probabilities, energy, term.roi)
            if bool((rose & (new.energy > energy + excess)).any()):
                raise ReglossError(
                    f"{name_of(chosen)} ended at {new.energy.tolist()}, above the {energy.tolist()} it started from, "
                    f"though its gap is {new.gap.tolist()}. Its energy or its bound is wrong."
                )
            solution = _merged(running & ~rose, new, solution, energy)
        energy = torch.where(running & ~rose, new.energy.to(energy), energy)
        step = _half_step(number, "labels", energy, solution.bound.to(energy))
        step = replace(step, violation=solution.violation) if constrained else step
        history.append(_record(step, callback))
        running = running & ~rose & ~(before - energy <= tolerance * pixels)
        if not bool(running.any()):
            break
    assert solution is not None
    status = statuses((ended & ~running).tolist())
    return Alternation(solution, statistics, tuple(history), rounds, status)


def _bound(
    regularizer: Any, solver: Solver, image: Tensor, roi: Tensor | None, spacing: Sequence[float] | None
) -> tuple[Term, type[Form]]:
    """The regularizer on the images, and the form in which the solver will use it."""
    if isinstance(regularizer, Term):
        return regularizer, negotiate(regularizer.regularizer, solver)
    chosen: Regularizer | None = combine(regularizer)
    if chosen is None:
        raise UsageError(
            "Alternation needs a regularizer; with none, regloss.phases_by_color segments by colour alone."
        )
    kind = negotiate(chosen, solver)
    return chosen.bind(image, roi, spacing), kind


def _start(start: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Probabilities (B, K, *S), all 0 where there is no label."""
    if start.is_floating_point():
        check_scores(start, "start")
        if (start.shape[0], *start.shape[2:]) != shape:
            raise UsageError(f"start {tuple(start.shape)} does not fit the images, with (B, *S) = {shape}.")
        return at_least_float32(start.detach())
    check_labels(start, shape)
    given = start != IGNORE
    if bool(((start < 0) & given).any()):
        raise UsageError("Labels to start from must be 0 or more, or 255 where there is none; got negative ones.")
    classes = int(start.masked_fill(~given, 0).max()) + 1
    if classes < 2:
        raise UsageError(
            "The labels to start from are all one class (0), or none. A segmentation needs at least two: start from "
            "labels of each, or from phases_by_color."
        )
    labels = start.to(torch.int64).masked_fill(~given, 0)
    return one_hot(labels, classes, torch.float32) * given.unsqueeze(1)


def _at_start(term: Term, kind: type[Form], unary: Tensor, labels: Tensor | None, classes: int) -> Progress:
    """The energy of the labels to start from, whose entropy is 0."""
    wide = widest_float(unary.device)
    if labels is None:
        energy = torch.full((unary.shape[0],), float("nan"), dtype=wide, device=unary.device)
    else:
        hard = one_hot(labels, classes, unary.dtype)
        form = term.form(kind)
        cut = form.cut(labels) if isinstance(form, Graph | GridGraph) else term.energy(hard).detach()
        energy = linear_energy(unary.to(wide), hard, term.roi) + cut
    return _half_step(0, "start", energy, torch.full_like(energy, -torch.inf))


def _half_step(number: int, stage: Literal["start", "statistics", "labels"], energy: Tensor, bound: Tensor) -> Progress:
    return Progress(0, torch.arange(len(energy), device=energy.device), energy, bound, stage=stage, round=number)


def _within_round(callback: Callback | None, number: int) -> Callback | None:
    """What a solver calls in the round ``number``."""
    return None if callback is None else lambda known: callback(replace(known, round=number))


def _record(step: Progress, callback: Callback | None) -> Progress:
    if callback is not None:
        callback(step)
    return step


def _change(before: Tensor, after: Tensor, probabilities: Tensor, roi: Tensor | None) -> Tensor:
    """<after - before, s> (B,), as the energy changes when costs do."""
    wide = widest_float(before.device)
    return linear_energy(after.to(wide) - before.to(wide), probabilities, roi)


def _rounding(unary: Tensor, probabilities: Tensor, energy: Tensor, roi: Tensor | None) -> Tensor:
    """(B,) what a sum over pixels may be wrong by in the unary's precision."""
    size = linear_energy(unary.abs(), probabilities.to(unary), roi) + energy.abs()
    return 16 * torch.finfo(unary.dtype).eps * size.nan_to_num(posinf=0.0)


def _merged(take: Tensor, new: Solution, old: Solution, energy: Tensor) -> Solution:
    """``new`` for the images to ``take`` (B,), else ``old`` with its ``energy``, which new statistics may have changed.

    The state is always the newer one: it belongs to the same or an earlier, similar problem.
    """
    if bool(take.all()):
        return new

    def either(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(spread(take, a), a, b.to(a))

    return replace(
        new,
        probabilities=either(new.probabilities, old.probabilities),
        labels=either(new.labels, old.labels),
        energy=either(new.energy, energy),
        bound=either(new.bound, old.bound),
        steps=either(new.steps, old.steps),
        status=tuple(a if flag else b for flag, a, b in zip(take.tolist(), new.status, old.status, strict=True)),
        start_energy=either(new.start_energy, old.start_energy),
        violation=either(new.violation, old.violation),
    )
