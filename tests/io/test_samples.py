"""Samples: files that belong together, checked before they are used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from picture_files import CLASSES, save
from PIL import Image

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.io.images import read_header
from regloss.io.samples import SampleFiles, check_samples, load_sample, turned_note


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


# -- What a message says -----------------------------------------------------------------------------------------------


def test_one_explanation_for_many_files(tmp_path: Path) -> None:
    colored = np.zeros((4, 6, 2), np.uint8)  # grey with alpha
    samples = [sample_files(tmp_path, f"a{index:02}", colored, None) for index in range(12)]
    samples.append(sample_files(tmp_path, "b", np.zeros((4, 6), np.uint8), None))
    (tmp_path / "b_label.png").write_bytes(b"no picture")
    with pytest.raises(UsageError) as caught:
        check_samples(samples, ("label",))
    message = str(caught.value)
    assert message.startswith(
        "13 of 13 samples have unusable files: each of 12 files is a PNG of 8 bits, grey with alpha; "
    )
    assert message.count("a label map has one channel") == 1
    assert "a00_label.png, a01_label.png, a02_label.png, a03_label.png, " in message
    assert f"and 2 more in {tmp_path}" in message
    assert f"{tmp_path / 'b_label.png'} is no PNG file" in message


def test_what_lies_there_instead_and_the_way_out(tmp_path: Path) -> None:
    good = np.array([[0, 1, 255, 255, 255, 255]] * 4, np.uint8)
    samples = [sample_files(tmp_path, name, good, good if name < "c" else None) for name in "abcd"]
    for name in "cd":
        (tmp_path / f"{name}.json").write_text('{"shapes": []}')
    with pytest.raises(UsageError) as caught:
        check_samples(samples, ("scribble",), splits=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 4 images have no scribble file: c, d"
    assert lines[1].startswith(
        f"there are 2 LabelMe files ({tmp_path / 'c.json'}, {tmp_path / 'd.json'}); `regloss data import`"
    )
    assert lines[2] == (
        'to use the 2 that have what is needed, name them by the setting split: split = {train = ["a", "b"]}'
    )
    with pytest.raises(UsageError) as caught:
        check_samples(samples, ("scribble",))
    assert "split" not in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_that_are_turned(tmp_path: Path, orientation: int) -> None:
    """Sizes tell where height and width change places; of square, mirrored and upside-down ones a note speaks."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in ((4, 6), (5, 5)):
        label = np.zeros(size, np.uint8)
        files = SampleFiles(
            "a",
            save(tmp_path / "a.png", np.zeros(size, np.uint8), exif=exif),
            save(tmp_path / "a_label.png", label),
            None,
            "a",
        )
        headers = {files.image: read_header(files.image)}
        if orientation >= 5 and size == (4, 6):
            with pytest.raises(UsageError, match=f"has the orientation tag {orientation}, .* as the sensor has it"):
                load_sample(files, classes=CLASSES, channels=1)
            assert turned_note([files], headers) == ""
        else:
            load_sample(files, classes=CLASSES, channels=1)
            noted = f"1 images have an orientation tag.*a.png \\({orientation}\\)"
            assert bool(re.search(noted, turned_note([files], headers))) == (orientation > 1)
        save(tmp_path / "a_label.png", label, exif=exif)  # a label map that says itself how it lies
        assert load_sample(files, classes=CLASSES, channels=1).label is not None
        assert turned_note([files], headers) == ""
