"""Forms: typed views of a bound regularizer, each of which some solvers can use.

A solver says which forms it accepts, a regularizer which it offers. Forms of one kind may be added up, scaled, and
asked for some images of the batch, whoever wrote them, so that every form can take part in sums.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from regloss import grid
from regloss.dual_sets import DualSet
from regloss.errors import MissingForm
from regloss.operators import LinearOperator, Scaled


class Form:
    """A view of a term. Immutable.

    Attributes:
        summable: whether forms of this kind can be added up, their energies being added.
    """

    summable: ClassVar[bool] = False

    # ---- what might be defined

    def __add__(self, other: Form) -> Form:
        """The form of the sum of two terms.

        Raises:
            MissingForm: sums of this form have no such form.
        """
        raise MissingForm(f"Terms in the form {type(self).__name__} cannot be added up into one {type(self).__name__}.")

    def scaled(self, factor: float | Tensor) -> Form:
        """The form of ``factor`` times the energy.

        Args:
            factor: >= 0; as a tensor () it must be above 0 and may be learnt, and the form counts it among its
                parameters. Hard constraints stay as they are: a multiple of 0 or inf is the same.

        Raises:
            MissingForm: multiples of this form have no such form.
        """
        raise MissingForm(f"A term in the form {type(self).__name__} cannot be scaled.")

    def __getitem__(self, images: Tensor) -> Form:
        """The form of the images with the int64 indices ``images`` (M,) alone.

        Raises:
            MissingForm: the form is of all images of the batch or none.
        """
        raise MissingForm(f"A {type(self).__name__} cannot do without some images of its batch.")


# --------------------------------------------------------------------------------------------------------------------
# Graphs


@dataclass(frozen=True)
class Graph(Form):
    """R(labels) = sum over edges of w [l_p != l_q], on any graph.

    Attributes:
        edges: (E, 2) int64 pixel indices, row-major over *S, each unordered pair at most once; the same for all images.
        weights: (B, E), non-negative.
    """

    edges: Tensor
    weights: Tensor
    summable: ClassVar[bool] = True

    def cut(self, labels: Tensor) -> Tensor:
        """Energy (B,) of ``labels`` (B, *S)."""
        flat = labels.flatten(1)
        return (self.weights * (flat[:, self.edges[:, 0]] != flat[:, self.edges[:, 1]])).sum(1)

    def __add__(self, other: Form) -> Graph:
        """Both edge lists; an edge that stands in both counts with the sum of its weights."""
        if not isinstance(other, Graph):
            return super().__add__(other)  # type: ignore[return-value]
        edges = torch.cat([self.edges, other.edges]).sort(dim=1).values
        merged, place = torch.unique(edges, dim=0, return_inverse=True)
        weights = self.weights.new_zeros(self.weights.shape[0], merged.shape[0])
        return Graph(merged, weights.index_add(1, place, torch.cat([self.weights, other.weights], dim=1)))

    def scaled(self, factor: float | Tensor) -> Graph:
        """Scaled weights."""
        return Graph(self.edges, self.weights * factor)

    def __getitem__(self, images: Tensor) -> Graph:
        return Graph(self.edges, self.weights[images])


@dataclass(frozen=True)
class GridGraph(Form):
    """R(labels) = sum over neighbour pairs of w [l_p != l_q], on a regular grid.

    Attributes:
        offsets: half of the neighbourhood, see `regloss.grid.neighbor_offsets`.
        weights: (B, len(offsets), *S), non-negative; entry p of offset d is the weight of the pair (p, p + d), and 0
            where the pair leaves the grid or the region of interest.
    """

    offsets: tuple[grid.Offset, ...]
    weights: Tensor
    summable: ClassVar[bool] = True

    def cut(self, labels: Tensor) -> Tensor:
        """Energy (B,) of ``labels`` (B, *S)."""
        energy = self.weights.new_zeros(self.weights.shape[0])
        for first, second, weights in grid.pairs(self.offsets, self.weights):
            differ = grid.pick(labels, first) != grid.pick(labels, second)
            energy = energy + (weights * differ).flatten(1).sum(1)
        return energy

    def graph(self) -> Graph:
        """The same energy as a `Graph`."""
        shape = self.weights.shape[2:]
        index = torch.arange(shape.numel(), device=self.weights.device).reshape(shape)
        edges, weights = [index.new_empty(0, 2)], [self.weights.new_empty(len(self.weights), 0)]
        for first, second, values in grid.pairs(self.offsets, self.weights):
            edges.append(torch.stack([index[first].flatten(), index[second].flatten()], dim=1))
            weights.append(values.flatten(1))
        return Graph(torch.cat(edges), torch.cat(weights, dim=1))

    def neighbor_sum(self, values: Tensor) -> Tensor:
        """Sum over neighbours q of w_pq ``values``_q, each channel for itself: (B, K, *S) to (B, K, *S)."""
        total = torch.zeros_like(values)
        for first, second, weights in grid.pairs(self.offsets, self.weights):
            weights = weights.unsqueeze(1).to(values)
            grid.pick(total, first).add_(weights * grid.pick(values, second))
            grid.pick(total, second).add_(weights * grid.pick(values, first))
        return total

    def relaxed(self) -> Concave:
        """The bilinear relaxation, sum of w (1 - <s_p, s_q>) on the simplex, as solvers of concave forms take it.

        It is far from concave along differences of neighbours: by the largest sum of weights around a pixel.
        """
        return Concave(_RelaxedGrid(self))

    def __add__(self, other: Form) -> GridGraph:
        """Offsets joined; those in both count with the sum of their weights."""
        if not isinstance(other, GridGraph):
            return super().__add__(other)  # type: ignore[return-value]
        if not other.offsets:  # an image of one pixel has no pairs
            return self
        weights = dict(zip(self.offsets, self.weights.unbind(1), strict=True))
        for offset, values in zip(other.offsets, other.weights.unbind(1), strict=True):
            weights[offset] = weights[offset] + values if offset in weights else values
        return GridGraph(tuple(weights), torch.stack(list(weights.values()), dim=1))

    def scaled(self, factor: float | Tensor) -> GridGraph:
        """Scaled weights."""
        return GridGraph(self.offsets, self.weights * factor)

    def __getitem__(self, images: Tensor) -> GridGraph:
        return GridGraph(self.offsets, self.weights[images])


# --------------------------------------------------------------------------------------------------------------------
# Concave and convex parts


class ConcaveFunction(ABC):
    """A concave R, or nearly so, with its supergradient. Threshold dynamics, bilinear Potts with a positive kernel."""

    # ---- what must be defined

    @abstractmethod
    def value(self, s: Tensor) -> Tensor:
        """R (B,) at ``s`` (B, K, *S)."""

    @abstractmethod
    def supergradient(self, s: Tensor) -> Tensor:
        """(B, K, *S)."""

    @abstractmethod
    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        """The function of the images with the indices ``images`` (M,) alone."""

    # ---- what might be defined

    @property
    def curvature(self) -> float:
        """How far R is from concave, >= 0; 0 = concave.

        On the simplex it lies below each of its tangents plus curvature / 2 times the squared distance.
        """
        return 0.0

    @property
    def is_quadratic(self) -> bool:
        """Whether R(s) = <b, s> + <s, H s> / 2 for all s.

        Then a step that has found a supergradient knows the value too, R(s) = <supergradient(0) + supergradient(s), s>
        / 2, and the best length of a step.
        """
        return False

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Tensors that value and supergradient are computed from and that may need a gradient."""
        return ()


