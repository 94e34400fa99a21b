"""What the next step of dual ascent extrapolates by, in Triton, without the host: one program an image.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import triton
import triton.language as tl

_BLOCK = tl.constexpr(128)


@triton.jit
def momentum(
    gains: tl.tensor,  # (B, blocks) parts of <x - y+, (y+ - y) / tau>
    momenta: tl.tensor,  # (B,) t
    extrapolations: tl.tensor,  # (B,)
    blocks: tl.tensor,
    most: tl.tensor,
) -> None:
    """T and the extrapolation of the next step, at most ``most``; a gain above 0 restarts both."""
    image = tl.program_id(0)
    total = tl.zeros((_BLOCK,), dtype=tl.float32)
    for begin in range(0, blocks, _BLOCK):
        one = begin + tl.arange(0, _BLOCK)
        total += tl.load(gains + image * blocks + one, mask=one < blocks, other=0.0)
    restart = tl.sum(total, axis=0) > 0
    t = tl.load(momenta + image)
    following = (1 + tl.sqrt(1 + 4 * t * t)) / 2
    tl.store(extrapolations + image, tl.where(restart, 0.0, tl.minimum((t - 1) / following, most)))
    tl.store(momenta + image, tl.where(restart, 1.0, following))
