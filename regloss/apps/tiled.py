"""Images of any size, segmented tile by tile in memory that does not grow with them.

A tile is predicted with a margin around it, and only its own pixels are kept. Where the margin reaches as far as the
network looks, every pixel has all that it depends on, so that labels are those of the whole image at once, but for
rounding: `receptive_radius` finds out how far that is. Tiles begin at multiples of the network's strides, and mean and
spread of data.normalize = "image" are those of the whole image, found in a pass of their own. Layers, and networks that
look at all of an image (norm = "instance" or "group", pooling of whole images), see the tile and its margin instead.

`regloss.training.inference.by_windows` is for networks that have learnt from crops and see windows of that size, which
overlap and are averaged; with inference.window it does so within each tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regloss.apps.trained_model import TrainedModel, averaged
from regloss.errors import UsageError
from regloss.io.images import as_image
from regloss.io.outputs import replacing
from regloss.io.tiles import LABEL_TILE, ImageParts, open_parts, write_label_rows, write_label_tiles
from regloss.io.types import FloatImage, LabelMap, Size
from regloss.io.windows import Window
from regloss.report.overlays import outlined

LARGE = 4096**2
"""Pixels of images that are segmented by tiles without being asked to."""

TILE = 1024
"""Rows and columns of a tile, without its margin, where nobody says otherwise."""

LABEL_WRITERS = {"png": (".png", write_label_rows), "tiff": (".tif", write_label_tiles)}
"""Formats of label maps by name: the end of a file's name, and what writes bands of rows."""

_STRIDE = 64  # pixels, of the coarsest grid that networks here work on, and of most others
_MARGIN = 128  # pixels, where the network looks at the whole image
_FARTHEST = 512  # pixels, beyond which a network counts as looking at the whole image
_OVERVIEW = 2000  # pixels, of the longer side of the overlay


@dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Attributes:
        tile: rows and columns of a tile, a multiple of ``step`` and of `LABEL_TILE`.
        margin: pixels around it that the network sees too, a multiple of ``step``.
        step: of the places where what the network sees begins.
        least: pixels along each axis that it sees at least, where the image has them.
        exact: whether the margin reaches as far as the network looks.
    """

    tile: int
    margin: int
    step: int
    least: int
    exact: bool

    @classmethod
    def of(cls, models: Sequence[TrainedModel], tile: int = TILE) -> Tiling:
        """For some models together.

        Raises:
            UsageError: ``tile`` is no positive number.
        """
        if tile < 1:
            raise UsageError(f"A tile has 1 pixel or more along each axis; got {tile}.")
        factors = [model.config.data.component_settings().get("reduce", 1) for model in models]
        step = _STRIDE * math.lcm(*factors)
        radii = [receptive_radius(model) for model in models]
        farthest = max(
            _MARGIN if radius is None else radius * factor for radius, factor in zip(radii, factors, strict=True)
        )
        smallest = [model.model.segmenter.smallest for model in models]
        numbers = [max(each) if isinstance(each, tuple) else each or 0 for each in smallest]
        return cls(
            tile=math.lcm(step, LABEL_TILE) * math.ceil(tile / math.lcm(step, LABEL_TILE)),
            margin=step * math.ceil(farthest / step),
            step=step,
            least=max(number * factor for number, factor in zip(numbers, factors, strict=True)),
            exact=None not in radii,
        )

    def seen(self, start: int, length: int) -> slice:
        """What the network sees along an axis of ``length`` for the tile that begins at ``start``."""
        stop = min(start + self.tile + self.margin, length)
        begin = max(0, min(start - self.margin, stop - self.least))
        return slice(begin // self.step * self.step, stop)


def receptive_radius(model: TrainedModel) -> int | None:
    """How many pixels away a network looks for a label, on the images that it sees (after ``reduce``).

    The farthest pixel on which the logits of the middle pixel depend, by their derivatives at two random images. None
    where that is farther than 512, or all of the image: with a layer, or a normalisation over the image.
    """
    segmenter = model.model.segmenter
    if segmenter.layer is not None:
        return None
    training = segmenter.training
    segmenter.eval()
    kind = next((p.dtype for p in segmenter.parameters()), torch.float32)
    generator = torch.Generator().manual_seed(0)
    half = _STRIDE
    try:
        while half <= _FARTHEST:
            reached = 0
            for _ in range(2):
                image = torch.rand(1, model.channels, 2 * half, 2 * half, generator=generator).to(model.device, kind)
                image.requires_grad_(True)
                with torch.enable_grad():
                    network_input = image if segmenter.normalize != "image" else (image - 0.5) / 0.3
                    logits = segmenter.network(network_input)
                    (slope,) = torch.autograd.grad(logits[0, :, half, half].square().sum(), image)
                places = (slope[0] != 0).any(0).nonzero()
                if len(places):
                    reached = max(reached, int((places - half).abs().max()))
            if reached < half - 1:
                return reached
            half *= 2
    finally:
        segmenter.train(training)
    return None


def predict_tiled(
    models: Sequence[TrainedModel],
    path: Path,
    labels: Path,
    overlay: Path,
    *,
    tiling: Tiling,
    window: Window | None = None,
    format: str = "png",
    callback: Callable[[str], object] = lambda message: None,
    progress: Callable[[float], object] = lambda fraction: None,
) -> None:
    """Segment an image by tiles; see the top of this module.

    Args:
        models: whose probabilities are averaged, of images of two axes.
        path: the image. TIFF, NPY and HDF5 are read by parts; others are decoded as a whole, and kept as stored.
        labels: file of the label map, which is complete or absent.
        overlay: PNG of an overview of at most 2000 pixels.
        tiling: how it is cut.
        window: which values of the file become 0 and 1.
        format: "png" or "tiff".
        callback: called with sentences on the image.
        progress: called with the fraction that is done.

    Raises:
        UsageError: the image cannot be read, or is not what the models take.
    """
    with open_parts(path) as parts, ExitStack() as stack:
        work = _Work(models, path, parts, tiling, window)
        if any(model.model.segmenter.normalize == "image" for model in models):
            mean, variance = work.statistics()
            for model in models:
                stack.enter_context(model.model.segmenter.normalised_by(mean, variance))
        with replacing(labels) as temporary:
            LABEL_WRITERS[format][1](temporary, parts.size, work.bands(progress), models[0].colors)
            with replacing(overlay) as shown:
                picture = outlined(work.overview, work.overview_labels, models[0].colors)
                Image.fromarray(picture).save(shown, format="PNG")
        if work.cut > 0.01:
            callback(f"{path.name}: {100 * work.cut:.0f} % of its values lie outside of the window and are cut off")


class _Work:
    """One image on its way."""

    def __init__(
        self, models: Sequence[TrainedModel], path: Path, parts: ImageParts, tiling: Tiling, window: Window | None
    ) -> None:
        self.models, self.path, self.parts, self.tiling, self.window = models, path, parts, tiling, window
        self.stride = math.ceil(max(parts.size) / _OVERVIEW)
        size = tuple(math.ceil(length / self.stride) for length in parts.size)
        self.overview: FloatImage = np.zeros((models[0].channels, *size), dtype=np.float32)
        self.overview_labels: LabelMap = np.zeros(size, dtype=np.uint8)
        self.cut = 0.0

    def image(self, rows: slice, columns: slice) -> FloatImage:
        """A rectangle in [0, 1], with the models' channels."""
        return as_image(self.parts.read(rows, columns), self.path, self.models[0].channels, self.window)

    def statistics(self) -> tuple[float, float]:
        """Mean and variance over all pixels and channels."""
        count, total, squares = 0, 0.0, 0.0
        for rows, columns in rectangles(self.parts.size, self.tiling.tile):
            values = self.image(rows, columns).astype(np.float64)
            count, total, squares = count + values.size, total + values.sum(), squares + (values**2).sum()
        mean = total / count
        return mean, max(squares / count - mean**2, 0.0)

    def bands(self, progress: Callable[[float], object]) -> Iterator[LabelMap]:
        """Labels (h, W), a row of tiles at a time."""
        height, width = self.parts.size
        outside = 0
        for top in range(0, height, self.tiling.tile):
            rows = slice(top, min(top + self.tiling.tile, height))
            band = np.empty((rows.stop - top, width), dtype=np.uint8)
            for left in range(0, width, self.tiling.tile):
                columns = slice(left, min(left + self.tiling.tile, width))
                seen = self.tiling.seen(top, height), self.tiling.seen(left, width)
                stored = self.parts.read(*seen)
                image = as_image(stored, self.path, self.models[0].channels, self.window)
                logits = averaged([model.logits(image) for model in self.models])
                own = (_within(rows, seen[0]), _within(columns, seen[1]))
                found = logits[0].argmax(0)[own].to(torch.uint8).cpu().numpy()
                band[:, columns] = found
                if self.window is not None and (self.window.bits is None or stored.dtype == np.uint16):
                    values = stored[(slice(None), *own)]
                    outside += int(((values < self.window.low) | (values > self.window.high)).sum()) // len(values)
                self._keep_overview(rows, columns, image[(slice(None), *own)], found)
                progress((top * width + (rows.stop - top) * columns.stop) / (height * width))
            yield band
        self.cut = outside / (height * width)

    def _keep_overview(self, rows: slice, columns: slice, image: FloatImage, labels: LabelMap) -> None:
        """Every so many pixels of a tile."""
        first = tuple(-part.start % self.stride for part in (rows, columns))
        place = tuple(
            slice(math.ceil(part.start / self.stride), math.ceil(part.stop / self.stride)) for part in (rows, columns)
        )
        self.overview[(slice(None), *place)] = image[:, first[0] :: self.stride, first[1] :: self.stride]
        self.overview_labels[place] = labels[first[0] :: self.stride, first[1] :: self.stride]


def _within(part: slice, whole: slice) -> slice:
    """A part, counted from where the whole begins."""
    return slice(part.start - whole.start, part.stop - whole.start)


def rectangles(size: Size, tile: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of an image."""
    for top in range(0, size[0], tile):
        for left in range(0, size[1], tile):
            yield slice(top, min(top + tile, size[0])), slice(left, min(left + tile, size[1]))


def value_range(path: Path) -> tuple[int, int]:
    """Least and largest stored value of an image of whole numbers, read by parts."""
    with open_parts(path) as parts:
        ends = [(int(part.min()), int(part.max())) for part in (parts.read(*at) for at in rectangles(parts.size, TILE))]
    return min(low for low, _ in ends), max(high for _, high in ends)
