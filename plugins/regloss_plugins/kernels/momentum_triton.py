"""What the next step of dual ascent extrapolates by, in Triton, without the host: one program an image.

The package triton is needed to import this module, which is done where CUDA tensors arrive, and in tests under Triton's
interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from regloss_plugins.kernels.points_triton import total_of


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
    restart = total_of(gains, image, blocks) > 0
    t = tl.load(momenta + image)
    following = (1 + tl.sqrt(1 + 4 * t * t)) / 2
    tl.store(extrapolations + image, tl.where(restart, 0.0, tl.minimum((t - 1) / following, most)))
    tl.store(momenta + image, tl.where(restart, 1.0, following))
