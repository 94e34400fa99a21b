"""What programs to annotate images with leave behind: images, and what was drawn on each."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeAlias

from regloss.errors import UsageError, listed
from regloss.io.drawing import Point, Shape
from regloss.io.images import IMAGE_SUFFIXES
from regloss.io.limits import check_regular
from regloss.io.palettes import Color
from regloss.io.toml import read_text
from regloss.io.types import Size, StoredPixels

SourceImage: TypeAlias = Path | bytes | StoredPixels
"""An image file; the contents of one; or (C, H, W) as of `regloss.io.images.read_stored`."""

_IMAGE_FOLDERS = (".", "images", "JPEGImages", "imgs", "../images", "../JPEGImages")


@dataclass(frozen=True)
class Drawn:
    """One thing that was drawn on an image.

    Attributes:
        label: what it was called.
        shape: where it is.
        dense: whether it belongs to a map of all pixels, rather than to scribbles; None = if it is an area.
    """

    label: str
    shape: Shape
    dense: bool | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it belongs to a map of all pixels, where nobody says otherwise."""
        return self.shape.area if self.dense is None else self.dense


@dataclass(frozen=True)
class Options:
    """How annotations are read, where files do not say it.

    Attributes:
        images: the folder that the images are in; None = beside the annotations.
        stroke_width: of lines and points, in pixels.
        unlabelled: the value of label maps where nothing was drawn; None = as the program writes it.
        colors: what colours of strokes are called; None = red for "object", blue for "background".
        classes: names of the classes, of label maps in the order of their values.
    """

    images: Path | None = None
    stroke_width: float = 3.0
    unlabelled: int | None = None
    colors: Mapping[Color, str] | None = None
    classes: Sequence[str] | None = None


class Annotations(ABC):
    """The annotated images of one source. A format is a class that derives from this, in `regloss.io.foreign.FORMATS`.

    The constructor, called with the source (a file or a folder) and `Options`, reads what it needs to know all ids and
    declared classes, and leaves pixels for later.

    Attributes:
        name: of the format, as of ``--format``.
        program: what people call it.
        heeds: options that it makes use of, beside ``images`` and ``classes``; "to", where its files leave open whether
            they hold scribbles or maps of all pixels.
        ground: the label of pixels on which nothing was drawn, where a label says that.
        classes: names that the source declares, in its order; those in use may be others.
        colors: colours of classes, where the source declares them.
        skipped: what cannot be used, and why, with how often.
        group: a regular expression that finds in ids of slices the volume that they are from; None = there are none.
    """

    name: ClassVar[str]
    program: ClassVar[str]
    heeds: ClassVar[frozenset[str]] = frozenset()
    ground: ClassVar[str | None] = None

    def __init__(self, source: Path, options: Options) -> None:
        self.classes: tuple[str, ...] = ()
        self.colors: dict[str, Color] = {}
        self.skipped: Counter[str] = Counter()
        self.group: str | None = None

    @staticmethod
    @abstractmethod
    def recognises(source: Path) -> bool:
        """Whether a file or folder is of this format, by a look at it."""

    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Names of the images, different ones that are usable as file names."""

    @abstractmethod
    def image(self, image_id: str) -> SourceImage:
        """One of the images."""

    @abstractmethod
    def drawn(self, image_id: str) -> Sequence[Drawn]:
        """What was drawn on it, in the order in which it covers what was drawn before."""

    @abstractmethod
    def size(self, image_id: str) -> Size | None:
        """(H, W) for which it was drawn, if the source says that."""

    @abstractmethod
    def file(self, image_id: str) -> Path:
        """The file that says what was drawn, for messages."""

    def used(self) -> set[tuple[str, bool]]:
        """Labels of everything that was drawn, and whether it belongs to a map of all pixels (see `Drawn`)."""
        return {(drawn.label, drawn.is_dense) for image_id in self.ids() for drawn in self.drawn(image_id)}


@dataclass(frozen=True)
class Entry:
    """An image of `Shapes`.

    Attributes:
        image: the image.
        file: that says what was drawn.
        size: (H, W) for which it was drawn.
        drawn: what was.
    """

    image: SourceImage
    file: Path
    size: Size | None
    drawn: Sequence[Drawn]


class Shapes(Annotations):
    """Annotations that are small enough to be kept: lists of shapes."""

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self.entries: dict[str, Entry] = {}

    def add(self, found: Mapping[str, Entry]) -> None:
        """Take in images by the names that the source has for them, which become ids."""
        ids = unique_ids(found)
        self.entries.update({ids[name]: entry for name, entry in found.items()})

    def ids(self) -> Sequence[str]:
        """See `Annotations.ids`."""
        return sorted(self.entries)

    def image(self, image_id: str) -> SourceImage:
        """See `Annotations.image`."""
        return self.entries[image_id].image

    def drawn(self, image_id: str) -> Sequence[Drawn]:
        """See `Annotations.drawn`."""
        return self.entries[image_id].drawn

    def size(self, image_id: str) -> Size | None:
        """See `Annotations.size`."""
        return self.entries[image_id].size

    def file(self, image_id: str) -> Path:
        """See `Annotations.file`."""
        return self.entries[image_id].file


class Maps(Annotations):
    """Annotations in pictures or arrays of the images' size, read one at a time."""

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self.images: dict[str, Path] = {}
        self.files: dict[str, Path] = {}

    def add(self, mates: Mapping[Path, Path | None], places: str) -> None:
        """Take in files of annotations, with their images; those without are skipped."""
        absent = [path for path, image in mates.items() if image is None]
        if absent:
            self.skipped[f"map whose image is not in {places}: {listed([path.name for path in absent])}"] = len(absent)
        having = {path.as_posix(): (path, image) for path, image in mates.items() if image is not None}
        ids = unique_ids(image.as_posix() for _, image in having.values())
        for path, image in having.values():
            self.images[ids[image.as_posix()]], self.files[ids[image.as_posix()]] = image, path

    def ids(self) -> Sequence[str]:
        """See `Annotations.ids`."""
        return sorted(self.files)

    def image(self, image_id: str) -> SourceImage:
        """See `Annotations.image`."""
        return self.images[image_id]

    def size(self, image_id: str) -> Size | None:
        """See `Annotations.size`."""
        return None

    def file(self, image_id: str) -> Path:
        """See `Annotations.file`."""
        return self.files[image_id]


