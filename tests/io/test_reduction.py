"""Reduction by a factor, against loops over blocks."""

from __future__ import annotations

import numpy as np
import pytest

from regloss.dataset import IGNORE
from regloss.io.reduction import reduce_image, reduce_labels, reduce_scribbles


def blocks(values: np.ndarray, factor: int) -> list[list[np.ndarray]]:
    height, width = values.shape[-2:]
    return [
        [values[..., row : row + factor, column : column + factor] for column in range(0, width, factor)]
        for row in range(0, height, factor)
    ]


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("size", [(12, 10), (7, 9), (1, 1), (4, 1)])
def test_reduction_against_loops(factor: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(factor)
    image = random.random((3, *size), dtype=np.float32)
    expected = np.array([[block.mean((1, 2)) for block in row] for row in blocks(image, factor)]).transpose(2, 0, 1)
    reduced = reduce_image(image, factor)
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(reduced, expected, atol=1e-6)

    def majority(block: np.ndarray) -> int:
        counts = np.bincount(block[block != IGNORE], minlength=1)
        return int(counts.argmax()) if counts.max() else IGNORE

    for share in (0.2, 0.6, 0.95):
        labels = random.integers(0, 4, size, dtype=np.uint8)
        labels[random.random(size) < share] = IGNORE
        kept = labels.copy()
        scribbles = [[majority(block) for block in row] for row in blocks(labels, factor)]
        dense = [
            [IGNORE if 2 * (block == IGNORE).sum() > block.size else majority(block) for block in row]
            for row in blocks(labels, factor)
        ]
        np.testing.assert_array_equal(reduce_scribbles(labels, factor), scribbles)
        np.testing.assert_array_equal(reduce_labels(labels, factor), dense)
        np.testing.assert_array_equal(labels, kept)


def test_a_white_image_stays_within_one() -> None:
    assert reduce_image(np.ones((1, 7, 11), np.float32), 3).max() == 1


def test_thin_strokes_do_not_vanish() -> None:
    scribble = np.full((32, 32), IGNORE, np.uint8)
    np.fill_diagonal(scribble, 2)
    reduced = reduce_scribbles(scribble, 4)
    assert (np.diagonal(reduced) == 2).all()
    assert (reduced != IGNORE).sum() == 8
