"""What is drawn on: pictures, and slices of volumes; and the label maps that belong to them.

A picture has one plane, a volume as many as slices, and one file holds the labels of all of them: PNG, or NIfTI of the
volume's geometry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regloss.errors import UsageError
from regloss.io.cases import rounded_spacing, slices_across
from regloss.io.images import read_header
from regloss.io.labels import read_scribble_map, save_label_png
from regloss.io.palettes import Color
from regloss.io.types import Header, LabelMap, Size
from regloss.io.volumes import Geometry, read_geometry, write_label_volume


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """A file that is drawn on.

    Attributes:
        name: without ending.
        file: it.
        first: number of its first plane in the set.
    """

    name: str
    file: Path
    first: int

    @property
    @abstractmethod
    def size(self) -> Size:
        """(H, W) of a plane."""

    @property
    @abstractmethod
    def spacing(self) -> tuple[float, ...] | None:
        """Of the pixels of a plane, in mm; None = not known."""

    @property
    @abstractmethod
    def ids(self) -> tuple[str, ...]:
        """Of its planes."""

    @property
    @abstractmethod
    def label_name(self) -> str:
        """Of a new file of labels."""

    @abstractmethod
    def read_labels(self, path: Path, classes: Sequence[str]) -> tuple[LabelMap, ...]:
        """Labels (H, W) of each plane, 255 = none.

        Raises:
            UsageError: the file holds none of these classes, or none of this size and place.
        """

    @abstractmethod
    def write_labels(self, path: Path, planes: Sequence[LabelMap], colors: Sequence[Color], *, durable: bool) -> None:
        """Replace a file of labels.

        Raises:
            UsageError: its name ends as those of another format.
            FailedWrite: it cannot be written.
        """


@dataclass(frozen=True, eq=False)
class Picture(Source):
    """An image.

    Attributes:
        header: what is said of it.
    """

    header: Header

    @classmethod
    def open(cls, name: str, file: Path, first: int) -> Picture:
        """Read the header."""
        return cls(name, file, first, read_header(file))

    @property
    def size(self) -> Size:
        """(H, W)."""
        return self.header.size

    @property
    def spacing(self) -> None:
        """Not known."""
        return None

    @property
    def ids(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)

    @property
    def label_name(self) -> str:
        """A PNG."""
        return f"{self.name}.png"

    def read_labels(self, path: Path, classes: Sequence[str]) -> tuple[LabelMap, ...]:
        """See `Source`."""
        labels = read_scribble_map(path, classes, self.size)
        if labels.shape != self.size:
            raise UsageError(
                f"{path} is {labels.shape[0]} pixels high and {labels.shape[1]} wide, its image {self.size[0]} and "
                f"{self.size[1]}, so it is left alone. Move it away to draw on this image."
            )
        return (labels,)

    def write_labels(self, path: Path, planes: Sequence[LabelMap], colors: Sequence[Color], *, durable: bool) -> None:
        """See `Source`."""
        save_label_png(path, planes[0], colors, durable=durable)


@dataclass(frozen=True, eq=False)
class Volume(Source):
    """A volume, whose slices are drawn on one by one, across the axis of the largest spacing.

    Attributes:
        geometry: of its voxels.
    """

    geometry: Geometry

    @classmethod
    def open(cls, name: str, file: Path, first: int) -> Volume:
        """Read the header."""
        return cls(name, file, first, read_geometry(file))

    @property
    def axis(self) -> int:
        """Along which slices follow each other."""
        return slices_across(self.geometry)

    @property
    def size(self) -> Size:
        """(H, W) of a slice."""
        height, width = (size for axis, size in enumerate(self.geometry.size) if axis != self.axis)
        return height, width

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of a slice's rows and columns."""
        return tuple(step for axis, step in enumerate(rounded_spacing(self.geometry)) if axis != self.axis)

    @property
    def ids(self) -> tuple[str, ...]:
        """NAME-000, NAME-001, ..., as the data set `volumes` calls slices."""
        return tuple(f"{self.name}-{number:03d}" for number in range(self.geometry.size[self.axis]))

    @property
    def label_name(self) -> str:
        """A compressed NIfTI."""
        return f"{self.name}.nii.gz"

    def read_labels(self, path: Path, classes: Sequence[str]) -> tuple[LabelMap, ...]:
        """See `Source`."""
        self.geometry.check_same(read_geometry(path), self.file, path)
        return tuple(np.moveaxis(read_scribble_map(path, classes, self.size), self.axis, 0))

    def write_labels(self, path: Path, planes: Sequence[LabelMap], colors: Sequence[Color], *, durable: bool) -> None:
        """See `Source`; NIfTI has no colours."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_label_volume(path, np.stack(planes, self.axis), self.geometry, durable=durable)
