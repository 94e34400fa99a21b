"""Kills a prediction at its file operations, one after the other, and looks whether it goes on with what is left.

    python tests/attacks/prediction_kills.py --every 1

What is there after a kill must be complete; the prediction that goes on must leave it alone, and end with the labels of
one that was never killed and no unfinished file. Places to be killed at are those of `attacks.kills`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import small_data
from attacks.kills import Kill, die_before

_PRELOADED = ["regloss.apps.predict", "regloss.training.trainer", "regloss.report.page"]


def train_model(root: Path) -> tuple[Path, Path]:
    """A model of small images below ``root``, and the folder of these."""
    from regloss.report import page
    from regloss.training.config import parse
    from regloss.training.trainer import train

    data = small_data.write_folder(root / "data")
    page.write_report = lambda folder, **contents: folder
    train(parse(small_data.settings(data, root / "run", "training.epochs=1", "network.levels=1")))
    return root / "run", data / "images"


def predict_until(run: Path, images: Path, output: Path, place: int | None, done: SimpleQueue[list[str]]) -> None:
    """Predict, or go on with it, and be killed before the operation ``place``; tell at the end which there were."""
    import torch

    from regloss.apps.predict import predict_files

    torch.set_num_threads(1)
    operations = die_before(str(output), place)
    predict_files(run, images, output, resume=True)
    done.put(operations)


def kills(root: Path, run: Path, images: Path, every: int) -> Iterator[Kill]:
    """Kills at every ``every``-th operation of a prediction."""
    context = multiprocessing.get_context("forkserver")
    done: SimpleQueue[list[str]] = context.SimpleQueue()

    def predict(output: Path, place: int | None) -> int | None:
        process = context.Process(target=predict_until, args=(run, images, output, place, done))
        process.start()
        process.join()
        return process.exitcode

    def finished(output: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (output / "labels").glob("[!.]*")}

    assert predict(root / "whole", None) == 0
    operations, expected = done.get(), finished(root / "whole")
    for place in range(0, len(operations), every):
        output = root / f"killed-{place}"
        killed = predict(output, place)
        before = finished(output)
        wrong = [] if killed == -signal.SIGKILL else [f"ended with {killed} instead of a kill"]
        wrong += [f"left half of {name}" for name, data in before.items() if data != expected[name]]
        places = {path: path.stat().st_ino for path in (output / "labels").glob("[!.]*")}
        gone_on = predict(output, None)
        if gone_on == 0:
            done.get()
        wrong += [] if gone_on == 0 else [f"went on to {gone_on}"]
        wrong += [] if finished(output) == expected else ["other labels"]
        wrong += [f"{path.name} was written again" for path, inode in places.items() if path.stat().st_ino != inode]
        left = [str(path.relative_to(output)) for path in output.rglob(".*")]
        wrong += [f"left {', '.join(left)}"] if left else []
        overlays = {path.stem for path in (output / "overlays").glob("*")}
        wrong += [] if overlays == {Path(name).stem for name in expected} else ["other overlays"]
        yield Kill(place, operations[place], "; ".join(wrong))


def main() -> int:
    """Print what went wrong, and counts; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(_PRELOADED)
    began, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for kill in kills(Path(folder), *train_model(Path(folder)), options.every):
            found.append(kill)
            print(f"{kill.place} {kill.operation}: {kill.wrong or 'goes on'}", flush=True)
    wrong = sum(bool(kill.wrong) for kill in found)
    print(f"{len(found)} kills, {wrong} wrong; {time.perf_counter() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
