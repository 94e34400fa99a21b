"""Mixtures of normal distributions: arrays in, arrays out.

`fit_mixture` makes one by expectation maximisation from clusters; see `regloss_plugins.region_forces.gaussian_mixture`.
`mixture_costs` evaluates several at the pixels of an image,

    costs[k, p] = -log(sum over m of exp(scale[k, m] - |whiten[k, m] x_p + shift[k, m]|^2 / 2))

with lower triangular matrices ``whiten``. It takes pixels by blocks, over which the compiler vectorises whatever the
number of channels.

Numba's on-disk cache looks at the file of a function but not at what it calls: after a change of code in
``softmax_rows.py``, touch this file too.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiling import kernel
from .softmax_rows import FAST, exp

_BLOCK = 64  # pixels


def mixture_costs(
    features: NDArray[Any],
    whiten: NDArray[Any],
    shift: NDArray[Any],
    scale: NDArray[Any],
    costs: NDArray[Any],
) -> None:
    """Fill ``costs`` (K, N); all arrays are of one type, float32 or float64.

    Args:
        features: (C, N), the x.
        whiten: (K, M, C, C); what lies above the diagonals is not looked at.
        shift: (K, M, C).
        scale: (K, M), -inf for components that do not count, which are not all of a class.
        costs: overwritten.
    """
    logs = np.empty((scale.shape[1], _BLOCK), features.dtype)
    _fill_costs(features, whiten, shift, scale, costs, logs, np.empty((4, _BLOCK), features.dtype))


@kernel(fastmath=FAST)
def _fill_costs(
    features: NDArray[Any],
    whiten: NDArray[Any],
    shift: NDArray[Any],
    scale: NDArray[Any],
    costs: NDArray[Any],
    logs: NDArray[Any],
    lines: NDArray[Any],
) -> None:
    channels, pixels = features.shape
    classes, components = scale.shape
    half = features.dtype.type(0.5)
    distance, row, top, total = lines[0], lines[1], lines[2], lines[3]
    for start in range(0, pixels, _BLOCK):
        size = _BLOCK if start + _BLOCK < pixels else pixels - start
        block = features[:, start : start + size]
        for k in range(classes):
            top[:] = -np.inf
            for m in range(components):
                if scale[k, m] == -np.inf:
                    continue
                distance[:] = 0
                for i in range(channels):
                    row[:] = shift[k, m, i]
                    for j in range(i + 1):
                        factor = whiten[k, m, i, j]
                        values = block[j]
                        for p in range(size):
                            row[p] += factor * values[p]
                    for p in range(size):
                        distance[p] += row[p] * row[p]
                line = logs[m]
                for p in range(size):
                    value = scale[k, m] - half * distance[p]
                    line[p] = value
                    top[p] = max(top[p], value)
            total[:] = 0
            for m in range(components):
                if scale[k, m] == -np.inf:
                    continue
                line = logs[m]
                for p in range(size):
                    total[p] += exp(line[p] - top[p])
            out = costs[k]
            for p in range(size):
                out[start + p] = -top[p] - np.log(total[p])


def fit_mixture(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    components: int,
    least: float,
    min_variance: float,
    max_steps: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Shares (M,), means (M, C) and covariances (M, C, C) of ``values``.

    Args:
        values: (n, C), n >= 1.
        weights: (n,), > 0.
        components: M; those that there are too few or too similar values for get the share 0.
        least: half of the weight that a cluster needs to be halved.
        min_variance: to which the covariances' eigenvalues are raised, and above which a cluster may be halved.
        max_steps: of expectation maximisation.
    """
    pixels, channels = values.shape
    centre = weights @ values / weights.sum()
    x = values - centre  # so that second moments lose no digits

    share, mean = np.zeros(components), np.zeros((components, channels))
    covariance = np.zeros((components, channels, channels))
    variance, axes = np.ones((components, channels)), np.zeros((components, channels, channels))
    members = np.zeros((components, pixels))  # weight of each pixel by component
    members[0] = weights
    widest = np.full(components, -1.0)  # sum of squares along the longest axis, where a cluster is worth halving

    def look_at(m: int) -> None:
        _moments(x, members[m], m, share, mean, covariance)
        _principal(covariance, m, variance, axes)
        worth = share[m] >= 2 * least and variance[m, -1] > min_variance
        widest[m] = share[m] * variance[m, -1] if worth else -1.0

    found = 1
    look_at(0)
    while found < components:
        m = int(widest.argmax())
        if widest[m] < 0:
            break
        _halve(x, mean, axes, m, found, members)
        look_at(m)
        look_at(found)
        found += 1

    logs = np.empty(found)
    for step in range(max_steps + 1):
        for m in range(found):
            # What is fitted is the covariance with its small eigenvalues raised; the next step needs it in this form.
            _principal(covariance, m, variance, axes)
        variance = np.maximum(variance, min_variance)
        if step == max_steps:
            break
        _assign(x, weights, share, mean, variance, axes, logs, members)
        for m in range(found):
            _moments(x, members[m], m, share, mean, covariance)
    for m in range(found):
        covariance[m] = (axes[m] * variance[m]) @ axes[m].T
    covariance[found:] = min_variance * np.eye(channels)
    return share / share.sum(), mean + centre, covariance


