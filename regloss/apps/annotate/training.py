"""Train on what was drawn: a configuration that is shown, a process of `regloss train`, and its progress.

The configuration is made here, from few settings, and lies beside the run: what a page sends is never a path or a
table. It is what the guide's first steps train; who wants another copies the file and trains by hand.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from regloss.apps.annotate.image_set import ImageSet
from regloss.apps.annotate.scribbles import Scribbles
from regloss.apps.annotate.sources import Volume
from regloss.dataset import IGNORE
from regloss.errors import ReglossError, UsageError
from regloss.io.cases import rounded_spacing
from regloss.io.outputs import write_new, writing
from regloss.training.logs import CsvLog

RUNS = "runs"
_LONGEST = 512  # pixels of the longer side, above which images are reduced
_CROP = 128
_BATCH = 4
_NICE = 5
_PATIENCE = 10.0  # seconds that a process has to end when it is asked to
_TAIL = 4000  # characters of what it printed


class TrainingSettings(BaseModel):
    """What a page may choose.

    Attributes:
        epochs: passes over the images.
        weight: of the grid CRF in the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=60, ge=1, le=10_000)
    weight: float = Field(default=1.0, ge=0, le=1000)


@dataclass(frozen=True)
class TrainingState:
    """How a training stands.

    Attributes:
        state: "none" has been started; "running"; "done"; "stopped" on demand; "failed".
        run: its name, below runs/.
        step: optimizer steps taken. steps: in all.
        losses: mean loss of each epoch so far.
        said: the end of what it printed.
        problem: why its network cannot be used.
        images: how many it trains on.
    """

    state: Literal["none", "running", "done", "stopped", "failed"]
    run: str = ""
    step: int = 0
    steps: int = 0
    losses: Sequence[float] = ()
    said: str = ""
    problem: str = ""
    images: int = 0


@dataclass
class _Process:
    """A training that was started."""

    run: str
    popen: subprocess.Popen[bytes]
    steps: int
    images: int
    stopped: bool = False
    ended: bool = False
    problem: str = ""


