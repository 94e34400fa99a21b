"""What is asked of the samples of a data set before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regloss.dataset import IGNORE
from regloss.errors import UsageError, listed
from regloss.io.samples import MAX_SCRIBBLED
from regloss.training.survey import Survey


def check_training_samples(
    survey: Survey, ids: Sequence[str], supervision: str, max_scribbled: float = MAX_SCRIBBLED
) -> list[str]:
    """Check every training sample.

    Args:
        survey: knows what is in them.
        ids: of the samples.
        supervision: "scribbles", "labels" or "none".
        max_scribbled: largest fraction of an image's pixels that scribbles may label.

    Returns:
        Warnings worth telling: images in which only one class is labelled.

    Raises:
        UsageError: a sample breaks the contract, or has no labelled pixel at all; or all are of one class; or scribbles
            label more than ``max_scribbled``.
    """
    empty, single = [], []
    seeded: set[int] = set()
    facts = survey(ids, supervision)
    for sample_id, found in facts.items():
        if supervision == "none" or sample_id in survey.reader.unlabelled:
            continue  # reading has checked the image
        seeded.update(found.classes)
        if not found.classes:
            empty.append(sample_id)
        elif len(found.classes) == 1 and supervision == "scribbles":
            single.append(sample_id)
    if supervision == "scribbles":
        _check_scribbled({sample_id: found.scribbled for sample_id, found in facts.items()}, max_scribbled)
    if empty:
        raise UsageError(
            f"{len(empty)} training images have no labelled pixel in their {supervision}: {listed(empty)}. "
            "Label them, or leave them out of the split."
        )
    if len(seeded) == 1:
        (only,) = seeded
        raise UsageError(
            f"All {supervision} of the training images are of class {only} ({survey.classes[only]!r}), so there "
            "is nothing to tell apart. Label at least two classes, background among them."
            + _other_meaning(survey, ids, supervision, only)
        )
    if single:
        return [f"In {len(single)} images only one class is seeded, so proposals may take any class: {listed(single)}."]
    return []


def check_spacings(survey: Survey, ids: Sequence[str], supervision: str, batch_size: int) -> None:
    """Raise `UsageError` where training samples have no one spacing, as those of a batch must."""
    found: dict[tuple[float, ...] | None, list[str]] = {}
    for sample_id, facts in survey(ids, supervision).items():
        found.setdefault(facts.spacing, []).append(sample_id)
    if batch_size > 1 and len(found) > 1:
        told = [f"{spacing} mm: {len(some)} ({some[0]}, say)" for spacing, some in found.items()]
        raise UsageError(
            f"The training images have {len(found)} spacings ({listed(told, 4)}), and those of a batch must have one. "
            "Take batches of one image (training.batch-size = 1), or resample the images to one spacing."
        )


def _check_scribbled(scribbled: Mapping[str, float], largest: float) -> None:
    """Scribbles that label most of an image are masks, or have another value where nothing was drawn."""
    many = [sample_id for sample_id, fraction in scribbled.items() if fraction > largest]
    if many:
        most = max(scribbled[sample_id] for sample_id in many)
        raise UsageError(
            f"In {len(many)} of {len(scribbled)} training images scribbles label more than {100 * largest:.0f} % of "
            f"the pixels, up to {100 * most:.0f} %: {listed(many)}. If another value than {IGNORE} means that nothing "
            "was drawn, give it (data.unlabelled = 0, for the data set folder); if these are dense labels, learn them "
            'as such (data.supervision = "labels"); if it is meant, say so: data.max-scribbled = '
            f"{min(most + 0.005, 1):.2f}."
        )


def _other_meaning(survey: Survey, ids: Sequence[str], supervision: str, only: int) -> str:
    """What to do where only one class is labelled because 255 stands for another; "" if no label is 255."""
    if not any(facts.ignored for facts in survey(ids, supervision).values()):
        if supervision != "scribbles":
            return ""
        return (
            f" {IGNORE} means that nothing was drawn; where it is a class, say what values mean: data.scribble-values "
            f"= {_map_with_ignored(survey.classes, only)}."
        )
    return (
        f" The labels also hold {IGNORE}, which means no label; where it is a class, say what values mean: "
        f"data.label-values = {_map_with_ignored(survey.classes, only)}."
    )


def _map_with_ignored(classes: Sequence[str], only: int) -> str:
    """The value map in which 255 is the class that is not there."""
    other = next((name for index, name in enumerate(classes) if index != only), "...")
    return f'{{{only} = "{classes[only]}", {IGNORE} = "{other}"}}'


def check_evaluation_samples(survey: Survey, subset: str) -> None:
    """Check every sample of ``subset``.

    Raises:
        UsageError: a sample breaks the contract or has no dense label, or there is none; or labels hold one class and
            255 alone, as masks of 0 and 255 do, of which only the background would be scored.
    """
    ids = survey.reader.source.ids(subset)
    if not ids:
        raise UsageError(f"The subset {subset!r} of the data set is empty: there is nothing to evaluate.")
    facts = survey(ids, "labels").values()
    classes = sorted({label for found in facts for label in found.classes})
    if len(classes) < 2 and any(found.ignored for found in facts):
        told = f"{classes[0]} ({survey.classes[classes[0]]!r}) and {IGNORE}" if classes else f"{IGNORE}"
        raise UsageError(
            f"The labels of {subset!r} hold {told} alone, and {IGNORE} is left out of the scores, so that there is "
            "nothing to tell apart. If it is a class, as in masks of 0 and 255, say what values mean: "
            f"data.label-values = {_map_with_ignored(survey.classes, classes[0] if classes else 0)}."
        )
