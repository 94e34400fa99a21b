"""The threads that answer scribbles: of each image the newest request counts, and the latest asked for comes first.

One thread has the first stages of answers, the other what takes longer. So a stroke has its preview while the stroke
before it is still being solved, for which the other thread gives way where the system lets threads do that. Solving
happens in compiled code and in torch, which let other threads run meanwhile: the server goes on saving strokes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from regloss.apps.annotate.live import Answer, AnswerSettings, LiveImage
from regloss.dataset import IGNORE
from regloss.errors import ReglossError
from regloss.io.types import LabelMap

_KEPT = 3  # images with all that is computed once
_NICE = 10
_PATIENCE = 30.0  # seconds that a thread has to end


@dataclass(frozen=True)
class Published:
    """An answer, with its place in the order of answers of its image.

    Attributes:
        number: rises with each answer, from 1.
        request: number of the request that it answers.
        answer: itself.
    """

    number: int
    request: int
    answer: Answer


@dataclass(frozen=True)
class _Request:
    """What is asked for, and the labels to start from once there are some."""

    number: int
    labels: LabelMap
    classes: int
    settings: AnswerSettings
    at: float
    start: LabelMap | None = None


class Solver:
    """Answers requests.

    Args:
        open_image: index -> the image, ready to be segmented.
        callback: called, in one of the threads, with the index of an image that has a new answer.
    """

    def __init__(self, open_image: Callable[[int], LiveImage], callback: Callable[[int], object]) -> None:
        self._open_image = open_image
        self._callback = callback
        self._images: OrderedDict[int, LiveImage] = OrderedDict()
        self._newest: dict[int, int] = {}
        self._published: dict[int, Published] = {}
        self._numbers = self._generation = 0
        self._changed = threading.Condition()
        self._opening = threading.Lock()
        self._closed = False
        self._first: OrderedDict[int, _Request] = OrderedDict()
        self._further: OrderedDict[int, _Request] = OrderedDict()
        self._threads = [
            threading.Thread(target=self._run, args=(waiting, work, gives_way), name=f"regloss-{name}", daemon=True)
            for name, waiting, work, gives_way in (
                ("quick", self._first, self._quick, False),
                ("thorough", self._further, self._thorough, True),
            )
        ]
        for thread in self._threads:
            thread.start()

    def request(self, index: int, labels: LabelMap, classes: int, settings: AnswerSettings) -> int:
        """Ask for the answer to scribbles (H, W), which must not change any more; gives the number of the request."""
        with self._changed:
            self._numbers += 1
            self._newest[index] = self._numbers
            self._further.pop(index, None)
            self._put(self._first, index, _Request(self._numbers, labels, classes, settings, time.perf_counter()))
            return self._numbers

    def newest(self, index: int) -> int:
        """Number of the last request for an image; 0 if there was none."""
        with self._changed:
            return self._newest.get(index, 0)

    def latest(self, index: int) -> Published | None:
        """The newest answer for an image."""
        with self._changed:
            return self._published.get(index)

    def forget_images(self) -> None:
        """Compute anew what is computed once for each image, as with another network."""
        with self._changed:
            self._images.clear()
            self._generation += 1

    def close(self) -> None:
        """End the threads, after the stage that they are at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:  # a program that ends while they compute is aborted by torch
            thread.join(_PATIENCE)

    def _put(self, waiting: OrderedDict[int, _Request], index: int, request: _Request) -> None:
        waiting[index] = request
        waiting.move_to_end(index)
        self._changed.notify_all()

    def _run(self, waiting: OrderedDict[int, _Request], work: Callable[[int, _Request], None], gives_way: bool) -> None:
        import torch

        torch.set_num_threads(1)  # of this thread: what it computes is small, and a training may want the others
        if not gives_way:
            _warm_up()
        if gives_way and sys.platform == "linux":  # there a thread's priority can be set by its number
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            with self._changed:
                while not waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                index, request = waiting.popitem()
            try:
                work(index, request)
            except ReglossError as error:
                self._publish(index, request, Answer(None, state="problem", message=str(error)))
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                message = f"The solver failed: {type(error).__name__}: {error}"
                self._publish(index, request, Answer(None, state="problem", message=message))

    def _quick(self, index: int, request: _Request) -> None:
        answer = self._image(index).quick(request.labels, request.classes, request.settings)
        if answer is not None:
            self._publish(index, request, answer)
        if answer is None or not answer.final:
            with self._changed:
                if self._newest[index] == request.number:
                    start = None if answer is None else answer.labels
                    self._put(self._further, index, replace(request, start=start))

    def _thorough(self, index: int, request: _Request) -> None:
        stages = self._image(index).thorough(request.labels, request.classes, request.settings, request.start)
        for answer in stages:
            if not self._publish(index, request, answer):
                return

    def _image(self, index: int) -> LiveImage:
        with self._opening:
            with self._changed:
                image, generation = self._images.get(index), self._generation
            if image is None:
                image = self._open_image(index)
            with self._changed:
                if generation != self._generation:  # forgotten meanwhile
                    return image
                self._images[index] = image
                self._images.move_to_end(index)
                while len(self._images) > _KEPT:
                    self._images.popitem(last=False)
            return image

    def _publish(self, index: int, request: _Request, answer: Answer) -> bool:
        """Make an answer known, unless one to a newer request is; gives whether further stages are wanted."""
        answer = replace(answer, seconds=time.perf_counter() - request.at)
        with self._changed:
            before = self._published.get(index)
            wanted = self._newest[index] == request.number and not self._closed
            if before is None or before.request <= request.number:
                number = 1 if before is None else before.number + 1
                self._published[index] = Published(number, request.number, answer)
        self._callback(index)
        return wanted


def _warm_up() -> None:
    """Load compiled code, or compile it, before somebody waits for it."""
    image = np.linspace(0, 1, 3 * 16, dtype=np.float32).reshape(3, 4, 4)
    scribbles = np.full((4, 4), IGNORE, dtype=np.uint8)
    scribbles[0, 0], scribbles[3, 3] = 0, 1
    LiveImage(image).quick(scribbles, 2, AnswerSettings())
