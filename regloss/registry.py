"""Components by name, found without importing them.

Every component, built in or a stranger's, is an entry point of an installed distribution, or is registered by hand in a
notebook or script with `register`. Looking names up reads metadata only; the module is imported when `get` is called.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from regloss.errors import AmbiguousName, BrokenPlugin, MissingDependency, ReglossError, UnknownComponent, UsageError
from regloss.settings import CheckedSettings, complaint

Class = TypeVar("Class", bound=type)

OWN_DISTRIBUTION = "regloss"

FUNCTIONS = "regloss.functions"
"""Entry-point group of what is public and no component: ``guided_filter = "module:guided_filter"`` makes it
``regloss.guided_filter``."""


@dataclass(frozen=True)
class Kind:
    """A kind of component: its entry-point group, and the interface that its classes implement."""

    group: str
    interface: str  # "module:Class", imported only when a component of this kind is


KINDS: Mapping[str, Kind] = {
    "regularizer": Kind("regloss.regularizers", "regloss.regularizer:Regularizer"),
    "solver": Kind("regloss.solvers", "regloss.solver:Solver"),
    "divergence": Kind("regloss.divergences", "regloss.divergence:Divergence"),
    "data-term": Kind("regloss.data_terms", "regloss.data_term:DataTerm"),
    "outer-loop": Kind("regloss.outer_loops", "regloss.outer_loop:OuterLoop"),
    "region-force": Kind("regloss.region_forces", "regloss.region_force:RegionForce"),
    "layer": Kind("regloss.layers", "regloss.layer:RegularizedLayer"),
    "segmenter": Kind("regloss.segmenters", "regloss.segmenter:Segmenter"),
    "network": Kind("regloss.networks", "torch.nn:Module"),
    "dataset": Kind("regloss.datasets", "regloss.dataset:Dataset"),
}


@dataclass(frozen=True)
class Component:
    """One registered component, not yet imported.

    Attributes:
        kind: a key of `KINDS`.
        name: the name that configurations use.
        distribution: the installed distribution that offers it; "" for one registered by hand.
        target: "module:Class".
        version: the distribution's version, "" if registered by hand.
    """

    kind: str
    name: str
    distribution: str
    target: str
    version: str = ""

    @property
    def qualified(self) -> str:
        """``distribution:name``, which is unique."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name


_by_hand: dict[tuple[str, str], type] = {}


def _interface(kind: str) -> type:
    module, _, name = KINDS[kind].interface.partition(":")
    interface: type = getattr(importlib.import_module(module), name)
    return interface


def _check_kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UsageError(f"There is no kind of component called {kind!r}. The kinds are: {', '.join(KINDS)}.")
    return KINDS[kind]


def allowed_distributions() -> frozenset[str] | None:
    """Distributions that ``REGLOSS_PLUGINS`` admits beside regloss itself; None where it is not set."""
    value = os.environ.get("REGLOSS_PLUGINS")
    if value is None:
        return None
    return frozenset(_normalised(part) for part in value.split(",") if part.strip())


def _normalised(distribution: str) -> str:
    return distribution.strip().lower().replace("_", "-").replace(".", "-")


def admitted_entry_points(group: str) -> list[tuple[importlib.metadata.EntryPoint, str, str]]:
    """Entry points of ``group`` that ``REGLOSS_PLUGINS`` admits, each with its distribution's name and version."""
    allowed = allowed_distributions()
    found = []
    for entry in importlib.metadata.entry_points(group=group):
        distribution = _normalised(entry.dist.name) if entry.dist else ""
        if allowed is not None and distribution != OWN_DISTRIBUTION and distribution not in allowed:
            continue
        found.append((entry, distribution, entry.dist.version if entry.dist else ""))
    return found


@cache
def _installed(group: str, admitted: str | None) -> tuple[tuple[str, str, str, str], ...]:
    # `admitted` is the environment variable's value: it only keys the cache, so that a change of it is noticed.
    return tuple(
        (entry.name, distribution, entry.value, version)
        for entry, distribution, version in admitted_entry_points(group)
    )


def refresh() -> None:
    """Forget what was found, so that a distribution installed while Python runs is seen."""
    _installed.cache_clear()


def components(kind: str) -> list[Component]:
    """Every component of ``kind``, sorted by name, none of them imported."""
    group = _check_kind(kind).group
    found = [
        Component(kind, name, distribution, target, version)
        for name, distribution, target, version in _installed(group, os.environ.get("REGLOSS_PLUGINS"))
    ]
    found += [
        Component(kind, name, "", f"{cls.__module__}:{cls.__qualname__}")
        for (of_kind, name), cls in _by_hand.items()
        if of_kind == kind
    ]
    return sorted(found, key=lambda component: (component.name, component.distribution))


