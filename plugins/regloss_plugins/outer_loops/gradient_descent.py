"""Gradient descent on the regularized loss itself.

    data(S, Y) + R(S; image) / N            S = softmax(logits), N = pixels of the region of interest

Source: Tang et al., "On regularized losses for weakly-supervised CNN segmentation", ECCV 2018. The grid CRF by gradient
descent: Marin et al., CVPR 2019.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from regloss.batch import Batch
from regloss.data_term import combine_data_terms
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal, check_logits
from regloss.regularizer import combine
from regloss.schedule import Schedule, as_schedule


class GradientDescent(OuterLoop):
    """Data term plus the regularizer's relaxation, minimised by the network's optimizer alone.

    Args:
        regularizer: one or several (objects, names or tables); None trains with the data term alone.
        data_term: one or several (objects, names or tables).
        weight_schedule: factor of the regularizer's weight, >= 0, a number or a schedule.

    >>> GradientDescent.preset("grid-crf-scribbles").regularizer.weight
    25.0
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Marin, Boykov, ICCV 2021: weight 100 on the mean over neighbour pairs; four pairs a pixel make it 25 a pair.
        "grid-crf-scribbles": {"regularizer": {"name": "grid-crf", "weight": 25.0, "relaxation": "bilinear"}},
        # Tang et al., ECCV 2018: weight 2e-9 on the sum over ordered pairs of blocks of 2x2 pixels, crops of 513x513.
        # As a mean over pixels of a sum over pairs of pixels, divided by 2 pi sigma^2: 2e-9 513^2 / 8 * 2 pi 100^2.
        "dense-crf-scribbles": {
            "regularizer": {"name": "dense-crf", "weight": 4.13, "sigma_xy": 100.0, "sigma_rgb": 15 / 255, "scale": 0.5}
        },
    }

    renamed_settings: ClassVar[dict[str, str]] = {"strength": "weight_schedule"}

    def __init__(
        self,
        regularizer: Any = None,
        data_term: Any = "partial-cross-entropy",
        weight_schedule: float | Schedule | dict[str, Any] = 1.0,
    ) -> None:
        super().__init__("never")
        self.regularizer = combine(regularizer)
        self.data_term = combine_data_terms(data_term)
        self.weight_schedule = as_schedule(weight_schedule, "weight_schedule")
        if min(self.weight_schedule.start, self.weight_schedule.end) < 0:
            raise UsageError(f"weight_schedule must not be negative; got {weight_schedule!r}.")

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> None:
        """No proposal: the network follows the gradient of the regularizer."""
        return None

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """Mean data term plus regularizer per pixel."""
        check_logits(logits, batch)
        loss_terms = self.data_loss_terms(logits, batch)
        factor = self.weight_schedule.at(self.progress)
        return self.total_loss(**loss_terms, **self.regularizer_loss_terms(self.regularizer, factor, logits, batch))
