"""Regularizer, Term, and sums.

A `Regularizer` holds the settings of a prior R. Bound to a batch of images it becomes a `Term`, which has computed its
weights, graphs or kernels once and can be evaluated and solved many times. What solvers need of a term is a
`regloss.forms.Form`: a typed view. A solver says which forms it accepts, a regularizer which it offers;
`regloss.solver.negotiate` matches them.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce, wraps
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from regloss.checks import LARGEST, at_least_float32, check_image, check_roi, check_scores, check_spacing
from regloss.errors import MissingForm, UsageError
from regloss.forms import Composite, Form
from regloss.registry import name_of, resolve
from regloss.settings import CheckedSettings

AnyForm = TypeVar("AnyForm", bound=Form)
Forms = Mapping[type[Form], Callable[[Any], Form]]


@dataclass(frozen=True)
class Constrained(Form):
    """A prior with constraints that have no form but a projection: what such constraints offer, and sums with them.

    Attributes:
        terms: the constraints, see `regloss.constraint`.
        rest: how each form of the other priors together is built; empty where there are none.
    """

    summable: ClassVar[bool] = False  # a sum knows by itself how to build it
    terms: tuple[Term, ...]
    rest: Mapping[type[Form], Callable[[], Form]]

    @property
    def names(self) -> str:
        """Of the constraints."""
        return ", ".join(name_of(term.regularizer) for term in self.terms)

    def scaled(self, factor: float | Tensor) -> Constrained:
        """Constraints are their own multiples."""

        def multiple(build: Callable[[], Form]) -> Callable[[], Form]:
            return lambda: build().scaled(factor)

        return Constrained(self.terms, {kind: multiple(build) for kind, build in self.rest.items()})


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

    def violation(self, probabilities: Tensor) -> Tensor:
        """How far ``probabilities`` are from a hard constraint, (B,); 0 for priors that are no constraint."""
        return probabilities.new_zeros(probabilities.shape[0])

    def penalty(self, probabilities: Tensor) -> Tensor:
        """What gradient descent minimises, (B,): the energy, or the smooth stand-in for a hard constraint."""
        return self.energy(probabilities)

    def constraints(self) -> tuple[Term, ...]:
        """The hard constraints in it, see `regloss.constraint`; none for a prior."""
        return ()

    def conditioned_on(self, probabilities: Tensor) -> Term:
        """This term with what it takes from a prediction (a centre, say) taken from ``probabilities`` (B, K, *S).

        No gradient flows through what is taken. Solvers and layers ask for it where the regularizer says that its forms
        need a prediction. Most terms take nothing and are returned themselves.
        """
        return self

    def reconciled(self, possible: Tensor) -> Term:
        """This term, changed where what it took from a prediction contradicts the labels that are ``possible``.

        Itself, if it took nothing, or nothing else would do.

        Args:
            possible: (B, K, *S) bool, the labels that each pixel may take: one at a seed.
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
        regularizer = self.regularizer
        build = regularizer.forms.get(kind)
        if build is None:
            raise MissingForm(
                f"{name_of(regularizer)} does not offer {kind.__name__}; it offers {form_names(regularizer.forms)}."
            )
        if regularizer.needs_prediction:
            raise MissingForm(
                f"{name_of(regularizer)} offers {kind.__name__} once a prediction is known: ask "
                "term.conditioned_on(probabilities) for it."
            )
        form = build(self)
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


