"""Annotations of other programs where label maps are expected: recognised, so that a message can say what lies there.

`regloss.io.foreign` reads some of them, for ``regloss data import``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from regloss.errors import listed

_GUIDE = "docs/guide/data.md shows how to draw them as PNG files of class indices"

_KINDS = {
    ".json": "JSON",
    ".xml": "XML",
    ".txt": "text",
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".mat": "MATLAB",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".roi": "ImageJ",
    ".geojson": "GeoJSON",
}
"""Endings that annotations have, and what they are called where nothing more is known."""

_CONTENTS = {
    "JSON": (("shapes", "LabelMe"), ("categories", "COCO"), ("annotations", "Label Studio")),
    "XML": (("bndbox", "PASCAL VOC box"), ("<image ", "CVAT")),
}
"""Words by which files of an ending are told apart."""

_OF_ALL_IMAGES = ("COCO", "Label Studio", "CVAT")
"""Kinds with one file for all images, of any name."""

_IMPORTED = ("LabelMe", *_OF_ALL_IMAGES)
"""Kinds that ``regloss data import`` reads."""


def foreign_annotations(folders: Iterable[Path], stems: Collection[str]) -> str:
    """A sentence on files in ``folders`` that may hold the labels of images called ``stems``; "" if there are none.

    Files of the images' names count, and those of any name that programs write for all images.
    """
    found: dict[str, list[str]] = {}
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            suffix = next((end for end in sorted(_KINDS, key=len, reverse=True) if path.name.lower().endswith(end)), "")
            if suffix and path.is_file() and not path.name.startswith("."):
                kind = _kind(path, _KINDS[suffix])
                if path.name[: -len(suffix)] in stems or kind in _OF_ALL_IMAGES:
                    found.setdefault(kind, []).append(str(path))
    if not found:
        return ""
    parts = [
        f"{len(paths)} {kind} file{'s' if len(paths) > 1 else ''} ({listed(paths, 3)})" for kind, paths in found.items()
    ]
    ways = []
    if found.keys() & set(_IMPORTED):
        ways.append("`regloss data import` makes a data set of what LabelMe, COCO, Label Studio and CVAT write")
    if found.keys() - set(_IMPORTED):
        ways.append(f"label maps are not read from {' and '.join(sorted(found.keys() - set(_IMPORTED)))}: {_GUIDE}")
    return f"there are {' and '.join(parts)}; {'; '.join(ways)}"


def _kind(path: Path, kind: str) -> str:
    """What a file is, by the words in its first megabyte."""
    if kind not in _CONTENTS:
        return kind
    with path.open("rb") as file:
        head = file.read(2**20)
    return next((name for word, name in _CONTENTS[kind] if word.encode() in head), kind)
