"""Regularizer, Term, the Forms, and sums.

A `Regularizer` holds the settings of a prior R. Bound to a batch of images it becomes a `Term`, which has computed its
weights, graphs or kernels once and can be evaluated and solved many times. What solvers need of a term is a `Form`:
a typed view. A solver says which forms it accepts, a regularizer which it offers; `regloss.solver.negotiate` matches
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce, wraps
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from regloss import grid
from regloss.ascent import Ascent, Images
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

    def pull(self, values: Tensor) -> Tensor:
        """Sum over neighbours q of w_pq ``values``_q, each channel for itself: (B, K, *S) to (B, K, *S)."""
        total = torch.zeros_like(values)
        for number, offset in enumerate(self.offsets):
            first, second = grid.pair_slices(offset)
            weights = grid.pick(self.weights[:, number], first).unsqueeze(1).to(values)
            grid.pick(total, first).add_(weights * grid.pick(values, second))
            grid.pick(total, second).add_(weights * grid.pick(values, first))
        return total

    def relaxed(self) -> Concave:
        """The bilinear relaxation, sum of w (1 - <s_p, s_q>) on the simplex, as solvers of concave forms take it.

        It is far from concave along differences of neighbours: by the largest sum of weights around a pixel.
        """
        degrees = self.pull(torch.ones_like(self.weights[:, :1]))

        def value(s: Tensor) -> Tensor:
            return (s * (degrees.to(s) - self.pull(s))).flatten(1).sum(1) / 2

        def supergradient(s: Tensor) -> Tensor:
            return degrees.to(s) / 2 - self.pull(s)

        def select(images: Tensor) -> Concave:
            return GridGraph(self.offsets, self.weights[images]).relaxed()

        curvature = float(degrees.detach().max())
        return Concave(value, supergradient, curvature, (self.weights,), select, quadratic=True)

    def join(self, other: Form) -> GridGraph:
        """Both neighbourhoods; weights of a common offset add."""
        if not isinstance(other, GridGraph):
            return super().join(other)  # type: ignore[return-value]
        by_offset = dict(zip(self.offsets, self.weights.unbind(1), strict=True))
        for offset, weights in zip(other.offsets, other.weights.unbind(1), strict=True):
            by_offset[offset] = by_offset[offset] + weights if offset in by_offset else weights
        return GridGraph(tuple(by_offset), torch.stack(list(by_offset.values()), dim=1))


@dataclass(frozen=True)
class Face:
    """How the maximiser y of <z, y> over Y moves with z, to first order: along Q, with Q dz = curvature * Q dy.

    Attributes:
        project: Q, the orthogonal projection onto the directions in which y may move; it acts within each image.
        curvature: >= 0, broadcastable to the dual shape; 0 where moving costs nothing (z = 0 there).
    """

    project: Callable[[Tensor], Tensor]
    curvature: Tensor | float = 0.0


@dataclass(frozen=True)
class SaddleBlock:
    """One block of a `Saddle`: max over y in Y of <K s - b, y>.

    The first five must be given. The others have fallbacks, so a block may leave them out: solvers then take their
    steps from the norm, lose digits in the gap, keep converged images in the batch, or cannot differentiate implicitly.

    Attributes:
        apply: K, from (B, K, *S) to the block's dual shape (B, ...).
        adjoint: K^T, back.
        project: Euclidean projection of y onto Y.
        support: (B,) values of max over y in Y of <z, y> at z = K s - b. Where Y is a cone, that is a constraint on z:
            0 where it holds within the block's own tolerance, inf elsewhere.
        norm: an upper bound on the operator norm ||K||.
        shift: b, broadcastable to the dual shape; 0 if absent.
        slack: (z, y) to (B,), support(z) - <z, y> for y in Y, as a sum of numbers that are not negative; None = the
            difference, whose rounding error grows with the support. Ask for it through `gap`.
        absolute: x >= 0 to an upper bound on |K| x, |K| holding the absolute entries of K, and of dual shape. Dual
            entries that ``project`` treats jointly must get the same value, since they will share a step.
        absolute_adjoint: y >= 0 of dual shape to an upper bound on |K|^T y. Both together give diagonal steps.
        squared: x >= 0 to (K * K) x, with the squared entries of K; a preconditioner, so near is good enough.
        face: (z, y) to the `Face` at a pair of z and its maximiser y; needed for implicit derivatives.
        select: indices (M,) of images to the block of those images alone.
        parameters: tensors that ``apply``, ``adjoint`` and ``shift`` are computed from and that may need a gradient.
        cone: whether Y is a cone, and the block so a hard constraint, which no positive factor changes.
        compiled: the iteration on each image of an `regloss.ascent.Ascent` in compiled code; None from it = not on that
            one. For forms of this block alone.
        dtype: precision of K; None = found by applying it.
    """

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    support: Callable[[Tensor], Tensor]
    norm: float
    shift: Tensor | float = 0.0
    slack: Callable[[Tensor, Tensor], Tensor] | None = None
    absolute: Callable[[Tensor], Tensor] | None = None
    absolute_adjoint: Callable[[Tensor], Tensor] | None = None
    squared: Callable[[Tensor], Tensor] | None = None
    face: Callable[[Tensor, Tensor], Face] | None = None
    select: Callable[[Tensor], SaddleBlock] | None = None
    parameters: tuple[Tensor, ...] = ()
    cone: bool = False
    compiled: Callable[[Ascent], Images | None] | None = None
    dtype: torch.dtype | None = None

    def residual(self, probabilities: Tensor) -> Tensor:
        """K s - b, of dual shape."""
        applied, shift = self.apply(probabilities), self.shift
        if isinstance(shift, Tensor):
            return applied - shift.to(applied)  # b may come in double precision; the work's precision is that of s
        return applied if shift == 0 else applied - shift

    def gap(self, z: Tensor, y: Tensor) -> Tensor:
        """support(z) - <z, y> (B,) for y in Y: how much better than y the best one is; >= 0 but for tolerances."""
        if self.slack is not None:
            return self.slack(z, y)
        return self.support(z) - (z * y).flatten(1).sum(1)


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
        total = probabilities.new_zeros(probabilities.shape[0])
        for block in self.blocks:
            total = total + block.support(block.residual(probabilities))
        return total

    def diagonal_bound(self, probabilities: Tensor, *, diagonal: bool = True) -> tuple[Tensor, ...]:
        """r, one tensor a block, broadcastable to its dual shape, such that K K^T <= diag(r) for the stacked K.

        Dual steps of entropy * 2 / r are then safe, entry by entry. For blocks that give their absolute entries,
        r = |K| c with the column sums c = |K|^T 1; the others get multiples of their squared norm.

        Args:
            probabilities: (B, K, *S), for the shape, precision and device; its values do not matter.
            diagonal: False = the squared norms for all blocks.
        """
        ones = torch.ones_like(probabilities)
        fine = [diagonal and b.absolute is not None and b.absolute_adjoint is not None for b in self.blocks]
        # |sum of K_b^T y_b|^2 <= (number of parts) * sum of |K_b^T y_b|^2; all fine blocks together are one part.
        parts = fine.count(False) + any(fine)
        columns = torch.zeros_like(probabilities)
        for block, is_fine in zip(self.blocks, fine, strict=True):
            if is_fine and block.absolute is not None and block.absolute_adjoint is not None:
                columns = columns + block.absolute_adjoint(torch.ones_like(block.absolute(ones)))
        bounds = []
        for block, is_fine in zip(self.blocks, fine, strict=True):
            if is_fine and block.absolute is not None:
                bounds.append(parts * block.absolute(columns))
            else:
                bounds.append(probabilities.new_full((1,), parts * block.norm**2))
        return tuple(bounds)

    def select(self, images: Tensor) -> Saddle | None:
        """The form of the images with the indices ``images`` (M,) alone; None where a block cannot give it."""
        chosen = [block.select(images) for block in self.blocks if block.select is not None]
        return Saddle(tuple(chosen)) if len(chosen) == len(self.blocks) else None

    def join(self, other: Form) -> Saddle:
        """Blocks stacked."""
        return Saddle(self.blocks + other.blocks) if isinstance(other, Saddle) else super().join(other)  # type: ignore[return-value]


@dataclass(frozen=True)
class Concave(Form):
    """A concave R with its supergradient. Threshold dynamics, bilinear Potts with a positive semidefinite kernel.

    Attributes:
        value: (B, K, *S) to (B,).
        supergradient: (B, K, *S) to (B, K, *S).
        curvature: how far R is from concave, >= 0: on the simplex it lies below each of its tangents plus
            curvature / 2 times the squared distance. 0 = concave.
        parameters: tensors that both functions are computed from and that may need a gradient.
        select: indices (M,) of images to the form of those images alone; None = solvers keep converged images in the
            batch.
        quadratic: whether R(s) = <b, s> + <s, H s> / 2 for all s, so that a step that has found a supergradient knows
            the value too, R(s) = <supergradient(0) + supergradient(s), s> / 2, and the best length of a step.
    """

    value: Callable[[Tensor], Tensor]
    supergradient: Callable[[Tensor], Tensor]
    curvature: float = 0.0
    parameters: tuple[Tensor, ...] = ()
    select: Callable[[Tensor], Concave] | None = None
    quadratic: bool = False

    def join(self, other: Form) -> Concave:
        """Values, supergradients and curvatures add."""
        if not isinstance(other, Concave):
            return super().join(other)  # type: ignore[return-value]
        mine, others = self.select, other.select
        return Concave(
            lambda s: self.value(s) + other.value(s),
            lambda s: self.supergradient(s) + other.supergradient(s),
            self.curvature + other.curvature,
            self.parameters + other.parameters,
            None if mine is None or others is None else lambda images: mine(images).join(others(images)),
            self.quadratic and other.quadratic,
        )


@dataclass(frozen=True)
class Mixed(Form):
    """R = a concave part + a convex part in saddle form: what sums of such terms offer."""

    concave: Concave
    saddle: Saddle

    def select(self, images: Tensor) -> Mixed | None:
        """The form of the images with the indices ``images`` (M,) alone; None where a part cannot give it."""
        saddle = self.saddle.select(images)
        if self.concave.select is None or saddle is None:
            return None
        return Mixed(self.concave.select(images), saddle)

    def join(self, other: Form) -> Mixed:
        """Each part joins its own kind; a `Concave` or a `Saddle` form may be added as well."""
        if isinstance(other, Concave):
            return Mixed(self.concave.join(other), self.saddle)
        if isinstance(other, Saddle):
            return Mixed(self.concave, self.saddle.join(other))
        if isinstance(other, Mixed):
            return Mixed(self.concave.join(other.concave), self.saddle.join(other.saddle))
        return super().join(other)  # type: ignore[return-value]


@dataclass(frozen=True)
class Projection(Form):
    """R is the indicator of a set with a projection, or with a map into the set that serves as one.

    Attributes:
        project: (B, K, *S) to (B, K, *S).
        exact: whether it is the Euclidean projection.
        project_scores: for sets whose channels are not alternatives but one probability each (see
            `Regularizer.channels`), the map of scores y (B, L, *S) such that u = sigmoid(project_scores(y) / entropy)
            minimises -<y, u> + entropy <u, log u> + entropy <1 - u, log(1 - u)> over the set, for every entropy > 0.
    """

    project: Callable[[Tensor], Tensor]
    exact: bool = True
    project_scores: Callable[[Tensor], Tensor] | None = None


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

    def constraints(self) -> tuple[Term, ...]:
        """The hard constraints in it, see `regloss.constraint`; none for a prior."""
        return ()

    def adapted(self, probabilities: Tensor) -> Term:
        """This term with what it takes from a prediction (a centre, say) taken from ``probabilities`` (B, K, *S).

        No gradient flows through what is taken. Solvers and layers ask for it where the term does not offer a form that
        its regularizer's ``adapted_forms`` promise. Most terms take nothing and are returned themselves.
        """
        return self

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
            adapted = kind in self.regularizer.adapted_forms
            way_out = " It will, once a prediction is known: ask term.adapted(probabilities) for it." if adapted else ""
            raise MissingForm(
                f"{name_of(self.regularizer)} does not offer {kind.__name__}; it offers {offered}.{way_out}"
            )
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
    """Settings of a prior R. Subclasses are frozen dataclasses whose first field is ``weight: float = 1.0``.

    The weight is checked here, before a subclass's own ``__post_init__`` (if it has one) looks at the other fields.
    """

    weight: float
    channels: ClassVar[Literal["classes", "sets"]] = "classes"
    """What a segmentation's channels are to it: alternatives that sum to 1, or sets, with one probability each."""

    # ---- what must be defined

    @property
    @abstractmethod
    def forms(self) -> tuple[type[Form], ...]:
        """Forms that terms of this regularizer offer, with its settings."""

    @abstractmethod
    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Bind to ``image`` (B, C, *S) in [0, 1], float32 at least, and ``roi`` (B, *S); both are checked already."""

    # ---- what might be defined

    @property
    def adapted_forms(self) -> tuple[type[Form], ...]:
        """Forms that its terms offer once they are `Term.adapted` to a prediction: more than ``forms``, or the same."""
        return self.forms

    @property
    def needs_image(self) -> bool:
        """Whether the energy depends on the values of the image; `regloss.losses` does without one where it does not.

        A class variable will do where no setting changes it; and so for the next two.
        """
        return True

    @property
    def opaque(self) -> bool:
        """Whether compilers must see energies and their gradients as one operation, without looking inside.

        True where terms run other code than torch's, or have shapes that depend on values; see `regloss.losses`.
        """
        return False

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings for examples with two classes, where the defaults alone do not make a regularizer."""

    # ---- what should not be redefined

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        own = cls.__dict__.get("__post_init__")
        if own is None:
            return

        @wraps(own)
        def after_the_weight(self: Regularizer) -> None:
            Regularizer.__post_init__(self)
            own(self)

        cls.__post_init__ = after_the_weight  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_weight(self.weight, lambda: "a sum" if isinstance(self, Sum) else name_of(self))

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


