"""The answers of all images that are drawn on, as label maps beside them; of a volume in one file, 255 elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regloss.apps.annotate.image_set import ImageSet
from regloss.apps.annotate.live import Answer
from regloss.apps.annotate.sources import Source
from regloss.dataset import IGNORE
from regloss.errors import ReglossError, UsageError
from regloss.io.outputs import writing
from regloss.io.types import LabelMap

MASKS = "masks"


@dataclass(frozen=True)
class MasksState:
    """How the last saving stands.

    Attributes:
        running: whether it goes on.
        folder: its name, in the annotated one; "" if there was none.
        done: masks that are written. images: that there will be at most.
        problems: sentences on images that have none.
    """

    running: bool = False
    folder: str = ""
    done: int = 0
    images: int = 0
    problems: Sequence[str] = ()


class Masks:
    """Writes answers, image by image, in a thread; each time into a new folder masks, masks-2, masks-3.

    Args:
        images: the images.
    """

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self._lock = threading.Lock()
        self._state = MasksState()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> MasksState:
        """How it stands."""
        with self._lock:
            return self._state

    def begin(self, indices: Sequence[int], answer: Callable[[int], Answer]) -> None:
        """Write the answers for some images.

        Args:
            indices: of them.
            answer: index -> the answer, at the image's size or reduced.

        Raises:
            UsageError: an earlier call is still at it, or there are no images.
            FailedWrite: the folder cannot be made.
        """
        if not indices:
            raise UsageError("There is nothing to save yet: draw on an image first.")
        with self._lock:
            if self._state.running:
                raise UsageError("Masks are being saved already.")
            folder = self._new_folder()
            self._state = MasksState(True, folder.name, 0, len(indices))
            self._thread = threading.Thread(target=self._run, args=(folder, indices, answer), name="regloss-masks")
            self._thread.start()

    def close(self) -> None:
        """Write no more than the one that it is at."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _new_folder(self) -> Path:
        number, folder = 1, self._images.root / MASKS
        while folder.exists():
            number += 1
            folder = self._images.root / f"{MASKS}-{number}"
        with writing(folder):
            folder.mkdir()
        return folder

    def _run(self, folder: Path, indices: Sequence[int], answer: Callable[[int], Answer]) -> None:
        import torch

        torch.set_num_threads(1)
        done, problems, planes = 0, [], _Planes(self._images, folder)
        for index in indices:
            if self._stop.is_set():
                break
            try:
                found = answer(index)
                if found.labels is None:
                    problems.append(f"{self._images.ids[index]}: {found.message}")
                else:
                    planes.add(index, found.labels, found.factor)
                    done += 1
            except Exception as error:  # of any image: the others are not lost, and the page says it
                problems.append(f"{self._images.ids[index]}: {_in_words(error)}")
            with self._lock:
                self._state = MasksState(True, folder.name, done, len(indices), tuple(problems))
        try:
            planes.write()
        except Exception as error:  # as above
            problems.append(_in_words(error))
        with self._lock:
            self._state = MasksState(False, folder.name, done, len(indices), tuple(problems))


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, ReglossError) else f"{type(error).__name__}: {error}"


class _Planes:
    """What is written of one file after the other; images come in their order."""

    def __init__(self, images: ImageSet, folder: Path) -> None:
        self._images = images
        self._folder = folder
        self._source: Source | None = None
        self._planes: list[LabelMap] = []

    def add(self, index: int, labels: LabelMap, factor: int) -> None:
        """The labels of an image, reduced by ``factor``."""
        source = self._images.source(index)
        if source is not self._source:
            self.write()
            self._source = source
            self._planes = [np.full(source.size, IGNORE, dtype=np.uint8) for _ in source.ids]
        height, width = source.size
        self._planes[index - source.first] = labels.repeat(factor, 0).repeat(factor, 1)[:height, :width]

    def write(self) -> None:
        """Write what there is, once."""
        source, self._source = self._source, None
        if source is not None:
            path = self._images.inside(self._folder / source.label_name)
            source.write_labels(path, self._planes, self._images.classes.colors, durable=False)
