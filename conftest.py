"""Doctests of modules that import an optional package run only where that package is installed.

Everywhere else a module that cannot be imported is an error.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent

OPTIONAL = {
    "starlette": ("regloss/apps/annotate/guard.py", "regloss/apps/annotate/server.py"),
    "lightning": ("regloss/apps/lightning.py",),
    "monai": ("regloss/apps/monai.py",),
    "ignite": ("regloss/apps/monai.py",),
    "nnunetv2": ("regloss/apps/nnunet.py", "regloss/apps/nnunet_trainers/trainers.py"),
    "maxflow": ("plugins/regloss_plugins/solvers/pymaxflow.py",),
    "gco": ("plugins/regloss_plugins/solvers/gco.py",),
    "triton": tuple(
        file.relative_to(ROOT).as_posix() for file in ROOT.glob("plugins/regloss_plugins/kernels/*_triton.py")
    ),
}

collect_ignore = [file for package, files in OPTIONAL.items() if find_spec(package) is None for file in files]
