"""Samples: files that belong together, checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import CLASSES, save

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.io.samples import SampleFiles, check_samples, load_sample


def sample_files(folder: Path, name: str, label: np.ndarray, scribble: np.ndarray | None) -> SampleFiles:
    image = save(folder / f"{name}.png", np.zeros((4, 6), np.uint8))
    return SampleFiles(
        name,
        image,
        save(folder / f"{name}_label.png", label),
        None if scribble is None else save(folder / f"{name}_scribble.png", scribble),
        name,
    )


def test_sizes_must_agree(tmp_path: Path) -> None:
    good = np.zeros((4, 6), np.uint8)
    files = sample_files(tmp_path, "a", good, good[:, :5])
    with pytest.raises(
        UsageError, match=r"a_scribble.png is 4 pixels high and 5 wide, but .*a.png is 4 high and 6 wide"
    ):
        load_sample(files, classes=CLASSES, channels=1)
    with pytest.raises(UsageError, match=r"1 of 1 samples have unusable files.*a_scribble.png"):
        check_samples([files], ("scribble",))
    files = sample_files(tmp_path, "b", good.T.copy(), good)
    with pytest.raises(UsageError, match=r"b_label.png is 6 pixels high and 4 wide"):
        load_sample(files, classes=CLASSES, channels=1)


def test_check_lists_everything_at_once(tmp_path: Path) -> None:
    good = np.zeros((4, 6), np.uint8)
    samples = [sample_files(tmp_path, f"a{index:02}", good, None) for index in range(13)]
    samples += [sample_files(tmp_path, "b", good[:2], good), sample_files(tmp_path, "c", good, good)]
    with pytest.raises(UsageError) as caught:
        check_samples(samples, ("scribble", "label"), complaints=["something else"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "something else"
    assert lines[1].startswith("13 of 15 images have no scribble file: a00, a01,")
    assert lines[1].endswith("a09 and 3 more")
    assert lines[2].startswith("1 of 15 samples have unusable files")
    assert len(lines) == 3
    check_samples(samples[:13], ("label",))
    with pytest.raises(UsageError, match="'scribbles'"):
        check_samples(samples, ("scribbles",))


def test_check_of_contents(tmp_path: Path) -> None:
    good = np.zeros((4, 6), np.uint8)
    empty = np.full((4, 6), IGNORE, np.uint8)
    mixed = np.array([[0, 1, 255, 255, 255, 255]] * 4, np.uint8)
    samples = {
        files.id: files
        for files in (
            sample_files(tmp_path, "good", good, mixed),
            sample_files(tmp_path, "empty", good, empty),
            sample_files(tmp_path, "single", good, good),
            sample_files(tmp_path, "broken", good + 9, mixed),
        )
    }

    def check(*names: str) -> None:
        check_samples(
            [samples[name] for name in names],
            ("scribble",),
            load=lambda name: load_sample(samples[name], classes=CLASSES, channels=1),
        )

    check("good", "single")
    with pytest.raises(UsageError, match="1 of 2 scribble files label no pixel at all: empty"):
        check("good", "empty")
    with pytest.raises(UsageError, match="all scribbles are of class 0"):
        check("single")
    with pytest.raises(UsageError, match=r"1 of 2 samples cannot be used: .*broken_label.png holds the label value 9"):
        check("good", "broken")
