"""Segmenter: one image to labels, without a network that was trained before, and without files.

A segmenter is a component of the kind "segmenter": `regloss segment --method` names it. It starts from scribbles, whose
labels it keeps, or divides the image into phases, and says what it has minimised, and how far that may be from the
minimum.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from regloss.checks import at_least_float32, check_image, check_labels, check_seed, check_spacing
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.registry import name_of
from regloss.settings import CheckedSettings
from regloss.solver import Progress, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Task:
    """What a segmenter is given; checked already.

    Attributes:
        image: (1, C, *S) in [0, 1], float32 or float64.
        scribbles: (1, *S) int64 labels of at least two classes, 255 = none; None = there are no scribbles.
        phases: K, at least 2; with scribbles the largest label + 1.
        start: (1, *S) int64 phases to start from, 255 = no opinion, at least two of them; or the name of a start; None
            = as the segmenter likes.
        seed: of all that is random.
        callback: called with a sentence on the state of things now and then.
        spacing: distance between neighbouring pixels along each axis in mm; None = not known.
    """

    image: Tensor
    scribbles: Tensor | None
    phases: int
    start: Tensor | str | None = None
    seed: int = 0
    callback: Callable[[str], object] | None = None
    spacing: tuple[float, ...] | None = None

    @property
    def allowed(self) -> Tensor | None:
        """(1, K) bool: the classes that are scribbled; None = without scribbles, all."""
        if self.scribbles is None:
            return None
        found = torch.zeros(1, self.phases, dtype=torch.bool, device=self.image.device)
        found[0, torch.unique(self.scribbles[self.scribbles != IGNORE])] = True
        return found


@dataclass(frozen=True)
class EnergyRecord:
    """The energy at one moment of a segmentation.

    Attributes:
        round: from 1; 0 for the start.
        event: "start", "statistics" (fitted anew), "step" (the solver looked at its certificate), "labels" (it ended).
        step: the solver's steps in this round, for "step"; else 0.
        energy: at that moment; NaN where it is not known.
        bound: lower bound on it for the statistics of the moment, -inf where none is known.
        violation: how far the solver's iterate was from its constraints; None where there are none, or nobody looked.
    """

    round: int
    event: Literal["start", "statistics", "step", "labels"]
    step: int
    energy: float
    bound: float
    violation: float | None = None

    @staticmethod
    def of(known: Progress) -> EnergyRecord:
        """What is known of the first image; a solver that runs by itself is in its first round."""
        number = max(1, known.round) if known.stage == "step" else known.round
        energy, bound = float(known.energy[0]), float(known.bound[0])
        violation = None if known.violation is None else float(known.violation[0])
        return EnergyRecord(number, known.stage, known.steps, energy, bound, violation)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What a segmenter has found, and what certifies it.

    Attributes:
        labels: (1, *S) int64.
        probabilities: (1, K, *S), one-hot where labels are all there is.
        energy: value of what was minimised.
        bound: lower bound on the minimum, for the last statistics where there are any; -inf where none is known.
        steps: taken.
        status: how it ended.
        history: records of the energy on the way, dataclasses of one type with an attribute ``energy``: `EnergyRecord`,
            or the segmenter's own. Their fields are the columns of a table.
        notes: more lines for the reader.
    """

    labels: Tensor
    probabilities: Tensor
    energy: float
    bound: float = -math.inf
    steps: int
    status: Status
    history: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Energy, bound and status in one line."""
        bound = f", lower bound {self.bound:.6g}" if math.isfinite(self.bound) else ""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f"energy {self.energy:.6g}{bound}; {steps}; {self.status.value}"

    def figures(self, image: Tensor) -> Mapping[str, Figure]:
        """Pictures of what has happened, by name, one for each of the segmenter's ``figures``.

        One called "convergence" takes the place of the chart that is else drawn of `EnergyRecord`.
        """
        return {}


class Segmenter(metaclass=CheckedSettings):
    """Segments one image. Subclasses are frozen dataclasses, whose fields are the settings."""

    takes_scribbles: ClassVar[bool] = True
    """Whether it segments from scribbles."""

    takes_phases: ClassVar[bool] = True
    """Whether it segments without any."""

    default_for: ClassVar[tuple[Literal["scribbles", "phases"], ...]] = ()
    """For what it is the one that `regloss segment` takes where none is named; of regloss's own segmenters alone."""

    figures: ClassVar[tuple[str, ...]] = ()
    """Names of the pictures that its segmentations draw."""

    # ---- what must be defined

    @abstractmethod
    def segment(self, task: Task) -> Segmentation:
        """Segment the image of ``task``; never modify what is given."""

    # ---- what should not be redefined

    def __call__(
        self,
        image: Tensor,
        *,
        scribbles: Tensor | None = None,
        phases: int | None = None,
        start: Tensor | str | None = None,
        seed: int = 0,
        callback: Callable[[str], object] | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Segmentation:
        """Segment one image from scribbles, or into phases.

        Args:
            image: (1, C, *S) in [0, 1].
            scribbles: (1, *S) integer labels of at least two classes, 255 = unlabelled.
            phases: K >= 2, without scribbles; None = 2, or as many as ``start`` has.
            start: (1, *S) phases to start from, 255 = no opinion, or a name that the segmenter knows.
            seed: of all that is random.
            callback: called with a sentence now and then.
            spacing: distance between neighbouring pixels along each axis in mm, for what measures lengths; None = 1.

        Raises:
            UsageError: more than one image, shapes that disagree, values out of range, fewer than two classes;
                scribbles together with phases or a start; what this segmenter does not take.
        """
        check_image(image)
        check_seed(seed)
        if image.shape[0] != 1:
            raise UsageError(
                f"{name_of(self)} segments one image (1, C, *S); got {tuple(image.shape)}. Call it for each image of a "
                "batch."
            )
        name, shape = name_of(self), (1, *image.shape[2:])
        if scribbles is not None:
            if not self.takes_scribbles:
                raise UsageError(f"{name} takes no scribbles: it divides an image into phases. Give their number.")
            if phases is not None or start is not None:
                raise UsageError(
                    "Scribbles are the start, and say how many classes there are. Leave phases and start out."
                )
            check_labels(scribbles, shape)
            phases = check_classes(scribbles, "scribbles")
            scribbles = scribbles.to(image.device, torch.int64)
        else:
            if not self.takes_phases:
                raise UsageError(f"{name} needs scribbles: labels of at least two classes, 255 = unlabelled.")
            if phases is not None:
                check_phases(phases)
            if start is not None and not isinstance(start, Tensor | str):
                raise UsageError(
                    f"start must be a tensor of phases (1, *S), or a name; got {type(start).__name__}. Make arrays "
                    "tensors: torch.from_numpy."
                )
            if isinstance(start, Tensor):
                start, phases = checked_start(start, shape, phases, image.device)
            phases = 2 if phases is None else phases
        steps = check_spacing(spacing, image.ndim - 2)
        return self.segment(Task(at_least_float32(image.detach()), scribbles, phases, start, seed, callback, steps))


def check_phases(phases: int) -> None:
    """Refuse a number of phases that is none."""
    if isinstance(phases, bool) or not isinstance(phases, int) or not 2 <= phases <= IGNORE:
        raise UsageError(
            f"phases must be a whole number from 2 to {IGNORE} (there are at least two phases: background counts as "
            f"one); got {phases!r}."
        )


def check_classes(labels: Tensor, name: str) -> int:
    """K of ``labels`` (1, *S), the largest + 1; refuses those of fewer than two classes."""
    present = torch.unique(labels[labels != IGNORE])
    if len(present) and int(present[0]) < 0:
        raise UsageError(f"The labels of {name} must be 0 or more, or 255 where there is none; got {int(present[0])}.")
    if len(present) and int(present[-1]) > IGNORE:
        raise UsageError(f"The labels of {name} must be below 255, which means no label; got {int(present[-1])}.")
    if len(present) < 2:
        found = f"only class {int(present[0])}" if len(present) else "no pixel"
        raise UsageError(
            f"In the {name} {found} is labelled; give labels of at least two classes (background counts as one)."
        )
    return int(present[-1]) + 1


def checked_start(
    start: Tensor, shape: tuple[int, ...], phases: int | None, device: torch.device
) -> tuple[Tensor, int]:
    """Phases (1, *S) int64 to start from, and their number, which is as many as there are if ``phases`` is None.

    Raises:
        UsageError: another size, labels that are no phases, pixels of fewer than two of them.
    """
    check_labels(start, shape, phases)
    classes = check_classes(start, "start")
    return start.to(device, torch.int64), classes if phases is None else phases
