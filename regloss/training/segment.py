"""One image, no network: a region force, a regularizer and a solver; with scribbles or without any label.

    min over labellings and statistics of   region force(labels, statistics; image) + R(labels; image)

With scribbles, these are the seeds, and the statistics are those of the colours under them. Without, k-means on the
colours gives the phases to start from, and statistics and labels are found in turn; see `regloss.alternate`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from regloss.alternation import Alternation, HalfStep, alternate
from regloss.dataset import IGNORE
from regloss.deep_segmentation import STARTS, deep_chan_vese, start_labels
from regloss.errors import UsageError
from regloss.io.images import read_image
from regloss.io.labels import read_scribble_map, save_label_png
from regloss.io.outputs import check_new_folder, make_new_folder
from regloss.io.palettes import class_colors
from regloss.io.types import FloatImage, LabelMap
from regloss.region_force import RegionForce, phases_by_color
from regloss.registry import check_settings, name_of, resolve
from regloss.regularizer import Regularizer, combine
from regloss.report.convergence import Convergence
from regloss.report.overlays import outlined
from regloss.solver import Solution, Solver, negotiate, one_hot, solve
from regloss.training.config import toml_value
from regloss.training.deep_segment import NAME as DEEP
from regloss.training.deep_segment import DeepSegmentation, deep_segment_file

MAX_ROUNDS = 50

_FILES = ("labels.png", "overlay.png", "masks", "convergence.csv", "convergence.png")


@dataclass(frozen=True)
class Method:
    """Components that go together; whatever is given beside a method's name replaces its own."""

    region_force: str
    regularizers: tuple[str, ...]
    solver: str = "alpha-expansion"
    entropy: float = 0.0


METHODS: Mapping[str, Method] = {
    # Its unaries are squared distances of colours in [0, 1], those of the others are nats: hence the weights.
    "chan-vese": Method("chan-vese", ("tv:weight=0.1",)),
    "region-competition": Method("gaussian", ("grid-crf:weight=5",)),
    "graph-cut": Method("histogram", ("grid-crf:weight=5",)),
}
"""Methods of the literature by name."""


@dataclass(frozen=True)
class Segmentation:
    """Result of `segment_file`.

    Attributes:
        labels: (*S) uint8.
        solution: the solver's last `Solution`, with its certificate.
        files: what was written.
        alternation: rounds and statistics; None where no region force took part.
        means: (K, C) mean colour of each phase; None for scribbles, whose classes have names of their own.
    """

    labels: LabelMap
    solution: Solution
    files: tuple[Path, ...]
    alternation: Alternation | None = None
    means: npt.NDArray[np.float64] | None = None

    def lines(self) -> list[str]:
        """The result in words."""
        solution, bound = self.solution, float(self.solution.bound[0])
        certificate = f", lower bound {bound:.6g}" if np.isfinite(bound) else ""
        work, status = f"{int(solution.steps[0])} steps", solution.status[0]
        if self.alternation is not None and len(self.alternation.history) > 2:
            certificate += " for the last statistics" if certificate else ""
            work, status = f"{int(self.alternation.rounds[0])} rounds", self.alternation.status[0]
        counts = np.bincount(self.labels.ravel(), minlength=2)
        lines = [
            f"energy {float(solution.energy[0]):.6g}{certificate}; {work}; {status.value}",
            "pixels per class: " + ", ".join(f"{label}: {count}" for label, count in enumerate(counts)),
        ]
        if self.means is not None:
            colours = ["(" + ", ".join(f"{value:.3f}" for value in mean) + ")" for mean in self.means]
            lines.append("mean colours: " + ", ".join(f"{label}: {text}" for label, text in enumerate(colours)))
        return lines + [f"wrote {path}" for path in self.files]


