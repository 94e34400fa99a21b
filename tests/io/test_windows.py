"""Windows: which stored values become 0 and 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regloss.errors import UsageError
from regloss.io.windows import Window, clipped_note, find_window, suitable, windowed

PATH = Path("a.png")


@pytest.mark.parametrize(
    ("values", "window", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), None, [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.uint16), None, [0, 0.2, 1]),
        (np.array([False, True]), None, [0, 1]),
        (np.array([0.25, 1], np.float32), None, [0.25, 1]),
        (np.array([0, 819, 4095, 9000], np.uint16), Window(0, 4095, 16), [0, 0.2, 1, 1]),
        (np.array([0, 51, 255], np.uint8), Window(0, 4095, 16), [0, 0.2, 1]),  # it is for 16 bits alone
        (np.array([10, 15, 20, 30], np.uint8), Window(10, 20), [0, 0.5, 1, 1]),
        (np.array([-1000, 0, 1000, 3000], np.float32), Window(-1000, 1000), [0, 0.5, 1, 1]),
    ],
)
def test_values_become_0_to_1(values: np.ndarray, window: Window | None, expected: list[float]) -> None:
    found = windowed(values, window, PATH)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 235, (0, 255)),
        (1228, 2866, (0, 4095)),
        (0, 4095, (0, 4095)),
        (0, 4096, (0, 8191)),
        (0, 65535, (0, 65535)),
        (0, 40000, (0, 65535)),
        (31744, 36000, (31744, 36000)),  # CT with an offset
        (1000, 1100, (1000, 1100)),
        (7, 7, (0, 7)),
        (0, 0, (0, 1)),
    ],
)
def test_what_suits_16_bits(low: int, high: int, expected: tuple[int, int]) -> None:
    assert suitable(low, high) == Window(*expected, 16)


def test_one_window_for_a_set() -> None:
    images = [np.array([[[0, 900]]], np.uint16), np.array([[[0, 255]]], np.uint8), np.array([[[5, 3000]]], np.uint16)]
    window, note = find_window(images)
    assert window == Window(0, 4095, 16)
    assert note == "2 images of 16 bits: values from 0 to 3000 of 65535: 0 to 4095 stretched to 0..1"
    assert find_window([np.array([0, 60000], np.uint16)]) == (Window(0, 65535, 16), "")
    assert find_window(images[1:2]) == (None, "")


def test_values_beyond_a_window_are_told() -> None:
    values = np.arange(100, dtype=np.uint16)
    assert "10 % of its values, which go from 0 to 99, lie outside" in clipped_note(values, Window(0, 89, 16), PATH)
    assert clipped_note(values, Window(0, 98, 16), PATH) == ""
    assert clipped_note(values.astype(np.uint8), Window(0, 50, 16), PATH) == ""
    assert "100 %" in clipped_note(np.array([True]), Window(2, 3), PATH)


@pytest.mark.parametrize("values", [np.nan, 1.5, -0.1, np.inf])
def test_invalid_floats(values: float) -> None:
    with pytest.raises(UsageError, match=r"NaN|window = \[LOW, HIGH\]"):
        windowed(np.array([0.5, values], np.float32), None, PATH)
    if not np.isfinite(values):
        with pytest.raises(UsageError):
            windowed(np.array([0.5, values], np.float32), Window(0, 10), PATH)


@pytest.mark.parametrize("given", [[1], [3, 2], [1, 1], ["a", 2], "12", [0, np.nan], [0, 1, 8], [0, True], 5])
def test_wrong_windows(given: object) -> None:
    with pytest.raises(UsageError, match=r"window|Window"):
        Window.of(given)


def test_windows_are_plain_numbers_in_files() -> None:
    for window in (Window(0, 4095), Window(1, 2.5, 16)):
        assert Window.of(window.as_list()) == window
    assert Window.of(None) is None
