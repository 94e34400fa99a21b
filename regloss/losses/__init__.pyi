"""The built-in losses, for type checkers and editors. Written by `make stub`: do not edit."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import Module

from regloss.losses.making import loss_of as loss_of
from regloss.losses.modules import DataLoss as DataLoss
from regloss.losses.modules import Loss as Loss
from regloss.losses.modules import RegularizerLoss as RegularizerLoss

class ConvexShapeLoss(RegularizerLoss):
    """The region of one class is convex, in 1D to 3D.

    The formula and its source: ``help(regloss_plugins.regularizers.convex)``.
    The settings alone: `ConvexShape`.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        label: the class, 0 to K - 1.
        radii: of the balls, in pixels, each at least 1; a ball of radius below 1 is a single pixel.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.ConvexShapeLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        label: int = 1,
        radii: Sequence[float] = ...,
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class DenseCRFLoss(RegularizerLoss):
    """Potts model on all pairs of pixels, whose weights fall with distance and difference of colour.

    The formula and its source: ``help(regloss_plugins.regularizers.dense_crf)``.
    The settings alone: `DenseCRF`.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2; inf = colours do not matter, the smoothness kernel.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        relaxation: energy of probabilities: "bilinear", "quadratic" or "normalized-quadratic".
        compatibility: (K, K) floating-point tensor, what a pair of labels costs; None = 1 where they differ. Like the
            bandwidths, which may be () tensors, it is for "bilinear" alone.
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.DenseCRFLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        sigma_xy: float | Tensor = 100.0,
        sigma_rgb: float | Tensor = 0.06,
        scale: float = 0.5,
        backend: Literal["auto", "exact", "lattice"] = "auto",
        accuracy: Literal["fast", "fine", "finest"] = "fine",
        relaxation: Literal["bilinear", "quadratic", "normalized-quadratic"] = "bilinear",
        compatibility: Tensor | None = None,
        unit: Literal["pixel", "mm"] = "pixel",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class GatedCRFLoss(RegularizerLoss):
    """Potts model on the pixels of a window, whose weights fall with distance and difference of colour.

    The formula and its source: ``help(regloss_plugins.regularizers.gated_crf)``.
    The settings alone: `GatedCRF`.

    Args:
        weight: factor of the whole energy, >= 0.
        radius: half width of the window in pixels, >= 1; the default means 11x11. It may exceed the image.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        relaxation: energy of probabilities, one of those of `regloss.potts`.
        source: (B, *S) bool, pixels that tell their neighbours something; None = all.
        destination: (B, *S) bool, pixels that listen; None = all.
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known. The radius is in pixels.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.GatedCRFLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        radius: int = 5,
        sigma_xy: float = 6.0,
        sigma_rgb: float = 0.1,
        relaxation: Literal[
            "bilinear",
            "quadratic",
            "total-variation",
            "normalized-quadratic",
            "collision-cross-entropy",
            "collision-divergence",
            "log-quadratic",
        ] = "bilinear",
        source: Tensor | None = None,
        destination: Tensor | None = None,
        unit: Literal["pixel", "mm"] = "pixel",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class GridCRFLoss(RegularizerLoss):
    """Potts model on nearest neighbours, whose weights follow the image's contrast.

    The formula and its source: ``help(regloss_plugins.regularizers.grid_crf)``.
    The settings alone: `GridCRF`.

    Args:
        weight: factor of the whole energy, >= 0.
        connectivity: 4 or 8 in 2D, 6, 18 or 26 in 3D, 2 in 1D. The default 8 means the full neighbourhood: 26 in 3D.
        sigma: "auto", or a contrast bandwidth in units of image values, 0 < sigma <= 2.
        diagonal: "distance" divides a pair's weight by the distance of its ends, "unit" does not and counts pairs,
            whatever the spacing.
        relaxation: energy of probabilities: "bilinear", "quadratic" or "total-variation".
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.GridCRFLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        connectivity: int = 8,
        sigma: float | Literal["auto"] = "auto",
        diagonal: Literal["distance", "unit"] = "distance",
        relaxation: Literal[
            "bilinear",
            "quadratic",
            "total-variation",
            "normalized-quadratic",
            "collision-cross-entropy",
            "collision-divergence",
            "log-quadratic",
        ] = "bilinear",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class KernelCutLoss(RegularizerLoss):
    """Normalised cut plus dense CRF.

    The formula and its source: ``help(regloss_plugins.regularizers.kernel_cut)``.
    The settings alone: `KernelCut`.

    Args:
        weight: factor of the whole energy, >= 0.
        crf_weight: weight of the dense CRF in it, >= 0.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.KernelCutLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        crf_weight: float = 1.0,
        sigma_xy: float = 100.0,
        sigma_rgb: float = 0.06,
        scale: float = 0.5,
        backend: Literal["auto", "exact", "lattice"] = "auto",
        accuracy: Literal["fast", "fine", "finest"] = "fine",
        unit: Literal["pixel", "mm"] = "pixel",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class NonlocalTVLoss(RegularizerLoss):
    """Total variation over the graph of each pixel's nearest neighbours in colour and place, summed over classes.

    The formula and its source: ``help(regloss_plugins.regularizers.nltv)``.
    The settings alone: `NonlocalTV`.

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
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.NonlocalTVLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        neighbors: int = 10,
        weights: Literal["bilateral", "rbf", "zmp", "cosine"] = "bilateral",
        window: int | None = None,
        sigma_xy: float | Tensor = 40.0,
        sigma_rgb: float | Tensor = 0.050980392156862744,
        near: float = 0.5,
        sigma_near: float = 3.0,
        patch: int = 0,
        cache: str | None = None,
        unit: Literal["pixel", "mm"] = "pixel",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class NormalizedCutLoss(RegularizerLoss):
    """Normalised cut with Gaussian weights between all pixels.

    The formula and its source: ``help(regloss_plugins.regularizers.normalized_cut)``.
    The settings alone: `NormalizedCut`.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filter: "exact", "lattice", or "auto" (exact on GPUs and for few pixels).
        accuracy: of the lattice: "fast", "fine" or "finest".
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.NormalizedCutLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        sigma_xy: float = 100.0,
        sigma_rgb: float = 0.06,
        scale: float = 0.5,
        backend: Literal["auto", "exact", "lattice"] = "auto",
        accuracy: Literal["fast", "fine", "finest"] = "fine",
        unit: Literal["pixel", "mm"] = "pixel",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class OrderedLoss(RegularizerLoss):
    """Channels are ordered: the first set lies in the second, and so on.

    The formula and its source: ``help(regloss_plugins.regularizers.ordered)``.
    The settings alone: `Ordered`.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        tolerance: excess of a channel over the next that still counts as met, > 0.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.OrderedLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        tolerance: float = 0.001,
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class StarShapeLoss(RegularizerLoss):
    """One class is star-shaped about a centre.

    The formula and its source: ``help(regloss_plugins.regularizers.star)``.
    The settings alone: `StarShape`.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        label: the class, 0 to K - 1.
        center: pixel coordinates in the order of the image's axes, (y, x) in 2D, starting at 0; the same for all
            images (D,), or one for each (B, D); rounded to pixels. None = that of the prediction, see above.
        tolerance: excess of a probability over its parent's that still counts as met, > 0.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.StarShapeLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        label: int = 1,
        center: Sequence[float] | Sequence[Sequence[float]] | Tensor | None = None,
        tolerance: float = 0.01,
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class ThresholdDynamicsLoss(RegularizerLoss):
    """Heat content of every class, summed over classes; looks at the image only if ``edge`` is set.

    The formula and its source: ``help(regloss_plugins.regularizers.threshold_dynamics)``.
    The settings alone: `ThresholdDynamics`.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma: standard deviation of the kernel, in ``unit``, > 0; a tensor of one element may be learnt: the forms'
            functions are differentiable in it.
        kernel: "gaussian", "truncated-gaussian" or "disk".
        radius: where a Gaussian is cut off, in pixels (a whole number), or the radius of the disk, both >= 1; None =
            4 sigma rounded up for Gaussians, 2 sigma for the disk (whose standard deviation is radius / 2).
        edge: None, "sqrt", or "plain" (as published, not concave).
        edge_scale: contrast factor of e, in 1 / image value^2 (mm^2 / image value^2 where the spacing is known), >= 0.
        perimeter: scale R to the length of the boundaries, each counted for both its classes, as tv does.
        unit: of sigma: "pixel", or "mm", for images whose spacing is known; for Gaussians without ``radius``. Across an
            axis whose spacing is more than about 2 sigma nothing diffuses, and boundaries cost next to nothing.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.ThresholdDynamicsLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        sigma: float | Tensor = 2.0,
        kernel: Literal["gaussian", "truncated-gaussian", "disk"] = "gaussian",
        radius: float | None = None,
        edge: Literal["sqrt", "plain"] | None = None,
        edge_scale: float = 10.0,
        perimeter: bool = False,
        unit: Literal["pixel", "mm"] = "pixel",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class TreeEnergyLoss(RegularizerLoss):
    """How far segmentations are from their averages along the image's minimum spanning tree.

    The formula and its source: ``help(regloss_plugins.regularizers.tree_energy)``.
    The settings alone: `TreeEnergy`.

    Args:
        weight: factor of the whole energy, >= 0.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2, for each step along a path.
        relaxation: energy of probabilities: "total-variation", as published, or "bilinear".
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.TreeEnergyLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        sigma_rgb: float = 0.03,
        relaxation: Literal["total-variation", "bilinear"] = "total-variation",
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class TVLoss(RegularizerLoss):
    """Total variation of every class's probability, summed over classes; looks at the image only for its edges.

    The formula and its source: ``help(regloss_plugins.regularizers.tv)``.
    The settings alone: `TotalVariation`.

    Args:
        weight: factor of the whole energy, >= 0.
        isotropic: Euclidean norm of the gradient instead of the l1 norm.
        edge_scale: contrast factor of e, in 1 / image value^2 (mm^2 / image value^2 where the spacing is known), >= 0;
            0 = the image does not matter.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.TVLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        isotropic: bool = False,
        edge_scale: float = 0.0,
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class VolumeLoss(RegularizerLoss):
    """Prescribed volumes, or bounds on them.

    The formula and its source: ``help(regloss_plugins.regularizers.volume)``.
    The settings alone: `Volume`.

    Args:
        weight: of the penalty that gradient descent gets, >= 0; 0 switches the constraint off.
        volumes: (K,) for all images or (B, K), >= 0; sequence or tensor. They must sum to the number of pixels of the
            region of interest (to 1e-4 of it; that much is scaled away). A tensor may need a gradient.
        lower: (K,) or (B, K) least volumes instead; None = 0.
        upper: (K,) or (B, K) largest volumes instead; None = all pixels.
        unit: "pixels", "fraction" of the region of interest's pixels, or "mm2", "mm3" or "ml", for images of two or
            three dimensions whose spacing is known.
        tolerance: volume error that still counts as met, as a fraction of the pixels, > 0.
        ignore_index: value of ``target`` whose pixels are left out of the region of interest; None = no target is
            taken.
        reduction: "mean" (the energy per pixel of the region of interest, over the whole batch), "sum" (over images)
            or "none" (one energy for each image).
        validate: whether values (of image and target) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S) with one to three spatial axes *S, as far as the regularizer takes them.
        - target: (B, *S) integers, see ``ignore_index``.
        - image: (B, C, *S) in [0, 1]; not needed where the regularizer does not look at it.
        - roi: (B, *S) bool; outside nothing counts, neither pixels nor edges. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, a target though ``ignore_index`` is None.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.VolumeLoss(volumes=(0.25, 0.75), unit='fraction')
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        volumes: Sequence[Any] | Tensor | None = None,
        lower: Sequence[Any] | Tensor | None = None,
        upper: Sequence[Any] | Tensor | None = None,
        unit: Literal["pixels", "fraction", "mm2", "mm3", "ml"] = "pixels",
        tolerance: float = 0.001,
        *,
        ignore_index: int | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class BoundaryLoss(DataLoss):
    """Mean over labelled pixels of distance times probability, summed over classes; for dense labels.

    The formula and its source: ``help(regloss_plugins.data_terms.boundary)``.
    The settings alone: `Boundary`.

    Args:
        classes: which classes count; None = all but the background, 0.
        unit: of the distances: "pixels", or "diagonal", fractions of the diagonal of the region of interest (of the box
            around it), which do not depend on resolution.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.BoundaryLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> target = torch.full((2, 16, 16), 255)  # unlabelled
        >>> target[:, 4], target[:, 12] = 0, 1
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        classes: Sequence[int] | None = None,
        unit: Literal["pixels", "diagonal"] = "pixels",
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class CollisionCrossEntropyLoss(DataLoss):
    """Mean over labelled pixels of -ln <y, softmax(logits)>, y the smoothed label; 255 = unlabelled.

    The formula and its source: ``help(regloss_plugins.data_terms.collision_cross_entropy)``.
    The settings alone: `CollisionCrossEntropy`.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1. With 0 it is
            cross entropy.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.CollisionCrossEntropyLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> target = torch.full((2, 16, 16), 255)  # unlabelled
        >>> target[:, 4], target[:, 12] = 0, 1
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class CrossEntropyLoss(DataLoss):
    """Cross entropy with dense labels; 255 is ignored.

    The formula and its source: ``help(regloss_plugins.data_terms.cross_entropy)``.
    The settings alone: `CrossEntropy`.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.CrossEntropyLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> target = torch.full((2, 16, 16), 255)  # unlabelled
        >>> target[:, 4], target[:, 12] = 0, 1
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class ELBOLoss(DataLoss):
    """Minus the evidence lower bound, per pixel of the region of interest; it reads no labels and trains two networks.

    The formula and its source: ``help(regloss_plugins.data_terms.elbo)``.
    The settings alone: `ELBO`.

    Args:
        encoder: a network from C channels to d; an object, a name, or a table without ``in_channels`` and ``classes``.
            Where the variance is learnt it gives 2 d channels: means, then logarithms of the variances.
        decoder: a network from d channels to C, likewise.
        means: (K, d) latent means, one row a phase. None = 10 and -10, for two phases in one dimension.
        covariances: Sigma_i: one number (times the identity), or (K, d, d) symmetric positive definite matrices.
        variance: V: a number, d numbers (one for each latent channel), or "learned".
        samples: noises drawn for each image and call, at least 1; or 0, for a decoder that sees the mean itself.
        fidelity: factor of the reconstruction, > 0: one over the variance of the decoder's noise, in image values.
        entropy: factor of sum u ln u, >= 0; see above.
        balance: whether every phase counts the same in the gradient of the networks; see above.
        prior_pixels: c in [1e-6, 1e6], the pixels that given means and covariances count as in the phases of each
            image; infinity = the given phases are those of all images. See above.
        channels: C of the images, where a network is to be made.
        noise_seed: None draws new noise in each call; a number draws the same, always and for each image, which makes
            the energy a function that can be compared between calls.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.ELBOLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        encoder: Module | str | Mapping[str, Any] = "unet",
        decoder: Module | str | Mapping[str, Any] = "unet",
        means: Tensor | Sequence[Sequence[float]] | None = None,
        covariances: Tensor | float | Sequence[Sequence[Sequence[float]]] = 1.0,
        variance: float | Sequence[float] | Literal["learned"] = 1.0,
        samples: int = 1,
        fidelity: float = 1.0,
        entropy: float = 0.0,
        balance: bool = False,
        prior_pixels: float = ...,
        channels: int = 3,
        noise_seed: int | None = None,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class EntropyLoss(DataLoss):
    """Mean over the region of interest, labelled or not, of the entropy of softmax(logits), in nats: 0 to ln K.

    The formula and its source: ``help(regloss_plugins.data_terms.entropy)``.
    The settings alone: `Entropy`.

    Args:
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.EntropyLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class MumfordShahLoss(DataLoss):
    """Mean over the region of interest, labelled or not, of the squared distance to the mean colour of the class.

    The formula and its source: ``help(regloss_plugins.data_terms.mumford_shah)``.
    The settings alone: `MumfordShah`.

    Args:
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.MumfordShahLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> image = torch.rand(2, 3, 16, 16)
        >>> loss(logits, image=image).backward()
    """

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class PartialCrossEntropyLoss(DataLoss):
    """Mean over labelled pixels of -log softmax(logits) at their label; 255 = unlabelled.

    The formula and its source: ``help(regloss_plugins.data_terms.partial_cross_entropy)``.
    The settings alone: `PartialCrossEntropy`.

    Args:
        class_weights: one positive number a class, or None for 1 each.
        label_smoothing: fraction of each label that is spread evenly over the classes, 0 <= value < 1.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.PartialCrossEntropyLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> target = torch.full((2, 16, 16), 255)  # unlabelled
        >>> target[:, 4], target[:, 12] = 0, 1
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class PartialDiceLoss(DataLoss):
    """Mean over images of 1 - soft Dice of softmax(logits) over labelled pixels; 255 = unlabelled.

    The formula and its source: ``help(regloss_plugins.data_terms.partial_dice)``.
    The settings alone: `PartialDice`.

    Args:
        smooth: added to numerator and denominator, in pixels, finite and >= 0; 0 = Dice itself.
        squared: whether probabilities are squared in the denominator.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.PartialDiceLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> target = torch.full((2, 16, 16), 255)  # unlabelled
        >>> target[:, 4], target[:, 12] = 0, 1
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        smooth: float = 0.0,
        squared: bool = False,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class SizeBoundsLoss(DataLoss):
    """Mean over images of barriers at the bounds of each class's size.

    The formula and its source: ``help(regloss_plugins.data_terms.size_bounds)``.
    The settings alone: `SizeBounds`.

    Args:
        lower: one number a class, or None for no lower bounds; a bound of 0 is none.
        upper: one number a class, or None; a bound of everything (1, or infinitely many pixels) is none.
        unit: of the bounds: "fraction" of the pixels in the region of interest, or "pixels". Sizes in the formula are
            fractions either way, so that t means the same for all images.
        sharpness: t, > 0. The slope beyond a bound, for a size as a fraction.
        present: whether only classes with a labelled pixel in an image are bounded there; it needs labels then.
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.SizeBoundsLoss(lower=(0.0, 0.2), upper=(1.0, 0.6))
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> loss(logits).backward()
    """

    def __init__(
        self,
        lower: Sequence[float] | None = None,
        upper: Sequence[float] | None = None,
        unit: Literal["fraction", "pixels"] = "fraction",
        sharpness: float = 5.0,
        present: bool = False,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

class SmoothnessLoss(DataLoss):
    """Mean over labelled pixels of the length of the probabilities' gradient, off the labels' boundaries.

    The formula and its source: ``help(regloss_plugins.data_terms.smoothness)``.
    The settings alone: `Smoothness`.

    Args:
        ignore_index: value of ``target`` that means unlabelled or ignored.
        reduction: "mean" (over all that counts in the batch: labelled pixels, say), "sum" (over images) or "none"
            (the sum for each image).
        validate: whether values (of target and image) are checked, once for each shape; else, never.

    Shape:
        - logits: (B, K, *S).
        - target: (B, *S) integers, 0 to K - 1 or ``ignore_index``; not needed where the data term asks for no labels.
        - image: (B, C, *S) in [0, 1]; not needed where the data term does not look at it.
        - roi: (B, *S) bool; outside no label counts. None = everywhere.
        - spacing: distance between neighbouring pixels along each spatial axis in mm; None = in pixels.
        - output: scalar; (B,) for the reduction "none". In float32 at least.

    Raises:
        UsageError: a setting outside its range, shapes that disagree, labels out of range, what is needed not given.

    Examples:
        >>> import regloss, torch
        >>> loss = regloss.losses.SmoothnessLoss()
        >>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)
        >>> target = torch.full((2, 16, 16), 255)  # unlabelled
        >>> target[:, 4], target[:, 12] = 0, 1
        >>> loss(logits, target).backward()
    """

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        reduction: Literal["mean", "sum", "none"] = "mean",
        validate: bool = True,
    ) -> None: ...

def __getattr__(name: str) -> type[Loss]: ...  # those of plugins
