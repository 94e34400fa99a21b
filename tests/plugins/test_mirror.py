"""Tests mirror the tree: each built-in component's conformance suite is inherited in the folder of its kind's tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from regloss import registry

HERE = Path(__file__).parent
OWN = [c for kind in registry.KINDS for c in registry.components(kind) if c.distribution == "regloss"]

WITHOUT_SUITE = {
    "gco": "each of its solutions is a process of its own, and the suite asks for hundreds; test_discrete.py has it",
}
"""Components that do not inherit their kind's suite, and why."""


def suites(folder: Path) -> list[str]:
    """The text of each class in the test modules of ``folder`` that derives from a conformance suite, at any depth."""
    found = []
    for module in sorted(folder.glob("test_*.py")):
        text = module.read_text(encoding="utf-8")
        derived: set[str] = set()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                if any(base.endswith("Conformance") or base in derived for base in bases):
                    derived.add(node.name)
                    found.append(ast.get_source_segment(text, node) or "")
    return found


@pytest.mark.parametrize("component", OWN, ids=lambda component: f"{component.kind}-{component.name}")
def test_every_component_inherits_its_suite(component: registry.Component) -> None:
    if component.name in WITHOUT_SUITE:
        pytest.skip(WITHOUT_SUITE[component.name])
    module, _, name = component.target.partition(":")
    package, kind, *_ = module.split(".")
    assert package == "regloss_plugins"
    made = any(f"{name}(" in text or f'"{component.name}"' in text for text in suites(HERE / kind))
    assert made, f"no class in tests/plugins/{kind} derives from a suite of regloss.testing and makes {name}"