class ImageFinder:
    """Images by the names that annotations have for them.

    Args:
        source: the file or folder of the annotations.
        folder: where the images are; None = the usual places at the source.
        excluded: files that look like images, and are annotations.
    """

    def __init__(self, source: Path, folder: Path | None, excluded: Collection[Path] = ()) -> None:
        self.excluded = frozenset(excluded)
        start = source if source.is_dir() else source.parent
        if folder is not None and not folder.is_dir():
            raise UsageError(f"there is no folder {folder} with images")
        self.places = [folder] if folder else [start / name for name in _IMAGE_FOLDERS if (start / name).is_dir()]
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str, *others: str, beside: Path | None = None) -> Path | None:
        """The image called ``name``, a path or the last part of one, or one of ``others``; None = there is none.

        Args:
            name: as the annotations have it.
            others: further names, tried in this order.
            beside: a folder in which ``name`` is looked up first.

        Raises:
            UsageError: several files have this name.
        """
        for candidate in (name, *others):
            relative = candidate.replace("\\", "/")
            for place in ([beside] if beside else []) + self.places:
                if (place / relative).is_file():
                    return place / relative
            found = self._named(PurePosixPath(relative).name)
            if len(found) > 1:
                raise UsageError(f"{candidate!r} may be {listed(found)}; give the folder that is meant by --images")
            if found:
                return found[0]
        return None

    def with_stem(self, stem: str) -> Path | None:
        """The image whose name is ``stem`` and an ending; subfolders are not searched. None = there is none.

        Raises:
            UsageError: several files have this name.
        """
        found = [
            path
            for place in self.places
            for suffix in IMAGE_SUFFIXES
            if (path := place / f"{stem}{suffix}").is_file() and path not in self.excluded
        ]
        if len(found) > 1:
            raise UsageError(f"the image {stem!r} may be {listed(found)}; give the folder that is meant by --images")
        return found[0] if found else None

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            seen = set()
            for place in self.places:
                for path in sorted(place.rglob("*")):
                    if path.name.lower().endswith(IMAGE_SUFFIXES) and path.resolve() not in seen and path.is_file():
                        seen.add(path.resolve())
                        self._by_name.setdefault(path.name, []).append(path)
        return self._by_name.get(name, [])

    def described(self) -> str:
        """The places, for messages."""
        return listed(self.places)


def unique_ids(names: Iterable[str]) -> dict[str, str]:
    """Ids of images by their names: the stem, or where stems are not unique, the whole path with "_" for "/".

    Raises:
        UsageError: two have one id even so.

    >>> unique_ids(["a/x.png", "b/y.png"]), unique_ids(["a/x.png", "b/x.png"])
    ({'a/x.png': 'x', 'b/y.png': 'y'}, {'a/x.png': 'a_x', 'b/x.png': 'b_x'})
    """
    paths = {name: PurePosixPath(name.replace("\\", "/")) for name in names}
    ids = {name: path.stem for name, path in paths.items()}
    if len(set(ids.values())) < len(ids):
        ids = {
            name: "_".join(part for part in path.with_suffix("").parts if part not in ("/", ".."))
            for name, path in paths.items()
        }
    double = [image_id for image_id, count in Counter(ids.values()).items() if count > 1]
    if double:
        raise UsageError(f"several images would be called {listed(double)}; rename them, so that their names differ")
    return ids


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UsageError: it cannot be read, or is no JSON.
    """
    check_regular(path)
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error


def holds(path: Path, words: Collection[str], length: int = 2**20) -> bool:
    """Whether all of some words stand in the first bytes of a file, or in its last ones."""
    with path.open("rb") as file:
        head = file.read(length)
        file.seek(max(path.stat().st_size - length, 0))
        tail = file.read(length)
    return all(word.encode() in head or word.encode() in tail for word in words)


def entry_of(table: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``table[key]``, which must be there and of a type.

    Raises:
        UsageError: it is not.
    """
    value = table.get(key) if isinstance(table, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise UsageError(f"{where}: {key!r} must be {' or '.join(one.__name__ for one in kinds)}; got {_short(value)}")
    return value


def number(value: Any, where: str) -> float:
    """A finite number, also as text.

    Raises:
        UsageError: it is none.
    """
    try:
        found = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{where}: expected a number, got {_short(value)}")
    return found


def points_of(value: Any, where: str) -> list[Point]:
    """Pairs of finite numbers.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UsageError(f"{where}: expected points [x, y], got {_short(value)}")
    points = []
    for point in value:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            raise UsageError(f"{where}: expected a point [x, y], got {_short(point)}")
        points.append((number(point[0], where), number(point[1], where)))
    return points


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
