"""Doctests of optional solvers run only where their packages are installed."""

from importlib.util import find_spec

_OPTIONAL = {"maxflow": "pymaxflow.py", "gco": "gco.py"}

collect_ignore = [
    f"regloss_plugins/solvers/{file}" for package, file in _OPTIONAL.items() if find_spec(package) is None
]
