"""Nonlocal total variation: total variation over a graph that joins each pixel to those that look like it.

    R(s) = weight * sum over classes k and edges ij of w_ij |s_jk - s_ik|

Each pixel chooses its ``neighbors`` nearest others in the space of features f = (values / sigma_rgb, position /
sigma_xy), the values being those of the pixel, or of the patch around it. An edge that both ends choose counts with the
sum of both weights (a directed list and the undirected graph with w_ij + w_ji are the same energy), so each unordered
pair stands in the list once. The weight of a chosen edge, |p| being the distance in pixels (or mm), is

    bilateral   exp(-|f_i - f_j|^2 / 2) + near * exp(-|p|^2 / (2 sigma_near^2))
    rbf         exp(-|f_i - f_j|^2 / 2)
    zmp         exp(-|f_i - f_j|^2 / (r_i r_j)), r_i the distance from i to its farthest neighbour; r = 0 gives 1
    cosine      cosine of the angle between the patches' values, where it is positive, else 0; 0 for black patches

On one-hot labels both classes of a cut edge jump, so the energy is *twice* the weight of the cut; the graph form
carries that factor. A pixel whose weights are all 0 is left alone.

As a saddle form, R(s) = max of <K s, y> over |y| <= weight with (K s)_e = w_e (s_j - s_i), whose adjoint gathers at i
and *scatters* at j; the two agree only because both ends of each edge are summed, which a list of neighbours alone does
not say.

Source: Jia, Tai, Liu, "Nonlocal regularized CNN for image segmentation", Eq. (8)-(11), with squared bandwidths in
Eq. (11), whose values 40, 13/255 and 3 are standard deviations; Zelnik-Manor, Perona, "Self-tuning spectral
clustering", 2004 (zmp).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regloss import grid
from regloss.checks import check_at_least_one, check_choice, check_not_negative, holds
from regloss.dual_sets import Box
from regloss.errors import UsageError
from regloss.forms import Graph, Saddle, SaddlePart
from regloss.grid import Unit
from regloss.operators import EdgeDifferences
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.kernels.neighbors import nearest, nearest_in_window

WEIGHTS = ("bilateral", "rbf", "zmp", "cosine")

Edges = tuple[NDArray[np.int64], NDArray[np.float64]]  # (E, 2) pixels i < j, each pair once, and (E,) weights


@dataclass(frozen=True)
class NonlocalTV(Regularizer):
    """Total variation over the graph of each pixel's nearest neighbours in colour and place, summed over classes.

    Args:
        weight: factor of the whole energy, >= 0.
        neighbors: how many others each pixel chooses, >= 1 and less than the number of pixels.
        weights: "bilateral", "rbf", "zmp" or "cosine".
        window: look for neighbours at most so many pixels away along each axis, >= 1; None = everywhere. Both
            searches are exact.
        sigma_xy: bandwidth of places, > 0, in ``unit``; inf = they do not matter. Like ``sigma_rgb`` it may be a tensor
            of one element, to be learnt, with the weights "bilateral" and "rbf": neighbours are those of the bandwidths
            as they stand, and weights have a gradient.
        sigma_rgb: unit of differences of image values, 0 < sigma_rgb <= 2.
        near: "bilateral" only: weight of the purely spatial part, >= 0.
        sigma_near: "bilateral" only: its bandwidth, > 0, in ``unit``.
        patch: radius of the patches whose values are compared, in pixels, >= 0; 0 = the pixel alone. A patch's squared
            difference is the mean over its pixels, summed over channels; beyond the border it repeats the border.
        cache: folder to keep the graphs in, one file for each image, named by a hash of the image and of all settings
            that the graph depends on; None or "" = compute it at each binding, as learnt bandwidths need it. Runs that
            are loaded keep them inside of their own folder, or where ``--set`` says.
        unit: of sigma_xy and sigma_near: "pixel", or "mm", for images whose spacing is known. Window and patch are in
            pixels.

    Raises:
        UsageError: a setting outside its range, or an image with too few pixels for so many neighbours.

    The two dark pixels are each other's neighbours, and so are the two light ones:

    >>> image = torch.tensor([[[[0.1, 0.9, 0.1, 0.9]]]])
    >>> labels = torch.tensor([[[0, 1, 0, 1]]])
    >>> term = NonlocalTV(neighbors=1, near=0.0).bind(image)
    >>> term.form(Graph).edges
    tensor([[0, 2],
            [1, 3]])
    >>> term.form(Graph).cut(labels)
    tensor([0.])
    """

    weight: float = 1.0
    neighbors: int = 10
    weights: Literal["bilateral", "rbf", "zmp", "cosine"] = "bilateral"
    window: int | None = None
    sigma_xy: float | Tensor = 40.0
    sigma_rgb: float | Tensor = 13 / 255
    near: float = 0.5
    sigma_near: float = 3.0
    patch: int = 0
    cache: str | None = None
    unit: Unit = "pixel"
    opaque: ClassVar[bool] = True
    learnable: ClassVar[Sequence[str]] = ("sigma_xy", "sigma_rgb")

    def __post_init__(self) -> None:
        check_at_least_one(neighbors=self.neighbors)
        check_choice(WEIGHTS, weights=self.weights)
        if self.window is not None and self.window < 1:
            raise UsageError(f"window must be at least 1 pixel, or None to look everywhere; got {self.window}.")
        sigma_xy, sigma_rgb = _number(self.sigma_xy), _number(self.sigma_rgb)
        if not 0 < sigma_rgb <= 2:
            raise UsageError(
                f"sigma_rgb must lie in (0, 2], in units of image values in [0, 1]; got {sigma_rgb}. "
                "A bandwidth given for bytes is divided by 255."
            )
        if not sigma_xy > 0 or not self.sigma_near > 0:
            raise UsageError(
                "sigma_xy and sigma_near must be positive; got "
                f"{sigma_xy} and {self.sigma_near}. To ignore places use sigma_xy = inf, near = 0."
            )
        if self._learns and self.weights not in ("bilateral", "rbf"):
            raise UsageError(
                f'Bandwidths are learnt with the weights "bilateral" or "rbf"; {self.weights!r} are no smooth function '
                "of them."
            )
        if self._learns and self.cache:
            raise UsageError(
                "Graphs of bandwidths that are learnt change with every step, so they cannot be kept. Leave cache out."
            )
        grid.check_unit(self.unit, "nltv")
        check_not_negative(near=self.near)
        if self.patch < 0:
            raise UsageError(f"patch must be a radius of at least 0 pixels; got {self.patch}.")

    @property
    def forms(self) -> Forms:
        """A saddle form, and a graph."""
        return {Saddle: NonlocalTerm.saddle, Graph: NonlocalTerm.graph}

    @property
    def _learns(self) -> bool:
        return isinstance(self.sigma_xy, Tensor) or isinstance(self.sigma_rgb, Tensor)

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Compute the graph of every image, or read it from the cache."""
        values = image.to("cpu", torch.float64).numpy()
        inside = None if roi is None else roi.cpu().numpy()
        steps = grid.steps_in(self.unit, spacing, values.ndim - 2, "nltv")
        graphs = []
        for number in range(len(values)):
            region = np.ones(values.shape[2:], dtype=np.bool_) if inside is None else inside[number]
            graphs.append(self._graph(values[number], region, steps))
        pairs, numbers = _padded(graphs)
        edges, weights = torch.from_numpy(pairs).to(image.device), torch.from_numpy(numbers).to(image)
        if self._learns:
            outside = None if inside is None else ~inside
            weights = self._learnt_weights(values, outside, steps, edges, weights)
        return NonlocalTerm(self, edges, weights, (image.shape[0], *image.shape[2:]), roi)

    def _learnt_weights(
        self,
        images: NDArray[np.float64],  # (B, C, *S)
        outside: NDArray[np.bool_] | None,  # (B, *S)
        steps: tuple[float, ...],
        edges: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """``weights`` (B, E) as a function of the bandwidths: the same numbers, with a gradient."""
        ends = edges.cpu().numpy()
        size = images.shape[2:]
        positions = np.indices(size).reshape(len(size), -1).T * np.asarray(steps)  # (pixels, axes)
        apart = np.square(positions[ends[..., 0]] - positions[ends[..., 1]]).sum(-1)
        unlike = np.empty(ends.shape[:2])
        for number, image in enumerate(images):
            seen = image if outside is None else _filled(image, outside[number], self.patch)
            features = _patches(seen, self.patch).reshape(len(positions), -1)
            unlike[number] = np.square(features[ends[number, :, 0]] - features[ends[number, :, 1]]).sum(-1)
        squares = torch.from_numpy(np.stack([apart, unlike])).to(weights)
        sigma_xy, sigma_rgb = (torch.as_tensor(sigma).to(weights) for sigma in (self.sigma_xy, self.sigma_rgb))
        found = torch.exp(-squares[0] / (2 * sigma_xy.square()) - squares[1] / (2 * sigma_rgb.square()))
        if self.weights == "bilateral":
            found = found + self.near * torch.exp(-squares[0] / (2 * self.sigma_near**2))
        # An edge that both ends choose counts twice, and padding not at all.
        times = torch.where(found.detach() > 0, weights / found.detach(), torch.zeros_like(weights))
        return times * found

    def _graph(self, image: NDArray[np.float64], region: NDArray[np.bool_], steps: tuple[float, ...]) -> Edges:
        if not self.cache:
            return self._compute(image, region, steps)
        digest = hashlib.sha256(json.dumps(self._key(steps), sort_keys=True).encode())
        for array in (image, region):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        file = Path(self.cache) / f"nltv-{digest.hexdigest()[:40]}.npz"
        if file.exists():
            return _read(file)
        edges, weights = self._compute(image, region, steps)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may write the same file: each writes its own and moves it into place, which is atomic.
        partial = file.with_name(f"{file.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, edges=edges.astype(np.int32), weights=weights)
        partial.replace(file)
        return edges, weights

    def _key(self, steps: tuple[float, ...]) -> dict[str, Any]:
        """Everything but the image that the graph depends on; ``version`` is raised when the code changes it."""
        names = ("neighbors", "weights", "window", "sigma_xy", "sigma_rgb", "near", "sigma_near", "patch")
        key: dict[str, Any] = {"version": 1, **{name: getattr(self, name) for name in names}}
        return key if set(steps) == {1.0} else {**key, "steps": steps}

    def _compute(self, image: NDArray[np.float64], region: NDArray[np.bool_], steps: tuple[float, ...]) -> Edges:
        """``image`` (C, *S), ``region`` (*S), ``steps`` the distances of neighbours along each axis."""
        places = np.argwhere(region)
        if self.neighbors >= len(places):
            raise UsageError(
                f"nltv cannot give each pixel {self.neighbors} neighbours in an image, or a region of interest, of "
                f"{len(places)} pixels. Lower neighbors to at most {len(places) - 1}."
            )
        image = _filled(image, ~region, self.patch)
        values = _patches(image, self.patch)[tuple(places.T)]  # (N, features)
        searched = values
        if self.weights == "cosine":
            searched = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        positions = places * np.asarray(steps)
        sigmas = _number(self.sigma_rgb), _number(self.sigma_xy)
        features = np.concatenate([searched / sigmas[0], positions / sigmas[1]], axis=1)
        if self.window is None:
            chosen, squared = nearest(features, self.neighbors)
        else:
            chosen, squared = nearest_in_window(features, places, region.shape, self.window, self.neighbors)
        source = np.repeat(np.arange(len(places)), self.neighbors)
        found = chosen.ravel() >= 0  # a window at a corner may hold fewer pixels than asked for
        source, target, squared_list = source[found], chosen.ravel()[found], squared.ravel()[found]
        weights = self._weights(values, positions, squared, source, target, squared_list)
        flat = np.flatnonzero(region.ravel())
        return _merged(flat[source], flat[target], weights, region.size)

    def _weights(
        self,
        values: NDArray[np.float64],
        positions: NDArray[np.float64],
        squared: NDArray[np.float64],  # (N, neighbors) squared feature distances, inf where there is none
        source: NDArray[np.int64],
        target: NDArray[np.int64],
        squared_list: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        if self.weights == "cosine":
            lengths = np.linalg.norm(values, axis=1)
            products = np.einsum("ef,ef->e", values[source], values[target])
            scale = lengths[source] * lengths[target]
            cosine: NDArray[np.float64] = np.maximum(products, 0) / np.where(scale > 0, scale, 1)
            return cosine
        if self.weights == "zmp":
            radius = np.sqrt(np.where(np.isfinite(squared), squared, 0).max(axis=1))
            scale = radius[source] * radius[target]
            zmp: NDArray[np.float64] = np.exp(-np.where(scale > 0, squared_list / np.where(scale > 0, scale, 1), 0))
            return zmp
        weights: NDArray[np.float64] = np.exp(-squared_list / 2)
        if self.weights == "bilateral" and self.near > 0:
            apart = np.square(positions[source] - positions[target]).sum(axis=1)
            weights += self.near * np.exp(-apart / (2 * self.sigma_near**2))
        return weights


class NonlocalTerm(Term):
    """`NonlocalTV` on given graphs; bind one of your own, with learnt weights say, and give it to solver or layer.

    Args:
        regularizer: gives the weight; its other settings do not matter here.
        edges: (B, E, 2) int64 row-major pixel indices, no pixel joined to itself. The energy of an edge given twice,
            in either direction, is that of the sum of its weights.
        weights: (B, E) >= 0, 0 for padding; may need a gradient.
        shape: (B, *S) of the images.
        roi: (B, *S) bool, which all edges of a positive weight must keep to; None = everywhere.

    Raises:
        UsageError: shapes disagree, an index lies outside, a weight is negative.
    """

    def __init__(
        self,
        regularizer: NonlocalTV,
        edges: Tensor,
        weights: Tensor,
        shape: tuple[int, ...],
        roi: Tensor | None = None,
    ) -> None:
        super().__init__(regularizer, shape, roi)
        pixels = math.prod(shape[1:])
        if edges.ndim != 3 or edges.shape[2] != 2 or weights.shape != edges.shape[:2] or len(edges) != shape[0]:
            raise UsageError(
                f"Edges must have the shape (B, E, 2) and weights (B, E) with B = {shape[0]}; got "
                f"{tuple(edges.shape)} and {tuple(weights.shape)}."
            )
        if edges.numel() and not holds((edges >= 0) & (edges < pixels)):
            raise UsageError(f"Edges must join pixels 0 to {pixels - 1}; got {int(edges.min())} to {int(edges.max())}.")
        if not holds((weights.detach() >= 0) & weights.detach().isfinite()):
            raise UsageError("Weights of edges must be finite and not negative.")
        self.edges = edges
        self.weights = weights
        self.weight = regularizer.weight
        self.operator = EdgeDifferences(edges, weights, shape[1:])

    def energy(self, probabilities: Tensor) -> Tensor:
        """R (B,) at ``probabilities`` (B, K, *S)."""
        return Box(self.weight).support(self.operator.apply(self.check(probabilities)))

    def saddle(self) -> Saddle:
        """Dual variables are (B, K, E) with |y| <= weight."""
        return Saddle((SaddlePart(self.operator, Box(self.weight)),))

    def graph(self) -> Graph:
        """One edge list for all images, the union of theirs, with twice the weights."""
        batch = len(self.edges)
        joined = self.edges.sort(dim=2).values.reshape(-1, 2)
        used = self.weights.detach().flatten() > 0
        edges, place = torch.unique(joined[used], dim=0, return_inverse=True)
        image = torch.arange(batch, device=edges.device).repeat_interleave(self.edges.shape[1])[used]
        weights = self.weights.new_zeros(batch * len(edges))
        weights = weights.index_add(0, image * len(edges) + place, 2 * self.weight * self.weights.flatten()[used])
        return Graph(edges, weights.reshape(batch, len(edges)))


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _filled(image: NDArray[np.float64], outside: NDArray[np.bool_], radius: int) -> NDArray[np.float64]:
    """``image`` (C, *S) as patches may see it: what lies ``outside`` (*S) is that of the nearest pixel inside."""
    if radius == 0 or not outside.any():
        return image
    from scipy.ndimage import distance_transform_edt

    nearest_inside = distance_transform_edt(outside, return_distances=False, return_indices=True)
    filled: NDArray[np.float64] = image[(slice(None), *nearest_inside)]
    return filled


def _patches(image: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Values (*S, features) of the patch around each pixel of ``image`` (C, *S), over the root of its size."""
    if radius == 0:
        return np.moveaxis(image, 0, -1)
    width = 2 * radius + 1
    ndim = image.ndim - 1
    padded = np.pad(image, [(0, 0)] + [(radius, radius)] * ndim, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width,) * ndim, axis=tuple(range(1, ndim + 1)))
    flat: NDArray[np.float64] = np.moveaxis(windows, 0, ndim).reshape(*image.shape[1:], -1) / math.sqrt(width**ndim)
    return flat


def _merged(source: NDArray[np.int64], target: NDArray[np.int64], weights: NDArray[np.float64], pixels: int) -> Edges:
    """A directed list as undirected edges, sorted, with the weights of both directions added up."""
    low, high = np.minimum(source, target), np.maximum(source, target)
    keys, place = np.unique(low * pixels + high, return_inverse=True)
    edges = np.stack([keys // pixels, keys % pixels], axis=1).astype(np.int64)
    summed: NDArray[np.float64] = np.bincount(place, weights=weights, minlength=len(keys)).astype(np.float64)
    return edges, summed


def _padded(graphs: list[Edges]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(B, E, 2) and (B, E); shorter lists are filled up with edges of weight 0."""
    longest = max(len(weights) for _, weights in graphs)
    edges = np.zeros((len(graphs), longest, 2), dtype=np.int64)
    edges[:, :, 1] = 1
    weights = np.zeros((len(graphs), longest))
    for number, (pairs, values) in enumerate(graphs):
        edges[number, : len(pairs)], weights[number, : len(values)] = pairs, values
    return edges, weights


def _read(file: Path) -> Edges:
    try:
        with np.load(file) as stored:
            return stored["edges"].astype(np.int64), stored["weights"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"The cached graph {file} cannot be read ({error}). Delete it, to have it computed again."
        ) from error
