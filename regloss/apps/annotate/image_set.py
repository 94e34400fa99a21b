"""The images of a folder that is annotated: what they are called, where they lie, how they are read and shown.

Of volumes each slice is an image of the set.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regloss.apps.annotate.sources import Picture, Source, Volume
from regloss.dataset import IGNORE, Dataset
from regloss.errors import UsageError, listed
from regloss.io.cases import Intensities, read_case
from regloss.io.classes import MAX_CLASSES, read_classes, write_classes
from regloss.io.folders import find_root, index_folder, index_label_folder
from regloss.io.images import IMAGE_SUFFIXES, read_image, with_channels
from regloss.io.labels import label_values
from regloss.io.outputs import keep_copy
from regloss.io.palettes import Color, class_colors
from regloss.io.types import FloatImage, Size
from regloss.io.volumes import VOLUME_SUFFIXES
from regloss.io.windows import Window
from regloss.registry import create
from regloss.report.overlays import overlay

CLASSES_FILE = "classes.toml"
SCRIBBLES = "scribbles"
DEFAULT_NAMES = ("background", "object")
LONGEST_NAME = 60

_MOST_UNNAMED = 32  # classes that values of scribbles without names are taken for
_THUMBNAIL = 96  # pixels, the longer side
_LOSSLESS = 4_000_000  # pixels up to which a picture is sent without loss; as PNG a photograph has tens of MB
_KEPT_PICTURES = 6
_KEPT_THUMBNAILS = 2000
# Vivid colours that are told apart by most eyes, behind a black background: Okabe and Ito, "Color universal design".
_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)


def default_colors(count: int) -> tuple[Color, ...]:
    """Colours of classes that nobody has given any: black, then those that are easily told apart."""
    return ((0, 0, 0), *_COLORS, *class_colors(256)[len(_COLORS) + 1 :])[:count]


@dataclass(frozen=True)
class Classes:
    """Names and colours, by class index."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]


