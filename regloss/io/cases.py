"""Cases: volumes of one or several channels, a file each, and what becomes of their values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.errors import UsageError, listed
from regloss.io.types import FloatImage
from regloss.io.volumes import STORED_SUFFIXES, Geometry, percentile_window, read_volume
from regloss.io.windows import Window, windowed

_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names: CASE_0000, CASE_0001


@dataclass(frozen=True)
class Intensities:
    """What becomes of stored values: [0, 1], linearly, what lies outside cut off.

    Attributes:
        window: the same range for all volumes, as for CT; None = one for each volume and channel, as for MR.
        percentiles: these of a volume's values become 0 and 1, where there is no window.

    Raises:
        UsageError: the percentiles are not two numbers in order.
    """

    window: Window | None = None
    percentiles: Sequence[float] = (0.5, 99.5)

    def __post_init__(self) -> None:
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise UsageError(f"percentiles = {list(self.percentiles)} must be two numbers, 0 <= LOW < HIGH <= 100.")

    def of(self, values: npt.NDArray[Any], path: Path) -> Window:
        """The window of one channel (*S).

        Raises:
            UsageError: all values are alike.
        """
        if self.window is not None:
            return self.window
        try:
            return percentile_window(values, *self.percentiles)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    def __call__(self, values: npt.NDArray[Any], path: Path) -> FloatImage:
        """(C, *S) as stored to (C, *S) float32 in [0, 1].

        Raises:
            UsageError: all values of a channel are alike.
        """
        image = np.empty(values.shape, np.float32)
        for scaled, channel in zip(image, values, strict=True):
            scaled[...] = windowed(channel, self.of(channel, path), path)
        return image


def read_case(
    paths: Sequence[Path],
    intensities: Intensities,
    spacing: Sequence[float] | None = None,
    channels: int | None = None,
) -> tuple[FloatImage, Geometry]:
    """A volume from its file, or from those of its channels: (C, *S) float32 in [0, 1], and where it lies.

    Args:
        paths: one file with all channels, or one for each.
        intensities: what becomes of their values.
        spacing: of files that do not state theirs; see `regloss.io.volumes.read_volume`.
        channels: C; None = as many as there are.

    Raises:
        UsageError: a file cannot be read, another number of channels, or a channel does not lie on the first.
    """
    if len(paths) > 1 and channels not in (None, len(paths)):
        raise UsageError(
            f"Volumes of {channels} channel{'s' * (channels != 1)} are needed, in one file or in one for each; got "
            f"{len(paths)} files, the first being {paths[0]}."
        )
    parts, geometry = [], None
    for path in paths:
        stored = read_volume(path, spacing, channels if len(paths) == 1 else 1)
        geometry = geometry or stored.geometry
        if path != paths[0]:
            geometry.check_same(stored.geometry, paths[0], path)
        parts.append(intensities(stored.values, path))
    assert geometry is not None
    return parts[0] if len(parts) == 1 else np.concatenate(parts), geometry


def rounded_spacing(geometry: Geometry) -> tuple[float, ...]:
    """To four digits: headers in single precision must not make volumes of one scanner differ."""
    return tuple(float(f"{step:.4g}") for step in geometry.spacing)


def cases_of(stems: Mapping[str, Path], channels: int) -> dict[str, tuple[Path, ...]]:
    """The files of each case, by channel, from files by stem.

    A channel's file has nnU-Net's name, CASE_0000. Where none has such a name, a file holds all channels.

    Raises:
        UsageError: a channel is missing, or there is one more.

    >>> cases_of({"a_0000": Path("a_0000.nii"), "a_0001": Path("a_0001.nii")}, 2)["a"][1].name
    'a_0001.nii'
    """
    numbered = [_CHANNEL.fullmatch(stem) is not None for stem in stems]
    if not any(numbered) or (channels == 1 and not all(numbered)):
        return {stem: (path,) for stem, path in stems.items()}
    found: dict[str, dict[int, Path]] = {}
    for stem, path in stems.items():
        match = _CHANNEL.fullmatch(stem)
        if match is None:
            raise UsageError(
                f"{path} has no number of a channel in its name; of {channels} channels each is a file, CASE_0000, "
                "CASE_0001 ..."
            )
        found.setdefault(match[1], {})[int(match[2])] = path
    wrong = [
        f"{case} ({listed(sorted(parts))})" for case, parts in found.items() if sorted(parts) != [*range(channels)]
    ]
    if wrong:
        raise UsageError(
            f"{len(wrong)} of {len(found)} cases do not have the channels 0 to {channels - 1}, a file each: "
            f"{listed(wrong)}"
        )
    return {case: tuple(path for _, path in sorted(parts.items())) for case, parts in found.items()}


def stem_of(path: Path) -> str:
    """A volume's name without the ending, ".nii.gz" being one; of a folder its name."""
    if path.is_dir():
        return path.name
    ending = next((suffix for suffix in STORED_SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: -len(ending)] if ending else path.name


def slices_across(geometry: Geometry) -> int:
    """The axis along which slices follow each other: that of the largest spacing, of equal ones the slowest."""
    return int(np.argmax(rounded_spacing(geometry)))


def directions(geometries: Iterable[tuple[str, Geometry]]) -> str:
    """A sentence on volumes, by name, that are stored in different orientations, which nothing turns; "" if none is."""
    found: dict[str, list[str]] = {}
    for name, geometry in geometries:
        found.setdefault(axes_of(geometry), []).append(name)
    if len(found) < 2:
        return ""
    described = ", ".join(f"{axes} {len(names)} ({names[0]}, say)" for axes, names in found.items())
    return (
        f"Volumes lie in different directions, fastest axis first: {described}. A network sees them as they are "
        "stored; if that is not meant, turn them with the program that made them."
    )


def axes_of(geometry: Geometry) -> str:
    """The directions that a file's axes go, fastest first, such as "LPS": left, posterior, superior."""
    letters = []
    for column in geometry.affine[:3, :3].T:
        axis = int(np.argmax(np.abs(column)))
        letters.append(("LR", "PA", "IS")[axis][int(column[axis] > 0)])
    return "".join(letters)
