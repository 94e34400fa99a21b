"""Label layers of napari and ilastik, strokes in colours, HDF5 files of WSL4MIS: a value or a colour for each pixel.

    napari      labels saved as TIFF ("Labels.tif", or by the image's name): 0 = nothing, then 1, 2, ...
    ilastik     exported labels: TIFF with the same values, NICKNAME_Labels.tiff
    strokes     pictures in which strokes are red (object) and blue (background), as of SimpleCRF; --colors names others
    WSL4MIS     HDF5 with "image", "label" and "scribble" (H, W) or (D, H, W); in scribbles 4 = nothing

Napari's and ilastik's files, and strokes, belong to the image of the same name, but for an ending such as "_labels".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.errors import MissingDependency, UsageError, listed
from regloss.io.drawing import Bitmap
from regloss.io.foreign.cvat import masks_by_color
from regloss.io.foreign.source import Annotations, Drawn, ImageFinder, Maps, Options, SourceImage
from regloss.io.limits import check_regular
from regloss.io.palettes import Color
from regloss.io.raster import read_rgba
from regloss.io.types import Size

_ENDING = re.compile(r"([-_. ](labels?|annotations?|scribbles?|strokes?|scrb|seeds?|colou?rs?))+$", re.IGNORECASE)
RED, BLUE = (255, 0, 0), (0, 0, 255)


class LabelTiffs(Maps):
    """TIFF files of labels, as napari and ilastik write them."""

    name = "label-tiff"
    program = "napari or ilastik"
    heeds = frozenset({"unlabelled", "to"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._unlabelled = 0 if options.unlabelled is None else options.unlabelled
        self._names = options.classes
        self.classes = tuple(options.classes or ())
        files = _with_suffix(source, (".tif", ".tiff"))
        mates, places = _mates(source, files, options)
        self.add(mates, places)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether it is a TIFF, or a folder with some whose names end in "labels"."""
        files = _with_suffix(source, (".tif", ".tiff"))
        return bool(files) and (source.is_file() or any(_stem(path) != path.stem for path in files))

    def drawn(self, image_id: str) -> Sequence[Drawn]:
        """See `Annotations.drawn`."""
        values = read_label_tiff(self.files[image_id])
        found = [int(value) for value in np.unique(values) if value != self._unlabelled]
        if len(found) > 255:
            raise UsageError(
                f"{self.files[image_id]} has {len(found)} different values; it numbers objects one by one, and classes "
                "are needed: give pixels of one class one value"
            )
        first = 1 if self._unlabelled == 0 else 0
        return [
            Drawn(_name(value, first, self._names, self.files[image_id]), Bitmap(values == value, area=False))
            for value in found
        ]


