"""Gaussian filters of the dense CRF on a photograph: build and filter time, error against the exact sum, memory.

    python tests/benchmarks/dense.py [--repeats 5] [--quick] [--gated-only]

500x375 pixels, 21 channels of class probabilities, one thread. Times are medians of CPU seconds, all backends in turn
within one run, so that a change of the machine's speed meets all alike. Errors are relative L2 errors at 300 random
pixels, where the exact sum is computed in float64; "scaled" ones are taken after the best common factor. Memory is what
the peak of a process of its own grows by. pydensecrf (pydensecrf2) is skipped by name when absent; the time of its
filter is that of a mean-field step with the kernel less that of one without.

A line says how much slower the lattice becomes while another process keeps a second core busy. The second table
compares the gated CRF's window of 11x11 with neighbourhoods unfolded into an array.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from potts import colour_unaries, photograph
from torch import Tensor

import regloss
from regloss_plugins.filters.gaussian import ACCURACIES, gaussian_filter

CASES = ((80, 13), (100, 15), (20, 13), (10, 30))
CLASSES = 21


def exact_rows(image: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float, pixels: Tensor) -> Tensor:
    """The exact sums (K, len(pixels)) in float64."""
    size = image.shape[2:]
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in size)) / sigma_xy
    features = torch.cat([places, image[0].flatten(1).T.double() / sigma_rgb], 1)
    flat = values[0].flatten(1).T.double()
    rows = [
        torch.exp(-(features[chosen, None] - features[None]).square().sum(-1) / 2) @ flat for chosen in pixels.split(50)
    ]
    return torch.cat(rows).T


def cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


class PyDenseCRF:
    """The filter of pydensecrf2, taken out of a step of its mean field."""

    def __init__(self, image: Tensor, values: Tensor) -> None:
        from pydensecrf import densecrf

        self.library = densecrf
        self.bytes = np.ascontiguousarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
        self.size = tuple(image.shape[2:])
        # Class 0 gets no mass, so that what the kernel adds to it is 0 and the other classes can be read off.
        given = values[0].flatten(1).double().clamp(min=1e-6)
        given[0] = 1e-20
        self.values = given / given.sum(0)
        self.unary = np.ascontiguousarray((-self.values.log()).float().numpy())

    def _crf(self) -> Any:
        crf = self.library.DenseCRF2D(self.size[1], self.size[0], len(self.unary))
        crf.setUnaryEnergy(self.unary)
        return crf

    def measure(self, sigma_xy: float, levels: float) -> tuple[float, float, Tensor]:
        """Seconds to build and to filter, and the filtered values (K, N), those of class 0 being 0."""
        plain, coupling = self._crf(), 1e-4
        q, first, second = plain.startInference()
        plain.stepInference(q, first, second)
        without, _ = cpu(lambda: plain.stepInference(q, first, second))
        crf = self._crf()
        build, _ = cpu(
            lambda: crf.addPairwiseBilateral(
                sxy=sigma_xy,
                srgb=levels,
                rgbim=self.bytes,
                compat=coupling,
                kernel=self.library.CONST_KERNEL,
                normalization=self.library.NO_NORMALIZATION,
            )
        )
        q, first, second = crf.startInference()
        step, _ = cpu(lambda: crf.stepInference(q, first, second))
        message = torch.from_numpy(np.array(q)).double().log() + torch.from_numpy(self.unary).double()
        return build, step - without, (message - message[:1]) / coupling


def in_a_process(function: Callable[..., None], *given: Any) -> float:
    """Growth of the peak memory (MiB) of a fresh process that runs ``function``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_grow, args=(theirs, function, given))
    process.start()
    grown = float(ours.recv())
    process.join()
    return grown


def _grow(pipe: Any, function: Callable[..., None], given: Any) -> None:
    torch.set_num_threads(1)
    function(*given, warm=True)  # libraries and compiled code count for nothing
    before = peak()
    function(*given, warm=False)
    pipe.send(peak() - before)


