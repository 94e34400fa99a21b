"""Images that a report shows, with their labellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from regloss.errors import UsageError
from regloss.io.types import LabelMap


@dataclass(frozen=True, eq=False)
class Example:
    """One image to show, with whatever labellings there are; a volume is shown by the middle slice of its first axis.

    Attributes:
        id: the sample's name.
        image: (C, *S) float32 in [0, 1], two or three spatial axes; three channels are RGB, of others the first is
            shown.
        scribble: (*S) class indices with 255 = unlabelled, or None.
        proposal: (*S) class indices with 255 = outside the region of interest, or None.
        prediction: (*S) class indices.
        label: (*S) class indices with 255 = ignored, or None.
        numbers: further maps (*S) by name, of which histograms are drawn too: what an encoder makes of the image.
    """

    id: str
    image: npt.NDArray[np.float32]
    scribble: LabelMap | None
    proposal: LabelMap | None
    prediction: LabelMap
    label: LabelMap | None
    numbers: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image.ndim not in (3, 4):
            raise UsageError(f"Example {self.id!r}: an image must be (C, *S) in 2D or 3D; got {self.image.shape}.")
        for name, labels in {**self.maps(), **self.numbers}.items():
            if labels is not None and labels.shape != self.image.shape[1:]:
                raise UsageError(
                    f"Example {self.id!r}: its {name} must have the image's size {self.image.shape[1:]}; "
                    f"got {labels.shape}."
                )

    def maps(self) -> dict[str, LabelMap | None]:
        """The labellings by name, in the order in which they are shown."""
        return {
            "scribble": self.scribble,
            "proposal": self.proposal,
            "prediction": self.prediction,
            "truth": self.label,
        }
