"""Doctests of modules that import an optional package run only where that package is installed.

Everywhere else a module that cannot be imported is an error.
"""

from __future__ import annotations

from importlib.util import find_spec

OPTIONAL = {
    "starlette": ("regloss/apps/annotate/guard.py", "regloss/apps/annotate/server.py"),
    "lightning": ("regloss/apps/lightning.py",),
    "monai": ("regloss/apps/monai.py",),
    "ignite": ("regloss/apps/monai.py",),
    "nnunetv2": ("regloss/apps/nnunet.py", "regloss/apps/nnunet_trainers/trainers.py"),
    "maxflow": ("plugins/regloss_plugins/solvers/pymaxflow.py",),
    "gco": ("plugins/regloss_plugins/solvers/gco.py",),
    "triton": (
        "plugins/regloss_plugins/kernels/gated_windows_triton.py",
        "plugins/regloss_plugins/kernels/gaussian_sums_triton.py",
        "plugins/regloss_plugins/kernels/grid_ascent_triton.py",
    ),
}

collect_ignore = [file for package, files in OPTIONAL.items() if find_spec(package) is None for file in files]
