"""EntropicLayer: what layers with a weighted entropy and weighted regularizers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regloss.checks import check_entropy
from regloss.layer import RegularizedLayer, name_weights
from regloss.regularizer import Regularizer


class EntropicLayer(RegularizedLayer):
    """A layer whose entropy and weights may be learnt, kept as logarithms so that they stay positive.

    Args:
        entropy: weight of the entropy, > 0, at most 1e30.

    Raises:
        UsageError: an entropy outside its range.
    """

    former_names: ClassVar[Mapping[str, str]] = {
        "steps": "max_steps",
        "refine": "polish",
        "refine_steps": "polish_steps",
    }

    def __init__(self, entropy: float) -> None:
        super().__init__()
        check_entropy(entropy, positive=True)
        self._entropy = float(entropy)

    @abstractmethod
    def logarithms(self) -> Mapping[str, nn.Parameter | None]:
        """Logarithms of "weight" (regularizers,) and "entropy" (), in this order; None where they are not learnt."""

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
        logarithm = self.logarithms()["entropy"]
        return torch.tensor(self._entropy) if logarithm is None else logarithm.exp()

    def learnable_parameters(self) -> dict[str, nn.Parameter]:
        """Logarithms of weights and entropy, by "weight" and "entropy"."""
        return {name: value for name, value in self.logarithms().items() if value is not None}

    def scalars(self) -> dict[str, dict[str, float]]:
        """Weights, by "weight-" and the regularizer's name, and the entropy."""
        return {
            "weight": name_weights(self.weighted(), self.weight),
            "entropy": {"entropy": self.entropy.item()},
        }
