"""Noise that is added to images when a model is evaluated: the same for an image and a seed, whatever else is computed.

Levels of one kind share their random numbers: stronger noise is the same noise, stronger (gaussian), or the same pixels
and more (salt, pepper and both), so that the scores of several levels differ by the level alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regloss.errors import UsageError

KINDS = ("gaussian", "salt-and-pepper", "salt", "pepper")


@dataclass(frozen=True)
class Noise:
    """Noise of one kind and level.

    Args:
        kind: "gaussian", independent in every pixel and channel; "salt" or "pepper", pixels that turn white, or black,
            in all channels; or "salt-and-pepper", either with probability 1/2.
        level: standard deviation in image units (images lie in [0, 1]), or fraction of the pixels; 0 to 1. A standard
            deviation of 25 on images in 0..255 is 25/255 = 0.098.

    Raises:
        UsageError: another kind, or a level outside its range.

    >>> noise = Noise("salt-and-pepper", 0.25)
    >>> noise(np.full((1, 2, 4), 0.5, dtype=np.float32), "image-7", seed=0)
    array([[[0. , 0.5, 0.5, 0. ],
            [0.5, 0. , 0.5, 0.5]]], dtype=float32)
    """

    kind: str
    level: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"Noise is {', '.join(KINDS[:-1])} or {KINDS[-1]}; got {self.kind!r}.")
        if not 0 <= self.level <= 1:  # false for NaN too
            unit = "a standard deviation in units of [0, 1] (25/255 = 0.098, say)"
            expected = unit if self.kind == "gaussian" else "a fraction of the pixels"
            raise UsageError(f"The level of {self.kind} noise must be {expected}, from 0 to 1; got {self.level}.")

    @classmethod
    def parse(cls, text: str) -> Noise:
        """Noise from text.

        >>> Noise.parse("gaussian:0.1")
        Noise(kind='gaussian', level=0.1)
        """
        kind, colon, level = text.partition(":")
        try:
            number = float(level)
        except ValueError:
            number = math.nan
        if not colon or math.isnan(number):
            raise UsageError(f"Noise is given as KIND:LEVEL, for example gaussian:0.1 or salt:0.01; got {text!r}.")
        return cls(kind.strip(), number)

    def __str__(self) -> str:
        return f"{self.kind}:{self.level:g}"

    def __call__(self, image: npt.NDArray[np.float32], name: str, seed: int) -> npt.NDArray[np.float32]:
        """The noisy image, clipped to [0, 1].

        Args:
            image: (C, *S) float32 in [0, 1].
            name: of the image.
            seed: >= 0.
        """
        digest = hashlib.sha256(name.encode()).digest()
        rng = np.random.default_rng([seed, KINDS.index(self.kind), int.from_bytes(digest[:8], "little")])
        if self.kind == "gaussian":
            noisy: npt.NDArray[np.float32] = image + self.level * rng.standard_normal(image.shape, dtype=np.float32)
            return noisy.clip(0, 1)
        chosen = rng.random(image.shape[1:]) < self.level  # one draw for every pixel, whatever the level
        if self.kind == "salt-and-pepper":
            return np.where(chosen, (rng.random(image.shape[1:]) < 0.5).astype(np.float32), image)
        return np.where(chosen, np.float32(self.kind == "salt"), image)
