"""Guided filter: probabilities take over the edges of the image.

In every window w of (2 radius + 1)^2 pixels each map is fitted as a linear function of the image's channels,

    q_p = <a_w, I_p> + b_w,    (a_w, b_w) = argmin sum over p in w of (<a, I_p> + b - values_p)^2 + epsilon |a|^2

and a pixel gets the mean over the windows that hold it. All sums are box filters, so the time does not depend on the
radius; windows are cut off at the border of the image.

Source: He, Sun, Tang, "Guided image filtering", PAMI 2013, with the colour image as the guide.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.checks import check_at_least_one, check_finite, check_image
from regloss.errors import UsageError
from regloss.numerics import widest_float
from regloss.settings import checked


@checked
def guided_filter(guide: Tensor, values: Tensor, radius: int = 4, epsilon: float = 1e-3) -> Tensor:
    """Filter ``values`` along the edges of ``guide``.

    Args:
        guide: (B, C, *S) in [0, 1], two or three spatial axes.
        values: (B, K, *S), floating point, finite. Maps that sum to 1 still do afterwards; they may leave [0, 1] a
            little.
        radius: half width of a window, pixels, >= 1.
        epsilon: variance of the guide, in image values squared, below which a window is averaged; > 0.

    Returns:
        (B, K, *S), of the type of ``values``.

    Raises:
        UsageError: shapes that disagree, values that are NaN or infinite, settings outside their range.

    >>> guide = torch.zeros(1, 1, 8, 8)
    >>> guide[..., 4:] = 1.0
    >>> blurred = torch.full((1, 1, 8, 8), 0.25)
    >>> blurred[..., 5:] = 0.75
    >>> guided_filter(guide, blurred, radius=2)[0, 0, 4, 2:6].round(decimals=2)  # the step is where the guide's is
    tensor([0.2500, 0.2500, 0.5200, 0.6200])
    """
    check_image(guide)
    if (
        values.ndim != guide.ndim
        or guide.ndim < 4
        or (len(values), *values.shape[2:])
        != (
            len(guide),
            *guide.shape[2:],
        )
    ):
        raise UsageError(
            "guided_filter needs a guide (B, C, *S) and values (B, K, *S) of the same B and *S, with two or three "
            f"spatial axes; got {tuple(guide.shape)} and {tuple(values.shape)}."
        )
    if not values.is_floating_point():
        raise UsageError(f"values must be floating point, as the filter's result is; got {values.dtype}.")
    check_finite(values, "values")
    check_at_least_one(radius=radius)
    if not 0 < epsilon < math.inf:
        raise UsageError(f"epsilon must be positive and finite; got {epsilon!r}.")
    # Variances are differences of nearly equal numbers, which float32 would not resolve for epsilon.
    dtype = widest_float(guide.device)
    image, maps = guide.to(dtype), values.to(dtype)
    channels = image.shape[1]
    mean_image, mean_maps = _box(image, radius), _box(maps, radius)
    # Channels last, so that every pixel's covariance (C, C) is a matrix of a batch.
    matrices = (len(image), channels, channels, *image.shape[2:])
    slopes_shape = (len(image), channels, maps.shape[1], *image.shape[2:])
    products = _box((image.unsqueeze(2) * image.unsqueeze(1)).flatten(1, 2), radius)
    variance = products.reshape(matrices) - mean_image.unsqueeze(2) * mean_image.unsqueeze(1)
    covariance = _box((image.unsqueeze(2) * maps.unsqueeze(1)).flatten(1, 2), radius)
    covariance = covariance.reshape(slopes_shape) - mean_image.unsqueeze(2) * mean_maps.unsqueeze(1)
    matrix = variance.movedim((1, 2), (-2, -1)) + epsilon * torch.eye(channels, dtype=dtype, device=image.device)
    slopes = torch.linalg.solve(matrix, covariance.movedim((1, 2), (-2, -1))).movedim((-2, -1), (1, 2))
    offsets = mean_maps - (slopes * mean_image.unsqueeze(2)).sum(1)
    smooth_slopes = _box(slopes.flatten(1, 2), radius).reshape(slopes_shape)
    filtered: Tensor = (smooth_slopes * image.unsqueeze(2)).sum(1) + _box(offsets, radius)
    return filtered.to(values.dtype)


def _box(values: Tensor, radius: int) -> Tensor:
    """Means (B, M, *S) over windows, of the pixels that lie in the image."""
    pool = F.avg_pool2d if values.ndim == 4 else F.avg_pool3d
    size = 2 * radius + 1
    return pool(values, size, stride=1, padding=radius, count_include_pad=False)
