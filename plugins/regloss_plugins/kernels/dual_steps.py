"""What dual ascents on grids and on edges do with each dual variable y, and with each pixel.

    x = y + extrapolation * (y - the y before)
    y+ = P(x + step * difference)

Short vectors, or numbers, in and out. Numba's on-disk cache looks at the file of a function but not at what it calls:
after a change here touch ``grid_ascent.py`` and ``edge_ascent.py`` too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regloss_plugins.kernels.compiling import helper
from regloss_plugins.kernels.short_vectors import add, clip, load, mul, store, sub
from regloss_plugins.kernels.softmax_rows import FAST


@helper(forceinline=True, fastmath=FAST)
def extrapolated(dual: Any, before: Any, place: int, extrapolations: Any, shape: Any) -> Any:
    """The point x of the variables from ``place`` on."""
    value = load(dual, place, shape)
    return add(value, mul(extrapolations, sub(value, load(before, place, shape))))


@helper(forceinline=True, fastmath=FAST)
def ascend(
    dual: Any,
    before: Any,
    place: int,
    extrapolations: Any,
    step: Any,
    difference: Any,
    least: Any,
    most: Any,
    shape: Any,
) -> Any:
    """Put y+, each variable projected onto [least, most], into ``before``.

    Returns:
        y+, and (x - y+) (y+ - y).
    """
    value = load(dual, place, shape)
    point = add(value, mul(extrapolations, sub(value, load(before, place, shape))))
    new = clip(add(point, mul(step, difference)), least, most)
    store(before, place, new)
    return new, mul(sub(point, new), sub(new, value))


@helper(forceinline=True, fastmath=FAST)
def smooth_value(s: Any, cost: Any, log: Any, smoothing_weight: Any, entropy: bool) -> Any:
    """What one class of a pixel adds to the smooth part at s: <cost, s> + smoothing, with ``log`` = log s."""
    if not entropy:
        off = np.float64(s + cost / smoothing_weight)
        return smoothing_weight * off * off / 2
    # A probability of 0 adds nothing, though its cost may be inf.
    return s * (np.float64(cost) + smoothing_weight * np.float64(log)) if s > 0 else 0.0


@helper(forceinline=True, fastmath=FAST)
def box_gap(difference: float, y: Any, radius: float) -> Any:
    """Support less <difference, y> of one variable in [-radius, radius]: a product of two numbers that are >= 0."""
    return abs(difference) * (radius - (y if difference > 0 else -y))