class Regularizer(metaclass=CheckedSettings):
    """Settings of a prior R. Subclasses are frozen dataclasses whose first field is ``weight: float = 1.0``.

    The weight is checked here, before a subclass's own ``__post_init__`` (if it has one) looks at the other fields.
    """

    weight: float
    channels: ClassVar[Literal["classes", "sets"]] = "classes"
    """What a segmentation's channels are to it: alternatives that sum to 1, or sets, with one probability each."""

    # ---- what must be defined

    @property
    @abstractmethod
    def forms(self) -> Forms:
        """The forms that terms of this regularizer offer, with its settings, and how a bound term is turned into each.

        For example ``{Saddle: _Term.saddle, Graph: _Term.graph}``; {} for none.
        """

    @abstractmethod
    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Bind to images; all arguments are checked already.

        Args:
            image: (B, C, *S) in [0, 1], float32 at least.
            roi: (B, *S) bool, or None.
            spacing: distance between neighbouring pixels along each axis in mm, or None where a pixel is the unit. A
                prior that measures lengths must heed it; one that counts pixels, or for which a line is a line at any
                spacing, need not.
        """

    # ---- what might be defined

    @property
    def needs_prediction(self) -> bool:
        """Whether terms offer their forms only once they are `Term.conditioned_on` a prediction."""
        return False

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

    learnable: ClassVar[Sequence[str]] = ()
    """Settings that may be tensors of one positive number, by which the functions of its forms are differentiable."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings for examples with two classes, where the defaults alone do not make a regularizer."""

    # ---- what should not be redefined

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        post_init = cls.__dict__.get("__post_init__")
        if post_init is None:
            return

        @wraps(post_init)
        def after_the_weight(self: Regularizer) -> None:
            Regularizer.__post_init__(self)
            post_init(self)

        cls.__post_init__ = after_the_weight  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_weight(self.weight, lambda: "a sum" if isinstance(self, Sum) else name_of(self))

    def bind(self, image: Tensor, roi: Tensor | None = None, spacing: Sequence[float] | Tensor | None = None) -> Term:
        """Compute what depends on the images, once.

        Args:
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
            spacing: distance between neighbouring pixels along each axis, in mm, the same for all images; None = 1, and
                every distance is in pixels. Energies are sums over pixels at any spacing: a boundary's is its length
                (2D) or area (3D) in mm, over the volume of a pixel, so that it keeps its weight against a sum of
                unaries over pixels, whatever the resolution.

        Raises:
            UsageError: shapes disagree, the image holds NaN or values outside [0, 1], or a spacing is not positive.
        """
        check_image(image)
        check_roi(roi, (image.shape[0], *image.shape[2:]))
        return self.build(at_least_float32(image.detach()), roi, check_spacing(spacing, image.ndim - 2))

    def __add__(self, other: Regularizer) -> Sum:
        return Sum((self, other))


def check_weight(weight: float, name: str | Callable[[], str]) -> None:
    """A weight must be a number of 0 to 1e30. A regularizer's own ``weight`` is checked already."""
    if isinstance(weight, int | float) and 0 <= weight <= LARGEST:
        return
    owner = name if isinstance(name, str) else name()
    if not isinstance(weight, int | float):
        raise UsageError(
            f"The weight of {owner} must be a number; got {weight!r}. It comes first; give other settings by name."
        )
    if LARGEST < weight < float("inf"):
        raise UsageError(f"The weight of {owner} must be at most 1e30; got {weight}.")
    raise UsageError(f"The weight of {owner} must be finite and not negative; got {weight}.")


