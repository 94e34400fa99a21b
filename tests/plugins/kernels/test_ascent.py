"""Compiled dual ascent where the conformance suites do not look: rows that are alike, edges as they may come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from regloss import NonlocalTV, Saddle, SaddlePart, TotalVariation
from regloss.dispatch import find
from regloss.dual_problem import DualIterations, DualProblem
from regloss_plugins.kernels.edge_ascent import EdgeList
from regloss_plugins.regularizers.nltv import NonlocalTerm


def fast_ascent(part: SaddlePart, *given: Any) -> DualIterations:
    """What is found for the part's types on the CPU, at work on the rest of a `DualProblem`."""
    ascent = find("dual-ascent", type(part.operator), type(part.dual_set), device=torch.device("cpu"))
    assert ascent is not None
    images: DualIterations = ascent(DualProblem(part.operator, part.dual_set, *given))
    return images


@pytest.mark.parametrize(
    "size", [(1,), (2,), (9,), (1, 6), (6, 1), (2, 3), (5, 5), (6, 4), (9, 7), (1, 1, 4), (7, 2, 8)]
)
@pytest.mark.parametrize("isotropic", [False, True])
def test_rows_away_from_the_border_share_what_they_need(size: tuple[int, ...], isotropic: bool) -> None:
    """With a region of interest that is everywhere each row has its own entries; without one they are shared."""
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    cost = torch.randn(1, 2, *size, generator=random, dtype=torch.float64)
    ascents = []
    for roi in (None, torch.ones(1, *size, dtype=torch.bool)):
        (part,) = TotalVariation(0.4, isotropic).bind(image, roi).form(Saddle).parts
        ascents.append(fast_ascent(part, cost, "entropy", 0.5, "diagonal")[0])
    for extrapolation in (0.0, 0.5, 0.7):
        assert ascents[0].step(extrapolation) == pytest.approx(ascents[1].step(extrapolation), rel=1e-12, abs=1e-14)
        torch.testing.assert_close(ascents[0].dual, ascents[1].dual, rtol=1e-13, atol=1e-13)
    assert ascents[0].certify()[1:] == pytest.approx(ascents[1].certify()[1:], rel=1e-12, abs=1e-14)


def test_edges_are_sorted_by_their_first_ends() -> None:
    edges = EdgeList.of(np.array([3, 0, 3, 1]), np.array([0, 2, 1, 3]), 5)
    assert edges.start.tolist() == [0, 1, 2, 2, 4, 4]
    assert edges.second.tolist() == [2, 3, 0, 1]
    assert edges.order.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 9])
def test_edges_may_come_in_any_order_and_twice(classes: int) -> None:
    """Unsorted, in both directions, with padding, without any edge at some pixels."""
    random = torch.Generator().manual_seed(1)
    edges = torch.tensor([[[5, 1], [0, 3], [3, 0], [5, 1], [2, 5], [0, 1], [0, 1]]])
    weights = torch.tensor([[0.5, 1.0, 0.7, 0.2, 1.5, 0.0, 0.0]], dtype=torch.float64)
    (part,) = NonlocalTerm(NonlocalTV(0.3), edges, weights, (1, 2, 4)).form(Saddle).parts
    operator, dual_set = part.operator, part.dual_set
    cost = torch.randn(1, classes, 2, 4, generator=random, dtype=torch.float64)
    start = dual_set.project(torch.randn(1, classes, 7, generator=random, dtype=torch.float64))
    images = fast_ascent(part, cost, "square", 1.0, 0.1, start)
    y = before = start
    for extrapolation in (0.0, 0.5, 0.9):
        x = y + extrapolation * (y - before)
        before, y = y, dual_set.project(x + 0.1 * operator.apply(-cost - operator.adjoint(x)))
        images[0].step(extrapolation)
        torch.testing.assert_close(images[0].dual, y[0], rtol=1e-12, atol=1e-13)
    certified = images[0].certify()
    torch.testing.assert_close(certified.minimiser, (-cost - operator.adjoint(y))[0], rtol=1e-12, atol=1e-13)
    z = operator.apply(-cost - operator.adjoint(y))
    assert certified.fenchel_gap == pytest.approx(float(dual_set.fenchel_gap(z, y)), rel=1e-11)
