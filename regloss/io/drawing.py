"""Shapes that people draw on images, as pixels: polygons, lines, ellipses, masks.

Coordinates are (x, y) to the right and down, in pixels, and pixel (row, column) is the square from (column, row) to
(column + 1, row + 1). A pixel belongs to an area if its centre does, and to a line if its centre is within half of the
line's width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.io.types import LabelMap, Size

Point = tuple[float, float]
"""(x, y)."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels of an image, cut to a rectangle around them.

    Attributes:
        top: first row of the rectangle.
        left: first column.
        mask: (h, w) bool; none of it lies outside of the image.
    """

    top: int
    left: int
    mask: Mask

    @property
    def window(self) -> tuple[slice, slice]:
        """The rectangle, as an index into an image (H, W)."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Shape(ABC):
    """What was drawn, of any size and anywhere; what lies outside of an image is cut off.

    Attributes:
        area: whether it fills an area, as a polygon does, or is a stroke.
    """

    area: bool

    @abstractmethod
    def region(self, size: Size) -> Region:
        """Its pixels in an image of (H, W)."""


@dataclass(frozen=True)
class Polygon(Shape):
    """One or several closed rings, filled by the even-odd rule: a ring within another is a hole.

    Attributes:
        rings: corners of each, three or more.
    """

    rings: Sequence[Sequence[Point]]
    area = True

    def region(self, size: Size) -> Region:
        """The pixels whose centres are inside."""
        corners = [np.asarray(ring, dtype=np.float64) for ring in self.rings]
        low, high = _box(np.concatenate(corners), 0.0, size)
        height, width = high[0] - low[0], high[1] - low[1]
        # A row's pixels change sides at every crossing to their left.
        crossings = np.zeros((height, width + 1), dtype=bool)
        for ring in corners:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                first, last = sorted((math.ceil(y0 - 0.5) - low[0], math.ceil(y1 - 0.5) - low[0]))
                rows = np.arange(max(first, 0), min(last, height))
                x = x0 + (rows + low[0] + 0.5 - y0) * ((x1 - x0) / (y1 - y0)) if rows.size else rows
                columns = np.clip(np.ceil(x - 0.5).astype(np.int64) - low[1], 0, width)
                crossings[rows, columns] ^= True  # rows are different, so that no index comes twice
        return Region(low[0], low[1], np.logical_xor.accumulate(crossings, axis=1)[:, :width])


@dataclass(frozen=True)
class Line(Shape):
    """An open line with round ends through points, or a dot at a single one.

    Attributes:
        points: one or more; each one's own pixel belongs to the line, however thin it is.
        width: in pixels.
    """

    points: Sequence[Point]
    width: float
    area = False

    def region(self, size: Size) -> Region:
        """The pixels near the line, and those that its points lie in."""
        places = np.asarray(self.points, dtype=np.float64)[:, ::-1]
        low, high = _box(places[:, ::-1], max(self.width / 2, 1.0), size)
        drawn = np.zeros((high[0] - low[0], high[1] - low[1]), dtype=np.uint8)
        draw_stroke(drawn, places - 0.5 - low, 1, self.width)
        own = np.floor(places).astype(np.int64) - low
        inside = ((own >= 0) & (own < drawn.shape)).all(axis=1)
        drawn[tuple(own[inside].T)] = 1
        return Region(low[0], low[1], drawn > 0)


@dataclass(frozen=True)
class Ellipse(Shape):
    """A filled ellipse, or circle.

    Attributes:
        center: of it.
        radii: along x and y before it is turned.
        angle: by which it is turned, in degrees, clockwise as seen.
    """

    center: Point
    radii: Point
    angle: float = 0.0
    area = True

    def region(self, size: Size) -> Region:
        """The pixels whose centres are inside."""
        reach = max(self.radii)
        low, high = _box(np.array([self.center]), reach, size)
        rows, columns = np.ogrid[low[0] : high[0], low[1] : high[1]]
        x, y = columns + 0.5 - self.center[0], rows + 0.5 - self.center[1]
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        along, across = cosine * x + sine * y, cosine * y - sine * x
        return Region(low[0], low[1], (along / self.radii[0]) ** 2 + (across / self.radii[1]) ** 2 <= 1)


