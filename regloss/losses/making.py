"""Loss classes from component classes: name, signature, docstring.

A component class says all that is needed: its signature the settings, its docstring what they mean.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from regloss.errors import UnknownComponent, UsageError
from regloss.losses.modules import DataLoss, Loss, RegularizerLoss
from regloss.registry import KINDS, components, get, load, names, settings

BASES: Mapping[str, type[Loss]] = {"regularizer": RegularizerLoss, "data-term": DataLoss}
SUFFIX = "Loss"


def loss_of(component: str | type) -> type[Loss]:
    """The loss class of a regularizer or data term, built in or not.

    Args:
        component: a registered name (where a regularizer and a data term share one, the regularizer's), or the class.

    Raises:
        UnknownComponent: there is no such regularizer or data term.
        UsageError: a class that is neither; or one with a setting of a name that all losses have.

    >>> loss_of("grid-crf")(weight=25.0).regularizer.weight
    25.0
    """
    if isinstance(component, type):
        for kind in BASES:
            if issubclass(component, _interface(kind)):
                return _made(kind, cast(Any, component))
        raise UsageError(f"A loss is made of a regularizer or a data term; {component.__qualname__} is neither.")
    for kind in BASES:
        if any(component in (known.name, known.qualified) for known in components(kind)):
            return _made(kind, get(kind, component))
    known = ", ".join(names("regularizer") + names("data-term"))
    raise UnknownComponent(f"There is no regularizer or data term called {component!r}. Known: {known}.")


def named(attribute: str) -> type[Loss] | None:
    """The loss class called ``attribute``: the component's class, or its registered name without hyphens, and "Loss".

    >>> named("TVLoss").__name__, named("TotalVariationLoss") is named("TVLoss"), named("SomeLoss")
    ('TVLoss', True, None)
    """
    stem = attribute.removesuffix(SUFFIX)
    if stem == attribute or not stem[:1].isupper():
        return None
    for kind in BASES:
        for component in components(kind):
            if stem == component.target.rpartition(":")[2] or stem.lower() == component.name.replace("-", ""):
                return _made(kind, load(component))
    return None


def loss_names() -> list[str]:
    """Names of all losses, sorted; nothing is imported."""
    found = [component for kind in BASES for component in components(kind)]
    return sorted({_name(component.target.rpartition(":")[2], component.name) for component in found})


def _interface(kind: str) -> type:
    from importlib import import_module

    module, _, name = KINDS[kind].interface.partition(":")
    return cast(type, getattr(import_module(module), name))


def _name(class_name: str, registered: str) -> str:
    # "tv" is what the field says of a class that spells itself out; "star" and "convex" would be too little.
    short = registered.replace("-", "")
    return (short.upper() if len(short) == 2 else class_name) + SUFFIX


@cache
def _made(kind: str, cls: Any) -> type[Loss]:
    base = BASES[kind]
    common = [parameter for parameter in settings(base).values() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    chosen = settings(cls)
    for parameter in common:
        if parameter.name in chosen:
            raise UsageError(
                f"No loss can be made of {cls.__qualname__}: its setting {parameter.name!r} has a name that every loss "
                f"has. Rename it, or give the object to regloss.losses.{base.__name__}."
            )
    extra = {parameter.name for parameter in common}
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([first, *chosen.values(), *common])
    registered = next((c.name for c in components(kind) if c.target == f"{cls.__module__}:{cls.__qualname__}"), "")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - the class's own
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as cause:
            known = ", ".join([*chosen, *extra])
            raise UsageError(f"{made.__name__}: {cause}. Its settings are: {known}.") from cause
        given.pop("self")
        shared = {name: given.pop(name) for name in extra & set(given)}
        base.__init__(self, cls(**given), **shared)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__doc__ = f"See the class; the settings before ``{common[0].name}`` are those of `{cls.__qualname__}`."
    name = _name(cls.__name__, registered)
    made = type(
        name,
        (base,),
        {
            "__init__": __init__,
            "__module__": "regloss.losses",
            "__doc__": _docstring(kind, cls, name, base),
            "component": cls,
        },
    )
    return cast(type[Loss], made)


# --------------------------------------------------------------------------------------------------------------------
# Docstrings


def _docstring(kind: str, cls: type, name: str, base: type) -> str:
    summary, arguments = _parts(cls)
    of_base = _sections(inspect.getdoc(base) or "")
    shared = of_base["Args"].split("\n")
    start = next(number for number, line in enumerate(shared) if line.startswith("ignore_index:"))
    sections = {
        "Args": "\n".join([*arguments, *shared[start:]]),
        "Shape": of_base["Shape"],
        "Raises": of_base["Raises"],
        "Examples": _example(kind, cls, name),
    }
    source = f"The formula and its source: ``help({cls.__module__})``.\nThe settings alone: `{cls.__qualname__}`."
    body = [f"{summary}", source]
    body += [f"{title}:\n{textwrap.indent(text, '    ')}" for title, text in sections.items()]
    return "\n\n".join(body) + "\n"


def _parts(cls: type) -> tuple[str, list[str]]:
    """First paragraph of the docstring, and the lines of its arguments; from the signature where it has none."""
    documented = cls.__doc__ is not None and not cls.__doc__.startswith(f"{cls.__name__}(")  # a dataclass's own is that
    text = inspect.getdoc(cls) or "" if documented else ""
    summary = text.split("\n\n")[0].replace("\n", " ") or f"{cls.__name__}, as a loss."
    found = _sections(text).get("Args")
    if found is not None:
        return summary, found.split("\n")
    lines = []
    for parameter in settings(cls).values():
        default = "" if parameter.default is inspect.Parameter.empty else f"; {parameter.default!r} if not given"
        lines.append(f"{parameter.name}: {inspect.formatannotation(parameter.annotation)}{default}.")
    return summary, lines


def _sections(text: str) -> dict[str, str]:
    """The indented blocks of a docstring by their titles, without indentation."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.split("\n"):
        if line and not line[0].isspace():
            current = sections.setdefault(line[:-1], []) if line.endswith(":") and line[:-1].isalpha() else None
        elif current is not None:
            current.append(line)
    return {title: textwrap.dedent("\n".join(lines)).strip("\n") for title, lines in sections.items()}


def _example(kind: str, cls: Any, name: str) -> str:
    needed = ", ".join(f"{key}={value!r}" for key, value in cls.example.items())
    arguments = ["logits"]
    lines = [">>> import regloss, torch", f">>> loss = regloss.losses.{name}({needed})"]
    lines.append(">>> logits = torch.randn(2, 2, 16, 16, requires_grad=True)")
    if kind == "data-term" and cls.needs_labels:
        lines += [">>> target = torch.full((2, 16, 16), 255)  # unlabelled", ">>> target[:, 4], target[:, 12] = 0, 1"]
        arguments.append("target")
    try:
        needs_image = cls(**cls.example).needs_image
    except (TypeError, UsageError):  # the defaults do not make one, and no example says what does
        return "\n".join([lines[0], f">>> loss = regloss.losses.{name}(...)  # doctest: +SKIP"])
    if needs_image:
        lines.append(">>> image = torch.rand(2, 3, 16, 16)")
        arguments.append("image=image")
    lines.append(f">>> loss({', '.join(arguments)}).backward()")
    return "\n".join(lines)
