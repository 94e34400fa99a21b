"""Ball sums against a plain loop over all pairs of pixels."""

import itertools

import pytest
import torch

from regloss_plugins.kernels.balls import ball_segments, ball_size, ball_sums


def sums_by_loops(values, radius):
    pixels = list(itertools.product(*map(range, values.shape)))
    total = torch.zeros_like(values)
    for p in pixels:
        for q in pixels:
            if sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) <= radius**2:
                total[p] += values[q]
    return total


@pytest.mark.parametrize("size", [(7,), (5, 8), (3, 4, 5)])
@pytest.mark.parametrize("radius", [0, 1, 1.5, 2.9, 12])
def test_sums_follow_the_definition(size, radius):
    values = torch.rand(2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([sums_by_loops(one, radius) for one in values])
    torch.testing.assert_close(ball_sums(values, radius, len(size)), expected, rtol=1e-12, atol=1e-12)
    mask = values > 0.4
    counts = torch.stack([sums_by_loops(one.int(), radius) for one in mask])
    assert ball_sums(mask, radius, len(size)).tolist() == counts.tolist()


@pytest.mark.parametrize(("ndim", "radius", "size"), [(1, 3, 7), (2, 1, 5), (2, 5, 81), (3, 1, 7), (3, 2, 33)])
def test_size_is_the_number_of_lattice_points(ndim, radius, size):
    assert ball_size(radius, ndim) == size
    assert sum(2 * half + 1 for _, half in ball_segments(radius, ndim)) == size


def test_sums_are_differentiable():
    values = torch.rand(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ball_sums(v, 1.5, 2), (values,))
    assert ball_sums(values.float(), 1.5, 2).dtype == torch.float32