def check_weight(weight: float, name: str | Callable[[], str]) -> None:
    """A weight must be a number, finite and not negative. A regularizer's own ``weight`` is checked already."""
    if isinstance(weight, int | float) and 0 <= weight < float("inf"):
        return
    owner = name if isinstance(name, str) else name()
    if not isinstance(weight, int | float):
        raise UsageError(
            f"The weight of {owner} must be a number; got {weight!r}. It comes first; give other settings by name."
        )
    raise UsageError(f"The weight of {owner} must be finite and not negative; got {weight}.")


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
        if not self.parts:
            raise UsageError("A sum of regularizers needs at least one of them.")
        object.__setattr__(self, "parts", tuple(resolve("regularizer", part) for part in self.parts))

    @property
    def forms(self) -> tuple[type[Form], ...]:
        """Forms common to all parts; `Mixed` where every part is concave or a saddle, and some are of each kind."""
        return self._common([tuple(part.forms) for part in self.parts])

    @property
    def adapted_forms(self) -> tuple[type[Form], ...]:
        """The same once all parts are adapted."""
        return self._common([tuple(part.adapted_forms) for part in self.parts])

    @property
    def needs_image(self) -> bool:
        """Whether one of the parts does."""
        return any(part.needs_image for part in self.parts)

    @property
    def opaque(self) -> bool:
        """Whether one of the parts is."""
        return any(part.opaque for part in self.parts)

    def _common(self, offered: Sequence[tuple[type[Form], ...]]) -> tuple[type[Form], ...]:
        if len(offered) == 1:
            return offered[0]
        common = tuple(form for form in self.joinable if all(form in forms for forms in offered))
        if Concave in common or Saddle in common:
            return common
        return (*common, Mixed) if all(_mixable(forms) is not None for forms in offered) else common

    def build(self, image: Tensor, roi: Tensor | None) -> Term:
        """Bind every part."""
        shape = (image.shape[0], *image.shape[2:])
        return _SumTerm(self, [part.build(image, roi) for part in self.parts], shape, roi)


