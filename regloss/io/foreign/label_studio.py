"""Label Studio: one JSON file for all tasks (its export "JSON").

    [{"data": {"image": "/data/upload/1/0f9e8d7c-a.png"},
      "annotations": [{"was_cancelled": false, "result": [
          {"original_width": W, "original_height": H, "type": "brushlabels",
           "value": {"format": "rle", "rle": [...], "brushlabels": ["cell"]}}, ...]}]}, ...]

Other types are polygonlabels, rectanglelabels, ellipselabels and keypointlabels, whose numbers are percents of the
image's width or height.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from regloss.errors import UsageError
from regloss.io.drawing import Ellipse, Line, Polygon, Shape, rectangle
from regloss.io.foreign.run_lengths import LabelStudioBrush
from regloss.io.foreign.source import (
    Drawn,
    Entry,
    ImageFinder,
    Options,
    Shapes,
    entry_of,
    holds,
    number,
    points_of,
    read_json,
)
from regloss.io.images import IMAGE_SUFFIXES
from regloss.io.types import Size

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # how files are renamed that are uploaded through its page


class LabelStudio(Shapes):
    """The JSON file of a project, or a folder with it."""

    name = "label-studio"
    program = "Label Studio"
    heeds = frozenset({"stroke_width", "to"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._width = options.stroke_width
        paths = _files(source)
        if len(paths) != 1:
            raise UsageError(f"{source} holds {len(paths)} exports of Label Studio; name one file")
        (path,) = paths
        finder = ImageFinder(path, options.images)
        found: dict[str, Entry] = {}
        for index, task in enumerate(read_json(path)):
            where = f"{path}, task {task.get('id', index) if isinstance(task, Mapping) else index}"
            if isinstance(task, Mapping) and "annotations" not in task:
                raise UsageError(
                    f"{where} has no 'annotations', as in the export JSON-MIN; export the project as JSON instead"
                )
            name = self._image_name(entry_of(task, "data", dict, where), where)
            results = self._results(entry_of(task, "annotations", list, where), where)
            if results is None:
                continue
            uploaded = _UPLOADED.fullmatch(PurePosixPath(name).name)
            image = finder.find(name, *([uploaded[1]] if uploaded else []))
            if image is None:
                self.skipped[f"image that is not in {finder.described()}"] += 1
                continue
            size, drawn = self._all_drawn(results, where)
            if name in found:
                self.skipped["task on an image that another task is on, too"] += 1
                continue
            found[uploaded[1] if uploaded and image.name == uploaded[1] else name] = Entry(image, path, size, drawn)
        self.add(found)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether there is a JSON file that is a list of tasks."""
        return bool(_files(source))

    def _image_name(self, data: Mapping[str, Any], where: str) -> str:
        """The path of the image: the one value of ``data`` that ends like a path of an image."""
        for value in data.values():
            if isinstance(value, str):
                url = urlsplit(value)
                path = parse_qs(url.query).get("d", [unquote(url.path)])[0]
                if path.lower().endswith(IMAGE_SUFFIXES):
                    return path.lstrip("/")
        raise UsageError(f"{where}: its data name no image ({', '.join(IMAGE_SUFFIXES)}): {dict(data)}")

    def _results(self, annotations: list[Any], where: str) -> list[Any] | None:
        """What the first annotator who went through with it has drawn; None = nobody has."""
        done = [one for one in annotations if not (isinstance(one, Mapping) and one.get("was_cancelled"))]
        self.skipped["annotation that was cancelled"] += len(annotations) - len(done)
        if not done:
            self.skipped["task without annotation"] += 1
            return None
        self.skipped["further annotation of an image that has one"] += len(done) - 1
        results: list[Any] = entry_of(done[0], "result", list, where)
        return results

    def _all_drawn(self, results: list[Any], where: str) -> tuple[Size | None, list[Drawn]]:
        size: Size | None = None
        drawn: list[Drawn] = []
        names: dict[str, str] = {}  # brush strokes whose label stands in a result of its own, of the same id
        for result in results:
            value = result.get("value") if isinstance(result, Mapping) else None
            if isinstance(value, Mapping) and value.get("labels"):
                names[str(result.get("id"))] = str(value["labels"][0])
        for number_, result in enumerate(results):
            kind, at = entry_of(result, "type", str, where), f"{where}, result {number_}"
            if kind == "labels":
                continue
            if kind not in _KINDS:
                self.skipped[f"result of type {kind!r}"] += 1
                continue
            value = entry_of(result, "value", dict, at)
            size = (entry_of(result, "original_height", int, at), entry_of(result, "original_width", int, at))
            if result.get("image_rotation"):
                raise UsageError(
                    f"{at}: the image was turned by {result['image_rotation']} degrees while annotating; "
                    "turn the image's file, and annotate it as it is"
                )
            labels = value.get(kind) or [names.get(str(result.get("id")))]
            if not labels[0]:
                self.skipped[f"{kind} without a label"] += 1
                continue
            self.skipped["second label of one shape"] += len(labels) - 1
            shape = self._shape(kind.removesuffix("labels"), value, size, at)
            if shape is not None:
                drawn.append(Drawn(str(labels[0]), shape))
        return size, drawn

    def _shape(self, kind: str, value: Mapping[str, Any], size: Size, where: str) -> Shape | None:
        def pixels(key: str, side: int) -> float:
            return number(value.get(key), f"{where}, {key}") * size[side] / 100

        height, width = 0, 1
        if kind == "brush":
            if value.get("format") != "rle":
                raise UsageError(f"{where}: its format is {value.get('format')!r}; brush strokes are read as 'rle'")
            packed = entry_of(value, "rle", list, where)
            try:
                return LabelStudioBrush(bytes(packed), size, where)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{where}: its run lengths are no bytes: {error}") from error
        if kind == "polygon":
            points = [(x * size[1] / 100, y * size[0] / 100) for x, y in points_of(value.get("points"), where)]
            if len(points) < 3:
                self.skipped["polygon with fewer than 3 points"] += 1
                return None
            return Polygon([points])
        corner = (pixels("x", width), pixels("y", height))
        angle = number(value.get("rotation", 0), f"{where}, rotation")
        if kind == "rectangle":
            opposite = (corner[0] + pixels("width", width), corner[1] + pixels("height", height))
            return rectangle(corner, opposite, angle, corner)
        if kind == "ellipse":
            radii = (pixels("radiusX", width), pixels("radiusY", height))
            if min(radii) <= 0:
                self.skipped["ellipse without extent"] += 1
                return None
            return Ellipse(corner, radii, angle)
        return Line([corner], max(self._width, pixels("width", width)) if "width" in value else self._width)


_KINDS = frozenset({"brushlabels", "brush", "polygonlabels", "polygon", "rectanglelabels", "rectangle", "ellipselabels",
                    "ellipse", "keypointlabels", "keypoint"})  # fmt: skip


def _files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.glob("*.json")) if source.is_dir() else []
    return [path for path in files if path.suffix.lower() == ".json" and _is_list_of_tasks(path)]


def _is_list_of_tasks(path: Path) -> bool:
    with path.open("rb") as file:
        is_list = file.read(16).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    return is_list and (holds(path, ('"result"',)) or holds(path, ('"annotation_id"', '"annotator"')))
