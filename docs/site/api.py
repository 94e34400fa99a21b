"""The pages of the API: which names stand where. What is said of them, mkdocstrings takes from the docstrings."""

from __future__ import annotations

from dataclasses import dataclass

import regloss
from regloss import registry


@dataclass(frozen=True)
class Page:
    """A page of names of the core.

    Attributes:
        title: its heading.
        about: its first paragraph.
        modules: of `regloss._CORE`, whose names it has.
        more: further objects, by their full path.
    """

    title: str
    about: str
    modules: tuple[str, ...]
    more: tuple[str, ...] = ()


CORE = {
    "training": Page(
        "Training loops",
        "What a training loop of your own is made of. See [your own loop](../start/your-loop.md) and the "
        "[custom training loop](../guide/custom-loop.md).",
        ("batch", "outer_loop", "training.proposal_engine", "schedule", "data_term", "divergence"),
    ),
    "solving": Page(
        "Solving",
        "Minimising unaries plus a prior over labels or probabilities. See [concepts](../guide/concepts.md#solving).",
        ("solver", "alternation", "denoising"),
    ),
    "layers": Page("Layers", "Priors inside of a network. Built-in ones: [layers](layer.md).", ("layer",)),
    "priors": Page(
        "Priors and forms",
        "What a prior offers to solvers. See "
        "[forms](../guide/concepts.md#forms-which-solver-can-serve-which-regularizer).",
        ("regularizer", "forms", "operators", "dual_sets"),
        ("regloss.constraint.HardConstraint", "regloss.constraint.ConstraintTerm"),
    ),
    "images": Page(
        "Single images",
        "Segmenting one image without a trained network. Built-in ones: [segmenters](segmenter.md).",
        ("segmenter", "region_force"),
    ),
    "data": Page(
        "Data, trained models, scores",
        "Samples to train on, what a training leaves, and how it is scored.",
        ("dataset", "apps.trained_model"),
        ("regloss.metrics.scores.Scores",),
    ),
    "registry": Page("Registry and errors", "Components by name, and what is raised.", ("registry", "errors")),
}

OTHER = {
    "losses": ("Losses", "Priors and data terms as `nn.Module`; see [losses](../guide/losses.md).", "regloss.losses"),
    "hooks": (
        "Hooks",
        "What a plugin may do beside components; see [plugins](../guide/plugins.md#hooks).",
        "regloss.hooks.Specification",
    ),
    "testing": (
        "Conformance suites",
        "What a plugin's tests inherit; see [plugins](../guide/plugins.md#conformance).",
        "regloss.testing",
    ),
}
"""Modules that are documented whole."""


def entry(path: str, heading: str, **options: str) -> str:
    """What tells mkdocstrings to document the object at ``path``."""
    lines = [f"::: {path}", "    options:", f"      heading: {heading}", f"      toc_label: {heading}"]
    return "\n".join([*lines, *(f"      {name}: {value}" for name, value in options.items())]) + "\n"


def plural(kind: str) -> str:
    """Heading of a kind's page."""
    return {"dataset": "Data sets"}.get(kind, kind.replace("-", " ").capitalize() + "s")


def api_pages() -> dict[str, str]:
    """Text of every page by its name.

    Raises:
        ValueError: a module of the core that no page has.
    """
    missing = set(regloss._CORE) - {module for page in CORE.values() for module in page.modules}
    if missing:
        raise ValueError(
            f"No page of the API has the names of {', '.join(sorted(missing))}: docs/site/api.py says which."
        )
    texts = {}
    for name, page in CORE.items():
        entries = [
            entry(f"regloss.{module}.{public}", f"regloss.{public}")
            for module in page.modules
            for public in regloss._CORE[module]
        ]
        entries += [entry(path, path) for path in page.more]
        texts[name] = f"# {page.title}\n\n{page.about}\n\n" + "\n".join(entries)
    for kind in registry.KINDS:
        entries = []
        for component in registry.components(kind):
            if component.distribution == "regloss":
                module, _, name = component.target.partition(":")
                entries.append(entry(module, component.name, members=f"[{name}]"))
        about = (
            "By the names that configurations use; each class is there as `regloss.CLASS`. Tables of all settings: "
            "[components](../guide/components.md)."
        )
        texts[kind] = f"# {plural(kind)}\n\n{about}\n\n" + "\n".join(entries)
    components = {component.target for kind in registry.KINDS for component in registry.components(kind)}
    texts["images"] += "\n" + "\n".join(
        entry(target.replace(":", "."), f"regloss.{name}")
        for name, target in registry.public_targets().items()
        if target not in components
    )
    for name, (title, about, path) in OTHER.items():
        texts[name] = f"# {title}\n\n{about}\n\n" + entry(path, path)
    rows = [f"| [{page.title}]({name}.md) | {page.about} |" for name, page in CORE.items()]
    rows += [f"| [{title}]({name}.md) | {about} |" for name, (title, about, _) in OTHER.items()]
    rows += [f"| [{plural(kind)}]({kind}.md) | every built-in one |" for kind in registry.KINDS]
    texts["index"] = (
        "# API reference\n\nPublic names, from their docstrings. All are there as `regloss.NAME`, and imported when "
        "they are first used.\n\n| page | |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    return texts
