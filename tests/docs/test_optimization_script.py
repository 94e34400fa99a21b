"""The optimization experiment's line of pixels: where its costs are least, and who finds that place."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import script_module

from regloss import DenseCRF, GridCRF


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with script_module("optimization") as module:
        yield module


def test_the_grid_has_narrow_minima_at_the_edges(script: ModuleType) -> None:
    costs = np.array(script.costs(GridCRF()))
    order = np.argsort(costs) + 1
    assert (order[0], order[1]) == (script.STRONG, script.WEAK)
    assert costs[script.STRONG - 1] < 1e-3
    assert np.median(costs) > 0.9  # flat elsewhere


def test_the_dense_crf_slopes_to_the_strong_edge(script: ModuleType) -> None:
    costs = np.array(script.costs(DenseCRF(sigma_xy=script.SIGMA, sigma_rgb=0.1, scale=1.0, backend="exact")))
    assert bool((np.diff(costs[44 : script.STRONG]) < 0).all())


def test_a_graph_cut_finds_the_strong_edge_at_once(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "STEPS", 5)
    for start in script.STARTS:
        paths = script.descents(start)
        assert paths["adm"][0] == paths["gd"][-1] == start
        assert paths["adm"][-1] == script.STRONG
