"""Run lengths of COCO, CVAT and Label Studio: hand-made ones, random ones, damaged ones."""

from __future__ import annotations

import foreign_files
import numpy as np
import pytest

from regloss.errors import UsageError
from regloss.io.foreign.run_lengths import LabelStudioBrush, RunLengths, coco_counts, mask_of_runs, unpacked


def test_cocos_text_by_hand() -> None:
    """Numbers of one, two and three characters, and a difference below 0."""
    assert coco_counts("0", "") == [0]
    assert coco_counts("?", "") == [15]  # 15 + 48
    assert coco_counts("P1", "") == [32]  # 0 and more, 1
    assert coco_counts("PP1", "") == [1024]
    assert coco_counts("1234", "") == [1, 2, 3, 6]
    assert coco_counts("123O", "") == [1, 2, 3, 1]


@pytest.mark.parametrize("seed", range(8))
def test_random_masks_come_back(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = tuple(generator.integers(1, 60, 2))
    mask = generator.random(size) < generator.choice([0.0, 0.05, 0.5, 1.0])
    columns, rows = foreign_files.runs(mask, "F"), foreign_files.runs(mask, "C")
    assert coco_counts(foreign_files.coco_text(columns), "") == columns
    np.testing.assert_array_equal(mask_of_runs(columns, size, "columns", ""), mask)
    np.testing.assert_array_equal(mask_of_runs(rows, size, "rows", ""), mask)
    region = RunLengths(foreign_files.coco_text(columns), size, "columns", "").region(size)
    np.testing.assert_array_equal(region.mask, mask)
    packed = bytes(foreign_files.label_studio_rle(mask))
    np.testing.assert_array_equal(LabelStudioBrush(packed, size, "").region(size).mask, mask)


def test_label_studios_bits_by_hand() -> None:
    """Four values: one that repeats three times, lengths of 2 bits, and one literal."""
    bits = f"{4:032b}" + f"{7:05b}" + f"{1:04b}" * 4 + "1" + "00" + "10" + f"{9:08b}" + "0" + "01" + "00" + f"{200:08b}"
    packed = int(bits.ljust(88, "0"), 2).to_bytes(11, "big")
    assert unpacked(packed, 4, "").tolist() == [9, 9, 9, 200]


@pytest.mark.parametrize(
    ("text", "message"), [("12\n", "no character of COCO's"), ("1P", "end within a number"), ("é", "no character")]
)
def test_damaged_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"here: .*{message}"):
        coco_counts(text, "here")


def test_runs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="run lengths of 5 pixels do not fit a mask of 2 x 3"):
        mask_of_runs([2, 3], (2, 3), "rows", "here")
    with pytest.raises(UsageError, match="do not fit"):
        mask_of_runs([8, -2], (2, 3), "rows", "here")
    packed = bytes(foreign_files.label_studio_rle(np.ones((3, 4), dtype=bool)))
    with pytest.raises(UsageError, match="48 values of 8 bits, where 80 of 8 are expected"):
        unpacked(packed, 80, "here")
    with pytest.raises(UsageError, match="end too early"):
        unpacked(packed[:-1], 48, "here")
    with pytest.raises(UsageError, match="end too early"):
        unpacked(b"", 48, "here")
    with pytest.raises(UsageError, match="more than 2 values"):
        unpacked(
            int((f"{2:032b}{7:05b}" + "0001" * 4 + "100" + "11" + "00000000").ljust(72, "0"), 2).to_bytes(9, "big"),
            2,
            "here",
        )
