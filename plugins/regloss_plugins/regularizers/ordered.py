"""Ordered sets: one inside the next, like the cup inside the disc of an optic nerve. A hard constraint.

    u_1 <= u_2 <= ... <= u_K at every pixel

Here the K channels are no alternatives that sum to 1 but one probability each, as of K sigmoids: u_g says whether a
pixel lies in the g-th set, the smallest first. Sets that are nested so are K + 1 classes: class 0 lies outside of all
sets, class K in the smallest one, and u_g is the probability of the classes above K - g (`classes_of`, `nested_of`).
`regloss.RegularizedSigmoid` is the layer for such channels. (Of probabilities that sum to 1, as `solve` has them, the
constraint orders the classes, which is seldom meant: the last one is the most probable, so that labels are the last
class everywhere.)

The Euclidean projection onto {0 <= u_1 <= ... <= u_K <= 1} is isotonic regression, pixel by pixel, followed by
clipping; the other order is wrong, and so is a running maximum. With the entropy of K sigmoids,

    argmin over ordered u of  -<y, u> + entropy * sum of (u log u + (1 - u) log (1 - u))
        = sigmoid(isotonic(y) / entropy)                                              exactly: `ordered_sigmoid`

As a saddle form, R(u) = max over q >= 0 of the sum of q_g (u_g - u_(g+1)), with norm^2 <= 4. A solver's iterate counts
as meeting the constraint when no u_g exceeds u_(g+1) by more than ``tolerance``. Gradient descent gets weight times the
sum of squared excesses.

Source: Liu, Wang, Tai, arXiv:2002.03989, and Tai's lectures on it (sublevel sets); Barlow et al., "Statistical
inference under order restrictions", 1972 (isotonic regression and its entropic relatives).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.constraint import ConstraintTerm, HardConstraint, contradiction
from regloss.dual_sets import Orthant
from regloss.errors import UsageError
from regloss.forms import Projection, Saddle, SaddlePart
from regloss.operators import ClassDifferences
from regloss.regularizer import Forms, Term


@dataclass(frozen=True)
class Ordered(HardConstraint):
    """Channels are ordered: the first set lies in the second, and so on.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        tolerance: excess of a channel over the next that still counts as met, > 0.

    >>> cup_and_disc = torch.tensor([0.7, 0.4]).reshape(1, 2, 1, 1)
    >>> term = Ordered().bind(torch.zeros(1, 1, 1, 1))
    >>> term.violation(cup_and_disc), term.form(Projection).project(cup_and_disc).flatten()
    (tensor([0.3000]), tensor([0.5500, 0.5500]))
    """

    weight: float = 1.0
    tolerance: float = 1e-3
    channels: ClassVar[Literal["classes", "sets"]] = "sets"
    needs_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance must lie in (0, 1), a difference of probabilities; got {self.tolerance}.")

    @property
    def forms(self) -> Forms:
        """A saddle form, and the exact projection."""
        return {Saddle: _OrderedTerm.saddle, Projection: _OrderedTerm.projection}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Note the region of interest."""
        shape = (image.shape[0], *image.shape[2:])
        return _OrderedTerm(self, grid.full_roi(roi, shape, image.device).unsqueeze(1), shape, roi)


def isotonic(values: Tensor, dim: int = 1) -> Tensor:
    """Isotonic regression: the nearest non-decreasing sequence, by x_i = max over a <= i of min over b >= i of means.

    Differentiable; its derivative averages over the pools. All K^2 means are formed at once, so memory grows with K^2.

    Args:
        values: any shape.
        dim: axis along which the result does not decrease.

    >>> isotonic(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
    tensor([[2., 2., 2., 5.]])
    """
    given = values.movedim(dim, -1)
    count = given.shape[-1]
    sums = F.pad(given.cumsum(-1), (1, 0))
    first = torch.arange(count, device=given.device)
    length = first.unsqueeze(0) - first.unsqueeze(1) + 1  # of the run from a to b, at [a, b]
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / length.clamp(min=1)
    means = means.masked_fill(length < 1, math.inf)
    # least[a, i] = min over b >= i of the mean from a to b, for i >= a.
    least = means.flip(-1).cummin(-1).values.flip(-1)
    return least.masked_fill(length < 1, -math.inf).amax(-2).movedim(-1, dim)


def ordered_sigmoid(logits: Tensor, entropy: float = 1.0) -> Tensor:
    """Ordered probabilities of K nested sets: sigmoid(isotonic(logits) / entropy).

    Args:
        logits: (B, K, *S), the smallest set first.
        entropy: weight of the entropy, > 0.

    Returns:
        (B, K, *S) with u_1 <= ... <= u_K.

    Raises:
        UsageError: the entropy is not positive.
    """
    if not entropy > 0:
        raise UsageError(f"entropy must be positive; got {entropy}.")
    return torch.sigmoid(isotonic(logits) / entropy)


