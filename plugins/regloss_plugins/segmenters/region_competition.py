"""RegionCompetition: phases whose colours are normally distributed.

    min over labels s, means m, variances v of   sum over classes k and pixels p of -s_kp log N(I_p; m_k, v_k)  +  R(s)

with a grid CRF R by default. See `AlternatingSegmenter` for how.

Source: Zhu, Yuille, "Region competition: unifying snakes, region growing, and Bayes/MDL for multiband image
segmentation", PAMI 1996.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regloss_plugins.regularizers.grid_crf import GridCRF
from regloss_plugins.segmenters.alternating import AlternatingSegmenter

_REGULARIZER = GridCRF(5.0)


@dataclass(frozen=True)
class RegionCompetition(AlternatingSegmenter):
    """Phases whose colours are normally distributed, each channel for itself. Unaries are in nats.

    Settings are those of `AlternatingSegmenter`: region_force, regularizer, solver, entropy >= 0, max_rounds (None =
    once with scribbles, 50 times at most without), colors, place, place_limit
    and barrier.
    """

    region_force: Any = "gaussian"
    regularizer: Any = _REGULARIZER
