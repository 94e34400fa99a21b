"""GraphCut: histograms of the colours under scribbles, and the minimum cut between them.

    min over labels s that keep the seeds of   sum over classes k and pixels p of -s_kp log h_k(I_p)  +  R(s)

with histograms h and a grid CRF R by default. See `AlternatingSegmenter` for how; several rounds fit the histograms
anew, as GrabCut does with mixtures of normal distributions. `ScribbleCut` knows where the scribbles are, too.

Source: Boykov, Jolly, "Interactive graph cuts for optimal boundary and region segmentation of objects in N-D images",
ICCV 2001; Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regloss_plugins.regularizers.grid_crf import GridCRF
from regloss_plugins.segmenters.alternating import AlternatingSegmenter

_REGULARIZER = GridCRF(5.0)


@dataclass(frozen=True)
class GraphCut(AlternatingSegmenter):
    """Minimum cuts between the histograms of classes, or between seeds alone. Unaries are in nats.

    Settings are those of `AlternatingSegmenter`: region_force, regularizer, solver, entropy >= 0, max_rounds (None =
    once with scribbles, 50 times at most without), colors, place, place_limit
    and barrier.
    """

    region_force: Any = "histogram"
    regularizer: Any = _REGULARIZER