def peak() -> float:
    """Peak memory of this process in MiB; unlike getrusage's it does not begin with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def filter_once(backend: str, accuracy: str, sigma_xy: float, levels: float, warm: bool) -> None:
    """Build a filter and apply it; on a small image where ``warm``."""
    image = photograph(24, 32) if warm else photograph(375, 500)
    values = torch.full((1, CLASSES, *image.shape[2:]), 1 / CLASSES)
    gaussian_filter(image, sigma_xy, levels / 255, backend=backend, accuracy=accuracy)(values)  # type: ignore[arg-type]


def errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative L2 error, as it is and after the best factor."""
    factor = (found * expected).sum() / found.square().sum()
    return tuple(float((scale * found - expected).norm() / expected.norm()) for scale in (1.0, factor))  # type: ignore[return-value]


def filters(repeats: int, quick: bool) -> None:
    """One row for each bandwidth and backend."""
    image = photograph(375, 500)
    image = (image.clamp(0, 1) * 255).round() / 255
    values = (-colour_unaries(image, CLASSES, noise=0.1, strength=10.0)).softmax(1)
    pixels = torch.randperm(375 * 500, generator=torch.Generator().manual_seed(0))[:300]
    try:
        rival: PyDenseCRF | None = PyDenseCRF(image, values)
    except ImportError:
        rival = None
        print("pydensecrf: skipped, it is not installed (pip install pydensecrf2)")
    print(
        f"{'sigma':>9} {'backend':20} {'build ms':>9} {'filter ms':>10} {'x rival':>8} {'both':>6} {'error':>7} "
        f"{'scaled':>7} {'MiB':>6}   (x rival: filter, both: build and filter)"
    )
    for sigma_xy, levels in CASES[: 1 if quick else None]:
        names = [f"lattice {accuracy}" for accuracy in ACCURACIES] + (["pydensecrf"] if rival else [])
        builds: dict[str, list[float]] = {name: [] for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        results: dict[str, Tensor] = {}
        for turn in range(repeats + 1):
            for accuracy in ACCURACIES:
                name = f"lattice {accuracy}"
                make = partial(gaussian_filter, image, sigma_xy, levels / 255, backend="lattice", accuracy=accuracy)
                build, bound = cpu(make)
                seconds, filtered = cpu(partial(bound, values))
                if turn:  # the first ones compile
                    builds[name].append(build)
                    times[name].append(seconds)
                results[name] = filtered[0].flatten(1).double()
            if rival:
                build, seconds, results["pydensecrf"] = rival.measure(sigma_xy, levels)
                if turn:
                    builds["pydensecrf"].append(build)
                    times["pydensecrf"].append(seconds)
        expected = exact_rows(image, values, sigma_xy, levels / 255, pixels)
        shown = (
            exact_rows(image, rival.values.reshape(values.shape), sigma_xy, levels / 255, pixels) if rival else expected
        )
        reference = median(times["pydensecrf"]) if rival else math.nan
        both = reference + median(builds["pydensecrf"]) if rival else math.nan
        for name in names:
            error, scaled = (
                errors(results[name][1:, pixels], shown[1:])
                if name == "pydensecrf"
                else errors(results[name][:, pixels], expected)
            )
            memory = math.nan
            if name != "pydensecrf":
                memory = in_a_process(filter_once, "lattice", name.split()[1], sigma_xy, levels)
            build, seconds = median(builds[name]), median(times[name])
            print(
                f"{sigma_xy:4d}, {levels:3d} {name:20} {1e3 * build:9.1f} {1e3 * seconds:10.1f} "
                f"{seconds / reference:8.2f} {(build + seconds) / both:6.2f} {error:7.4f} {scaled:7.4f} {memory:6.0f}",
                flush=True,
            )
    if not quick:
        small = F.interpolate(image, scale_factor=0.25, mode="area")
        quarter = F.interpolate(values, scale_factor=0.25, mode="area")
        seconds, _ = cpu(lambda: gaussian_filter(small, 20.0, 13 / 255, backend="exact")(quarter))
        print(f"exact, {small.shape[2]}x{small.shape[3]} pixels: {seconds:.2f} s; grows with the square of the pixels")


def busy(repeats: int) -> None:
    """Wall time of building and filtering with a second core idle and busy, in turn."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("busy second core: skipped, this process may use only one")
        return
    image = photograph(375, 500)
    values = torch.full((1, CLASSES, 375, 500), 1 / CLASSES)
    context = multiprocessing.get_context("spawn")
    times: dict[bool, list[float]] = {False: [], True: []}
    os.sched_setaffinity(0, {cores[0]})
    for turn in range(2 * repeats + 2):
        ready = context.Event()
        spinner = context.Process(target=_spin, args=(cores[1], ready), daemon=True)
        if turn % 2:
            spinner.start()
            ready.wait()  # its imports run on this process's core
        began = time.perf_counter()
        gaussian_filter(image, 80, 13 / 255, backend="lattice", accuracy="fast")(values)
        if turn > 1:  # the first ones compile
            times[bool(turn % 2)].append(time.perf_counter() - began)
        if turn % 2:
            spinner.terminate()
            spinner.join()
    os.sched_setaffinity(0, cores)
    idle, loaded = median(times[False]), median(times[True])
    print(f"second core idle {1e3 * idle:.1f} ms, busy {1e3 * loaded:.1f} ms: {loaded / idle:.2f} x (80, 13, fast)")


def _spin(core: int, ready: Any) -> None:
    os.sched_setaffinity(0, {core})
    ready.set()
    while True:
        pass


def gated(which: str, warm: bool) -> None:
    """Energy and gradient of an 11x11 window, by the term or by unfolded neighbourhoods."""
    image = photograph(24, 32) if warm else photograph(188, 250)
    logits = torch.randn(1, CLASSES, *image.shape[2:], generator=torch.Generator().manual_seed(0), requires_grad=True)
    gated_energy(which, image, logits.softmax(1)).sum().backward()  # type: ignore[no-untyped-call]


def gated_energy(which: str, image: Tensor, s: Tensor) -> Tensor:
    """The energy (1,) of a window of 11x11."""
    if which == "term":
        return regloss.GatedCRF().bind(image).energy(s)

    def neighbours(values: Tensor) -> Tensor:
        return F.unfold(values, 11, padding=5).reshape(values.shape[1], 121, *values.shape[2:])

    offsets = torch.arange(-5.0, 6)
    distance = (offsets[:, None] ** 2 + offsets[None] ** 2).reshape(121, 1, 1) / (2 * 6.0**2)
    contrast = (neighbours(image) - image[0].unsqueeze(1)).square().sum(0) / (2 * 0.1**2)
    weights = torch.exp(-contrast - distance) * neighbours(torch.ones_like(image[:, :1]))[0]
    weights = weights * (torch.arange(121) != 60).reshape(121, 1, 1)
    return (weights * (1 - (neighbours(s) * s[0].unsqueeze(1)).sum(0))).sum().reshape(1) / 2


def windows() -> None:
    """Memory and time of the gated CRF."""
    image = photograph(188, 250)
    s = torch.randn(1, CLASSES, 188, 250, generator=torch.Generator().manual_seed(0)).softmax(1)
    print(f"\ngated CRF, 11x11, 250x188 pixels, K={CLASSES}, forward and backward")
    for which in ("term", "unfolded"):
        seconds, _ = cpu(partial(gated, which, False))
        energy = float(gated_energy(which, image, s))
        print(f"{which:10} energy {energy:.6g}   {seconds:6.2f} s   {in_a_process(gated, which):7.0f} MiB", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one bandwidth")
    parser.add_argument("--gated-only", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.gated_only:
        filters(chosen.repeats, chosen.quick)
        busy(chosen.repeats)
    windows()


if __name__ == "__main__":
    main()
