"""Gated CRF: a contrast-weighted Potts model on all pairs within a window, some of whose directions may be shut.

    R(labels) = weight * sum over unordered pairs of w_pq g_pq [l_p != l_q],      |p - q| <= radius along every axis
    w_pq      = exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2))
    g_pq      = (destination_p source_q + destination_q source_p) / 2

sigma_xy in pixels (or mm), sigma_rgb in units of image values (which lie in [0, 1]), the square summed over channels. A
pixel that is no source tells its neighbours nothing (its prediction is not to be trusted), one that is no destination
does not listen (its label is known); without masks, g = 1.

For probabilities there are the relaxations of `regloss.potts`, equal to R on one-hot input, but for the logarithmic
ones. Offsets are gone through one after the other, forward and backward, and weights are computed when they are needed:
beside a few arrays of the size of the probabilities nothing is stored, where neighbourhoods unfolded into an array take
(2 radius + 1)^2 times as much. On CUDA devices one kernel gives value and gradient of the bilinear relaxation, in
float32 (`regloss_plugins.kernels.gated_windows_triton`). The graph forms, for solvers, do store a weight for each pair.

Source: Obukhov, Georgoulis, Dai, Van Gool, "Gated CRF loss for weakly supervised semantic image segmentation", 2019,
whose loss is the mean over gated ordered pairs instead of this sum; its widths are the defaults.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regloss import grid
from regloss.checks import check_choice
from regloss.dispatch import find
from regloss.errors import UsageError
from regloss.forms import Graph, GridGraph
from regloss.grid import Unit
from regloss.potts import RELAXATIONS, Relaxation, pair_cost
from regloss.regularizer import Forms, Regularizer, Term


@dataclass(frozen=True)
class GatedCRF(Regularizer):
    """Potts model on the pixels of a window, whose weights fall with distance and difference of colour.

    Args:
        weight: factor of the whole energy, >= 0.
        radius: half width of the window in pixels, >= 1; the default means 11x11. It may exceed the image.
        sigma_xy: bandwidth of places, > 0, in ``unit``.
        sigma_rgb: bandwidth of image values, 0 < sigma_rgb <= 2.
        relaxation: energy of probabilities, one of those of `regloss.potts`.
        source: (B, *S) bool, pixels that tell their neighbours something; None = all.
        destination: (B, *S) bool, pixels that listen; None = all.
        unit: of sigma_xy: "pixel", or "mm", for images whose spacing is known. The radius is in pixels.

    Raises:
        UsageError: a setting outside its range.

    >>> image = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    >>> labels = torch.tensor([[[0, 1, 1]]])
    >>> GatedCRF(sigma_xy=1.0).bind(image).form(GridGraph).cut(labels)  # exp(-1 / 2) for the pair on the left
    tensor([0.6065])
    """

    weight: float = 1.0
    radius: int = 5
    sigma_xy: float = 6.0
    sigma_rgb: float = 0.1
    relaxation: Relaxation = "bilinear"
    source: Tensor | None = None
    destination: Tensor | None = None
    unit: Unit = "pixel"
    opaque: ClassVar[bool] = True  # hundreds of shifts of the image, whose weights no compiler should keep

    def __post_init__(self) -> None:
        if isinstance(self.radius, bool) or not isinstance(self.radius, int) or self.radius < 1:
            raise UsageError(f"radius must be a whole number of pixels, at least 1; got {self.radius!r}.")
        if not 0 < self.sigma_xy < float("inf"):
            raise UsageError(f"sigma_xy of gated-crf must be finite and positive; got {self.sigma_xy}.")
        grid.check_unit(self.unit, "gated-crf")
        # The largest difference that an RGB image in [0, 1] can have is sqrt(3); a larger bandwidth means bytes.
        if not 0 < self.sigma_rgb <= 2:
            raise UsageError(
                f"sigma_rgb of gated-crf must lie in (0, 2], in units of image values in [0, 1]; got {self.sigma_rgb}. "
                "A bandwidth given for bytes is divided by 255."
            )
        check_choice(RELAXATIONS, relaxation=self.relaxation)
        for name, mask in (("source", self.source), ("destination", self.destination)):
            if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise UsageError(f"{name} must be a bool tensor (B, *S), or None; got {kind}.")

    @property
    def forms(self) -> Forms:
        """A grid graph, and the same as a list of edges."""
        return {GridGraph: _GatedTerm.grid_graph, Graph: _GatedTerm.graph}

    def build(self, image: Tensor, roi: Tensor | None, spacing: tuple[float, ...] | None) -> Term:
        """Nothing is computed ahead."""
        shape = (image.shape[0], *image.shape[2:])
        for name, mask in (("source", self.source), ("destination", self.destination)):
            if mask is not None and tuple(mask.shape) != shape:
                raise UsageError(
                    f"The mask {name} of gated-crf must have the image's (B, *S) = {shape}; got {tuple(mask.shape)}."
                )
        steps = grid.steps_in(self.unit, spacing, len(shape) - 1, "gated-crf")
        return _GatedTerm(self, image, steps, shape, roi)


class _GatedTerm(Term):
    def __init__(
        self,
        regularizer: GatedCRF,
        image: Tensor,
        steps: tuple[float, ...],  # distances of neighbours along each axis, in the unit of sigma_xy
        shape: tuple[int, ...],
        roi: Tensor | None,
    ) -> None:
        super().__init__(regularizer, shape, roi)
        self.steps = steps
        self.settings = regularizer
        self.image = image
        reach = [min(regularizer.radius, size - 1) for size in shape[1:]]
        window = itertools.product(*(range(-far, far + 1) for far in reach))
        self.offsets = tuple(offset for offset in window if offset > (0,) * len(reach))

    def energy(self, probabilities: Tensor) -> Tensor:
        probabilities = self.check(probabilities)
        result: Tensor = _Windows.apply(probabilities, self)  # type: ignore[no-untyped-call]
        return result

    def sums(self, probabilities: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weighted sums (B, K, *S) and degrees (B, *S) over each pixel's window, by fast code; None = there is none."""
        settings = self.settings
        fast = find("gated-windows", device=probabilities.device) if settings.relaxation == "bilinear" else None
        if fast is None or not self.offsets:
            return None
        found: tuple[Tensor, Tensor] | None = fast(
            probabilities.detach(),
            self.image.to(probabilities.device),
            (self.roi, settings.source, settings.destination),
            self.offsets,
            self.steps,
            settings.sigma_xy,
            settings.sigma_rgb,
        )
        return found and (settings.weight * found[0], settings.weight * found[1])

    def pairs(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], Tensor]]:
        """For each offset: where its pairs begin and end, and their weights (B, ...)."""
        region = None if self.roi is None else self.roi.to(self.image.device)
        settings = self.settings
        for offset in self.offsets:
            first, second = grid.pair_slices(offset)
            contrast = (grid.pick(self.image, first) - grid.pick(self.image, second)).square().sum(1)
            squares = sum((count * step) ** 2 for count, step in zip(offset, self.steps, strict=True))
            distance = squares / (2 * settings.sigma_xy**2)
            weights = settings.weight * torch.exp(-contrast / (2 * settings.sigma_rgb**2) - distance)
            if region is not None:
                weights = weights * (grid.pick(region, first) & grid.pick(region, second))
            if settings.source is not None or settings.destination is not None:
                weights = weights * (self._gate(first, second) + self._gate(second, first)) / 2
            yield first, second, weights

    def _gate(self, to: tuple[slice, ...], come_from: tuple[slice, ...]) -> Tensor:
        gate = self.image.new_ones(())
        for mask, where in ((self.settings.source, come_from), (self.settings.destination, to)):
            if mask is not None:
                gate = gate * grid.pick(mask.to(self.image.device), where)
        return gate

    def grid_graph(self) -> GridGraph:
        """A weight for each pair of the window."""
        weights = self.image.new_zeros(self.shape[0], len(self.offsets), *self.shape[1:])
        for number, (first, _, values) in enumerate(self.pairs()):
            grid.pick(weights[:, number], first).copy_(values)
        return GridGraph(self.offsets, weights)

    def graph(self) -> Graph:
        """The same as a list of edges."""
        return self.grid_graph().graph()


