"""Shortened scribbles: every stroke keeps one end and the wanted share of its length."""

import numpy as np
import pytest
from scipy import ndimage

from regloss.errors import UsageError
from regloss.io.scribbles import shorten, simulate


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


def regions():
    """A bar, an L and a ring on a background, and a corner that is ignored."""
    label = np.zeros((40, 50), dtype=np.uint8)
    label[4:11, 5:30] = 1
    label[15:38, 4:11], label[31:38, 4:25] = 2, 2
    rows, columns = np.indices(label.shape)
    radius = np.hypot(rows - 25, columns - 38)
    label[(radius > 5) & (radius < 10)] = 3
    label[:3, 45:] = 255
    return label


def test_simulated_strokes_lie_within_their_regions():
    label = regions()
    before = label.copy()
    found = simulate(label)
    drawn = found != 255
    assert np.array_equal(label, before)
    assert np.array_equal(found[drawn], label[drawn])
    for k in range(4):
        stroke, count = ndimage.label(found == k, structure=np.ones((3, 3)))
        assert count == (2 if k == 0 else 1)  # the background is also within the ring
        assert int(stroke.sum()) > 10
        off = ndimage.distance_transform_edt(np.pad(label == k, 1))[1:-1, 1:-1]
        # More than two pixels from the boundary but in the ring, which is five wide: half of that at least.
        assert off[found == k].min() > (1.25 if k == 3 else 2)
    assert np.array_equal(simulate(label), found)


def test_a_simulated_stroke_runs_along_the_middle():
    """From one end of the bar to the other, three rows from either side; the margin is left at the ends."""
    found = simulate(regions())
    rows, columns = np.nonzero(found == 1)
    assert set(columns.tolist()) == set(range(7, 28))
    assert int((rows == 7).sum()) >= 15


@pytest.mark.parametrize("shape", [(1, 9), (2, 2), (1, 1)])
def test_thin_regions_get_a_stroke_too(shape):
    """A margin of two pixels would leave nothing of them."""
    label = np.zeros((12, 12), dtype=np.uint8)
    label[3 : 3 + shape[0], 2 : 2 + shape[1]] = 1
    found = simulate(label)
    assert 1 <= int((found == 1).sum()) <= max(shape)
    assert np.all(label[found == 1] == 1)


def test_small_regions_beside_a_larger_one_get_none():
    label = np.zeros((20, 30), dtype=np.uint8)
    label[2:8, 2:8], label[12:15, 20:23] = 1, 1
    assert not (simulate(label)[12:15, 20:23] == 1).any()
    assert (simulate(label, least=9)[12:15, 20:23] == 1).any()


def test_volumes_are_drawn_in_too():
    label = np.zeros((6, 14, 15), dtype=np.uint8)
    label[1:5, 3:11, 3:13] = 1
    found = simulate(label)
    assert (found == 1).sum() >= 5
    assert np.all(label[found == 1] == 1)


def test_nothing_labelled_nothing_drawn():
    blank = np.full((4, 4), 255, dtype=np.uint8)
    assert np.array_equal(simulate(blank), blank)


@pytest.mark.parametrize("settings", [{"margin": -1.0}, {"margin": float("nan")}, {"least": -1}])
def test_settings_of_simulated_scribbles(settings):
    with pytest.raises(UsageError, match="must not be negative"):
        simulate(regions(), **settings)
