"""Regularizer, Term, the Forms, and sums.

A `Regularizer` holds the settings of a prior R. Bound to a batch of images it becomes a `Term`, which has computed its
weights, graphs or kernels once and can be evaluated and solved many times. What solvers need of a term is a `Form`:
a typed view. A solver says which forms it accepts, a regularizer which it offers; `regloss.solver.negotiate` matches
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from regloss import grid
from regloss.checks import at_least_float32, check_image, check_roi, check_scores
from regloss.errors import MissingForm, UsageError
from regloss.registry import name_of, resolve

# --------------------------------------------------------------------------------------------------------------------
# Forms


@dataclass(frozen=True)
class Form:
    """A view of a term that some solver can use. Forms of the same kind may be joined: their energies add."""

    def join(self, other: Form) -> Form:
        """The form of the sum of two terms.

        Raises:
            MissingForm: sums of this form have no such form.
        """
        raise MissingForm(f"Terms in the form {type(self).__name__} cannot be added up into one {type(self).__name__}.")


@dataclass(frozen=True)
class Graph(Form):
    """R(labels) = sum over edges of w [l_p != l_q], on any graph.

    Attributes:
        edges: (E, 2) int64 pixel indices, row-major over *S, each unordered pair at most once; the same for all images.
        weights: (B, E), non-negative.
    """

    edges: Tensor
    weights: Tensor

    def cut(self, labels: Tensor) -> Tensor:
        """Energy (B,) of ``labels`` (B, *S)."""
        flat = labels.flatten(1)
        return (self.weights * (flat[:, self.edges[:, 0]] != flat[:, self.edges[:, 1]])).sum(1)

    def join(self, other: Form) -> Graph:
        """Both edge lists; an edge that stands in both counts with the sum of its weights."""
        if not isinstance(other, Graph):
            return super().join(other)  # type: ignore[return-value]
        edges = torch.cat([self.edges, other.edges]).sort(dim=1).values
        merged, place = torch.unique(edges, dim=0, return_inverse=True)
        weights = self.weights.new_zeros(self.weights.shape[0], merged.shape[0])
        return Graph(merged, weights.index_add(1, place, torch.cat([self.weights, other.weights], dim=1)))


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

    def cut(self, labels: Tensor) -> Tensor:
        """Energy (B,) of ``labels`` (B, *S)."""
        energy = self.weights.new_zeros(self.weights.shape[0])
        for index, offset in enumerate(self.offsets):
            first, second = grid.pair_slices(offset)
            differ = grid.pick(labels, first) != grid.pick(labels, second)
            energy = energy + (grid.pick(self.weights[:, index], first) * differ).flatten(1).sum(1)
        return energy

    def graph(self) -> Graph:
        """The same energy as a `Graph`."""
        shape = self.weights.shape[2:]
        index = torch.arange(shape.numel(), device=self.weights.device).reshape(shape)
        edges, weights = [], []
        for number, offset in enumerate(self.offsets):
            first, second = grid.pair_slices(offset)
            edges.append(torch.stack([index[first].flatten(), index[second].flatten()], dim=1))
            weights.append(grid.pick(self.weights[:, number], first).flatten(1))
        return Graph(torch.cat(edges), torch.cat(weights, dim=1))

    def join(self, other: Form) -> GridGraph:
        """Both neighbourhoods; weights of a common offset add."""
        if not isinstance(other, GridGraph):
            return super().join(other)  # type: ignore[return-value]
        by_offset = dict(zip(self.offsets, self.weights.unbind(1), strict=True))
        for offset, weights in zip(other.offsets, other.weights.unbind(1), strict=True):
            by_offset[offset] = by_offset[offset] + weights if offset in by_offset else weights
        return GridGraph(tuple(by_offset), torch.stack(list(by_offset.values()), dim=1))


@dataclass(frozen=True)
class SaddleBlock:
    """One block of a `Saddle`: max over y in Y of <K s - b, y>.

    Attributes:
        apply: K, from (B, K, *S) to the block's dual shape (B, ...).
        adjoint: K^T, back.
        project: Euclidean projection of y onto Y.
        support: (B,) values of max over y in Y of <z, y> at z = K s - b.
        norm: an upper bound on the operator norm ||K||.
        shift: b, broadcastable to the dual shape; 0 if absent.
    """

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    support: Callable[[Tensor], Tensor]
    norm: float
    shift: Tensor | float = 0.0


@dataclass(frozen=True)
class Saddle(Form):
    """R(s) = sum over blocks of max over y in Y of <K s - b, y>. Total variation, nonlocal total variation, cones."""

    blocks: tuple[SaddleBlock, ...]

    @property
    def norm(self) -> float:
        """An upper bound on the norm of the stacked operator: the root of the sum of squares."""
        return float(sum(block.norm**2 for block in self.blocks) ** 0.5)

    def value(self, probabilities: Tensor) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S)."""
        values = [block.support(block.apply(probabilities) - block.shift) for block in self.blocks]
        return torch.stack(values).sum(0)

    def join(self, other: Form) -> Saddle:
        """Blocks stacked."""
        return Saddle(self.blocks + other.blocks) if isinstance(other, Saddle) else super().join(other)  # type: ignore[return-value]


