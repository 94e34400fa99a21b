"""All scores of networks that know the classes, in one dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchmetrics import Metric, MetricCollection

from regloss.errors import UsageError
from regloss.metrics.boundary import BoundaryDensity, TrimapScores
from regloss.metrics.confusion import Confusion
from regloss.metrics.surface import SurfaceDistances


class Scores(MetricCollection):
    """`Confusion`, `BoundaryDensity`, `TrimapScores` and, if wanted, `SurfaceDistances` of the same images.

    ``update(prediction, label, group)`` adds an image; see `Confusion.update`. With ``spacing`` given to it by name,
    surface distances are in mm.

    Args:
        classes: the K >= 2 class names; index 0 is the background.
        trimap_widths: widths in pixels of the bands around true boundaries that are scored apart (see `TrimapScores`).
        hausdorff: whether to measure how far boundaries are off (see `SurfaceDistances`).

    Raises:
        UsageError: fewer than two classes, a name or a width given twice, or a width that is not positive.

    >>> import torch
    >>> scores = Scores(["background", "heart"])
    >>> scores.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 255]]), group="patient-1")
    >>> result = scores.compute()
    >>> result["confusion"], result["iou"]
    ([[1, 1], [0, 1]], {'background': 0.5, 'heart': 0.5})
    """

    def __init__(self, classes: Sequence[str], trimap_widths: Sequence[int] = (), hausdorff: bool = False) -> None:
        parts: dict[str, Metric] = {
            "confusion": Confusion(classes),
            "density": BoundaryDensity(classes),
        }
        if trimap_widths:
            parts["trimap"] = TrimapScores(classes, trimap_widths)
        if hausdorff:
            parts["hausdorff"] = SurfaceDistances(classes)
        # Groups would take metrics whose states happen to be equal, as at the start, for the same.
        super().__init__(parts, compute_groups=False)  # type: ignore[arg-type]

    def compute(self) -> dict[str, Any]:
        """All scores so far, ready for JSON: what is undefined is None.

        Returns:
            What `Confusion.compute`, `BoundaryDensity.compute` and `SurfaceDistances.compute` return, and ``trimap``:
            what `TrimapScores.compute` returns.

        Raises:
            UsageError: nothing has been scored.
        """
        found = {name: metric.compute() for name, metric in self.items()}
        trimap = found.pop("trimap", {})
        return {key: value for scores in found.values() for key, value in scores.items()} | {"trimap": trimap}

    def merge_state(self, other: Scores) -> None:
        """Add what other scores have counted; a group may be spread over both.

        Raises:
            UsageError: they are of other classes or trimap widths, or only one of them measures Hausdorff distances.
        """
        mine, theirs = dict(self.items()), dict(other.items())
        if mine.keys() != theirs.keys():
            raise UsageError(f"Only scores of the same kinds add up; these have {[*mine]}, those have {[*theirs]}.")
        for name, metric in mine.items():
            metric.merge_state(theirs[name])
