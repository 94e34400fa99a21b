"""Commands that do work import what this work needs, and no more."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PROGRAM = """
import sys
sys.argv = ["regloss", *{arguments!r}]
from regloss_cli.main import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
print(*sorted(sys.modules), file=sys.stderr)
"""
TRAINING = {"lightning_fabric", "torchmetrics", "regloss.training.trainer", "torch._dynamo"}


def modules_of(*arguments):
    program = PROGRAM.format(arguments=[str(argument) for argument in arguments])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def imported_by(module):
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture
def photograph(tmp_path):
    """A bright square on dark ground, with scribbles in both."""
    image = np.full((24, 32, 3), 40, dtype=np.uint8)
    image[6:18, 8:24] = (220, 180, 60)
    scribbles = np.full((24, 32), 255, dtype=np.uint8)
    scribbles[2, 2:30], scribbles[10, 10:20] = 0, 1
    Image.fromarray(image).save(tmp_path / "photograph.png")
    Image.fromarray(scribbles).save(tmp_path / "scribbles.png")
    return tmp_path / "photograph.png"


def test_segmenting_from_scribbles_does_without_charts_and_training(photograph, tmp_path):
    """The max-flow is compiled code and the histograms are smoothed by scipy, so these two are needed."""
    found = modules_of("segment", photograph, "--scribbles", tmp_path / "scribbles.png", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "labels.png").is_file()
    assert "numba" in found
    unneeded = {*TRAINING, "matplotlib", "safetensors", "scipy.spatial", "scipy.sparse", "regloss.training.config"}
    unneeded -= imported_by("scipy.ndimage")  # scipy.sparse, in older versions
    assert found.isdisjoint(unneeded), found & unneeded


def test_segmenting_without_compiled_solvers_does_without_numba_and_scipy(photograph, tmp_path):
    given = ("--scribbles", tmp_path / "scribbles.png", "--region-force", "gaussian", "-o", tmp_path / "out")
    soft = ("--regularizer", "threshold-dynamics:weight=1", "--solver", "dca:max-steps=20", "--entropy", "0.5")
    found = modules_of("segment", photograph, *given, *soft)
    assert "matplotlib" in found, "the solver told its steps, which are drawn"
    unneeded = {*TRAINING, "numba", "scipy"}
    assert found.isdisjoint(unneeded), found & unneeded


def test_predicting_does_without_charts_solvers_and_training(trained, images, tmp_path):
    found = modules_of("predict", trained, images / "images", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "labels").is_dir()
    unneeded = {*TRAINING, "matplotlib", "numba", "scipy"}
    assert found.isdisjoint(unneeded), found & unneeded
