"""Configuration of a training: TOML in, checked pydantic models out.

Keys are written with hyphens. Tables that name a component ([data], [network], the regularizers, the outer loop, the
optimizer) also take that component's own settings. Names and keys are checked here, as the file is read; whether a
component takes the values, it says itself when it is made, once, before a training writes anything.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from regloss.checks import LARGEST
from regloss.errors import ReglossError, UsageError
from regloss.io.limits import LARGEST_TEXT, check_regular
from regloss.io.samples import MAX_SCRIBBLED
from regloss.io.toml import parse_toml, read_text, toml_value
from regloss.layer import RegularizedLayer
from regloss.outer_loop import OuterLoop
from regloss.registry import check_settings, create, find, get, name_of, settings
from regloss.training.color_pseudo_labels import ColorPseudoLabels
from regloss.training.pseudo_labels import PseudoLabels
from regloss.training.saved import shortened
from regloss.training.segmenter_pseudo_labels import SegmenterPseudoLabels


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _underscores(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


class _Checked(BaseModel):
    # Pydantic takes true for 1 and false for 0.
    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        allowed = _alternatives(cls.model_fields[about.field_name or ""].annotation)
        if _holds_bool(value) and (int in allowed or float in allowed) and not (bool in allowed or Any in allowed):
            raise ValueError("needs a number, which true and false are not")
        return value


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_bool, value)))


def _alternatives(annotation: Any) -> list[Any]:
    """All types that ``annotation`` is made of."""
    return [annotation, *(one for part in get_args(annotation) for one in _alternatives(part))]


class _Section(_Checked):
    # Dumped infinities stay such: a bandwidth of inf is one, and None is none.
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=_hyphens, populate_by_name=True, ser_json_inf_nan="constants"
    )


class _ComponentSection(_Section):
    """A table that holds a component's own settings beside those declared here."""

    model_config = ConfigDict(extra="allow")

    def component_settings(self) -> dict[str, Any]:
        """The component's own settings."""
        return _underscores(self.model_extra or {})


_Crop = Annotated[int, Field(le=2**16)]
_Window = Annotated[int, Field(ge=1, le=2**16)]
_Devices = Annotated[int, Field(le=1024)]


