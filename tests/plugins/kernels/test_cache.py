"""Where compiled code is kept, what is said while it is made, and where nothing can be written."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regloss_plugins import kernels
from regloss_plugins.kernels import compiling

CODE = """
import numpy as np, os
from regloss_plugins.kernels.edges import differences

out = np.zeros((1, 1))
differences(np.array([0]), np.array([1]), np.array([2.0]), np.array([[1.0, 4.0]]), -1, out)
print(out[0, 0], os.environ["NUMBA_CACHE_DIR"], os.path.isdir(os.environ["NUMBA_CACHE_DIR"]))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_it_is_kept_for_the_process(tmp_path):
    package = Path(kernels.__file__).parent
    copied = tmp_path / "regloss_plugins" / "kernels"
    copied.mkdir(parents=True)
    shutil.copy(package.parent / "__init__.py", copied.parent / "__init__.py")
    for name in ("__init__.py", "compiling.py", "edges.py"):
        shutil.copy(package / name, copied / name)
    (copied / "__pycache__").write_text("")  # a file, so that there is no such folder
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
    assert done.stderr.startswith(f"Compiling edges, once: it is kept in {tmp_path / 'kept'}")
    assert "`regloss compile`" in done.stderr
    assert any((tmp_path / "kept").rglob("*.nbi"))
    # It was once.
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout.split()[0], done.stderr) == ("6.0", "")


def test_garbage_is_collected_again_after_compiling():
    @compiling.kernel(cache=False)
    def twice(value):
        return helped(value)

    @compiling.helper()
    def helped(value):
        return 2 * value

    helped.__module__ = twice.py_func.__module__ = "regloss_plugins.kernels.edges"
    assert gc.isenabled()
    assert twice(2) == 4
    assert gc.isenabled()
    gc.disable()
    try:
        assert twice(2.5) == 5.0
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert helped("ab") == "abab"  # to Python it is what it was
