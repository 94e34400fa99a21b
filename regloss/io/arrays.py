"""Images and volumes that a program already holds as arrays: the same float32 in [0, 1] as files give."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from regloss.errors import UsageError
from regloss.io.cases import Intensities
from regloss.io.images import with_channels
from regloss.io.types import FloatImage
from regloss.io.windows import Window, windowed

ImageLike: TypeAlias = npt.NDArray[Any] | Tensor
"""(H, W) or (H, W, C), of a volume (D, H, W) or (C, D, H, W); a numpy array or a tensor."""

_LARGEST = {np.dtype(np.bool_): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_HALF = 32767  # what fits into 15 bits: cameras and scanners store 10 to 14 in 16


def image_from_array(array: ImageLike, channels: int, window: Window | None = None) -> FloatImage:
    """An array as an image with values in [0, 1]; what its values mean is never guessed from them.

    Args:
        array: (H, W) or (H, W, C) with C = 1 or 3 (RGB), or with the ``channels`` that are others: bool, uint8 (divided
            by 255), uint16 (divided by 65535, and refused where no value needs the highest bit, as those of 12-bit
            cameras), or floats, which must lie in [0, 1] already.
        channels: 1 turns colours into grey (luma of ITU-R BT.601), 3 repeats grey, as in files.
        window: which values become 0 and 1, as a model knows that was trained on images of 16 bits; None = as above.

    Returns:
        (C, H, W) float32, C = ``channels``.

    Raises:
        UsageError: another shape or type, NaN, or floats outside [0, 1].

    >>> image_from_array(np.array([[0, 51, 255]], dtype=np.uint8), 1).tolist()
    [[[0.0, 0.20000000298023224, 1.0]]]
    """
    values = _values(array)
    image = _scaled(values, window)  # the type first: an array of objects has no useful shape
    return np.ascontiguousarray(with_channels(_channels_first(image, channels), channels))


def volume_from_array(array: ImageLike, channels: int, intensities: Intensities) -> FloatImage:
    """An array as a volume with values in [0, 1], which is done with stored values as with those of files.

    Args:
        array: (D, H, W) with one channel, or (C, D, H, W), slices first: finite whole numbers or floats.
        channels: C.
        intensities: what becomes of values.

    Returns:
        (C, D, H, W) float32.

    Raises:
        UsageError: another shape, or values that are no finite real numbers or all alike.

    >>> volume_from_array(np.arange(8).reshape(2, 2, 2), 1, Intensities(percentiles=(0, 100)))[0, 1, 1].tolist()
    [0.8571428656578064, 1.0]
    """
    values = _values(array)
    volume = values[None] if values.ndim == 3 else values
    if volume.ndim != 4 or volume.shape[0] != channels or volume.size == 0:
        wanted = "(D, H, W)" if channels == 1 else f"({channels}, D, H, W)"
        raise UsageError(f"A volume for this model is {wanted}, slices first; got the shape {values.shape}.")
    if volume.dtype.kind not in "biuf" or not np.isfinite(volume).all():
        held = "NaN or infinity" if volume.dtype.kind == "f" else str(volume.dtype)
        raise UsageError(f"A volume holds finite whole numbers or floats; got {held}.")
    return intensities(volume, Path("The volume"))


def _values(array: ImageLike) -> npt.NDArray[Any]:
    if isinstance(array, Tensor):
        found: npt.NDArray[Any] = array.detach().cpu().numpy()
        return found
    if np.ma.is_masked(array):
        raise UsageError("An image with pixels that are masked out has none there: fill them, array.filled(0).")
    return np.asarray(array)


def _channels_first(image: FloatImage, channels: int) -> FloatImage:
    """(C, H, W), C = 1 or 3, or ``channels`` where these are others."""
    shape = image.shape
    taken = (1, 3) if channels in (1, 3) else (channels,)
    if len(shape) == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in taken or image.size == 0:
        way_out = ""
        if len(shape) == 4:
            way_out = " Give one image at a time."
        elif len(shape) == 3 and shape[0] in taken:
            way_out = " Move the channels behind: numpy.moveaxis(image, 0, -1), or image.permute(1, 2, 0) of a tensor."
        elif len(shape) == 3 and shape[-1] in (2, 4) and channels in (1, 3):
            way_out = f" Leave the last of its {shape[-1]} channels out if it is transparency: image[..., :-1]."
        wanted = "(H, W) or (H, W, C) with 1 or 3 channels" if channels in (1, 3) else f"(H, W, {channels})"
        raise UsageError(f"An image is {wanted}; got the shape {shape}.{way_out}")
    return np.moveaxis(image, -1, 0)


def _scaled(values: npt.NDArray[Any], window: Window | None) -> FloatImage:
    if (
        window is not None
        and values.size
        and (values.dtype == np.uint16 or (window.bits is None and values.dtype.kind in "buf"))
    ):
        return windowed(values, window, Path("The image"))
    largest = _LARGEST.get(values.dtype)
    if values.dtype == np.uint16 and 0 < (top := int(values.max(initial=0))) <= _HALF:
        raise UsageError(
            f"The image's values of uint16 go up to {top}, so 65535 is hardly white. Divide by what is, for 12 bits "
            "image / 4095, and give the floats."
        )
    if largest is not None:
        return values.astype(np.float32) / np.float32(largest)
    if values.dtype.kind != "f":
        raise UsageError(
            f"An image holds uint8, uint16 or floats in [0, 1]; got {values.dtype}, which does not say what is white. "
            "Convert it: image.astype(numpy.uint8) if its values are 0 to 255."
        )
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # false for NaN too
        held = "NaN" if np.isnan(values).any() else f"values from {low:.4g} to {high:.4g}"
        raise UsageError(
            f"An image of floats holds values in [0, 1]; got {held}. Divide it by the value of white, or give uint8 "
            "or uint16."
        )
    return values.astype(np.float32)
