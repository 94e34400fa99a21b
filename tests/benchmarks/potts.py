"""Potts solvers on photographs and on real scribbles: CPU seconds, energy, certificate; all solvers in one run.

    python tests/benchmarks/potts.py [--repeats 3] [--solvers alpha-expansion pymaxflow gco] [--quick]

Regimes: "strong" (unaries decide most pixels), "weak" (noisy unaries, strong pairs) and "trust region" (scribbles as
hard seeds, unaries .05 x -log p, pairs of weight 25; needs REGLOSS_DATA with iseg). Times are medians of CPU seconds on
one thread, children included; energies are relative to the best of the row. Solvers that are not installed are skipped
by name.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import regloss
from regloss.files import read_image, read_label_map
from regloss.regularizer import Term
from regloss.solver import Solver


@dataclass(frozen=True)
class Case:
    """One problem: regime and size in words, the bound term, unaries, seeds."""

    name: str
    term: Term
    unary: Tensor
    fixed: Tensor | None


def photograph(height: int, width: int) -> Tensor:
    """A photograph of scikit-image's, resized."""
    from skimage.data import astronaut

    picture = Image.fromarray(astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1).unsqueeze(0)


def colour_unaries(image: Tensor, classes: int, noise: float, strength: float, seed: int = 0) -> Tensor:
    """Distances to random colours of the image, with noise: every class is the cheapest somewhere."""
    generator = torch.Generator().manual_seed(seed)
    pixels = image[0].flatten(1).T
    colours = pixels[torch.randperm(len(pixels), generator=generator)[:classes]]
    distances = torch.cdist(pixels, colours).T.reshape(1, classes, *image.shape[2:])
    return strength * (distances + noise * torch.randn(distances.shape, generator=generator))


def cases(quick: bool) -> Iterator[Case]:
    """All problems, one after the other."""
    sizes = [(160, 200)] if quick else [(375, 500)]
    for height, width in sizes:
        image = photograph(height, width)
        term = regloss.GridCRF(weight=1.0).bind(image)
        for classes in (2, 4) if quick else (2, 4, 21):
            strong = colour_unaries(image, classes, noise=0.1, strength=10.0)
            weak = colour_unaries(image, classes, noise=0.5, strength=1.0)
            yield Case(f"strong {height}x{width} K={classes}", term, strong, None)
            yield Case(f"weak {height}x{width} K={classes}", term, weak, None)
    root = Path(os.environ.get("REGLOSS_DATA", "")) / "iseg"
    if not (os.environ.get("REGLOSS_DATA") and root.is_dir()):
        print("trust region: skipped, REGLOSS_DATA does not name a folder with iseg")
        return
    for path in sorted((root / "scribbles1").glob("*.png"))[: 2 if quick else 5]:
        image = torch.from_numpy(read_image(next(root.glob(f"images/{path.stem}.*")))).unsqueeze(0)
        scribble = torch.from_numpy(read_label_map(path, ["background", "object"]).astype(np.int64)).unsqueeze(0)
        fixed = torch.where(scribble == 255, -1, scribble)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(1, 2, *image.shape[2:], generator=generator)  # a network that knows nothing yet
        unary = -0.05 * logits.log_softmax(1)
        size = "x".join(map(str, image.shape[2:]))
        yield Case(f"trust region {path.stem} {size} K=2", regloss.GridCRF(weight=25.0).bind(image), unary, fixed)


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def main() -> None:
    """Print one row for each case and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solvers", nargs="+", default=["alpha-expansion", "pymaxflow", "gco"])
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    solvers: dict[str, Solver] = {}
    for name in chosen.solvers:
        settings = {"workers": 1} if name == "alpha-expansion" else {}
        try:
            solvers[name] = regloss.create("solver", name, **settings)
        except regloss.MissingDependency as missing:
            print(f"{name}: skipped, {missing}")
    small = photograph(8, 8)
    for solver in solvers.values():  # compile before timing
        regloss.solve(regloss.GridCRF().bind(small), colour_unaries(small, 3, 0.1, 1.0), solver)
    print(f"{'problem':40} {'solver':16} {'CPU s':>8} {'wall s':>8} {'energy / best':>14} {'gap':>10} {'cycles':>7}")
    for case in cases(chosen.quick):
        rows = {}
        for name, solver in solvers.items():
            times, walls = [], []
            for _ in range(chosen.repeats):
                began, wall = cpu_seconds(), time.perf_counter()
                solution = regloss.solve(case.term, case.unary, solver, fixed=case.fixed)
                times.append(cpu_seconds() - began)
                walls.append(time.perf_counter() - wall)
            rows[name] = (median(times), median(walls), solution)
        best = min(float(solution.energy[0]) for _, _, solution in rows.values())
        for name, (seconds, wall, solution) in rows.items():
            energy = float(solution.energy[0])
            gap = f"{float(solution.gap[0]):.3g}" if np.isfinite(float(solution.gap[0])) else "-"
            print(
                f"{case.name:40} {name:16} {seconds:8.3f} {wall:8.3f} {energy / best:14.8f} {gap:>10} "
                f"{int(solution.steps[0]):7d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
