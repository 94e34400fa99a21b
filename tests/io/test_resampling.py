"""Images, labels and scribbles on grids of another spacing: extents, values, surfaces, thin strokes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from regloss.dataset import IGNORE
from regloss.io.resampling import resampled_size, resize, resize_image, resize_labels, resize_scribbles


def centres(size: tuple[int, ...]) -> list[np.ndarray]:
    """Where pixels lie, the extent being [0, 1] along each axis."""
    return np.meshgrid(*((np.arange(length) + 0.5) / length for length in size), indexing="ij")


def ball(size: tuple[int, ...]) -> np.ndarray:
    """Labels of a ball of radius .35 in the unit cube, or a disk in the square."""
    return (sum((at - 0.5) ** 2 for at in centres(size)) < 0.35**2).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "spacing", "target", "expected"),
    [
        ((19, 384, 384), (3.0, 0.5, 0.5), (3.0, 0.75, 0.75), (19, 256, 256)),
        ((10, 100), (10.0, 1.5), (1.5, 1.5), (67, 100)),
        ((2, 30), (1.0, 1.0), (9.0, 3.0), (1, 10)),
    ],
)
def test_sizes(size, spacing, target, expected):
    assert resampled_size(size, spacing, target) == expected


SIZES = [
    ((12, 20), (12, 20)),
    ((12, 20), (24, 40)),
    ((40, 60), (20, 15)),
    ((40, 60), (55, 21)),
    ((6, 24, 30), (24, 24, 30)),
    ((24, 32, 32), (9, 48, 20)),
    ((7, 20, 24), (7, 10, 12)),
]


@pytest.mark.parametrize(("size", "new"), SIZES)
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_ramp_stays_one(size, new, interpolation):
    """What is linear is the same at the same place, away from the border, to a twentieth of a pixel."""
    values = sum((axis + 1) * at for axis, at in enumerate(centres(size)))
    found = resize(torch.from_numpy(values)[None, None], new, interpolation)[0, 0].numpy()
    expected = sum((axis + 1) * at for axis, at in enumerate(centres(new)))
    rims = [2 * max(1, -(-now // before)) for before, now in zip(size, new, strict=True)]
    inner = tuple(slice(rim, length - rim) for rim, length in zip(rims, new, strict=True))
    assert found.shape == new
    assert found[inner].size > 0
    pixel = sum((axis + 1) / length for axis, length in enumerate(new))
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.05 * pixel if new != size else 0)


def test_halves_are_no_samples_but_means():
    """A pattern finer than the new pixels becomes grey: pixels are not left out."""
    image = np.zeros((1, 4, 40, 40), np.float32)
    image[:, :, ::2] = 1
    reduced = resize_image(image, (4, 10, 10))
    np.testing.assert_allclose(reduced[:, :, 1:-1], 0.5, atol=0.02)
    assert 0 <= reduced.min() <= reduced.max() <= 1


@pytest.mark.parametrize(("size", "new"), [*SIZES, ((40, 40, 8), (40, 40, 40)), ((50, 50), (20, 45))])
def test_labels_of_a_ball(size, new):
    """Those of the same ball, but for pixels that its surface passes through on the coarser of the grids."""
    labels = np.where(ball(size) == 1, 7, 3).astype(np.uint8)
    found = resize_labels(labels, new)
    assert found.shape == new
    assert set(np.unique(found)) == {3, 7}
    distance = np.sqrt(sum((at - 0.5) ** 2 for at in centres(new))) - 0.35
    coarsest = max(1 / length for length in (*size, *new))
    wrong = (found == 7) != (ball(new) == 1)
    assert np.abs(distance[wrong]).max(initial=0) < 0.75 * coarsest


@pytest.mark.parametrize(("size", "new"), [((20, 20), (100, 100)), ((16, 16, 8), (48, 48, 40))])
def test_class_by_class_corners_are_less_stepped(size, new):
    wanted = ball(new)
    nearest = ndimage.zoom(ball(size), np.array(new) / size, order=0, grid_mode=True, mode="nearest")
    assert (resize_labels(ball(size), new) != wanted).sum() < 0.9 * (nearest != wanted).sum()


def test_what_is_left_out_stays_so():
    labels = np.full((4, 12, 12), IGNORE, np.uint8)
    labels[:, :6] = 2
    found = resize_labels(labels, (4, 6, 24))
    np.testing.assert_array_equal(found[:, :3], 2)
    np.testing.assert_array_equal(found[:, 3:], IGNORE)


@pytest.mark.parametrize(("size", "new"), SIZES)
def test_no_stroke_is_lost(size, new):
    """A line of one pixel stays connected, of its class, and where it was."""
    scribble = np.full(size, IGNORE, np.uint8)
    line = np.linspace(0, 1, 200)
    at = tuple(((0.1 + 0.8 * line) * length).astype(int) for length in size)
    scribble[at] = 1
    scribble[(0,) * len(size)] = 0
    found = resize_scribbles(scribble, new)
    assert set(np.unique(found)) == {0, 1, IGNORE}
    assert ndimage.label(found == 1, np.ones((3,) * len(new)))[1] == 1
    places = np.argwhere(found == 1)
    off = [np.abs((place + 0.5) / new - (0.1 + 0.8 * line)[:, None]).max(1).min() for place in places]
    assert max(off) <= max(1 / length for length in (*size, *new))


def test_the_most_of_what_is_drawn_wins():
    scribble = np.full((4, 4), IGNORE, np.uint8)
    scribble[0, 0], scribble[1, :2] = 3, 5
    scribble[2, 2], scribble[3, 3] = 9, 4
    np.testing.assert_array_equal(resize_scribbles(scribble, (2, 2)), [[5, IGNORE], [IGNORE, 4]])
    np.testing.assert_array_equal(resize_scribbles(scribble, (4, 4)), scribble)
