"""Short vectors: each operation against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from regloss_plugins.kernels.short_vectors import add, clip, load, mul, prefetch, splat, store, sub, total


@njit
def compute(first: Any, second: Any, factor: Any, low: Any, high: Any, shape: Any, out: Any) -> float:
    """Clip(factor * (a - b) + a) from place 1 on; the sum of a."""
    prefetch(second, 1)
    a, b = load(first, 1, shape), load(second, 1, shape)
    moved = add(mul(splat(factor, shape), sub(a, b)), a)
    store(out, 1, clip(moved, splat(low, shape), splat(high, shape)))
    return total(a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_operations(dtype: Any, count: int) -> None:
    random = np.random.default_rng(count)
    first, second = random.normal(size=(2, count + 2)).astype(dtype)
    out = np.full(count + 2, 7, dtype)
    found = compute(first, second, dtype(1.5), dtype(-0.8), dtype(0.9), (0,) * count, out)
    a, b = first[1:-1], second[1:-1]
    np.testing.assert_allclose(out[1:-1], np.clip(1.5 * (a - b) + a, -0.8, 0.9), rtol=1e-6)
    assert (out[0], out[-1]) == (7, 7)
    assert found == pytest.approx(float(a.sum()), rel=1e-5, abs=1e-6)