def names(kind: str) -> list[str]:
    """Names of all components of ``kind``, sorted; nothing is imported.

    >>> "grid-crf" in names("regularizer")
    True
    """
    return sorted({component.name for component in components(kind)})


def find(kind: str, name: str) -> Component:
    """The component that ``name`` means: a plain name, or ``distribution:name``.

    Raises:
        UnknownComponent: nothing is called that; the message suggests the nearest names.
        AmbiguousName: several distributions offer it; the message lists the qualified names.
    """
    candidates = components(kind)
    matches = [component for component in candidates if name in (component.name, component.qualified)]
    by_hand = [component for component in matches if not component.distribution]
    if by_hand:  # registered in this process: the user's own choice wins over what is installed
        return by_hand[0]
    if not matches:
        known = sorted({component.name for component in candidates})
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        raise UnknownComponent(f"There is no {kind} called {name!r}.{hint} Known: {', '.join(known) or 'none'}.")
    if len(matches) > 1:
        qualified = ", ".join(component.qualified for component in matches)
        raise AmbiguousName(f"The {kind} {name!r} is offered more than once. Say which one you mean: {qualified}.")
    return matches[0]


def load(component: Component) -> type:
    """Import ``component``.

    Raises:
        BrokenPlugin: importing it failed, or what it names is not of its kind's interface.
    """
    if not component.distribution:
        return _by_hand[(component.kind, component.name)]
    entry = importlib.metadata.EntryPoint(component.name, component.target, KINDS[component.kind].group)
    owner = f"The {component.kind} {component.name!r} of distribution {component.distribution!r} ({component.target})"
    try:
        cls: Any = entry.load()
    except MissingDependency:
        raise
    except (Exception, SystemExit) as cause:  # a stranger's module may raise anything, or exit; the cause is kept
        raise BrokenPlugin(f"{owner} cannot be imported: {type(cause).__name__}: {cause}") from cause
    interface = _interface(component.kind)
    if not (isinstance(cls, type) and issubclass(cls, interface)):
        raise BrokenPlugin(f"{owner} is not a class derived from {interface.__module__}.{interface.__qualname__}.")
    return cls


def get(kind: str, name: str) -> type:
    """The class registered as ``name``; it is imported now.

    Args:
        kind: a key of `KINDS`: "regularizer", "solver", "divergence", "data-term", "outer-loop", "region-force",
            "layer", "segmenter", "network" or "dataset".
        name: a plain name, or ``distribution:name`` where two distributions offer the same.

    Raises:
        UnknownComponent, AmbiguousName, BrokenPlugin: see `find` and `load`.

    >>> get("regularizer", "grid-crf").__name__
    'GridCRF'
    """
    return load(find(kind, name))


def settings(cls: type) -> dict[str, inspect.Parameter]:
    """The settings that ``cls`` takes, by name, in the order of its signature.

    >>> list(settings(get("regularizer", "tv")))
    ['weight', 'isotropic', 'edge_scale']
    """
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind not in variadic and name != "self"
    }


def create(kind: str, name: str, /, **chosen: Any) -> Any:
    """Make a component by name.

    Args:
        kind: see `get`.
        name: see `get`.
        **chosen: the component's settings.

    Raises:
        UsageError: a setting that the component does not have (the message names those it has), one of the wrong type,
            or none where it needs one.
        UnknownComponent, AmbiguousName, BrokenPlugin: see `get`.

    >>> create("regularizer", "grid-crf", weight=25.0).connectivity
    8
    """
    cls = get(kind, name)
    check_settings(kind, name, chosen)
    chosen = _renamed(cls, chosen)
    missing = [
        key
        for key, parameter in settings(cls).items()
        if parameter.default is inspect.Parameter.empty and key not in chosen
    ]
    if missing:
        raise UsageError(f"The {kind} {name!r} cannot be made without: {', '.join(missing)}.")
    try:
        made = cls(**chosen)
    except ReglossError:  # some are TypeErrors too
        raise
    except TypeError as cause:  # a text where a number belongs, say; which setting it is only the class knows
        raise UsageError(f"The {kind} {name!r} cannot be made with the settings {chosen}: {cause}") from cause
    wrong = None if isinstance(cls, CheckedSettings) else complaint(cls, (), chosen)
    if wrong is not None:
        raise UsageError(wrong)
    return made


def check_settings(kind: str, name: str, chosen: Mapping[str, Any]) -> None:
    """Raise `UsageError` unless every key of ``chosen`` is a setting of the component; others may be added later.

    Names that settings once had, which a class keeps in ``renamed_settings`` (old to new), are known too.
    """
    cls = get(kind, name)
    known = settings(cls)
    for key in _renamed(cls, chosen):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"The {kind} {name!r} has no setting {key!r}.{hint} Its settings are: {', '.join(known) or 'none'}."
            )


