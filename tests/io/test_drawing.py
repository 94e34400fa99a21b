"""Shapes as pixels, against the definition: a pixel belongs to an area if its centre does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regloss.io.drawing import Bitmap, Ellipse, Line, Polygon, Shape, paint, rectangle

SIZE = (9, 12)
ROWS, COLUMNS = np.indices(SIZE)
X, Y = COLUMNS + 0.5, ROWS + 0.5  # centres of the pixels


def pixels(shape: Shape, size: tuple[int, int] = SIZE) -> np.ndarray:
    drawn = np.zeros(size, dtype=np.uint8)
    inside, covered = paint(drawn, shape, 1, 0)
    assert (inside, covered) == (int(drawn.sum()), 0)
    return drawn > 0


def winding(ring: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a ray to the left crosses the ring an odd number of times."""
    inside = False
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            inside = not inside
    return inside


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_the_pixels_whose_centres_are_inside(seed: int) -> None:
    """Random rings, crossing themselves and the image's border."""
    generator = np.random.default_rng(seed)
    rings = [
        [tuple(point) for point in generator.uniform(-4, 14, (int(generator.integers(3, 8)), 2)).tolist()]
        for _ in range(1 + seed % 2)
    ]
    expected = np.zeros(SIZE, dtype=bool)
    for row, column in np.ndindex(SIZE):
        expected[row, column] = sum(winding(ring, column + 0.5, row + 0.5) for ring in rings) % 2
    np.testing.assert_array_equal(pixels(Polygon(rings)), expected)


def test_a_polygon_with_a_hole_and_one_outside() -> None:
    outer, inner = [(1, 1), (9, 1), (9, 8), (1, 8)], [(3, 3), (6, 3), (6, 5), (3, 5)]
    found = pixels(Polygon([outer, inner]))
    assert found.sum() == 8 * 7 - 3 * 2
    assert not found[3:5, 3:6].any()
    assert not pixels(Polygon([[(-9, -9), (-2, -9), (-2, -2)]])).any()
    assert not pixels(Polygon([[(20, 2), (30, 2), (30, 5)]])).any()


@pytest.mark.parametrize("angle", [0, 30, 90, 200])
def test_ellipses(angle: float) -> None:
    turned = math.radians(angle)
    along = (X - 5) * math.cos(turned) + (Y - 4) * math.sin(turned)
    across = (Y - 4) * math.cos(turned) - (X - 5) * math.sin(turned)
    np.testing.assert_array_equal(
        pixels(Ellipse((5, 4), (4.2, 2.1), angle)), (along / 4.2) ** 2 + (across / 2.1) ** 2 <= 1
    )


def test_rectangles_turn_clockwise_about_their_centre_or_a_corner() -> None:
    assert pixels(rectangle((2, 1), (8, 3))).sum() == 12
    np.testing.assert_array_equal(pixels(rectangle((2, 3), (8, 5), 90)), (X > 4) & (X < 6) & (Y > 1) & (Y < 7))
    np.testing.assert_array_equal(pixels(rectangle((6, 1), (10, 3), 90, (6, 1))), (X > 4) & (X < 6) & (Y > 1) & (Y < 5))


def test_lines_are_as_wide_as_they_should_and_never_vanish() -> None:
    np.testing.assert_array_equal(pixels(Line([(2.5, 4.5), (8.5, 4.5)], 2.5)).sum(axis=1)[3:6], [7, 9, 7])
    assert pixels(Line([(3.0, 4.0)], 1))[4, 3]  # on the corner of four pixels, 0.7 from the centre of each
    assert pixels(Line([(3.0, 4.0)], 1)).sum() == 1
    found = pixels(Line([(0, 0), (12, 9)], 1))
    assert found.any(axis=0).all()
    assert pixels(Line([(-5, 4.5), (20, 4.5)], 1)).sum() == SIZE[1]
    assert not pixels(Line([(-9, -9), (-5, -9)], 3)).any()


@pytest.mark.parametrize(("top", "left"), [(2, 3), (-1, -2), (8, 11), (-9, 0), (20, 20), (0, -30)])
def test_bitmaps_are_cut_at_the_border(top: int, left: int) -> None:
    mask = np.random.default_rng(0).random((4, 5)) < 0.5
    expected = np.zeros((60, 60), dtype=bool)
    expected[top + 30 : top + 34, left + 30 : left + 35] = mask
    np.testing.assert_array_equal(pixels(Bitmap(mask, top, left)), expected[30 : 30 + SIZE[0], 30 : 30 + SIZE[1]])


def test_what_is_covered_is_counted() -> None:
    labels = np.full(SIZE, -1, dtype=np.int16)
    assert paint(labels, rectangle((0, 0), (4, 4)), 1, -1) == (16, 0)
    assert paint(labels, rectangle((2, 2), (6, 6)), 1, -1) == (16, 0)
    assert paint(labels, rectangle((3, 3), (5, 5)), 2, -1) == (4, 4)
    assert labels[3, 3] == 2
