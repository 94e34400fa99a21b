"""Kills a training at its file operations, one after the other, and looks whether it goes on to the same bits.

    python tests/attacks/kills.py --workers 0 --every 1

Every file that is opened to be written, and every folder made, file moved or removed, in the output folder is a place
to be killed at, just before it happens. What was killed goes on with ``resume``; it must end with the same model and
log as one that was never killed, and with no unfinished file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import small_data

_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Kill:
    """What came of a kill at the operation ``place``: an empty ``wrong`` is right."""

    place: int
    wrong: str


def train_until(table: dict[str, Any], place: int | None, counted: SimpleQueue[int]) -> None:
    """Train, or go on, and be killed before the operation ``place``; without one, tell how many there were."""
    import torch

    from regloss.hooks import manager
    from regloss.training.config import parse
    from regloss.training.trainer import train

    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(["regloss.training.trainer"])
    manager().unregister(name="regloss:tensorboard")
    manager().register(_NoReport())
    output, owner, done = table["output"], os.getpid(), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in _CHANGES or os.getpid() != owner or not str(arguments[0]).startswith(output):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if done == place:
            os.kill(owner, signal.SIGKILL)
        done += 1

    sys.addaudithook(watch)
    train(parse(table), resume=True)
    counted.put(done)


class _NoReport:
    """No pictures, which take longer than the rest."""

    def __init__(self) -> None:
        import regloss.report.page as page

        def write_report(folder: Path, **contents: Any) -> Path:
            return folder

        page.write_report = write_report  # type: ignore[assignment]


def kills(root: Path, workers: int, every: int, first: int = 0) -> Iterator[Kill]:
    """Kills at every ``every``-th operation of a run below ``root`` with so many loader processes."""
    data = small_data.write_folder(root / "data")
    context = multiprocessing.get_context("forkserver")
    counted: SimpleQueue[int] = context.SimpleQueue()

    def run(output: Path, place: int | None) -> int | None:
        table = small_data.settings(data, output, f"data.workers={workers}", "training.epochs=2", "data.test=")
        process = context.Process(target=train_until, args=(table, place, counted))
        process.start()
        process.join()
        return process.exitcode

    def outcome(output: Path) -> tuple[bytes, bytes]:
        return (output / "model.safetensors").read_bytes(), (output / "log" / "steps.csv").read_bytes()

    assert run(root / "straight", None) == 0
    count, expected = counted.get(), outcome(root / "straight")
    for place in range(first, count, every):
        output = root / f"killed-{place}"
        killed, resumed = run(output, place), run(output, None)
        if resumed == 0:
            counted.get()
        left = [str(path.relative_to(output)) for path in output.rglob(".*")] if output.exists() else []
        wrong = [] if killed == -signal.SIGKILL else [f"ended with {killed} instead of a kill"]
        wrong += [] if resumed == 0 else [f"went on to {resumed}"]
        wrong += [f"left {', '.join(left)}"] if left else []
        wrong += ["other bits"] if resumed == 0 and outcome(output) != expected else []
        yield Kill(place, "; ".join(wrong))


def main() -> None:
    """Print what went wrong, and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(["regloss.training.trainer", "regloss_plugins.solvers.alpha_expansion"])
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for kill in kills(Path(folder), options.workers, options.every, options.first):
            found.append(kill)
            print(f"{kill.place}: {kill.wrong or 'the same bits'}", flush=True)
    print(f"{len(found)} kills, {sum(bool(kill.wrong) for kill in found)} wrong")


if __name__ == "__main__":
    main()
