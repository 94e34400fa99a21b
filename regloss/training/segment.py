"""One image, a few scribbles, no network: a colour model or the seeds alone, a regularizer and a solver.

    min over labellings of   sum over pixels of -log p(colour | label) + R(labels; image)         scribbles given

The colour model of a class is a smoothed histogram of the colours under its scribbles, mixed with a uniform one, so
that a colour never seen costs something finite. Source: Boykov, Jolly, "Interactive graph cuts", ICCV 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.files import class_colors, read_image, read_scribble_map
from regloss.registry import check_settings, resolve
from regloss.regularizer import Regularizer, combine
from regloss.solver import Solution, negotiate, solve
from regloss.training.config import toml_value
from regloss.training.inference import check_new_folder, make_new_folder
from regloss.training.report import outlined, save_label_png

HISTOGRAM_BINS = 16  # per channel
HISTOGRAM_SPREAD = 0.06  # of the smoothing, in units of image values
UNIFORM_SHARE = 0.05  # of the uniform distribution in a class's colour model

_FILES = ("labels.png", "overlay.png")


@dataclass(frozen=True)
class Segmentation:
    """Result of `segment_file`: the labels (*S) uint8, the solver's `Solution`, and the files written."""

    labels: npt.NDArray[np.uint8]
    solution: Solution
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """The result in words."""
        solution = self.solution
        bound = float(solution.bound[0])
        certificate = f", lower bound {bound:.6g}" if np.isfinite(bound) else ""
        counts = np.bincount(self.labels.ravel(), minlength=2)
        return [
            f"energy {float(solution.energy[0]):.6g}{certificate}; {int(solution.steps[0])} steps; "
            f"{solution.status[0].value}",
            "pixels per class: " + ", ".join(f"{label}: {count}" for label, count in enumerate(counts)),
            *(f"wrote {path}" for path in self.files),
        ]


def colour_unaries(image: Tensor, seeds: Tensor, classes: int) -> Tensor:
    """-log p(colour | label) from the colours under the seeds.

    Args:
        image: (C, *S) in [0, 1], C of 1 to 3.
        seeds: (*S) int64, -1 where there is none; every class below ``classes`` needs at least one.
        classes: K.

    Returns:
        (K, *S) float32.

    Raises:
        UsageError: a class has no seed, or the image has more than three channels.
    """
    channels = image.shape[0]
    if channels > 3:
        raise UsageError(f"The colour model is for images of 1 to 3 channels; got {channels}. Use unary='uniform'.")
    bins = (image.numpy() * HISTOGRAM_BINS).astype(np.int64).clip(0, HISTOGRAM_BINS - 1)
    flat = np.ravel_multi_index(tuple(bins), (HISTOGRAM_BINS,) * channels)
    unaries = []
    for label in range(classes):
        colours = flat[(seeds == label).numpy()]
        if colours.size == 0:
            raise UsageError(
                f"Class {label} has no scribble, so it has no colour model. Scribble it, or use unary='uniform'."
            )
        counts = np.bincount(colours, minlength=HISTOGRAM_BINS**channels).astype(np.float64)
        smooth = ndimage.gaussian_filter(
            counts.reshape((HISTOGRAM_BINS,) * channels), HISTOGRAM_SPREAD * HISTOGRAM_BINS, mode="constant"
        )
        probability = (1 - UNIFORM_SHARE) * smooth.ravel() / smooth.sum() + UNIFORM_SHARE / smooth.size
        unaries.append(-np.log(probability)[flat])
    return torch.from_numpy(np.stack(unaries)).float()


