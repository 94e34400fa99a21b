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
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.checks import check_at_least_one, check_choice, check_not_negative, holds
from regloss.dispatch import find
from regloss.dual_sets import Box
from regloss.errors import UsageError
from regloss.forms import Graph, Saddle, SaddlePart
from regloss.grid import Unit
from regloss.operators import EdgeDifferences
from regloss.regularizer import Forms, Regularizer, Term

WEIGHTS = ("bilateral", "rbf", "zmp", "cosine")

Edges = tuple[Tensor, Tensor]  # (E, 2) int64 pixels i < j, each pair once, and (E,) float64 weights

_ENTRIES = 2**24  # of a matrix of distances, at most so many at a time


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
        """Compute the graph of every image on its device, or read it from the cache."""
        # On devices without double precision, MPS for one, neighbours are looked for on the CPU.
        device = image.device if image.is_cuda else torch.device("cpu")
        values = image.to(device, torch.float64)
        regions = torch.ones(len(values), *values.shape[2:], dtype=torch.bool, device=device)
        regions = regions if roi is None else roi.to(device)
        steps = grid.steps_in(self.unit, spacing, values.ndim - 2, "nltv")
        graphs = [self._graph(one, region, steps) for one, region in zip(values, regions, strict=True)]
        edges, weights = _padded(graphs)
        edges, weights = edges.to(image.device), weights.to(image)
        if self._learns:
            weights = self._learnt_weights(values, regions, steps, edges, weights)
        return NonlocalTerm(self, edges, weights, (image.shape[0], *image.shape[2:]), roi)

    def _learnt_weights(
        self,
        images: Tensor,  # (B, C, *S) float64
        regions: Tensor,  # (B, *S) bool
        steps: tuple[float, ...],
        edges: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """``weights`` (B, E) as a function of the bandwidths: the same numbers, with a gradient."""
        first, second = edges.to(images.device).unbind(2)
        everywhere = torch.ones_like(regions[0]).nonzero()  # (pixels, axes)
        positions = everywhere * images.new_tensor(steps)
        apart = (positions[first] - positions[second]).square().sum(-1)
        unlike = torch.empty_like(apart)
        for number, (image, region) in enumerate(zip(images, regions, strict=True)):
            features = _patches(_filled(image, region, self.patch), self.patch).flatten(0, -2)
            unlike[number] = (features[first[number]] - features[second[number]]).square().sum(-1)
        squares = apart.to(weights), unlike.to(weights)
        sigma_xy, sigma_rgb = (torch.as_tensor(sigma).to(weights) for sigma in (self.sigma_xy, self.sigma_rgb))
        found = torch.exp(-squares[0] / (2 * sigma_xy.square()) - squares[1] / (2 * sigma_rgb.square()))
        if self.weights == "bilateral":
            found = found + self.near * torch.exp(-squares[0] / (2 * self.sigma_near**2))
        # An edge that both ends choose counts twice, and padding not at all.
        times = torch.where(found.detach() > 0, weights / found.detach(), torch.zeros_like(weights))
        return times * found

    def _graph(self, image: Tensor, region: Tensor, steps: tuple[float, ...]) -> Edges:
        if not self.cache:
            return self._compute(image, region, steps)
        digest = hashlib.sha256(json.dumps(self._key(steps), sort_keys=True).encode())
        for array in (image.cpu().numpy(), region.cpu().numpy()):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        file = Path(self.cache) / f"nltv-{digest.hexdigest()[:40]}.npz"
        if file.exists():
            return _read(file, image.device)
        edges, weights = self._compute(image, region, steps)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may write the same file: each writes its own and moves it into place, which is atomic.
        partial = file.with_name(f"{file.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, edges=edges.to("cpu", torch.int32).numpy(), weights=weights.cpu().numpy())
        partial.replace(file)
        return edges, weights

    def _key(self, steps: tuple[float, ...]) -> dict[str, Any]:
        """Everything but the image that the graph depends on; ``version`` is raised when the code changes it."""
        names = ("neighbors", "weights", "window", "sigma_xy", "sigma_rgb", "near", "sigma_near", "patch")
        key: dict[str, Any] = {"version": 1, **{name: getattr(self, name) for name in names}}
        return key if set(steps) == {1.0} else {**key, "steps": steps}

    def _compute(self, image: Tensor, region: Tensor, steps: tuple[float, ...]) -> Edges:
        """``image`` (C, *S) float64, ``region`` (*S), ``steps`` the distances of neighbours along each axis."""
        places = region.nonzero()  # (N, axes)
        if self.neighbors >= len(places):
            raise UsageError(
                f"nltv cannot give each pixel {self.neighbors} neighbours in an image, or a region of interest, of "
                f"{len(places)} pixels. Lower neighbors to at most {len(places) - 1}."
            )
        values = _patches(_filled(image, region, self.patch), self.patch)[region]  # (N, features)
        searched = values
        if self.weights == "cosine":
            searched = values / torch.linalg.vector_norm(values, dim=1, keepdim=True).clamp(min=1e-12)
        positions = places * image.new_tensor(steps)
        features = torch.cat([searched / _number(self.sigma_rgb), positions / _number(self.sigma_xy)], 1)
        chosen, squared = nearest_others(features, places, tuple(region.shape), self.window, self.neighbors)
        source = torch.arange(len(places), device=image.device).repeat_interleave(self.neighbors)
        found = chosen.flatten() >= 0  # a window at a corner may hold fewer pixels than asked for
        source, target, along = source[found], chosen.flatten()[found], squared.flatten()[found]
        weights = self._weights(values, positions, squared, source, target, along)
        flat = region.flatten().nonzero().squeeze(1)
        return _merged(flat[source], flat[target], weights, region.numel())

    def _weights(
        self,
        values: Tensor,  # (N, features)
        positions: Tensor,  # (N, axes)
        squared: Tensor,  # (N, neighbors) squared feature distances, inf where there is none
        source: Tensor,  # (E,), as are the rest
        target: Tensor,
        along: Tensor,  # squared distances
    ) -> Tensor:
        if self.weights == "cosine":
            lengths = torch.linalg.vector_norm(values, dim=1)
            products = (values[source] * values[target]).sum(1)
            scale = lengths[source] * lengths[target]
            return products.clamp(min=0) / torch.where(scale > 0, scale, 1)
        if self.weights == "zmp":
            radius = torch.where(squared.isfinite(), squared, 0).amax(1).sqrt()
            scale = radius[source] * radius[target]
            return torch.exp(-torch.where(scale > 0, along / torch.where(scale > 0, scale, 1), 0))
        weights = torch.exp(-along / 2)
        if self.weights == "bilateral" and self.near > 0:
            apart = (positions[source] - positions[target]).square().sum(1)
            weights = weights + self.near * torch.exp(-apart / (2 * self.sigma_near**2))
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


def nearest_others(
    features: Tensor, places: Tensor, size: tuple[int, ...], window: int | None, count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest others of each point: indices (N, count) int64, and squared distances, nearest first.

    Where a window holds fewer, -1 and inf. Among equally near points the choice is arbitrary.

    Args:
        features: (N, F) points, float64.
        places: (N, axes) int64 where they lie on a grid, row-major.
        size: of the grid.
        window: how far away along each axis a neighbour may be, >= 1; None = anywhere.
        count: 1 to N - 1.
    """
    fast = find("nearest-others", device=features.device)
    found: tuple[Tensor, Tensor] | None = None
    if fast is not None:
        found = fast(features, places, size, window, count)
    if found is not None:
        return found
    rows = max(_ENTRIES // len(features), 1)
    parts = []
    for begin in range(0, len(features), rows):
        some = slice(begin, begin + rows)
        # From differences, as products would cancel.
        squared = torch.cdist(features[some], features, compute_mode="donot_use_mm_for_euclid_dist").square()
        squared.diagonal(begin).fill_(math.inf)  # no point is its own neighbour
        if window is not None:
            apart = (places[some].unsqueeze(1) - places).abs().amax(2)
            squared.masked_fill_(apart > window, math.inf)
        parts.append(squared.topk(count, dim=1, largest=False))
    squared, indices = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    return indices.masked_fill(squared.isinf(), -1), squared


def _filled(image: Tensor, region: Tensor, radius: int) -> Tensor:
    """``image`` (C, *S) as patches may see it: outside of the region (*S) it is that of the nearest pixel inside.

    Which pixel is nearest is found on the CPU.
    """
    if radius == 0 or bool(region.all()):
        return image
    from scipy.ndimage import distance_transform_edt

    nearest_inside = distance_transform_edt(~region.cpu().numpy(), return_distances=False, return_indices=True)
    return image[(slice(None), *torch.from_numpy(nearest_inside).long().to(image.device))]


def _patches(image: Tensor, radius: int) -> Tensor:
    """Values (*S, features) of the patch around each pixel of ``image`` (C, *S), over the root of its size."""
    if radius == 0:
        return image.movedim(0, -1)
    width, axes = 2 * radius + 1, image.ndim - 1
    windows = F.pad(image.unsqueeze(0), (radius, radius) * axes, mode="replicate").squeeze(0)
    for axis in range(1, axes + 1):
        windows = windows.unfold(axis, width, 1)
    return windows.movedim(0, axes).reshape(*image.shape[1:], -1) / math.sqrt(width**axes)


def _merged(source: Tensor, target: Tensor, weights: Tensor, pixels: int) -> Edges:
    """A directed list as undirected edges, sorted, with the weights of both directions added up."""
    low, high = torch.minimum(source, target), torch.maximum(source, target)
    keys, place = torch.unique(low * pixels + high, return_inverse=True)
    edges = torch.stack([keys // pixels, keys % pixels], 1)
    return edges, weights.new_zeros(len(keys)).index_add(0, place, weights)


def _padded(graphs: list[Edges]) -> tuple[Tensor, Tensor]:
    """(B, E, 2) and (B, E); shorter lists are filled up with edges of weight 0."""
    longest = max(len(weights) for _, weights in graphs)
    first = graphs[0]
    edges = first[0].new_zeros(len(graphs), longest, 2)
    edges[:, :, 1] = 1
    weights = first[1].new_zeros(len(graphs), longest)
    for number, (pairs, values) in enumerate(graphs):
        edges[number, : len(pairs)], weights[number, : len(values)] = pairs, values
    return edges, weights


def _read(file: Path, device: torch.device) -> Edges:
    try:
        with np.load(file) as stored:
            edges, weights = stored["edges"].astype(np.int64), stored["weights"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"The cached graph {file} cannot be read ({error}). Delete it, to have it computed again."
        ) from error
    return torch.from_numpy(edges).to(device), torch.from_numpy(weights).to(device)
