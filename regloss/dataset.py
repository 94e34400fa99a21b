"""Data sets: named samples with an image, and whatever labels there are.

A data set knows files and class names. It knows nothing of tensors, batches or augmentation (`regloss.training`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regloss.errors import UsageError
from regloss.settings import CheckedSettings

IGNORE = 255
"""The label value of a pixel that is unlabelled (in scribbles) or left out of the scores (in dense labels)."""


@dataclass(frozen=True)
class Slice:
    """Where in a volume a sample was cut.

    Attributes:
        volume: the volume's name.
        axis: along which slices follow each other, of the volume's three.
        number: of this one, from 0.
        spacing: distance of neighbouring slices in mm.
    """

    volume: str
    axis: int
    number: int
    spacing: float


@dataclass(frozen=True)
class Sample:
    """One image with its labels, as stored: never augmented, never padded.

    Attributes:
        id: unique within the data set; usable as a file name.
        image: (C, *S) float32 in [0, 1].
        label: (*S) uint8 class indices with 255 = ignored, or None where there is no dense label.
        scribble: (*S) uint8 class indices with 255 = unlabelled, or None where there is no scribble.
        group: the unit that scores are averaged over (a patient's volume, say); the id itself by default.
        spacing: distance between neighbouring pixels along each axis of S, in mm; None = not known.
        slice: the place of a slice in its volume; None = it is none.
    """

    id: str
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8] | None
    scribble: npt.NDArray[np.uint8] | None
    group: str
    spacing: tuple[float, ...] | None = None
    slice: Slice | None = None


class Dataset(metaclass=CheckedSettings):
    """Samples by id, in named subsets.

    Attributes:
        classes: class names; index 0 is the background.
        colors: one RGB triple of 0..255 for each class, for overlays and palettes.
        channels: image channels C (1 grey, 3 RGB, others for what they are).
        window: (low, high) or (low, high, bits): which values of its files become 0 and 1; None = it follows from their
            types. A trained model keeps it for the images that it segments later. See `regloss.io.windows`.
        spacing: in mm, to which all samples are resampled; None = they are as stored. A trained model keeps it, too.
        notes: sentences for the reader: files left out, ranges found.
    """

    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    channels: int
    window: Sequence[float] | None = None
    spacing: Sequence[float] | None = None
    notes: Sequence[str] = ()

    @abstractmethod
    def ids(self, subset: str) -> Sequence[str]:
        """Ids of ``subset`` ("train", "val", "test" or a name of the data set's own), in a fixed order.

        Raises:
            UsageError: there is no such subset, or it is empty.
        """

    @abstractmethod
    def load(self, sample_id: str) -> Sample:
        """Read one sample.

        Raises:
            UsageError: a file is missing or invalid (sizes differ, labels outside the classes); the message
                names the file.
        """

    def files_of(self, sample_id: str) -> Sequence[Path]:
        """Files from which, together with the settings, all of a sample follows; none = there may be others.

        What a training asks of samples before it starts is remembered as long as these stay as they are.
        """
        return ()

    def volume_of(self, sample_id: str) -> str:
        """The volume that a sample is a slice of; its own id for what is none.

        Slices of a volume stand beside each other in `ids`, and one process predicts all of them.
        """
        return sample_id

    def group_of(self, sample_id: str) -> str:
        """The group of a sample; data sets that know it without reading the sample override this."""
        return self.load(sample_id).group

    def check(self, subset: str, need: Sequence[str] = ("scribble",)) -> None:
        """Find out before training whether every sample of ``subset`` can be read and has what ``need`` names.

        Data sets that can tell from file names and headers override this with something faster.

        Args:
            subset: see `ids`.
            need: "scribble" and "label", or one of them.

        Raises:
            UsageError: samples lack something; the message lists the first ten and their number.
        """
        for what in need:
            missing = [sample_id for sample_id in self.ids(subset) if getattr(self.load(sample_id), what) is None]
            if missing:
                listed = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
                raise UsageError(f"{len(missing)} samples of {subset!r} have no {what}: {listed}.")
