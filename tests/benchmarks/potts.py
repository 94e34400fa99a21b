"""Potts solvers on photographs, volumes and real scribbles: CPU seconds, energy, bound and memory, all in one run.

    python tests/benchmarks/potts.py [--full] [--repeats 3] [--solvers ...] [--only "trust region"] [--plot potts.png]
                                     [--recorded FOLDER] [--threads 2]

Regimes: "strong" (unaries decide most pixels), "weak" (noisy unaries, strong pairs) and "trust region" (scribbles as
hard seeds, unaries .05 x -log p, pairs of weight 25; needs REGLOSS_DATA with iseg or acdc, images enlarged to 560
pixels). With --recorded, in its place, problems of a training that tests/benchmarks/record_unaries.py has saved: they
are solved twice, as they are ("cold") and from the solution of the epoch before; "warm" is the second time in parts of
the first, and "warm energy" its energy in parts of the first. With --threads, in its place, a batch of eight images by
one thread and by several in turn, as wall time: on an idle machine only.

Times are medians of CPU seconds on one thread, of a whole call, children included; "time" is in parts of the
fastest rival's. Energies are relative to the best of the problem, gaps to the best bound that any solver proved. Memory
is the peak of resident memory above that before the call, of the process and its largest child; every problem and
solver has a process of its own for that. Solvers that are not installed are skipped by name; ortools takes part in
problems with two labels.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from PIL import Image
from record_unaries import read
from torch import Tensor

import regloss
from regloss.forms import Form, Graph, GridGraph
from regloss.regularizer import Term
from regloss.solver import Problem, Solution, Solver
from regloss_plugins.kernels.expansion import Expansion
from regloss_plugins.kernels.potts import FreeProblem
from regloss_plugins.solvers.alpha_expansion import solve_free

UNIT = 1e-6  # of ortools' integer capacities


@dataclass(frozen=True)
class Ortools(Solver):
    """Two labels by ortools' push-relabel for general graphs, its capacities rounded to integers."""

    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph, Graph)

    def minimise(self, problem: Problem) -> Solution:
        return solve_free(problem, self._solve_one, workers=1)

    def _solve_one(self, problem: FreeProblem, number: int) -> Expansion:
        max_flow = importlib.import_module("ortools.graph.python.max_flow")
        nodes = np.arange(len(problem.pixels))
        source, sink = len(nodes), len(nodes) + 1
        excess = np.rint((problem.unary[0] - problem.unary[1]) / UNIT).astype(np.int64)
        capacity = np.rint(problem.weights / UNIT).astype(np.int64)
        flow = max_flow.SimpleMaxFlow()
        first, second = problem.edges.T
        flow.add_arcs_with_capacity(first, second, capacity)
        flow.add_arcs_with_capacity(second, first, capacity)
        for side, arcs in ((source, nodes[excess > 0]), (sink, nodes[excess < 0])):
            ends = np.full(len(arcs), side)
            tail, head = (ends, arcs) if side == source else (arcs, ends)
            flow.add_arcs_with_capacity(tail, head, np.abs(excess[arcs]))
        if flow.solve(source, sink) != flow.OPTIMAL:
            raise RuntimeError("ortools found no maximum flow")
        labels = np.zeros(len(nodes), np.int64)
        taken = np.array(flow.get_source_side_min_cut())
        labels[taken[taken < len(nodes)]] = 1
        energy = problem.energy(labels)
        return Expansion(problem.everywhere(labels), energy, problem.energy(problem.start), 1, True, energy)


@dataclass(frozen=True)
class Case:
    """One problem: regime and size in words, the bound term, unaries, seeds, allowed labels, unaries an epoch ago."""

    name: str
    term: Term
    unary: Tensor
    fixed: Tensor | None
    allowed: Tensor | None = None
    before: Tensor | None = None


def photograph(height: int, width: int) -> Tensor:
    """A photograph of scikit-image's, resized."""
    from skimage.data import astronaut as scikit_astronaut

    astronaut: Any = scikit_astronaut
    picture = Image.fromarray(astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1).unsqueeze(0)