@dataclass(frozen=True)
class Sum(Regularizer):
    """Several regularizers that add up; offers the forms that all of them offer.

    Args:
        parts: regularizers, names, or tables with a name and settings.
        weight: multiplies the whole sum; hard constraints in it hold whatever it is.

    >>> from regloss import GridCRF, TotalVariation
    >>> [form.__name__ for form in (GridCRF() + TotalVariation()).forms]
    ['GridGraph', 'Graph']
    """

    parts: Sequence[Any]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.parts:
            raise UsageError("A sum of regularizers needs at least one of them.")
        object.__setattr__(self, "parts", tuple(resolve("regularizer", part) for part in self.parts))

    @property
    def forms(self) -> Forms:
        """Forms common to all parts that can be added up; `Composite` where every part has some kind of it.

        With parts that are `Constrained`, that alone, if the others have a form in common.
        """
        others = [part for part in self.parts if Constrained not in part.forms]
        if len(others) < len(self.parts) > 1:
            return {Constrained: _constrained} if not others or Sum(others).forms else {}
        if len(self.parts) == 1:
            kinds = list(self.parts[0].forms)
        else:
            kinds = [kind for kind in self.parts[0].forms if kind.summable and self._all_offer(kind)]
            if not any(issubclass(kind, Composite) for kind in kinds) and self._all_offer(Composite):
                kinds.append(Composite)
        return {kind: _joined(kind) for kind in kinds}

    def _all_offer(self, kind: type[Form]) -> bool:
        return all(offered_kind(part, kind) is not None for part in self.parts)

    @property
    def needs_prediction(self) -> bool:
        """Whether one of the parts does."""
        return any(part.needs_prediction for part in self.parts)

    @property
    def needs_image(self) -> bool:
        """Whether one of the parts does."""
        return any(part.needs_image for part in self.parts)

    @property
    def opaque(self) -> bool:
        """Whether one of the parts is."""
        return any(part.opaque for part in self.parts)

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Bind every part."""
        shape = (image.shape[0], *image.shape[2:])
        return _SumTerm(self, [part.build(image, roi, spacing) for part in self.parts], shape, roi)


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
        return tuple(one for term in self.terms for one in term.constraints())

    def conditioned_on(self, probabilities: Tensor) -> Term:
        terms = [term.conditioned_on(probabilities) for term in self.terms]
        if all(new is old for new, old in zip(terms, self.terms, strict=True)):
            return self
        return _SumTerm(Sum([term.regularizer for term in terms], self.weight), terms, self.shape, self.roi)

    def reconciled(self, possible: Tensor) -> Term:
        terms = [term.reconciled(possible) for term in self.terms]
        if all(new is old for new, old in zip(terms, self.terms, strict=True)):
            return self
        return _SumTerm(Sum([term.regularizer for term in terms], self.weight), terms, self.shape, self.roi)

    def parts(self) -> list[Term]:
        """The terms, and those of constrained sums among them, with these sums' weights."""
        found: list[Term] = []
        for term in self.terms:
            if isinstance(term, _SumTerm) and Constrained in term.regularizer.forms:
                found += [_weighted(part, term.weight) for part in term.parts()]
            else:
                found.append(term)
        return found


def _weighted(term: Term, weight: float) -> Term:
    return term if weight == 1 else _SumTerm(Sum([term.regularizer], weight), [term], term.shape, term.roi)


def _constrained(term: _SumTerm) -> Constrained:
    """The constraints of a sum, and the sum of the others."""
    parts = term.parts()
    forms = [part.form(Constrained) for part in parts if Constrained in part.regularizer.forms]
    others = [part for part in parts if Constrained not in part.regularizer.forms]
    constraints = tuple(one for form in forms for one in form.terms) if term.weight > 0 else ()
    if not others:
        return Constrained(constraints, {})
    rest = _SumTerm(Sum([part.regularizer for part in others], term.weight), others, term.shape, term.roi)

    def built(kind: type[Form]) -> Callable[[], Form]:
        return lambda: rest.form(kind)

    return Constrained(constraints, {kind: built(kind) for kind in rest.regularizer.forms})


def _joined(kind: type[Form]) -> Callable[[_SumTerm], Form]:
    """How the ``kind`` of form of a sum is built."""

    def build(term: _SumTerm) -> Form:
        form = add_forms([part.form(part_kind(part.regularizer, kind)) for part in term.terms])
        return form if term.weight == 1 else form.scaled(term.weight)

    return build


def offered_kind(regularizer: Regularizer, kind: type[Form]) -> type[Form] | None:
    """The form that ``regularizer`` offers where a ``kind`` is asked for: itself, or the first special case of it."""
    forms = regularizer.forms
    return kind if kind in forms else next((offered for offered in forms if issubclass(offered, kind)), None)


def part_kind(regularizer: Regularizer, kind: type[Form]) -> type[Form]:
    """The form in which ``regularizer`` goes into a sum of the form ``kind``.

    Raises:
        MissingForm: it does not.
    """
    found = offered_kind(regularizer, kind)
    if found is None:
        raise MissingForm(f"{name_of(regularizer)} cannot be part of a sum in the form {kind.__name__}.")
    return found


def add_forms(forms: Sequence[Form]) -> Form:
    """The form of a sum, from those of its parts."""
    return reduce(operator.add, forms)


def form_names(forms: Iterable[type[Form]]) -> str:
    """For messages."""
    return ", ".join(form.__name__ for form in forms) or "no form"


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