@kernel()
def _halve(x: Any, mean: Any, axes: Any, m: int, found: int, members: Any) -> None:
    """Give what lies on one side of the longest axis of cluster ``m`` to the new cluster ``found``."""
    pixels, channels = x.shape
    for p in range(pixels):
        side = 0.0
        for i in range(channels):
            side += (x[p, i] - mean[m, i]) * axes[m, i, channels - 1]
        if members[m, p] > 0 and side > 0:
            members[found, p] = members[m, p]
            members[m, p] = 0.0


@kernel()
def _assign(x: Any, weights: Any, share: Any, mean: Any, variance: Any, axes: Any, logs: Any, members: Any) -> None:
    """Divide the weight of each pixel among ``len(logs)`` components, by their densities."""
    pixels, channels = x.shape
    found = len(logs)
    total = 0.0
    for m in range(len(share)):
        total += share[m]
    for p in range(pixels):
        top = -np.inf
        for m in range(found):
            logs[m] = math.log(share[m] / total)
            for i in range(channels):
                row = 0.0
                for j in range(channels):
                    row += axes[m, j, i] * (x[p, j] - mean[m, j])
                logs[m] -= (row * row / variance[m, i] + math.log(variance[m, i])) / 2
            top = max(top, logs[m])
        mass = 0.0
        for m in range(found):
            logs[m] = math.exp(logs[m] - top)
            mass += logs[m]
        for m in range(found):
            members[m, p] = weights[p] * logs[m] / mass


@kernel()
def _moments(x: Any, members: Any, m: int, share: Any, mean: Any, covariance: Any) -> None:
    """Mass, mean and covariance of component ``m``, whose pixels have the weights ``members`` (n,)."""
    pixels, channels = x.shape
    mass = 0.0
    for i in range(channels):
        mean[m, i] = 0.0
        for j in range(channels):
            covariance[m, i, j] = 0.0
    for p in range(pixels):
        weight = members[p]
        if weight > 0:
            mass += weight
            for i in range(channels):
                mean[m, i] += weight * x[p, i]
                for j in range(i + 1):
                    covariance[m, i, j] += weight * x[p, i] * x[p, j]
    share[m] = mass
    if mass > 0:
        for i in range(channels):
            mean[m, i] /= mass
        for i in range(channels):
            for j in range(i + 1):
                value = covariance[m, i, j] / mass - mean[m, i] * mean[m, j]
                covariance[m, i, j] = value
                covariance[m, j, i] = value


def _principal(covariance: Any, m: int, variance: Any, axes: Any) -> None:
    """Variances of component ``m`` along its axes, rising, and the axes, one a column."""
    variance[m], axes[m] = np.linalg.eigh(covariance[m])