def volume(height: int, width: int, depth: int) -> Tensor:
    """A photograph that fades into its mirror image along the third axis."""
    image = photograph(height, width).mean(1, keepdim=True).unsqueeze(-1)
    fade = torch.linspace(0, 1, depth)
    return (1 - fade) * image + fade * image.flip(3)


def colour_unaries(image: Tensor, classes: int, noise: float, strength: float, seed: int = 0) -> Tensor:
    """Distances to random colours of the image, with noise: every class is the cheapest somewhere."""
    generator = torch.Generator().manual_seed(seed)
    pixels = image[0].flatten(1).T
    colours = pixels[torch.randperm(len(pixels), generator=generator)[:classes]]
    distances = torch.cdist(pixels, colours).T.reshape(1, classes, *image.shape[2:])
    return strength * (distances + noise * torch.randn(distances.shape, generator=generator))


def scribbled(root: Path, kind: str, count: int, classes: int) -> Iterator[Case]:
    """Trust-region problems of a network that knows nothing yet, on images enlarged to 560 pixels."""
    for path in sorted((root / kind).glob("*.png"))[:count]:
        scribble = torch.from_numpy(np.asarray(Image.open(path)).astype(np.int64))
        picture = np.asarray(Image.open(next(root.glob(f"images/{path.stem}.*"))), dtype=np.float32) / 255
        image = torch.from_numpy(picture if picture.ndim == 3 else picture[..., None]).permute(2, 0, 1).unsqueeze(0)
        scale = 560 / max(scribble.shape)
        size = [round(scale * length) for length in scribble.shape]
        image = F.interpolate(image, size, mode="bicubic").clamp(0, 1)
        labels = F.interpolate(scribble[None, None].float(), size, mode="nearest")[:, 0].long()
        unary = -0.05 * torch.randn(1, classes, *size, generator=torch.Generator().manual_seed(0)).log_softmax(1)
        name = f"trust region {root.name} {path.stem[-12:]} {size[0]}x{size[1]} K={classes}"
        yield Case(name, regloss.GridCRF(weight=25.0).bind(image), unary, torch.where(labels == 255, -1, labels))


def noisy(regime: str, image: Tensor, classes: int) -> Case:
    """Unaries that know more ("strong") or less ("weak") of the labels."""
    term = regloss.GridCRF(weight=1.0, connectivity=8 if image.ndim == 4 else 26).bind(image)
    noise, strength = (0.1, 10.0) if regime == "strong" else (0.5, 1.0)
    size = "x".join(map(str, image.shape[2:]))
    return Case(f"{regime} {size} K={classes}", term, colour_unaries(image, classes, noise, strength), None)


def cases(full: bool) -> Iterator[Case]:
    """All problems, one after the other."""
    for height, width in [(321, 321), (375, 500), (1024, 1024)] if full else [(375, 500)]:
        for classes in (2, 4, 21):
            for regime in ("strong", "weak"):
                yield noisy(regime, photograph(height, width), classes)
    if full:
        for classes in (2, 4):
            for regime in ("strong", "weak"):
                yield noisy(regime, volume(128, 128, 32), classes)
    data = Path(os.environ.get("REGLOSS_DATA", ""))
    for folder, kind, classes in (("iseg", "scribbles1", 2), ("acdc", "scribbles", 4)):
        if os.environ.get("REGLOSS_DATA") and (data / folder).is_dir():
            yield from scribbled(data / folder, kind, 4 if full else 2, classes)
        else:
            print(f"trust region: skipped, REGLOSS_DATA does not name a folder with {folder}")


def recorded(folder: Path) -> Iterator[Case]:
    """Problems of a training, with those of the epoch before."""
    for record in read(folder):
        term, (before, unary), seeds, allowed = record.problems()
        classes = unary.shape[1] if allowed is None else int(allowed.sum())
        yield Case(f"{record.name} K={classes}", term, unary, seeds, allowed, before)


