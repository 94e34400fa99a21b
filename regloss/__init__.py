"""regloss: regularized losses and layers for image segmentation with few, weak or no labels.

Nothing is imported until it is used: ``import regloss`` itself does not import torch. The core's names are listed here;
every built-in method (``regloss.GridCRF``, ``regloss.guided_filter``) is found by its entry point. ``__init__.pyi``
spells all of them out for type checkers and editors; ``make stub`` writes it.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_CORE = {
    "apps.trained_model": ("TrainedModel", "load"),
    "alternation": ("Alternation", "alternate"),
    "batch": ("Batch",),
    "data_term": ("DataTerm",),
    "dataset": ("Dataset", "Sample"),
    "denoising": ("denoise",),
    "divergence": ("Divergence",),
    "dual_sets": ("DualSet",),
    "errors": (
        "AmbiguousName",
        "BrokenPlugin",
        "MissingDependency",
        "MissingForm",
        "ReglossError",
        "UnknownComponent",
        "UsageError",
    ),
    "forms": (
        "Composite",
        "Concave",
        "ConcaveFunction",
        "Form",
        "Graph",
        "GridGraph",
        "Projection",
        "Saddle",
        "SaddlePart",
    ),
    "layer": ("RegularizedLayer", "RegularizedNetwork", "attach"),
    "operators": ("LinearOperator",),
    "outer_loop": ("OuterLoop", "Proposal", "Update"),
    "region_force": ("RegionForce",),
    "registry": ("create", "get", "names", "register", "unregister"),
    "regularizer": ("Regularizer", "Sum", "Term"),
    "schedule": ("Schedule",),
    "segmenter": ("Segmentation", "Segmenter"),
    "solver": ("Problem", "Progress", "Solution", "Solver", "Status", "solve"),
    "training.proposal_engine": ("Proposals",),
}
"""Modules, each with its public names. No method: those are in pyproject.toml, among the entry points."""

_MODULES = ("errors", "hooks", "losses", "registry")
"""Modules that are there as ``regloss.MODULE`` without an import of their own."""


def _targets() -> dict[str, str]:
    """``module:name`` of every public name, methods included; none is imported."""
    from regloss.registry import public_targets

    return public_targets() | {name: f"regloss.{module}:{name}" for module in _CORE for name in _CORE[module]}


def _find(name: str) -> Any:
    """What ``regloss.NAME`` is, imported now.

    Raises:
        AttributeError: there is no such name.
        BrokenPlugin, MissingDependency: see `regloss.registry.load`.
    """
    if name in _MODULES:
        return importlib.import_module(f"regloss.{name}")
    for module, public in _CORE.items():
        if name in public:
            return getattr(importlib.import_module(f"regloss.{module}"), name)
    from regloss.registry import load_public

    return load_public(name)


def _importable() -> list[str]:
    """What ``from regloss import *`` brings: every public name, but for those that need an extra which is missing."""
    from regloss.errors import MissingDependency

    found = ["__version__"]
    for name in sorted(_targets()):
        try:
            _find(name)
        except MissingDependency:
            continue
        found.append(name)
    return found


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _importable()
    if name.startswith("_"):
        raise AttributeError(f"module 'regloss' has no attribute {name!r}")
    value = _find(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__all__", *_MODULES, *_targets(), *globals()})
