"""RegularizedLayer: what a layer with a prior inside must define; attach: a network with such a layer behind it.

A layer takes a network's logits o and the image, and gives probabilities A, in general those that minimise an energy,

    A(o) = argmin over A in the simplex at every pixel of   -<o, A> + entropy <A, log A> + R(A ; image)

How they are found, and how they are differentiated, is the layer's own affair. A layer is a component of the kind
"layer": the table [layer] of a configuration names it, and the rest of the table are its settings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from regloss.errors import UsageError
from regloss.registry import name_of
from regloss.regularizer import Regularizer
from regloss.settings import CheckedSettings
from regloss.solver import Solution


class RegularizedLayer(nn.Module, metaclass=CheckedSettings):
    """Logits and image to probabilities with a prior inside: what `attach` and a training put behind a network.

    What is learnt are its parameters, and they alone are saved with a trained model: everything else follows from the
    settings that it was made with. A setting ``classes`` is not written in configurations: it is the number of classes
    of the data.

    Attributes:
        solution: what the solver reported of the last call; None before, after an unrolled pass, where no solver is at
            work, and if it is set so to be forgotten.
    """

    former_names: ClassVar[Mapping[str, str]] = {}
    """Settings by other names that configurations may use for them, which older ones may hold."""

    solution: Solution | None = None

    # ---- what must be defined

    @abstractmethod
    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Log-probabilities (B, K, *S), which serve as logits; of the type of ``logits``.

        Args:
            logits: (B, K, *S), finite.
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool, outside of which nothing is regularised; None = everywhere.
            warm: an earlier solution for the same images, or its state, to start from; layers that have none pass over
                it.
            spacing: distance of neighbouring pixels along each axis of S in mm; None = not known, distances are in
                pixels. Layers that measure none pass over it.

        Raises:
            UsageError: shapes disagree; logits that are not finite.
        """

    # ---- what might be defined

    def forward(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Probabilities (B, K, *S); arguments as of `log_probabilities`."""
        return self.log_probabilities(logits, image, roi, warm, spacing).exp()

    def learnable_parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters, by the names of the settings that they stand for."""
        return dict(self.named_parameters())

    def scalars(self) -> Mapping[str, Mapping[str, float]]:
        """What may be learnt as it stands now, for logs: numbers by their names, and these by those of the settings.

        Of a setting of many numbers they may be a few that tell what matters.
        """
        return {
            name: _scalars_of(name.replace("_", "-"), value.detach())
            for name, value in self.learnable_parameters().items()
        }

    def unrolled(self, max_steps: int | None = None) -> RegularizedLayer:
        """A copy for `torch.export`: a fixed number of steps by tensor operations, and settings that are numbers.

        Args:
            max_steps: how many; None = those that the layer is set to.

        Raises:
            UsageError: the layer, or its prior, computes something that no graph of tensor operations can hold.
        """
        raise UsageError(f"The layer {name_of(self)!r} has no form of fixed steps, so it cannot be exported.")

    def check(self) -> None:
        """Raise `UsageError` if what has been learnt cannot be used; called before a training saves it."""


def _scalars_of(name: str, value: Tensor) -> dict[str, float]:
    name = name.replace("_", "-")
    if value.numel() == 1:
        return {name: float(value)}
    return {f"{name}-{number}": entry for number, entry in enumerate(value.flatten().tolist())}


def name_weights(regularizers: Sequence[Regularizer], weights: Tensor, setting: str = "weight") -> dict[str, float]:
    """``weights`` (regularizers,) by "weight-tv", say; two of one kind are told apart by their place, "weight-tv-0".

    So for values of another ``setting``.
    """
    names = [name_of(part) for part in regularizers]
    names = [name if names.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(names)]
    return {f"{setting}-{name}": weight for name, weight in zip(names, weights.tolist(), strict=True)}


def attach(network: nn.Module, layer: RegularizedLayer) -> RegularizedNetwork:
    """``network`` with ``layer`` behind it, to be used wherever ``network`` was.

    Args:
        network: image (B, C, *S) to logits (B, K, *S).
        layer: any; shared if given to several networks.

    Raises:
        UsageError: they are no network and no layer.
    """
    return RegularizedNetwork(network, layer)


class RegularizedNetwork(nn.Module):
    """A network that ends in a layer with a prior inside.

    Its output are the logarithms of the layer's probabilities. They serve as logits wherever those of ``network`` did,
    in losses, in argmax and in softmax, since softmax(log p) = p; and they do not underflow where p would.

    Args:
        network: image (B, C, *S) to logits (B, K, *S).
        layer: what comes after.
    """

    def __init__(self, network: nn.Module, layer: RegularizedLayer) -> None:
        super().__init__()
        if not isinstance(network, nn.Module) or not isinstance(layer, RegularizedLayer):
            raise UsageError(
                "A layer is attached to a network, attach(network, layer), a torch module and a regularized layer; got "
                f"{type(network).__name__} and {type(layer).__name__}."
            )
        self.network = network
        self.layer = layer

    def forward(
        self,
        image: Tensor,
        roi: Tensor | None = None,
        guide: Tensor | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Log-probabilities (B, K, *S).

        Args:
            image: (B, C, *S) what the network sees.
            roi: (B, *S) bool, outside of which nothing is regularised; None = everywhere.
            guide: (B, C', *S) in [0, 1] what the regularizer sees; None = ``image``, which must be in [0, 1] then.
            spacing: of the images' axes in mm; None = not known.
        """
        return self.layer.log_probabilities(
            self.network(image), image if guide is None else guide, roi, spacing=spacing
        )
