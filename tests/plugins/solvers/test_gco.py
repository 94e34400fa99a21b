"""The optional solver on the GCO library; the tables over all solvers over labels are in test_discrete.py.

GCO is never imported here, nor by the solver: every solution below is a process of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regloss
from regloss import Graph, GridCRF, Problem, ReglossError, Status, UsageError, solve

needs_gco = pytest.mark.skipif(importlib.util.find_spec("gco") is None, reason="gco-wrapper is not installed")


def gco(**settings: Any) -> regloss.Solver:
    solver: regloss.Solver = regloss.create("solver", "gco", **settings)
    return solver


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gco", None)  # what makes finding it fail
    monkeypatch.delitem(sys.modules, "regloss_plugins.solvers.gco", raising=False)
    assert "gco" in regloss.names("solver")
    with pytest.raises(regloss.MissingDependency, match=r"regloss\[gco\].*alpha-expansion"):
        regloss.get("solver", "gco")


@needs_gco
def test_threads_and_numpy_are_left_in_peace() -> None:
    random = torch.Generator().manual_seed(0)
    problems = [torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=random) for _ in range(3)]
    term = GridCRF(weight=0.3).bind(torch.rand(1, 1, 6, 7, dtype=torch.float64, generator=random))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda unary: solve(term, unary, "gco"), problems))
    for unary, solution in zip(problems, found, strict=True):
        own = solve(term, unary, "alpha-expansion")
        assert solution.energy.item() == pytest.approx(own.energy.item(), rel=1e-3)
    assert "gco" not in sys.modules
    assert not hasattr(np, "int")  # which gco adds


@needs_gco
@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_costs_of_any_size(factor: float) -> None:
    """GCO knows integers up to 10^7 only; costs of 1e-9 must not become 0, nor those of 1e6 overflow."""
    random = torch.Generator().manual_seed(1)
    unary = factor * torch.rand(1, 2, 8, 9, dtype=torch.float64, generator=random)
    term = GridCRF(weight=0.2 * factor).bind(torch.rand(1, 1, 8, 9, dtype=torch.float64, generator=random))
    own, other = solve(term, unary, "alpha-expansion"), solve(term, unary, "gco")
    assert other.energy.item() == pytest.approx(own.energy.item(), rel=1e-6, abs=0)
    assert other.bound.item() <= own.energy.item()
    assert 0 < other.gap.item() < 1e-5 * own.energy.item()


@needs_gco
def test_sums_of_costs_at_one_pixel() -> None:
    """Three hundred edges, each with the largest cost, meet in the last pixel; their sum must not overflow either."""
    leaves = 300
    edges = torch.stack([torch.arange(leaves), torch.full((leaves,), leaves)], dim=1)
    weights = torch.linspace(0.99, 1, leaves, dtype=torch.float64)[None]
    unary = torch.tensor([0.0, 0.4, 0.9], dtype=torch.float64).reshape(1, 3, 1).repeat(1, 1, leaves + 1)
    warm = torch.ones(1, leaves + 1, dtype=torch.int64)
    warm[0, -1] = 2  # so every edge pays, and the first move should change all to 0
    problem = Problem(Graph(edges, weights), unary, warm=warm)
    assert gco(max_cycles=1).minimise(problem).energy.item() == 0


@needs_gco
def test_nothing_to_do_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    term = GridCRF(weight=0.0).bind(torch.zeros(1, 1, 2, 3))
    unary = torch.rand(1, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("regloss_plugins.solvers.gco._WORKER", Path("there-is-no-such-program.py"))
    without_edges = solve(term, unary, "gco")
    assert torch.equal(without_edges.labels, unary.argmin(1))
    assert without_edges.status == (Status.OPTIMAL,)
    seeds = torch.arange(6).reshape(1, 2, 3) % 3
    assert torch.equal(solve(term, unary, "gco", fixed=seeds).labels, seeds)
    one = torch.tensor([[False, True, False]])
    assert torch.equal(solve(term, unary, "gco", allowed=one).labels, torch.ones(1, 2, 3, dtype=torch.int64))


WORST = """
import sys
import numpy as np
with np.load(sys.argv[2]) as arrays:
    np.savez(sys.argv[3], labels=arrays["unary"].argmax(1), cycles=1, converged=True)
"""


@needs_gco
@pytest.mark.parametrize("classes", [2, 3])
def test_start_is_kept_where_gco_is_worse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classes: int) -> None:
    program = tmp_path / "worker.py"
    program.write_text(WORST)
    monkeypatch.setattr("regloss_plugins.solvers.gco._WORKER", program)
    term = GridCRF(weight=0.1).bind(torch.zeros(1, 1, 4, 5, dtype=torch.float64))
    unary = torch.rand(1, classes, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = solve(term, unary, "gco")
    assert torch.equal(solution.labels, unary.argmin(1))
    assert torch.equal(solution.energy, solution.start_energy)


FAILS_WHERE_LABELS_DIFFER_IN_COST = """
import os, runpy, sys
import numpy as np
with np.load(sys.argv[2]) as arrays:
    fails = arrays["unary"].any()
if fails:
    {failure}
runpy.run_path({worker!r}, run_name="__main__")
"""


@needs_gco
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("sys.exit('first\\nlast')", r"failed on image 1 .* exit code 1; .* wrote: last\nUse alpha-expansion"),
        ("os.abort()", r"failed on image 1 .* exit code -\d+; .* wrote: nothing\nUse alpha-expansion"),
    ],
)
def test_crashes_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: str, message: str) -> None:
    """The first image is solved by the true program; the second meets one that fails. Both may run at once."""
    from regloss_plugins.kernels import gco_worker

    program = tmp_path / "worker.py"
    program.write_text(FAILS_WHERE_LABELS_DIFFER_IN_COST.format(worker=gco_worker.__file__, failure=failure))
    term = GridCRF().bind(torch.zeros(2, 1, 2, 2))
    monkeypatch.setattr("regloss_plugins.solvers.gco._WORKER", program)
    unary = torch.ones(2, 2, 2, 2)
    unary[1, 0] = 2.0
    with pytest.raises(ReglossError, match=message) as caught:
        solve(term, unary, "gco")
    assert not isinstance(caught.value, UsageError)


@needs_gco
def test_hanging_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text("import time; time.sleep(60)")
    term = GridCRF().bind(torch.zeros(1, 1, 2, 2))
    monkeypatch.setattr("regloss_plugins.solvers.gco._WORKER", program)
    with pytest.raises(ReglossError, match=r"did not finish image 0 .* within timeout = 0\.3 s\. Raise timeout"):
        solve(term, torch.ones(1, 2, 2, 2), gco(timeout=0.3))


@needs_gco
@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_no_time(timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout must be a positive number of seconds"):
        gco(timeout=timeout)
