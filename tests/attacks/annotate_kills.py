"""Kills a server of `regloss annotate` while strokes arrive, and looks at what is on disk.

    python tests/attacks/annotate_kills.py --kills 30

A client draws one stroke after the other, each of one more run of pixels; the server is killed at a random moment, or
just before a chosen one of its file operations. Then the scribbles must be readable, and hold every stroke that was
answered, and none but those and the one that was on its way.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
from annotation import Client, strokes_of, write_images

_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove"}
_MOST, _LONGEST = 12, 0.03  # strokes, and seconds behind them, until a random kill
_PRELOADED = ["regloss.apps.annotate.server", "regloss.apps.annotate.command", "regloss_plugins.datasets.folder"]


@dataclass(frozen=True)
class Kill:
    """What came of a kill: an empty ``wrong`` is right.

    Attributes:
        answered: strokes that the server has said to be saved.
        lost: how many of these are not on disk.
        wrong: what else is.
    """

    answered: int
    lost: int
    wrong: str


def serve(root: str, place: int | None, told: Connection) -> None:
    """A server that is killed before its file operation ``place``, counted from the first stroke."""
    import torch

    from regloss.apps.annotate.command import AnnotationServer

    torch.set_num_threads(1)
    server = AnnotationServer(Path(root))
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in _CHANGES or not str(arguments[0]).startswith(root):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if done == place:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    if place is not None:
        sys.addaudithook(watch)
    told.send((server.port, server.token))
    server.run()


Moment: TypeAlias = int | tuple[int, float]
"""When a server is killed: before which of its file operations, or behind how many strokes, and how many seconds."""


def kills(root: Path, moments: Sequence[Moment], strokes: int = 400) -> Iterator[Kill]:
    """Servers of one folder, one after the other, each killed at a moment.

    Args:
        root: an empty folder.
        moments: of the kills.
        strokes: how many are drawn at most, of one kill.
    """
    images = write_images(root / "set", count=1, size=(64, 64))
    path = images / "scribbles/i0.png"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    expected = np.full(64 * 64, 255, dtype=np.uint8)
    for moment in moments:
        here, there = context.Pipe()
        place = moment if isinstance(moment, int) else None
        process = context.Process(target=serve, args=(str(images), place, there))
        process.start()
        port, token = here.recv()
        client = Client("127.0.0.1", port, token)
        behind, seconds = (strokes, 0.0) if isinstance(moment, int) else moment
        timer = threading.Timer(seconds, process.kill)
        revision, kept = client.scribbles(0)
        wrong = [] if np.array_equal(kept.ravel(), expected) else ["a new server reads something else"]
        answered, on_its_way = 0, None
        for number in range(strokes):
            if number == behind:
                timer.start()
            # Of two classes in turn, all over the image, now and then taking away what was there.
            start, value = (number * 37 + 11 * len(wrong)) % (64 * 64 - 8), (0, 1, 0, 1, 255)[number % 5]
            on_its_way = expected.copy()
            on_its_way[start : start + 8] = value
            try:
                reply = client.draw(0, revision, [start, 8, value])
            except (ConnectionError, OSError, EOFError):
                break
            except Exception as error:  # an answer that ends in its middle
                if type(error).__module__ != "http.client":
                    raise
                break
            if reply.status != 200:
                wrong.append(f"{reply.status}: {reply.body!r}")
                break
            revision, expected, on_its_way = reply.json["revision"], on_its_way, None
            answered += 1
        timer.cancel()
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            wrong.append(f"ended with {process.exitcode} instead of a kill")
        lost = 0
        try:
            found = strokes_of(path).ravel() if path.exists() else np.full(64 * 64, 255, dtype=np.uint8)
        except Exception as error:  # whatever is wrong with it, that is what is looked for
            wrong.append(f"{path.name} cannot be read: {error}")
            found = expected
        if on_its_way is not None and np.array_equal(found, on_its_way):
            expected = found
        elif not np.array_equal(found, expected):
            lost = 1
            wrong.append(f"{(found != expected).sum()} pixels differ")
            expected = found
        yield Kill(answered, lost, "; ".join(wrong))


def random_moments(count: int, seed: int = 0) -> list[Moment]:
    """Moments behind strokes."""
    generator = random.Random(seed)
    return [(generator.randint(0, _MOST), generator.uniform(0, _LONGEST)) for _ in range(count)]


def main() -> None:
    """Print what went wrong, and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--operations", type=int, default=24, help="file operations to be killed at")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments: list[Moment] = [*random_moments(options.kills, options.seed), *range(options.operations)]
    with tempfile.TemporaryDirectory() as folder:
        found = []
        began = time.perf_counter()
        for kill, moment in zip(kills(Path(folder), moments), moments, strict=True):
            found.append(kill)
            at = f"operation {moment}" if isinstance(moment, int) else f"{moment[0]} strokes and {moment[1]:.3f} s"
            print(f"{at}: {kill.answered} strokes answered; {kill.wrong or 'all of them kept'}", flush=True)
    answered = sum(kill.answered for kill in found)
    print(
        f"{len(found)} kills, {answered} strokes answered, {sum(kill.lost for kill in found)} kills that lost one, "
        f"{sum(bool(kill.wrong) for kill in found)} wrong; {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
