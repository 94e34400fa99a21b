"""ScribbleCut: mixtures of the colours under scribbles, the distance to these, and the minimum cut between classes.

    min over labels s that keep the scribbles of
        sum over classes k and pixels p of s_kp (-log p_k(I_p) + min(place d_k(p), limit))  +  smoothness diagonal R(s)

with mixtures of normals p in Lab colours (`GaussianMixture`), geodesic distances d to the class's nearest scribble
(`regloss.scribble_distances`) beyond the distance of the class that is nearest, and a grid CRF R. Of what has the same
colour, the piece that is scribbled is meant: an object far from any scribble of its class is found only where its
colours are worth more than the limit. Nothing in it has the unit of a pixel: on the same image of twice the size
boundaries have 2 and regions 4 times as many pixels, so a weight in proportion to the image's diagonal leaves the
minimiser as it is; distances are in diagonals, too. In a volume, whose pixels have more neighbours, the weight is less,
such that a boundary costs what its cuts with the slices would. The defaults were chosen on photographs with scribbles
that people drew, see `tests/benchmarks/segment.py`.

Source: Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004; Price, Morse, Cohen, "Geodesic graph cut for interactive
image segmentation", CVPR 2010.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regloss.checks import check_not_negative
from regloss.regularizer import Regularizer
from regloss_plugins.regularizers.grid_crf import GridCRF
from regloss_plugins.segmenters.alternating import AlternatingSegmenter
from regloss_plugins.segmenters.scribble_distances import image_diagonal

# What a boundary costs in a grid CRF, the mean over its directions, is the number of directions to neighbours times the
# mean of |cos|: 4 times 2 / pi in 2D, 13 times 1 / 2 in 3D.
_IN_VOLUMES = (4 * 2 / math.pi) / (13 / 2)


@dataclass(frozen=True)
class ScribbleCut(AlternatingSegmenter):
    """Minimum cuts between mixtures of colours near scribbles. Unaries are in nats.

    Settings are those of `AlternatingSegmenter`: region_force, regularizer (None = grid-crf, whose weight follows from
    the next), solver, entropy >= 0, max_rounds (None = once with scribbles, 50 times at most without), colors,
    place, place_limit and barrier, and

    Args:
        smoothness: weight of the grid CRF that stands where no regularizer is given, >= 0, in nats for each pixel of
            the image's diagonal in 2D, and in 3D what makes boundaries cost as much.
    """

    default_for = ("scribbles",)

    region_force: Any = "gaussian-mixture"
    regularizer: Any = None
    colors: Literal["rgb", "lab"] = "lab"
    place: float = 30.0
    smoothness: float = 0.13

    def __post_init__(self) -> None:
        check_not_negative(smoothness=self.smoothness)
        super().__post_init__()

    def prior(self, shape: Sequence[int], spacing: Sequence[float] | None = None) -> Regularizer:
        """The regularizer that is given, or a grid CRF for an image of ``shape`` pixels, of that ``spacing``."""
        if self.regularizer is None:
            relative = _IN_VOLUMES if len(shape) == 3 else 1.0
            return GridCRF(float(self.smoothness) * relative * image_diagonal(shape, spacing))
        return super().prior(shape, spacing)
