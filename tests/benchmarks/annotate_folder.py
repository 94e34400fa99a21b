"""From twelve photographs to masks, as a newcomer goes: two commands and the page, driven by a headless Chromium.

    python tests/benchmarks/annotate_folder.py $REGLOSS_DATA/iseg

The strokes are people's scribbles, drawn again with the pointer: of each connected part of them the longest ways
along its middle line. Prints what a person would have to do (strokes, keys, clicks), how long the machine took, how
long a hand takes that moves `_SPEED` pixels of the screen a second and needs `_AIM` seconds before each stroke, key and
click, and how good the masks are: those of the strokes, saved on the page, and those of `regloss predict`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SPEED, _AIM = 400.0, 0.8
_SHORTEST = 12  # pixels of a branch of a middle line that is drawn too


def longest_way(places: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest of the shortest ways through some pixels, by walks to the farthest one, and from there."""

    def walk(start: tuple[int, int]) -> list[tuple[int, int]]:
        before: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
        waiting = deque([start])
        last: tuple[int, int] | None = start
        while waiting:
            last = row, column = waiting.popleft()
            for place in ((row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if place in places and place not in before:
                    before[place] = last
                    waiting.append(place)
        way = []
        while last is not None:
            way.append(last)
            last = before[last]
        return way

    return walk(walk(min(places))[0])


def strokes(scribbles: np.ndarray, label: int) -> list[list[tuple[float, float]]]:
    """Ways of a pointer (fractions of width and height) that draw one class of some scribbles again."""
    from skimage.measure import label as components
    from skimage.morphology import skeletonize

    height, width = scribbles.shape
    numbered = components(skeletonize(scribbles == label), connectivity=2)
    found = []
    for number in range(1, int(numbered.max()) + 1):
        left = set(map(tuple, np.argwhere(numbered == number).tolist()))
        first = True
        while left:
            way = longest_way(left)
            if first or len(way) >= _SHORTEST:
                corners = [*way[::6], way[-1]]
                found.append([((column + 0.5) / width, (row + 0.5) / height) for row, column in corners])
            first = False
            left -= set(way)
    return found


@dataclass
class Hand:
    """A person at the page: counts what is done, and how long that would take.

    Attributes:
        page: of the browser.
        seconds: of the hand.
        counts: of strokes, keys and clicks.
    """

    page: Any
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: {"strokes": 0, "keys": 0, "clicks": 0})

    def key(self, name: str) -> None:
        self._count("keys")
        self.page.keyboard.press(name)

    def click(self, name: str) -> None:
        self._count("clicks")
        self.page.get_by_role("button", name=name, exact=True).click()

    def stroke(self, points: list[tuple[float, float]]) -> None:
        self._count("strokes")
        box = self.page.locator("#stage").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.seconds += sum(float(np.hypot(*np.subtract(*pair))) for pair in pairwise(places)) / _SPEED
        mouse = self.page.mouse
        mouse.move(*places[0])
        mouse.down()
        for place in places[1:]:
            mouse.move(*place)
        mouse.up()

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        self.seconds += _AIM


def overlap(found: np.ndarray, label: np.ndarray) -> float:
    """IoU of the object where there is a label."""
    known = label != 255
    inside, outside = (found == 1) & known, (label == 1) & known
    return float((inside & outside).sum() / max((inside | outside).sum(), 1))


def answer(page: Any) -> np.ndarray:
    """The object as the page shows it: its colour has red, the dark line around it none."""
    height, width, red = page.evaluate(
        """() => {
            const canvas = document.getElementById("answer");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.height, canvas.width, [...data].filter((_, i) => i % 4 === 0)];
        }"""
    )
    return (np.array(red).reshape(height, width) > 0).astype(np.uint8)


def correction(found: np.ndarray, label: np.ndarray) -> tuple[int, list[tuple[float, float]]]:
    """A class and a stroke of it in the middle of the largest mistake."""
    from scipy import ndimage

    wrong = (found != label) & (label != 255)
    parts, _ = ndimage.label(wrong)
    largest = parts == np.bincount(parts[wrong]).argmax()
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    height, width = label.shape
    reach = depth.max() / 2
    ends = [((column + 0.5 + step) / width, (row + 0.5) / height) for step in (-reach, 0, reach)]
    return int(label[row, column]), ends


def main() -> None:
    """Print the walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images, labels and scribbles1")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--corrections", type=int, default=5, help="on each image, at most")
    parser.add_argument("--keep", type=Path, help="leave everything in this folder, which must not exist")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    home = options.keep or Path(tempfile.mkdtemp())
    root = home / "photographs"
    (root / "images").mkdir(parents=True)
    names = sorted(path.stem for path in (options.data / "scribbles1").glob("*.png"))[: options.images]
    for name in names:
        shutil.copy(options.data / "images" / f"{name}.png", root / "images")
    labels = {name: np.array(Image.open(options.data / "labels" / f"{name}.png")) for name in names}

    regloss = [sys.executable, "-m", "regloss_cli.main"]
    began = time.perf_counter()
    with (
        subprocess.Popen(
            [*regloss, "annotate", "photographs", "--no-browser"], cwd=home, stderr=subprocess.PIPE, text=True
        ) as server,
        sync_playwright() as started,
    ):
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        path = os.environ.get("REGLOSS_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(200_000)
        page.goto(address, wait_until="commit")
        page.wait_for_selector("html[data-opened='0']")
        print(f"{time.perf_counter() - began:6.1f} s: the page is open")
        hand = Hand(page)
        for index, name in enumerate(names):
            if index:
                hand.key("PageDown")
                page.wait_for_selector(f"html[data-opened='{index}']")
            scribbles = np.array(Image.open(options.data / "scribbles1" / f"{name}.png"))
            for label in (1, 0):
                hand.key(str(label))
                for way in strokes(scribbles, label):
                    hand.stroke(way)
            for _ in range(options.corrections):
                page.get_by_text("All saved").wait_for()
                page.wait_for_selector("#state.good")
                found = answer(page)
                if overlap(found, labels[name]) >= 0.9:
                    break
                label, way = correction(found, labels[name])
                hand.key(str(label))
                hand.stroke(way)
        drawn = time.perf_counter()
        print(f"{drawn - began:6.1f} s: drawn on {len(names)} images")
        hand.click("Save masks")
        page.get_by_text("masks in photographs/masks").wait_for()
        saved = time.perf_counter()
        print(f"{saved - began:6.1f} s: masks of the strokes")
        hand.click("Train on these")
        page.get_by_text("epochs = ").wait_for()
        hand.click("Start")
        page.wait_for_selector("html[data-training='running']")
        page.wait_for_selector("html[data-training='done']")
        trained = time.perf_counter()
        print(f"{trained - began:6.1f} s: trained")
        browser.close()
        server.send_signal(signal.SIGINT)
        server.wait()
    said = subprocess.run(
        [*regloss, "predict", "photographs/runs/annotate-1", "photographs/images", "--output", "predicted"],
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"{time.perf_counter() - began:6.1f} s: masks\n\n{said.stdout.strip()}\n")
    print(", ".join(f"{count} {what}" for what, count in hand.counts.items()))
    print(f"a hand's {hand.seconds / 60:.1f} minutes of drawing, {(trained - saved) / 60:.1f} minutes of training")
    for title, folder in (
        ("masks of the strokes", root / "masks"),
        ("masks of the network", home / "predicted/labels"),
    ):
        scores = [overlap(np.array(Image.open(folder / f"{name}.png")), labels[name]) for name in names]
        print(
            f"IoU of the {title}: mean {np.mean(scores):.3f}, median {np.median(scores):.3f}, least {min(scores):.3f}"
        )
    if not options.keep:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