class _RelaxedGrid(ConcaveFunction):
    """Sum of w (1 - <s_p, s_q>) over the pairs of a grid."""

    is_quadratic = True

    def __init__(self, graph: GridGraph) -> None:
        self.graph = graph
        self.degrees = graph.neighbor_sum(torch.ones_like(graph.weights[:, :1]))

    @property
    def curvature(self) -> float:
        return float(self.degrees.detach().max())

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.graph.weights,)

    def value(self, s: Tensor) -> Tensor:
        return (s * (self.degrees.to(s) - self.graph.neighbor_sum(s))).flatten(1).sum(1) / 2

    def supergradient(self, s: Tensor) -> Tensor:
        return self.degrees.to(s) / 2 - self.graph.neighbor_sum(s)

    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        return _RelaxedGrid(self.graph[images])


@dataclass(frozen=True)
class _ConcaveSum(ConcaveFunction):
    terms: tuple[ConcaveFunction, ...]

    @property
    def curvature(self) -> float:
        return sum(term.curvature for term in self.terms)

    @property
    def is_quadratic(self) -> bool:
        return all(term.is_quadratic for term in self.terms)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(parameter for term in self.terms for parameter in term.parameters)

    def value(self, s: Tensor) -> Tensor:
        return _total(term.value(s) for term in self.terms)

    def supergradient(self, s: Tensor) -> Tensor:
        return _total(term.supergradient(s) for term in self.terms)

    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        return _ConcaveSum(tuple(term[images] for term in self.terms))


