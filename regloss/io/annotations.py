"""Annotations of other programs: recognised, so that a message can say what lies there. None is read."""

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

_CONTENTS = {"JSON": (("shapes", "LabelMe"), ("annotations", "COCO")), "XML": (("bndbox", "PASCAL VOC box"),)}
"""Words by which files of an ending are told apart."""


def foreign_annotations(folders: Iterable[Path], stems: Collection[str]) -> str:
    """A sentence on files in ``folders`` that may hold the labels of images called ``stems``; "" if there are none.

    Files of the images' names count, and JSON files of any name that hold COCO's "annotations".
    """
    found: dict[str, list[str]] = {}
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            suffix = next((end for end in sorted(_KINDS, key=len, reverse=True) if path.name.lower().endswith(end)), "")
            if suffix and path.is_file() and not path.name.startswith("."):
                kind = _kind(path, _KINDS[suffix])
                if path.name[: -len(suffix)] in stems or kind == "COCO":
                    found.setdefault(kind, []).append(str(path))
    if not found:
        return ""
    parts = [
        f"{len(paths)} {kind} file{'s' if len(paths) > 1 else ''} ({listed(paths, 3)})" for kind, paths in found.items()
    ]
    return f"there are {' and '.join(parts)}, which regloss does not read; {_GUIDE}"


def _kind(path: Path, kind: str) -> str:
    """What a file is, by the words in its first megabyte."""
    if kind not in _CONTENTS:
        return kind
    with path.open("rb") as file:
        head = file.read(2**20)
    return next((name for word, name in _CONTENTS[kind] if word.encode() in head), kind)
