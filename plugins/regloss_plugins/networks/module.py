"""Any module as a network: torchvision's, segmentation-models-pytorch's, Hugging Face's, MONAI's, one of your own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regloss.errors import MissingDependency, UsageError
from regloss.network_output import logits_of
from regloss_plugins.networks.building_blocks import Network


class ModuleNetwork(Network):
    """A module that a class or function of an installed package makes.

    Its output may be logits, or a mapping or dataclass that holds them as ``logits`` or ``out``; logits smaller than
    the image are enlarged. Its weights keep the names that they have in the module, so that state dicts of its library
    fit ``training.start-from``.

    Args:
        in_channels: channels C of the image, which ``arguments`` must agree with.
        classes: classes K, likewise.
        target: "package.module:name" of the class or function.
        arguments: what it is called with. A table among them that holds a ``target`` itself is made in the same way,
            from its other keys: ``config = {target = "transformers:SegformerConfig", num_labels = 2}``. An empty text
            stands for None, which a configuration cannot write.

    Raises:
        UsageError: there is no such target, it refuses the arguments, or what it makes is no module.
        MissingDependency: its package is not installed.

    Example:
        >>> import torch
        >>> settings = {"in_channels": 3, "out_channels": 2, "kernel_size": 2, "stride": 2}
        >>> network = ModuleNetwork(3, 2, target="torch.nn:Conv2d", arguments=settings)
        >>> network(torch.zeros(1, 3, 8, 8)).shape, list(network.state_dict())
        (torch.Size([1, 2, 8, 8]), ['weight', 'bias'])
    """

    def __init__(
        self, in_channels: int, classes: int, *, target: str, arguments: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        made = _made(target, arguments or {})
        if not isinstance(made, nn.Module):
            raise UsageError(f"module: {target} makes a {type(made).__name__}, not a torch.nn.Module")
        self.module = made
        self.target = target
        self.classes = classes

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            image: ``(B, C, *S)``, floating point.

        Returns:
            Logits ``(B, K, *S)``.

        Raises:
            UsageError: the module's output holds no logits, or those of another number of classes.
        """
        logits = logits_of(self.module(image), image.shape[2:])
        if logits.shape[1] != self.classes:
            raise UsageError(
                f"module: {self.target} makes logits of {logits.shape[1]} classes instead of {self.classes}; its "
                "arguments say how many"
            )
        return logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the module if it names any, else one, ``"all"``."""
        groups = getattr(self.module, "parameter_groups", super().parameter_groups)
        found: dict[str, list[nn.Parameter]] = groups()
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the module: without the name it has in here."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Put in what `state_dict` gave, or the state dict of the module's own library."""
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)


def _made(target: str, arguments: Mapping[str, Any]) -> Any:
    factory = _imported(target)
    chosen = {key: _argument(value) for key, value in arguments.items()}
    try:
        return factory(**chosen)
    except (TypeError, ValueError, AttributeError, KeyError) as cause:
        raise UsageError(f"module: {target} refuses its arguments {', '.join(chosen) or '(none)'}: {cause}") from cause


def _argument(value: Any) -> Any:
    if not isinstance(value, Mapping) or "target" not in value:
        return None if value == "" else value
    return _made(value["target"], {key: entry for key, entry in value.items() if key != "target"})


def _imported(target: str) -> Any:
    module, colon, name = target.partition(":") if isinstance(target, str) else ("", "", "")
    if not colon or not module or not name:
        raise UsageError(f'module: target is "package.module:name", for example "torchvision.models:x"; got {target!r}')
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as cause:
        raise MissingDependency(
            f"module: {target} needs the package {cause.name!r}, which is not installed, or not on PYTHONPATH"
        ) from cause
    except ImportError as cause:
        raise UsageError(f"module: {module} cannot be imported: {cause}") from cause
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"module: {module} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"module: {target} is a {type(found).__name__}, which cannot be called")
    return found
