"""A trained model in a program of one's own: an array in, labels or probabilities out.

model = regloss.load("runs/cells")
labels = model.predict(photograph)                        # (H, W) class indices
probabilities = model.predict_probabilities(photograph)   # (K, H, W)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.io.arrays import ImageLike, image_from_array
from regloss.io.reduction import reduce_image
from regloss.io.types import FloatImage, LabelMap
from regloss.training.config import Config
from regloss.training.devices import one_process
from regloss.training.model import Model, load_model, predict


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
        """Channels of the images that it was trained on, 1 or 3; others are converted."""
        return self.model.channels

    @property
    def config(self) -> Config:
        """The training's configuration."""
        return self.model.config

    def predict(self, image: ImageLike) -> LabelMap:
        """The most likely class of every pixel.

        Args:
            image: (H, W) or (H, W, C), a numpy array or a tensor: uint8, uint16, or floats in [0, 1]; see
                `regloss.io.arrays.image_from_array`.

        Returns:
            (H, W) uint8 indices into ``classes``.

        Raises:
            UsageError: an array that is no such image.
        """
        labels = self.logits(image_from_array(image, self.channels, self.model.window)).argmax(1)[0]
        found: LabelMap = labels.to(torch.uint8).cpu().numpy()
        return found

    def predict_probabilities(self, image: ImageLike) -> FloatImage:
        """The probability of every class at every pixel.

        Args:
            image: as of `predict`.

        Returns:
            (K, H, W) float32, which sum to 1 over the classes; the most likely class is ``argmax(0)``.

        Raises:
            UsageError: an array that is no such image.
        """
        logits = self.logits(image_from_array(image, self.channels, self.model.window))
        found: FloatImage = probabilities_of(logits)[0].cpu().numpy()
        return found

    def logits(self, image: FloatImage) -> Tensor:
        """Logits (1, K, H, W), on ``device``, of an image (C, H, W) in [0, 1] with the model's channels.

        Where training reduced the images (the data sets' setting ``reduce``), so does this, and enlarges the logits.
        """
        factor = self.config.data.component_settings().get("reduce", 1)
        reduced = image if factor == 1 else reduce_image(image, factor)
        logits = predict(self.model.segmenter, torch.from_numpy(reduced).unsqueeze(0).to(self.device))
        if factor > 1:
            enlarged = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
            logits = enlarged[..., : image.shape[1], : image.shape[2]]
        return logits


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


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax over the classes of (B, K, *S), in float32."""
    return logits.softmax(1, dtype=torch.float32)
