"""Threshold dynamics: the heat content of a segmentation, a smooth stand-in for the length of its boundaries.

    R(s) = weight * sum over classes k of <a s_k, K (a (1 - s_k))>,        a = sqrt(e), or 1 without edges

K is the convolution with an even, normalised kernel, zeros outside the image: what diffuses from each class into the
others. e = 1 / (1 + edge_scale |grad I|^2) lets boundaries lie cheaply on edges of the image I; |grad I|^2 sums squared
forward differences over axes and channels. R's gradient is p = weight * a K (a (1 - 2 s)).

R is concave if K is positive semidefinite, and then every step of `DCA` lowers the energy, however long. The kernels:

    "gaussian"            autocorrelation of a truncated Gaussian of standard deviation sigma / sqrt 2: a Gaussian of
                          standard deviation sigma, and positive semidefinite wherever it is cut off
    "truncated-gaussian"  a Gaussian cut off at ``radius``, as published: not quite (4 sigma, -2e-5) or not at all
                          (7x7 pixels of sigma 5, -0.2) positive semidefinite
    "disk"                the mean over a disk (a ball in 3D): not positive semidefinite (-0.1 to -0.3)

where the number is the least eigenvalue mu that any image can have. For K that are not, R lies below its tangents plus
weight * |mu| |s - t|^2; this is the form's ``curvature``, by which `DCA` damps its steps. The published edge weighting
<e s_k, K (1 - s_k)> (``edge="plain"``) is not concave even for positive semidefinite K; it is offered with a bound.

Across a straight boundary along an axis, R of labels is weight * length * (sum over z of |z_1| k(z)) for its two
classes together, with k the kernel; ``perimeter=True`` divides by half of this sum.

Source: Liu, Wang, Tai, "Deep convolutional neural networks with spatial regularization, volume and star-shape priori
for image segmentation", arXiv:2002.03989; Esedoglu, Otto, "Threshold dynamics for networks with arbitrary surface
tensions", 2015. Splitting e into its square roots is ours: a congruence keeps K positive semidefinite.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from regloss import grid
from regloss.checks import check_choice, check_not_negative
from regloss.errors import UsageError
from regloss.forms import Concave, ConcaveFunction
from regloss.grid import Unit
from regloss.numerics import double
from regloss.regularizer import Forms, Regularizer, Term
from regloss_plugins.kernels.balls import ball_segments, ball_size, ball_sums

KERNELS = ("gaussian", "truncated-gaussian", "disk")
EDGES = (None, "sqrt", "plain")

# Least eigenvalue of (E K + K E) / 2 for a diagonal E in [0, 1] and a positive semidefinite K of norm at most c:
# with E = (1 + F) / 2, |F| <= 1, <x, E K x> >= |K x|^2 / (2 c) - |x| |K x| / 2, least at |K x| = c |x| / 2.
_PLAIN_EDGE_BOUND = 1 / 8


@dataclass(frozen=True)
class ThresholdDynamics(Regularizer):
    """Heat content of every class, summed over classes; looks at the image only if ``edge`` is set.

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

    Raises:
        UsageError: a setting outside its range, or a disk without a neighbour (radius < 1).

    Two halves, whose common boundary is 40 pixels long:

    >>> labels = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]] * 40])
    >>> probabilities = torch.stack([labels == 0, labels == 1], dim=1).float()
    >>> term = ThresholdDynamics(sigma=1.0, perimeter=True).bind(torch.zeros(1, 1, 40, 8))
    >>> term.energy(probabilities)  # near 2 * 40; less where the kernel leaves the image
    tensor([78.5548])
    """

    weight: float = 1.0
    sigma: float | Tensor = 2.0
    kernel: Literal["gaussian", "truncated-gaussian", "disk"] = "gaussian"
    radius: float | None = None
    edge: Literal["sqrt", "plain"] | None = None
    edge_scale: float = 10.0
    perimeter: bool = False
    unit: Unit = "pixel"
    learnable: ClassVar[Sequence[str]] = ("sigma",)

    def __post_init__(self) -> None:
        sigma = _number(self.sigma)
        if not 0 < sigma < math.inf:
            raise UsageError(f"sigma must be finite and positive; got {sigma}.")
        check_choice(KERNELS, kernel=self.kernel)
        if self.edge not in EDGES:
            raise UsageError(f'edge must be None, "sqrt" or "plain"; got {self.edge!r}.')
        check_not_negative(edge_scale=self.edge_scale)
        grid.check_unit(self.unit, "threshold-dynamics")
        if self.unit == "mm" and (self.kernel == "disk" or self.radius is not None):
            raise UsageError(
                'A radius is in pixels, and so is the disk of threshold-dynamics. With unit = "mm" use a Gaussian '
                "kernel and leave radius out."
            )
        if self.unit == "pixel" and not 1 <= self.reach < math.inf:
            raise UsageError(
                f"A kernel of {'radius ' + str(self.radius) if self.radius is not None else 'sigma ' + str(sigma)} has "
                "no neighbours: radius must be at least 1 pixel."
            )
        if self.unit == "pixel" and self.kernel != "disk" and self.reach != int(self.reach):
            raise UsageError(f"The radius at which a Gaussian is cut off must be a whole number; got {self.radius}.")

    @property
    def reach(self) -> float:
        """Radius of the kernel in pixels of unit spacing."""
        if self.radius is not None:
            return self.radius
        return 2 * _number(self.sigma) if self.kernel == "disk" else math.ceil(4 * _number(self.sigma))

    @property
    def forms(self) -> Forms:
        """The concave form."""
        return {Concave: _ThresholdDynamicsTerm.concave}

    @property
    def needs_image(self) -> bool:
        """For edges alone."""
        return self.edge is not None

    @property
    def opaque(self) -> bool:
        """For disks, whose sums are hundreds of shifts of the image."""
        return self.kernel == "disk"

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Compute kernel and edge weights."""
        shape = (image.shape[0], *image.shape[2:])
        inside = grid.full_roi(roi, shape, image.device).to(image.dtype).unsqueeze(1)
        edge = inside if self.edge is None else inside * edge_weights(image, roi, self.edge_scale, spacing)
        steps = grid.steps_in(self.unit, spacing, image.ndim - 2, "threshold-dynamics")
        return _ThresholdDynamicsTerm(self, _Diffusion(self, edge, steps), shape, roi)


