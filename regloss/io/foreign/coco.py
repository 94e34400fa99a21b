"""COCO: one JSON file for all images.

    {"images": [{"id": 1, "file_name": "a.png", "height": H, "width": W}, ...],
     "annotations": [{"image_id": 1, "category_id": 7, "segmentation": [[x, y, x, y, ...], ...]}, ...],
     "categories": [{"id": 7, "name": "cell"}, ...]}

A segmentation is a list of polygons, whose union it is, or {"size": [H, W], "counts": runs down the columns}, as
numbers or as compressed text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from regloss.errors import UsageError
from regloss.io.drawing import Polygon
from regloss.io.foreign.run_lengths import RunLengths
from regloss.io.foreign.source import (
    Drawn,
    Entry,
    ImageFinder,
    Options,
    Shapes,
    entry_of,
    holds,
    number,
    read_json,
)

_WORDS = ('"images"', '"annotations"', '"categories"')


class Coco(Shapes):
    """A JSON file in COCO's format, or a folder with one, as it stands or in "annotations"."""

    name = "coco"
    program = "COCO"
    heeds = frozenset({"to"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        path = next(iter(_files(source)))
        others = [str(other) for other in _files(source) if other != path]
        if others:
            raise UsageError(f"{source} holds several files of COCO, {path} and {', '.join(others)}; name one of them")
        content = read_json(path)
        names = {
            entry_of(category, "id", int, f"{path}, categories"): entry_of(category, "name", str, f"{path}, categories")
            for category in entry_of(content, "categories", list, str(path))
        }
        self.classes = tuple(dict.fromkeys(names[key] for key in sorted(names)))
        finder = ImageFinder(path, options.images)
        drawn: dict[int, list[Drawn]] = {}
        images: dict[int, tuple[str, Entry]] = {}
        absent = set()
        for image in entry_of(content, "images", list, str(path)):
            key, name = (
                entry_of(image, "id", int, f"{path}, images"),
                entry_of(image, "file_name", str, f"{path}, images"),
            )
            size = tuple(entry_of(image, side, int, f"{path}, image {name}") for side in ("height", "width"))
            found = finder.find(name)
            drawn[key] = []
            if found is None:
                self.skipped[f"image that is not in {finder.described()}"] += 1
                absent.add(key)
            else:
                images[key] = (name, Entry(found, path, (size[0], size[1]), drawn[key]))
        for number_, annotation in enumerate(entry_of(content, "annotations", list, str(path))):
            where = (
                f"{path}, annotation {annotation.get('id', number_) if isinstance(annotation, Mapping) else number_}"
            )
            image_id, category = (entry_of(annotation, key, int, where) for key in ("image_id", "category_id"))
            if image_id not in drawn or category not in names:
                raise UsageError(f"{where} is of image {image_id} and category {category}; the file does not list both")
            if image_id not in absent:
                drawn[image_id] += self._drawn(annotation.get("segmentation"), names[category], where)
        self.add(dict(images.values()))

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether there is a JSON file with "images", "annotations" and "categories"."""
        return any(True for _ in _files(source))

    def _drawn(self, segmentation: Any, label: str, where: str) -> Iterable[Drawn]:
        if isinstance(segmentation, Mapping):
            height, width = entry_of(segmentation, "size", list, where)
            counts = entry_of(segmentation, "counts", (list, str), where)
            if isinstance(counts, list):
                counts = [int(number(count, where)) for count in counts]
            return [Drawn(label, RunLengths(counts, (int(height), int(width)), "columns", where))]
        if not segmentation:
            self.skipped["annotation without a segmentation (a box, or key points)"] += 1
            return []
        if not isinstance(segmentation, list) or not all(isinstance(ring, list) for ring in segmentation):
            raise UsageError(f"{where}: a segmentation is a list of polygons [[x, y, x, y, ...]], or run lengths")
        found = []
        for ring in segmentation:
            values = [number(value, where) for value in ring]
            if len(values) < 6 or len(values) % 2:
                self.skipped["polygon of fewer than three points"] += 1
            else:
                found.append(Drawn(label, Polygon([list(zip(values[::2], values[1::2], strict=True))])))
        return found


def _files(source: Path) -> list[Path]:
    """JSON files of COCO: ``source``, or those in it, or in its folder "annotations"."""
    if source.is_file():
        files = [source] if source.suffix.lower() == ".json" else []
    else:
        files = [*sorted(source.glob("*.json")), *sorted(source.glob("annotations/*.json"))]
    return [path for path in files if holds(path, _WORDS)]
