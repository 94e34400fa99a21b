"""The core holds no method: it imports, and works with what a stranger brings, where every plugin is taken away."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import regloss

PACKAGE = Path(regloss.__file__).parent
ROOMS = ("training", "io", "metrics", "report", "apps")
"""What is built on the core, and may need plugins."""


def core_files() -> list[Path]:
    """Modules of the core, with the conformance suites."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ROOMS)


def module_of(path: Path) -> str:
    parts = ("regloss", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


WITHOUT_PLUGINS = """
import importlib
import importlib.metadata
import sys


class NoPlugins:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "regloss_plugins":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NoPlugins())
importlib.metadata.entry_points = lambda **chosen: importlib.metadata.EntryPoints()
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

A_STRANGERS_SEGMENTER = """
import torch
import regloss
from regloss.registry import KINDS

assert all(regloss.names(kind) == [] for kind in KINDS)


@regloss.register("segmenter", "brightness")
class Brightness(regloss.Segmenter):
    def segment(self, task):
        labels = (task.image.mean(1) * task.phases).long().clamp(max=task.phases - 1)
        one_hot = torch.nn.functional.one_hot(labels, task.phases).movedim(-1, 1).float()
        return regloss.Segmentation(
            labels=labels, probabilities=one_hot, energy=0.0, steps=1, status=regloss.Status.OPTIMAL
        )


found = regloss.create("segmenter", "brightness")(torch.tensor([[[0.1, 0.9]]]), phases=2)
assert found.labels.tolist() == [[0, 1]]


@regloss.register("layer", "plain")
class Plain(regloss.RegularizedLayer):
    def log_probabilities(self, logits, image, roi=None, warm=None, spacing=None):
        return logits.log_softmax(1)


image = torch.rand(1, 3, 4, 4)
whole = regloss.attach(torch.nn.Conv2d(3, 2, 1), regloss.create("layer", "plain"))
assert torch.allclose(whole(image).exp().sum(1), torch.ones(1, 4, 4))
"""


def test_the_core_works_without_any_plugin():
    names = [module_of(path) for path in core_files()]
    assert {"regloss", "regloss.layer", "regloss.segmenter", "regloss.solver", "regloss.alternation"} <= set(names)
    code = WITHOUT_PLUGINS + A_STRANGERS_SEGMENTER
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_no_module_of_the_core_imports_a_plugin_or_what_is_built_on_it():
    """Not even for type checkers; nor by a name within a text."""
    for path in core_files():
        text = path.read_text(encoding="utf-8")
        assert "regloss_plugins" not in text, path
        for node in ast.walk(ast.parse(text)):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in found:
                assert not any(f"{name}.".startswith(f"regloss.{room}.") for room in ROOMS), f"{path} imports {name}"
