"""Compiled code. Numba keeps it beside these files, or in the home folder; where neither can be, for one process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path

_BESIDE = Path(__file__).parent / "__pycache__"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _make_room() -> None:
    """Give numba a folder for compiled code, which ends with the process, where it finds none itself."""
    if _is_writable(_BESIDE):
        return
    from numba.core import caching, config  # which the modules here import anyway, once one of them is

    try:
        caching.FunctionCache(_make_room)  # type: ignore[no-untyped-call]
    except RuntimeError:  # no place for what is compiled of this file's functions
        folder = tempfile.mkdtemp(prefix="regloss-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = folder  # of processes that this one starts
        config.CACHE_DIR = folder  # type: ignore[attr-defined]
        warnings.warn(
            f"Neither {_BESIDE} nor the home folder can be written to, so compiled code cannot be kept, and every "
            "start compiles anew, which takes a minute. Set NUMBA_CACHE_DIR to a folder that can be written to.",
            UserWarning,
            stacklevel=2,
        )


_make_room()
