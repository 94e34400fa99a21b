"""Writes regloss/losses/__init__.pyi: the built-in losses with their settings, for type checkers and editors.

Run by `make stub`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path

import regloss
from regloss.losses.making import loss_of
from regloss.registry import OWN_DISTRIBUTION, components

STUB = Path(regloss.__file__).parent / "losses" / "__init__.pyi"

HEAD = '''"""The built-in losses, for type checkers and editors. Written by `make stub`: do not edit."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import Module

from regloss.losses.making import loss_of as loss_of
from regloss.losses.modules import DataLoss as DataLoss
from regloss.losses.modules import Loss as Loss
from regloss.losses.modules import RegularizerLoss as RegularizerLoss
'''


def losses_stub() -> str:
    """The text of the stub, from the signatures of the built-in regularizers and data terms."""
    text = HEAD
    for kind in ("regularizer", "data-term"):
        own = [component for component in components(kind) if component.distribution == OWN_DISTRIBUTION]
        for component in sorted(own, key=lambda component: component.name):
            text += _class(loss_of(component.name))
    return text + "\ndef __getattr__(name: str) -> type[Loss]: ...  # those of plugins\n"


def _class(made: type) -> str:
    doc = inspect.getdoc(made).replace("\n", "\n    ").replace("\n    \n", "\n\n")
    lines = [f"\nclass {made.__name__}({made.__base__.__name__}):", f'    """{doc}', '    """', ""]
    lines += ["    def __init__(", "        self,"]
    hints = _hints(made.__base__) | _hints(made.component)
    keyword_only = False
    for name, parameter in inspect.signature(made).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("        *,")
        annotation = _text(hints[name])
        default = "" if parameter.default is inspect.Parameter.empty else f" = {_default(parameter.default)}"
        line = f"        {name}: {annotation}{default},"
        if len(line) > 120:  # as ruff breaks it
            inner = "".join(f"            {value},\n" for value in annotation[len("Literal[") : -1].split(", "))
            line = f"        {name}: Literal[\n{inner}        ]{default},"
        lines.append(line)
    return "\n".join([*lines, "    ) -> None: ...", ""])


def _hints(cls: type) -> dict[str, object]:
    # A dataclass writes its __init__ elsewhere; its fields know where they come from.
    found = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    return found or typing.get_type_hints(cls.__init__)


def _text(hint: typing.Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is typing.Literal:
        return f"Literal[{', '.join(_default(value) for value in arguments)}]"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_text, arguments))
    name = getattr(origin or hint, "__name__", None) or str(hint).removeprefix("typing.")
    return f"{name}[{', '.join(map(_text, arguments))}]" if arguments else name


def _default(value: object) -> str:
    plain = repr(value).replace("'", '"')
    return plain if re.fullmatch(r'[\w.+-]+|"[\w-]*"', plain) and plain not in ("inf", "nan") else "..."


if __name__ == "__main__":
    STUB.write_text(losses_stub(), encoding="utf-8")
