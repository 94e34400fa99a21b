"""RandomWalker: the class whose scribbles a random walk from a pixel is most likely to reach first.

    min over probabilities x of   E(x) = sum over classes k and pairs p, q of neighbours of  w_pq (x_kp - x_kq)^2
    with x one-hot on scribbles,      w_pq = exp(-beta |(I_p - I_q) / spacing|^2 / (10 spread sqrt(C))) + 1e-10

with 4 neighbours (6 in volumes) and the standard deviation ``spread`` of the image over all of its C channels. Walks go
from p to q with a probability in proportion to w_pq, so hardly across edges. E is convex, and one linear system for
each class minimises it. Where walks may end anywhere the largest probability is small: that is what a threshold on
pseudo-labels looks at. scikit-image sets the systems up and solves them: ``pip install 'regloss[random-walker]'``.

Source: Grady, "Random walks for image segmentation", PAMI 28(11), 2006. As pseudo-labels for training: Luo et al.,
"Scribble-supervised medical image segmentation via dual-branch network and dynamically mixed pseudo labels
supervision", MICCAI 2022, with beta = 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from regloss.checks import check_choice, check_not_negative
from regloss.dataset import IGNORE
from regloss.errors import MissingDependency, UsageError
from regloss.segmenter import Segmentation, Segmenter, Task
from regloss.solver import Status

_UNSOLVED = 0.1  # by which probabilities of a pixel may miss 1 before it is said


@dataclass(frozen=True)
class RandomWalker(Segmenter):
    """Probabilities of random walks that end at scribbles; every probability is soft but those of scribbles.

    Args:
        beta: how much edges hinder walks, >= 0; 0 = not at all, so that the place of the scribbles decides.
        method: "direct" factorises the linear systems, "cg" takes conjugate gradients, in less memory; "auto" =
            "direct" for images, "cg" for volumes.
        tolerance: relative residual at which conjugate gradients end, > 0.

    Raises:
        MissingDependency: scikit-image is not installed.
        UsageError: a setting outside its range.

    A step in the image holds walks back:

    >>> image = torch.tensor([[[[0.1, 0.1, 0.1, 0.1, 0.9]]]])
    >>> found = RandomWalker()(image, scribbles=torch.tensor([[[0, 255, 255, 255, 1]]]))
    >>> found.labels
    tensor([[[0, 0, 0, 0, 1]]])
    """

    takes_phases: ClassVar[bool] = False

    beta: float = 130.0
    method: Literal["auto", "direct", "cg"] = "auto"
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if find_spec("skimage") is None:
            raise MissingDependency(
                "The segmenter 'random-walker' needs the package scikit-image, which is not installed. Install it with "
                "pip install 'regloss[random-walker]'."
            )
        check_not_negative(beta=self.beta)
        check_choice(("auto", "direct", "cg"), method=self.method)
        if not 0 < self.tolerance < math.inf:
            raise UsageError(f"tolerance must be a positive number; got {self.tolerance!r}.")

    def segment(self, task: Task) -> Segmentation:
        """Solve the linear systems; the energy is that of the probabilities, and their minimum if solved directly."""
        assert task.scribbles is not None  # as it takes no phases
        scribbles = task.scribbles[0].cpu().numpy()
        present = np.unique(scribbles[scribbles != IGNORE])
        seeds = np.zeros(scribbles.shape, dtype=np.int32)  # 0 = free
        for number, label in enumerate(present, start=1):
            seeds[scribbles == label] = number
        image = task.image[0].cpu().double().numpy()
        spacing = task.spacing or (1.0,) * seeds.ndim
        direct = self.method == "direct" or (self.method == "auto" and seeds.ndim < 3)
        found, left = self._probabilities(image, seeds, len(present), spacing, "bf" if direct else "cg_j")
        probabilities = task.image.new_zeros(1, task.phases, *seeds.shape)
        probabilities[0, torch.from_numpy(present).to(task.image.device)] = torch.from_numpy(found).to(task.image)
        energy = self.energy(image, found, spacing)
        return Segmentation(
            labels=probabilities.argmax(1),
            probabilities=probabilities,
            energy=energy,
            bound=energy if direct else -math.inf,
            steps=len(present),
            status=Status.OPTIMAL if direct else Status.CONVERGED,
            notes=() if left == 0 else (self._note(left, seeds.size),),
        )

    def _probabilities(
        self, image: NDArray[np.float64], seeds: NDArray[np.int32], classes: int, spacing: Sequence[float], mode: str
    ) -> tuple[NDArray[np.float64], int]:
        """(classes, *S) that sum to 1, of ``seeds`` (*S) in 1 to ``classes``, 0 where free; how many are unknown."""
        from skimage.segmentation import random_walker  # slow to import, with much of scipy

        given: NDArray[np.float64]
        given = (seeds == np.arange(1, classes + 1).reshape(-1, *[1] * seeds.ndim)).astype(np.float64)
        if not (seeds == 0).any():
            return given, 0
        # scikit-image knows axes of images and volumes alone, and divides by the spread, which is 0 in a flat image.
        size = seeds.shape if seeds.ndim > 1 else (1, *seeds.shape)
        data, beta = np.moveaxis(image.reshape(-1, *size), 0, -1), self.beta
        if data.std() == 0:
            data, beta = np.arange(data.size, dtype=np.float64).reshape(data.shape), 0.0
        found = random_walker(
            data,
            seeds.reshape(size),
            beta=beta,
            mode=mode,
            tol=self.tolerance,
            prob_tol=math.inf,  # by how much sums differ from 1 tells more than that one is slightly above it
            return_full_prob=True,
            spacing=spacing if seeds.ndim > 1 else (1.0, *spacing),
            channel_axis=-1,
        )
        clipped: NDArray[np.float64] = np.clip(found.reshape(given.shape), 0, 1)
        # Where strong edges cut pixels off, conjugate gradients end before any walk from there is known.
        left = int((np.abs(found.reshape(given.shape).sum(0) - 1) > _UNSOLVED).sum())
        unknown = np.clip(1 - clipped.sum(0), 0, 1)
        shared = clipped + unknown / classes
        probabilities: NDArray[np.float64] = np.where(seeds > 0, given, shared / shared.sum(0))
        return probabilities, left

    @staticmethod
    def _note(left: int, pixels: int) -> str:
        return (
            f"Warning: conjugate gradients ended before the walks from {left} of {pixels} pixels were known, and what "
            "is not known is shared by the classes. A smaller tolerance or beta, or the method direct, which takes "
            "more memory, knows more (random-walker:tolerance=1e-5, random-walker:method=direct)."
        )

    def energy(self, image: NDArray[np.float64], probabilities: NDArray[np.float64], spacing: Sequence[float]) -> float:
        """E(x) of probabilities (K, *S) in an image (C, *S)."""
        scale = 10 * float(image.std()) * math.sqrt(len(image))
        total = 0.0
        for axis, step in enumerate(spacing, start=1):
            contrast = np.square(np.diff(image, axis=axis) / step).sum(0)
            weights = np.exp(-self.beta * contrast / (scale or 1.0)) + 1e-10
            total += float((weights * np.square(np.diff(probabilities, axis=axis)).sum(0)).sum())
        return total