@dataclass(frozen=True)
class Row:
    """What one solver did on one problem; a message instead where it failed or is absent."""

    seconds: float = 0.0
    energy: float = 0.0
    bound: float = 0.0
    cycles: int = 0
    memory: float = 0.0
    warm_seconds: float = 0.0
    warm_energy: float = 0.0
    skipped: str = ""
    absent: bool = False


def threads(count: int, repeats: int, only: str) -> None:
    """Wall time of eight equal images by one thread and by ``count``, in turn; medians, the first round left out."""
    print(f"{'eight of':28} {'1 thread, s':>12} {f'{count} threads, s':>12} {'ratio':>6} {'rounds':>10}")
    photos = photograph(375, 500).expand(8, -1, -1, -1).contiguous()
    for classes in (2, 4, 21):
        for regime in ("strong", "weak"):
            case = noisy(regime, photos, classes)
            if only not in case.name:
                continue
            unary = case.unary.expand(8, -1, -1, -1).contiguous()
            seconds: dict[int, list[float]] = {1: [], count: []}
            for _ in range(1 + repeats):
                for workers, times in seconds.items():
                    solver = regloss.create("solver", "alpha-expansion", workers=workers)
                    began = time.perf_counter()
                    regloss.solve(case.term, unary, solver)
                    times.append(time.perf_counter() - began)
            one, several = (median(times[1:]) for times in seconds.values())
            rounds = [first / second for first, second in zip(*seconds.values(), strict=True)][1:]
            print(
                f"{case.name:28} {one:12.3f} {several:12.3f} {one / several:6.2f} {min(rounds):5.2f}-{max(rounds):.2f}",
                flush=True,
            )


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_megabytes() -> float:
    """Peak of this process's resident memory and of its largest child's."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def forget_peak() -> None:
    """Start the peak anew from what is resident and in use, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept, would be used again without being counted
        Path("/proc/self/clear_refs").write_text("5")


def make(name: str) -> Solver:
    """A solver by its name, on one thread."""
    if name == "ortools":
        return Ortools()
    settings: dict[str, Any] = {"workers": 1} if name in ("alpha-expansion", "dual-chains") else {}
    if name == "gco":
        settings["timeout"] = 1000.0
    solver: Solver = regloss.create("solver", name, **settings)
    return solver


def measure(name: str, case: Case, repeats: int, pipe: Any) -> None:
    """In a process of its own: solve and send a `Row`."""
    torch.set_num_threads(1)
    try:
        solver = make(name)
        if name == "ortools":
            importlib.import_module("ortools.graph.python.max_flow")
    except (regloss.MissingDependency, ImportError) as missing:
        pipe.send(Row(skipped=str(missing), absent=True))
        return
    if name == "ortools" and case.unary.shape[1] != 2:
        pipe.send(Row())
        return
    corner = tuple(slice(0, 6) for _ in case.unary.shape[2:])
    image = torch.rand(1, 1, *case.unary[0, 0][corner].shape)  # compiled, or read from the cache, before timing
    same_kind = regloss.GridCRF(connectivity=26 if image.ndim == 5 else 8).bind(image)
    regloss.solve(same_kind, case.unary[(slice(None), slice(None), *corner)], solver)
    forget_peak()
    before = peak_megabytes()
    constraints = {"fixed": case.fixed, "allowed": case.allowed}
    times, warm_times, warm_energy = [], [], 0.0
    try:
        for _ in range(repeats):
            solution = None  # the last one's memory is not the solver's
            began = cpu_seconds()
            solution = regloss.solve(case.term, case.unary, solver, **constraints)
            times.append(cpu_seconds() - began)
        if case.before is not None:
            earlier = regloss.solve(case.term, case.before, solver, **constraints)
            for _ in range(repeats):
                began = cpu_seconds()
                again = regloss.solve(case.term, case.unary, solver, warm=earlier, **constraints)
                warm_times.append(cpu_seconds() - began)
            warm_energy = float(again.energy[0])
    except regloss.ReglossError as error:
        pipe.send(Row(skipped=str(error)))
        return
    memory = peak_megabytes() - before
    energy, bound = float(solution.energy[0]), float(solution.bound[0])
    warm_seconds = median(warm_times) if warm_times else 0.0
    pipe.send(Row(median(times), energy, bound, int(solution.steps[0]), memory, warm_seconds, warm_energy))


