"""When kernels for GPUs run, and that Triton's compiler, which needs no GPU, takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from regloss import UsageError
from regloss_plugins.bindings import triton_kernels

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from regloss_plugins.kernels import gated_windows_triton, gaussian_sums_triton, grid_ascent_triton


def check(kernel, pointers, numbers, fractions=(), types=None, **constants):
    signature = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(numbers, "i32") | dict.fromkeys(fractions, "fp32")
    signature |= types or {}
    signature |= dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names  # in whose order Triton wants both
    source = ASTSource(
        fn=kernel,
        signature={name: signature[name] for name in names},
        constexprs={name: constants[name] for name in names if name in constants},
    )
    assert ".target sm_90" in compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


pointers, numbers = ("features", "values", "out"), ("points", "classes")
tile = {"ROWS": 64, "COLUMNS": 64}
check(gaussian_sums_triton._sums, pointers, numbers, FEATURES=5, WIDTH=32, **tile)
check(gaussian_sums_triton._sums, pointers, numbers, types={"features": "*fp64"}, FEATURES=2, WIDTH=16, **tile)

pointers = ("cost", "dual", "before", "out", "weights", "moves", "metric", "extrapolations", "gains")
numbers = ("batch_stride", "classes", "pixels", "stride_0", "stride_1", "stride_2")
for axes, places, entropy, joint in ((1, 2, True, False), (2, 4, True, False), (2, 4, False, True), (3, 4, True, True)):
    constants = {"AXES": axes, "PLACES": places, "ENTROPY": entropy, "JOINT": joint, "BLOCK": 128}
    check(grid_ascent_triton._step, pointers, numbers, ("radius", "factor"), **constants)
check(grid_ascent_triton._momentum, ("gains", "momenta", "extrapolations"), ("blocks",), ("most",), BLOCK=128)

pointers = ("values", "image", "distances", "out", "degrees")
numbers = ("count", "classes", "channels", "depth", "height", "width")
for masked in (False, True):
    types = {"masks": "*u8" if masked else "*fp32", "offsets": "*i32"}
    constants = {"MASKED": masked, "CLASSES": 32, "BLOCK": 64}
    check(gated_windows_triton._windows, pointers, numbers, ("scale",), types, **constants)
"""


def test_triton_compiles_them(tmp_path) -> None:
    """For compute capability 9.0, all variants that differ in more than sizes."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "_is_installed", lambda: True)
    assert triton_kernels.triton_is_there()
    monkeypatch.setenv("REGLOSS_KERNELS", "tensors")
    assert not triton_kernels.triton_is_there()
    monkeypatch.setenv("REGLOSS_KERNELS", "none")
    with pytest.raises(UsageError, match="'none'"):
        triton_kernels.triton_is_there()


def test_without_triton_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    triton_kernels._is_installed.cache_clear()
    with pytest.warns(RuntimeWarning, match="pip install triton"):
        assert not triton_kernels.triton_is_there()
    assert not triton_kernels.triton_is_there()
    triton_kernels._is_installed.cache_clear()