def _renamed(cls: type, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """``chosen`` with the names that the settings of ``cls`` have today."""
    new: Mapping[str, str] = getattr(cls, "renamed_settings", {})
    for key in chosen:
        if key in new and new[key] in chosen:
            raise UsageError(f"{key!r} is the former name of the setting {new[key]!r}; give one of them.")
    return {new.get(key, key): value for key, value in chosen.items()}


def resolve(kind: str, given: Any) -> Any:
    """A component from what a configuration or a caller may give: the object itself, its name, or a table.

    A table holds ``name`` and the component's settings; hyphens in their names stand for underscores.

    >>> resolve("regularizer", {"name": "grid-crf", "weight": 2.0}).weight
    2.0
    """
    if isinstance(given, str):
        return create(kind, given)
    if isinstance(given, Mapping):
        chosen = {key.replace("-", "_"): value for key, value in given.items()}
        name = chosen.pop("name", None)
        if not isinstance(name, str):
            raise UsageError(f"A {kind} given as a table needs a name, for example {{name = {names(kind)[0]!r}}}.")
        return create(kind, name, **chosen)
    if isinstance(given, _interface(kind)):
        return given
    raise UsageError(
        f"Expected a {kind}: an object of {KINDS[kind].interface}, a name ({', '.join(names(kind))}) or a table with "
        f"a name and settings; got {type(given).__name__}."
    )


def register(kind: str, name: str) -> Callable[[Class], Class]:
    """Register a class of this process under ``name``; it wins over an installed component of the same name.

    Raises:
        UsageError: ``name`` was registered already (unregister it first), or the class is not of the kind's interface.

    >>> from regloss import DataTerm
    >>> @register("data-term", "doctest-example")
    ... class Example(DataTerm):
    ...     def __call__(self, logits, batch):
    ...         return logits.flatten(1).sum(1), logits.new_ones(logits.shape[0])
    >>> get("data-term", "doctest-example") is Example
    True
    >>> unregister("data-term", "doctest-example")
    """
    _check_kind(kind)

    def add(cls: Class) -> Class:
        known = _by_hand.get((kind, name))
        # A notebook cell run twice defines the class anew under the same name; that is not a collision.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"The {kind} {name!r} is registered already, as {known}. Call unregister first.")
        interface = _interface(kind)
        if not issubclass(cls, interface):
            raise UsageError(
                f"{cls.__qualname__} cannot be a {kind}: it does not derive from {interface.__qualname__}."
            )
        _by_hand[(kind, name)] = cls
        return cls

    return add


def unregister(kind: str, name: str) -> None:
    """Undo `register`.

    Raises:
        UnknownComponent: nothing was registered by hand under that name.
    """
    if _by_hand.pop((kind, name), None) is None:
        raise UnknownComponent(f"No {kind} called {name!r} was registered by hand.")


def name_of(component: object) -> str:
    """The registered name of an object's class, for messages; the class's own name where it has none."""
    cls = component if isinstance(component, type) else type(component)
    target = f"{cls.__module__}:{cls.__qualname__}"
    for kind in KINDS:
        for candidate in components(kind):
            if candidate.target == target:
                return candidate.name
    return cls.__qualname__


def _public_components() -> dict[str, Component]:
    """Built-in components by the name of their class."""
    return {
        component.target.partition(":")[2]: component
        for kind in KINDS
        for component in components(kind)
        if component.distribution == OWN_DISTRIBUTION
    }


def _public_functions() -> dict[str, str]:
    """``module:name`` of what the group `FUNCTIONS` of this distribution names, by its name."""
    return {
        name: target
        for name, distribution, target, _ in _installed(FUNCTIONS, os.environ.get("REGLOSS_PLUGINS"))
        if distribution == OWN_DISTRIBUTION
    }


def public_targets() -> dict[str, str]:
    """``module:name`` of every built-in method by its public name (``GridCRF``, say); none is imported.

    Components go by the name of their class; functions, and classes that are no component, are those that the
    entry-point group `FUNCTIONS` names.

    >>> public_targets()["GridCRF"].partition(":")[2]
    'GridCRF'
    """
    return {name: component.target for name, component in _public_components().items()} | _public_functions()


def load_public(name: str) -> Any:
    """The built-in method that ``regloss.NAME`` means, imported now.

    Raises:
        AttributeError: there is none of that name.
        BrokenPlugin, MissingDependency: see `load`.
    """
    target = _public_functions().get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    component = _public_components().get(name)
    if component is None:
        raise AttributeError(f"module 'regloss' has no attribute {name!r}")
    return load(component)
