"""Writes regloss/__init__.pyi: every public name of the package, for type checkers and editors. Run by `make stub`."""

from __future__ import annotations

from pathlib import Path

import regloss

STUB = Path(regloss.__file__).with_suffix(".pyi")

HEAD = '''"""Every public name of regloss, for type checkers and editors. Written by `make stub`: do not edit."""

'''


def public_stub() -> str:
    """The text of the stub, from the core's table and the entry points of the installed distribution."""
    targets = {**regloss._targets(), **{module: f"regloss:{module}" for module in regloss._MODULES}}
    imports = []
    for name, target in targets.items():
        module, _, attribute = target.partition(":")
        # Twice the name: this is how a stub says that what it imports is its own to offer.
        imports.append((module, attribute, f"from {module} import {attribute} as {name}\n"))
    return HEAD + "".join(line for *_, line in sorted(imports)) + "\n__version__: str\n__all__: list[str]\n"


if __name__ == "__main__":
    STUB.write_text(public_stub(), encoding="utf-8")