class _SumTerm(Term):
    def __init__(self, regularizer: Sum, terms: Sequence[Term], shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.terms = terms
        self.weight = regularizer.weight

    def energy(self, probabilities: Tensor) -> Tensor:
        return self.weight * torch.stack([term.energy(probabilities) for term in self.terms]).sum(0)

    def penalty(self, probabilities: Tensor) -> Tensor:
        return self.weight * torch.stack([term.penalty(probabilities) for term in self.terms]).sum(0)

    def violation(self, probabilities: Tensor) -> Tensor:
        return torch.stack([term.violation(probabilities) for term in self.terms]).amax(0)

    def constraints(self) -> tuple[Term, ...]:
        return tuple(one for term in self.terms for one in term.constraints()) if self.weight > 0 else ()

    def adapted(self, probabilities: Tensor) -> Term:
        terms = [term.adapted(probabilities) for term in self.terms]
        if all(new is old for new, old in zip(terms, self.terms, strict=True)):
            return self
        return _SumTerm(Sum([term.regularizer for term in terms], self.weight), terms, self.shape, self.roi)

    def builders(self) -> Mapping[type[Form], Callable[[], Form]]:
        def joined(kind: type[Form]) -> Callable[[], Form]:
            forms = [(term, part_form(term.regularizer, kind)) for term in self.terms]
            return lambda: scaled(join_all([term.form(form) for term, form in forms], kind), self.weight)

        return {kind: joined(kind) for kind in self.regularizer.forms}


def part_form(regularizer: Regularizer, kind: type[Form]) -> type[Form]:
    """The form in which ``regularizer`` goes into a sum of the form ``kind``.

    Raises:
        MissingForm: it does not.
    """
    if kind in regularizer.forms:
        return kind
    found = _mixable(regularizer.forms) if kind is Mixed else None
    if found is None:
        raise MissingForm(f"{name_of(regularizer)} cannot be part of a sum in the form {kind.__name__}.")
    return found


def join_all(forms: Sequence[Form], kind: type[Form]) -> Form:
    """The form ``kind`` of a sum, from those of its parts, each as `part_form` says."""
    if kind is Mixed:
        return reduce(lambda a, b: a.join(b), forms, Mixed(_ZERO, Saddle(())))
    return reduce(lambda a, b: a.join(b), forms)


_ZERO: Concave = Concave(
    lambda s: s.new_zeros(s.shape[0]), torch.zeros_like, select=lambda images: _ZERO, quadratic=True
)


def _mixable(offered: Sequence[type[Form]]) -> type[Form] | None:
    """The form in which a regularizer that offers ``offered`` can be added to a `Mixed`."""
    return next((kind for kind in (Saddle, Concave, Mixed) if kind in offered), None)


def scaled(form: Form, factor: float | Tensor) -> Form:
    """``form`` of ``factor`` times its energy; a projection is its own multiple.

    Args:
        form: any but a form of a plugin's own.
        factor: >= 0; as a tensor () it must be above 0 and may be learnt, and a form counts it among its
            ``parameters``. Hard constraints stay as they are: a multiple of 0 or inf is the same.

    Raises:
        UsageError: the factor is 0 and the form cannot express the zero function.
    """
    if isinstance(form, Projection) or (not isinstance(factor, Tensor) and factor == 1):
        return form
    if isinstance(form, Graph):
        return Graph(form.edges, form.weights * factor)
    if isinstance(form, GridGraph):
        return GridGraph(form.offsets, form.weights * factor)
    if isinstance(form, Concave):
        return _scaled_concave(form, factor)
    if isinstance(form, Mixed):
        saddle = scaled(form.saddle, factor)
        assert isinstance(saddle, Saddle)
        return Mixed(_scaled_concave(form.concave, factor), saddle)
    if isinstance(form, Saddle):
        if not isinstance(factor, Tensor) and factor == 0:
            raise UsageError("A sum with weight 0 has no saddle form. Leave the regularizer out instead.")
        return Saddle(tuple(_scaled_block(block, factor) for block in form.blocks))
    raise MissingForm(f"A term in the form {type(form).__name__} cannot be scaled.")


def _plain(factor: float | Tensor) -> float:
    return float(factor.detach()) if isinstance(factor, Tensor) else factor


def _scaled_concave(form: Concave, factor: float | Tensor) -> Concave:
    value, supergradient, select = form.value, form.supergradient, form.select
    return Concave(
        lambda s: factor * value(s),
        lambda s: factor * supergradient(s),
        _plain(factor) * form.curvature,
        (*form.parameters, factor) if isinstance(factor, Tensor) else form.parameters,
        None if select is None else lambda images: _scaled_concave(select(images), factor),
        form.quadratic,
    )


def _scaled_block(block: SaddleBlock, factor: float | Tensor) -> SaddleBlock:
    """The factor goes into K and b, and Y stays, so that dual variables keep their meaning when it is learnt."""
    if block.cone:
        return block
    absolute, absolute_adjoint, squared, select = block.absolute, block.absolute_adjoint, block.squared, block.select
    compiled = block.compiled
    return SaddleBlock(
        apply=lambda s: factor * block.apply(s),
        adjoint=lambda y: block.adjoint(factor * y),
        project=block.project,
        # A plugin's block may be a cone and not say so: the tolerance of its constraint is in units of the unscaled z.
        support=lambda z: factor * block.support(z / factor),
        norm=_plain(factor) * block.norm,
        shift=factor * block.shift if isinstance(block.shift, Tensor) or block.shift != 0 else 0.0,
        slack=None if block.slack is None else lambda z, y: factor * block.gap(z / factor, y),
        absolute=None if absolute is None else lambda x: factor * absolute(x),
        absolute_adjoint=None if absolute_adjoint is None else lambda y: absolute_adjoint(factor * y),
        squared=None if squared is None else lambda x: factor**2 * squared(x),
        face=block.face,
        select=None if select is None else lambda images: _scaled_block(select(images), factor),
        parameters=(*block.parameters, factor) if isinstance(factor, Tensor) else block.parameters,
        compiled=None
        if compiled is None
        else lambda ascent: compiled(replace(ascent, factor=ascent.factor * _plain(factor))),
        dtype=block.dtype,
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