class AugmentNoise(_Section):
    """Noise that is added to training images: of each kind a level, drawn anew for every crop.

    gaussian: standard deviations. salt, pepper: fractions of the pixels that turn white, or black, in all channels.
    Each is the range that levels are drawn from evenly, or its upper end, the lower one being 0.
    """

    gaussian: tuple[float, float] = (0.0, 0.0)
    salt: tuple[float, float] = (0.0, 0.0)
    pepper: tuple[float, float] = (0.0, 0.0)

    @field_validator("*", mode="before")
    @classmethod
    def _from_zero(cls, value: Any) -> Any:
        return (0.0, value) if isinstance(value, int | float) else value

    @field_validator("*")
    @classmethod
    def _levels(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("needs 0 <= smallest <= largest <= 1")
        return value


class Augment(_Section):
    """Geometric and photometric augmentation of training images; geometry is replayed on labels and proposals.

    flip: mirror left to right with probability 1/2. flip-vertical: likewise. flip-depth: likewise the first axis of a
    volume. quarter-turns: turn by 0, 90, 180 or 270 degrees, each with probability 1/4. scale: range of the
    magnification. rotate: largest rotation, degrees. Volumes turn in the plane of their finest spacing. brightness:
    largest shift of image values. contrast: largest relative change of the spread around the image's mean; values are
    clipped to [0, 1]. gamma: range of the exponent of image values. blur: largest standard deviation of a Gaussian,
    pixels. low-resolution: largest factor by which an image is reduced and enlarged again.
    noise: of several kinds, or a number, the largest standard deviation of Gaussian noise.
    """

    flip: bool = False
    flip_vertical: bool = False
    flip_depth: bool = False
    quarter_turns: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = Field(default=0.0, ge=0, le=180)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    gamma: tuple[float, float] = (1.0, 1.0)
    blur: float = Field(default=0.0, ge=0, le=100)
    low_resolution: float = Field(default=1.0, ge=1, le=100)
    noise: AugmentNoise = AugmentNoise()

    @field_validator("noise", mode="before")
    @classmethod
    def _gaussian(cls, value: Any) -> Any:
        return {"gaussian": value} if isinstance(value, int | float | list | tuple) else value

    @field_validator("scale", "gamma")
    @classmethod
    def _factors(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.01 <= value[0] <= value[1] <= 100:
            raise ValueError("needs 0.01 <= smallest <= largest <= 100")
        return value


class Proposals(_Section):
    """Proposals made of scribbles and image before the training, which then learns them as if they were labels.

    region-force: name or table. regularizer: name, table, or several, which add up; its weight is in the region force's
    units, nats for "histogram". solver: name or table. entropy: for solvers over probabilities. rounds: how often
    labels are solved for, and statistics fitted between. segmenter: name or table of one that makes the proposals in
    the place of all these. threshold: pixels whose class it gives less than this probability stay unlabelled.
    """

    region_force: str | dict[str, Any] = "histogram"
    regularizer: list[dict[str, Any]] = [{"name": "grid-crf", "weight": 5.0}]
    solver: str | dict[str, Any] = "alpha-expansion"
    entropy: float = Field(default=0.0, ge=0, le=LARGEST)
    rounds: int = Field(default=5, ge=1)
    segmenter: str | dict[str, Any] | None = None
    threshold: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("regularizer", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return _several(value)

    @field_validator("segmenter", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _by_one_of_two(self) -> Proposals:
        fields = type(self).model_fields
        own = [name for name in fields if name not in ("segmenter", "threshold")]
        changed = [_hyphens(name) for name in own if getattr(self, name) != fields[name].default]
        if self.segmenter is not None and changed:
            raise ValueError(f"a segmenter makes proposals by itself, and {', '.join(changed)} would change nothing")
        if self.segmenter is None and self.threshold > 0:
            raise ValueError("threshold is of the probabilities that a segmenter gives; name one, random-walker say")
        return self


class Data(_ComponentSection):
    """The data set (with its own settings), its subsets, and how training crops are cut.

    supervision: "scribbles" trains on scribbles, "labels" on dense labels, "none" on the images alone. scribble-length:
    fraction of every stroke's length that is kept, 1 = all, 0 = a click. max-scribbled: largest fraction of an image's
    pixels that scribbles may label; more is taken for a mistake. train, val, test: names of subsets; "" does without
    the last two. train-unlabelled: name of a subset whose images are trained on beside those of ``train``, without any
    label, for losses that look at images and predictions. folds: cross-validation, in how many parts the training
    subset's groups are dealt. fold: the one that is left out, from 0, and scored as ``test``. stratify: regular
    expression with one capturing group, searched in each group's name; what it captures is spread evenly over the
    folds. crop: size of training crops in pixels, a number or
    one per axis; absent = whole images. Smaller images are padded, and the padding lies outside the region of interest.
    crops-per-image: how many of each image an epoch has. labelled-share: fraction of the crops that hold a labelled
    pixel, of a class drawn at random among those that the image has; the others lie anywhere. normalize: what the
    network sees: the image as it is, with zero mean and unit spread ("image"), or with ImageNet's channel statistics.
    workers: loader processes. cache: keep decoded images in memory. proposals: train on segmentations made of the
    scribbles and the image instead of the scribbles; absent = no.
    """

    dataset: str
    supervision: Literal["scribbles", "labels", "none"] = "scribbles"
    scribble_length: float = Field(default=1.0, ge=0, le=1)
    max_scribbled: float = Field(default=MAX_SCRIBBLED, gt=0, le=1)
    train: str = "train"
    train_unlabelled: str | None = None
    val: str | None = None
    test: str | None = "test"
    folds: int | None = Field(default=None, ge=2, le=1000)
    fold: int | None = Field(default=None, ge=0, lt=1000)
    stratify: str | None = None
    crop: _Crop | tuple[_Crop, ...] | None = None
    crops_per_image: int = Field(default=1, ge=1, le=10**6)
    labelled_share: float = Field(default=0.0, ge=0, le=1)
    augment: Augment = Augment()
    normalize: Literal["none", "image", "imagenet"] = "none"
    workers: int = Field(default=0, ge=0, le=256)
    cache: bool = True
    proposals: Proposals | None = None

    @field_validator("proposals", "folds", "fold", "stratify", mode="before")
    @classmethod
    def _absent_if_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("train_unlabelled", "val", "test")
    @classmethod
    def _none_if_empty(cls, value: str | None) -> str | None:
        return value or None


class Network(_ComponentSection):
    """The network, with its own settings (channels, levels, encoder ...)."""

    name: str


def _several(value: Any) -> Any:
    """Regularizers as a list of tables, from a name, a table or a list of these."""
    if isinstance(value, str | Mapping):
        value = [value]
    if isinstance(value, Sequence):
        return [{"name": entry} if isinstance(entry, str) else entry for entry in value]
    return value


class Layer(_ComponentSection):
    """A layer with a prior inside, behind the network, with its own settings; it sees the image in [0, 1].

    kind: name of the layer; "name" may stand for it. All else are the layer's settings, checked against the types that
    its constructor declares; ``component_settings`` has them, every default spelt out.
    """

    kind: str = "softmax"


class Loss(_Section):
    """Data terms, regularizers and outer loop; or a preset, whose settings the rest overrides."""

    data_term: str | dict[str, Any] | list[dict[str, Any]] | None = None
    regularizer: list[dict[str, Any]] | None = None
    outer_loop: dict[str, Any] = {"name": "gradient-descent"}

    @field_validator("data_term", mode="before")
    @classmethod
    def _named_terms(cls, value: Any) -> Any:
        return _several(value) if isinstance(value, list) else value

    @field_validator("regularizer", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return _several(value)

    @field_validator("outer_loop", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Training(_Section):
    """Length, optimizer, learning rate, devices, checkpoints.

    epochs: passes over the training images. warm-up: the first of them, which train on the data term alone, without
    regularizer or proposals. batch-size: images a step on each process. optimizer: {name = "adam" |
    "adamw" | "sgd", lr, ...}; every other key is torch's. schedule: {name = "constant" | "poly" | "cosine"} with power
    (poly) and warmup (fraction of the training). head-lr: factor of the learning rate for the parameters that the
    network calls its head. layer-lr: likewise, for what [layer] learns. start-from: run folder, or .safetensors,
    .pth, .pt or .bin file, whose weights the network starts with. checkpoint-every: optimizer steps between
    checkpoints; absent = at the end of every epoch. log-every: steps between two rows of the log; absent = every step
    on a CPU, at least one of 20 elsewhere. compile: the network by `torch.compile`. channels-last: its weights, and so
    what it computes, in the order of memory that convolutions on tensor cores want.
    """

    epochs: int = Field(ge=1, le=10**7)
    batch_size: int = Field(default=8, ge=1, le=10**6)
    optimizer: dict[str, Any] = {"name": "adam", "lr": 1e-3}
    schedule: dict[str, Any] = {"name": "constant"}
    warm_up: int = Field(default=0, ge=0, le=10**7)
    head_lr: float = Field(default=1.0, gt=0, le=1e6)
    layer_lr: float = Field(default=1.0, gt=0, le=1e6)
    clip_gradient: float | None = Field(default=None, gt=0)
    start_from: str | None = None
    accelerator: str = "auto"
    devices: _Devices | Literal["auto"] = 1
    nodes: int = Field(default=1, ge=1, le=10**4)
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int | None = Field(default=None, ge=1, le=1024)
    checkpoint_every: int | None = Field(default=None, ge=1)
    evaluate_every: int = Field(default=1, ge=1)
    log_every: int | None = Field(default=None, ge=1)
    compile: bool = False
    channels_last: bool = False

    @field_validator("warm_up")
    @classmethod
    def _leaves_epochs(cls, value: int, others: ValidationInfo) -> int:
        epochs = others.data.get("epochs", math.inf)  # not there where it is invalid itself
        if value >= epochs:
            raise ValueError(f"{value} of {epochs} epochs leave none for the whole loss")
        return value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("name") not in ("adam", "adamw", "sgd"):
            raise ValueError('needs name = "adam", "adamw" or "sgd"')
        if not (isinstance(value.get("lr"), int | float) and value["lr"] > 0):
            raise ValueError("needs a learning rate lr > 0")
        for key, number in value.items():
            if isinstance(number, int | float) and not abs(number) <= LARGEST:
                raise ValueError(f"needs {key} of at most {LARGEST:g}")
        return value

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("name") not in ("constant", "poly", "cosine"):
            raise ValueError('needs name = "constant", "poly" or "cosine"')
        unknown = set(value) - {"name", "power", "warmup"}
        if unknown:
            raise ValueError(f"does not know {', '.join(sorted(unknown))}; its keys are name, power, warmup")
        for key in ("power", "warmup"):
            number = value.get(key, 0.0)
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= LARGEST:
                raise ValueError(f"needs {key} as a finite number of at least 0; got {number!r}")
        if not value.get("warmup", 0.0) < 1:
            raise ValueError("needs 0 <= warmup < 1, a fraction of the training")
        return value


class Evaluation(_Section):
    """What is computed on evaluation images besides the scores.

    trimap: widths in pixels. hausdorff: whether to measure how far boundaries are off (HD95, average surface distance,
    surface Dice). surface-tolerance: of the surface Dice, in mm where the spacing is known, else in pixels. energy: a
    regularizer whose discrete energy per pixel of the predictions is reported; "" = none. energy-images: of so many
    training images, evenly spaced, that energy is logged too, whenever the validation subset would be scored. examples:
    how many images the report shows.
    """

    trimap: tuple[int, ...] = ()
    hausdorff: bool = False
    surface_tolerance: float = Field(default=1.0, gt=0, le=1e6)
    energy: str | dict[str, Any] | None = "grid-crf"
    energy_images: int = Field(default=0, ge=0)
    examples: int = Field(default=6, ge=0, le=1000)

    @field_validator("energy")
    @classmethod
    def _none_if_empty(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        return value or None

    @field_validator("energy_images")
    @classmethod
    def _of_an_energy(cls, value: int, others: ValidationInfo) -> int:
        if value and others.data.get("energy", "") is None:
            raise ValueError("needs an energy; evaluation.energy is none")
        return value


class Inference(_Section):
    """How whole images are predicted: for proposals, in evaluation and by `predict`.

    window: size of the windows that the network sees, in pixels, a number or one per axis; absent = whole images.
    overlap: least fraction of its length that a window shares with the next. batch-size: windows that the network sees
    at once. flips: average over the mirror images along the axes that data.augment mirrors. slab: proposals of volumes
    are solved for so many slices at a time, along the first axis, in slabs that overlap by a quarter; absent = for
    whole volumes. largest-component: keep of every class but the first only its largest connected component, in
    evaluation and by `predict`.
    """

    window: _Window | tuple[_Window, ...] | None = None
    overlap: float = Field(default=0.5, ge=0, lt=1)
    batch_size: int = Field(default=1, ge=1, le=2**16)
    flips: bool = False
    slab: int | None = Field(default=None, ge=2, le=2**16)
    largest_component: bool = False


class Config(_Section):
    """A whole training run."""

    output: str
    seed: int = Field(default=0, ge=0, lt=2**64)
    data: Data
    network: Network
    layer: Layer | None = None
    loss: Loss = Loss()
    training: Training
    evaluation: Evaluation = Evaluation()
    inference: Inference = Inference()

    @field_validator("layer", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    def dump(self) -> dict[str, Any]:
        """The configuration as plain data with hyphenated keys, every default spelt out."""
        return self.model_dump(mode="json", by_alias=True)


_SHOWN = 20  # problems that a message lists

# Keys of [data] that belong to training, not to the data set.
_OWN_DATA_KEYS = {_hyphens(name) for name in Data.model_fields}


def read(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: the TOML file.
        changes: ``section.key=value`` settings that replace the file's; values are TOML, or bare text.

    Raises:
        UsageError: the file is missing or no TOML, a key is unknown (the message names it and the allowed ones), a
            value is invalid, or a component does not exist or has no such setting.
    """
    check_regular(path, LARGEST_TEXT)
    try:
        text = read_text(path)
    except FileNotFoundError as cause:
        raise UsageError(f"There is no configuration file {path}.") from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"The configuration {path} cannot be read: {cause}") from cause
    table = parse_toml(text, str(path), "is not valid TOML")
    for change in changes:
        apply_change(table, change)
    return parse(table, str(path))


def apply_change(table: dict[str, Any], change: str) -> None:
    """Apply ``section.key=value`` to ``table`` in place.

    >>> table = {"training": {"epochs": 3}}
    >>> apply_change(table, "training.epochs=5"); table
    {'training': {'epochs': 5}}
    """
    key, equals, text = change.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise UsageError(f"--set takes section.key=value, for example training.epochs=5; got {change!r}.")
    value = toml_value(text)
    if parts[0] == "layer" and len(parts) > 1 and isinstance(table.get("layer"), Mapping):
        # Else what the file calls by a former name would be there twice.
        table["layer"] = with_current_names(table["layer"])
        parts[1] = _current_name(parts[1], table["layer"].get("kind", "softmax"))
    for part in parts[:-1]:
        if isinstance(table, list):  # an array of tables: [[loss.regularizer]] is addressed by its number
            if not part.isdigit() or int(part) >= len(table):
                raise UsageError(f"--set {change}: {part!r} is not the number of an entry (0 to {len(table) - 1}).")
            table = table[int(part)]
            continue
        if table.get(part) is None:  # absent, or a dumped configuration that does without the section
            table[part] = {}
        table = table[part]
        if not isinstance(table, dict | list):
            raise UsageError(f"--set {change}: {part!r} is a value, not a section.")
    if isinstance(table, list):
        raise UsageError(f"--set {change}: name an entry by its number, for example loss.regularizer.0.weight=2.")
    table[parts[-1]] = value


def parse(table: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check a configuration given as plain data; see `read`."""
    table = _expand_preset(dict(table))
    wrong: list[str] = []
    if isinstance(table.get("layer"), Mapping):
        try:
            layer, wrong = _complete_layer(table["layer"])
        except ReglossError as error:
            raise type(error)(f"{source}: [layer]: {error}") from None
        table["layer"] = layer or None
    try:
        config = Config.model_validate(table)
    except ValidationError as cause:
        found = cause.errors()
        wrong += [_explain(error) for error in found[:_SHOWN]]
        wrong += [f"and {len(found) - _SHOWN} more" for _ in found[_SHOWN : _SHOWN + 1]]
    if wrong:
        raise UsageError(f"{source}: " + "; ".join(wrong)) from None
    _check_components(config, source)
    return config


def _expand_preset(table: dict[str, Any]) -> dict[str, Any]:
    """Fill [loss] from a preset of its outer loop; what the file says itself wins."""
    loss = table.get("loss")
    if not isinstance(loss, Mapping):
        return table
    loop = loss.get("outer-loop")
    if not isinstance(loop, Mapping) or "preset" not in loop:
        return table
    loop = dict(loop)
    name = loop.pop("preset")
    cls: Any = get("outer-loop", str(loop.get("name")))
    if name not in cls.presets:
        raise UsageError(
            f"The outer loop {loop.get('name')!r} has no preset {name!r}. It has: {', '.join(cls.presets) or 'none'}."
        )
    preset = {_hyphens(key): value for key, value in cls.presets[name].items()}
    regularizer = preset.pop("regularizer", None)
    new = {"regularizer": regularizer, **loss} if regularizer is not None else dict(loss)
    new["outer-loop"] = {**preset, **loop}
    return {**table, "loss": new}


def _explain(error: Any, section: str = "", allowed: Sequence[str] | None = None) -> str:
    """What is wrong, in words; of a ``section`` that was checked apart, with the keys ``allowed`` in it."""
    where = [str(part) for part in error["loc"]]
    key = ".".join(filter(None, [section, *where]))
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(where[:-1]) if allowed is None else allowed
        near = difflib.get_close_matches(where[-1], allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"unknown key {key!r}.{hint} Allowed here: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key}: {error['msg']}; got {shortened(error.get('input'))}"


def _allowed_keys(where: Sequence[str]) -> list[str]:
    model: Any = Config
    for part in where:
        model = model.model_fields[part.replace("-", "_")].annotation
        model = next((kind for kind in get_args(model) if kind is not type(None)), model)  # of an optional section
    return [_hyphens(name) for name in model.model_fields]


def _check_components(config: Config, source: str) -> None:
    try:
        _check_table("dataset", config.data.dataset, config.data.component_settings(), _OWN_DATA_KEYS)
        _check_table("network", config.network.name, config.network.component_settings(), {"name"})
        if config.data.proposals is not None and config.data.supervision != "scribbles":
            raise UsageError(
                f'data.proposals are made of scribbles, but data.supervision is "{config.data.supervision}". Leave '
                'one of them out, or use supervision = "scribbles".'
            )
        if config.data.train_unlabelled is not None and config.data.supervision == "none":
            raise UsageError(
                'data.train-unlabelled is for a training with labels, and data.supervision is "none". Name all images '
                "in data.train."
            )
        for number, term in enumerate(config.loss.data_term if isinstance(config.loss.data_term, list) else []):
            _check_named("data-term", {k: v for k, v in term.items() if k != "weight"}, f"[[loss.data-term]] {number}")
        for number, regularizer in enumerate(config.loss.regularizer or []):
            _check_named("regularizer", regularizer, f"[[loss.regularizer]] number {number}")
        _check_named("outer-loop", config.loss.outer_loop, "[loss.outer-loop]")
        for key in map(_hyphens, config.loss.outer_loop):
            if key in ("regularizer", "data-term"):
                raise UsageError(f"{key!r} belongs to [loss], not to [loss.outer-loop].")
    except UsageError as error:
        raise type(error)(f"{source}: {as_written(str(error))}") from None


# Words such as proposal_weight, but not within quotes, paths and names of attributes; and quoted ones that are none.
_SETTING = re.compile(r"(?<![\w'\"/\\.])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w'\"/\\(]|\.\w)")
_NO_SETTING = re.compile(r"has no setting '\w+'\.(?: Did you mean '\w+'\?)?")


def as_written(message: str) -> str:
    """A component's ``message`` with its settings as a configuration spells them, with hyphens.

    >>> as_written("max_cycles must be at least 1; got 'a_b'.")
    "max-cycles must be at least 1; got 'a_b'."
    """
    for pattern in (_NO_SETTING, _SETTING):
        message = pattern.sub(lambda found: _hyphens(found[0]), message)
    return message


def _check_named(kind: str, table: Mapping[str, Any], where: str) -> None:
    chosen = _underscores(table)
    name = chosen.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"{where} needs a name.")
    check_settings(kind, name, chosen)


def _check_table(kind: str, name: str, chosen: Mapping[str, Any], further: set[str]) -> None:
    find(kind, name)
    known = [_hyphens(key) for key in settings(get(kind, name)) if key not in ("in_channels", "classes")]
    if kind == "dataset":
        known = [_hyphens(key) for key in settings(get(kind, name))]
    for key in map(_hyphens, chosen):
        if key not in known:
            allowed = sorted(set(known) | further)
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown key {key!r} for the {kind} {name!r}.{hint} Allowed here: {', '.join(allowed)}.")


def build_loop(loss: Loss, supervision: str) -> Any:
    """The outer loop of a configuration.

    The data term, unless it is named, follows from the supervision; without any, it is the outer loop's own.

    Raises:
        UsageError: there is no supervision, and a data term that needs labels.
    """
    table = _underscores(loss.outer_loop)
    name = table.pop("name")
    if loss.data_term is not None:
        table["data_term"] = loss.data_term
    elif supervision != "none":
        table["data_term"] = "cross-entropy" if supervision == "labels" else "partial-cross-entropy"
    try:
        loop = create("outer-loop", name, regularizer=loss.regularizer, **table)
    except UsageError as error:
        raise type(error)(f"[loss]: {as_written(str(error))}") from error
    if supervision == "none" and (loop.data_term is None or loop.data_term.needs_labels):
        given = "has none" if loop.data_term is None else f"is {loss.data_term or 'partial-cross-entropy'!r}"
        raise UsageError(
            'data.supervision is "none", which needs a data term that reads no labels, and that of the outer loop '
            f'{name!r} {given}. Use data-term = "elbo", or the outer loop "deep-chan-vese".'
        )
    return loop


def build_warm_up(loop: OuterLoop) -> Any:
    """An outer loop of the data term of ``loop`` alone.

    Raises:
        UsageError: it has none.
    """
    if loop.data_term is None:
        raise UsageError(
            f"training.warm-up trains on the data term alone, and the outer loop {name_of(loop)!r} has none. Leave the "
            "setting out."
        )
    return create("outer-loop", "gradient-descent", data_term=loop.data_term)


def build_proposals(proposals: Proposals | None) -> PseudoLabels | None:
    """What makes the proposals of a configuration; None where there are none.

    Raises:
        UsageError: a setting that does not exist or is invalid.
        MissingForm: a solver that cannot use the regularizer.
    """
    if proposals is None:
        return None
    try:
        if proposals.segmenter is not None:
            return SegmenterPseudoLabels(proposals.segmenter, proposals.threshold)
        return ColorPseudoLabels(
            proposals.region_force, proposals.regularizer, proposals.solver, proposals.entropy, proposals.rounds
        )
    except UsageError as error:
        raise type(error)(f"[data.proposals]: {as_written(str(error))}") from error


# -- The layer ---------------------------------------------------------------------------------------------------------


def _complete_layer(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """[layer] with every setting of the layer that it names, and what is wrong with it, in words.

    Raises:
        ReglossError: there is no such layer, or it cannot be imported; a setting given by two names.
    """
    table = with_current_names(table)
    kind = table.pop("kind", "softmax")
    if not isinstance(kind, str):
        raise UsageError(f"kind is the name of a layer; got {kind!r}.")
    model = _settings_model(get("layer", kind))
    if "regularizer" in table:
        table["regularizer"] = _several(table["regularizer"])
    if isinstance(table.get("learn"), list | tuple):  # names of settings, which may be written as these are
        table["learn"] = [name.replace("-", "_") if isinstance(name, str) else name for name in table["learn"]]
    try:
        found = model.model_validate(table).model_dump(by_alias=True)
    except ValidationError as cause:
        allowed = ["kind", *(str(field.alias) for field in model.model_fields.values())]
        return {}, [_explain(error, "layer", allowed) for error in cause.errors()]
    if isinstance(found.get("learn"), list | tuple):
        found["learn"] = [_hyphens(name) for name in found["learn"]]
    return {"kind": kind, **found}, []


def with_current_names(layer: Mapping[str, Any]) -> dict[str, Any]:
    """``layer``, a table [layer], with its settings by today's names, where it has them by former ones.

    Raises:
        ReglossError: there is no such layer, or it cannot be imported; a setting given by two names.

    >>> with_current_names({"name": "softmax", "steps": 5})
    {'kind': 'softmax', 'max-steps': 5}
    """
    kind = layer.get("kind", layer.get("name", "softmax"))
    found: dict[str, Any] = {}
    for key, value in layer.items():
        name = _current_name(key, kind)
        if name in found:
            raise UsageError(f"{name!r} is given twice, once by another name. Leave one of them out.")
        found[name] = value
    return found


def _current_name(key: str, kind: Any) -> str:
    """Today's name of ``key`` in the table [layer] of that ``kind``."""
    if key == "name":
        return "kind"
    cls: Any = get("layer", kind) if isinstance(kind, str) else RegularizedLayer
    name = key.replace("-", "_")
    return _hyphens(cls.former_names.get(name, name))


class _LayerSettings(_Checked):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@cache
def _settings_model(cls: type[RegularizedLayer]) -> type[BaseModel]:
    """What a configuration may set of ``cls``: the arguments of its constructor, with their types and defaults."""
    try:
        hints = get_type_hints(cls.__init__)
    except NameError:  # types that are imported for type checkers alone; the constructor has to look at the values
        hints = {}
    fields: dict[str, Any] = {}
    for name, parameter in settings(cls).items():
        if name != "classes":  # comes from the data
            default = ... if parameter.default is parameter.empty else parameter.default
            # The prefix keeps settings apart from pydantic's own attributes; only the alias is ever seen.
            fields[f"setting_{name}"] = (_configurable_type(hints.get(name, Any)), Field(default, alias=_hyphens(name)))
    return create_model(cls.__name__, __base__=_LayerSettings, **fields)


def _configurable_type(hint: Any) -> Any:
    """``hint`` as a configuration can have it: without tensors and modules where there is a choice, lists as tuples."""
    if get_origin(hint) in (Union, UnionType):
        allowed = [one for one in get_args(hint) if not _is_in_python_alone(one)]
        return Union[tuple(_configurable_type(one) for one in allowed)]  # noqa: UP007 - made at run time
    if get_origin(hint) is Sequence:
        (entry,) = get_args(hint)
        return GenericAlias(tuple, (_configurable_type(entry), ...))
    return hint


def _is_in_python_alone(hint: Any) -> bool:
    """Whether a type has no value that a configuration could write."""
    # In Python 3.10 list[int] passes for a class, but not for a subclass of anything.
    return get_origin(hint) is None and isinstance(hint, type) and issubclass(hint, Tensor | nn.Module)


def build_layer(layer: Layer | None, classes: int) -> RegularizedLayer | None:
    """The layer of a configuration; None where there is none.

    Args:
        layer: the section, as `parse` completes it.
        classes: K.

    Raises:
        UsageError: a setting that does not exist or is invalid; a solver that cannot be differentiated; label costs for
            another number of classes.
        MissingForm: a solver that cannot use the regularizer.
    """
    if layer is None:
        return None
    chosen = layer.component_settings()
    if isinstance(chosen.get("learn"), list | tuple):
        chosen["learn"] = [name.replace("-", "_") for name in chosen["learn"]]
    if "classes" in settings(get("layer", layer.kind)):
        chosen["classes"] = classes
    try:
        built: RegularizedLayer = create("layer", layer.kind, **chosen)
    except UsageError as error:
        raise type(error)(f"[layer]: {as_written(str(error))}") from error
    return built
