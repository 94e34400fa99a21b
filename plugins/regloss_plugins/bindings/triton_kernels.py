"""What all bindings of Triton kernels share."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

from regloss.errors import UsageError

VARIABLE = "REGLOSS_KERNELS"


def triton_is_there() -> bool:
    """Whether kernels are to run: the package triton is installed, and ``REGLOSS_KERNELS`` does not leave them out.

    Raises:
        UsageError: the variable is anything but "tensors".
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "tensors"):
        raise UsageError(
            f'{VARIABLE} may be "tensors", which leaves out the kernels for GPUs, or unset; it is {wish!r}.'
        )
    return not wish and _is_installed()


@cache
def _is_installed() -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "The package triton is not installed, so regloss works on this CUDA device by tensor operations alone, which "
        "takes several times as long. Install it (pip install triton; triton-windows on Windows).",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
