"""Shortened scribbles: every stroke keeps one end and the wanted share of its length."""

import numpy as np
import pytest

from regloss.errors import UsageError
from regloss.training.scribbles import shorten


def scribbles(*rows):
    """Digits are classes, dots unlabelled."""
    return np.array([[255 if mark == "." else int(mark) for mark in row] for row in rows], dtype=np.uint8)


STROKES = scribbles(
    "11111111111...",
    "..............",
    ".0....2...2...",
    "..0...2....2..",
    "...0..2.....2.",
    "....0.2......2",
)


def lengths(shortened):
    return [int((shortened == label).sum()) for label in range(3)]


@pytest.mark.parametrize(
    ("length", "expected"), [(1.0, [4, 11, 8]), (0.5, [2, 6, 4]), (0.3, [1, 4, 2]), (0.0, [1, 1, 2])]
)
def test_strokes_keep_their_share(length, expected):
    """Strokes of 4 and 11 pixels, and two of one class with 4 each: a click on each at 0."""
    assert lengths(shorten(STROKES, length)) == expected


def test_a_stroke_shrinks_towards_one_end():
    for length in (0.0, 0.1, 0.25, 0.5, 0.75):
        row = shorten(STROKES, length)[0]
        kept = np.flatnonzero(row == 1)
        assert kept[0] == 0 or kept[-1] == 10
        assert np.ptp(kept) == len(kept) - 1


def test_shorter_is_contained_in_longer():
    previous = shorten(STROKES, 0.0)
    for length in np.linspace(0.1, 1, 10):
        current = shorten(STROKES, float(length))
        kept = previous != 255
        assert (current[kept] == STROKES[kept]).all()
        previous = current
    assert np.array_equal(previous, STROKES)


def test_a_bent_stroke_is_measured_along_itself():
    """A hook whose two ends touch nearly: the kept half is one arm, not both ends."""
    hook = scribbles("1111", "...1", "...1", "1111")
    half = shorten(hook, 0.5)
    assert lengths(half)[1] in (5, 6)
    assert (half[0] == 1).sum() == 0 or (half[3] == 1).sum() == 0


def test_a_ring_keeps_an_arc():
    ring = scribbles(".111.", "1...1", "1...1", ".111.")
    assert 0 < lengths(shorten(ring, 0.5))[1] < lengths(ring)[1]
    assert lengths(shorten(ring, 0.0))[1] == 1


def test_classes_that_touch_are_strokes_of_their_own():
    assert lengths(shorten(scribbles("000111222"), 0.0)) == [1, 1, 1]


def test_volumes():
    volume = np.full((4, 4, 9), 255, dtype=np.uint8)
    volume[1, 2, :] = 3
    assert (shorten(volume, 0.5) == 3).sum() == 5


def test_nothing_drawn_and_nothing_changed():
    empty = scribbles("...", "...")
    assert np.array_equal(shorten(empty, 0.3), empty)
    before = STROKES.copy()
    shorten(STROKES, 0.3)
    assert np.array_equal(STROKES, before)


@pytest.mark.parametrize("length", [-0.1, 1.1, float("nan")])
def test_the_length_is_a_fraction(length):
    with pytest.raises(UsageError, match="fraction between 0 and 1"):
        shorten(STROKES, length)
