"""The network of a run with its input normalisation, and how both are saved for later use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

import regloss
from regloss.dataset import Dataset
from regloss.errors import UsageError
from regloss.registry import create
from regloss.training.checkpoints import load_network, read_weights, save_network, write_json
from regloss.training.config import Config, parse

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # channel means and spreads that published encoders expect


class Segmenter(nn.Module):
    """A network that sees normalised images, 0 outside the region of interest, and none smaller than it was trained on.

    Training crops that reach beyond an image are padded; whole images smaller than a crop are padded here in the same
    way, so that the network meets at test time what its normalisation layers have met in training.

    Args:
        network: (B, C, *S) to logits (B, K, *S).
        normalize: "none", "image" (zero mean and unit spread over each image's region of interest) or "imagenet".
        smallest: size up to which smaller images are padded, a number or one an axis; None = never.
    """

    def __init__(self, network: nn.Module, normalize: str, smallest: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.network = network
        self.normalize = normalize
        self.smallest = smallest

    def forward(self, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """Logits (B, K, *S).

        Args:
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool; None = everywhere.

        Raises:
            UsageError: the network's logits are not of the size of its input.
        """
        size = image.shape[2:]
        least = (self.smallest,) * len(size) if isinstance(self.smallest, int) else self.smallest or size
        missing = [max(wanted - have, 0) for wanted, have in zip(least, size, strict=True)]
        before = [amount // 2 for amount in missing]
        after = [amount - start for amount, start in zip(missing, before, strict=True)]
        if any(before) or any(after):
            widths = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
            inside = image.new_ones(image.shape[0], *size, dtype=torch.bool) if roi is None else roi
            image, roi = F.pad(image, widths), F.pad(inside, widths, value=False)
        logits: Tensor = self.network(self._normalised(image, roi))
        if logits.shape[2:] != image.shape[2:]:
            raise UsageError(
                f"{type(self.network).__name__} makes {tuple(logits.shape)} of images {tuple(image.shape)}; logits "
                "(B, K, *S) must have the size of the image."
            )
        for axis, (start, length) in enumerate(zip(before, size, strict=True), start=2):
            logits = logits.narrow(axis, start, length)
        return logits

    def _normalised(self, image: Tensor, roi: Tensor | None) -> Tensor:
        weight = torch.ones_like(image[:, :1]) if roi is None else roi.unsqueeze(1).to(image.dtype)
        if self.normalize == "image":
            axes = tuple(range(1, image.ndim))
            count = weight.sum(axes, keepdim=True) * image.shape[1]
            mean = (image * weight).sum(axes, keepdim=True) / count
            variance = ((image - mean).square() * weight).sum(axes, keepdim=True) / count
            image = (image - mean) / variance.sqrt().clamp(min=1e-3)  # a flat image stays flat
        elif self.normalize == "imagenet":
            mean, spread = (image.new_tensor(values).reshape(1, 3, *[1] * (image.ndim - 2)) for values in _IMAGENET)
            image = (image - mean) / spread
        return image if roi is None else image * weight

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group, as the network divides them; one group "all" for networks that do not."""
        if hasattr(self.network, "parameter_groups"):
            divide: Any = self.network.parameter_groups
            found: dict[str, list[nn.Parameter]] = divide()
            return found
        return {"all": list(self.network.parameters())}


def build_segmenter(config: Config, channels: int, classes: int, *, trained: bool = False) -> Segmenter:
    """The configured network for images of ``channels`` and ``classes``.

    Args:
        config: of the run.
        channels: C of the images.
        classes: K.
        trained: whether trained weights will replace the initial ones; then no file is read that the network's setting
            ``weights`` names, and it may be gone.

    Raises:
        UsageError: settings that do not fit the data.
    """
    if config.data.normalize == "imagenet" and channels != 3:
        raise UsageError(f'normalize = "imagenet" is for RGB images; these have {channels} channels. Use "image".')
    if classes < 2:
        raise UsageError(
            f"Segmentation needs at least two classes (background counts as one); the data set has {classes}."
        )
    settings = config.network.component_settings()
    if trained:
        settings.pop("weights", None)
    network = create("network", config.network.name, in_channels=channels, classes=classes, **settings)
    return Segmenter(network, config.data.normalize, config.data.crop)


@dataclass(frozen=True)
class Model:
    """A trained model, read back: segmenter in eval mode, its configuration, class names and colours."""

    segmenter: Segmenter
    config: Config
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    channels: int


def save_model(folder: Path, segmenter: Segmenter, config: Config, dataset: Dataset) -> None:
    """Write model.safetensors and model.json, which `load_model` reads."""
    save_network(folder / "model.safetensors", segmenter.network)
    write_json(folder / "model.json", model_card(config, dataset))


def model_card(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What must be known of a model besides its weights."""
    return {
        "regloss": regloss.__version__,
        "config": config.dump(),
        "classes": list(dataset.classes),
        "colors": [list(color) for color in dataset.colors],
        "channels": dataset.channels,
    }


def load_model(folder: Path) -> Model:
    """The final model of a run, or its last checkpoint if it is still running.

    Raises:
        UsageError: ``folder`` is no run's folder, or its weights do not fit its configuration or are of another format
            version.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise UsageError(f"{folder} is not the output folder of a training: it holds no model.json.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        described = {key: card[key] for key in ("config", "classes", "colors", "channels")}
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise UsageError(f"{path} does not describe a model of regloss: {cause!r}.") from cause
    config = parse(described["config"], str(path))
    segmenter = build_segmenter(config, card["channels"], len(card["classes"]), trained=True)
    load_network(segmenter.network, read_weights(folder), str(folder))
    colors: Sequence[Any] = card["colors"]
    return Model(
        segmenter.eval(), config, tuple(card["classes"]), tuple(tuple(color) for color in colors), card["channels"]
    )


def predict(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Logits (B, K, *S) in eval mode, without gradient; the mode is put back."""
    was_training = segmenter.training
    segmenter.eval()
    try:
        with torch.no_grad():
            # A training in true half or double precision leaves the parameters so.
            logits: Tensor = segmenter(image.to(next((p.dtype for p in segmenter.parameters()), image.dtype)))
            return logits
    finally:
        segmenter.train(was_training)