def parse_component(kind: str, text: str) -> Any:
    """A component from ``NAME`` or ``NAME:setting=value,...``, as a command line gives it.

    >>> parse_component("regularizer", "grid-crf:weight=2,connectivity=4")
    GridCRF(weight=2, connectivity=4, sigma='auto', diagonal='distance', relaxation='bilinear')
    """
    # A qualified name (distribution:name) has a colon too, but no "=" behind it.
    name, colon, tail = text.partition(":")
    if colon and "=" not in tail.partition(":")[0]:
        second, _, rest = tail.partition(":")
        name, tail = f"{name}:{second}", rest
    chosen: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{kind} {text!r}: settings are written NAME:setting=value,setting=value.")
        chosen[key.strip().replace("-", "_")] = toml_value(value)
    check_settings(kind, name, chosen)
    return resolve(kind, {"name": name, **chosen})


def segment_file(
    path: Path,
    output: Path,
    *,
    scribbles: Path | None,
    regularizers: Sequence[str] = ("grid-crf:weight=5",),
    solver: str = "alpha-expansion",
    unary: str = "color",
    entropy: float = 0.0,
    overwrite: bool = False,
) -> Segmentation:
    """Segment one image from scribbles.

    Args:
        path: the image.
        output: folder for labels.png and overlay.png.
        scribbles: PNG of class indices, 255 = unlabelled, of the image's size.
        regularizers: ``NAME`` or ``NAME:setting=value,...``; they add up.
        solver: likewise.
        unary: "color" (histograms of the colours under the scribbles) or "uniform" (seeds alone).
        entropy: weight of the entropy, for solvers over probabilities.
        overwrite: replace the files of an earlier call.

    Raises:
        UsageError: files missing or of different sizes, no scribbles, one class seeded only, or a solver that cannot
            serve the regularizers.
    """
    if unary not in ("color", "uniform"):
        raise UsageError(f'unary must be "color" or "uniform"; got {unary!r}.')
    if scribbles is None:
        raise UsageError(
            "Give scribbles: a PNG of the image's size with class indices, 255 = unlabelled (--scribbles)."
        )
    check_new_folder(output, _FILES, overwrite=overwrite)
    image = read_image(path)
    names = [str(number) for number in range(IGNORE)]
    seeds_map = read_scribble_map(scribbles, names, image.shape[1:])
    if seeds_map.shape != image.shape[1:]:
        raise UsageError(
            f"{scribbles} has the size {seeds_map.shape}, {path} {image.shape[1:]} (height, width). They must agree."
        )
    present = np.unique(seeds_map[seeds_map != IGNORE])
    if present.size < 2:
        found = "no pixel" if present.size == 0 else f"only class {present[0]}"
        raise UsageError(f"{scribbles} labels {found}; scribble at least two classes (background counts as one).")
    classes = int(present.max()) + 1
    regularizer = combine([parse_component("regularizer", text) for text in regularizers])
    assert isinstance(regularizer, Regularizer)
    chosen_solver = parse_component("solver", solver)
    negotiate(regularizer, chosen_solver)

    seeds = torch.from_numpy(seeds_map.astype(np.int64))
    seeds[seeds == IGNORE] = -1
    tensor = torch.from_numpy(image)
    shape = (1, classes, *tensor.shape[1:])
    allowed = torch.zeros(1, classes, dtype=torch.bool)
    allowed[0, torch.from_numpy(present.astype(np.int64))] = True
    if unary == "color":
        # The colour model numbers the classes that are there without gaps.
        places = torch.from_numpy(np.searchsorted(present, seeds.clamp(min=0).numpy()))
        used = colour_unaries(tensor, places.masked_fill(seeds < 0, -1), present.size)
        unaries = torch.zeros(shape)
        unaries[0, allowed[0]] = used
    else:
        unaries = torch.zeros(shape)
    term = regularizer.bind(tensor.unsqueeze(0))
    solution = solve(term, unaries, chosen_solver, entropy=entropy, fixed=seeds.unsqueeze(0), allowed=allowed)
    make_new_folder(output, _FILES)
    labels = solution.labels[0].numpy().astype(np.uint8)
    colors = class_colors(classes)
    files = [output / name for name in _FILES]
    save_label_png(files[0], labels, colors)
    Image.fromarray(outlined(image, labels, colors)).save(files[1])
    return Segmentation(labels, solution, tuple(files))