class ColorStrokes(Maps):
    """Pictures of strokes in colours, each beside its image."""

    name = "strokes"
    program = "strokes in colours"
    heeds = frozenset({"colors", "to"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._table = dict(options.colors or {RED: "object", BLUE: "background"})
        self.classes, self.colors = tuple(dict.fromkeys(self._table.values())), {}
        files = [
            path for path in _with_suffix(source, (".png", ".bmp", ".tif", ".tiff")) if _is_map(path, source, options)
        ]
        mates, places = _mates(source, files, options)
        self.add(mates, places)
        self._seen: set[str] = set()

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether it is a folder with PNG files whose names end in "scribbles", "strokes" or the like."""
        return source.is_dir() and any(_stem(path) != path.stem for path in _with_suffix(source, (".png",)))

    def used(self) -> set[tuple[str, bool]]:
        """See `Annotations.used`; all are declared."""
        return {(name, False) for name in self.classes}

    def drawn(self, image_id: str) -> Sequence[Drawn]:
        """See `Annotations.drawn`.

        Raises:
            UsageError: a picture has none of the colours.
        """
        path = self.files[image_id]
        masks, others = masks_by_color(read_rgba(path), self._table)
        if not masks:
            found = listed(f"{_written(color)} ({count} pixels)" for color, count in others)
            wanted = listed(_written(color) for color in self._table)
            raise UsageError(f"{path} has none of the colours {wanted}, but {found}; --colors says what colours mean")
        if image_id not in self._seen and len(others) > 1:  # one is the ground that was drawn on
            self._seen.add(image_id)
            self.skipped["picture of strokes with further colours, whose pixels stay unlabelled"] += 1
        return [Drawn(name, Bitmap(mask, area=False)) for name, mask in masks.items()]


class Wsl4mis(Annotations):
    """HDF5 files with "image" and "scribble" or "label"; of volumes, each slice of the first axis is an image."""

    name = "wsl4mis"
    program = "WSL4MIS"
    heeds = frozenset({"unlabelled"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._unlabelled = 4 if options.unlabelled is None else options.unlabelled
        self._names = options.classes or ("background",)
        self.classes = tuple(self._names)
        self._places: dict[str, tuple[Path, int | None]] = {}
        for path in _with_suffix(source, (".h5", ".hdf5")):
            with _opened(path) as file:
                shapes = {name: file[name].shape for name in ("image", "label", "scribble") if name in file}
            if "image" not in shapes or len(shapes) == 1:
                self.skipped["HDF5 file without an image, or without label and scribble"] += 1
                continue
            shape = shapes["image"]
            if len(set(shapes.values())) > 1 or len(shape) not in (2, 3):
                raise UsageError(
                    f"{path}: image, label and scribble must have one shape, (H, W) or (D, H, W); got {shapes}"
                )
            if len(shape) == 2:
                self._places[path.stem] = (path, None)
            else:
                self.group = r"^(.+)_slice_\d+$"
                digits = len(str(shape[0] - 1))
                for number in range(shape[0]):
                    self._places[f"{path.stem}_slice_{number:0{digits}}"] = (path, number)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether it is an HDF5 file, or a folder with some."""
        return bool(_with_suffix(source, (".h5", ".hdf5")))

    def ids(self) -> Sequence[str]:
        """See `Annotations.ids`."""
        return sorted(self._places)

    def image(self, image_id: str) -> SourceImage:
        """The slice (1, H, W) of "image", floats as they are where they lie in [0, 1]."""
        return self._slice(image_id, "image")[None]

    def size(self, image_id: str) -> Size | None:
        """See `Annotations.size`."""
        return None

    def file(self, image_id: str) -> Path:
        """See `Annotations.file`."""
        return self._places[image_id][0]

    def drawn(self, image_id: str) -> Sequence[Drawn]:
        """See `Annotations.drawn`."""
        path, _ = self._places[image_id]
        found = []
        with _opened(path) as file:
            parts = [part for part in ("label", "scribble") if part in file]
        for part in parts:
            values = self._slice(image_id, part)
            for value in np.unique(values):
                if part == "label" or value != self._unlabelled:
                    if value != int(value) or not 0 <= value < 255:
                        raise UsageError(f"{path}: {part} holds {value}; classes are whole numbers from 0")
                    name = _name(int(value), 0, self._names, path)
                    found.append(Drawn(name, Bitmap(values == value), dense=part == "label"))
        return found

    def _slice(self, image_id: str, part: str) -> npt.NDArray[Any]:
        path, number = self._places[image_id]
        with _opened(path) as file:
            values: npt.NDArray[Any] = np.asarray(file[part][() if number is None else number])
        return values.astype(np.float32) if values.dtype.kind == "f" else values


def read_label_tiff(path: Path) -> npt.NDArray[np.integer[Any]]:
    """(H, W) integers of any size from a TIFF, as programs write label layers.

    Raises:
        UsageError: it cannot be read, or holds something else than one map of integers.
        MissingDependency: tifffile is not installed.
    """
    check_regular(path)
    try:
        import tifffile
    except ImportError as cause:
        raise MissingDependency(
            f"{path} needs tifffile, which is not installed: pip install 'regloss[tiff]'."
        ) from cause
    try:
        values: npt.NDArray[Any] = np.squeeze(tifffile.imread(path))
    except (OSError, ValueError, KeyError, IndexError, ImportError, tifffile.TiffFileError) as error:
        raise UsageError(f"{path} cannot be read as TIFF: {error or type(error).__name__}") from error
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UsageError(
            f"{path} holds {values.dtype} of the shape {values.shape}; a map of labels holds whole numbers, (H, W). "
            "Save the slices of a stack one by one"
        )
    return values.astype(np.int64) if values.dtype.kind == "b" else values


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_regular(path)
    try:
        import h5py
    except ImportError as cause:
        raise MissingDependency(f"{path} needs h5py, which is not installed: pip install 'regloss[hdf5]'.") from cause
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be read as HDF5: {error}") from error


def _with_suffix(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
    return [path for path in files if path.name.lower().endswith(suffixes) and not path.name.startswith(".")]


def _stem(path: Path) -> str:
    """The name of the image that a file of labels belongs to: its own, less an ending such as "_labels"."""
    return _ENDING.sub("", path.stem)


def _is_map(path: Path, source: Path, options: Options) -> bool:
    """Of pictures that lie among their images, whether this is no image."""
    return source.is_file() or options.images is not None or _stem(path) != path.stem


def _mates(source: Path, files: Sequence[Path], options: Options) -> tuple[dict[Path, Path | None], str]:
    """The image of each file of labels, and where they were looked for."""
    if options.images is None and source.is_dir():
        files = [path for path in files if _stem(path) != path.stem] or files
    finder = ImageFinder(source, options.images, files)
    return {path: finder.with_stem(path.stem) or finder.with_stem(_stem(path)) for path in files}, finder.described()


def _name(value: int, first: int, names: Sequence[str] | None, path: Path) -> str:
    """What a value is called: by the names of values from ``first`` on, or by itself."""
    place = value - first
    if names is not None and 0 <= place < len(names):
        return names[place]
    if names is not None and len(names) > 1:
        known = ", ".join(f"{first + index} = {name}" for index, name in enumerate(names))
        raise UsageError(f"{path} holds the value {value}, for which --classes has no name: {known}")
    return f"label {value}"


def _written(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
