"""Samples from files: image, label map and scribbles that belong together, read, checked and reduced.

Every function takes what it needs as arguments and knows no folder layout; the layouts are the data sets' business.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from regloss.dataset import IGNORE, Sample
from regloss.errors import UsageError, listed
from regloss.io.annotations import foreign_annotations
from regloss.io.images import read_header, read_image
from regloss.io.labels import (
    LABEL_SUFFIXES,
    ValueMap,
    label_orientation,
    read_label_map,
    read_label_size,
    read_scribble_map,
)
from regloss.io.reduction import reduce_image, reduce_labels, reduce_scribbles
from regloss.io.types import Header, LabelMap, Size
from regloss.io.windows import Window

_T = TypeVar("_T")

MAX_SCRIBBLED = 0.33
"""Fraction of an image's pixels beyond which scribbles are taken for a mistake."""


@dataclass(frozen=True)
class SampleFiles:
    """Where the parts of one sample lie.

    Attributes:
        id: the sample's name.
        image: the image file.
        label: the dense label map, or None.
        scribble: the scribbles, or None.
        group: the unit that scores are averaged over.
    """

    id: str
    image: Path
    label: Path | None
    scribble: Path | None
    group: str

    def paths(self) -> list[Path]:
        """The files that there are."""
        return [path for path in (self.image, self.label, self.scribble) if path is not None]


ScribbleReader: TypeAlias = Callable[[Path, Sequence[str], Size], LabelMap]
"""Reads scribbles: file, class names, the image's (H, W) -> (H, W) uint8. `read_scribble_map` is the usual one."""


def subset_ids(subsets: Mapping[str, Sequence[str]], subset: str, where: str) -> tuple[str, ...]:
    """The ids of one subset.

    Args:
        subsets: ids by the subset's name.
        subset: the one that is asked for.
        where: what the subsets belong to, for the message.

    Raises:
        UsageError: there is no such subset, or it is empty.
    """
    if subset not in subsets:
        raise UsageError(f"{where} has no subset {subset!r}; there are {listed(map(repr, subsets))}")
    if not subsets[subset]:
        raise UsageError(f"subset {subset!r} of {where} is empty")
    return tuple(subsets[subset])


