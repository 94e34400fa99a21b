"""Settings of components are of the types that their classes say, or a message names the one that is not.

`CheckedSettings` is the metaclass of the interfaces: it compares what a component is made with to the annotations of
its ``__init__``. A class's own checks come first, so that their messages, which know more, are what is seen; what they
let through or stumble over (a text that is compared with 0, a bool where a number belongs, a tensor that needs a
gradient and would not get one) is named here. Of annotations, numbers, bools, texts, None, tensors, functions, choices,
unions of these and sequences of them are understood; whatever else an annotation says is left to the class. `checked`
does the same for functions, before they run.
"""

from __future__ import annotations

import difflib
import inspect
import reprlib
import sys
import types
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from regloss.errors import ReglossError, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNIONS = (Union, types.UnionType)
_SEQUENCES = (Sequence, list, tuple)


class CheckedSettings(ABCMeta):
    """Metaclass of classes whose instances are made from settings.

    >>> from regloss import GatedCRF
    >>> GatedCRF(sigma_xy=(1.0, 2.0))
    Traceback (most recent call last):
    ...
    regloss.errors.UsageError: sigma_xy of gated-crf must be a number; got (1.0, 2.0).
    """

    if not TYPE_CHECKING:  # type checkers look at __init__ instead

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            """Make an instance, or say which setting cannot be used."""
            try:
                made = super().__call__(*args, **kwargs)
            except ReglossError:
                raise
            except Exception as cause:
                wrong = complaint(cls, args, kwargs)
                if wrong is None:
                    raise
                raise UsageError(wrong) from cause
            wrong = complaint(cls, args, kwargs)
            if wrong is not None:
                raise UsageError(wrong)
            return made

        @property
        def __signature__(cls) -> inspect.Signature:
            """That of ``__init__``, which a metaclass's ``__call__`` would hide."""
            return _signature(cls.__init__)


def complaint(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments that a ``cls`` is made with; None = nothing that can be seen from here."""
    from regloss.registry import name_of  # which imports this module

    signature = _signature(cls.__init__)  # type: ignore[misc]
    parameters = signature.parameters
    if not any(parameter.kind in _VARIADIC for parameter in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                near = difflib.get_close_matches(name, parameters, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                known = ", ".join(parameters) or "none"
                return f"{name_of(cls)} has no setting {name!r}.{hint} Its settings are: {known}."
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:  # too many of them, or one twice
        return f"{name_of(cls)}({', '.join(parameters)}) cannot be made so: {error}."
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in _VARIADIC and name not in given
    ]
    if missing:
        return f"{name_of(cls)} cannot be made without: {', '.join(missing)}."
    found = _misfit(given, _kinds(cls))
    return None if found is None else f"{found[0]} of {name_of(cls)} {found[1]}"


def checked(function: Function) -> Function:
    """Decorate a function to refuse arguments that are not of the types that its signature says, before it runs.

    >>> @checked
    ... def doubled(number: int) -> int:
    ...     return 2 * number
    >>> doubled(True)
    Traceback (most recent call last):
    ...
    regloss.errors.UsageError: number of doubled must be a whole number; got True.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # says by itself which argument is missing, or one too many
        found = _misfit(given, _kinds(function))
        if found is not None:
            raise UsageError(f"{found[0]} of {function.__name__} {found[1]}")
        return function(*args, **kwargs)

    return cast(Function, call)


def _misfit(given: Mapping[str, Any], kinds: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first argument that is not of its type, and what is said of it; None = there is none."""
    for name, kind in kinds.items():
        if name not in given or fits(given[name], kind):
            continue
        value = given[name]
        if getattr(value, "requires_grad", False):
            return name, (
                f"must be {described(kind)}, and cannot be learnt; got a tensor that needs a gradient. Give its value, "
                "value.detach()."
            )
        return name, f"must be {described(kind)}; got {reprlib.repr(value)}."
    return None


def fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the type that the annotation ``kind`` stands for, as far as that is understood.

    Numbers of numpy count as numbers, arrays and tensors without axes too, where no gradient is lost.

    >>> fits(2, float), fits(True, float), fits((1, 2), float), fits((1, 2), Sequence[float])
    (True, False, False, True)
    """
    origin = get_origin(kind)
    if origin in _UNIONS:
        return any(fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is None or kind is type(None):
        return value is None
    if kind is str:
        return isinstance(value, str)
    if kind is bool:
        return _is_bool(value) or (type(value) is int and value in (0, 1))
    if kind is int or kind is float:
        return _is_number(value, Integral if kind is int else Real)
    if _is_tensor(kind):
        return isinstance(value, kind)
    if origin is Callable:
        return callable(value)
    if origin in _SEQUENCES or kind in _SEQUENCES:
        return _is_sequence(value, get_args(kind)[0] if get_args(kind) else Any)
    return True


def described(kind: Any) -> str:
    """An annotation in words.

    >>> described(Sequence[float] | None)
    'a sequence of numbers or None'
    """
    origin = get_origin(kind)
    if origin in _UNIONS:
        return " or ".join(described(one) for one in get_args(kind))
    if origin is Literal:
        return ", ".join(repr(choice) for choice in get_args(kind))
    if kind is None or kind is type(None):
        return "None"
    if _is_tensor(kind):
        return "a tensor"
    if origin is Callable:
        return "a function"
    if origin in _SEQUENCES or kind in _SEQUENCES:
        of = get_args(kind)[0] if get_args(kind) else Any
        if of is Any:
            return "a sequence"
        plural = {float: "numbers", int: "whole numbers", str: "texts", bool: "bools"}.get(of)
        return f"a sequence of {plural}" if plural else f"a sequence, each entry {described(of)}"
    words = {float: "a number", int: "a whole number", str: "a text", bool: "True or False"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _is_number(value: Any, kind: type) -> bool:
    if _is_bool(value) or getattr(value, "requires_grad", False):
        return False
    if isinstance(value, kind):
        return True
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return False
    return isinstance(value.item(), kind)


def _is_sequence(value: Any, kind: Any) -> bool:
    if isinstance(value, str | bytes) or getattr(value, "requires_grad", False):
        return False
    if hasattr(value, "ndim"):  # an array or a tensor
        return bool(value.ndim > 0)
    # Sets and iterators have no order or are used up: left to the class, as all else that is no sequence by its type.
    if not isinstance(value, Sequence):
        return isinstance(value, Iterable)
    return all(fits(one, kind) for one in value)


def _is_tensor(kind: Any) -> bool:
    return isinstance(kind, type) and kind.__module__.startswith("torch") and kind.__name__ == "Tensor"


@cache
def _signature(init: Any) -> inspect.Signature:
    """Of an ``__init__``, without ``self``."""
    signature = inspect.signature(init)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


@cache
def _kinds(of: Any) -> dict[str, Any]:
    """The annotations of the settings of a class, or of the arguments of a function."""
    is_class = isinstance(of, type)
    signature = _signature(of.__init__) if is_class else inspect.signature(of)
    modules = [base.__module__ for base in of.__mro__] if is_class else [of.__module__]
    return {
        name: _evaluated(modules, parameter.annotation)
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not inspect.Parameter.empty and parameter.kind not in _VARIADIC
    }


def _evaluated(modules: Sequence[str], annotation: Any) -> Any:
    """An annotation as an object; a text means what it does in the first of ``modules`` that knows its names.

    Any where it cannot be evaluated: it may use names that only type checkers import.
    """
    if not isinstance(annotation, str):
        return annotation
    for module in modules:
        try:
            return eval(annotation, dict(vars(sys.modules[module])))  # what the source itself says
        except NameError:
            continue
    return Any