@dataclass(frozen=True)
class _ScaledConcave(ConcaveFunction):
    function: ConcaveFunction
    factor: float | Tensor

    @property
    def curvature(self) -> float:
        factor = float(self.factor.detach()) if isinstance(self.factor, Tensor) else self.factor
        return factor * self.function.curvature

    @property
    def is_quadratic(self) -> bool:
        return self.function.is_quadratic

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (*self.function.parameters, *([self.factor] if isinstance(self.factor, Tensor) else []))

    def value(self, s: Tensor) -> Tensor:
        return self.factor * self.function.value(s)

    def supergradient(self, s: Tensor) -> Tensor:
        return self.factor * self.function.supergradient(s)

    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        return _ScaledConcave(self.function[images], self.factor)


@dataclass(frozen=True)
class SaddlePart:
    """max over y in Y of <K s - b, y>.

    Attributes:
        operator: K.
        dual_set: Y.
        shift: b, broadcastable to the dual shape, with a batch axis of B or 1; 0 if absent. May need a gradient.
    """

    operator: LinearOperator
    dual_set: DualSet
    shift: Tensor | float = 0.0

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Tensors that K and b are computed from and that may need a gradient."""
        shift = [self.shift] if isinstance(self.shift, Tensor) and self.shift.requires_grad else []
        return (*self.operator.parameters, *shift)

    def residual(self, s: Tensor) -> Tensor:
        """K s - b, of dual shape."""
        applied, shift = self.operator.apply(s), self.shift
        if isinstance(shift, Tensor):
            return applied - shift.to(applied)  # b may come in double precision; the work's precision is that of s
        return applied if shift == 0 else applied - shift

    def value(self, s: Tensor) -> Tensor:
        """(B,) at ``s`` (B, K, *S)."""
        return self.dual_set.support(self.residual(s))

    def scaled(self, factor: float | Tensor) -> SaddlePart:
        """The factor goes into K and b, and Y stays, so that dual variables keep their meaning when it is learnt."""
        if self.dual_set.is_cone:
            return self
        absent = not isinstance(self.shift, Tensor) and self.shift == 0
        return SaddlePart(Scaled(self.operator, factor), self.dual_set, 0.0 if absent else factor * self.shift)

    def __getitem__(self, images: Tensor) -> SaddlePart:
        shift = self.shift
        if isinstance(shift, Tensor) and shift.ndim and len(shift) > 1:
            shift = shift[images.to(shift.device)]
        return SaddlePart(self.operator[images], self.dual_set[images], shift)


class Composite(Form):
    """R = a concave function + the sum over parts of max over y in Y of <K s - b, y>; either may be absent.

    Sums of any composites are composites: functions add, parts are stacked. `Saddle` and `Concave` are those with one
    of the two absent, for solvers that cannot do with the other.

    Attributes:
        concave: the concave function; None = 0.
        parts: of the convex one; () = 0.
    """

    summable: ClassVar[bool] = True

    def __init__(self, concave: ConcaveFunction | None = None, parts: Sequence[SaddlePart] = ()) -> None:
        self.concave = concave
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.concave!r}, {self.parts!r})"

    @property
    def saddle(self) -> Saddle:
        """The convex part alone."""
        return Saddle(self.parts)

    @property
    def norm(self) -> float:
        """An upper bound on the norm of the stacked operator K: the root of the sum of squares."""
        return float(sum(part.operator.norm**2 for part in self.parts) ** 0.5)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Tensors that need a gradient: those of the concave function, each once, then those of the parts likewise."""
        concave = self.concave.parameters if self.concave is not None else ()
        return (*_learnt(concave), *_learnt(parameter for part in self.parts for parameter in part.parameters))

    def value(self, probabilities: Tensor, *, constraints: bool = True) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S); without ``constraints``, those parts whose Y is a cone, finite."""
        total = probabilities.new_zeros(probabilities.shape[0])
        if self.concave is not None:
            total = total + self.concave.value(probabilities)
        for part in self.parts:
            if constraints or not part.dual_set.is_cone:
                total = total + part.value(probabilities)
        return total

    def adjoint(self, duals: Sequence[Tensor]) -> Tensor:
        """K^T y (B, K, *S), summed over the parts, of which there must be one at least."""
        return _total(part.operator.adjoint(dual) for part, dual in zip(self.parts, duals, strict=True))

    def zero_duals(self, like: Tensor) -> list[Tensor]:
        """The point of each Y next to 0, for segmentations like ``like`` (B, K, *S): its size, precision and device."""
        blank = torch.zeros_like(like)
        return [part.dual_set.project(torch.zeros_like(part.operator.apply(blank))) for part in self.parts]

    def diagonal_bound(self, probabilities: Tensor, *, diagonal: bool = True) -> tuple[Tensor, ...]:
        """r, one tensor a part, broadcastable to its dual shape, such that K K^T <= diag(r) for the stacked K.

        Dual steps of entropy * 2 / r are then safe, entry by entry. For operators that give their absolute entries,
        r = |K| c with the column sums c = |K|^T 1; the others get multiples of their squared norm.

        Args:
            probabilities: (B, K, *S), for the shape, precision and device; its values do not matter.
            diagonal: False = the squared norms for all parts.
        """
        fine = [part.operator.absolute() if diagonal else None for part in self.parts]
        alike = all(absolute is None or absolute.classes_are_alike for absolute in fine)
        ones = torch.ones_like(probabilities[:, :1] if alike else probabilities)
        # |sum of K_p^T y_p|^2 <= (number of groups) * sum of |K_p^T y_p|^2; all fine parts together are one group.
        groups = fine.count(None) + any(absolute is not None for absolute in fine)
        columns = torch.zeros_like(ones)
        for absolute in fine:
            if absolute is not None:
                columns = columns + absolute.adjoint(torch.ones_like(absolute.apply(ones)))
        bounds = []
        for part, absolute in zip(self.parts, fine, strict=True):
            if absolute is None:
                bounds.append(probabilities.new_full((1,), groups * part.operator.norm**2))
            else:
                bounds.append(groups * part.dual_set.joint_bound(absolute.apply(columns)))
        return tuple(bounds)

    def __add__(self, other: Form) -> Composite:
        """Concave functions add, parts are stacked."""
        if not isinstance(other, Composite):
            return super().__add__(other)  # type: ignore[return-value]
        terms = [function for function in (self.concave, other.concave) if function is not None]
        return _composite(
            _ConcaveSum(tuple(terms)) if len(terms) == 2 else next(iter(terms), None), self.parts + other.parts
        )

    def scaled(self, factor: float | Tensor) -> Composite:
        """Both parts scaled; of a convex part that nothing is left of, hard constraints stay."""
        nothing = not isinstance(factor, Tensor) and factor == 0
        parts = [part.scaled(factor) for part in self.parts if part.dual_set.is_cone or not nothing]
        return _composite(None if self.concave is None else _ScaledConcave(self.concave, factor), parts)

    def __getitem__(self, images: Tensor) -> Composite:
        return _composite(None if self.concave is None else self.concave[images], [part[images] for part in self.parts])


class Saddle(Composite):
    """R(s) = sum over parts of max over y in Y of <K s - b, y>. Total variation, nonlocal total variation, constraints.

    Args:
        parts: operators, dual sets and shifts.
    """

    def __init__(self, parts: Sequence[SaddlePart]) -> None:
        super().__init__(None, parts)


class Concave(Composite):
    """A concave R.

    Args:
        function: R.
    """

    concave: ConcaveFunction

    def __init__(self, function: ConcaveFunction) -> None:
        super().__init__(function)

    @property
    def curvature(self) -> float:
        """See `ConcaveFunction`."""
        return self.concave.curvature

    def supergradient(self, probabilities: Tensor) -> Tensor:
        """(B, K, *S) at ``probabilities``."""
        return self.concave.supergradient(probabilities)


def _composite(concave: ConcaveFunction | None, parts: Sequence[SaddlePart]) -> Composite:
    if concave is None:
        return Saddle(parts)
    return Composite(concave, parts) if parts else Concave(concave)


def _learnt(parameters: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Those that need a gradient, each once."""
    return tuple({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())


def _total(values: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more, from left to right."""
    return reduce(operator.add, values)


# --------------------------------------------------------------------------------------------------------------------
# Sets


@dataclass(frozen=True)
class Projection(Form):
    """R is the indicator of a set with a projection, or with a map into the set that serves as one.

    Attributes:
        project: (B, K, *S) to (B, K, *S).
        exact: whether it is the Euclidean projection.
        project_scores: for sets whose channels are not alternatives but one probability each (see
            `regloss.regularizer.Regularizer.channels`), the map of scores y (B, L, *S) such that u =
            sigmoid(project_scores(y) / entropy) minimises -<y, u> + entropy <u, log u> + entropy <1 - u, log(1 - u)>
            over the set, for every entropy > 0.
    """

    project: Callable[[Tensor], Tensor]
    exact: bool = True
    project_scores: Callable[[Tensor], Tensor] | None = None

    def scaled(self, factor: float | Tensor) -> Projection:
        """Itself: a set is its own multiple."""
        return self