def parse_component(kind: str, text: str) -> Any:
    """A component from ``NAME`` or ``NAME:setting=value,...``, as a command line gives it.

    >>> parse_component("regularizer", "grid-crf:weight=2,connectivity=4")
    GridCRF(weight=2, connectivity=4, sigma='auto', diagonal='distance', relaxation='bilinear')
    >>> parse_component("region-force", "chan-vese:scale=[1, 2]")
    ChanVese(scale=(1, 2))
    """
    # A qualified name (distribution:name) has a colon too, but no "=" behind it.
    name, colon, tail = text.partition(":")
    if colon and "=" not in tail.partition(":")[0]:
        second, _, rest = tail.partition(":")
        name, tail = f"{name}:{second}", rest
    chosen: dict[str, Any] = {}
    for part in filter(None, _settings(tail)):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{kind} {text!r}: settings are written NAME:setting=value,setting=value.")
        chosen[key.strip().replace("-", "_")] = toml_value(value)
    check_settings(kind, name, chosen)
    return resolve(kind, {"name": name, **chosen})


def parse_settings(text: str, function: Callable[..., object], reserved: Sequence[str]) -> dict[str, Any]:
    """The settings in ``NAME:setting=value,...``, for a function's arguments other than ``reserved``.

    Raises:
        UsageError: one that the function does not have.

    >>> parse_settings("deep-chan-vese:max-steps=20", deep_chan_vese, ("image",))
    {'max_steps': 20}
    """
    known = [name for name in inspect.signature(function).parameters if name not in reserved]
    chosen: dict[str, Any] = {}
    name, _, tail = text.partition(":")
    for part in filter(None, _settings(tail)):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"{text!r}: settings are written NAME:setting=value,setting=value.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{name} has no setting {key!r}.{hint} Its settings are: {', '.join(known)}.")
        chosen[key] = toml_value(value)
    return chosen


