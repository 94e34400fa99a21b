"""Kills a training at its file operations, one after the other, and looks whether it goes on to the same bits.

    python tests/attacks/kills.py --workers 0 --every 1
    python tests/attacks/kills.py --over

Every file that is opened to be written, every file or folder that is moved or removed, and every folder that is made in
the output folder is a place to be killed at, just before it happens. What was killed goes on with ``resume``; it must
end with the same model and log as one that was never killed, and with no unfinished file. With ``--over`` the killed
training is to replace a finished one, and so is the one that comes after it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import small_data

# Audited operations, and where the folder that a relative path starts from stands among their arguments.
_CHANGES = {
    "open": None,
    "os.mkdir": 2,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.truncate": None,
}
_PRELOADED = ["regloss.training.trainer", "regloss.report.page", "regloss_plugins.solvers.alpha_expansion"]


@dataclass(frozen=True)
class Kill:
    """What came of a kill at the operation ``place``: an empty ``wrong`` is right."""

    place: int
    operation: str
    wrong: str


def train_until(table: dict[str, Any], over: bool, place: int | None, done: SimpleQueue[list[str]]) -> None:
    """Train, and be killed before the operation ``place``; without one, tell at the end which there were."""
    import torch

    from regloss.hooks import manager
    from regloss.report import page
    from regloss.training.config import parse
    from regloss.training.trainer import train

    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(_PRELOADED)
    manager().unregister(name="regloss:tensorboard")
    page.write_report = lambda folder, **contents: folder  # its pictures take longer than all the rest
    operations = die_before(table["output"], place)
    train(parse(table), resume=not over, overwrite=over)
    done.put(operations)


def die_before(output: str, place: int | None) -> list[str]:
    """Have this process killed before its file operation ``place`` in a folder; the list of operations fills up."""
    owner = os.getpid()
    operations: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or os.getpid() != owner:
            return
        if event == "open" and (arguments[2] is None or not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = _path(arguments, _CHANGES[event])
        if path != output and not path.startswith(f"{output}/"):
            return
        if len(operations) == place:
            os.kill(owner, signal.SIGKILL)
        operations.append(f"{event} {path.removeprefix(output)}")

    sys.addaudithook(watch)
    return operations


def _path(arguments: tuple[Any, ...], folder: int | None) -> str:
    path = str(arguments[0])
    if folder is not None and isinstance(arguments[folder], int) and arguments[folder] >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{arguments[folder]}"), path)
    return path


def kills(root: Path, workers: int, every: int, first: int = 0, over: bool = False) -> Iterator[Kill]:
    """Kills at every ``every``-th operation of a run below ``root`` with so many loader processes."""
    data = small_data.write_folder(root / "data")
    context = multiprocessing.get_context("forkserver")
    done: SimpleQueue[list[str]] = context.SimpleQueue()

    def run(output: Path, place: int | None, over: bool = over) -> int | None:
        changes = ["training.epochs=3", "network.levels=1", "training.batch-size=3"]
        changes += ["training.checkpoint-every=1", f"data.workers={workers}"]
        table = small_data.settings(data, output, *changes)
        process = context.Process(target=train_until, args=(table, over, place, done))
        process.start()
        process.join()
        return process.exitcode

    def outcome(output: Path) -> tuple[bytes, bytes]:
        return (output / "model.safetensors").read_bytes(), (output / "log" / "steps.csv").read_bytes()

    output = root / "run"
    # Replacing a run begins with removing it, which has operations of its own.
    for _ in range(2 if over else 1):
        assert run(output, None) == 0
        operations = done.get()
    expected = outcome(output)
    for place in range(first, len(operations), every):
        if not over:
            _remove(output)
        killed, gone_on = run(output, place), run(output, None)
        if gone_on == 0:
            done.get()
        left = [str(path.relative_to(output)) for path in output.rglob(".*")]
        wrong = [] if killed == -signal.SIGKILL else [f"ended with {killed} instead of a kill"]
        wrong += [] if gone_on == 0 else [f"went on to {gone_on}"]
        wrong += [f"left {', '.join(left)}"] if left else []
        wrong += ["other bits"] if gone_on == 0 and outcome(output) != expected else []
        yield Kill(place, operations[place], "; ".join(wrong))
        if wrong:  # and what follows begins anew
            _remove(output)
            assert run(output, None, over=False) == 0
            done.get()


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def main() -> int:
    """Print what went wrong, and counts; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--over", action="store_true", help="replace a finished run instead of beginning one")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(_PRELOADED)
    began, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for kill in kills(Path(folder), options.workers, options.every, options.first, options.over):
            found.append(kill)
            print(f"{kill.place} {kill.operation}: {kill.wrong or 'the same bits'}", flush=True)
    wrong = sum(bool(kill.wrong) for kill in found)
    print(f"{len(found)} kills with {options.workers} workers, {wrong} wrong; {time.perf_counter() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
