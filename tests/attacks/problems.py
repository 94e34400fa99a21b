"""Random problems against every regularizer and solver: no crash, no NaN, no bound above its energy, none that hangs.

A problem follows from its seed alone: shapes from one pixel to volumes, all floating-point types, sums of regularizers
with random settings, entropies from 1e-30 to 1e30, seeds, allowed labels, regions of interest and starts, each solver
with random settings. What may come out is a solution that keeps its word, or an error that says what to change.

    python tests/attacks/problems.py --seed 0 --count 1000

prints the faults with their seeds, and what became of all problems.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import regloss
from regloss import registry
from regloss.errors import MissingDependency, MissingForm, UsageError
from regloss.regularizer import Regularizer, Sum, offered_kind
from regloss.solver import DifferentiableSolver, Solution, Solver

SLOWEST = 10.0  # seconds of processor time, which others on the machine do not change
SHAPES = (
    (1,),
    (7,),
    (1, 1),
    (1, 5),
    (6, 1),
    (2, 2),
    (3, 4),
    (6, 3),
    (8, 7),
    (1, 1, 1),
    (1, 3, 1),
    (2, 3, 4),
    (3, 3, 3),
)
FLOATS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
WEIGHTS = (0.0, 1e-12, 1e-3, 0.3, 1.0, 4.0, 1e3, 1e6)


@dataclass
class Attack:
    """A problem, made from its seed."""

    seed: int
    regularizer: Regularizer
    solver: Solver
    image: Tensor
    unary: Tensor
    entropy: float
    roi: Tensor | None
    fixed: Tensor | None
    allowed: Tensor | None
    warm: Tensor | None

    def __str__(self) -> str:
        given = ", ".join(name for name in ("roi", "fixed", "allowed", "warm") if getattr(self, name) is not None)
        return (
            f"seed {self.seed}: {self.regularizer} with {self.solver}, image {self.image.dtype} "
            f"{tuple(self.image.shape)}, unary {self.unary.dtype} {tuple(self.unary.shape)}, entropy {self.entropy:g}, "
            f"with {given or 'nothing else'}"
        )


@dataclass
class Outcome:
    """What became of it: "solved", "refused" or "missing form"; with a fault, what was wrong."""

    kind: str
    message: str = ""
    fault: str = ""
    seconds: float = 0.0


# --------------------------------------------------------------------------------------------------------------------
# Making problems


def make(seed: int) -> Attack:
    """The problem of a seed.

    Raises:
        UsageError: settings that do not go together, which must say so.
    """
    dice, torch_dice = random.Random(seed), torch.Generator().manual_seed(seed)
    shape = dice.choice(SHAPES)
    batch, channels, classes = dice.choice((1, 1, 2, 3)), dice.choice((1, 3)), dice.choice((2, 2, 3, 4))
    image = torch.rand(batch, channels, *shape, generator=torch_dice, dtype=torch.float64)
    look = dice.random()
    if look < 0.1:
        image = torch.zeros_like(image)
    elif look < 0.3:
        image = image.round()
    size = 10.0 ** dice.choice((-30, -6, -1, 0, 0, 0, 1, 3))
    unary = size * torch.randn(batch, classes, *shape, generator=torch_dice, dtype=torch.float64)
    if dice.random() < 0.15:
        unary = torch.zeros_like(unary) if dice.random() < 0.5 else unary.round()
    image_type, unary_type = dice.choice(FLOATS), dice.choice(FLOATS)
    unary = unary.clamp(-3e4, 3e4).to(unary_type)
    image = image.to(image_type)

    def mask(probability: float) -> Tensor:
        return torch.rand(batch, *shape, generator=torch_dice) < probability

    roi = None
    if dice.random() < 0.3:
        roi = mask(0.6)
        roi.flatten(1)[:, 0] = True
    fixed = None
    if dice.random() < 0.35:
        labels = torch.randint(0, classes, (batch, *shape), generator=torch_dice)
        fixed = torch.where(mask(dice.choice((0.1, 0.5, 1.0))), labels, -1)
    allowed = None
    if dice.random() < 0.2:
        allowed = torch.rand(batch, classes, generator=torch_dice) < 0.6
        allowed[:, 0] = True
        if fixed is not None and dice.random() < 0.8:  # seeds that agree with it
            fixed = torch.where(allowed.gather(1, fixed.clamp(min=0).flatten(1)).reshape(fixed.shape), fixed, -1)
    warm = None
    if dice.random() < 0.15:
        warm = torch.randint(0, classes, (batch, *shape), generator=torch_dice)
    regularizer = _combination(dice, shape, classes)
    for _ in range(5):  # most sums have no form in common; a few of them are left, to be refused
        if regularizer.forms:
            break
        regularizer = _combination(dice, shape, classes)
    solver = _solver(dice, regularizer)
    entropy = _entropy(dice, regularizer, solver)
    return Attack(seed, regularizer, solver, image, unary, entropy, roi, fixed, allowed, warm)


def _combination(dice: random.Random, shape: tuple[int, ...], classes: int) -> Regularizer:
    count = dice.choice((1, 1, 1, 2, 2, 3))
    parts = [_regularizer(dice, shape, classes) for _ in range(count)]
    return parts[0] if count == 1 else Sum(parts, dice.choice((1.0, 1.0, 0.0, 2.5)))


def _entropy(dice: random.Random, regularizer: Regularizer, solver: Solver) -> float:
    positive = 10.0 ** (dice.uniform(-30, 30) if dice.random() < 0.4 else dice.uniform(-2, 1))
    kind = next((offered_kind(regularizer, kind) for kind in solver.accepts if offered_kind(regularizer, kind)), None)
    wanted = "any" if kind is None or dice.random() < 0.1 else solver.entropies(kind)
    return {"zero": 0.0, "positive": positive}.get(wanted, dice.choice((0.0, positive, positive)))


def _regularizer(dice: random.Random, shape: tuple[int, ...], classes: int) -> Regularizer:
    name = dice.choice(registry.names("regularizer"))
    weight = dice.choice(WEIGHTS) if dice.random() < 0.5 else dice.uniform(0, 3)
    settings: dict[str, Any] = {"weight": weight, **random_settings(dice, name, shape, classes)}
    return registry.create("regularizer", name, **settings)  # type: ignore[no-any-return]


def random_settings(dice: random.Random, name: str, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Settings of a built-in regularizer for images of a shape; none where its defaults will do."""
    pixels = math.prod(shape)
    if name == "grid-crf":
        connectivity = {1: (2, 8), 2: (4, 8), 3: (6, 18, 26, 8)}[len(shape)]
        return {
            "connectivity": 2 if len(shape) == 1 else dice.choice(connectivity),
            "sigma": dice.choice(("auto", 1e-3, 0.1, 2.0)),
            "diagonal": dice.choice(("distance", "unit")),
        }
    if name == "tv":
        return {"isotropic": dice.random() < 0.5, "edge_scale": dice.choice((0.0, 10.0, 1e6))}
    if name == "nltv":
        return {
            "neighbors": dice.randint(1, max(1, min(pixels - 1, 6))),
            "weights": dice.choice(("bilateral", "rbf", "zmp", "cosine")),
            "window": dice.choice((None, None, 1, 3)),
            "sigma_rgb": dice.choice((1e-3, 0.05, 2.0)),
            "near": dice.choice((0.0, 0.5)),
            "patch": dice.choice((0, 0, 1)),
        }
    if name == "threshold-dynamics":
        kernel = dice.choice(("gaussian", "truncated-gaussian", "disk"))
        return {
            "sigma": dice.choice((0.5, 1.0, 3.0)),
            "kernel": kernel,
            "edge": dice.choice((None, "sqrt", "plain")),
            "perimeter": dice.random() < 0.5,
        }
    if name == "volume":
        if dice.random() < 0.5:
            shares = [dice.choice((0.0, 0.1, 1.0, 2.0)) for _ in range(classes)]
            shares[0] += 0.5
            return {"volumes": tuple(share / sum(shares) for share in shares), "unit": "fraction"}
        lower = tuple(dice.choice((0.0, 0.2 / classes)) for _ in range(classes))
        upper = tuple(dice.choice((1.0, 0.9, 1.2 / classes)) for _ in range(classes))
        return {"lower": lower, "upper": upper, "unit": "fraction"}
    if name == "star":
        center = tuple(dice.randrange(length) for length in shape)
        return {"label": dice.randrange(classes), "center": dice.choice((None, center))}
    if name == "convex":
        return {"label": dice.randrange(classes), "radii": dice.choice(((1.5,), (1.5, 3), (1.5, 3, 5, 9, 15)))}
    if name == "gated-crf":
        return {
            "radius": dice.choice((1, 2, 5)),
            "sigma_xy": dice.choice((0.1, 6.0)),
            "sigma_rgb": dice.choice((1e-3, 0.1, 2.0)),
        }
    if name in ("dense-crf", "normalized-cut", "kernel-cut"):
        return {
            "sigma_xy": dice.choice((0.5, 5.0, 100.0)),
            "sigma_rgb": dice.choice((0.01, 0.1, 2.0)),
            "scale": dice.choice((0.5, 1.0)),
            "backend": dice.choice(("auto", "exact")),
        }
    return {}


