"""LabelMe: a JSON file beside each image.

    {"shapes": [{"label": "cell", "shape_type": "linestrip", "points": [[x, y], ...]}, ...],
     "imagePath": "a.png", "imageData": null or base64, "imageHeight": H, "imageWidth": W}

Types are polygon (also where none is given, as by old versions), rectangle, circle (its centre and a point on it),
line, linestrip, point, points, and mask: a PNG in base64 whose first pixel is the first of its two points.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regloss.errors import UsageError
from regloss.io.drawing import Bitmap, Ellipse, Line, Mask, Point, Polygon, Shape, rectangle
from regloss.io.foreign.source import (
    Drawn,
    Entry,
    ImageFinder,
    Options,
    Shapes,
    SourceImage,
    entry_of,
    holds,
    points_of,
    read_json,
)

_LEAST = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 1, "point": 1, "points": 1, "mask": 2}
"""Points that a shape of each type has at least."""


class LabelMe(Shapes):
    """A JSON file of LabelMe, or a folder of them, subfolders included."""

    name = "labelme"
    program = "LabelMe"
    heeds = frozenset({"stroke_width", "to"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._width = options.stroke_width
        finder = ImageFinder(source, options.images)
        found: dict[str, Entry] = {}
        for path in [source] if source.is_file() else sorted(source.rglob("*.json")):
            if not holds(path, ('"shapes"',)):
                self.skipped["JSON file without shapes"] += 1
                continue
            content = read_json(path)
            image = self._image(content, path, finder)
            if image is None:
                self.skipped[f"annotated image that is neither in {finder.described()} nor in its JSON file"] += 1
                continue
            size = None
            if content.get("imageHeight") is not None:
                size = (
                    entry_of(content, "imageHeight", int, str(path)),
                    entry_of(content, "imageWidth", int, str(path)),
                )
            shapes = entry_of(content, "shapes", list, str(path))
            drawn = [one for index, shape in enumerate(shapes) for one in self._drawn(shape, f"{path}, shape {index}")]
            name = path if source.is_file() else path.relative_to(source)
            found[name.as_posix()] = Entry(image, path, size, drawn)
        self.add(found)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether a JSON file has "shapes"."""
        files = [source] if source.suffix.lower() == ".json" else source.rglob("*.json") if source.is_dir() else []
        return any(path.is_file() and holds(path, ('"shapes"',)) for path in files)

    def _image(self, content: Any, path: Path, finder: ImageFinder) -> SourceImage | None:
        name = entry_of(content, "imagePath", str, str(path))
        found = finder.find(name, beside=path.parent) or finder.with_stem(path.stem)
        if found is None and content.get("imageData"):
            return _decoded(entry_of(content, "imageData", str, str(path)), f"{path}, imageData")
        return found

    def _drawn(self, shape: Any, where: str) -> list[Drawn]:
        label = entry_of(shape, "label", str, where)
        kind = shape.get("shape_type") or "polygon"
        if kind not in _LEAST:
            self.skipped[f"shape of type {kind!r}, which is not known"] += 1
            return []
        points = points_of(shape.get("points"), where)
        if len(points) < _LEAST[kind]:
            self.skipped[f"{kind} with fewer than {_LEAST[kind]} points"] += 1
            return []
        if kind == "circle" and points[0] == points[1]:
            self.skipped["circle without extent"] += 1
            return []
        if kind == "points":
            return [Drawn(label, Line([point], self._width)) for point in points]
        return [Drawn(label, self._shape(kind, points, shape, where))]

    def _shape(self, kind: str, points: list[Point], shape: Mapping[str, Any], where: str) -> Shape:
        if kind == "polygon":
            return Polygon([points])
        if kind == "rectangle":
            return rectangle(points[0], points[1])
        if kind == "circle":
            radius = math.dist(points[0], points[1])
            return Ellipse(points[0], (radius, radius))
        if kind == "mask":
            return Bitmap(_mask(shape, where), round(points[0][1]), round(points[0][0]))
        return Line(points, self._width)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{where} cannot be decoded: {error}") from error


def _mask(shape: Mapping[str, Any], where: str) -> Mask:
    data = _decoded(entry_of(shape, "mask", str, where), f"{where}, mask")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            return np.asarray(picture.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{where}: its mask cannot be read as PNG: {error}") from error