@dataclass(frozen=True)
class Concave(Form):
    """A concave R with its supergradient. Threshold dynamics, bilinear Potts with a positive semidefinite kernel.

    Attributes:
        value: (B, K, *S) to (B,).
        supergradient: (B, K, *S) to (B, K, *S).
    """

    value: Callable[[Tensor], Tensor]
    supergradient: Callable[[Tensor], Tensor]

    def join(self, other: Form) -> Concave:
        """Values and supergradients add."""
        if not isinstance(other, Concave):
            return super().join(other)  # type: ignore[return-value]
        return Concave(
            lambda s: self.value(s) + other.value(s), lambda s: self.supergradient(s) + other.supergradient(s)
        )


@dataclass(frozen=True)
class Projection(Form):
    """R is the indicator of a set with a projection, or with a map into the set that serves as one.

    Attributes:
        project: (B, K, *S) to (B, K, *S).
        exact: whether it is the Euclidean projection.
    """

    project: Callable[[Tensor], Tensor]
    exact: bool = True


AnyForm = TypeVar("AnyForm", bound=Form)

# --------------------------------------------------------------------------------------------------------------------
# Terms


class Term(ABC):
    """A regularizer bound to a batch of images: R(s; images), one number for each image.

    Attributes:
        regularizer: where it came from.
        shape: (B, *S) of the images.
        roi: (B, *S) bool, or None for everywhere.
    """

    # ---- what must be defined

    @abstractmethod
    def energy(self, probabilities: Tensor) -> Tensor:
        """R at ``probabilities`` (B, K, *S), inside the region of interest: (B,), differentiable, weight included."""

    # ---- what might be defined

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        """How each form that ``self.regularizer.forms`` names is built."""
        return {}

    def violation(self, probabilities: Tensor) -> Tensor:
        """How far ``probabilities`` are from a hard constraint, (B,); 0 for priors that are no constraint."""
        return probabilities.new_zeros(probabilities.shape[0])

    def penalty(self, probabilities: Tensor) -> Tensor:
        """What gradient descent minimises, (B,): the energy, or the smooth stand-in for a hard constraint."""
        return self.energy(probabilities)

    # ---- what should not be redefined

    def __init__(self, regularizer: Regularizer, shape: tuple[int, ...], roi: Tensor | None) -> None:
        self.regularizer = regularizer
        self.shape = shape
        self.roi = roi

    def form(self, kind: type[AnyForm]) -> AnyForm:
        """This term as a ``kind`` of form.

        Raises:
            MissingForm: the term does not offer it.
        """
        build = self.builders().get(kind)
        if build is None:
            offered = ", ".join(form.__name__ for form in self.builders()) or "no form"
            raise MissingForm(f"{name_of(self.regularizer)} does not offer {kind.__name__}; it offers {offered}.")
        form = build()
        assert isinstance(form, kind)
        return form

    def check(self, probabilities: Tensor) -> Tensor:
        """``probabilities`` in float32 at least, after checking that they fit the bound images."""
        check_scores(probabilities, "probabilities")
        if (probabilities.shape[0], *probabilities.shape[2:]) != self.shape:
            raise UsageError(
                f"probabilities {tuple(probabilities.shape)} do not fit the images that {name_of(self.regularizer)} "
                f"was bound to, with (B, *S) = {self.shape}."
            )
        return at_least_float32(probabilities)


# --------------------------------------------------------------------------------------------------------------------
# Regularizers


class Regularizer(ABC):
    """Settings of a prior R. Subclasses are frozen dataclasses whose first field is ``weight: float = 1.0``."""

    weight: float

    # ---- what must be defined

    @property
    @abstractmethod
    def forms(self) -> tuple[type[Form], ...]:
        """Forms that terms of this regularizer offer, with its settings."""

    @abstractmethod
    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Bind to ``image`` (B, C, *S) in [0, 1], float32 at least, and ``roi`` (B, *S); both are checked already."""

    # ---- what should not be redefined

    def bind(self, image: Tensor, roi: Tensor | None = None) -> Term:
        """Compute what depends on the images, once.

        Args:
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.

        Raises:
            UsageError: shapes disagree, or the image holds NaN or values outside [0, 1].
        """
        check_image(image)
        check_roi(roi, (image.shape[0], *image.shape[2:]))
        return self.build(at_least_float32(image.detach()), roi)

    def __add__(self, other: Regularizer) -> Sum:
        return Sum((self, other))


def check_weight(weight: float, name: str) -> None:
    """A regularizer's weight must be finite and not negative."""
    if not 0 <= weight < float("inf"):
        raise UsageError(f"The weight of {name} must be finite and not negative; got {weight}.")