@dataclass(frozen=True, eq=False)
class Bitmap(Shape):
    """Pixels one by one.

    Attributes:
        mask: (h, w) bool.
        top: row of the image where its first row lies.
        left: column where its first column lies.
        area: whether it fills an area, or holds strokes of a brush.
    """

    mask: Mask
    top: int = 0
    left: int = 0
    area: bool = True

    def region(self, size: Size) -> Region:
        """The pixels, less those that lie outside of the image."""
        height, width = self.mask.shape
        top, left = max(self.top, 0), max(self.left, 0)
        rows = slice(top - self.top, max(min(height, size[0] - self.top), top - self.top))
        columns = slice(left - self.left, max(min(width, size[1] - self.left), left - self.left))
        return Region(top, left, self.mask[rows, columns])


def rectangle(one: Point, other: Point, angle: float = 0.0, pivot: Point | None = None) -> Polygon:
    """A rectangle by two opposite corners.

    Args:
        one: a corner.
        other: the opposite one.
        angle: by which it is turned, in degrees, clockwise as seen.
        pivot: the point that it is turned about; None = its centre.
    """
    corners = np.array([one, (other[0], one[1]), other, (one[0], other[1])], dtype=np.float64)
    about = corners.mean(axis=0) if pivot is None else np.asarray(pivot, dtype=np.float64)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = (corners - about) @ np.array([[cosine, sine], [-sine, cosine]]) + about
    return Polygon([[(float(x), float(y)) for x, y in turned]])


def paint(labels: npt.NDArray[np.integer[Any]], shape: Shape, value: int, empty: int) -> tuple[int, int]:
    """Write a shape into a label map, in place.

    Args:
        labels: (H, W), drawn into.
        shape: what is drawn.
        value: what its pixels become.
        empty: the value of pixels where nothing was drawn.

    Returns:
        How many pixels the shape has in the image, and how many of them had another label.
    """
    region = shape.region((labels.shape[0], labels.shape[1]))
    under = labels[region.window]
    covered = int((region.mask & (under != empty) & (under != value)).sum())
    under[region.mask] = value
    return int(region.mask.sum()), covered


def draw_stroke(labels: LabelMap, points: npt.NDArray[np.float64], label: int, width: float) -> None:
    """Draw an open line with round ends into ``labels``, in place.

    Args:
        labels: (H, W) uint8, the map that is drawn into.
        points: (N, 2) row and column of its corners, pixel centres at whole numbers; N = 1 is a dot.
        label: the value to write.
        width: a pixel is written if its centre is within width / 2 of the line.
    """
    radius = width / 2
    ends = points[1:] if len(points) > 1 else points
    for start, end in zip(points, ends, strict=False):
        low = np.maximum(np.ceil(np.minimum(start, end) - radius), 0).astype(int)
        high = np.minimum(np.floor(np.maximum(start, end) + radius) + 1, labels.shape).astype(int)
        if (low >= high).any():
            continue
        rows, columns = np.ogrid[low[0] : high[0], low[1] : high[1]]
        down, right = end - start
        length = down * down + right * right
        # Each pixel's nearest point of the segment, as a fraction of the way from start to end.
        along = ((rows - start[0]) * down + (columns - start[1]) * right) / (length or 1.0)
        along = np.clip(along, 0, 1)
        distance = (rows - start[0] - along * down) ** 2 + (columns - start[1] - along * right) ** 2
        labels[low[0] : high[0], low[1] : high[1]][distance <= radius * radius] = label


def _box(points: npt.NDArray[np.float64], margin: float, size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """First row and column, and those behind the last, of what lies within a margin of points (N, 2) as (x, y)."""
    low = np.floor(points.min(axis=0) - margin)[::-1].clip(0, size).astype(np.int64)
    high = np.ceil(points.max(axis=0) + margin)[::-1].clip(0, size).astype(np.int64)
    return (int(low[0]), int(low[1])), (int(high[0]), int(high[1]))
