"""EntropicLayer: what layers with a weighted entropy and weighted regularizers share, and which gradients they have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regloss.checks import check_choice, check_entropy
from regloss.errors import UsageError
from regloss.layer import RegularizedLayer, name_weights
from regloss.registry import name_of
from regloss.regularizer import Regularizer
from regloss.solver import Solution

BACKWARD = ("implicit", "unrolled", "one-step")
LEARNABLE = ("weight", "entropy")


def following_gap(solution: Solution, entropy: float) -> float:
    """Relative residual at which it is in vain to solve further for the gradient at ``solution``.

    A third of the root mean square error that its probabilities may have, sqrt(gap / (2 entropy pixels)), of the best
    image; within 1e-6 and 1e-2. 1e-6 where no gap is known.
    """
    pixels = solution.probabilities[0, 0].numel()
    worst = (solution.gap.clamp(min=0) / (2 * entropy * pixels)).sqrt().min()
    return 1e-6 if not bool(worst.isfinite()) else min(max(float(worst) / 3, 1e-6), 1e-2)


class EntropicLayer(RegularizedLayer):
    """A layer whose entropy and weights may be learnt, kept as logarithms so that they stay positive.

    Args:
        entropy: weight of the entropy, > 0, at most 1e30.
        backward: "implicit", "unrolled" or "one-step".
        learn: of "weight", "entropy" and the regularizers' own, see `check_learnable`.
        backward_steps: largest number of conjugate-gradient steps of the implicit gradient, >= 1; None = 60, and 300
            with ``polish`` or a tolerance of one's own.
        backward_tolerance: their relative residual at which to stop, in [0, 1); None = as the solution's gap is, see
            `following_gap`.
        polish: tolerance of the solution that the implicit gradient is taken at; None = as it is found.

    Raises:
        UsageError: a setting outside its range.
    """

    former_names: ClassVar[Mapping[str, str]] = {
        "steps": "max_steps",
        "refine": "polish",
        "refine_steps": "polish_steps",
    }

    def __init__(
        self,
        entropy: float,
        backward: str,
        learn: Sequence[str],
        backward_steps: int | None,
        backward_tolerance: float | None,
        polish: float | None,
    ) -> None:
        super().__init__()
        given: Any = entropy
        if not isinstance(given, Real | Tensor):
            raise TypeError("entropy is no number")  # put into words by the check of settings
        check_entropy(entropy, positive=True)
        check_choice(BACKWARD, backward=backward)
        steps = backward_steps
        if steps is None:
            steps = 60 if backward_tolerance is None and polish is None else 300
        if steps < 1 or not 0 <= (backward_tolerance or 0.0) < 1:
            raise UsageError(
                "backward_steps must be at least 1 and backward_tolerance in [0, 1); got "
                f"{backward_steps} and {backward_tolerance}."
            )
        if polish is not None and backward != "implicit":
            raise UsageError(f'polish belongs to backward = "implicit"; got backward = {backward!r}. Leave it out.')
        self._entropy = float(entropy)
        self.backward = backward
        self.backward_steps = steps
        self.backward_tolerance = backward_tolerance

    def check_learnable(self, learn: Sequence[str], regularizers: Sequence[Regularizer]) -> None:
        """Raise `UsageError` unless ``learn`` holds "weight", "entropy", and what ``regularizers`` have to learn."""
        allowed = dict.fromkeys([*LEARNABLE, *(name for part in regularizers for name in part.learnable)])
        unknown = [name for name in learn if name not in allowed]
        if unknown:
            of = ", ".join(map(name_of, regularizers)) or "no regularizer"
            raise UsageError(f"With {of} learn may hold {', '.join(allowed)}; got {', '.join(map(repr, unknown))}.")

    @abstractmethod
    def logarithms(self) -> Mapping[str, nn.Parameter | None]:
        """Logarithms of "weight" (regularizers,) and "entropy" (), in this order; None where they are not learnt.

        Then those of the regularizers' own settings that are learnt, one number for each regularizer that has it.
        """

    @abstractmethod
    def weighted(self) -> Sequence[Regularizer]:
        """The regularizers that `weight` is of, in its order."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """(regularizers,) weights, in the order in which the regularizers were given."""

    @property
    def entropy(self) -> Tensor:
        """() weight of the entropy."""
        return self.entropy_for(torch.empty(0))

    def entropy_for(self, scores: Tensor) -> Tensor:
        """() weight of the entropy, in the type of ``scores`` where it is not learnt."""
        logarithm = self.logarithms()["entropy"]
        return scores.new_tensor(self._entropy) if logarithm is None else logarithm.exp()

    def learnable_parameters(self) -> dict[str, nn.Parameter]:
        """Logarithms of weights, entropy and settings of the regularizers, by "weight", "entropy" and their names."""
        return {name: value for name, value in self.logarithms().items() if value is not None}

    def scalars(self) -> dict[str, dict[str, float]]:
        """Weights, by "weight-" and the regularizer's name, the entropy, and likewise settings that are learnt."""
        found = {
            "weight": name_weights(self.weighted(), self.weight),
            "entropy": {"entropy": self.entropy.item()},
        }
        for name, logarithm in self.logarithms().items():
            if name not in LEARNABLE and logarithm is not None:
                owners = [name in part.learnable for part in self.weighted()]
                values = torch.zeros(len(owners))
                values[torch.tensor(owners)] = logarithm.detach().float().exp().cpu()
                named = name_weights(self.weighted(), values, name.replace("_", "-"))
                found[name] = {key: value for (key, value), own in zip(named.items(), owners, strict=True) if own}
        return found
