"""ChanVeseSegmenter: phases of constant colour, separated by short boundaries.

    min over labels s and means m of   sum over classes k and pixels p of s_kp |I_p - m_k|^2  +  R(s)

with total variation R by default. See `AlternatingSegmenter` for how; with two phases the labels of the last means are
globally optimal, as the gap certifies.

Source: Chan, Vese, "Active contours without edges", IEEE Transactions on Image Processing, 2001; Chan, Esedoglu,
Nikolova, "Algorithms for finding global minimizers of image segmentation and denoising models", 2006.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regloss_plugins.regularizers.tv import TotalVariation
from regloss_plugins.segmenters.alternating import AlternatingSegmenter

_REGULARIZER = TotalVariation(0.1)


@dataclass(frozen=True)
class ChanVeseSegmenter(AlternatingSegmenter):
    """Phases of constant colour. Unaries are squared distances of colours in [0, 1]: hence the small weight.

    Settings are those of `AlternatingSegmenter`: region_force, regularizer, solver, entropy >= 0, max_rounds (None =
    once with scribbles, 50 times at most without), colors, place, place_limit and barrier.
    """

    default_for = ("phases",)

    region_force: Any = "chan-vese"
    regularizer: Any = _REGULARIZER
