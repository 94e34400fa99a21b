"""The exponential and the softmax of compiled code, against numpy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from regloss_plugins.kernels import softmax_rows


@njit
def exponentials(values: Any, out: Any) -> None:
    for i in range(len(values)):
        out[i] = softmax_rows.exp(values[i])


@pytest.mark.parametrize(("dtype", "limit", "error"), [(np.float32, -86.0, 2e-7), (np.float64, -707.0, 4e-16)])
def test_exponential(dtype: Any, limit: float, error: float) -> None:
    values = np.concatenate([np.linspace(limit, 0, 20001), -np.logspace(-30, 0, 1000)]).astype(dtype)
    found = np.empty_like(values)
    exponentials(values, found)
    exact = np.exp(values.astype(np.longdouble))
    assert float(np.max(np.abs(found / exact - 1))) < error
    far = np.array([-np.inf, -1e30, 10 * limit], dtype=dtype)
    out = np.ones_like(far)
    exponentials(far, out)
    assert out.tolist() == [0.0, 0.0, 0.0]
    # Not compiled, it is the same function.
    assert [softmax_rows.exp(value) for value in far] == [0.0, 0.0, 0.0]
    in_python = np.array([softmax_rows.exp(value) for value in values[::100]])
    assert in_python.dtype == dtype
    np.testing.assert_allclose(in_python, found[::100], rtol=2 * error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax(dtype: Any) -> None:
    scores = (10 * np.random.default_rng(0).normal(size=(4, 37))).astype(dtype)
    scores[1:3, 5] = -np.inf
    scores[:, 6] += 3e4 if dtype == np.float32 else 1e300
    exact = np.exp(scores.astype(np.longdouble) - scores.max(0))
    top, total, inverse = (np.empty(37, dtype) for _ in range(3))
    found = scores.copy()
    softmax_rows.softmax_rows(found, top, total, inverse)
    np.testing.assert_allclose(found, exact / exact.sum(0), rtol=0, atol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(top, scores.max(0), rtol=0)
    np.testing.assert_allclose(total, exact.sum(0), rtol=8 * np.finfo(dtype).eps)
    assert found[1:3, 5].tolist() == [0.0, 0.0]
