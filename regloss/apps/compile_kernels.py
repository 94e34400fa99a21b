"""What `regloss compile` does: solve a tiny problem of each kind, so that all kernels are compiled and on disk.

Kernels are compiled where they are first called, for the types that they are called with. Problems here are of single
precision, as a training's are, on images of one channel and of three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import regloss
from regloss.checks import check_choice
from regloss.regularizer import Regularizer

_SIDE = 24  # below this a solver leaves out what it has for large images


def _image(channels: int = 3, shape: Sequence[int] = (_SIDE, _SIDE)) -> torch.Tensor:
    return torch.rand(1, channels, *shape, generator=torch.Generator().manual_seed(0))


def _scores(classes: int = 3, shape: Sequence[int] = (_SIDE, _SIDE)) -> torch.Tensor:
    return torch.rand(1, classes, *shape, generator=torch.Generator().manual_seed(1))


def _solve(regularizer: Regularizer, solver: str, classes: int = 3, shape: Sequence[int] = (_SIDE, _SIDE)) -> None:
    term = regularizer.bind(_image(3, shape))
    regloss.solve(term, _scores(classes, shape), regloss.create("solver", solver))


def _regularizer(name: str, **settings: Any) -> Regularizer:
    found: Regularizer = regloss.create("regularizer", name, **settings)
    return found


def _layer(regularizer: Regularizer) -> None:
    layer = regloss.create("layer", "softmax", regularizer=regularizer)
    layer(_scores().requires_grad_(), _image()).sum().backward()


def _dense_crf() -> None:
    for channels in (1, 3):
        for classes in (2, 21):  # rows of 8 and of 24 numbers
            term = _regularizer("dense-crf", backend="lattice").bind(_image(channels))
            term.energy(_scores(classes).softmax(1))


def _segment() -> None:
    scribbles = torch.full((1, _SIDE, _SIDE), 255)
    scribbles[:, 4:8, 4:20], scribbles[:, 16:20, 4:20] = 0, 1
    regloss.create("segmenter", "scribble-cut")(_image(), scribbles=scribbles)


def _volumes() -> None:
    for classes in (2, 3):
        _solve(_regularizer("grid-crf"), "alpha-expansion", classes, (6, 10, 10))


def _tv() -> None:
    for isotropic in (False, True):
        _layer(_regularizer("tv", isotropic=isotropic))


def _nltv() -> None:
    for window in (None, 3):
        _layer(_regularizer("nltv", neighbors=4, window=window))


def _tree_energy() -> None:
    _regularizer("tree-energy").bind(_image()).energy(_scores().softmax(1))


FAMILIES: dict[str, Callable[[], None]] = {
    "two-labels": lambda: _solve(_regularizer("grid-crf"), "alpha-expansion", classes=2),
    "labels": lambda: _solve(_regularizer("grid-crf"), "alpha-expansion"),
    "volumes": _volumes,
    "graphs": lambda: _solve(_regularizer("nltv", neighbors=4), "alpha-expansion"),
    "dual-chains": lambda: _solve(_regularizer("grid-crf"), "dual-chains"),
    "dense-crf": _dense_crf,
    "tv": _tv,
    "nltv": _nltv,
    "tree-energy": _tree_energy,
    "scribbles": _segment,
}
"""What kernels are for, and a tiny problem that calls them."""


def compile_kernels(families: Sequence[str] = (), *, quiet: bool = True) -> Iterator[tuple[str, float]]:
    """Compile kernels that are not on disk yet, family by family.

    Args:
        families: names in `FAMILIES`; none = all.
        quiet: no progress bar.

    Yields:
        The name of each family, and the CPU seconds that it took, in all threads.

    Raises:
        UsageError: a name that is none, before anything is compiled.
    """
    for name in families:
        check_choice(tuple(FAMILIES), family=name)
    return _compile(tuple(families) or tuple(FAMILIES), quiet)


def _compile(families: Sequence[str], quiet: bool) -> Iterator[tuple[str, float]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("Compiling", total=len(families))
        for number, name in enumerate(families):
            bar.update(task, description=name)
            began = time.process_time()
            FAMILIES[name]()
            bar.update(task, completed=number + 1)
            yield name, time.process_time() - began
