"""Steps of the relaxed Potts model in Triton, whole batches at once: `parallel-potts`, on CUDA devices."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.dispatch import fast
from regloss.grid import Offset
from regloss_plugins.bindings.triton_kernels import triton_is_there


@fast("potts-steps", device="cuda")
def potts_steps(
    primal: Tensor,
    channels: Tensor,
    dual: Tensor,
    threshold: Tensor | None,
    unary: Tensor,
    half: Tensor,
    lengths: Tensor,
    offsets: tuple[Offset, ...],
    *,
    steps: int,
    balance: float,
    relaxation: float,
    newton_steps: int,
    two_labels: bool,
) -> tuple[Tensor, Tensor] | None:
    """The primal point and the threshold after ``steps`` steps; None = the reference is to take them.

    Args:
        primal: (B, C, *S) s.
        channels: (B, C, *S) s^, contiguous, overwritten.
        dual: (B, n, C, *S) z, contiguous, overwritten.
        threshold: (B, 1, *S) of the projection; None = not known.
        unary: (B, C, *S).
        half: (B, n, 1, *S) half the weights.
        lengths: (B, 1, *S) tau.
        offsets: the n pairs' second pixels.
        steps: how many.
        balance: c.
        relaxation: rho.
        newton_steps: of the projection.
        two_labels: there is one channel, between 0 and 1.
    """
    if unary.dtype != torch.float32 or not triton_is_there():
        return None
    from regloss_plugins.kernels import potts_triton  # and triton with it, only where it is used

    size = unary.shape[2:]
    missing = 3 - len(size)
    primals = torch.stack([primal, primal]).flatten(3)
    if threshold is None:
        threshold = torch.full_like(lengths, -torch.inf)
    thresholds = threshold.flatten(1).contiguous()
    potts_triton.potts_steps(
        primals,
        channels.flatten(2),
        dual.flatten(3),
        thresholds,
        unary.flatten(2).contiguous(),
        half.flatten(2).contiguous(),
        lengths.flatten(1).contiguous(),
        torch.tensor([(0,) * missing + offset for offset in offsets], dtype=torch.int32, device=unary.device),
        [1] * missing + list(size),
        steps,
        balance,
        relaxation,
        newton_steps,
        not two_labels,
    )
    return primals[steps % 2].reshape(primal.shape), thresholds.reshape(threshold.shape)
