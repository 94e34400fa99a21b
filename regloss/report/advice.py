"""What to try when a run looks bad: in words, from what was measured.

Each rule looks at one thing that goes wrong in trainings with few labels, and says nothing where it does not. What is
said is what was found, with its numbers, and the first thing to try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regloss.metrics.confusion import iou_of
from regloss.metrics.labels import Counts, mean_of_defined
from regloss.report.numbers import percent, series

FEW_SEEDS = 20.0
"""Labelled pixels of a class, a mean over the images that hold any, below which they are few, ..."""
FEW_OF_IMAGE = 0.005
"""... unless they are more than this share of an image."""
RARELY_SEEN = 0.3
"""Share of a class's scribbles in a crop, by the share of the image in it, below which crops miss them."""
UNLEARNT = 0.7
"""Share of a class's labelled pixels that are predicted right below which the training has not fitted them."""
CONFUSED = 0.3
"""Share of a true class that is called another one, above which the two are confused."""
WORSE = 0.02
"""Mean IoU by which proposals may be worse than the network."""
NEW_IMAGES = 0.2
"""Mean IoU that may be lost between training images and others."""
STILL_FALLING = 0.9
"""The loss of the last tenth of the epochs by that of the tenth before it, below which more epochs help."""


@dataclass(frozen=True)
class Advice:
    """One thing that looks bad.

    Attributes:
        found: what was measured, a sentence.
        remedy: what to try, a sentence or two.
    """

    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.found} {self.remedy}"


@dataclass(frozen=True, eq=False)
class TrainingMeasures:
    """What the network and its proposals make of training images, after the training; K classes.

    Attributes:
        images: how many were looked at.
        compared: how many of them have dense labels.
        pixels: of all of them together.
        scribbles: whether the labels are scribbles, which say what they are of as a whole; else they are dense.
        labelled: (K,) labelled pixels of each class.
        labelled_images: (K,) images that hold labelled pixels of the class.
        in_crops: (K,) labelled pixels that a training crop holds, in the mean over its places.
        crop_share: share of an image that a crop holds, a mean; 1 without crops.
        at_labels: (K, K) labelled pixels by their class (rows) and by the prediction.
        prediction: (K, K) pixels by dense label and prediction; None where there are no dense labels.
        proposal: likewise by the last proposals; None where there are none.
    """

    images: int
    compared: int
    pixels: int
    scribbles: bool
    labelled: Counts
    labelled_images: Counts
    in_crops: npt.NDArray[np.float64]
    crop_share: float
    at_labels: Counts
    prediction: Counts | None = None
    proposal: Counts | None = None