class _Windows(torch.autograd.Function):
    """Sum over offsets of weighted costs; the backward pass goes through the offsets again."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, term: _GatedTerm) -> Tensor:
        ctx.term, ctx.by_kernel = term, False
        sums = term.sums(probabilities)
        if sums is not None:
            # Pairs are counted from both ends, and the sums are minus the gradient.
            (weighted, degrees), ctx.by_kernel = sums, True
            ctx.save_for_backward(weighted)
            return (degrees - (weighted * probabilities).sum(1)).flatten(1).sum(1) / 2
        ctx.save_for_backward(probabilities)
        energy = probabilities.new_zeros(probabilities.shape[0])
        for first, second, weights in term.pairs():
            p, q = grid.pick(probabilities, first), grid.pick(probabilities, second)
            cost = pair_cost(term.settings.relaxation, p, q)
            energy += (weights.to(cost.dtype) * cost).flatten(1).sum(1)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (probabilities,) = ctx.saved_tensors
        if ctx.by_kernel:
            return -probabilities * gradient.reshape(-1, *[1] * (probabilities.ndim - 1)), None
        relaxation = ctx.term.settings.relaxation
        total = torch.zeros_like(probabilities)
        for first, second, weights in ctx.term.pairs():
            scaled = weights.to(total.dtype) * gradient.reshape(-1, *[1] * (total.ndim - 2))
            p, q = (grid.pick(probabilities, where).detach() for where in (first, second))
            if relaxation == "bilinear":
                to_first, to_second = -scaled.unsqueeze(1) * q, -scaled.unsqueeze(1) * p
            else:
                with torch.enable_grad():
                    p, q = p.requires_grad_(), q.requires_grad_()
                    cost = pair_cost(relaxation, p, q)
                    to_first, to_second = torch.autograd.grad(cost, (p, q), scaled)
            grid.pick(total, first).add_(to_first)
            grid.pick(total, second).add_(to_second)
        return total, None
