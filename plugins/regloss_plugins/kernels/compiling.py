"""How kernels are compiled: decorators for functions that Python calls and for those that they call, and word of it.

Numba compiles a function when it is first called with arguments of some types, and keeps the result on disk. Until
then a call costs about a millisecond for each elementary step of the source, most of it in numba's own Python code,
a tenth of a second for each function, and what LLVM takes. Hence the rules for kernels:

- Memory comes from NumPy, outside, and results go into it; inside there is indexing and arithmetic. An array
  expression, ``zeros``, ``any`` or ``max`` each compile functions of their own. An assignment from slice to slice takes
  three seconds, for the message of an error that cannot occur.
- A kernel takes arrays, numbers and tuples of them. Numba writes the types of arguments to disk, and a named tuple is
  found again only as long as its class has the name and place it had: what is kept would stop a later version.
- What few calls need is a kernel of its own, so that the others need not wait for it.
- A function is not passed through many others: each of them optimises it again.

Numba sees that a kernel's file has changed, but not that of a helper: touch the kernel's file too.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit
from numba.core import event as events
from numba.extending import register_jitable

__all__ = ["helper", "kernel"]

Function = TypeVar("Function", bound=Callable[..., Any])

_logger = logging.getLogger("regloss")
_hints = logging.getLogger("regloss.hints")
# Compiling takes a third less without counted references, and without rewrites, which are for array expressions.
_OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_rewrites": True, "no_cfunc_wrapper": True}


def kernel(**options: Any) -> Callable[[Function], Function]:
    """Decorator of a compiled function that Python calls: without the interpreter's lock, and kept on disk.

    It may neither allocate nor return arrays, which numba refuses.

    Args:
        options: numba's.
    """
    decorator: Callable[[Function], Function] = njit(**{**_OPTIONS, "cache": True, **options})
    return decorator


def helper(**options: Any) -> Callable[[Function], Function]:
    """Decorator of a function that kernels call, and which is like them; to Python it stays what it was.

    Args:
        options: numba's.
    """
    decorator: Callable[[Function], Function] = register_jitable(**{**_OPTIONS, **options})
    return decorator


class _Word(events.Listener):
    """Says which kernels are being compiled, each module once, and puts off the collection of garbage meanwhile.

    Numba makes a hundred thousand objects, few of which are garbage; looking for it would take an eighth of the time.
    Compilations come one at a time, and nest.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.said: set[str] = set()
        self.collecting = False

    def on_start(self, event: events.Event) -> None:
        dispatcher = event.data["dispatcher"]
        module = dispatcher.py_func.__module__
        if self.depth == 0:
            if not module.startswith(f"{__package__}."):
                return
            self.collecting = gc.isenabled()
            gc.disable()
            if module not in self.said:
                name, folder = module.removeprefix(f"{__package__}."), dispatcher.stats.cache_path
                _logger.warning(f"Compiling {name}, once: it is kept in {folder}.")
                if not self.said:
                    _hints.warning("`regloss compile` does all of it ahead.")
                self.said.add(module)
        self.depth += 1

    def on_end(self, event: events.Event) -> None:
        if self.depth == 0:
            return
        self.depth -= 1
        if self.depth == 0 and self.collecting:
            gc.enable()


events.register("numba:compile", _Word())  # type: ignore[no-untyped-call]
