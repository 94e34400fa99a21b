"""Bright discs on a dark ground, with noise, labels and scribbles; drawn when they are asked for, from no file.

Replace `ids` and `load` by what lists and reads your files; the checks say what a sample has to keep.
"""

from __future__ import annotations

import math

import numpy as np

from regloss.dataset import IGNORE, Dataset, Sample
from regloss.errors import UsageError

SUBSETS = ("train", "val", "test")


class MyComponent(Dataset):
    """One disc in each grey image; its scribbles are a stroke through the disc and one along the left border.

    Args:
        count: images of each subset ("train", "val", "test"), at least 1.
        size: height and width in pixels, at least 16.
        noise: standard deviation of the noise, in image values, >= 0.

    Raises:
        UsageError: a setting outside its range.
    """

    classes = ("background", "disc")
    colors = ((0, 0, 0), (255, 200, 0))
    channels = 1

    def __init__(self, count: int = 8, size: int = 64, noise: float = 0.1) -> None:
        if count < 1 or size < 16:
            raise UsageError(f"count must be at least 1 and size at least 16; got {count} and {size}.")
        if not 0 <= noise < math.inf:
            raise UsageError(f"noise must not be negative; got {noise}.")
        self.count = count
        self.size = size
        self.noise = noise

    def ids(self, subset: str) -> tuple[str, ...]:
        """Ids of a subset, "train-0" for example."""
        if subset not in SUBSETS:
            raise UsageError(f"my-component has no subset {subset!r}; there are {', '.join(SUBSETS)}.")
        return tuple(f"{subset}-{number}" for number in range(self.count))

    def load(self, sample_id: str) -> Sample:
        """Image (1, H, W), label and scribble (H, W) of one sample; the same each time."""
        subset, _, number = sample_id.rpartition("-")
        if subset not in SUBSETS or sample_id not in self.ids(subset):
            raise UsageError(f"my-component has no image {sample_id!r}; ids are {self.ids('train')[0]} and so on.")
        generator = np.random.default_rng([SUBSETS.index(subset), int(number)])  # of this sample alone
        radius = generator.uniform(0.15, 0.3) * self.size
        row, column = generator.uniform(radius + 2, self.size - radius - 2, 2)
        rows, columns = np.mgrid[: self.size, : self.size]
        label = ((rows - row) ** 2 + (columns - column) ** 2 < radius**2).astype(np.uint8)

        noisy = 0.3 + 0.4 * label + self.noise * generator.standard_normal(label.shape)
        image = noisy.clip(0, 1).astype(np.float32)[np.newaxis]

        scribble = np.full_like(label, IGNORE)
        scribble[:, 0] = 0
        reach = radius / 2
        scribble[round(row), round(column - reach) : round(column + reach) + 1] = 1
        return Sample(sample_id, image, label, scribble, group=sample_id)
