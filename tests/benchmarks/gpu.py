"""What takes time on a GPU: training steps, filters, layers and solvers, in one run of at most four minutes.

    python tests/benchmarks/gpu.py [--device cuda] [--seconds 4] [--json FILE] [--tiny]

Milliseconds of wall time, median over repeats, after one call that compiles; on a CUDA device each waits until the
device is done, and the memory is the most that was held beyond what was there before. ``--seconds`` is the time for
each row, which is measured once at least; a row that would begin later than ``--limit`` seconds is left out, and named.
A row that fails is told with its error, the others go on, and the exit code is 1. ``--tiny`` takes images so small that
a CPU does all in a minute: it shows that the script runs, and nothing else. Needs the installed package alone, and no
network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import regloss
from regloss.regularizer import Term

Work = Callable[[], Any]


def random_image(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """(count, 3, height, width) in [0, 1], smooth but for a little noise, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.03 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1).to(device)


def gradient_of(energy: Callable[[Tensor], Tensor], values: Tensor) -> Work:
    """Value and gradient."""
    given = values.detach().clone().requires_grad_()
    return lambda: torch.autograd.grad(energy(given).sum(), given)


def solving(term: Term, scores: Tensor, solver: str, max_steps: int, entropy: float = 0.0) -> Work:
    """A solver's run."""
    chosen = regloss.create("solver", solver, max_steps=max_steps)
    return lambda: regloss.solve(term, -scores, chosen, entropy=entropy)


