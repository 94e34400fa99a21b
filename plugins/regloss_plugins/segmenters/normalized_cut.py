"""NormalizedCutSegmenter: groups of pixels that are joined less to others than among themselves, by eigenvectors.

    min over labels of   sum over classes k of  cut_k / volume_k
    cut_k     = sum of w_pq over ordered pairs with l_p = k, l_q != k
    volume_k  = sum of w_pq over ordered pairs with l_p = k
    w_pq      = exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2)) + 1e-10    for 0 < |p - q| <= radius

The sum lies between 0 and K. Over indicator vectors of any values it is an eigenvalue problem: the K smallest
eigenvalues of 1 - D^(-1/2) W D^(-1/2), with the degrees D, add up to a lower bound of it, and their eigenvectors give
every pixel K coordinates. k-means divides the pixels by the direction of these. That is how the relaxation is rounded,
and what is found need not be the minimum. It uses no start, and no prior of lengths.

Sources: Shi, Malik, "Normalized cuts and image segmentation", PAMI 22(8), 2000, for energy and weights; Ng, Jordan,
Weiss, "On spectral clustering", NIPS 2001, for K classes at once and k-means. Lanczos is ARPACK's, through scipy.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss import grid
from regloss.errors import UsageError
from regloss.numerics import one_hot
from regloss.segmenter import Segmentation, Segmenter, Task
from regloss.solver import Status
from regloss_plugins.segmenters.k_means import phases_by_color

if TYPE_CHECKING:
    from scipy import sparse

_FLOOR = 1e-10  # of the weights, so that every pixel is joined to its neighbours
_DENSE = 400  # pixels up to which all eigenvectors are found at once


@dataclass(frozen=True)
class NormalizedCutSegmenter(Segmenter):
    """Divides an image by normalised cuts, from the eigenvectors of its affinities.

    The time grows with the number of pixels, and with how alike they are; reduce photographs to 100 to 200 pixels.

    Args:
        sigma_xy: bandwidth of places in pixels, > 0; along axes of another spacing, in units of the finest.
        sigma_rgb: bandwidth of values in [0, 1], > 0.
        radius: of the neighbourhood, in the unit of sigma_xy, at least 1.
        tolerance: accuracy of the eigenvalues, which lie between 0 and 2, in [0, 1); 0 = as exact as numbers are. For
            more than 400 pixels there is a bound only then.

    Raises:
        UsageError: a setting outside its range.

    >>> image = torch.tensor([[[[0.1, 0.1, 0.1, 0.8, 0.9, 0.8, 0.8]]]])
    >>> found = NormalizedCutSegmenter()(image, phases=2)
    >>> found.labels
    tensor([[[0, 0, 0, 1, 1, 1, 1]]])
    """

    takes_scribbles = False

    sigma_xy: float = 4.0
    sigma_rgb: float = 0.1
    radius: float = 5.0
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name, value in (("sigma_xy", self.sigma_xy), ("sigma_rgb", self.sigma_rgb)):
            if not 0 < value < math.inf:
                raise UsageError(f"{name} must be positive and finite; got {value!r}.")
        if not 1 <= self.radius < math.inf:
            raise UsageError(f"radius must be at least 1, a finite number of pixels; got {self.radius!r}.")
        if not 0 <= self.tolerance < 1:
            raise UsageError(f"tolerance must lie in [0, 1); got {self.tolerance!r}.")

    def segment(self, task: Task) -> Segmentation:
        """Find the eigenvectors, and divide pixels by them.

        Raises:
            UsageError: a start, or more phases than pixels.
        """
        if task.start is not None:
            given = "phases" if isinstance(task.start, Tensor) else repr(task.start)
            raise UsageError(
                f"normalized-cut knows no start, since its eigenvectors depend on the image alone; got {given}. Leave "
                "start out."
            )
        size = task.image.shape[2:]
        if task.phases >= size.numel():
            raise UsageError(
                f"normalized-cut needs more pixels than phases; got {size.numel()} pixels and {task.phases} phases."
            )
        steps = [1.0] * len(size) if task.spacing is None else [step / min(task.spacing) for step in task.spacing]
        weights = self.affinity(task.image[0].cpu().double(), steps)
        if task.callback is not None:
            task.callback(f"{weights.nnz // 2} pairs of pixels")
        values, vectors = _eigenvectors(weights, task.phases, self.tolerance, task.seed)
        coordinates = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        divided = phases_by_color(coordinates.T.reshape(1, task.phases, *size), task.phases, seed=task.seed, tries=10)
        labels = _by_brightness(divided.to(task.image.device), task.image, task.phases)
        energy = normalized_cut(weights, labels.flatten().cpu().numpy(), task.phases)
        exact = self.tolerance == 0 or size.numel() <= _DENSE
        return Segmentation(
            labels=labels,
            probabilities=one_hot(labels, task.phases, task.image.dtype),
            energy=energy,
            bound=min(float(np.clip(values, 0, None).sum()), energy) if exact else -math.inf,
            steps=1,
            status=Status.CONVERGED,
        )

    def affinity(self, image: Tensor, steps: list[float]) -> sparse.csr_array:
        """The weights w (N, N) of ``image`` (C, *S), whose neighbours along each axis are so many ``steps`` apart."""
        from scipy import sparse  # slow to import, as are its eigenvectors

        size = image.shape[1:]
        index = torch.arange(size.numel()).reshape(size)
        reaches = [range(-math.floor(self.radius / step), math.floor(self.radius / step) + 1) for step in steps]
        rows, columns, weights = [], [], []
        for offset in itertools.product(*reaches):
            distance = sum((count * step) ** 2 for count, step in zip(offset, steps, strict=True))
            within = all(abs(count) < length for count, length in zip(offset, size, strict=True))
            if offset <= (0,) * len(size) or distance > self.radius**2 or not within:
                continue  # of each pair one order
            first, second = grid.pair_slices(offset)
            contrast = (grid.pick(image, first) - grid.pick(image, second)).square().sum(0)
            exponents = contrast / (2 * self.sigma_rgb**2) + distance / (2 * self.sigma_xy**2)
            weights.append(((-exponents).exp() + _FLOOR).flatten())
            rows.append(grid.pick(index, first).flatten())
            columns.append(grid.pick(index, second).flatten())
        places = (torch.cat(rows).numpy(), torch.cat(columns).numpy())
        half = sparse.coo_array((torch.cat(weights).numpy(), places), shape=(size.numel(), size.numel()))
        return sparse.csr_array(half + half.T)


def normalized_cut(weights: sparse.csr_array, labels: NDArray[np.int64], classes: int) -> float:
    """The sum of cut_k / volume_k of ``labels`` (N,); a class without pixels counts as 0.

    >>> from scipy import sparse
    >>> chain = sparse.csr_array([[0.0, 2.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    >>> normalized_cut(chain, np.array([0, 0, 1]), 2)
    1.2
    """
    degrees, total = weights @ np.ones(len(labels)), 0.0
    for label in range(classes):
        inside = (labels == label).astype(np.float64)
        volume = float(inside @ degrees)
        if volume > 0:
            total += 1 - float(inside @ (weights @ inside)) / volume
    return total


def _eigenvectors(
    weights: sparse.csr_array, count: int, tolerance: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ``count`` smallest eigenvalues of 1 - D^(-1/2) W D^(-1/2), and their vectors (N, count)."""
    from scipy import sparse

    roots = sparse.diags_array(1 / np.sqrt(weights @ np.ones(weights.shape[0])))
    matrix = roots @ weights @ roots
    if matrix.shape[0] <= _DENSE:
        values, vectors = np.linalg.eigh(matrix.toarray())
        return 1 - values[-count:], vectors[:, -count:]
    from scipy.sparse.linalg import eigsh

    begin = np.random.default_rng(seed).random(matrix.shape[0])
    values, vectors = eigsh(matrix, k=count, which="LA", tol=tolerance, v0=begin, maxiter=100 * matrix.shape[0])
    return 1 - values, vectors


def _by_brightness(labels: Tensor, image: Tensor, classes: int) -> Tensor:
    """``labels`` (1, *S) renumbered, so that 0 is the darkest class of ``image`` (1, C, *S)."""
    bright = image[0].sum(0)
    means = torch.stack([bright[labels[0] == label].mean() for label in range(classes)])
    return means.argsort().argsort()[labels]
