"""Saliency: where to look first, from the image alone; a start for segmentation without labels.

    border contrast      how far a pixel's colour is from the colours at the borders of the image, which show background
                         more often than objects. For each border, with mean m and covariance C of its pixels' colours,
                         u = |C^(-1/2) (I - m)| scaled to a maximum of 1; the sum of the u without the largest (of a
                         border that the object may touch), times a Gaussian about the centre of the image
    spectral residual    where the image is not what its neighbourhood in the spectrum would predict:
                         |F^-1 exp(L - mean_3 L + i phase)|^2 with L the logarithm of the amplitudes of F, smoothed

The first finds regions, the second small objects and their edges. Both are of order pixels x log pixels at most, and
know no parameter that depends on the image.

Sources: Zhang, Sclaroff, Lin, Shen, Price, Mech, "Minimum barrier salient object detection at 80 FPS", ICCV 2015, for
the contrast with the four borders (there in another colour space, beside a second map); Hou, Zhang, "Saliency
detection: a spectral residual approach", CVPR 2007 (there on an image of 64 pixels). The threshold is Otsu's (1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss.checks import check_image
from regloss.errors import UsageError
from regloss.numerics import widest_float
from regloss.settings import checked

_BORDER = 0.05  # width of a border, as a fraction of the image's length along that axis
_CENTRE = 0.3  # spread of the Gaussian about the centre, likewise
_RIDGE = 1e-2  # of a border's colour variance, added to it: a border of one colour has none
_SMALLEST_VARIANCE = 1e-6  # of image values: below, colours are one colour
_SPECTRAL_SPREAD = 0.04  # of the smoothing of the spectral residual, as a fraction of the image's shorter side
_BINS = 256


def border_contrast(image: Tensor) -> Tensor:
    """Contrast with the borders of the image, see above.

    Args:
        image: (B, C, *S) in [0, 1], one to three spatial axes.

    Returns:
        (B, *S) in [0, 1], with a maximum of 1; all 0 for an image of one colour.

    Raises:
        UsageError: the image is not of this form.

    >>> image = torch.zeros(1, 1, 9, 9)
    >>> image[..., 3:6, 3:6] = 0.8
    >>> bool((border_contrast(image)[0, 3:6, 3:6] > 0.5).all()), float(border_contrast(image)[0, 0, 0])
    (True, 0.0)
    """
    values = _checked(image)
    channels, size = values.shape[1], values.shape[2:]
    smooth = values
    for axis, length in enumerate(size):
        smooth = _blur(smooth, axis + 2, min(1.0, length / 16))
    maps = []
    for axis, length in enumerate(size, start=2):
        width = max(1, round(_BORDER * length))
        for start in (0, length - width):
            colors = smooth.narrow(axis, start, width).flatten(2)
            mean = colors.mean(2, keepdim=True)
            centred = colors - mean
            covariance = centred @ centred.mT / colors.shape[2]
            ridge = _RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1) + _SMALLEST_VARIANCE
            covariance = covariance + ridge.reshape(-1, 1, 1) * torch.eye(channels).to(covariance)
            offset = smooth.flatten(2) - mean
            distance = (offset * torch.linalg.solve(covariance, offset)).sum(1).clamp(min=0).sqrt()
            largest = distance.amax(1, keepdim=True)
            # Of an image of one colour there is nothing but rounding.
            maps.append(torch.where(largest > 1e-6, distance / largest.clamp(min=1e-6), 0.0))
    stacked = torch.stack(maps)
    contrast = (stacked.sum(0) - stacked.amax(0)).reshape(image.shape[0], *size) * _about_centre(size, values)
    return _scaled(contrast).to(image.dtype)


def spectral_residual(image: Tensor) -> Tensor:
    """Residual of the log spectrum, see above; of each channel, added up.

    Args:
        image: (B, C, *S) in [0, 1], one to three spatial axes.

    Returns:
        (B, *S) in [0, 1], with a maximum of 1; all 0 for an image of one colour.

    Raises:
        UsageError: the image is not of this form.
    """
    values = _checked(image)
    size, axes = values.shape[2:], tuple(range(2, values.ndim))
    flat = (values.amax(axes) - values.amin(axes) < _SMALLEST_VARIANCE).all(1)
    spectrum = torch.fft.fftn(values, dim=axes)
    log_amplitude = spectrum.abs().clamp(min=1e-12).log()
    predicted = log_amplitude
    for axis in axes:  # the mean over 3 frequencies along each axis; the spectrum is periodic
        predicted = sum((predicted.roll(step, axis) for step in (-1, 0, 1)), torch.zeros_like(predicted)) / 3
    residual = torch.polar((log_amplitude - predicted).exp(), spectrum.angle())
    power = torch.fft.ifftn(residual, dim=axes).abs().square().sum(1, keepdim=True)
    for axis in axes:
        power = _blur(power, axis, _SPECTRAL_SPREAD * min(size))
    power = power.squeeze(1).masked_fill(flat.reshape(-1, *[1] * len(size)), 0.0)
    return _scaled(power).to(image.dtype)


SALIENCIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "border-contrast": border_contrast,
    "spectral-residual": spectral_residual,
}
"""Saliency maps by name."""


@checked
def phases_by_saliency(image: Tensor, saliency: str | Callable[[Tensor], Tensor] = "border-contrast") -> Tensor:
    """Two phases to start from: 1 where the saliency is above Otsu's threshold.

    Args:
        image: (B, C, *S) in [0, 1].
        saliency: a name in `SALIENCIES`, or a function that gives maps (B, *S).

    Returns:
        (B, *S) int64. Both phases have pixels.

    Raises:
        UsageError: no such saliency, maps of another shape, or an image in which it is the same everywhere.

    >>> image = torch.zeros(1, 1, 9, 9)
    >>> image[..., 3:6, 3:6] = 0.8
    >>> int(phases_by_saliency(image).sum())
    9
    """
    if isinstance(saliency, str):
        if saliency not in SALIENCIES:
            raise UsageError(f"There is no saliency called {saliency!r}. Known: {', '.join(SALIENCIES)}.")
        saliency = SALIENCIES[saliency]
    maps = saliency(image)
    if maps.shape != (len(image), *image.shape[2:]):
        raise UsageError(
            f"A saliency must give maps (B, *S) = {(len(image), *image.shape[2:])}; got {tuple(maps.shape)}."
        )
    flat = maps.flatten(1).to(widest_float(maps.device))
    low, high = flat.amin(1), flat.amax(1)
    constant = ~(high > low)
    if bool(constant.any()):
        place = int(constant.nonzero()[0])
        raise UsageError(
            f"The saliency of image {place} of the batch is the same everywhere, so nothing stands out to start from. "
            "Is the image of one colour? Start from a mask, or at random."
        )
    thresholds = otsu_threshold(flat)
    return (flat > thresholds.unsqueeze(1)).reshape(maps.shape).long()


def otsu_threshold(values: Tensor) -> Tensor:
    """The threshold that parts a histogram of 256 bins into the two groups with the most different means.

        argmax over t of   n_below n_above (mean_above - mean_below)^2

    Args:
        values: (B, N) floating point, finite.

    Returns:
        (B,) thresholds: the upper edge of a bin; values above it are the upper group. Never empty, unless all values of
        a row are equal.

    >>> otsu_threshold(torch.tensor([[0.0, 0.1, 0.9, 1.0]])) > 0.1
    tensor([True])
    """
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    step = (high - low) / _BINS
    bins = ((values - low) / step.clamp(min=torch.finfo(values.dtype).tiny)).floor().clamp(0, _BINS - 1).long()
    wide = widest_float(values.device)
    counts = torch.zeros(values.shape[0], _BINS, dtype=wide, device=values.device)
    counts.scatter_add_(1, bins, torch.ones_like(values, dtype=wide))
    sums = torch.zeros_like(counts).scatter_add_(1, bins, (values - low).to(wide))
    below, sum_below = counts.cumsum(1)[:, :-1], sums.cumsum(1)[:, :-1]
    above, sum_above = counts.sum(1, keepdim=True) - below, sums.sum(1, keepdim=True) - sum_below
    difference = sum_above / above.clamp(min=1) - sum_below / below.clamp(min=1)
    between = below * above * difference.square()
    # A gap in the histogram gives many equal maxima; in its middle the threshold is furthest from both groups.
    best = between.amax(1, keepdim=True)
    equal = between >= best * (1 - 1e-12)
    places = torch.arange(_BINS - 1, device=values.device, dtype=wide)
    first = torch.where(equal, places, places.new_tensor(float(_BINS))).amin(1)
    last = torch.where(equal, places, places.new_tensor(-1.0)).amax(1)
    middle = ((first + last) / 2).floor() + 1
    return (low.squeeze(1) + middle.to(values) * step.squeeze(1)).to(values)


def _checked(image: Tensor) -> Tensor:
    """``image`` in the type that sums are made in."""
    check_image(image)
    return image.detach().to(widest_float(image.device))


def _about_centre(size: tuple[int, ...], like: Tensor) -> Tensor:
    total = torch.zeros(size, dtype=like.dtype, device=like.device)
    for axis, length in enumerate(size):
        place = (torch.arange(length, dtype=like.dtype, device=like.device) - (length - 1) / 2) / (_CENTRE * length)
        total = total + place.square().reshape(-1, *itertools.repeat(1, len(size) - axis - 1))
    return (-total / 2).exp()


def _blur(values: Tensor, axis: int, spread: float) -> Tensor:
    """Gaussian smoothing along one axis, the outermost values repeated beyond the ends."""
    radius = math.ceil(3 * spread)
    if radius == 0:
        return values
    place = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    kernel = (-place.square() / (2 * spread**2)).exp()
    moved = values.movedim(axis, -1)
    rows = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="replicate")
    smooth = F.conv1d(rows, (kernel / kernel.sum()).reshape(1, 1, -1))
    return smooth.reshape(moved.shape).movedim(-1, axis)


def _scaled(maps: Tensor) -> Tensor:
    """Maps (B, *S) from 0 to 1; a constant one is all 0."""
    axes = tuple(range(1, maps.ndim))
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    spread = high - low
    # What rounding leaves of a constant map must not be blown up.
    scaled = (maps - low) / spread.clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.where(spread > 1e-9 * high.abs().clamp(min=1e-9), scaled, torch.zeros_like(maps))
