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

from regloss_plugins.kernels import (
    adjoint_parts_triton,
    adjoint_triton,
    class_differences_adjoint_triton,
    class_differences_triton,
    class_sums_adjoint_triton,
    class_sums_triton,
    edge_adjoint_triton,
    edge_ascent_triton,
    edges_triton,
    gated_windows_triton,
    gaussian_sums_triton,
    grid_adjoint_triton,
    grid_ascent_triton,
    grid_differences_triton,
    momentum_triton,
    neighbors_triton,
    potts_triton,
)


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
check(momentum_triton.momentum, ("gains", "momenta", "extrapolations"), ("blocks",), ("most",))

pointers = ("scores", "dual", "weights", "before", "adjoint", "extrapolations", "points")
types, numbers = {"start": "*i32", "order": "*i32"}, ("classes", "first", "width", "pixels", "edges")
for last, entropy in ((False, False), (True, False), (True, True)):
    constants = {"LAST": last, "ENTROPY": entropy, "CLASSES": 32, "BLOCK": 32}
    check(edge_ascent_triton._add, pointers, numbers, ("factor",), types, **constants)
pointers = ("points", "dual", "before", "weights", "steps", "extrapolations", "gains")
types, bounds = {"ends": "*i64"}, ("low", "high")
check(edge_ascent_triton._move, pointers, (*numbers, "row"), bounds, types, EACH=False, CLASSES=4, BLOCK=256)
numbers, constants = ("classes", "pixels", "edges", "row"), {"first": 1, "width": 1, "CLASSES": 1, "BLOCK": 1024}
check(edge_ascent_triton._move, pointers, numbers, bounds, types, EACH=True, **constants)

added = ("scores", "dual", "before", "weights", "points", "extrapolations")
strides = ("stride_0", "stride_1", "stride_2")
for axes, last, joint, each in ((1, True, False, False), (2, False, True, False), (3, True, True, True)):
    last_one = f"stride_{axes - 1}"  # is 1, which the compiler is told
    constants = {"AXES": axes, "CLASSES": 4, "BLOCK": 256, last_one: 1}
    numbers = ("classes", "pixels", *(stride for stride in strides if stride != last_one))
    check(grid_differences_triton._add, added, numbers, ("factor",), LAST=last, ENTROPY=True, **constants)
    constants |= {"JOINT": joint, "EACH": each}
    check(grid_differences_triton._move, pointers, (*numbers, "row"), bounds, **constants)

numbers, constants = ("classes", "pixels"), {"CLASSES": 2, "BLOCK": 512}
check(class_differences_triton._add, added, numbers, ("factor",), LAST=True, ENTROPY=True, **constants)
check(class_differences_triton._move, pointers, (*numbers, "row"), bounds, **constants)
for sides in (1, 2):
    types, constants = {"weights": "*fp64", "shift": "*fp64"}, {"SIDES": sides, "CLASSES": 32, "BLOCK": 32}
    reads = (*added, "region", "sums")
    check(class_sums_triton._add, reads, numbers, ("factor",), types, ENTROPY=True, **constants)
    reads = ("sums", "dual", "before", "steps", "extrapolations", "gains")
    check(class_sums_triton._move, reads, ("row", "classes", "blocks"), bounds, types, **constants)

counts, fractions = ("batch", "classes", "pixels"), ("inverse_entropy",)
of_edges = ("column", "width", "edges")
tile = {"CLASSES": 4, "BLOCK": 256}
gathered = ("steepest", "weights", "adjoint", "s", "points", "numbers")
types = {"start": "*i32", "order": "*i32"}
for first, last in ((True, False), (False, True)):
    constants = {"FIRST": first, "LAST": last, **tile}
    check(grid_adjoint_triton._gather, gathered, (*counts, *strides), fractions, AXES=3, **constants)
    check(edge_adjoint_triton._gather, gathered, (*counts, *of_edges), fractions, types, **constants)
    check(class_differences_adjoint_triton._gather, gathered, counts, fractions, **constants)
    reads = (*gathered, "region", "totals")
    check(class_sums_adjoint_triton._gather, reads, counts, fractions, SIDES=1 + last, FIRST=first, **tile)
for kernel in (adjoint_triton._alpha, adjoint_triton._beta):
    check(kernel, ("numbers", "sums"), ("batch", "blocks"))
moved = ("steepest", "direction", "image", "inverse", "numbers", "sums")
applied, counts = ("points", "weights", *moved), (*counts, "row")
for axes, joint in ((1, False), (3, True)):
    constants = {"AXES": axes, "JOINT": joint, **tile}
    reads = (*moved, "solution", "residual", "normals")
    check(adjoint_parts_triton._move, reads, ("row", "batch", "width", "edges"), **constants)
    last_one = f"stride_{axes - 1}"
    numbers = (*counts, *(stride for stride in strides if stride != last_one))
    check(grid_adjoint_triton._apply, (*applied, "normals", "curvature"), numbers, **{last_one: 1}, **constants)
check(edge_adjoint_triton._apply, applied, (*counts, *of_edges), types={"ends": "*i64"}, **tile)
check(class_differences_adjoint_triton._apply, applied, counts, **tile)
reads = ("totals", "weights", *moved)
check(class_sums_adjoint_triton._apply, reads, (*counts, "blocks"), SIDES=2, **tile)

types, numbers = {"ends": "*i64"}, ("classes", "pixels", "edges")
numbers = (*numbers, "sign")
check(edges_triton._differences, ("weights", "values", "out"), numbers, types=types, BLOCK=128)
types = {"start": "*i32", "order": "*i32", "weights": "*fp64", "flows": "*fp32", "out": "*fp64"}
check(edges_triton._sums, (), numbers, types=types, BLOCK=128)

types = dict.fromkeys(("places", "first", "last", "found"), "*i32")
pointers, numbers = ("features", "lower", "upper", "squares"), ("width", "points", "tiles", "count", "radius")
for axes in (0, 2):
    check(neighbors_triton._search, pointers, numbers, types=types, AXES=axes, SLOTS=32, TILE=64)

pointers, types = ("unary", "half", "duals", "primal", "lengths", "channels", "thresholds"), {"offsets": "*i32"}
numbers = ("count", "classes", "depth", "height", "width")
for simplex, classes in ((True, 32), (False, 1)):
    constants = {"SIMPLEX": simplex, "NEWTON": 2, "CLASSES": classes, "BLOCK": 1024 // classes}
    check(potts_triton._primal, pointers, numbers, types=types, **constants)
pointers, fractions = ("channels", "primal", "moved", "duals"), ("factor", "relaxation")
check(potts_triton._dual, pointers, numbers, fractions, types, CLASSES=32, BLOCK=32)

pointers = ("values", "image", "distances", "out", "degrees")
numbers = ("count", "classes", "channels", "depth", "height", "width")
for masked in (False, True):
    types = {"masks": "*u8" if masked else "*fp32", "offsets": "*i32"}
    constants = {"MASKED": masked, "CLASSES": 32, "BLOCK": 64}
    check(gated_windows_triton._windows, pointers, numbers, ("scale",), types, **constants)
"""


@pytest.mark.slow
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