def find_sample(samples: Mapping[str, _T], sample_id: str, where: str) -> _T:
    """What belongs to one sample, its files, say.

    Raises:
        UsageError: there is no such id; the message offers similar ones.
    """
    if sample_id not in samples:
        near = difflib.get_close_matches(str(sample_id), samples, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"ids look like {next(iter(samples))!r}"
        raise UsageError(f"{where} has no image {sample_id!r}; {hint}")
    return samples[sample_id]


def load_sample(
    files: SampleFiles,
    *,
    classes: Sequence[str],
    channels: int,
    reduce: int = 1,
    read_scribble: ScribbleReader = read_scribble_map,
    label_values: ValueMap | None = None,
    window: Window | None = None,
) -> Sample:
    """Read, check and reduce one sample.

    Args:
        files: where it lies.
        classes: the K class names.
        channels: grey and RGB images are converted to 1 or 3; of other images it is the number that they have.
        reduce: integer factor of `reduce_image`, `reduce_labels` and `reduce_scribbles`.
        read_scribble: how scribble files are read.
        label_values: what values of the label map mean, where they are no class indices.
        window: which values of the image become 0 and 1.

    Raises:
        UsageError: a file cannot be read or is invalid, or the sizes differ.
    """
    image = read_image(files.image, channels, window)
    size = (image.shape[1], image.shape[2])
    label = scribble = None
    if files.label is not None:
        label = read_label_map(files.label, classes, label_values)
        _same_size(files.image, size, files.label, (label.shape[0], label.shape[1]))
    if files.scribble is not None:
        scribble = read_scribble(files.scribble, classes, size)
        _same_size(files.image, size, files.scribble, (scribble.shape[0], scribble.shape[1]))
    if reduce > 1:
        image = reduce_image(image, reduce)
        label = None if label is None else reduce_labels(label, reduce)
        scribble = None if scribble is None else reduce_scribbles(scribble, reduce)
    return Sample(files.id, image, label, scribble, files.group)


def _same_size(image: Path, image_size: Size, other: Path, other_size: Size) -> None:
    if image_size != other_size:
        header = read_header(image)
        turned = ""
        if header.orientation > 1 and header.stored_size == other_size:
            turned = (
                f": it has the orientation tag {header.orientation}, as photographs of turned cameras do, and is turned"
                " upright, while the other lies as the sensor has it. Save the image upright, without the tag, or turn "
                "the other file too"
            )
        raise UsageError(
            f"{other} is {other_size[0]} pixels high and {other_size[1]} wide, "
            f"but {image} is {image_size[0]} high and {image_size[1]} wide{turned}"
        )


def turned_note(samples: Iterable[SampleFiles], headers: Mapping[Path, Header]) -> str:
    """A sentence on images with an orientation tag of which no size tells whether their labels are turned too; or "".

    Those are square ones, upside-down ones and mirrored ones, with labels that carry no tag.

    Args:
        samples: what is looked at.
        headers: of the images.
    """
    found = []
    for files in samples:
        header = headers[files.image]
        if header.orientation == 1 or header.stored_size != header.size:
            continue
        mates = [path for path in (files.label, files.scribble) if path is not None]
        if mates and all(label_orientation(path) == 1 for path in mates if path.name.lower().endswith(LABEL_SUFFIXES)):
            found.append(f"{files.image.name} ({header.orientation})")
    if not found:
        return ""
    return (
        f"{len(found)} images have an orientation tag, and are turned upright; whether their labels are upright too, "
        f"cannot be told from their sizes. Look at the overlays: {listed(found)}"
    )


def check_samples(
    samples: Sequence[SampleFiles],
    need: Iterable[str],
    *,
    load: Callable[[str], Sample] | None = None,
    folders: Mapping[str, str] | None = None,
    complaints: Sequence[str] = (),
    splits: bool = False,
) -> None:
    """Look for what would stop a training run, and report all of it at once.

    Verified from the headers: that each sample has the parts in ``need``, that image, label and scribble have one
    size, that label maps are of the right kind. With ``load`` all samples are read too: label values, NaN, and, where
    scribbles are needed, that each image has some and that they name at least two classes.

    Args:
        samples: the samples of one subset.
        need: "label" and "scribble", those that must be there.
        load: reads a sample by id; None reads headers only.
        folders: where each part is expected, for the message.
        complaints: what the caller found by itself, to be reported along.
        splits: whether a setting ``split`` might choose among the samples, which the message then says.

    Raises:
        UsageError: something is wrong; each line lists the first ten cases and counts the rest.
    """
    wanted = tuple(need)
    unknown = [part for part in wanted if part not in ("label", "scribble")]
    if unknown:
        raise UsageError(f"need holds {listed(map(repr, unknown))}; it may hold 'label' and 'scribble'")
    problems = list(complaints)
    for part in wanted:
        missing = [files.id for files in samples if getattr(files, part) is None]
        if missing:
            where = f" in {folders[part]}" if folders else ""
            problems.append(f"{len(missing)} of {len(samples)} images have no {part} file{where}: {listed(missing)}")
            places = [
                samples[0].image.parent,
                *([Path(folders[part])] if folders else []),
                samples[0].image.parent.parent,
            ]
            foreign = foreign_annotations(places, missing)
            problems += [foreign] if foreign else []
    having = [files.id for files in samples if all(getattr(files, part) is not None for part in wanted)]
    if splits and 0 < len(having) < len(samples):
        named = ", ".join(f'"{name}"' for name in having[:30])
        problems.append(
            f"to use the {len(having)} that have what is needed, name them by the setting split: "
            f"split = {{train = [{named}{', ...' if len(having) > 30 else ''}]}}"
        )
    broken = _collect(_check_header, samples)
    if broken:
        problems.append(f"{len(broken)} of {len(samples)} samples have unusable files: {grouped(broken)}")
    if load is not None and not problems:
        problems += _check_contents(samples, load, scribbles="scribble" in wanted)
    if problems:
        raise UsageError("\n".join(problems))


def _collect(check: Callable[[SampleFiles], object], samples: Sequence[SampleFiles]) -> list[tuple[SampleFiles, str]]:
    """The samples that a check refuses, with its messages."""
    messages = []
    for files in samples:
        try:
            check(files)
        except UsageError as error:
            messages.append((files, str(error)))
    return messages


def grouped(messages: Sequence[tuple[SampleFiles, str]]) -> str:
    """Messages on samples; those that say the same of different files become one, with a list of the files."""
    return listed(grouped_list(messages))


def grouped_list(messages: Sequence[tuple[SampleFiles, str]]) -> list[str]:
    """As `grouped`, one text for each."""
    said: dict[str, list[Path]] = {}
    for files, message in messages:
        about = next((path for path in (files.label, files.scribble, files.image) if _begins(message, path)), None)
        if about is None:
            said[message] = []
        else:
            said.setdefault(message[len(str(about)) :], []).append(about)
    words = []
    for rest, paths in said.items():
        if len(paths) < 2:
            words.append(f"{paths[0] if paths else ''}{rest}")
        else:
            words.append(
                f"each of {len(paths)} files{rest}: {listed([path.name for path in paths])} in {paths[0].parent}"
            )
    return words


def _begins(message: str, path: Path | None) -> bool:
    return path is not None and message.startswith(f"{path} ")


def _check_header(files: SampleFiles) -> None:
    size = read_header(files.image).size
    for path in (files.label, files.scribble):
        if path is not None and path.name.lower().endswith(LABEL_SUFFIXES):
            _same_size(files.image, size, path, read_label_size(path))


def _check_contents(samples: Sequence[SampleFiles], load: Callable[[str], Sample], *, scribbles: bool) -> Iterator[str]:
    seeded: Counter[int] = Counter()
    empty: list[str] = []

    def read(files: SampleFiles) -> None:
        scribble = load(files.id).scribble
        if scribble is not None:
            values = np.unique(scribble[scribble != IGNORE])
            seeded.update(int(value) for value in values)
            if not values.size:
                empty.append(files.id)

    broken = _collect(read, samples)
    if broken:
        yield f"{len(broken)} of {len(samples)} samples cannot be used: {grouped(broken)}"
    if scribbles and empty:
        yield f"{len(empty)} of {len(samples)} scribble files label no pixel at all: {listed(empty)}"
    if scribbles and not broken and len(seeded) == 1:
        yield f"all scribbles are of class {next(iter(seeded))}; training needs at least two classes with scribbles"