def _settings(text: str) -> list[str]:
    """``text`` split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def segment_file(
    path: Path,
    output: Path,
    *,
    scribbles: Path | None = None,
    phases: int | None = None,
    start: Path | str | None = None,
    method: str | None = None,
    region_force: str | None = None,
    regularizers: Sequence[str] | None = None,
    solver: str | None = None,
    unary: str = "color",
    entropy: float | None = None,
    max_rounds: int | None = None,
    coupling: str | None = None,
    refine: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    tell: Callable[[str], object] | None = None,
) -> Segmentation | DeepSegmentation:
    """Segment one image from scribbles, or into phases.

    Args:
        path: the image.
        output: folder for labels.png and overlay.png; without scribbles also masks/, a mask for each phase; where an
            energy was followed also convergence.csv and convergence.png.
        scribbles: PNG of class indices, 255 = unlabelled, of the image's size.
        phases: how many, at least 2, where there are no scribbles; None = 2, or as many as ``start`` has.
        start: PNG of phase indices to start from instead of k-means, 255 = no opinion; or a name in `STARTS`.
        method: a name in `METHODS`; None = "graph-cut" with scribbles, else the one with the given region force, else
            "chan-vese". Or "deep-chan-vese" or ``deep-chan-vese:setting=value,...``, which fits networks to the image:
            see `regloss.deep_chan_vese` for its settings, and `deep_segment_file` for what it writes.
        region_force: ``NAME`` or ``NAME:setting=value,...`` instead of the method's.
        regularizers: likewise; they add up.
        solver: likewise.
        unary: "color", or "uniform" for seeds alone, with no region force.
        entropy: weight of the entropy, for solvers over probabilities, instead of the method's.
        max_rounds: how often labels are solved for; None = once with scribbles, 50 times at most without.
        coupling: of "deep-chan-vese": "splitting", "gradient-descent" or "layer".
        refine: of "deep-chan-vese": "guided", the guided filter.
        seed: of k-means.
        overwrite: replace the files of an earlier call.
        tell: called with a line for each round, if there may be several.

    Raises:
        UsageError: files missing or of different sizes, neither scribbles nor phases, one class seeded only, fewer
            colours than phases, or a solver that cannot serve the regularizers.
    """
    if unary not in ("color", "uniform"):
        raise UsageError(f'unary must be "color" or "uniform"; got {unary!r}.')
    if method is not None and method.partition(":")[0] == DEEP:
        strangers = {
            "scribbles": scribbles,
            "region force": region_force,
            "regularizer": regularizers,
            "solver": solver,
            "entropy": entropy,
            "rounds": max_rounds,
            'unary "uniform"': unary == "uniform" or None,
        }
        found = [name for name, value in strangers.items() if value]
        if found:
            raise UsageError(
                f"{DEEP} has its own data term and regularizer and knows no {' or '.join(found)}. Its settings are "
                f"written behind its name: {DEEP}:weight=10,max-steps=200."
            )
        settings = parse_settings(method, deep_chan_vese, ("image", "phases", "start", "seed", "tell"))
        return deep_segment_file(
            path,
            output,
            phases=phases,
            start=start,
            refine=refine,
            settings=settings if coupling is None else {**settings, "coupling": coupling},
            seed=seed,
            overwrite=overwrite,
            tell=tell,
        )
    if coupling is not None or refine is not None:
        raise UsageError(f"coupling and refine belong to the method {DEEP}.")
    free = phases is not None or start is not None or method is not None or region_force is not None
    if scribbles is None and not free:
        raise UsageError(
            "Give scribbles: a PNG of the image's size with class indices, 255 = unlabelled (--scribbles). Or let "
            "colours decide: say how many phases there are (--phases 2)."
        )
    if scribbles is not None and (phases is not None or start is not None):
        raise UsageError("With scribbles these are the start, and say how many classes there are. Leave --phases out.")
    if unary == "uniform" and (scribbles is None or region_force is not None or method is not None):
        raise UsageError('unary "uniform" means seeds alone: give scribbles, and neither method nor region force.')
    if max_rounds is None:
        max_rounds = MAX_ROUNDS if scribbles is None else 1
    chosen = _method(method, region_force, scribbles is not None)
    check_new_folder(output, _FILES, overwrite=overwrite)
    image = read_image(path)
    force: RegionForce | None = None
    if unary == "color":
        force = parse_component("region-force", region_force or chosen.region_force)
    regularizer = combine([parse_component("regularizer", text) for text in regularizers or chosen.regularizers])
    assert isinstance(regularizer, Regularizer)
    chosen_solver: Solver = parse_component("solver", solver or chosen.solver)
    negotiate(regularizer, chosen_solver)
    entropy = chosen.entropy if entropy is None else entropy

    tensor = torch.from_numpy(image).unsqueeze(0)
    fixed, allowed = None, None
    if scribbles is not None:
        begin, fixed, allowed = _seeds(scribbles, path, image)
    else:
        begin = _phases(tensor, start, path, image, phases, seed)
    classes = begin.shape[1]

    convergence = Convergence()

    def told(step: HalfStep) -> None:
        convergence.tell(step)
        if tell is not None and step.half == "labels" and max_rounds > 1:
            tell(f"round {step.round}: energy {float(step.energy[0]):.6g}")

    alternation: Alternation | None = None
    if force is None:
        term = regularizer.bind(tensor)
        solution = solve(
            term,
            torch.zeros_like(begin),
            chosen_solver,
            entropy=entropy,
            fixed=fixed,
            allowed=allowed,
            observe=convergence.observe,
        )
    else:
        alternation = alternate(
            force,
            regularizer,
            chosen_solver,
            tensor,
            begin,
            entropy=entropy,
            fixed=fixed,
            allowed=allowed,
            max_rounds=max_rounds,
            tell=told,
            observe=convergence.observe,
        )
        solution = alternation.solution
    labels = solution.labels[0].numpy().astype(np.uint8)
    files = _write(output, image, labels, classes, convergence, masks=scribbles is None)
    means = _mean_colors(image, labels, classes) if scribbles is None else None
    return Segmentation(labels, solution, files, alternation, means)


def _method(name: str | None, region_force: str | None, scribbled: bool) -> Method:
    if name is not None:
        if name not in METHODS:
            raise UsageError(f"There is no method called {name!r}. Known: {', '.join(METHODS)}.")
        return METHODS[name]
    if region_force is not None:
        force = name_of(parse_component("region-force", region_force))
        fitting = [method for method in METHODS.values() if method.region_force == force]
        return fitting[0] if fitting else METHODS["graph-cut"]
    return METHODS["graph-cut" if scribbled else "chan-vese"]


def _read_labels(path: Path, of: Path, image: FloatImage) -> LabelMap:
    labels = read_scribble_map(path, [str(number) for number in range(IGNORE)], image.shape[1:])
    if labels.shape != image.shape[1:]:
        raise UsageError(
            f"{path} has the size {labels.shape}, {of} {image.shape[1:]} (height, width). They must agree."
        )
    return labels


def _one_hot(labels: LabelMap, classes: int) -> Tensor:
    """(1, K, *S), all 0 where there is no label."""
    given = torch.from_numpy(labels != IGNORE).unsqueeze(0)
    indices = torch.from_numpy(labels.astype(np.int64)).unsqueeze(0).masked_fill(~given, 0)
    return one_hot(indices, classes, torch.float32) * given.unsqueeze(1)


def _seeds(path: Path, of: Path, image: FloatImage) -> tuple[Tensor, Tensor, Tensor]:
    """Scribbles as start (1, K, *S), seeds (1, *S) and allowed labels (1, K)."""
    labels = _read_labels(path, of, image)
    present = np.unique(labels[labels != IGNORE])
    if present.size < 2:
        found = "no pixel" if present.size == 0 else f"only class {present[0]}"
        raise UsageError(f"{path} labels {found}; scribble at least two classes (background counts as one).")
    classes = int(present.max()) + 1
    fixed = torch.from_numpy(labels.astype(np.int64)).unsqueeze(0)
    allowed = torch.zeros(1, classes, dtype=torch.bool)
    allowed[0, torch.from_numpy(present.astype(np.int64))] = True
    return _one_hot(labels, classes), fixed.masked_fill(fixed == IGNORE, -1), allowed


def _phases(
    tensor: Tensor, start: Path | str | None, of: Path, image: FloatImage, phases: int | None, seed: int
) -> Tensor:
    """Where to start (1, K, *S): the labels of a file, or those of a named start."""
    if start is None or str(start) in STARTS:
        wanted = 2 if phases is None else phases
        if wanted > IGNORE:
            raise UsageError(f"There can be at most {IGNORE} phases; got {wanted}.")
        if start is None:
            return one_hot(phases_by_color(tensor, wanted, seed=seed), wanted, torch.float32)
        return one_hot(start_labels(tensor, wanted, str(start), seed), wanted, torch.float32)
    labels = _read_labels(Path(start), of, image)
    present = np.unique(labels[labels != IGNORE])
    if present.size < 2:
        found = "no pixel" if present.size == 0 else f"all pixels {present[0]}"
        raise UsageError(f"{start} labels {found}; to start from, it needs pixels of at least two phases.")
    classes = int(present.max()) + 1
    if phases is not None and phases != classes:
        raise UsageError(f"{start} has the phases 0 to {classes - 1}, but {phases} phases are asked for.")
    return _one_hot(labels, classes)


def _mean_colors(image: FloatImage, labels: LabelMap, classes: int) -> npt.NDArray[np.float64]:
    """(K, C); NaN where a phase has no pixels any more."""
    flat, places = image.reshape(len(image), -1), labels.ravel()
    counts = np.bincount(places, minlength=classes)
    sums = np.stack([np.bincount(places, weights=channel, minlength=classes) for channel in flat], axis=1)
    means: npt.NDArray[np.float64] = np.full(sums.shape, np.nan)
    np.divide(sums, counts[:, None], out=means, where=counts[:, None] > 0)
    return means


def _write(
    output: Path, image: FloatImage, labels: LabelMap, classes: int, convergence: Convergence, *, masks: bool
) -> tuple[Path, ...]:
    make_new_folder(output, _FILES)
    colors = class_colors(classes)
    files = [output / "labels.png", output / "overlay.png"]
    save_label_png(files[0], labels, colors)
    Image.fromarray(outlined(image, labels, colors)).save(files[1])
    if masks:
        (output / "masks").mkdir()
        for phase in range(classes):
            files.append(output / "masks" / f"phase-{phase}.png")
            Image.fromarray(np.where(labels == phase, np.uint8(255), np.uint8(0))).save(files[-1])
    if convergence.has_curve():
        files += [output / "convergence.csv", output / "convergence.png"]
        convergence.write_table(files[-2])
        convergence.write_chart(files[-1])
    return tuple(files)
