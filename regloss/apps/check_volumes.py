"""What is wrong with a data set of volumes, of the layouts `volumes` and `nnunet`: all of it at once, and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regloss.apps.check_data import Findings, LabelCounts, Understood
from regloss.dataset import IGNORE, Dataset, Sample
from regloss.errors import UsageError, listed
from regloss.io.folders import find_root, index_folder
from regloss.io.types import LabelMap
from regloss.io.volumes import STORED_SUFFIXES, is_volume
from regloss.registry import create

LAYOUTS = ("folder", "volumes", "nnunet")
"""Those that can be checked."""


def layout_of(root: Path) -> str:
    """The layout that a folder seems to have, "folder" where nothing speaks for another.

    Raises:
        UsageError: there is no such folder.
    """
    root = find_root(root)
    if (root / "dataset.json").is_file():
        return "nnunet"
    images = root / "images"
    inside = sorted(images.iterdir()) if images.is_dir() else []
    return "volumes" if any(_may_be_volume(path) for path in inside) else "folder"


def _may_be_volume(path: Path) -> bool:
    try:
        return is_volume(path)
    except UsageError:  # a damaged picture, which its own layout tells
        return False


class VolumesCheck:
    """A look at all files of a data set of volumes; nothing is written.

    Args:
        root: its folder.
        layout: "volumes" or "nnunet".
        settings: those of the data set that a configuration has; volumes are looked at as stored, whatever ``dims`` and
            ``spacing``.

    Attributes:
        root: as found.
        findings: what was found.
        faulty: ids of volumes with files that cannot be used.

    Raises:
        UsageError: there is no such folder.
    """

    def __init__(self, root: Path, layout: str, settings: Mapping[str, Any] | None = None) -> None:
        self.findings = Findings(find_root(root))
        self.root = self.findings.root
        self.faulty: list[str] = []
        whole = {key: value for key, value in (settings or {}).items() if key not in ("dims", "axis", "spacing")}
        try:
            self.dataset: Dataset | None = create("dataset", layout, root=self.root, **whole)
        except UsageError as error:
            self.dataset = None
            self.findings.add("layout", str(error))
            self.findings.notes.append("until this is mended, nothing more can be told")
            return
        self.findings.classes, self.findings.colors = tuple(self.dataset.classes), self.dataset.colors
        self.findings.samples = tuple(self.dataset.ids("all"))
        self.findings.notes += list(self.dataset.notes)
        if layout == "volumes":
            self._orphans({part: whole.get(part) or part for part in ("labels", "scribbles")})
        try:
            self.dataset.check("all", need=())
        except UsageError as error:
            for problem in str(error).splitlines():
                self.findings.add("files", problem)
        self._contents(self.dataset)

    def understood(self, sample_id: str) -> Understood:
        """The slice of a volume on which most is labelled, across the largest spacing."""
        assert self.dataset is not None
        try:
            sample = self.dataset.load(sample_id)
        except UsageError as error:
            return Understood(sample_id, None, None, None, str(error))
        axis = 0 if sample.spacing is None else int(np.argmax(sample.spacing))
        place = _telling_place(sample, axis)

        def cut(labels: LabelMap | None) -> LabelMap | None:
            return None if labels is None else np.ascontiguousarray(labels.take(place, axis))

        title = f"{sample_id}, slice {place} of {sample.image.shape[axis + 1]}"
        image = np.ascontiguousarray(sample.image.take(place, axis + 1))
        return Understood(title, image, cut(sample.scribble), cut(sample.label), "")

    def _orphans(self, folders: Mapping[str, Any]) -> None:
        for part, name in folders.items():
            folder = self.root / (part if isinstance(name, Mapping) else name)  # a map of values is no folder
            files = index_folder(folder, STORED_SUFFIXES) if folder.is_dir() else {}
            lost = [path.name for stem, path in files.items() if stem not in self.findings.samples]
            if lost:
                self.findings.add(part, f"{len(lost)} files have no image of their name: {listed(lost)}")

    def _contents(self, dataset: Dataset) -> None:
        kinds: Counter[tuple[tuple[int, ...], tuple[float, ...]]] = Counter()
        counts = {part: LabelCounts(part) for part in ("scribble", "label")}
        said = self.findings.problems.get("files", ())
        broken: dict[str, list[str]] = {}
        without, flat = [], []
        for sample_id in self.findings.samples:
            try:
                sample = dataset.load(sample_id)
            except UsageError as error:
                self.faulty.append(sample_id)
                if str(error) in said:
                    continue
                before, name, after = str(error).partition(sample_id)
                broken.setdefault(after if name else before, []).append(str(error))
                continue
            kinds[sample.image.shape, sample.spacing or ()] += 1
            if any(channel.min() == channel.max() for channel in sample.image):
                flat.append(sample_id)
            for part, labels in (("scribble", sample.scribble), ("label", sample.label)):
                if labels is not None:
                    counts[part].add(sample_id, labels)
            if sample.scribble is None and sample.label is None:
                without.append(sample_id)
        for messages in broken.values():
            more = f" (and {len(messages) - 1} others likewise)" if len(messages) > 1 else ""
            self.findings.add("files", f"{messages[0]}{more}")
        described = [
            f"{count} of {' x '.join(map(str, shape[1:]))}, {' x '.join(f'{step:g}' for step in spacing)} mm"
            for (shape, spacing), count in kinds.most_common()
        ]
        channels = f", {dataset.channels} channels" if dataset.channels > 1 else ""
        self.findings.facts.append(
            f"volumes: {len(self.findings.samples)}{channels}: {listed(described, 5)} (slices first)"
        )
        for found in counts.values():
            found.tell(self.findings, len(self.findings.samples), known=True)
        if flat:
            self.findings.add(
                "images", f"{len(flat)} volumes have one value everywhere: {listed(flat)}; is it a window?"
            )
        if len(without) == len(self.findings.samples):
            self.findings.add("scribbles", "no volume has scribbles or a label")
        elif without:
            self.findings.notes.append(
                f"{len(without)} of {len(self.findings.samples)} volumes have neither scribbles nor a label, and are "
                f"not trained on: {listed(without)}"
            )
        if len({spacing for _, spacing in kinds}) > 1:
            self.findings.notes.append(
                'volumes have several spacings; spacing = "median" resamples them, or training.batch-size = 1 takes '
                "them one by one"
            )


def _telling_place(sample: Sample, axis: int) -> int:
    """The number of the slice with the most labelled pixels, or else foreground, or the middle."""
    others = tuple(other for other in range(3) if other != axis)
    for drawn in (
        None if sample.scribble is None else sample.scribble != IGNORE,
        None if sample.label is None else (sample.label > 0) & (sample.label != IGNORE),
    ):
        if drawn is not None and drawn.any():
            return int(drawn.sum(others).argmax())
    return int(sample.image.shape[axis + 1] // 2)