def plot(results: dict[str, dict[str, Row]], path: Path) -> None:
    """Energy above the best, in parts of it, against CPU seconds: one colour a solver, one line a problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = sorted({name for rows in results.values() for name in rows})
    colours = dict(zip(names, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    floor = 1e-9  # where the best are drawn
    for rows in results.values():
        best = min(row.energy for row in rows.values())
        points = [(row.seconds, max(row.energy / best - 1, floor), name) for name, row in sorted(rows.items())]
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color="0.85", zorder=1)
        for x, y, name in points:
            axes.scatter(x, y, color=colours[name], zorder=2)
    for name in names:
        axes.scatter([], [], color=colours[name], label=name)
    axes.set(xscale="log", yscale="log", xlabel="CPU seconds", ylabel="energy above the best, in parts of it")
    axes.set_title(f"Potts problems; best energies at {floor:g}, one line a problem")
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    """Print one row for each case and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solvers", nargs="+", default=["alpha-expansion", "pymaxflow", "gco", "ortools"])
    parser.add_argument("--full", action="store_true", help="all sizes, volumes, more images")
    parser.add_argument("--recorded", type=Path, help="folder of problems that record_unaries.py has written")
    parser.add_argument("--threads", type=int, help="so many threads against one, on a batch of eight images")
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--plot", type=Path, help="PNG of energy against time")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.threads is not None:
        threads(chosen.threads, chosen.repeats, chosen.only)
        return
    fork = multiprocessing.get_context("fork")
    absent: set[str] = set()
    results: dict[str, dict[str, Row]] = {}
    head = f"{'CPU s':>8} {'energy / best':>14} {'gap':>9} {'cycles':>6} {'MB':>6} {'time':>6}"
    if chosen.recorded is not None:
        head += f" {'warm':>6} {'warm energy':>14}"
    print(f"{'problem':48} {'solver':16} {head}")
    for case in cases(chosen.full) if chosen.recorded is None else recorded(chosen.recorded):
        if chosen.only not in case.name:
            continue
        rows: dict[str, Row] = {}
        for name in chosen.solvers:
            if name in absent:
                continue
            receive, send = fork.Pipe(duplex=False)
            process = fork.Process(target=measure, args=(name, case, chosen.repeats, send))
            process.start()
            send.close()
            try:
                row = receive.recv()
            except EOFError:
                row = Row(skipped="its process died")
            process.join()
            if row.skipped:
                print(f"{case.name}: {name} skipped, {row.skipped}")
                if row.absent:
                    absent.add(name)
            elif row.seconds > 0:
                rows[name] = row
        if not rows:
            continue
        results[case.name] = rows
        best, bound = min(row.energy for row in rows.values()), max(row.bound for row in rows.values())
        rivals = [row.seconds for name, row in rows.items() if name not in ("alpha-expansion", "dual-chains")]
        for name, row in rows.items():
            gap = f"{(row.energy - bound) / abs(row.energy):9.1e}" if np.isfinite(bound) else f"{'-':>9}"
            ratio = f"{row.seconds / min(rivals):6.2f}" if rivals else f"{'-':>6}"
            warm = ""
            if case.before is not None:
                warm = f" {row.warm_seconds / row.seconds:6.2f} {row.warm_energy / row.energy:14.8f}"
            print(
                f"{case.name:48} {name:16} {row.seconds:8.3f} {row.energy / best:14.8f} {gap} {row.cycles:6d} "
                f"{row.memory:6.0f} {ratio}{warm}",
                flush=True,
            )
    if chosen.plot is not None:
        plot(results, chosen.plot)


if __name__ == "__main__":
    main()