def edge_weights(image: Tensor, roi: Tensor | None, scale: float, spacing: tuple[float, ...] | None = None) -> Tensor:
    """Edge weights 1 / (1 + scale |grad I|^2), (B, 1, *S); a difference that leaves the region of interest is 0."""
    ndim = image.ndim - 2
    squares = grid.forward_differences(image, ndim).square().sum(1)  # (B, axes, *S)
    if spacing is not None:
        squares = squares / squares.new_tensor(spacing).square().reshape(-1, *[1] * ndim)
    everywhere = grid.full_roi(roi, (image.shape[0], *image.shape[2:]), image.device)
    for axis in range(ndim):
        offset = tuple(int(axis == other) for other in range(ndim))
        squares[:, axis] *= grid.pairs_inside(everywhere, offset)
    return 1 / (1 + scale * squares.sum(1, keepdim=True))


class _ThresholdDynamicsTerm(Term):
    def __init__(
        self, regularizer: ThresholdDynamics, function: _Diffusion, shape: tuple[int, ...], roi: Tensor | None
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.function = function

    def energy(self, probabilities: Tensor) -> Tensor:
        return self.function.value(self.check(probabilities))

    def concave(self) -> Concave:
        """R itself."""
        return Concave(self.function)


class _Diffusion(ConcaveFunction):
    """R, and its supergradient."""

    is_quadratic = True

    def __init__(self, regularizer: ThresholdDynamics, edge: Tensor, steps: tuple[float, ...]) -> None:
        self.settings = regularizer
        self.edge = edge  # (B, 1, *S) in [0, 1], 0 outside the region of interest
        self.ndim = edge.ndim - 2
        self.plain = regularizer.edge == "plain"
        self.root = edge.sqrt()
        self.inside = (edge > 0).to(edge.dtype)
        # One for each axis, the same where their steps are; None for the disk, which does not separate.
        self.kernels: list[Tensor] | None = None
        if regularizer.kernel != "disk":
            found = {step: _kernel(regularizer, step) for step in steps}
            self.kernels = [found[step] for step in steps]
        self.bands: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self.factor: float | Tensor = regularizer.weight
        if regularizer.perimeter:
            self.factor = regularizer.weight * 2 / _mean_step(regularizer, self.kernels, steps)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        sigma = self.settings.sigma
        return (sigma,) if isinstance(sigma, Tensor) else ()

    def __getitem__(self, images: Tensor) -> ConcaveFunction:
        some = copy.copy(self)  # kernel and factor are the same objects, and stay so for who differentiates by sigma
        some.edge, some.root, some.inside = self.edge[images], self.root[images], self.inside[images]
        return some

    @property
    def curvature(self) -> float:
        below = max(0.0, -self._least_eigenvalue())
        if self.plain:
            # K + below is positive semidefinite; what was added costs e times as much.
            below += _PLAIN_EDGE_BOUND * (1 + below)
        return 2 * _number(self.factor) * below

    def value(self, s: Tensor) -> Tensor:
        if self.plain:
            product = self.edge.to(s) * s * self._convolve(self.inside.to(s) * (1 - s))
        else:
            root = self.root.to(s)
            product = root * s * self._convolve(root * (1 - s))
        return self.factor * product.flatten(1).sum(1)

    def supergradient(self, s: Tensor) -> Tensor:
        if self.plain:
            inside, edge = self.inside.to(s), self.edge.to(s)
            # K is symmetric, since its kernel is even and outside the image is 0.
            return self.factor * (edge * self._convolve(inside * (1 - s)) - inside * self._convolve(edge * s))
        root = self.root.to(s)
        return self.factor * root * self._convolve(root * (1 - 2 * s))

    def _convolve(self, values: Tensor) -> Tensor:
        """K ``values`` (B, K, *S), zeros outside."""
        if self.kernels is None:
            radius = self.settings.reach
            return ball_sums(values, radius, self.ndim) / ball_size(radius, self.ndim)
        # Dense band matrices, one axis after the other: on CPU several times faster than single-channel convolutions.
        with torch.autocast(values.device.type, enabled=False):
            for axis, kernel in zip(range(-self.ndim, 0), self.kernels, strict=True):
                band = self._band(axis, kernel, values)
                values = values @ band if axis == -1 else (values.transpose(axis, -1) @ band).transpose(axis, -1)
        return values

    def _band(self, axis: int, kernel: Tensor, values: Tensor) -> Tensor:
        """The matrix of an axis's kernel, kept for the next step, as its way to a GPU takes longer than the product."""
        length = values.shape[axis]
        if kernel.requires_grad:
            return _band(kernel.to(values), length)
        key = axis, values.device, values.dtype
        if key not in self.bands:
            self.bands[key] = _band(kernel.to(values), length)
        return self.bands[key]

    def _least_eigenvalue(self) -> float:
        """A lower bound on the eigenvalues of K on this grid, <= 0: K is part of a circular convolution."""
        if self.settings.kernel == "gaussian":
            return 0.0
        spectrum = torch.ones((), dtype=torch.float64)
        if self.kernels is not None:
            # A separable kernel's values are the products of its axes' values.
            for kernel, length in zip(self.kernels, self.edge.shape[2:], strict=True):
                values = _circular_spectrum(kernel.detach().cpu(), length)
                ends = torch.stack([values.amin(), values.amax()])
                spectrum = (spectrum.reshape(-1, 1) * ends).flatten()
            return min(0.0, float(spectrum.amin()))
        reach = math.floor(self.settings.reach)
        size = [length + reach for length in self.edge.shape[2:]]
        kernel = torch.zeros(size, dtype=torch.float64)
        for lead, half in ball_segments(self.settings.reach, self.ndim):
            for last in range(-half, half + 1):
                kernel[tuple(step % length for step, length in zip((*lead, last), size, strict=True))] += 1
        values = torch.fft.rfftn(kernel).real / ball_size(self.settings.reach, self.ndim)
        return min(0.0, float(values.amin()))


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _kernel(settings: ThresholdDynamics, step: float) -> Tensor:
    """(2 reach + 1,) one axis of a Gaussian kernel, summing to 1, float64, in pixels of length ``step``."""
    sigma = double(settings.sigma)
    reach = settings.reach
    if settings.unit == "mm":
        sigma = sigma / step
        reach = math.ceil(4 * _number(sigma))
    reach = int(reach)
    if settings.kernel == "truncated-gaussian":
        steps = torch.arange(-reach, reach + 1, dtype=torch.float64, device=sigma.device)
        kernel = torch.exp(-steps.square() / (2 * sigma.square()))
        return kernel / kernel.sum()
    half = (reach + 1) // 2  # the autocorrelation reaches twice as far
    steps = torch.arange(-half, half + 1, dtype=torch.float64, device=sigma.device)
    root = torch.exp(-steps.square() / sigma.square())
    root = root / root.sum()
    kernel = F.conv1d(root.reshape(1, 1, -1), root.reshape(1, 1, -1), padding=2 * half)
    return kernel.flatten()


def _mean_step(settings: ThresholdDynamics, kernels: list[Tensor] | None, sides: tuple[float, ...]) -> float | Tensor:
    """Sum over z of |z_1| k(z): the mean distance along an axis that the kernel carries; the mean over axes."""
    ndim = len(sides)
    if kernels is not None:
        means = []
        for kernel, side in set(zip(kernels, sides, strict=True)):
            reach = kernel.numel() // 2
            means.append(side * (kernel * torch.arange(-reach, reach + 1, device=kernel.device).abs()).sum())
        return means[0] if len(means) == 1 else torch.stack(means).mean()
    steps = sum(half * (half + 1) for _, half in ball_segments(settings.reach, ndim))
    return steps / ball_size(settings.reach, ndim)


def _band(kernel: Tensor, length: int) -> Tensor:
    """(length, length) symmetric band matrix of a kernel."""
    reach = kernel.numel() // 2
    pixels = torch.arange(length, device=kernel.device)
    step = (pixels.unsqueeze(1) - pixels).abs()
    return torch.where(step <= reach, kernel[(step + reach).clamp(max=2 * reach)], 0)


def _circular_spectrum(kernel: Tensor, length: int) -> Tensor:
    """Values of the kernel's Fourier transform on a circle on which the axis's pixels do not meet around the back."""
    reach = kernel.numel() // 2
    around = torch.zeros(length + reach, dtype=kernel.dtype)
    around.index_add_(0, torch.arange(-reach, reach + 1) % (length + reach), kernel)
    spectrum: Tensor = torch.fft.rfft(around).real
    return spectrum
