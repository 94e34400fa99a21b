"""Annotations of other programs, read as what was drawn on which image; `regloss.apps.import_data` writes folders.

`FORMATS` is the table of formats: a new one is a class that derives from `source.Annotations`, and one entry here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regloss.errors import UsageError
from regloss.io.foreign.coco import Coco
from regloss.io.foreign.cvat import ColorMaps, CvatXml
from regloss.io.foreign.label_files import ColorStrokes, LabelTiffs, Wsl4mis
from regloss.io.foreign.label_studio import LabelStudio
from regloss.io.foreign.labelme import LabelMe
from regloss.io.foreign.source import Annotations

FORMATS: Sequence[type[Annotations]] = (
    LabelMe,
    Coco,
    LabelStudio,
    CvatXml,
    ColorMaps,
    LabelTiffs,
    ColorStrokes,
    Wsl4mis,
)
"""All formats, in the order in which they are tried."""


def find_format(source: Path, name: str | None = None) -> type[Annotations]:
    """The format of a source: by its name, or the one that recognises it.

    Raises:
        UsageError: there is no such source or name, or several formats recognise it, or none does.
    """
    if not source.exists():
        raise UsageError(f"there is no file or folder {source}")
    names = {one.name: one for one in FORMATS}
    if name is not None:
        if name not in names:
            raise UsageError(f"there is no format {name!r}; there are {', '.join(names)}")
        return names[name]
    if source.suffix.lower() == ".zip":
        raise UsageError(f"{source} is packed; unpack it, and give the folder")
    found = [one for one in FORMATS if one.recognises(source)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{source} may be of {' or '.join(one.program for one in found)}; say which by --format "
            f"{' or '.join(one.name for one in found)}"
        )
    known = ", ".join(f"{one.name} ({one.program})" for one in FORMATS)
    raise UsageError(f"{source} is of no format that is recognised; --format names one of {known}")
