"""The answers of all images that are drawn on, as label maps beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regloss.apps.annotate.image_set import ImageSet
from regloss.apps.annotate.live import Answer
from regloss.errors import ReglossError, UsageError
from regloss.io.labels import save_label_png
from regloss.io.outputs import writing

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
        done, problems = 0, []
        for index in indices:
            if self._stop.is_set():
                break
            name = self._images.ids[index]
            try:
                found = answer(index)
                if found.labels is None:
                    problems.append(f"{name}: {found.message}")
                else:
                    height, width = self._images.sizes[index]
                    labels = found.labels.repeat(found.factor, 0).repeat(found.factor, 1)[:height, :width]
                    path = self._images.inside(folder / f"{name}.png")
                    save_label_png(path, np.ascontiguousarray(labels), self._images.classes.colors)
                    done += 1
            except ReglossError as error:
                problems.append(f"{name}: {error}")
            except Exception as error:  # of any image: the others are not lost, and the page says it
                problems.append(f"{name}: {type(error).__name__}: {error}")
            with self._lock:
                self._state = MasksState(True, folder.name, done, len(indices), tuple(problems))
        with self._lock:
            self._state = MasksState(False, folder.name, done, len(indices), tuple(problems))
