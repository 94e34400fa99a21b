"""A trained model in a program of one's own: an array or a file in, labels or probabilities out.

model = regloss.load("runs/cells")
labels = model.predict(photograph)                        # (H, W) class indices
probabilities = model.predict_probabilities(photograph)   # (K, H, W)

model = regloss.load("runs/prostate")                     # that has learnt from volumes, or from their slices
labels = model.predict("scan.nii.gz")                     # (D, H, W), on the file's grid
labels = model.predict(values, spacing=(3.0, 0.5, 0.5))   # (D, H, W) values as a scanner stores them, and mm
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.checks import check_spacing
from regloss.errors import UsageError
from regloss.io.arrays import ImageLike, image_from_array, volume_from_array
from regloss.io.cases import Intensities, read_case, rounded_spacing
from regloss.io.images import as_image, read_stored
from regloss.io.reduction import reduce_image
from regloss.io.types import FloatImage, LabelMap, PathLike
from regloss.io.volumes import is_volume
from regloss.io.windows import Window
from regloss.registry import get, settings
from regloss.training.config import Config
from regloss.training.devices import one_process
from regloss.training.model import Model, check_run, load_model, predict

Source: TypeAlias = ImageLike | PathLike | Sequence[PathLike]
"""What is segmented: an array, a file, or the files of a volume's channels."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model that a training has left, ready to segment images of any size; made by `load`.

    Attributes:
        model: network with its input normalisation and layer, configuration, classes and colours.
        device: where it computes.
    """

    model: Model
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names: names of the values in labels, in their order."""
        return self.model.classes

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """One RGB triple of 0..255 for each class."""
        return self.model.colors

    @property
    def channels(self) -> int:
        """Channels of the images that it was trained on; grey and RGB are turned into each other."""
        return self.model.channels

    @property
    def config(self) -> Config:
        """The training's configuration."""
        return self.model.config

    def dataset_setting(self, name: str, otherwise: Any = None) -> Any:
        """A setting of the training's data set, or its default; ``otherwise`` where the data set has none such."""
        data = self.config.data
        found = settings(get("dataset", data.dataset)).get(name)
        return data.component_settings().get(name, otherwise if found is None else found.default)

    def intensities(self, window: Window | None = None) -> Intensities:
        """What becomes of a volume's values: as in training, or by ``window``."""
        return Intensities(window or self.model.window, self.dataset_setting("percentiles", (0.5, 99.5)))

    def predict(self, image: Source, *, spacing: Sequence[float] | None = None) -> LabelMap:
        """The most likely class of every pixel.

        Args:
            image: (H, W) or (H, W, C), a numpy array or a tensor: uint8, uint16, or floats in [0, 1]; see
                `regloss.io.arrays.image_from_array`. For a model that has learnt from volumes, or from their slices,
                a volume (D, H, W), or (C, D, H, W) with several channels, in the values that files store. Or a file
                of either, of a volume one with all channels or one for each; see `regloss.io.images` and
                `regloss.io.volumes`.
            spacing: of an array's axes, in mm; None = not known. Models that have learnt at one spacing resample by it,
                layers heed it, and slices follow each other along the axis of the largest. Files say their own; for
                those that do not it stands in.

        Returns:
            (H, W) or (D, H, W) uint8 indices into ``classes``, on the grid of the image.

        Raises:
            UsageError: an array that is no such image, a file that cannot be read, no spacing where one is needed.
        """
        labels = self._logits_of(image, spacing).argmax(1)[0]
        found: LabelMap = labels.to(torch.uint8).cpu().numpy()
        return found

    def predict_probabilities(self, image: Source, *, spacing: Sequence[float] | None = None) -> FloatImage:
        """The probability of every class at every pixel.

        Args:
            image: as of `predict`.
            spacing: as of `predict`.

        Returns:
            (K, H, W) or (K, D, H, W) float32, which sum to 1 over the classes; the most likely class is ``argmax(0)``.

        Raises:
            UsageError: as `predict`.
        """
        found: FloatImage = probabilities_of(self._logits_of(image, spacing))[0].cpu().numpy()
        return found

    def _logits_of(self, image: Source, spacing: Sequence[float] | None) -> Tensor:
        """Logits (1, K, *S) of an array or a file."""
        of_volumes = self.dataset_setting("dims") is not None
        if isinstance(image, np.ndarray | Tensor):
            steps = check_spacing(spacing, 3 if of_volumes else 2)
            if not of_volumes:
                return self.logits(image_from_array(image, self.channels, self.model.window), steps)
            return self.volume_logits(volume_from_array(image, self.channels, self.intensities()), steps)
        files = [image] if isinstance(image, str | os.PathLike) else image
        if not isinstance(files, Sequence) or not files or not all(isinstance(f, str | os.PathLike) for f in files):
            raise UsageError(f"An image is an array, a tensor or a file; got {type(image).__name__}.")
        paths = [Path(file) for file in files]
        if not (of_volumes or is_volume(paths[0])):
            pixels = as_image(read_stored(paths[0]), paths[0], self.channels, self.model.window)
            return self.logits(pixels, check_spacing(spacing, 2))
        steps = self.dataset_setting("file_spacing") if spacing is None else check_spacing(spacing, 3)
        volume, geometry = read_case(paths, self.intensities(), steps, self.channels)
        return self.volume_logits(volume, rounded_spacing(geometry))

    def logits(self, image: FloatImage, spacing: Sequence[float] | None = None) -> Tensor:
        """Logits (1, K, H, W), on ``device``, of an image (C, H, W) in [0, 1] with the model's channels.

        Where training reduced the images (the data sets' setting ``reduce``), so does this, and enlarges the logits.
        """
        factor = self.config.data.component_settings().get("reduce", 1)
        reduced = image if factor == 1 else reduce_image(image, factor)
        logits = predict(self.model.segmenter, torch.from_numpy(reduced).unsqueeze(0).to(self.device), spacing)
        if factor > 1:
            enlarged = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
            logits = enlarged[..., : image.shape[1], : image.shape[2]]
        return logits

    def volume_logits(self, volume: FloatImage, spacing: Sequence[float] | None = None) -> Tensor:
        """Logits (1, K, *S), on ``device``, of a volume (C, *S) in [0, 1]; of a model of images, slice by slice.

        Slices are cut along the data set's ``axis``, or along that of the largest spacing.

        Args:
            volume: with the model's channels.
            spacing: of the axes of S, in mm; None = not known.

        Raises:
            UsageError: another number of channels; the model has learnt at one spacing, and this one is not known.
        """
        if volume.shape[0] != self.channels:
            raise UsageError(f"The model takes {self.channels} channels; the volume has {volume.shape[0]}.")
        if self.dataset_setting("dims", 2) == 3:
            return predict(self.model.segmenter, torch.from_numpy(volume).unsqueeze(0).to(self.device), spacing)
        across = self.dataset_setting("axis")
        if across is None:
            across = 0 if spacing is None else int(np.argmax(spacing))
        steps = None if spacing is None else [step for axis, step in enumerate(spacing) if axis != across]
        slices = [self.logits(np.ascontiguousarray(part), steps) for part in np.moveaxis(volume, across + 1, 0)]
        return torch.stack(slices, across + 2)