class Training:
    """Trainings on the scribbles of an image set, one at a time.

    Args:
        images: what is trained on.
        scribbles: which images have any.
        callback: called with the folder of each run that is done.
    """

    def __init__(self, images: ImageSet, scribbles: Scribbles, callback: Callable[[Path], object]) -> None:
        self.images = images
        self.scribbles = scribbles
        self.callback = callback
        self._lock = threading.Lock()
        self._process: _Process | None = None

    @property
    def folder(self) -> Path:
        """Where runs lie.

        Raises:
            UsageError: it is a link that leads out of the annotated folder.
        """
        return self.images.inside(self.images.root / RUNS)

    def plan(self, settings: TrainingSettings) -> str:
        """The configuration that `start` would train with, as TOML.

        Raises:
            UsageError: too little is drawn.
        """
        return self._configuration(self._next_run(), self._drawn(), settings)

    def start(self, settings: TrainingSettings) -> None:
        """Write the configuration, and start to train.

        Raises:
            UsageError: too little is drawn, or a training is running.
            FailedWrite: the files cannot be written.
        """
        with self._lock:
            if self._process is not None and self._process.popen.poll() is None:
                raise UsageError(f"{self._process.run} is still training. Wait until it ends, or stop it.")
            run, drawn = self._next_run(), self._drawn()
            text = self._configuration(run, drawn, settings)
            path = self.folder / f"{run}.toml"
            with writing(path):
                self.folder.mkdir(exist_ok=True)
            self.images.write_classes()  # strokes of another program may have come without
            write_new(path, text)
            with writing(path), self._printed(run).open("wb") as printed:
                popen = subprocess.Popen(
                    [sys.executable, "-m", "regloss_cli.main", "train", str(path), "--quiet"],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    cwd=self.images.root,
                    start_new_session=True,  # Ctrl-C is for the server, which ends it
                )
            if os.name == "posix":
                os.setpriority(os.PRIO_PROCESS, popen.pid, _NICE)  # who draws meanwhile has the first turn
            steps = settings.epochs * math.ceil(len(drawn) / self._batch(drawn))
            self._process = _Process(run, popen, steps, len(drawn))
            threading.Thread(target=self._wait, args=(self._process,), daemon=True).start()

    def stop(self) -> None:
        """End the training that is running, if one is; its last checkpoint stays."""
        with self._lock:
            process = self._process
        if process is None or process.popen.poll() is not None:
            return
        process.stopped = True
        process.popen.terminate()
        try:
            process.popen.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.popen.kill()

    def state(self) -> TrainingState:
        """How the last training stands."""
        with self._lock:
            process = self._process
        if process is None:
            return TrainingState("none")
        code, log = process.popen.poll(), self.folder / process.run / "log"
        state: Literal["running", "done", "stopped", "failed"]
        if code is None or not process.ended:
            state = "running"
        elif process.stopped:
            state = "stopped"
        else:
            state = "done" if code == 0 else "failed"
        rows = _rows(log / "steps.csv", "step")
        losses = [row["loss"] for row in _rows(log / "epochs.csv", "epoch") if "loss" in row]
        step = int(rows[-1]["step"]) if rows else 0
        return TrainingState(
            state, process.run, step, process.steps, losses, self._said(process.run), process.problem, process.images
        )

    def report(self) -> Path | None:
        """The report of the last training, once it is there."""
        with self._lock:
            process = self._process
        if process is None:
            return None
        path = self.images.inside(self.folder / process.run / "report.html")
        return path if path.is_file() else None

    def _wait(self, process: _Process) -> None:
        code = process.popen.wait()
        try:
            if code == 0:
                self.callback(self.folder / process.run)
        except ReglossError as error:
            process.problem = str(error)
        finally:
            process.ended = True

    def _drawn(self) -> list[int]:
        """Images with scribbles, which are looked at.

        Raises:
            UsageError: there are none, or all are of one class.
        """
        drawn, classes = [], set()
        for index in range(len(self.images.ids)):
            if self.scribbles.is_drawn(index):
                labels, _ = self.scribbles.read(index)
                found = set(labels[labels != IGNORE].tolist()) if (labels != IGNORE).any() else set()
                classes |= found
                drawn += [index] if found else []
        if len(classes) < 2:
            raise UsageError(
                "Nothing can be learnt yet: draw strokes of at least two classes, background being one, on one image "
                "or on several."
            )
        return drawn

    def _configuration(self, run: str, drawn: Sequence[int], settings: TrainingSettings) -> str:
        sizes = [self.images.sizes[index] for index in drawn]
        names = ", ".join(_text(self.images.ids[index]) for index in drawn)
        grey = "" if self.images.grey is None else f"grey = {str(self.images.grey).lower()}\n"
        reduce = max(1, math.ceil(max(max(size) for size in sizes) / _LONGEST))
        kind = f'dataset = "folder"\n{grey}reduce = {reduce}'
        if self.images.volumes:
            kind = 'dataset = "volumes"\ndims = 2                  # slices are samples'
        return f"""\
output = {_text(str(self.folder / run))}

[data]
{kind}
root = {_text(str(self.images.root))}
images = {_text(self.images.folder)}
split = {{train = [{names}]}}
test = ""                 # no image is kept apart for scores
max-scribbled = 1.0       # filled polygons may cover much
crop = {_CROP}
normalize = "image"
augment = {{flip = true, scale = [0.8, 1.25], rotate = 20.0, brightness = 0.1, contrast = 0.1}}

[network]
name = "unet"
channels = 8
levels = 3

[[loss.regularizer]]
name = "grid-crf"
weight = {settings.weight}

[loss.outer-loop]
name = "trust-region"
solver = "alpha-expansion"
coupling = 0.05
update-every = 5

[training]
epochs = {settings.epochs}
batch-size = {self._batch(drawn)}
optimizer = {{name = "adam", lr = 5e-3}}
schedule = {{name = "cosine"}}
"""

    def _batch(self, drawn: Sequence[int]) -> int:
        """Images in a batch, no more than there are; slices in one must have the same spacing."""
        if not self.images.volumes:
            return min(_BATCH, len(drawn))
        sources = [self.images.source(index) for index in drawn]
        spacings = {rounded_spacing(source.geometry) for source in sources if isinstance(source, Volume)}
        return _BATCH if len(spacings) < 2 else 1

    def _next_run(self) -> str:
        number = 1
        while any((self.folder / f"annotate-{number}{ending}").exists() for ending in ("", ".toml", ".txt")):
            number += 1
        return f"annotate-{number}"

    def _printed(self, run: str) -> Path:
        return self.folder / f"{run}.txt"

    def _said(self, run: str) -> str:
        try:
            return self._printed(run).read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        except OSError as error:
            return f"{error}"


def _rows(path: Path, key: str) -> list[dict[str, float]]:
    """The rows of a log that is being written."""
    try:
        return CsvLog(path, key).rows
    except ReglossError:  # it is replaced at this moment, as when a column is added
        return []


def _text(value: str) -> str:
    """A text in TOML."""
    found: Any = json.dumps(value, ensure_ascii=False)
    return str(found).replace("\x7f", "\\u007f")
