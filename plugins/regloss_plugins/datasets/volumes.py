"""A folder of volumes with label volumes and scribbles beside them, to learn from as they are or slice by slice.

    root/
      images/      a.nii.gz  b.nrrd  c/        TIFF, NPY, HDF5 too; a folder of one DICOM series
      labels/      a.nii.gz  b.tif             class indices, 255 = left out of the scores       (may be absent)
      scribbles/   a.nii.gz            c.mha   class indices, 255 = unlabelled                   (may be absent)
      classes.toml                             names and colours

Files belong together by their name without ending, which is the volume's id. Several channels are in one file; or a
file each, a_0000.nii.gz, a_0001.nii.gz, where ``channels`` says how many. Labels and scribbles lie on the image's grid:
size, spacing, place and orientation agree, as far as both files state them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regloss.errors import UsageError, listed
from regloss.io.cases import Intensities, cases_of, directions
from regloss.io.folders import find_root, index_folder, left_out
from regloss.io.labels import value_map
from regloss.io.types import PathLike
from regloss.io.volumes import STORED_SUFFIXES
from regloss.io.windows import Window
from regloss_plugins.datasets.cases import Case, CaseDataset, Cases, Meanings
from regloss_plugins.datasets.layout import choose_classes, choose_groups, choose_subsets


class VolumesDataset(CaseDataset):
    r"""Samples from ``root``; see the top of this module for the layout.

    The constructor reads the folders, the small TOML files, and the headers of the images. Beside the subsets of the
    split there are those of their samples with a pixel that is scribbled, "train-scribbled", or labelled,
    "train-labelled": of a volume some slices are often drawn on, and the others to be predicted.

    Args:
        root: the folder that holds the others; a relative path may also be one below ``$REGLOSS_DATA``.
        dims: 3 = a sample is a volume, of which training takes patches; 2 = a slice of one, CASE-NUMBER, from 0.
        axis: along which slices follow each other, 0 the slowest of the file; None = that of the largest spacing, of
            equal ones the slowest.
        split: which sample belongs to which subset, a TOML file (looked up in ``root``, then in the current folder) or
            its contents as a mapping: ``train = ["case0*"]``. An entry is a volume, a pattern of ids (``*``, ``?``,
            ``[...]``), a slice, or the name of a group. "all" exists always, and without a split "train" is the same.
        classes: names, their number, or a TOML file; see the data set ``folder``. By default ``root/classes.toml``.
        images: the folder of the images, relative to ``root``.
        labels: the folder of the dense labels; None reads none. A folder of the default name may be absent. A mapping
            is ``label_values``, for the folder of the default name.
        scribbles: the folder of the scribbles, likewise.
        group: regular expression with one capturing group, searched in each volume's id: what it captures is the group,
            ``"^(patient\d+)"``. By default each volume is a group of its own.
        label_values: what the values of the dense labels mean, where they are no class indices, as a mapping to names
            or indices of classes, or 255 for voxels without label: ``{0: "background", 255: "object"}``.
        scribble_values: likewise, of the scribbles.
        unlabelled: the value of scribbles where nothing was drawn, beside 255.
        window: (low, high): which values of the files become 0 and 1, others are cut off, as (-160, 240) Hounsfield
            units. By default ``percentiles`` of each volume's values, as suits MR.
        percentiles: (low, high), in percent.
        spacing: to which all volumes are resampled, in mm: of slices, rows and columns with ``dims = 3``, of rows and
            columns with 2; "median" = the median over the volumes, axis by axis. See `regloss.io.resampling`. By
            default nothing is resampled.
        file_spacing: of files that do not state theirs, as NPY and most TIFF and HDF5 do not: mm between slices, rows
            and columns; by default 1.
        channels: of every volume, where a file each holds them, CASE_0000.nii.gz, CASE_0001.nii.gz, or the fourth axis
            of a file, as of modalities that were stacked. By default as many as the files say, all the same.

    Raises:
        UsageError: a folder or file is missing, there are no volumes, or two share a name; a header that cannot be
            read; classes are not given; the split or ``group`` does not fit the ids; another setting is not valid.
    """

    def __init__(
        self,
        root: PathLike,
        *,
        dims: int = 3,
        axis: int | None = None,
        split: PathLike | Mapping[str, Sequence[str]] | None = None,
        classes: PathLike | Sequence[str] | int | None = None,
        images: str = "images",
        labels: str | Mapping[Any, Any] | None = "labels",
        scribbles: str | None = "scribbles",
        group: str | None = None,
        label_values: Mapping[Any, Any] | None = None,
        scribble_values: Mapping[Any, Any] | None = None,
        unlabelled: int | None = None,
        window: Sequence[float] | None = None,
        percentiles: Sequence[float] = (0.5, 99.5),
        spacing: Sequence[float] | str | None = None,
        file_spacing: Sequence[float] | None = None,
        channels: int | None = None,
    ) -> None:
        folder: str | None
        if isinstance(labels, Mapping):
            if label_values is not None:
                raise UsageError("labels and label-values both say what values mean; leave one of them out")
            folder, label_values = "labels", labels
        else:
            folder = labels
        self.root = find_root(root)
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise UsageError(f"channels = {channels!r} must be a whole number from 1, or be left out.")
        stored = _image_files(self.root, images)
        image_files = (
            {stem: (path,) for stem, path in stored.items()} if channels is None else cases_of(stored, channels)
        )
        label_files = _mates(self.root, folder, "labels")
        scribble_files = _mates(self.root, scribbles, "scribbles")
        self._folders = {
            "label": f"{self.root / (folder or 'labels')}",
            "scribble": f"{self.root / (scribbles or 'scribbles')}",
        }
        self._orphans = {
            part: [path.name for stem, path in files.items() if stem not in image_files]
            for part, files in (("label", label_files), ("scribble", scribble_files))
        }
        self.classes, self.colors = choose_classes(self.root, classes, list((label_files or scribble_files).values()))
        chosen = Window.of(window)
        self.window = None if chosen is None else chosen.as_list()
        label_map, scribble_map = (
            None if given is None else value_map(given, self.classes, setting)
            for given, setting in ((label_values, "label-values"), (scribble_values, "scribble-values"))
        )
        groups = choose_groups(image_files, group)
        self._cases = Cases(
            [
                Case(stem, paths, label_files.get(stem), scribble_files.get(stem), groups[stem])
                for stem, paths in image_files.items()
            ],
            dims=dims,
            axis=axis,
            intensities=Intensities(chosen, percentiles),
            meanings=Meanings(self.classes, label_map, scribble_map, unlabelled),
            spacing=spacing,
            file_spacing=file_spacing,
            channels=channels,
        )
        self.channels, self.spacing = self._cases.channels, self._cases.spacing
        self.subsets = choose_subsets(self.root, split, self._cases.names)
        self.notes = tuple(
            filter(
                None,
                (
                    left_out(self.root / images, STORED_SUFFIXES, series=True),
                    directions(self._cases.geometries.items()),
                    _unmeasured(self._cases),
                ),
            )
        )

    def check(self, subset: str, need: Sequence[str] = ("scribble",)) -> None:
        """Verify a subset before it is used, and report everything that is wrong with it in one message.

        Args:
            subset: its name.
            need: the parts that each volume must have: "scribble", "label", both or none.

        Raises:
            UsageError: volumes lack a part that is needed; label volumes have no image; grids differ; slices on which
                nothing is drawn, where scribbles are needed.
        """
        problems = [
            f"{len(names)} {part} files have no image of that name in {self.root}: {listed(names)}"
            for part, names in self._orphans.items()
            if part in need and names
        ]
        self._cases.check(self.ids(subset), need, self._folders, subset, problems)


def _image_files(root: Path, images: str) -> dict[str, Path]:
    folder = root / images
    if not folder.is_dir():
        raise UsageError(
            f"{root} has no folder {images!r}; volumes are expected there, or name their folder by 'images'"
        )
    files = index_folder(folder, STORED_SUFFIXES, series=True)
    if not files:
        others = sorted({path.suffix or path.name for path in folder.iterdir() if not path.name.startswith(".")})
        raise UsageError(
            f"{folder} holds no volume ({', '.join(STORED_SUFFIXES)}, or folders of .dcm), but "
            f"{f'only {listed(others)}; pictures are read by the data set folder' if others else 'nothing'}"
        )
    return files


def _mates(root: Path, folder: str | None, default: str) -> dict[str, Path]:
    """Label volumes by stem. A folder may be absent only if nobody asked for it by a name of its own."""
    if folder is None or (folder == default and not (root / folder).exists()):
        return {}
    return index_folder(root / folder, STORED_SUFFIXES)


def _unmeasured(cases: Cases) -> str:
    """A sentence on volumes whose spacing nothing says; "" if there are none."""
    names = [name for name, geometry in cases.geometries.items() if not geometry.measured]
    if not names or cases.file_spacing is not None:
        return ""
    return (
        f"{len(names)} volumes do not state their spacing, which counts as 1 mm: {listed(names)}; file-spacing = "
        "[SLICES, ROWS, COLUMNS] gives it in mm."
    )
