"""Fast code for given types on a given kind of device, found without anyone naming it.

What an operator, or an operator and a dual set, needs done has a reference in tensor operations, which runs everywhere
and is what autograd follows. A module that can do it faster for certain types on a certain device registers a function:

    @fast("dual-ascent", Gradient, Box, device="cpu")
    def grid_ascent(problem): ...

and is listed as an entry point in the group ``regloss.kernels``, whose name is free. `find` looks a task up by the
exact types (a subclass may compute something else) and the device type; the modules are imported at the first look.

Tasks and what their functions are:

    "dual-ascent"  (operator, dual set)   `regloss.dual_problem.DualAscent`
    "dual-steps"   (operator, dual set)   see `regloss.dual_problem.DualSteps`
    "joint-steps"  ()                     likewise, for any number of parts
    "joint-part"   (operator, dual set)   how the "joint-steps" of the same device have such a part
    "adjoint"      (operator, dual set)   a function from `regloss.implicit.AdjointProblem` to an `Adjoint`, or to None
                                          where the reference is to do it
    "joint-adjoint" ()                    likewise from a `JointAdjointProblem`, for any number of parts
    "adjoint-part" (operator, dual set)   how the "joint-adjoint" of the same device has such a part
    "gaussian-sums" ()                    a function from features (N, F) and values (N, K) to their sums (N, K) with
                                          Gaussian weights, or to None where the reference is to do it
    "gated-windows" ()                    a function from values, image, masks and window of a gated CRF to the sums of
                                          its energy, or to None where the reference is to do it
    "edge-sums"    (operator,)            an object with gather(operator, values (B, K, N)) and scatter(operator, flows
                                          (B, K, E)), K and K^T of `regloss.operators.EdgeDifferences`, or None where
                                          the reference is to do it
    "tree-sums"    (operator,)            likewise of the one class of `regloss.operators.TreeDifferences`, with values
                                          and flows (B, N)
    "nearest-others" ()                   a function from features, places, size, window and count to the nearest others
                                          of each point, or to None where the reference is to do it
    "potts-steps"  ()                     a function that takes steps of the relaxed Potts model, or gives None where
                                          the reference is to take them
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from regloss.registry import admitted_entry_points

GROUP = "regloss.kernels"

Code = TypeVar("Code")

_registered: dict[tuple[str, tuple[type, ...], str], Any] = {}
_loaded: set[str] = set()
_lock = threading.Lock()


def fast(task: str, *types: type, device: str) -> Callable[[Code], Code]:
    """Register what is decorated as the code for ``task`` on ``types``, on devices of the type ``device`` ("cuda")."""

    def register(code: Code) -> Code:
        _registered[task, types, device] = code
        return code

    return register


def find(task: str, *types: type, device: torch.device) -> Any | None:
    """The code for ``task`` on ``types``; None = there is none, and the reference does it."""
    if GROUP not in _loaded:
        _load()
    return _registered.get((task, types, device.type))


def _load() -> None:
    with _lock:
        if GROUP in _loaded:
            return
        for entry, distribution, _ in admitted_entry_points(GROUP):
            try:
                importlib.import_module(entry.value)
            except Exception as error:  # a stranger's module may fail in any way; the reference still does its work
                warnings.warn(
                    f"Fast code {entry.name!r} of {distribution or 'an unknown distribution'} could not be loaded and "
                    f"is left out, which may make solvers slower: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        _loaded.add(GROUP)
