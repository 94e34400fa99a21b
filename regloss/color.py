"""Colours as people tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.checks import at_least_float32, check_image
from regloss.errors import UsageError

# Linear sRGB to CIE XYZ, rows divided by the white point D65 (2 degrees), from IEC 61966-2-1.
_TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
_CHROMA = 220.0  # the width of the smallest intervals about 0, of whole numbers of tens, that hold a and b of sRGB


def lab(image: Tensor) -> Tensor:
    """An sRGB image in CIE Lab, whose distances are about those that people see, in [0, 1].

        L / 100,   1/2 + a / 220,   1/2 + b / 220

    Args:
        image: (B, 3, *S) in [0, 1].

    Returns:
        (B, 3, *S), float32 at least. A grey image has the second and third channel 1/2.

    Raises:
        UsageError: no image of three channels.

    Source: CIE 15; IEC 61966-2-1 for sRGB.

    >>> (100 * lab(torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]))).round()
    tensor([[[100.,  53.],
             [ 50.,  86.],
             [ 50.,  81.]]])
    """
    check_image(image)
    if image.shape[1] != 3:
        raise UsageError(f"Lab colours are made of red, green and blue; got an image of {image.shape[1]} channels.")
    rgb = at_least_float32(image.detach()).clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    weights = rgb.new_tensor(_TO_XYZ)
    xyz = (weights @ linear.flatten(2)).reshape(rgb.shape)
    # The cube root, with the line that joins it at the cube of 6 / 29.
    root = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.unbind(1)
    channels = [1.16 * y - 0.16, 0.5 + 500 / _CHROMA * (x - y), 0.5 + 200 / _CHROMA * (y - z)]
    return torch.stack(channels, dim=1).clamp(0, 1)
