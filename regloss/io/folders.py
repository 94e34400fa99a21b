"""Finding files: folders by stem, roots of data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from regloss.errors import UsageError, listed
from regloss.io.dicom import has_series
from regloss.io.images import IMAGE_SUFFIXES
from regloss.io.labels import LABEL_SUFFIXES
from regloss.io.types import PathLike


def index_folder(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, *, series: bool = False) -> dict[str, Path]:
    """Files of a folder by their stem (name without ending), in the order of the stems.

    Hidden files and files of other endings are left out.

    Args:
        folder: where to look; its subfolders are not searched.
        suffixes: the endings that count, in lower case, ".png" or ".nii.gz"; files may write them in any case.
        series: whether subfolders with DICOM files count, each as one volume of its name.

    Raises:
        UsageError: two files have one stem, or ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
        if suffix is not None and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.name[: -len(suffix)], []).append(path)
        elif series and has_series(path):
            found.setdefault(path.name, []).append(path)
    double = [" and ".join(path.name for path in paths) for paths in found.values() if len(paths) > 1]
    if double:
        raise UsageError(f"files of {folder} share a name, so that it is not clear which is meant: {listed(double)}")
    return {stem: found[stem][0] for stem in sorted(found)}


def left_out(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, *, series: bool = False) -> str:
    """A sentence on what `index_folder` leaves out of a folder: subfolders and files of other endings; "" if nothing.

    Hidden files do not count.
    """
    endings: dict[str, int] = {}
    inner: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not (series and has_series(path)):
                inner.append(path.name)
        elif not path.name.lower().endswith(tuple(suffixes)):
            ending = path.suffix.lower() or "no ending"
            endings[ending] = endings.get(ending, 0) + 1
    parts = []
    if endings:
        counts = listed(f"{count} {ending}" for ending, count in sorted(endings.items()))
        parts.append(f"{sum(endings.values())} files that are not of the kinds {', '.join(suffixes)}: {counts}")
    if inner:
        parts.append(f"{len(inner)} subfolders, which are not searched: {listed(inner)}")
    return f"Left out of {folder}: {'; '.join(parts)}." if parts else ""


def index_label_folder(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by stem, refusing pictures in formats that label maps do not have.

    Raises:
        UsageError: as `index_folder`; or the folder holds JPEG files, say.
    """
    found = index_folder(folder)
    wrong = [path.name for path in found.values() if not path.name.lower().endswith(LABEL_SUFFIXES)]
    if wrong:
        raise UsageError(
            f"label maps are PNG files holding class indices (or {', '.join(LABEL_SUFFIXES[1:])}), but {folder} holds "
            f"{listed(wrong)}; save them as PNG "
            "from their source (JPEG compression changes the indices, so converting a JPEG does not bring them back)"
        )
    return found


def find_root(path: PathLike) -> Path:
    """A data set's folder: as given, or below the folder that the environment variable ``REGLOSS_DATA`` names.

    Raises:
        UsageError: it is in neither place.
    """
    given = Path(path).expanduser()
    places = [given]
    if not given.is_absolute() and os.environ.get("REGLOSS_DATA"):
        places.append(Path(os.environ["REGLOSS_DATA"]) / given)
    for place in places:
        if place.is_dir():
            return place
    hint = "" if len(places) > 1 else "; set REGLOSS_DATA to the folder that holds data sets, or give a full path"
    raise UsageError(f"there is no folder {' or '.join(repr(str(place)) for place in places)}{hint}")


def find_file(path: PathLike, root: Path, purpose: str) -> Path:
    """A file given by the user: looked up in ``root`` first, then in the current folder.

    Raises:
        UsageError: it is in neither.
    """
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [root / given, Path.cwd() / given]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"there is no {purpose} {os.fspath(path)!r}; looked for {' and '.join(map(str, places))}")