_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "alpha-expansion": {"max_cycles": (1, 5), "bound_steps": (0, 20)},
    "pymaxflow": {"max_cycles": (1, 5)},
    "gco": {"max_cycles": (1, 5)},
    "mean-field": {"max_steps": (1, 20), "damping": (0.0, 0.5)},
    "pdhg": {
        "max_steps": (1, 40),
        "method": ("accelerated", "projected-gradient", "lazy"),
        "steps": ("diagonal", "norm"),
        "compiled": (True, False),
    },
    "dca": {"max_steps": (1, 5, 20), "method": ("nested", "single-loop"), "damped": (True, False)},
    "dual-chains": {"max_steps": (1, 20)},
    "parallel-potts": {"max_steps": (1, 60), "coarse_steps": (0, 20)},
}


def _solver(dice: random.Random, regularizer: Regularizer) -> Solver:
    # gco starts a process for each problem, and is somebody else's.
    names = [name for name in registry.names("solver") if name != "gco"]
    if dice.random() < 0.95:
        names = [name for name in names if _fits(name, regularizer)] or names
    name = dice.choice(names)
    settings = {key: dice.choice(values) for key, values in _SETTINGS.get(name, {}).items()}
    return registry.create("solver", name, **settings)  # type: ignore[no-any-return]


