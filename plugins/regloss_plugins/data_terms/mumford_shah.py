"""Mumford-Shah: how far the colours of a class are from their mean, which needs no labels.

    sum over classes k and pixels p of   S_pk |x_p - c_k|^2,      c_k = sum_p S_pk x_p / sum_p S_pk

with the softmax S and the image's values x. Beside a term that sees labels it asks that every class be of one colour,
or of one value of a channel. The paper's loss is this and the total variation of S, here the regularizer `tv` beside
it. The means minimise it for a given S, so that the gradient does not go through them: it is |x_p - c_k|^2.

Source: Kim, Ye, "Mumford-Shah loss functional for image segmentation with deep learning", IEEE Trans. Image Processing
29, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.checks import at_least_float32
from regloss.data_term import DataTerm
from regloss.outer_loop import check_logits


@dataclass(frozen=True)
class MumfordShah(DataTerm):
    """Mean over the region of interest, labelled or not, of the squared distance to the mean colour of the class.

    Between 0, where every class has one colour, and the variance of the image; channels add up.

    >>> image = torch.tensor([[[[0.2, 0.2, 0.8, 0.8]]]])
    >>> one_class_each = torch.tensor([[[[9.0, 9.0, -9.0, -9.0]], [[-9.0, -9.0, 9.0, 9.0]]]])
    >>> sums, counts = MumfordShah()(one_class_each, Batch(image, None))
    >>> bool(sums < 1e-6), counts
    (True, tensor([4.]))
    """

    needs_labels: ClassVar[bool] = False

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (B,) and numbers of pixels (B,)."""
        check_logits(logits, batch)
        s = at_least_float32(logits).softmax(1)
        if batch.roi is not None:
            s = s * batch.roi.unsqueeze(1)
        s = s.flatten(2)  # (B, K, N)
        values = batch.image.to(s).flatten(2)  # (B, C, N)
        with torch.no_grad():
            # A class without a pixel has no mean, and nothing to be multiplied with the distance from any.
            mass = s.sum(2, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
            means = torch.einsum("bkn,bcn->bkc", s, values) / mass
        distances = torch.stack([(values - mean.unsqueeze(2)).square().sum(1) for mean in means.unbind(1)], 1)
        return (s * distances).flatten(1).sum(1), batch.pixels.to(s)
