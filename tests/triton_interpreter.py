"""Triton's interpreter, which runs kernels on the CPU: it is chosen when a process defines its kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest


def interpreted(code: str) -> str:
    """What ``code`` prints in a process of its own, whose kernels are interpreted, and whose fresh memory holds NaN.

    Skips the test where triton is not installed, which has wheels for Linux alone.
    """
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton")
    code = "import torch; torch.use_deterministic_algorithms(True, warn_only=True)\n" + code  # fills torch.empty
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