def _fits(name: str, regularizer: Regularizer) -> bool:
    try:
        cls = registry.get("solver", name)
    except MissingDependency:
        return False
    return any(offered_kind(regularizer, kind) is not None for kind in cls.accepts)


# --------------------------------------------------------------------------------------------------------------------
# Trying them


def attack(seed: int) -> Outcome:
    """Solve the problem of a seed, and for layers differentiate it."""
    outcome = _attempt(seed)
    if outcome.seconds > SLOWEST:  # it may have been compiled code's first use
        outcome = _attempt(seed)
    if outcome.seconds > SLOWEST:
        outcome.fault = f"{outcome.fault or f'seed {seed}'}\ntook {outcome.seconds:.1f} s"
    return outcome


def _attempt(seed: int) -> Outcome:
    start = time.process_time()
    problem: Attack | None = None
    try:
        problem = make(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcome = _solve(problem)
    except MissingForm as error:
        outcome = Outcome("missing form", str(error))
    except UsageError as error:
        outcome = Outcome("refused", str(error))
    except Exception:
        outcome = Outcome("crashed", fault=traceback.format_exc(limit=-6))
    outcome.seconds = time.process_time() - start
    if outcome.fault:
        outcome.fault = f"{problem or f'seed {seed}'}\n{outcome.fault}"
    return outcome


def _solve(problem: Attack) -> Outcome:
    term = problem.regularizer.bind(problem.image, problem.roi)
    solution = regloss.solve(
        term,
        problem.unary,
        problem.solver,
        entropy=problem.entropy,
        fixed=problem.fixed,
        allowed=problem.allowed,
        warm=problem.warm,
    )
    fault = _fault_of(problem, solution)
    if not fault and problem.seed % 5 == 0 and problem.entropy > 0 and isinstance(problem.solver, DifferentiableSolver):
        fault = _fault_of_layer(problem)
    return Outcome("solved", fault=fault)


def _fault_of(problem: Attack, solution: Solution) -> str:
    inside = torch.ones_like(solution.labels, dtype=torch.bool) if problem.roi is None else problem.roi
    s = solution.probabilities.movedim(1, -1)[inside].double()
    if bool(s.isnan().any()):
        return "NaN in the probabilities"
    if bool((s < 0).any()) or bool(((s.sum(1) - 1).abs() > 1e-2).any()):
        return f"probabilities sum to {s.sum(1)}"
    if not bool(solution.energy.isfinite().all()):
        return f"energy {solution.energy.tolist()}"
    if bool(solution.bound.isnan().any()) or bool((solution.bound == math.inf).any()):
        return f"bound {solution.bound.tolist()}"
    # Energies and bounds are sums in single precision at least.
    unary = problem.unary.double().masked_fill(~inside.unsqueeze(1), 0)
    size = unary.abs().sum().item() + problem.entropy * inside.sum().item() + solution.energy.abs().max().item()
    if bool((solution.bound.double() > solution.energy.double() + 1e-5 * size + 1e-12).any()):
        return f"bound {solution.bound.tolist()} above the energy {solution.energy.tolist()}"
    labels = solution.labels[inside]
    if bool((labels < 0).any()) or bool((labels >= problem.unary.shape[1]).any()):
        return "labels out of range"
    if len(solution.status) != len(problem.unary):
        return f"{len(solution.status)} statuses"
    if problem.fixed is not None:
        seeds = problem.fixed[inside]
        if bool(((seeds >= 0) & (seeds != labels)).any()):
            return "a seed was not kept"
    if problem.allowed is not None:
        free = inside if problem.fixed is None else inside & (problem.fixed < 0)
        taken = problem.allowed.gather(1, solution.labels.flatten(1)).reshape(solution.labels.shape)
        if not bool(taken[free].all()):
            return "a label that is not allowed was taken"
    return ""


def _fault_of_layer(problem: Attack) -> str:
    backward = ("implicit", "unrolled", "one-step")[problem.seed // 5 % 3]
    layer = regloss.RegularizedSoftmax(
        problem.regularizer,
        problem.solver,
        problem.entropy,
        max_steps=min(problem.solver.max_steps, 5),
        backward=backward,
    )
    logits = (-problem.unary).requires_grad_()
    found = layer.log_probabilities(logits, problem.image, problem.roi)
    inside = torch.ones_like(found[:, 0], dtype=torch.bool) if problem.roi is None else problem.roi
    if bool(found.isnan().any()):
        return f"{backward}: NaN in the layer's log-probabilities"
    # What a loss asks for: the logarithm of the most probable class.
    found.amax(1)[inside].sum().backward()
    assert logits.grad is not None
    # It grows with 1 / entropy, and overflows where that does.
    overflows = 1e3 * logits.numel() / problem.entropy > torch.finfo(logits.dtype).max
    if bool(logits.grad.isnan().any()) or not (overflows or bool(logits.grad.isfinite().all())):
        return f"{backward}: gradient {logits.grad.flatten().tolist()[:8]}"
    return ""


def main() -> int:
    """Run the attack; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first problem; the others follow")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so many seconds")
    parser.add_argument("--messages", action="store_true", help="print what was refused, and how often")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds: collections.Counter[str] = collections.Counter()
    messages: collections.Counter[str] = collections.Counter()
    faults, slowest, begin = 0, (0.0, -1), time.perf_counter()
    for seed in range(given.seed, given.seed + given.count):
        if time.perf_counter() - begin > given.seconds:
            break
        outcome = attack(seed)
        kinds[outcome.kind] += 1
        if outcome.kind == "refused":
            messages[outcome.message[:110]] += 1
        slowest = max(slowest, (outcome.seconds, seed))
        if outcome.fault:
            faults += 1
            print(outcome.fault, end="\n\n", flush=True)
    if given.messages:
        for message, count in messages.most_common(60):
            print(f"{count:5d}  {message}")
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print(
        f"{sum(kinds.values())} problems from seed {given.seed}: {done}; {faults} faults; "
        f"slowest {slowest[0]:.2f} s (seed {slowest[1]})"
    )
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
