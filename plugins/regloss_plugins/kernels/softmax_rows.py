"""Softmax of pixels over their classes: over the rows of an array, vectorised by the compiler.

Compiled code has no vector exponential of its own without Intel's library, so there is one here: a polynomial on
[-log(2) / 2, log(2) / 2] and a power of 2 that is put into the exponent's bits; its relative error is below 2e-7 in
float32 and 4e-16 in float64. Arrays in, arrays out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from regloss_plugins.kernels.compiling import helper

# Sums may be reordered, which lets them be vectorised; infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "nsz"}

_TAYLOR = tuple(1 / math.factorial(power) for power in range(13, -1, -1))
_TAYLOR_SINGLE = tuple(np.float32(1 / math.factorial(power)) for power in range(7, -1, -1))


# No reassociation here: it would join the two parts of log 2, and with them go the digits.
@helper(fastmath={"contract"})
def _exp_double(x: Any) -> Any:
    x = max(x, -708.0)
    power = np.floor(x * 1.4426950408889634 + 0.5)
    x = x - power * 6.93147180369123816490e-01
    x = x - power * 1.90821492927058770002e-10
    value = _TAYLOR[0]
    for number in range(1, 14):
        value = value * x + _TAYLOR[number]
    return value * np.int64((np.int64(power) + np.int64(1023)) << np.int64(52)).view(np.float64)


@helper(fastmath={"contract"})
def _exp_single(x: Any) -> Any:
    x = max(x, np.float32(-87.0))
    power = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    x = x - power * np.float32(0.693359375)
    x = x + power * np.float32(2.12194440e-4)
    value = _TAYLOR_SINGLE[0]
    for number in range(1, 8):
        value = value * x + _TAYLOR_SINGLE[number]
    return value * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)


def exp(x: Any) -> Any:
    """The exponential of ``x`` <= 0, a numpy scalar; 0 where it would be no normal number.

    Compiled code takes the polynomials above instead.
    """
    least = -87.0 if isinstance(x, np.float32) else -708.0
    return np.exp(x) if x > least else type(x)(0)


@overload(exp)
def _exp(x):  # type: ignore[no-untyped-def]  # numba compares this signature with the one below
    if x == types.float32:
        return lambda x: _exp_single(x) if x > np.float32(-87.0) else np.float32(0.0)
    return lambda x: _exp_double(x) if x > -708.0 else 0.0


@helper(fastmath=FAST)
def softmax_rows(scores: Any, top: Any, total: Any, inverse: Any) -> None:
    """Softmax over the first axis, in place.

    Args:
        scores: (K, W), overwritten; -inf gives 0, but not in all of a column.
        top: (W,) overwritten with the largest score; an array of its own, as are the next two.
        total: (W,) overwritten with the sum of exp(score - top).
        inverse: (W,) overwritten with 1 / total.
    """
    classes, width = scores.shape
    one = scores.dtype.type(1)
    first = scores[0]
    for x in range(width):
        top[x] = first[x]
        total[x] = 0
    for k in range(1, classes):
        row = scores[k]
        for x in range(width):
            top[x] = max(top[x], row[x])
    for k in range(classes):
        row = scores[k]
        for x in range(width):
            value = exp(row[x] - top[x])
            row[x] = value
            total[x] += value
    for x in range(width):
        inverse[x] = one / total[x]
    for k in range(classes):
        row = scores[k]
        for x in range(width):
            row[x] *= inverse[x]
