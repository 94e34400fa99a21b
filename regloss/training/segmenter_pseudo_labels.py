"""Pseudo-labels by a segmenter, from the scribbles of each training image; doubtful pixels may stay without one.

Random walks (`random-walker`) and minimum cuts (`scribble-cut`) are such segmenters. A pixel whose largest probability
is below a threshold is left unlabelled. What labels alone know, cuts for example, has probabilities of 0 and 1, and no
pixel is doubtful.

Source: random walks as pseudo-labels of scribbles: Luo et al., "Scribble-supervised medical image segmentation via
dual-branch network and dynamically mixed pseudo labels supervision", MICCAI 2022 (a rival there, without a threshold).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from regloss.dataset import IGNORE, Sample
from regloss.errors import UsageError
from regloss.io.types import LabelMap
from regloss.registry import name_of, resolve
from regloss.segmenter import Segmenter
from regloss.training.pseudo_labels import PseudoLabels


class SegmenterPseudoLabels(PseudoLabels):
    """Makes pseudo-labels with a segmenter that starts from scribbles.

    Args:
        segmenter: an object, a name or a table.
        threshold: least probability of a pixel's class, in [0, 1); pixels below it are left unlabelled.

    Raises:
        UsageError: a name or a setting that does not exist or is invalid; a segmenter that takes no scribbles.
    """

    def __init__(self, segmenter: Any, threshold: float) -> None:
        super().__init__()
        self.segmenter: Segmenter = resolve("segmenter", segmenter)
        if not self.segmenter.takes_scribbles:
            raise UsageError(
                f"The segmenter {name_of(self.segmenter)!r} takes no scribbles, of which pseudo-labels are made."
            )
        self.threshold = threshold

    def propose(self, sample: Sample) -> LabelMap:
        """Segment one sample from its scribbles (*S).

        As they are if fewer than two classes are scribbled, so that there is nothing to tell apart.
        """
        assert sample.scribble is not None
        scribbles = torch.from_numpy(sample.scribble.astype(np.int64)).unsqueeze(0)
        if len(torch.unique(scribbles[scribbles != IGNORE])) < 2:
            return sample.scribble
        image = torch.from_numpy(sample.image).unsqueeze(0)
        try:
            found = self.segmenter(image, scribbles=scribbles, spacing=sample.spacing)
        except UsageError as error:
            raise type(error)(f"{sample.id}: no proposal by {name_of(self.segmenter)}: {error}") from None
        doubtful = (found.probabilities.amax(1) < self.threshold) & (scribbles == IGNORE)
        labels: LabelMap = found.labels.masked_fill(doubtful, IGNORE)[0].numpy().astype(np.uint8)
        return labels