class ImageSet:
    """The images of a folder, or the slices of its volumes, and the classes that are drawn.

    They lie in ``root/images``, or, where there is no such folder, in ``root`` itself. Where there are images, volumes
    are left out. Nothing outside of ``root`` is read or written: files and folders that are links to somewhere else are
    refused.

    Args:
        root: the folder.

    Raises:
        UsageError: no such folder, no images, images that cannot be read, links that lead out of it, or a
            classes.toml that is none.

    Attributes:
        root: absolute, without links.
        folder: of the images, relative to ``root``: "images" or ".".
        sources: the files, in their order.
        ids: of the images, in their order.
        sizes: (H, W) of the images.
        classes: names and colours, those of classes.toml where there is one.
        volumes: whether they are slices of volumes.
        dataset: the data set that trains on them.
    """

    def __init__(self, root: Path) -> None:
        self.root = find_root(root).resolve()
        self.folder = "images" if (self.root / "images").is_dir() else "."
        self.inside(self.root / self.folder)
        files = index_folder(self.root / self.folder)
        self.volumes = not files
        files = files or index_folder(self.root / self.folder, VOLUME_SUFFIXES)
        if not files:
            raise UsageError(
                f"{self.root} has no images to draw on: neither a folder 'images' with them, nor images "
                f"({', '.join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))}) itself."
            )
        sources: list[Source] = []
        self._source_of: list[Source] = []
        open_source = Volume.open if self.volumes else Picture.open
        for name, path in files.items():
            sources.append(open_source(name, self.inside(path), len(self._source_of)))
            self._source_of += [sources[-1]] * len(sources[-1].ids)
        self.sources = tuple(sources)
        self.ids = tuple(name for source in sources for name in source.ids)
        self.sizes: tuple[Size, ...] = tuple(source.size for source in self._source_of)
        channels = {source.header.channels for source in sources if isinstance(source, Picture)}
        # Photographs and a scanned page among them: what training would ask about, is no obstacle to drawing.
        self.grey = False if channels == {1, 3} else None
        self._scribbles = self._existing_scribbles()
        self.classes_file = self.root / CLASSES_FILE
        self.classes = self._read_classes()
        kind: dict[str, Any] = {"dims": 2} if self.volumes else {"grey": self.grey}
        self.dataset: Dataset = create(
            "dataset",
            "volumes" if self.volumes else "folder",
            root=self.root,
            images=self.folder,
            labels=None,
            scribbles=None,
            classes=list(self.classes.names),
            **kind,
        )
        self._kept_classes = False
        self._changing = threading.Lock()  # of classes, and of their file
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._volume: tuple[Source, Intensities, FloatImage] | None = None  # the last one that was read
        self._pictures: OrderedDict[int, tuple[bytes, str]] = OrderedDict()
        self._thumbnails: OrderedDict[int, bytes] = OrderedDict()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the images."""
        mixed = ("Grey and colour images are mixed: all are shown, and trained on, as colours.",)
        return (*self.dataset.notes, *(mixed if self.grey is False else ()))

    def source(self, index: int) -> Source:
        """The file that an image lies in."""
        return self._source_of[index]

    def scribble_path(self, source: Source) -> Path:
        """Where the scribbles of a file are, or will be.

        Raises:
            UsageError: the place lies outside of the folder, by a link that was made meanwhile.
        """
        return self.inside(self._scribbles.get(source.name, self.root / SCRIBBLES / source.label_name))

    def image(self, index: int) -> FloatImage:
        """(C, H, W) in [0, 1]."""
        source = self.source(index)
        self.inside(source.file)
        if isinstance(source, Volume):
            return self._slice(index, source, Intensities())
        return self.dataset.load(self.ids[index]).image

    def image_for(self, index: int, channels: int, window: Window | None, intensities: Intensities) -> FloatImage:
        """An image as a network wants it: (C, H, W) of so many ``channels``, with its ``window`` of values.

        Args:
            index: of the image.
            channels: 1 or 3.
            window: of a picture's values; see `regloss.io.images.read_image`.
            intensities: what becomes of a volume's values.
        """
        source = self.source(index)
        self.inside(source.file)
        if isinstance(source, Volume):
            return with_channels(self._slice(index, source, intensities), channels)
        return read_image(source.file, channels, window)

    def picture(self, index: int) -> tuple[bytes, str]:
        """An image for a browser, and its media type."""
        with self._lock:
            if index in self._pictures:
                self._pictures.move_to_end(index)
                return self._pictures[index]
        picture = self._shown(index)
        small = picture.width * picture.height <= _LOSSLESS
        data = io.BytesIO()
        if small:
            picture.save(data, "PNG", compress_level=1)
        else:
            picture.save(data, "JPEG", quality=92, subsampling=0)
        found = data.getvalue(), "image/png" if small else "image/jpeg"
        with self._lock:
            self._pictures[index] = found
            while len(self._pictures) > _KEPT_PICTURES:
                self._pictures.popitem(last=False)
        return found

    def thumbnail(self, index: int) -> bytes:
        """An image of at most 96 pixels, as JPEG."""
        with self._lock:
            if index in self._thumbnails:
                self._thumbnails.move_to_end(index)
                return self._thumbnails[index]
        picture = self._shown(index)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=80)
        with self._lock:
            self._thumbnails[index] = data.getvalue()
            while len(self._thumbnails) > _KEPT_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return data.getvalue()

    def change_classes(self, names: Sequence[str], colors: Sequence[Color]) -> None:
        """Rename, recolour or add classes, and write classes.toml.

        Raises:
            UsageError: fewer classes than there are, names that are empty, equal, too long or not printable.
            FailedWrite: the file cannot be written.
        """
        cleaned = tuple(name.strip() for name in names)
        if len(cleaned) < len(self.classes.names):
            raise UsageError(
                f"There are {len(self.classes.names)} classes, and scribbles may be of any of them; got "
                f"{len(cleaned)}. Rename one that is not needed instead of removing it."
            )
        if len(cleaned) > MAX_CLASSES:
            raise UsageError(f"There can be {MAX_CLASSES} classes; got {len(cleaned)}.")
        wrong = [name for name in cleaned if not name or len(name) > LONGEST_NAME or not name.isprintable()]
        if wrong or len(set(cleaned)) < len(cleaned):
            raise UsageError(
                f"Names of classes must differ and have 1 to {LONGEST_NAME} printable letters; got "
                f"{listed(map(repr, cleaned))}."
            )
        with self._changing:
            self.inside(self.classes_file)
            if not self._kept_classes:
                keep_copy(self.classes_file)
                self._kept_classes = True
            write_classes(self.classes_file, cleaned, colors)
            self.classes = Classes(cleaned, tuple(colors))

    def write_classes(self) -> None:
        """Write classes.toml where there is none: without it, nobody could train on the scribbles.

        Raises:
            FailedWrite: it cannot be written.
        """
        with self._changing:
            if not self.inside(self.classes_file).exists():
                write_classes(self.classes_file, self.classes.names, self.classes.colors)

    def _slice(self, index: int, source: Volume, intensities: Intensities) -> FloatImage:
        with self._reading:  # slices are asked for one after the other: the last volume is kept
            if self._volume is None or self._volume[0] is not source or self._volume[1] != intensities:
                self._volume = (source, intensities, read_case([source.file], intensities)[0])
            found: FloatImage = np.ascontiguousarray(self._volume[2].take(index - source.first, source.axis + 1))
            return found

    def _shown(self, index: int) -> Image.Image:
        image = self.image(index)
        nothing = np.full(image.shape[1:], IGNORE, dtype=np.uint8)
        return Image.fromarray(overlay(image, nothing, self.classes.colors))

    def _existing_scribbles(self) -> dict[str, Path]:
        folder = self.root / SCRIBBLES
        self.inside(folder)
        if not folder.is_dir():
            return {}
        return index_folder(folder, VOLUME_SUFFIXES) if self.volumes else index_label_folder(folder)

    def _read_classes(self) -> Classes:
        self.inside(self.classes_file)
        if self.classes_file.is_file():
            names, colors = read_classes(self.classes_file)
            if len(names) < 2:
                raise UsageError(f"{self.classes_file} names {len(names)} class; needed are background and one more.")
            return Classes(names, colors)
        known = max(label_values(self._scribbles.values()), default=0) + 1
        if known > _MOST_UNNAMED:
            raise UsageError(
                f"Scribbles in {self.root / SCRIBBLES} have the value {known - 1}, as if there were {known} classes. "
                f"Move them away if these are values of another program; else name the classes in {self.classes_file}."
            )
        names = (*DEFAULT_NAMES, *(f"class {index}" for index in range(2, known)))
        return Classes(names, default_colors(len(names)))

    def inside(self, path: Path) -> Path:
        """``path`` itself.

        Raises:
            UsageError: it lies outside of the folder, by a link.
        """
        if not path.resolve().is_relative_to(self.root):
            raise UsageError(
                f"{path} is a link that leads out of {self.root}, to {path.resolve()}; a page must not reach that. "
                "Copy what it points to, or give the folder where it lies."
            )
        return path