def classes_of(nested: Tensor) -> Tensor:
    """Class probabilities (B, K + 1, *S) from ordered probabilities (B, K, *S): those of the rings between the sets.

    The first class lies outside of all sets, the last one is the smallest set.

    >>> classes_of(torch.tensor([0.2, 0.9]).reshape(1, 2, 1, 1)).flatten()
    tensor([0.1000, 0.7000, 0.2000])
    """
    ends = torch.ones_like(nested[:, :1])
    return torch.diff(torch.cat([torch.zeros_like(ends), nested, ends], dim=1), dim=1).flip(1)


def nested_of(probabilities: Tensor) -> Tensor:
    """Ordered probabilities (B, K, *S) from class probabilities (B, K + 1, *S); the inverse of `classes_of`.

    >>> nested_of(torch.tensor([0.1, 0.7, 0.2]).reshape(1, 3, 1, 1)).flatten()
    tensor([0.2000, 0.9000])
    """
    return probabilities.flip(1).cumsum(1)[:, :-1]


class _OrderedTerm(ConstraintTerm):
    def __init__(self, regularizer: Ordered, inside: Tensor, shape: tuple[int, ...], roi: Tensor | None) -> None:
        super().__init__(regularizer, shape, roi)
        self.settings = regularizer
        self.everywhere = inside  # (B, 1, *S) bool

    def saddle(self) -> Saddle:
        """Dual variables are (B, K - 1, *S), not negative."""
        if self.settings.weight == 0:
            return Saddle(())
        return Saddle((SaddlePart(ClassDifferences(self.everywhere), Orthant(self.settings.tolerance)),))

    def projection(self) -> Projection:
        """Isotonic regression."""
        return Projection(self._project, project_scores=self._order)

    def violation(self, probabilities: Tensor) -> Tensor:
        """Largest excess of a channel over the next, 0 to 1."""
        return self._excess(self.check(probabilities)).flatten(1).amax(1).clamp(min=0)

    def check_classes(self, probabilities: Tensor) -> None:
        """Any number will do."""

    def __getitem__(self, images: Tensor) -> _OrderedTerm:
        """Those images."""
        inside, roi = self.everywhere[images], None if self.roi is None else self.roi[images]
        return _OrderedTerm(self.settings, inside, (len(inside), *inside.shape[2:]), roi)

    def refuse(self, possible: Tensor) -> None:
        """The last class must be possible everywhere."""
        last = possible.shape[1] - 1
        wrong = (~possible[:, last] & self.everywhere[:, 0]).flatten(1).any(1)
        if bool(wrong.any()):
            image = int(wrong.nonzero()[0])
            raise contradiction(
                self,
                image,
                f"labels of ordered classes are the last one, class {last}, everywhere, which seeds or allowed labels "
                "forbid",
            )

    def round(self, cost: Tensor, possible: Tensor, counts: Tensor | None = None) -> Tensor:
        """The last class: of ordered probabilities it is the most probable one."""
        labels = cost.argmin(1)
        last = torch.full_like(labels, cost.shape[1] - 1)
        return torch.where(self.everywhere[:, 0] & possible[:, -1], last, labels)

    def feasible(self, log_probabilities: Tensor, possible: Tensor) -> Tensor:
        """Isotonic regression, which keeps sums; classes below one that is not possible are not either."""
        can = possible.flip(1).cumprod(1).flip(1).bool()
        masked = log_probabilities.masked_fill(~can, -torch.inf)
        masked = torch.where(can.any(1, keepdim=True), masked, log_probabilities)
        s = torch.softmax(masked, dim=1)
        # Means of equal pools may differ by rounding.
        ordered = isotonic(s).clamp(min=0).cummax(1).values
        return torch.where(self.everywhere, ordered / ordered.sum(1, keepdim=True), log_probabilities.exp())

    def penalty(self, probabilities: Tensor) -> Tensor:
        excess = self._excess(self.check(probabilities)).clamp(min=0)
        return self.settings.weight * excess.square().flatten(1).sum(1)

    def _excess(self, u: Tensor) -> Tensor:
        return -torch.diff(u, dim=1) * self.everywhere

    def _project(self, u: Tensor) -> Tensor:
        if self.settings.weight == 0:
            return u
        return torch.where(self.everywhere, isotonic(u).clamp(0, 1), u)

    def _order(self, scores: Tensor) -> Tensor:
        return scores if self.settings.weight == 0 else torch.where(self.everywhere, isotonic(scores), scores)
