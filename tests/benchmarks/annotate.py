"""From pen-up to answer on the page of `regloss annotate`: a stroke sent, its preview received, all on one core.

    python tests/benchmarks/annotate.py --sizes 256 512 1024 --classes 2 4
    python tests/benchmarks/annotate.py --sizes 512 --classes 4 --browser

With --browser a headless Chromium draws, on a core of its own if there is one, and the time ends when the answer is
painted. Medians and 95 % quantiles over strokes, in milliseconds; each stroke begins when the one before is answered.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
import torch
from annotation import Client, served
from PIL import Image

# Where classes are in the photograph, as fractions of height and width: face and suit, wall, flag, shuttle.
PLACES = {0: [(0.15, 0.1), (0.62, 0.95)], 1: [(0.22, 0.45), (0.8, 0.5)], 2: [(0.55, 0.1)], 3: [(0.2, 0.92)]}


def write_photograph(root: Path, size: int) -> None:
    """scikit-image's astronaut, of size x size pixels."""
    from skimage import data

    (root / "images").mkdir(parents=True)
    Image.fromarray(data.astronaut()).resize((size, size), Image.Resampling.LANCZOS).save(root / "images/astronaut.png")


def strokes(size: int, classes: int, count: int) -> Iterator[list[int]]:
    """Runs of strokes as of a brush of 9 pixels, first one in each place, then more about them."""
    rng = np.random.default_rng(0)
    places = [(label, place) for label in range(classes) for place in PLACES[label]]
    for number in range(len(places) + count):
        label, (row, column) = places[number % len(places)]
        jitter = rng.uniform(-0.04, 0.04, 2) if number >= len(places) else (0, 0)
        top, left = (int(size * (at + by)) for at, by in zip((row, column), jitter, strict=True))
        yield [
            number
            for line in range(max(top - 4, 0), min(top + 5, size))
            for number in (line * size + max(left - size // 30, 0), size // 15, label)
        ]


def wait(client: Client, request: int, after: int, final: bool) -> int:
    """Until the request is answered, by a first or by the last stage; gives the answer's number."""
    while True:
        about, _ = client.ask(f"/api/images/0/answer?after={after}").labels
        after = about["number"]
        if about["request"] >= request and (about["final"] or not final) and about["state"] != "waiting":
            return after


def measure(size: int, classes: int, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first and to the last stage, for each stroke."""
    first, last = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_photograph(Path(folder) / "set", size)
        names = "".join(f'[[class]]\nname = "{label}"\n\n' for label in range(classes))
        (Path(folder) / "set/classes.toml").write_text(names)
        with served(Path(folder) / "set") as (_, client):
            revision = after = 0
            for number, runs in enumerate(strokes(size, classes, count)):
                began = time.perf_counter()
                reply = client.draw(0, revision, runs).json
                revision = reply["revision"]
                if number < classes * 2 - 1:
                    continue
                after = wait(client, reply["request"], after, final=False)
                shown = time.perf_counter()
                after = wait_final(client, reply["request"], after)
                if number >= sum(len(PLACES[label]) for label in range(classes)):
                    first.append(1000 * (shown - began))
                    last.append(1000 * (time.perf_counter() - began))
    return first, last


def wait_final(client: Client, request: int, after: int) -> int:
    """Until the last stage is there; it may be the one that was seen already."""
    while True:
        about, _ = client.ask(f"/api/images/0/answer?after={after - 1}").labels
        if about["final"] and about["request"] >= request:
            return int(about["number"])
        after = about["number"] + 1


@contextmanager
def browser_page(address: str) -> Iterator[object]:
    """A page of a headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("REGLOSS_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address, wait_until="commit")
        page.wait_for_selector("html[data-opened]")
        yield page
        browser.close()


def measure_in_browser(size: int, classes: int, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from pen-up to the first answer painted, and to the last."""
    first, last = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_photograph(Path(folder) / "set", size)
        names = "".join(f'[[class]]\nname = "{label}"\n\n' for label in range(classes))
        (Path(folder) / "set/classes.toml").write_text(names)
        with served(Path(folder) / "set") as (server, _), browser_page(server.address) as page:
            box = page.locator("#stage").bounding_box()
            places = [(label, place) for label in range(classes) for place in PLACES[label]]
            rng = np.random.default_rng(0)
            for number in range(len(places) + count):
                label, (row, column) = places[number % len(places)]
                jitter = rng.uniform(-0.04, 0.04, 2) if number >= len(places) else (0, 0)
                x, y = box["x"] + (column + jitter[1]) * box["width"], box["y"] + (row + jitter[0]) * box["height"]
                page.keyboard.press(str(label))
                page.mouse.move(x, y)
                page.mouse.down()
                page.mouse.move(x + 20, y + 3, steps=4)
                page.evaluate("document.documentElement.removeAttribute('data-latency')")
                page.mouse.up()
                page.wait_for_selector("html[data-latency]")
                shown = float(page.evaluate("document.documentElement.dataset.latency"))
                if number < len(places):
                    page.wait_for_timeout(300)
                    continue
                page.wait_for_selector("#state.good")
                first.append(shown)
                last.append(float(page.evaluate("document.documentElement.dataset.latency")))
    return first, last


def quantile(values: list[float], fraction: float) -> float:
    return float(np.quantile(values, fraction))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4], choices=[2, 3, 4])
    parser.add_argument("--strokes", type=int, default=20)
    parser.add_argument("--browser", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity") and not options.browser:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # threads that are started later are bound to it too
    run = measure_in_browser if options.browser else measure
    run(128, 2, 2)  # compiles
    print(f"{'pixels':>10} {'K':>2}   {'first stage':>22}   {'last stage':>22}   ms: median, 95 %, of CPU time")
    for size in options.sizes:
        for classes in options.classes:
            used = time.process_time()
            first, last = run(size, classes, options.strokes)
            used = 1000 * (time.process_time() - used) / len(first)
            numbers = [quantile(values, fraction) for values in (first, last) for fraction in (0.5, 0.95)]
            print(
                f"{size:>5}x{size:<4} {classes:>2}   {numbers[0]:>10.0f} {numbers[1]:>11.0f}   {numbers[2]:>10.0f} "
                f"{numbers[3]:>11.0f}   {used:.0f} of CPU time a stroke",
                flush=True,
            )
    assert threading.active_count() < 10


if __name__ == "__main__":
    main()
