"""Compiled code where nothing can be written: neither beside the package nor in the home folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regloss_plugins import kernels

CODE = """
import numpy as np, os
from kernels.edges import differences

out = np.zeros((1, 1))
differences(np.array([0]), np.array([1]), np.array([2.0]), np.array([[1.0, 4.0]]), -1, out)
print(out[0, 0], os.environ["NUMBA_CACHE_DIR"], os.path.isdir(os.environ["NUMBA_CACHE_DIR"]))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_it_is_kept_for_the_process(tmp_path):
    (tmp_path / "kernels").mkdir()
    for name in ("__init__.py", "edges.py"):
        shutil.copy(Path(kernels.__file__).with_name(name), tmp_path / "kernels" / name)
    (tmp_path / "kernels" / "__pycache__").write_text("")  # a file, so that there is no such folder
    nowhere = {"HOME": "/proc/self", "XDG_CACHE_HOME": "/proc/self", "PYTHONPATH": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"} | nowhere
    command = [sys.executable, "-B", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result, folder, existed = done.stdout.split()
    assert (float(result), existed) == (6.0, "True")
    assert "Set NUMBA_CACHE_DIR to a folder that can be written to" in done.stderr
    assert not Path(folder).exists()
    given = {**environment, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    assert any((tmp_path / "kept").rglob("*.nbi"))
