"""The network of a run with its input normalisation and the layer behind it, and how they are saved for later use.

Weights files hold the network's weights under its own names, so that they fit a run without a layer as well; what a
layer has learnt stands beside them, as "layer:log_weight" and "layer:log_entropy", say. What it has not learnt follows
from the configuration, and is not saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

import regloss
from regloss.checks import at_least_float32, holds
from regloss.constraint import has_constraints
from regloss.dataset import Dataset
from regloss.errors import ReglossError, UsageError
from regloss.io.resampling import resampled_size, resize
from regloss.io.windows import Window
from regloss.layer import RegularizedLayer
from regloss.numerics import double
from regloss.registry import create
from regloss.regularizer import Regularizer
from regloss.solver import Solution
from regloss.training.checkpoints import check_values, load_network, read_weights, save_network, write_json
from regloss.training.config import Config, Inference, apply_change, build_layer, parse
from regloss.training.inference import by_windows, with_flips
from regloss.training.saved import ModelCard, checked, read_json

_LAYER = "layer:"  # no module's name holds a colon

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # channel means and spreads that published encoders expect


class NotFinite(ReglossError):
    """A network's logits are NaN or infinite, so that no layer can be solved behind it."""


class SegmentationModel(nn.Module):
    """A network that sees normalised images, 0 outside the region of interest, and none smaller than it was trained on.

    Behind it there may be a layer with a prior inside, which sees the image as it is, without padding.

    Training crops that reach beyond an image are padded; whole images smaller than a crop are padded here in the same
    way, so that the network meets at test time what its normalisation layers have met in training.

    Args:
        network: (B, C, *S) to logits (B, K, *S).
        normalize: "none", "image" (zero mean and unit spread over each image's region of interest) or "imagenet".
        smallest: size up to which smaller images are padded, a number or one an axis; None = never.
        layer: turns the network's logits into log-probabilities, which are logits too.
        inference: how whole images are predicted; None = as they are.
        flips: axes of S along which mirror images are averaged over in inference.

    Attributes:
        spacing: at which it has learnt, in mm, where the images were resampled to that; `infer` does so, too.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: str,
        smallest: int | tuple[int, ...] | None = None,
        layer: RegularizedLayer | None = None,
        inference: Inference | None = None,
        flips: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = normalize
        self.smallest = smallest
        self.layer = layer
        self.inference = Inference() if inference is None else inference
        self.flips = tuple(flips)
        self.spacing: tuple[float, ...] | None = None
        self._statistics: tuple[float, float] | None = None

    @contextmanager
    def normalised_by(self, mean: float, variance: float) -> Iterator[None]:
        """Meanwhile, ``normalize = "image"`` takes these for the image's, of which the input is a part."""
        self._statistics = (mean, variance)
        try:
            yield
        finally:
            self._statistics = None

    def forward(self, image: Tensor, roi: Tensor | None = None, spacing: Sequence[float] | None = None) -> Tensor:
        """Logits (B, K, *S); those of a layer are log-probabilities.

        Args:
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool; None = everywhere.
            spacing: of the images' axes in mm, which the layer heeds; None = not known.

        Raises:
            UsageError: the network's logits are not of the size of its input; the layer cannot be bound to the images.
            NotFinite: a layer follows logits that are NaN or infinite.
        """
        return self._behind_layer(self._network_logits(image, roi), image, roi, spacing)

    def infer(self, image: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """Logits (B, K, *S) of whole images (B, C, *S), by windows and flips as ``inference`` says.

        The layer sees the whole image. Images of another spacing than the model's are resampled to that, and logits to
        the images' grid.

        Raises:
            UsageError: the model has a spacing, and that of the images is not known.
        """
        if self.spacing is None or (spacing is not None and tuple(spacing) == self.spacing):
            return self._infer(image, spacing)
        if spacing is None:
            learnt = " x ".join(f"{step:g}" for step in self.spacing)
            raise UsageError(
                f"The model has learnt from images of {learnt} mm a pixel, and the spacing of this one is not known: "
                "give it, or a file that states it."
            )
        size = resampled_size(image.shape[2:], spacing, self.spacing)
        resampled = resize(at_least_float32(image), size, "cubic").clamp(0, 1).to(image.dtype)
        return resize(at_least_float32(self._infer(resampled, self.spacing)), image.shape[2:], "linear")

    def _infer(self, image: Tensor, spacing: Sequence[float] | None) -> Tensor:
        def seen(part: Tensor) -> Tensor:
            return with_flips(lambda mirrored: self._network_logits(mirrored, None), part, self.flips)

        how = self.inference
        logits = seen(image) if how.window is None else by_windows(seen, image, how.window, how.overlap, how.batch_size)
        return self._behind_layer(logits, image, None, spacing)

    def _behind_layer(
        self, logits: Tensor, image: Tensor, roi: Tensor | None, spacing: Sequence[float] | None
    ) -> Tensor:
        if self.layer is None:
            return logits
        if not holds(torch.isfinite(logits)):
            raise NotFinite("The network's output is NaN or infinite. Has its training diverged?")
        return self.layer.log_probabilities(logits, image, roi, spacing=spacing)

    def _network_logits(self, image: Tensor, roi: Tensor | None) -> Tensor:
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
            if self._statistics is not None:
                mean, variance = map(image.new_tensor, self._statistics)
            else:
                count = weight.sum(axes, keepdim=True) * image.shape[1]
                mean = (image * weight).sum(axes, keepdim=True) / count
                variance = ((image - mean).square() * weight).sum(axes, keepdim=True) / count
            image = (image - mean) / variance.sqrt().clamp(min=1e-3)  # a flat image stays flat
        elif self.normalize == "imagenet":
            mean, spread = (image.new_tensor(values).reshape(1, 3, *[1] * (image.ndim - 2)) for values in _IMAGENET)
            image = (image - mean) / spread
        return image if roi is None else image * weight

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The network's parameters by group, as it divides them; one group "all" for networks that do not."""
        if hasattr(self.network, "parameter_groups"):
            divide: Any = self.network.parameter_groups
            found: dict[str, list[nn.Parameter]] = divide()
            return found
        return {"all": list(self.network.parameters())}

    def learnable_parameters(self) -> list[nn.Parameter]:
        """The layer's parameters."""
        return [] if self.layer is None else list(self.layer.parameters())

    def weights(self) -> dict[str, Tensor]:
        """All that is saved, by name."""
        learnt = {} if self.layer is None else dict(self.layer.named_parameters())
        return {**self.network.state_dict(), **{_LAYER + name: value.detach() for name, value in learnt.items()}}

    def load_weights(self, weights: Mapping[str, Tensor], source: str, *, start: bool = False) -> None:
        """Put in what `weights` gave; what another layer has learnt, and this one does not learn, is left out.

        Args:
            weights: by name.
            source: where they come from, for messages.
            start: whether they are only where a training starts: settings of the layer that they do not hold keep their
                values, and a network with a method ``start_weights`` completes its own.

        Raises:
            UsageError: names or shapes differ, as they do for another network.
        """
        network = {name: value for name, value in weights.items() if not name.startswith(_LAYER)}
        complete: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None
        complete = getattr(self.network, "start_weights", None) if start else None
        load_network(self.network, network if complete is None else complete(network), source)
        if self.layer is None:
            return
        expected = self.layer.state_dict()
        for name, _ in self.layer.named_parameters():
            given = weights.get(_LAYER + name)
            if given is None and start:
                continue
            if given is None or given.shape != expected[name].shape:
                found = "no such numbers" if given is None else f"{given.numel()}"
                raise UsageError(
                    f"The layer learns {name}, {expected[name].numel()} in number, but {source} holds {found}. Use the "
                    "layer that it was trained with."
                )
            check_values({name: given}, {name: expected[name]}, source)
            expected[name] = given
        self.layer.load_state_dict(expected)


def describe_layer(layer: RegularizedLayer, settings: Collection[str] | None = None) -> dict[str, float]:
    """Numbers of a layer's settings by name, "layer-weight-tv", "layer-entropy"; of some ``settings``, or of all."""
    found = layer.scalars()
    chosen = [numbers for setting, numbers in found.items() if settings is None or setting in settings]
    return {f"layer-{name}": value for numbers in chosen for name, value in numbers.items()}


def layer_report(layer: RegularizedLayer | None, pixels: Tensor) -> dict[str, float]:
    """What the layer's solver reported of its last call, and the settings that are learnt.

    Args:
        layer: may be None.
        pixels: (B,) numbers of pixels of the images of that call.

    Returns:
        "layer-gap" per pixel (absent where the solver knows no bound) and "layer-steps" (both absent after an unrolled
        call), with hard constraints "layer-violation" of the solver's iterate, means over the images; then the numbers
        of the settings that are learnt.
    """
    if layer is None:
        return {}
    found: dict[str, float] = {}
    solution: Solution | None = layer.solution
    if solution is not None:
        gap = float((solution.gap / pixels.to(solution.gap)).mean())
        if math.isfinite(gap):
            found["layer-gap"] = gap
        found["layer-steps"] = float(double(solution.steps).mean())
        regularizer = getattr(layer, "regularizer", None)
        if isinstance(regularizer, Regularizer) and has_constraints(regularizer):
            found["layer-violation"] = float(solution.violation.mean())
    return {**found, **describe_layer(layer, layer.learnable_parameters())}


def build_model(config: Config, channels: int, classes: int, *, trained: bool = False) -> SegmentationModel:
    """The configured network, and the layer behind it, for images of ``channels`` and ``classes``.

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
    if config.data.normalize != "none" and getattr(network, "normalizes_input", False):
        raise UsageError(
            f"The network {config.network.name!r} normalises its input itself, so data.normalize = "
            f'{config.data.normalize!r} would do it twice. Use normalize = "none".'
        )
    augment = config.data.augment
    mirrored = {-1: augment.flip, -2: augment.flip_vertical, -3: augment.flip_depth}
    flips = [axis for axis, is_mirrored in mirrored.items() if is_mirrored] if config.inference.flips else []
    if config.inference.flips and not flips:
        raise UsageError(
            "inference.flips averages over the mirror images that data.augment makes, and it makes none: set flip, "
            "flip-vertical or flip-depth there, or leave inference.flips out."
        )
    layer = build_layer(config.layer, classes)
    return SegmentationModel(network, config.data.normalize, config.data.crop, layer, config.inference, flips)


@dataclass(frozen=True)
class Model:
    """A trained model, read back: segmenter in eval mode, its configuration, class names and colours.

    ``window`` says which values of image files become 0 and 1; None = it follows from their types, as it was with the
    images of the training.
    """

    segmenter: SegmentationModel
    config: Config
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    channels: int
    window: Window | None = None


def save_model(folder: Path, segmenter: SegmentationModel, config: Config, dataset: Dataset) -> None:
    """Write model.safetensors and model.json, which `load_model` reads."""
    save_network(folder / "model.safetensors", segmenter.weights())
    write_json(folder / "model.json", model_card(config, dataset))


def model_card(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What must be known of a model besides its weights."""
    return {
        "regloss": regloss.__version__,
        "config": config.dump(),
        "classes": list(dataset.classes),
        "colors": [list(color) for color in dataset.colors],
        "channels": dataset.channels,
        "window": None if dataset.window is None else list(dataset.window),
        "spacing": None if dataset.spacing is None else list(dataset.spacing),
    }


def check_run(folder: Path) -> Path:
    """The file that describes the model of a run; raises `UsageError` where there is none."""
    path = folder / "model.json"
    if not path.is_file():
        raise UsageError(f"{folder} is not the output folder of a training: it holds no model.json.")
    return path


def load_model(folder: Path, changes: Sequence[str] = ()) -> Model:
    """The final model of a run, or its last checkpoint if it is still running.

    Args:
        folder: of the run.
        changes: ``section.key=value`` settings that replace the run's.

    Raises:
        UsageError: ``folder`` is no run's folder, or its weights do not fit its configuration or are of another format
            version; a change that is none, or of a number of the layer that has been learnt; graphs are to be kept
            outside of ``folder``, or the network is made by code of another package, and no change says so.
    """
    path = check_run(folder)
    try:
        card = read_json(path)
    except (OSError, ValueError) as cause:
        raise UsageError(f"{path} does not describe a model of regloss: {cause}.") from cause
    described = checked(ModelCard, card, path)
    source = str(path)
    config = before = parse(described.config, source)
    _check_cache(config, folder, changes)
    _check_target(config, folder, changes)
    if changes:
        table = config.dump()
        for change in changes:
            apply_change(table, change)
        source = f"{folder} with the given changes"
        config = parse(table, source)
    try:
        segmenter = build_model(config, described.channels, len(described.classes), trained=True)
    except UsageError as error:
        raise type(error)(f"{source}: {error}") from error
    if config is not before:
        _check_learnt(build_layer(before.layer, len(described.classes)), segmenter.layer)
    segmenter.load_weights(read_weights(folder), str(folder))
    segmenter.spacing = None if described.spacing is None else tuple(described.spacing)
    return Model(
        segmenter.eval(),
        config,
        tuple(described.classes),
        tuple(described.colors),
        described.channels,
        Window.of(described.window),
    )


def _check_cache(config: Config, folder: Path, changes: Sequence[str]) -> None:
    """Who sends a run says with its configuration where graphs are kept, which must not be just anywhere here."""
    allowed = [change.partition("=")[0].strip() for change in changes]
    table = config.dump()
    for section in ("layer", "evaluation"):
        for key, cache in _caches(table[section], section):
            inside = Path(cache).resolve().is_relative_to(folder.resolve())
            if not inside and not any(key == name or key.startswith(f"{name}.") for name in allowed):
                raise UsageError(
                    f"The run in {folder} keeps graphs in {cache}, outside its folder, says its configuration, which "
                    f"may come from elsewhere. Allow it with --set {key}={cache}, or compute them anew with "
                    f'--set {key}="".'
                )


def _check_target(config: Config, folder: Path, changes: Sequence[str]) -> None:
    """A network that is a module of another package runs its code, and who has sent the run says which."""
    if config.network.name != "module":
        return
    target = config.network.component_settings().get("target")
    if not any(change.partition("=")[0].strip() in ("network", "network.target") for change in changes):
        raise UsageError(
            f"The run in {folder} has a network that {target} makes, says its configuration, which may come from "
            f"elsewhere. If you trust it, allow it with --set network.target={target}."
        )


def _caches(table: Any, where: str) -> Iterator[tuple[str, str]]:
    """Settings ``cache`` that name folders, below ``table``, with their keys."""
    if not isinstance(table, Mapping | list | tuple):
        return
    for key, value in table.items() if isinstance(table, Mapping) else enumerate(table):
        if key == "cache" and isinstance(value, str) and value:
            yield f"{where}.{key}", value
        else:
            yield from _caches(value, f"{where}.{key}")


def _check_learnt(old: RegularizedLayer | None, new: RegularizedLayer | None) -> None:
    """A number that was learnt would replace one that is given: the latter would count for nothing."""
    if old is None or new is None:
        return
    was, scalars = old.learnable_parameters(), old.scalars()
    for name, value in new.learnable_parameters().items():
        # The scalars too, as they know which kernel or regularizer is meant.
        if name in was and not (torch.equal(was[name], value) and scalars[name] == new.scalars()[name]):
            raise UsageError(
                f"The layer's {name.replace('_', '-')} was learnt, so giving another one changes nothing. Give "
                "layer.learn=[] too, to use the numbers of the configuration instead of those that were learnt."
            )


def predict(segmenter: SegmentationModel, image: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Logits (B, K, *S) in eval mode, without gradient; the mode is put back."""
    was_training = segmenter.training
    segmenter.eval()
    try:
        with torch.no_grad():
            # A training in true half or double precision leaves the parameters so.
            return segmenter.infer(image.to(next((p.dtype for p in segmenter.parameters()), image.dtype)), spacing)
    finally:
        segmenter.train(was_training)
