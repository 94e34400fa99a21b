"""What was drawn: label maps that are on disk, complete, after every stroke.

A stroke is a list of runs of pixels with their new values, which says the same whatever program computed it; undoing
one is a stroke too. Each image has a revision, a number that a stroke must name: one that was drawn on an older state,
in another tab say, is refused, and its tab reads the image again.

A file is replaced by a complete one that the disk has; that of a volume has the strokes on all its slices. Before a
session changes a file for the first time, what was there is kept beside it as NAME.bak. An earlier copy of that name
gives way only if all of its strokes are in the new one; else the new one is called NAME.bak.1, and so on. Copies of
volumes never give way. Files that another program changes meanwhile are read again, not overwritten.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regloss.apps.annotate.image_set import SCRIBBLES, ImageSet
from regloss.apps.annotate.sources import Source
from regloss.dataset import IGNORE
from regloss.errors import ReglossError, UsageError
from regloss.io.labels import LABEL_SUFFIXES, read_values
from regloss.io.outputs import finished_name, keep_copy, writing
from regloss.io.types import LabelMap
from regloss.io.volumes import NIFTI

_KEPT = 2**28  # pixels of label maps in memory
_ABANDONED = 3600.0  # seconds after which an unfinished file is one of a killed process

Signature = tuple[int, int, int]
"""Of a file: when it was changed, its size, and its number in the file system."""


class OutOfDate(ReglossError):
    """A stroke was drawn on a state of the image that is no longer the present one."""


@dataclass(frozen=True)
class Stroke:
    """Pixels and their new values.

    Attributes:
        tab: that drew it.
        number: of the stroke within its tab, so that one that is sent twice counts once.
        revision: of the image that it was drawn on.
        runs: start, length, value, start, length, value, ...; pixels are numbered row by row.
    """

    tab: str
    number: int
    revision: int
    runs: Sequence[int]


@dataclass
class _Drawing:
    """The scribbles of one file.

    Attributes:
        revisions: of each plane; they rise with every change.
        signature: of the file that ``planes`` are in; None = there is none.
        planes: labels (H, W) of each; None = not in memory.
        last: tab and number of the last stroke.
        kept: whether what was there before this session is kept, or there was nothing.
        lock: held while the file is looked at or replaced.
    """

    revisions: list[int]
    signature: Signature | None = None
    planes: tuple[LabelMap, ...] | None = None
    last: tuple[str, int] | None = None
    kept: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


class Scribbles:
    """The scribbles of an `ImageSet`.

    Args:
        images: what is drawn on.
        callback: called with the index of an image whose scribbles are about to be saved, the labels (H, W) that they
            will be, and the stroke.
    """

    def __init__(self, images: ImageSet, callback: Callable[[int, LabelMap, Stroke], object] | None = None) -> None:
        self.images = images
        self.callback = callback
        self._lock = threading.Lock()
        self._drawings = {source: _Drawing([0] * len(source.ids)) for source in images.sources}
        self._recent: list[Source] = []  # those whose labels are in memory, the last used one last
        self._drawn = [False] * len(images.ids)
        for source in images.sources:
            if images.scribble_path(source).is_file():
                self._drawn[source.first] = True
                if images.volumes:  # on which slices, only its contents tell
                    self._refresh(source, self._drawing(source))
        _sweep(images.root / SCRIBBLES)

    def is_drawn(self, index: int) -> bool:
        """Whether an image has scribbles; of pictures that were not opened yet, whether it has a file."""
        return self._drawn[index]

    def read(self, index: int) -> tuple[LabelMap, int]:
        """Labels (H, W), not to be changed, and their revision.

        Raises:
            UsageError: the file holds no scribbles of these classes and this size.
        """
        source = self.images.source(index)
        drawing = self._drawing(source)
        with drawing.lock:
            planes = self._refresh(source, drawing)
            return planes[index - source.first], drawing.revisions[index - source.first]

    def draw(self, index: int, stroke: Stroke) -> int:
        """Apply a stroke and save the result; gives the new revision.

        Raises:
            OutOfDate: the image has another revision.
            UsageError: runs outside of the image, or values that are no class; or see `read`.
            FailedWrite: the file cannot be written; nothing has changed.
        """
        source = self.images.source(index)
        plane, drawing = index - source.first, self._drawing(source)
        with drawing.lock:
            planes = self._refresh(source, drawing)
            if drawing.last == (stroke.tab, stroke.number):
                return drawing.revisions[plane]
            if stroke.revision != drawing.revisions[plane]:
                raise OutOfDate(f"{self.images.ids[index]} has been changed elsewhere.")
            labels = planes[plane].copy()
            places, values = _pixels(stroke.runs, labels.size, len(self.images.classes.names))
            labels.reshape(-1)[places] = values
            if self.callback is not None:
                self.callback(index, labels, stroke)
            planes = (*planes[:plane], labels, *planes[plane + 1 :])
            self._save(source, drawing, planes)
            self._drawn[index] = bool((labels != IGNORE).any())
            drawing.planes, drawing.last = planes, (stroke.tab, stroke.number)
            drawing.revisions[plane] += 1
            return drawing.revisions[plane]

    def _drawing(self, source: Source) -> _Drawing:
        with self._lock:
            if source in self._recent:
                self._recent.remove(source)
            self._recent.append(source)
            pixels = [len(each.ids) * each.size[0] * each.size[1] for each in self._recent]
            while len(self._recent) > 1 and sum(pixels) > _KEPT:
                old = self._drawings[self._recent[0]]
                if not old.lock.acquire(blocking=False):  # it is being used
                    break
                old.planes = None
                old.lock.release()
                self._recent.pop(0)
                pixels.pop(0)
            return self._drawings[source]

    def _refresh(self, source: Source, drawing: _Drawing) -> tuple[LabelMap, ...]:
        """Read the file, unless its labels are in memory and it is as it was."""
        path = self.images.scribble_path(source)
        signature = _signature(path)
        if signature == drawing.signature and drawing.planes is not None:
            return drawing.planes
        if signature is None:
            planes = tuple(np.full(source.size, IGNORE, dtype=np.uint8) for _ in source.ids)
        else:
            planes = source.read_labels(path, self.images.classes.names)
        if signature != drawing.signature:
            drawing.revisions = [revision + 1 for revision in drawing.revisions]
            drawing.kept = False
        drawing.signature, drawing.planes = signature, planes
        for plane, labels in enumerate(planes):
            self._drawn[source.first + plane] = bool((labels != IGNORE).any())
        return planes

    def _save(self, source: Source, drawing: _Drawing, planes: Sequence[LabelMap]) -> None:
        path = self.images.scribble_path(source)
        if not drawing.kept:
            keep_copy(path, lambda copy: self._covers(path, copy))
            drawing.kept = True
        if any((labels != IGNORE).any() for labels in planes):
            self.images.write_classes()
            source.write_labels(path, planes, self.images.classes.colors, durable=True)
        else:
            with writing(path):  # an image without a stroke has no file: training would ask what it is for
                path.unlink(missing_ok=True)
        drawing.signature = _signature(path)

    def _covers(self, path: Path, copy: Path) -> bool:
        """Whether all strokes of ``copy`` are in the file ``path`` too."""
        try:
            before, now = read_values(copy), read_values(path)
        except UsageError:
            return False  # whatever it holds, it stays
        return before.shape == now.shape and bool((before[before != IGNORE] == now[before != IGNORE]).all())


def _pixels(runs: Sequence[int], pixels: int, classes: int) -> tuple[npt.NDArray[np.int64], LabelMap]:
    """Places and values of the pixels in some runs.

    Raises:
        UsageError: they are no runs of such an image.
    """
    if len(runs) % 3 or not len(runs):
        raise UsageError(f"A stroke is runs of start, length and value; got {len(runs)} numbers.")
    try:
        start, length, value = np.array(runs, dtype=np.int64).reshape(-1, 3).T
    except OverflowError as cause:
        raise UsageError(f"A stroke lies within an image of {pixels} pixels.") from cause
    total = int(length.sum()) if (length <= pixels).all() else pixels + 1
    if (length < 1).any() or total > pixels or (start < 0).any() or (start > pixels - length).any():
        raise UsageError(f"A stroke lies within an image of {pixels} pixels, and names each of them once.")
    if not ((value == IGNORE) | ((value >= 0) & (value < classes))).all():
        raise UsageError(f"Values of a stroke are classes, 0 to {classes - 1}, or {IGNORE} for none.")
    ends = np.cumsum(length)
    places = np.repeat(start - (ends - length), length) + np.arange(total)
    return places, np.repeat(value, length).astype(np.uint8)


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _sweep(folder: Path) -> None:
    """Remove files that a killed process was writing, which nobody reads."""
    if folder.is_dir():
        for path in folder.iterdir():
            name = finished_name(path)
            abandoned = (
                name is not None
                and name.lower().endswith((*LABEL_SUFFIXES, *NIFTI))
                and path.is_file()
                and not path.is_symlink()
            )
            if abandoned and time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