def training_steps(device: torch.device, tiny: bool) -> Iterator[tuple[str, Work]]:
    """A step of a network, alone and with each prior by gradient descent."""
    count, size, classes = (2, 64, 5) if tiny else (12, 512, 21)
    image = random_image(count, size, size, device)
    labels = torch.full((count, size, size), 255, device=device)
    labels[:, size // 4, :], labels[:, size // 2, :] = 0, 1
    network = regloss.create("network", "deeplabv3plus", in_channels=3, classes=classes).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    batch = regloss.Batch(image, labels)
    kept = regloss.Proposal(labels.masked_fill(labels == 255, 2))
    for name, loop, proposal in (
        ("partial cross entropy", regloss.GradientDescent(), None),
        ("+ grid CRF", regloss.GradientDescent(regloss.GridCRF(1e-2)), None),
        ("+ trust region between updates", regloss.TrustRegion(regloss.GridCRF(1e-2)), kept),
        ("+ dense CRF, half size, exact", regloss.GradientDescent(dense_crf(0.5, "exact")), None),
        ("+ dense CRF, quarter size, exact", regloss.GradientDescent(dense_crf(0.25, "exact")), None),
        ("+ dense CRF, half size, lattice", regloss.GradientDescent(dense_crf(0.5, "lattice")), None),
        ("+ gated CRF", regloss.GradientDescent(regloss.GatedCRF(1e-2)), None),
        (
            "+ soft self-labeling",
            regloss.create("outer-loop", "soft-self-labeling", regularizer=regloss.GridCRF(1e-2)),
            None,
        ),
    ):

        def step(loop: Any = loop, proposal: Any = proposal) -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = network(image).float()
            if loop.update_every == "step":
                proposal = loop.propose(logits.detach(), batch)
            loss = loop.objective(logits, batch, proposal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        yield f"training step, {count} x {size}x{size}: {name}", step
    yield small_network_step(device, tiny)


def dense_crf(scale: float, backend: str) -> regloss.Regularizer:
    """With a weight for a loss."""
    return regloss.create("regularizer", "dense-crf", weight=1e-4, scale=scale, backend=backend)


def small_network_step(device: torch.device, tiny: bool) -> tuple[str, Work]:
    """A step of a network so small that its launches take longer than its arithmetic."""
    count, size = (2, 32) if tiny else (12, 256)
    network = regloss.create("network", "unet", in_channels=3, classes=4, channels=16).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    batch = regloss.Batch(random_image(count, size, size, device), torch.zeros(count, size, size, device=device).long())
    loop = regloss.GradientDescent(regloss.GridCRF(1e-2))

    def step() -> None:
        loss = loop.objective(network(batch.image), batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return f"training step, U-Net of 16 channels, {count} x {size}x{size}: grid CRF", step


def priors(device: torch.device, tiny: bool) -> Iterator[tuple[str, Work]]:
    """Energies of probabilities and solvers over them."""
    height, width, classes = (24, 32, 3) if tiny else (375, 500, 21)
    many, few = (4, 2) if tiny else (16, 4)
    image = random_image(many, height, width, device)
    scores = torch.randn(many, classes, height, width, generator=torch.Generator().manual_seed(1)).to(device)
    s = scores.softmax(1)
    half, full = (regloss.DenseCRF(scale=scale, backend="exact") for scale in (0.5, 1.0))
    yield "dense CRF, half size, exact, 1 image: value and gradient", gradient_of(half.bind(image[:1]).energy, s[:1])
    yield f"dense CRF, half size, exact, {many} images", gradient_of(half.bind(image).energy, s)
    yield "dense CRF, full size, exact, 1 image", gradient_of(full.bind(image[:1]).energy, s[:1])
    yield f"gated CRF 11x11, {many} images", gradient_of(regloss.GatedCRF().bind(image).energy, s)
    yield (
        f"mean field, dense, {few} images, 4 steps",
        solving(half.bind(image[:few]), scores[:few], "mean-field", 4, 1.0),
    )
    lattice = regloss.DenseCRF(scale=0.5, backend="lattice")
    yield "dense CRF, half size, lattice: build", lambda: lattice.bind(image[:1])
    bound = lattice.bind(image[:1])
    yield "dense CRF, half size, lattice: value and gradient", gradient_of(bound.energy, s[:1])
    graph = regloss.NonlocalTV(neighbors=20)
    yield f"graph of nltv, 20 neighbours, {few} images", lambda: graph.bind(image[:few])
    for steps in (100,) if tiny else (100, 300):
        potts = solving(regloss.GridCRF().bind(image), scores, "parallel-potts", steps)
        yield f"parallel-potts, {many} images, {steps} steps", potts
    for name, weight in (("weak", 0.3), ("strong", 3.0)):
        term = regloss.GridCRF(weight).bind(image)
        yield f"alpha-expansion, {many} images, {name}", partial(regloss.solve, term, -scores, "alpha-expansion")


def layers(device: torch.device, tiny: bool) -> Iterator[tuple[str, Work]]:
    """Softmax layers of 50 steps, forward alone, and forward and backward."""
    count, size = (2, 24) if tiny else (8, 300)
    image = random_image(count, size, size, device)
    logits = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2)).to(device)
    for name, regularizer in (
        ("tv", regloss.TotalVariation()),
        ("tv isotropic", regloss.TotalVariation(isotropic=True)),
        ("nltv, 20 neighbours", regloss.NonlocalTV(neighbors=20)),
    ):
        term = regularizer.bind(image)
        layer = partial(regloss.RegularizedSoftmax(regularizer, max_steps=50, tolerance=0.0), image=term)
        label = f"layer {name}, {count} x 3 x {size}x{size}, 50 steps"
        yield f"{label}: forward", partial(layer, logits)
        yield f"{label}: and backward", gradient_of(lambda given, layer=layer: layer(given).square(), logits)
    smooth, star = regloss.ThresholdDynamics(), regloss.StarShape(center=(size / 2, size / 2))
    volume = regloss.Volume(lower=(0.1, 0.1, 0.1), upper=(0.8, 0.8, 0.8), unit="fraction")
    total = regloss.TotalVariation()
    for name, parts, solver in (
        ("threshold-dynamics", [smooth], "dca"),
        ("threshold-dynamics and volume", [smooth, volume], {"name": "dca", "method": "single-loop"}),
        ("star", [star], "pdhg"),
        ("volume", [volume], "pdhg"),
        ("ordered", [regloss.Ordered()], "pdhg"),
        ("tv and star", [total, star], "pdhg"),
        ("tv, star and volume", [total, star, volume], "pdhg"),
    ):
        layer = regloss.RegularizedSoftmax(parts, solver=solver, max_steps=50, tolerance=0.0).to(device)
        label = f"layer {name}, {count} x 3 x {size}x{size}, 50 steps"
        yield f"{label}: forward", partial(layer, logits, image)
        if solver == "pdhg":
            yield f"{label}: and backward", gradient_of(lambda given, layer=layer: layer(given, image).square(), logits)


def measure(work: Work, device: torch.device, seconds: float) -> dict[str, float]:
    """Median milliseconds, how many repeats, and on CUDA devices peak megabytes."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    times = [once()]
    while sum(times) < seconds and len(times) < 20:
        times.append(once())
    found = {"ms": 1000 * median(times), "repeats": len(times)}
    if device.type == "cuda":
        found["peak_mb"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=220.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --tiny shows that the script runs")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads" + (", tiny" if chosen.tiny else ""))
    began = time.perf_counter()
    rows: dict[str, dict[str, float]] = {}
    left_out: list[str] = []
    failed: dict[str, str] = {}
    for section in (training_steps, priors, layers):
        for label, work in section(device, chosen.tiny):
            if time.perf_counter() - began > chosen.limit:
                left_out.append(label)
                continue
            try:
                found = measure(work, device, chosen.seconds)
            except Exception as error:  # of one row, whatever it is; the exit code says that there was one
                failed[label] = f"{type(error).__name__}: {error}"
                print(f"{label:72} failed: {failed[label]}", flush=True)
                continue
            rows[label] = found
            peak = f"{found['peak_mb']:9.0f} MB" if "peak_mb" in found else ""
            print(f"{label:72} {found['ms']:9.1f} ms{peak}", flush=True)
    if left_out:
        print(f"Left out, as {chosen.limit:.0f} seconds were over: " + "; ".join(left_out))
    if chosen.json is not None:
        record = {"device": name, "torch": torch.__version__, "tiny": chosen.tiny, "rows": rows}
        record |= {"failed": failed, "left-out": left_out}
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