def advice(
    classes: Sequence[str],
    scores: Mapping[str, Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
    measures: TrainingMeasures | None,
) -> list[Advice]:
    """What looks bad in a run, the causes before what follows from them; empty where nothing does.

    Args:
        classes: the K class names, background first.
        scores: for each subset what `regloss.metrics.scores.Scores.compute` returns.
        epochs: the log of epochs; see `regloss.report.page.write_report`.
        measures: of training images; None after a training without labels, whose classes have no names.
    """
    found: list[Advice] = []
    if measures is not None:
        if measures.scribbles:
            found += _scribbles(classes, measures)
        found += _proposals(measures)
        found += _labels_not_learnt(classes, measures)
        for subset, of in scores.items():
            if "confusion" in of:
                confusion = np.asarray(of["confusion"], dtype=np.int64)
                found += _confused(classes, subset, confusion)
                found += _other_images(subset, confusion, measures)
    found += _unfinished(epochs)
    return found


def _scribbles(classes: Sequence[str], measures: TrainingMeasures) -> Iterator[Advice]:
    """Classes without scribbles, with few, or with such as lie where a training hardly sees them."""
    few = []
    for index, name in enumerate(classes):
        pixels, images = int(measures.labelled[index]), int(measures.labelled_images[index])
        if images == 0:
            yield Advice(
                f"None of {measures.images} training images has a scribble of {name!r}.",
                "Scribble it where it occurs: what is never labelled is never learnt.",
            )
        elif index == 0 and 2 * images < measures.images:
            yield Advice(
                f"{name!r} is scribbled in {images} of {measures.images} training images.",
                "Scribble it in each of them, all kinds of it: it is the class that the others are told apart from.",
            )
        if pixels and measures.in_crops[index] < RARELY_SEEN * measures.crop_share * pixels:
            yield Advice(
                f"A training crop holds {percent(measures.in_crops[index] / pixels)} of the scribbles of {name!r}, in "
                f"the mean, and {percent(measures.crop_share)} of an image.",
                "Draw them away from the images' borders, where few crops reach, or take larger crops (data.crop).",
            )
        if images and pixels < min(FEW_SEEDS, FEW_OF_IMAGE * measures.pixels / measures.images) * images:
            few.append(f"{name!r} {pixels / images:.0f}")
    if few:
        yield Advice(
            f"Labelled pixels are few; in an image, in the mean: {', '.join(few)}.",
            "Draw longer strokes, over all that the class looks like; a click leaves the rest to the prior.",
        )


def _proposals(measures: TrainingMeasures) -> Iterator[Advice]:
    """Proposals that are worse than the network which they teach."""
    if measures.proposal is None or measures.prediction is None:
        return
    proposals, network = (mean_of_defined(iou_of(of)) for of in (measures.proposal, measures.prediction))
    if proposals < network - WORSE:
        yield Advice(
            f"The proposals are worse than the network: mean IoU {proposals:.3f} against {network:.3f} on "
            f"{measures.compared} training images.",
            "Lower the regularizer's weight, or raise the outer loop's coupling, which holds proposals at the network; "
            "begin with a network trained without them (training.start-from).",
        )


def _labels_not_learnt(classes: Sequence[str], measures: TrainingMeasures) -> Iterator[Advice]:
    """Labelled pixels that the network calls something else, in its own training images."""
    what = "scribbled" if measures.scribbles else "labelled"
    for index, name in enumerate(classes):
        row = measures.at_labels[index]
        total = int(row.sum())
        if not total or row[index] >= UNLEARNT * total:
            continue
        other = int(np.argmax(np.where(np.arange(len(row)) == index, -1, row)))
        yield Advice(
            f"{percent(row[other] / total)} of the pixels {what} as {name!r} in training images are called "
            f"{classes[other]!r} by the network.",
            "Train longer (training.epochs), with another learning rate, or with a smaller weight of the regularizer; "
            "if it stays, look whether the labels are right. The last thing to try is to learn from them alone first "
            "(training.warm-up), which takes these epochs from the whole loss.",
        )


def _confused(classes: Sequence[str], subset: str, confusion: Counts) -> Iterator[Advice]:
    """Classes that are never predicted, or that another one takes too much of."""
    total = int(confusion.sum())
    for index, row in enumerate(confusion):
        size = int(row.sum())
        if not size:
            continue
        name, most = classes[index], int(np.argmax(np.where(np.arange(len(row)) == index, -1, row)))
        if not confusion[:, index].any():
            yield Advice(
                f"{name!r} is never predicted on {subset}, where {percent(size / total)} of the pixels are of it; most "
                f"are called {classes[most]!r}.",
                "Look at its scribbles and at the proposals among the examples; class weights of the data term "
                "(loss.data-term.class-weights) help rare classes, a smaller weight of the regularizer thin ones.",
            )
        elif row[most] > CONFUSED * size:
            yield Advice(
                f"{percent(row[most] / size)} of {name!r} on {subset} is called {classes[most]!r}.",
                "Scribble both on either side of where they meet, in the images where it happens.",
            )


def _other_images(subset: str, confusion: Counts, measures: TrainingMeasures) -> Iterator[Advice]:
    """A network that knows its training images alone."""
    if measures.prediction is None:
        return
    seen, unseen = (mean_of_defined(iou_of(of)) for of in (measures.prediction, confusion))
    if unseen < seen - NEW_IMAGES:
        yield Advice(
            f"The mean IoU is {unseen:.3f} on {subset}, and {seen:.3f} on training images.",
            "Train on more images, few scribbles in each, or augment them more (data.augment); are the images of "
            f"{subset} of the same kind?",
        )


def _unfinished(epochs: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    """A training that ended while its loss fell."""
    _, loss = series(epochs, "epoch", "loss")
    tenth = len(loss) // 10
    if tenth < 2:  # one epoch's mean wavers too much
        return
    before, last = float(loss[-2 * tenth : -tenth].mean()), float(loss[-tenth:].mean())
    if 0 <= last < STILL_FALLING * before:
        yield Advice(
            f"The loss was still falling: {before:.3g}, then {last:.3g} in the last {tenth} of {len(loss)} epochs.",
            "Train longer (training.epochs).",
        )
