"""The primal-dual machinery of regularized layers on one CPU thread: steps against memory, convergence, denoising.

    python tests/benchmarks/layers.py [--repeats 5] [--only steps backward convergence graph denoising memory]

CPU time of the process, medians over the repeats, all in one run.

steps         Milliseconds of a step of pdhg, compiled and by tensors, against the time in which memory of the size that
              every such step must touch could be copied: each dual variable and the one before are read and the new one
              is written, 3 K numbers for an edge or a grid difference, K costs a pixel, and for a graph an index and a
              weight an edge. Copying counts reading and writing; its speed is measured in the same run, on arrays far
              larger than any cache.
backward      The implicit gradient by default settings, on 360x480 pixels with 11 classes: its time over that of 50
              steps forward, which is to be at most 3, and its error, relative, beside the same linear system solved to
              a residual of 1e-7; after 50 steps and after the default's 300, whose gap is printed.
convergence   Steps to a gap of 1e-5 of the energy on the 64x64 case of the oracle files (REGLOSS_ORACLES), beside the
              papers' iterations with their step of 0.03.
graph         Exact neighbour graph of a photograph.
denoising     1/2 |u - f|^2 + weight TV(u) on a 512x512 photograph with noise of 0.1: a rival is run as it comes, or
              tight ("excess": how far its energy is above the minimum, relative); then ours with as many steps as
              bring its energy no higher. Energies are evaluated in double precision; ours computes in single precision,
              the others in double. prox_tv takes part if it is installed.
memory        Peak memory and time of a forward and a backward pass, each in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import regloss
from regloss.regularizer import Term
from regloss.solver import Progress
from regloss_plugins.regularizers.nltv import NonlocalTerm

SECTIONS = ("steps", "backward", "convergence", "graph", "denoising", "memory")


def photograph(height: int, width: int) -> Tensor:
    """A photograph of scikit-image's, resized."""
    from skimage.data import astronaut

    picture = Image.fromarray(astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1).unsqueeze(0)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time."""
    work()  # compiles, and touches fresh memory
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return median(times)


def copy_speed() -> float:
    """Bytes per second, reading and writing."""
    source = np.ones(64 * 2**20, dtype=np.float32)
    target = np.ones_like(source)
    return 2 * source.nbytes / seconds(lambda: np.copyto(target, source), 9)


def steps(repeats: int) -> None:
    speed = copy_speed()
    print(f"\nOne step of pdhg, float32. Memory is copied at {speed / 1e9:.1f} GB/s.")
    print(f"{'case':44} {'compiled ms':>12} {'tensors ms':>11} {'bound ms':>9} {'compiled/bound':>15} {'speed-up':>9}")
    for height, width, classes, neighbors in ((300, 300, 3, 20), (375, 500, 21, 10)):
        image = photograph(height, width)
        unary = torch.randn(1, classes, height, width, generator=torch.Generator().manual_seed(0))
        for name, regularizer in (
            (f"nltv d={neighbors}", regloss.NonlocalTV(neighbors=neighbors)),
            ("tv anisotropic", regloss.TotalVariation()),
            ("tv isotropic", regloss.TotalVariation(isotropic=True)),
        ):
            term = regularizer.bind(image)
            pixels = height * width
            differences = term.edges.shape[1] if isinstance(term, NonlocalTerm) else 2 * pixels
            touched = 4 * (3 * classes * differences + classes * pixels)
            touched += 8 * differences if isinstance(term, NonlocalTerm) else 0
            times = [step_seconds(term, unary, flag, repeats) for flag in (True, False)]
            print(
                f"{name + f' {height}x{width} K={classes}':44} {1e3 * times[0]:12.2f} {1e3 * times[1]:11.2f} "
                f"{1e3 * touched / speed:9.2f} {times[0] * speed / touched:15.1f} {times[1] / times[0]:9.1f}",
                flush=True,
            )


def step_seconds(term: Term, unary: Tensor, compiled: bool, repeats: int) -> float:
    """CPU time of a step, from two runs of different length, so that what is done once does not count."""

    def run(count: int) -> float:
        solver = regloss.PDHG(count, 0.0, check_every=count, compiled=compiled)
        return seconds(lambda: regloss.solve(term, unary, solver, entropy=0.5), repeats)

    short, long = 5, 35 if compiled else 15
    return (run(long) - run(short)) / (long - short)


def backward() -> None:
    height, width, classes = 360, 480, 11
    noise = torch.randn(1, classes, height, width, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 31, stride=1, padding=15)
    logits = 2 * smooth / smooth.std() + 0.7 * noise
    target, image = logits.argmax(1), photograph(height, width)
    print(f"\nImplicit gradient by default settings, float32, {height}x{width}, K={classes}, entropy 0.5")
    print(
        f"{'case':24} {'steps':>6} {'gap/pixel':>10} {'backward s':>11} {'/ forward':>9} {'residual':>9} {'error':>8}"
    )
    for name, regularizer in (
        ("tv weight=.1", regloss.TotalVariation(0.1)),
        ("tv weight=1", regloss.TotalVariation(1.0)),
        ("tv isotropic weight=.1", regloss.TotalVariation(0.1, isotropic=True)),
        ("tv isotropic weight=1", regloss.TotalVariation(1.0, isotropic=True)),
        ("nltv weight=.1", regloss.NonlocalTV(0.1)),
        ("nltv weight=3", regloss.NonlocalTV(3.0)),
    ):
        term, forward = regularizer.bind(image), 0.0
        for count in (50, 300):
            layer = regloss.RegularizedSoftmax(regularizer, max_steps=count)
            if count == 50:  # compile
                layer(logits[..., :32, :32].clone().requires_grad_(), image[..., :32, :32]).square().sum().backward()
            given = logits.clone().requires_grad_()
            began = time.process_time()
            found = layer.log_probabilities(given, term)
            forward = forward or time.process_time() - began
            loss = torch.nn.functional.nll_loss(found, target)
            began = time.process_time()
            (gradient,) = torch.autograd.grad(loss, given, retain_graph=True)
            spent = time.process_time() - began
            solution, residual = layer.solution, layer.backward_residual
            assert solution is not None
            assert residual is not None
            layer.backward_tolerance, layer.backward_steps = 1e-7, 400
            (exact,) = torch.autograd.grad(loss, given)
            gap = float(solution.gap) / (height * width)
            error = float((gradient - exact).norm() / exact.norm())
            print(
                f"{name:24} {int(solution.steps):6d} {gap:10.1e} {spent:11.2f} {spent / forward:9.2f} "
                f"{float(residual):9.1e} {error:8.1e}",
                flush=True,
            )


def convergence() -> None:
    folder = os.environ.get("REGLOSS_ORACLES", "")
    file = Path(folder) / "convergence.npz"
    if not folder or not file.exists():
        print("\nconvergence: skipped, REGLOSS_ORACLES does not name a folder with convergence.npz")
        return
    case = np.load(file)
    unary = -torch.from_numpy(case["o"]).reshape(64, 64, 3).permute(2, 0, 1).unsqueeze(0)
    source = torch.arange(4096).repeat_interleave(case["idx"].shape[1])
    edges = torch.stack([source, torch.from_numpy(case["idx"].astype(np.int64)).flatten()], dim=1).unsqueeze(0)
    weights = torch.from_numpy(case["wt"]).reshape(1, -1)
    blank = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    print("\nSteps to a gap of 1e-5 of the energy, 64x64, K=3, entropy 0.5, float64")
    print(f"{'case':28} {'ours':>8} {'projected gradient .03':>24} {'lazy .03':>16}")
    for name, term in (
        ("nltv weight=3", NonlocalTerm(regloss.NonlocalTV(3.0), edges, weights, (1, 64, 64))),
        ("nltv weight=.1", NonlocalTerm(regloss.NonlocalTV(0.1), edges, weights, (1, 64, 64))),
        ("tv weight=1", regloss.TotalVariation(1.0).bind(blank)),
        ("tv isotropic weight=1", regloss.TotalVariation(1.0, isotropic=True).bind(blank)),
    ):
        found = []
        for most, settings in (
            (3000, {}),
            (6000, {"method": "projected-gradient", "steps": 0.03}),
            (6000, {"method": "lazy", "steps": 0.03}),
        ):
            looks: list[tuple[int, float]] = []

            def note(look: Progress, looks: list[tuple[int, float]] = looks) -> None:
                looks.append((look.steps, float((look.energy - look.bound) / look.energy.abs())))

            solver = regloss.PDHG(most, 1e-10, check_every=10, **settings)  # type: ignore[arg-type]
            regloss.solve(term, unary, solver, entropy=0.5, callback=note)
            reached = next((str(count) for count, gap in looks if gap <= 1e-5), None)
            found.append(reached or f"> {most} ({min(gap for _, gap in looks):.1e})")
        print(f"{name:28} {found[0]:>8} {found[1]:>24} {found[2]:>16}", flush=True)


def graph(repeats: int) -> None:
    image = photograph(300, 300)
    regularizer = regloss.NonlocalTV(neighbors=20)
    spent = seconds(lambda: regularizer.bind(image), min(repeats, 3))
    print(f"\nNeighbour graph, 300x300, 20 neighbours, exact everywhere: {spent:.2f} s")


@dataclass(frozen=True)
class Rival:
    """Another program: weight to denoised image."""

    name: str
    isotropic: bool
    run: Callable[[float], Any]


def rivals(f: Any) -> list[Rival]:
    """Those that are installed, for the image ``f``."""
    from skimage.restoration import denoise_tv_bregman, denoise_tv_chambolle

    tight = {"eps": 1e-5, "max_num_iter": 1000}
    found = []
    try:
        import prox_tv

        for method in ("dr", "pd"):  # the default, and the fastest at small weights
            run = partial(prox_tv.tv1_2d, f, n_threads=1, method=method)
            found.append(Rival(f"prox_tv {method}", False, run))
    except ImportError:
        print("\nprox_tv: skipped, it is not installed")
    for isotropic in (False, True):
        for name, settings in (("", {}), (", tight", tight)):
            run = partial(denoise_tv_bregman, f, isotropic=isotropic, **settings)
            found.append(Rival("bregman" + name, isotropic, lambda weight, run=run: run(weight=1 / weight)))
    for name, settings in (("", {}), (", tight", {"eps": 1e-6, "max_num_iter": 1000})):
        run = partial(denoise_tv_chambolle, f, **settings)
        found.append(Rival("chambolle" + name, True, lambda weight, run=run: run(weight=weight)))
    return found


def energy(u: Any, f: Any, weight: float, isotropic: bool) -> float:
    """1/2 |u - f|^2 + weight TV(u)."""
    across, along = np.diff(u, axis=0, append=u[-1:]), np.diff(u, axis=1, append=u[:, -1:])
    length = np.hypot(across, along) if isotropic else np.abs(across) + np.abs(along)
    return float(0.5 * np.square(u - f).sum() + weight * length.sum())


def denoising(repeats: int) -> None:
    from skimage.data import camera

    f = camera().astype(np.float64) / 255 + 0.1 * np.random.default_rng(0).normal(size=(512, 512))
    image = torch.from_numpy(f).float()[None, None]
    found = rivals(f)
    print("\nTotal-variation denoising, 512x512, until the energy is the rival's")
    print(f"{'weight':>6} {'':12} {'rival':20} {'ms':>7} {'excess':>8} {'ours ms':>8} {'steps':>6} {'ratio':>6}")
    for weight in (0.03, 0.1, 0.3):
        for rival in sorted(found, key=lambda rival: rival.isotropic):
            regularizer = regloss.TotalVariation(weight, rival.isotropic)
            best = float(regloss.denoise(image.double(), regularizer, tolerance=1e-9, max_steps=5000).bound)
            theirs = seconds(partial(rival.run, weight), repeats)
            target = energy(rival.run(weight), f, weight, rival.isotropic)
            count = steps_to(target, image, f, regularizer)
            mine = seconds(partial(regloss.denoise, image, regularizer, tolerance=0.0, max_steps=count), repeats)
            kind = "isotropic" if rival.isotropic else "anisotropic"
            print(
                f"{weight:6} {kind:12} {rival.name:20} {1e3 * theirs:7.1f} {target / best - 1:8.1e} {1e3 * mine:8.1f} "
                f"{count:6d} {mine / theirs:6.2f}",
                flush=True,
            )


def steps_to(target: float, image: Tensor, f: Any, regularizer: regloss.TotalVariation) -> int:
    """A number of steps that reaches the energy ``target``, to the nearest twentieth."""
    count = 4
    while True:
        found = regloss.denoise(image, regularizer, tolerance=0.0, max_steps=count).image[0, 0].double().numpy()
        if energy(found, f, regularizer.weight, regularizer.isotropic) <= target:
            return count
        count += max(1, count // 20)
        if count > 5000:
            raise RuntimeError("5000 steps do not reach the rival's energy")


def memory() -> None:
    print("\nForward and backward pass, float32, each in a fresh process")
    print(f"{'case':62} {'CPU s':>7} {'peak MB':>8} {'beyond what was there before MB':>32}")
    found = {}
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", name], check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout)
        print(
            f"{name:62} {found[name]['cpu']:7.1f} {found[name]['peak']:8.0f} {found[name]['grown']:32.0f}", flush=True
        )
    first, second = (found[name]["grown"] for name in list(CASES)[1:3])
    print(f"unrolled / implicit: {second / first:.1f}")


CASES: dict[str, tuple[int, int, Any, dict[str, Any]]] = {
    "tv 1024x1024 K=21, 50 steps, implicit": (
        1024,
        21,
        regloss.TotalVariation(1.0),
        {"max_steps": 50, "tolerance": 0.0, "backward_steps": 50},
    ),
    "nltv d=20 300x300 K=3, 50 steps, implicit": (
        300,
        3,
        regloss.NonlocalTV(1.0, neighbors=20),
        {"max_steps": 50, "tolerance": 0.0},
    ),
    "nltv d=20 300x300 K=3, 50 steps, unrolled": (
        300,
        3,
        regloss.NonlocalTV(1.0, neighbors=20),
        {"max_steps": 50, "tolerance": 0.0, "backward": "unrolled"},
    ),
}


def run_case(name: str) -> None:
    """In a fresh process: print CPU seconds and megabytes."""
    size, classes, regularizer, settings = CASES[name]
    torch.set_num_threads(1)
    image = photograph(size, size)
    term = regularizer.bind(image)
    layer = regloss.RegularizedSoftmax(regularizer, entropy=0.5, **settings)
    small = photograph(32, 32)
    layer(torch.randn(1, classes, 32, 32, requires_grad=True), small).square().sum().backward()  # compile
    logits = torch.randn(1, classes, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began = status("VmRSS"), time.process_time()
    probabilities = layer(logits, term)
    probabilities.square().sum().backward()
    spent, peak = time.process_time() - began, status("VmHWM")
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    print(json.dumps({"cpu": spent, "peak": peak, "grown": peak - before}))


def status(field: str) -> float:
    """Megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the system does not tell {field}")


def main() -> None:
    """Print the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        run_case(chosen.case)
        return
    torch.set_num_threads(1)
    for name in chosen.only:
        {
            "steps": lambda: steps(chosen.repeats),
            "backward": backward,
            "convergence": convergence,
            "graph": lambda: graph(chosen.repeats),
            "denoising": lambda: denoising(chosen.repeats),
            "memory": memory,
        }[name]()


if __name__ == "__main__":
    main()