@dataclass(frozen=True)
class Sum(Regularizer):
    """Several regularizers that add up; offers the forms that all of them offer.

    Args:
        parts: regularizers, names, or tables with a name and settings.
        weight: multiplies the whole sum.

    >>> from regloss import GridCRF, TotalVariation
    >>> [form.__name__ for form in (GridCRF() + TotalVariation()).forms]
    ['GridGraph', 'Graph']
    """

    parts: Sequence[Any]
    weight: float = 1.0
    joinable: ClassVar[tuple[type[Form], ...]] = (GridGraph, Graph, Saddle, Concave)

    def __post_init__(self) -> None:
        check_weight(self.weight, "a sum")
        if not self.parts:
            raise UsageError("A sum of regularizers needs at least one of them.")
        object.__setattr__(self, "parts", tuple(resolve("regularizer", part) for part in self.parts))

    @property
    def forms(self) -> tuple[type[Form], ...]:
        """Forms common to all parts."""
        if len(self.parts) == 1:
            return tuple(self.parts[0].forms)
        return tuple(form for form in self.joinable if all(form in part.forms for part in self.parts))

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Bind every part."""
        return _SumTerm(self, [part.build(image, roi) for part in self.parts], image, roi)


class _SumTerm(Term):
    def __init__(self, regularizer: Sum, terms: Sequence[Term], image: Tensor, roi: Tensor | None) -> None:
        super().__init__(regularizer, (image.shape[0], *image.shape[2:]), roi)
        self.terms = terms
        self.weight = regularizer.weight

    def energy(self, probabilities: Tensor) -> Tensor:
        return self.weight * torch.stack([term.energy(probabilities) for term in self.terms]).sum(0)

    def penalty(self, probabilities: Tensor) -> Tensor:
        return self.weight * torch.stack([term.penalty(probabilities) for term in self.terms]).sum(0)

    def violation(self, probabilities: Tensor) -> Tensor:
        return torch.stack([term.violation(probabilities) for term in self.terms]).amax(0)

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        def joined(kind: type[Form]) -> Callable[[], Form]:
            return lambda: scaled(reduce(lambda a, b: a.join(b), [term.form(kind) for term in self.terms]), self.weight)

        return {kind: joined(kind) for kind in self.regularizer.forms}


def scaled(form: Form, factor: float) -> Form:
    """``form`` of ``factor`` times its energy; a projection is its own multiple.

    Raises:
        UsageError: the factor is 0 and the form cannot express the zero function.
    """
    if factor == 1 or isinstance(form, Projection):
        return form
    if isinstance(form, Graph):
        return Graph(form.edges, form.weights * factor)
    if isinstance(form, GridGraph):
        return GridGraph(form.offsets, form.weights * factor)
    if isinstance(form, Concave):
        value, supergradient = form.value, form.supergradient
        return Concave(lambda s: factor * value(s), lambda s: factor * supergradient(s))
    if isinstance(form, Saddle):
        # factor * max <K s - b, y> over Y = max over y in factor * Y, whose projection is factor * P(y / factor).
        if factor == 0:
            raise UsageError("A sum with weight 0 has no saddle form. Leave the regularizer out instead.")
        return Saddle(tuple(_scaled_block(block, factor) for block in form.blocks))
    raise MissingForm(f"A term in the form {type(form).__name__} cannot be scaled.")


def _scaled_block(block: SaddleBlock, factor: float) -> SaddleBlock:
    return SaddleBlock(
        apply=block.apply,
        adjoint=block.adjoint,
        project=lambda y: factor * block.project(y / factor),
        support=lambda z: factor * block.support(z),
        norm=block.norm,
        shift=block.shift,
    )


def combine(given: Any) -> Regularizer | None:
    """One regularizer from none, one or several; each an object, a name, or a table with a name and settings."""
    if given is None:
        return None
    if isinstance(given, Sequence) and not isinstance(given, str):
        parts = [resolve("regularizer", part) for part in given]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else Sum(parts)
    regularizer: Regularizer = resolve("regularizer", given)
    return regularizer
