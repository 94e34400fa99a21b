"""What a user may say of a folder of images, whatever their format: which class, group and subset is meant.

Shared by the data sets whose files belong together by their stem.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from regloss.errors import UsageError, listed
from regloss.io.classes import MAX_CLASSES, read_classes
from regloss.io.folders import find_file
from regloss.io.foreign.cvat import read_labelmap
from regloss.io.labels import label_values as values_in
from regloss.io.palettes import Color, class_colors
from regloss.io.toml import read_toml
from regloss.io.types import PathLike

_DISJOINT = ("train", "val", "test")


def choose_groups(stems: Iterable[str], group: str | None) -> dict[str, str]:
    """The group of each stem: what the expression ``group`` captures in it, or the stem itself without one.

    Raises:
        UsageError: it is no regular expression with one capturing group, or does not match a stem.
    """
    stems = tuple(stems)
    if group is None:
        return {stem: stem for stem in stems}
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise UsageError(f"group = {group!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise UsageError(
            f"group = {group!r} has {pattern.groups} capturing groups; it needs one, for instance '^(patient\\d+)'"
        )
    found = {stem: pattern.search(stem) for stem in stems}
    groups = {stem: match.group(1) for stem, match in found.items() if match is not None and match.group(1)}
    missed = [stem for stem in stems if stem not in groups]
    if missed:
        raise UsageError(f"group = {group!r} does not match {len(missed)} ids: {listed(missed)}")
    return groups


# -- Classes -----------------------------------------------------------------------------------------------------------


def choose_classes(
    root: Path, classes: PathLike | Sequence[str] | int | None, label_files: Sequence[Path]
) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Names and colours of the classes: of a TOML file, names, or a number; by default of ``root/classes.toml``.

    Raises:
        UsageError: they are not known, and then the message says what values ``label_files`` hold; fewer than two or
            too many; two of one name.
    """
    if classes is None:
        path = root / "classes.toml"
        if not path.is_file():
            raise UsageError(_no_classes(root, label_files))
        names, colors = read_classes(path)
    elif isinstance(classes, str | os.PathLike):
        path = find_file(classes, root, "class file")
        if path.suffix.lower() == ".txt":
            table = read_labelmap(path)
            names, colors = tuple(table.values()), tuple(table)
        else:
            names, colors = read_classes(path)
    elif isinstance(classes, int) and not isinstance(classes, bool):
        names = ("background", *(f"class {index}" for index in range(1, classes)))[: max(classes, 0)]
        colors = class_colors(len(names))
    elif isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes):
        names, colors = tuple(classes), class_colors(len(classes))
    else:
        raise UsageError(f"classes = {classes!r}: expected a TOML file, a list of names, or the number of classes")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UsageError(f"there are {len(names)} classes; needed are 2 (background and one more) to {MAX_CLASSES}")
    double = sorted({name for name in names if names.count(name) > 1})
    if double or "" in names:
        raise UsageError(f"class names must differ and not be empty, but {listed(map(repr, double or ['']))} does not")
    return names, colors


def _no_classes(root: Path, label_files: Sequence[Path]) -> str:
    first = label_files[:50]
    found = f" The first {len(first)} label files hold the values {listed(values_in(first), 30)}." if first else ""
    return (
        f"the classes of {root} are not known. Write {root / 'classes.toml'} with three lines for each class, in the "
        "order of the indices:\n\n"
        '    [[class]]\n    name = "background"\n    color = [0, 0, 0]\n\n'
        f'or give the names: classes = ["background", ...].{found}'
    )


# -- Subsets -----------------------------------------------------------------------------------------------------------


def choose_subsets(
    root: Path, split: PathLike | Mapping[str, Sequence[str]] | None, names: Mapping[str, Collection[str]]
) -> dict[str, tuple[str, ...]]:
    """Ids by subset, as ``split`` has them: a TOML file, or its contents; without one, all are "train".

    Args:
        root: the data set's folder.
        split: lists of entries by subset. An entry is an id, a pattern of ids, or another name of samples.
        names: other names of each id, of its group, say.

    Raises:
        UsageError: an entry matches nothing, a subset is no list, or train, val and test have samples in common.
    """
    everything = tuple(names)
    if split is None:
        return {"train": everything, "all": everything}
    entries: Mapping[str, Any]
    if isinstance(split, Mapping):
        where, entries = "the split", split
    else:
        path = find_file(split, root, "split file")
        where, entries = str(path), read_toml(path)
    wrong = [name for name, value in entries.items() if not _is_names(value)]
    if wrong:
        raise UsageError(f"{where}: {listed(map(repr, wrong))} must be a list of ids, patterns or group names")
    if "all" in entries:
        raise UsageError(f"{where}: 'all' is always every image and cannot be set; choose another name")
    subsets: dict[str, tuple[str, ...]] = {}
    unmatched: list[str] = []
    for name, patterns in entries.items():
        matches = {pattern: _matching(pattern, names) for pattern in patterns}
        unmatched += [f"{pattern!r} ({name})" for pattern, ids in matches.items() if not ids]
        subsets[name] = tuple(sorted(set().union(*matches.values())))
    if unmatched:
        raise UsageError(f"{where}: these entries match no image of {root}: {listed(unmatched)}")
    for position, one in enumerate(_DISJOINT):
        for other in _DISJOINT[position + 1 :]:
            both = sorted(set(subsets.get(one, ())) & set(subsets.get(other, ())))
            if both:
                raise UsageError(f"{where}: {len(both)} images are both in {one!r} and in {other!r}: {listed(both)}")
    return subsets | {"all": everything}


def _is_names(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value)


def _matching(entry: str, names: Mapping[str, Collection[str]]) -> set[str]:
    return {key for key, others in names.items() if entry == key or entry in others or fnmatchcase(key, entry)}