def load(run: Path | str, changes: Sequence[str] = (), *, device: torch.device | str | None = None) -> TrainedModel:
    """The model that a training has left in its output folder; of one still running, its last checkpoint.

    Args:
        run: the folder.
        changes: ``section.key=value`` settings that replace the run's: more steps of the layer, say.
        device: where to compute; None = a GPU if there is one, unless the run was told to use the CPU.

    Raises:
        UsageError: ``run`` is no such folder, or see `regloss.training.model.load_model`.
    """
    model = load_model(Path(run), changes)
    chosen = one_process(model.config).device if device is None else torch.device(device)
    model.segmenter.to(chosen)
    return TrainedModel(model, chosen)


def check_runs(runs: Sequence[Path]) -> None:
    """Raise `UsageError` for the first that is not the output folder of a training."""
    for run in runs:
        check_run(run)


def load_several(
    runs: Sequence[Path], changes: Sequence[str] = (), *, device: torch.device | None = None
) -> list[TrainedModel]:
    """The models of several runs, to be averaged; see `load`.

    Raises:
        UsageError: there is none, or they are of different classes or channels; and see `load`.
    """
    if not runs:
        raise UsageError("There is no run to predict with.")
    models = [load(run, changes, device=device) for run in runs]
    for run, model in zip(runs, models, strict=True):
        if (model.classes, model.channels) != (models[0].classes, models[0].channels):
            raise UsageError(
                f"Models that are averaged have the same classes and channels; {runs[0]} has {list(models[0].classes)} "
                f"and {models[0].channels}, {run} {list(model.classes)} and {model.channels}."
            )
    return models


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """Logits of the mean of several models' probabilities; those of one are left as they are."""
    if len(logits) == 1:
        return logits[0]
    logarithms = torch.stack([each.log_softmax(1) for each in logits])
    return logarithms.logsumexp(0) - math.log(len(logits))


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax over the classes of (B, K, *S), in float32."""
    return logits.softmax(1, dtype=torch.float32)
