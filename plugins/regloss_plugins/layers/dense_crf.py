"""DenseCRFLayer: a dense CRF as the last layer of a network, whose kernels and label costs are learnt with it.

    A(o) = argmin over A in the simplex at every pixel of  -<o, A> + entropy <A, log A> + R(A ; image)
    R(A) = sum over kernels m and unordered pairs p != q of  weights_m w^m_pq <A_p, C A_q>

with Gaussian kernels w^m of place and colour, each divided by the number of pixels that it covers (see
`regloss.DenseCRF`), and a symmetric matrix C of what two labels cost each other, at first 1 where they differ. By
default the kernels are the usual two: a wide one of place and colour, and a narrow one of place alone.

A step is the update of mean field for all pixels at once,

    A <- softmax((o - sum over m of weights_m (W^m - diagonal) A C) / entropy)

damped where weights, widths or C would otherwise let the energy rise (``damped=False``: as published). Backward:

    unrolled    through ``max_steps`` steps, as published; with ``checkpoint`` one array (B, K, *S) a step is kept
    implicit    through the fixed point: steps until ``tolerance``, then one symmetric linear system; no step is kept
    one-step    through one more step from there

Differs from the published layer in: 1. C is symmetric, as the energy of a pair has no direction, and therefore steps
can be certified; 2. a kernel has one weight, not one a class; 3. the widths are learnt too; 4. a pixel is no neighbour
of its own; 5. kernels are divided by a constant, not by their sums around each pixel.

Source: Zheng, Jayasumana, Romera-Paredes, Vineet, Su, Du, Huang, Torr, "Conditional random fields as recurrent neural
networks", ICCV 2015; Krähenbühl, Koltun, "Parameter learning and convergent inference for dense random fields", ICML
2013, for learning by differentiating mean field, widths among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regloss.checks import holds
from regloss.errors import UsageError
from regloss.layer import RegularizedLayer
from regloss.registry import create
from regloss.regularizer import Regularizer, Sum, Term
from regloss.solver import Solution
from regloss_plugins.layers.fixed_mean_field import FixedMeanField, Kernel
from regloss_plugins.layers.softmax import RegularizedSoftmax

LEARNABLE = ("weights", "sigma_xy", "sigma_rgb", "compatibility", "entropy")


class DenseCRFLayer(RegularizedLayer):
    """Logits and image to probabilities by mean field on a dense CRF with learnable settings.

    What is learnt is kept as ``log_weights`` (M,), ``log_sigma_xy`` (M,), ``log_sigma_rgb`` (as many as are finite) and
    ``compatibility`` (K, K), and, within ``softmax``, ``log_entropy``; the first three so stay positive. After each
    call ``solution`` holds what the solver reported (None after an unrolled pass).

    Args:
        classes: K.
        weights: one a kernel, > 0; a pixel amid others like it gives about so much, in units of the logits, to the
            label that all of them have.
        sigma_xy: bandwidths of places in pixels, one a kernel.
        sigma_rgb: bandwidths of image values in (0, 2], one a kernel; inf = colours do not matter.
        compatibility: (K, K) to begin with, a floating-point tensor or rows of numbers; None = 1 where labels differ.
        entropy: > 0, temperature of the softmax.
        scale: resolution at which places and colours are looked at, in (0, 1].
        backend: of the filters: "exact", "lattice" or "auto". With a lattice, gradients by widths are approximate.
        accuracy: of the lattice: "fast", "fine" or "finest".
        max_steps: of mean field; "implicit" and "one-step" stop before if they may.
        tolerance: a step that changes no probability by more than this ends it.
        damped: damp steps as far as the energy needs it.
        backward: "unrolled", "implicit" or "one-step".
        checkpoint: unrolled, take each step again in the backward pass instead of keeping what it computed.
        learn: names of the settings that become parameters, of "weights", "sigma_xy", "sigma_rgb", "compatibility" and
            "entropy".
        backward_steps: largest number of conjugate-gradient steps of the implicit gradient.
        backward_tolerance: their relative residual at which to stop.

    Raises:
        UsageError: a setting outside its range, or numbers of kernels that disagree; in a call, logits of another
            number of classes, or a width that learning has driven out of its range.

    A pixel that does not know follows those of its colour:

    >>> layer = DenseCRFLayer(2, weights=[2.0], sigma_xy=[2.0], sigma_rgb=[0.1], max_steps=10)
    >>> logits = torch.tensor([[[[3.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 3.0]]]])
    >>> layer(logits, torch.tensor([[[[0.2, 0.2, 0.8, 0.8]]]])).argmax(1)
    tensor([[[0, 0, 1, 1]]])
    >>> sorted(name for name, _ in layer.named_parameters())
    ['compatibility', 'log_sigma_rgb', 'log_sigma_xy', 'log_weights']
    """

    former_names: ClassVar[Mapping[str, str]] = {"steps": "max_steps"}

    def __init__(
        self,
        classes: int,
        *,
        weights: Sequence[float] = (10.0, 3.0),
        sigma_xy: Sequence[float] = (80.0, 3.0),
        sigma_rgb: Sequence[float] = (0.051, math.inf),
        compatibility: Tensor | Sequence[Sequence[float]] | None = None,
        entropy: float = 1.0,
        scale: float = 1.0,
        backend: Literal["auto", "exact", "lattice"] = "auto",
        accuracy: Literal["fast", "fine", "finest"] = "fine",
        max_steps: int = 5,
        tolerance: float = 1e-5,
        damped: bool = True,
        backward: Literal["unrolled", "implicit", "one-step"] = "unrolled",
        checkpoint: bool = True,
        learn: Sequence[str] = ("weights", "sigma_xy", "sigma_rgb", "compatibility"),
        backward_steps: int = 100,
        backward_tolerance: float = 1e-6,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise UsageError(f"A dense CRF needs at least two classes; got {classes}.")
        counts = {"weights": len(weights), "sigma_xy": len(sigma_xy), "sigma_rgb": len(sigma_rgb)}
        if len({*counts.values()}) != 1 or not len(weights):
            given = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UsageError(
                f"Each kernel needs a weight, a sigma_xy and a sigma_rgb, and there must be one; got {given}."
            )
        unknown = [name for name in learn if name not in LEARNABLE]
        if unknown:
            raise UsageError(f"learn may hold {', '.join(LEARNABLE)}; got {', '.join(map(repr, unknown))}.")
        if not all(0 < weight < math.inf for weight in weights):
            raise UsageError(f"The weights of a dense CRF layer must be finite and positive; got {list(weights)}.")
        costs = _costs(compatibility, classes)
        self.classes = classes
        self.learn = tuple(learn)
        self._scale = scale
        self._filter = {"scale": scale, "backend": backend, "accuracy": accuracy}
        self._finite = [number for number, sigma in enumerate(sigma_rgb) if not math.isinf(sigma)]
        self._keep("log_weights", torch.tensor([float(w) for w in weights]).log(), "weights" in learn)
        for kernel in zip(sigma_xy, sigma_rgb, strict=True):  # refuses invalid widths, by their names
            create("regularizer", "dense-crf", sigma_xy=kernel[0], sigma_rgb=kernel[1], **self._filter)
        self._keep("log_sigma_xy", torch.tensor([float(s) for s in sigma_xy]).log(), "sigma_xy" in learn)
        finite = [float(sigma_rgb[number]) for number in self._finite]
        self._keep("log_sigma_rgb", torch.tensor(finite).log(), "sigma_rgb" in learn and bool(finite))
        # Copied, since what is learnt must not change what was given.
        self._keep("compatibility", costs.detach().clone(), "compatibility" in learn)
        solver = create("solver", "dca", max_steps=max_steps, tolerance=tolerance, damped=damped, checkpoint=checkpoint)
        with torch.no_grad():  # it only says what kind of terms will come, and must not hold on to parameters
            kind = self._regularizer()
        self.softmax = RegularizedSoftmax(
            kind,
            solver,
            entropy,
            backward=backward,
            learn=("entropy",) if "entropy" in learn else (),
            backward_steps=backward_steps,
            backward_tolerance=backward_tolerance,
        )

    def _keep(self, name: str, value: Tensor, learnt: bool) -> None:
        """As a parameter, or as a buffer, which is saved too: what was not learnt is part of the layer all the same."""
        if learnt:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @property
    def weights(self) -> Tensor:
        """(M,) of the kernels."""
        return self._tensor("log_weights").exp()

    @property
    def sigma_xy(self) -> Tensor:
        """(M,) bandwidths of places, pixels."""
        return self._tensor("log_sigma_xy").exp()

    @property
    def sigma_rgb(self) -> Tensor:
        """(M,) bandwidths of image values; inf where colours do not matter."""
        log = self._tensor("log_sigma_rgb")
        every = torch.full_like(self._tensor("log_sigma_xy").detach(), math.inf)
        return every.index_put((torch.tensor(self._finite, dtype=torch.int64, device=log.device),), log.exp())

    @property
    def entropy(self) -> Tensor:
        """() weight of the entropy."""
        return self.softmax.entropy

    @property
    def solution(self) -> Solution | None:
        """What the solver reported of the last call; may be set to None, to forget it."""
        return self.softmax.solution

    @solution.setter
    def solution(self, value: Solution | None) -> None:
        self.softmax.solution = value

    def learnable_parameters(self) -> dict[str, nn.Parameter]:
        """Logarithms of weights, widths and entropy, and the label costs themselves, by the names in ``learn``."""
        kernels = {name.removeprefix("log_"): value for name, value in self.named_parameters(recurse=False)}
        return {**kernels, **self.softmax.learnable_parameters()}

    def scalars(self) -> dict[str, dict[str, float]]:
        """Weights and widths, one a kernel and numbered like them, costs of labels, and the entropy.

        Of widths of image values those that are finite; of the label costs C the least and the most of
        C_kl - (C_kk + C_ll) / 2, what it costs that two pixels differ instead of agreeing: 1 for all pairs at first.
        """
        costs = (self._tensor("compatibility") + self._tensor("compatibility").T).detach() / 2
        diagonal = costs.diagonal()
        apart = (costs - (diagonal[:, None] + diagonal) / 2)[
            ~torch.eye(self.classes, dtype=torch.bool, device=costs.device)
        ]
        colours = self.sigma_rgb.tolist()
        return {
            "weights": {f"weight-{number}": weight for number, weight in enumerate(self.weights.tolist())},
            "sigma_xy": {f"sigma-xy-{number}": sigma for number, sigma in enumerate(self.sigma_xy.tolist())},
            "sigma_rgb": {f"sigma-rgb-{number}": colours[number] for number in self._finite},
            "compatibility": {"cost-least": float(apart.min()), "cost-most": float(apart.max())},
            "entropy": {"entropy": self.entropy.item()},
        }

    def extra_repr(self) -> str:
        """Settings for ``print(layer)``."""
        return f"classes={self.classes}, kernels={len(self._finite)} of colour, learn={self.learn}"

    def forward(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Probabilities (B, K, *S).

        Args:
            logits: (B, K, *S), finite.
            image: (B, C, *S) in [0, 1].
            roi: (B, *S) bool, outside of which nothing is regularised; None = everywhere.
            warm: an earlier solution for the same images, or its state, to start from.
            spacing: distance of neighbouring pixels along each axis of S in mm; None = not known.

        Raises:
            UsageError: shapes or classes disagree; logits or image values that are invalid.
        """
        probabilities: Tensor = self.softmax(logits, self.bind(logits, image, roi, spacing), warm=warm)
        return probabilities

    def log_probabilities(
        self,
        logits: Tensor,
        image: Tensor,
        roi: Tensor | None = None,
        warm: Any = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Logarithms of what the call gives, which do not underflow; arguments as there."""
        return self.softmax.log_probabilities(logits, self.bind(logits, image, roi, spacing), warm=warm)

    def bind(
        self, logits: Tensor, image: Tensor, roi: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Term:
        """The regularizer as it stands, on the images; its tensors are tied to the parameters."""
        if logits.ndim < 2 or logits.shape[1] != self.classes:
            raise UsageError(
                f"A dense CRF layer for {self.classes} classes got logits {tuple(logits.shape)} (B, K, *S)."
            )
        return self._learnt_regularizer().bind(image, roi, spacing)

    def unrolled(self, max_steps: int | None = None) -> FixedMeanField:
        """As of `RegularizedLayer`: sums over all pairs of pixels, whatever the filters' backend is."""
        self.check()
        solver: Any = self.softmax.solver
        costs = self._tensor("compatibility").detach()
        numbers = zip(self.weights.tolist(), self.sigma_xy.tolist(), self.sigma_rgb.tolist(), strict=True)
        return FixedMeanField(
            [Kernel(weight * (costs + costs.T) / 2, sigma_xy, sigma_rgb) for weight, sigma_xy, sigma_rgb in numbers],
            entropy=float(self.entropy.detach()),
            scale=self._scale,
            max_steps=solver.max_steps if max_steps is None else max_steps,
            damped=solver.damped,
        )

    def check(self) -> None:
        """Raise `UsageError` where learning has driven a weight or a width out of its range."""
        self._learnt_regularizer()

    def _learnt_regularizer(self) -> Regularizer:
        try:
            return self._regularizer()
        except UsageError as error:  # settings that were given have been checked
            raise type(error)(
                f"{error} Learning has driven it there: lower the learning rate, or leave it out of learn."
            ) from error

    def _regularizer(self) -> Regularizer:
        # In single precision an exponential becomes 0 or inf, and that of a width would mean that it does not matter.
        for name, values in (("weights", self.weights), ("sigma_rgb", self._tensor("log_sigma_rgb").exp())):
            if not holds((values > 0) & values.isfinite()):
                raise UsageError(
                    f"{name} of a dense CRF layer must be finite and not 0 in its precision; got {values.tolist()}."
                )
        # Only what is learnt goes as a tensor, since what needs no derivative is filtered faster.
        xy = self._widths("log_sigma_xy", "sigma_xy")
        rgb: list[Any] = [math.inf] * len(xy)
        for place, sigma in zip(self._finite, self._widths("log_sigma_rgb", "sigma_rgb"), strict=True):
            rgb[place] = sigma
        costs = self._tensor("compatibility")
        parts = [
            create("regularizer", "dense-crf", sigma_xy=a, sigma_rgb=b, compatibility=weight * costs, **self._filter)
            for weight, a, b in zip(self.weights, xy, rgb, strict=True)
        ]
        return parts[0] if len(parts) == 1 else Sum(parts)

    def _widths(self, log: str, name: str) -> list[Any]:
        found = self._tensor(log).exp()
        return list(found) if name in self.learn else found.tolist()

    def _tensor(self, name: str) -> Tensor:
        value = getattr(self, name)
        assert isinstance(value, Tensor)
        return value


def _costs(given: Tensor | Sequence[Sequence[float]] | None, classes: int) -> Tensor:
    """Label costs (K, K) to begin with."""
    if given is None:
        return 1 - torch.eye(classes)
    if not isinstance(given, Tensor):
        if len({len(row) for row in given}) > 1:
            raise UsageError(
                "compatibility needs as many numbers in each row as there are rows, one for each class; got rows of "
                f"{', '.join(str(len(row)) for row in given)} numbers."
            )
        given = torch.tensor(given, dtype=torch.float32)
    if tuple(given.shape) != (classes, classes):
        raise UsageError(f"compatibility must be (K, K) = {(classes, classes)}; got shape {tuple(given.shape)}.")
    return given
