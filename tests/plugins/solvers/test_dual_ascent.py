"""Compiled steps against the reference by tensor operations: same iterates, same certificates, whatever the problem."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from regloss import PDHG, NonlocalTV, Problem, RegularizedSoftmax, Saddle, Status, Sum, TotalVariation, solve
from regloss.forms import SaddlePart
from regloss.operators import Gradient
from regloss_plugins.solvers import dual_ascent

SIZE = (8, 9)
REGULARIZERS = [
    TotalVariation(0.4),
    TotalVariation(0.4, isotropic=True),
    TotalVariation(0.4, edge_scale=20.0),
    NonlocalTV(0.3, neighbors=4, sigma_rgb=0.3),
]
BOTH = (True, False)


def problem(
    regularizer: Any, dtype: torch.dtype = torch.float64, size: tuple[int, ...] = SIZE, classes: int = 3
) -> Any:
    random = torch.Generator().manual_seed(1)
    image = torch.rand(3, 3, *size, generator=random, dtype=dtype)
    return regularizer.bind(image), 2 * torch.randn(3, classes, *size, generator=random, dtype=dtype)


def assert_same(first: Any, second: Any, tolerance: float) -> None:
    pairs = [(first.probabilities, second.probabilities), *zip(first.state.duals, second.state.duals, strict=True)]
    for name in ("energy", "bound", "start_energy"):
        pairs.append((getattr(first, name), getattr(second, name)))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


class Counted:
    """Notes which of the two was at work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = self.tensors = 0
        for name in ("CompiledRun", "TensorRun"):
            advance = getattr(dual_ascent, name).advance
            monkeypatch.setattr(getattr(dual_ascent, name), "advance", self._counting(advance, name == "CompiledRun"))

    def _counting(self, advance: Any, compiled: bool) -> Any:
        def counting(run: Any, steps: int) -> None:
            self.compiled += steps * compiled
            self.tensors += steps * (not compiled)
            advance(run, steps)

        return counting


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
@pytest.mark.parametrize("size", [(11,), (8, 9), (7, 6, 8)], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 11])
def test_same_iterates_as_by_tensors(regularizer: Any, size: tuple[int, ...], classes: int, counted: Counted) -> None:
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        term, unary = problem(regularizer, dtype, size, classes)
        fast, slow = (solve(term, unary, PDHG(25, 0.0, compiled=flag), entropy=0.5) for flag in BOTH)
        assert fast.probabilities.dtype == slow.probabilities.dtype == dtype
        assert_same(fast, slow, tolerance)
    assert counted.compiled == counted.tensors == 50


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
@pytest.mark.parametrize("method", ["accelerated", "projected-gradient"])
@pytest.mark.parametrize("steps", ["diagonal", "norm", 0.02])
def test_methods_and_steps(regularizer: Any, method: Any, steps: Any) -> None:
    term, unary = problem(regularizer)
    fast, slow = (solve(term, unary, PDHG(40, 0.0, method, steps, compiled=flag), entropy=0.4) for flag in BOTH)
    assert_same(fast, slow, 1e-10)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_seeds_barred_labels_and_regions(regularizer: Any, counted: Counted) -> None:
    """Seeds are kept, barred labels are not taken; outside the region nothing counts."""
    random = torch.Generator().manual_seed(2)
    image = torch.rand(2, 3, *SIZE, generator=random, dtype=torch.float64)
    unary = torch.randn(2, 3, *SIZE, generator=random, dtype=torch.float64)
    roi = torch.ones(2, *SIZE, dtype=torch.bool)
    roi[0, :, -2:], roi[1, 3:5, 2:6] = False, False
    fixed = torch.full((2, *SIZE), -1)
    fixed[:, 1, 1], fixed[0, 6, 3], fixed[1, 3, 3] = 1, 2, 0
    allowed = torch.tensor([[False, True, True], [True, True, True]])
    term = regularizer.bind(image, roi)
    given = {"entropy": 0.3, "fixed": fixed, "allowed": allowed}
    fast, slow = (solve(term, unary, PDHG(60, 0.0, compiled=flag), **given) for flag in BOTH)
    assert counted.compiled == counted.tensors == 60
    for mine, theirs in ((fast.energy, slow.energy), (fast.bound, slow.bound), (fast.gap, slow.gap)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    inside = roi.unsqueeze(1)
    torch.testing.assert_close(fast.probabilities * inside, slow.probabilities * inside, rtol=1e-10, atol=1e-10)
    assert fast.probabilities[0, :, 1, 1].tolist() == [0.0, 1.0, 0.0]
    assert float((fast.probabilities * inside)[0, 0].max()) == 0


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_images_that_are_done_leave_and_warm_starts_help(regularizer: Any) -> None:
    term, unary = problem(regularizer)
    unary = unary * torch.tensor([0.01, 1.0, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    fast, slow = (solve(term, unary, PDHG(3000, 1e-5, compiled=flag), entropy=0.5) for flag in BOTH)
    assert fast.steps.tolist() == slow.steps.tolist()
    assert fast.status == slow.status == (Status.CONVERGED,) * 3
    assert len(set(fast.steps.tolist())) > 1
    assert_same(fast, slow, 1e-6)
    again = solve(term, unary, PDHG(3000, 1.001e-5), entropy=0.5, warm=slow)
    assert again.steps.tolist() == [0, 0, 0]
    near, nearby = (solve(term, 1.01 * unary, PDHG(20, 0.0, compiled=flag), entropy=0.5, warm=fast) for flag in BOTH)
    assert_same(near, nearby, 1e-10)


def test_limited_momentum() -> None:
    """It changes the way, not the end."""
    term, unary = problem(REGULARIZERS[0])
    fast, slow = (solve(term, unary, PDHG(60, 0.0, momentum=0.5, compiled=flag), entropy=0.5) for flag in BOTH)
    assert_same(fast, slow, 1e-10)
    free, exact = (solve(term, unary, PDHG(60, 0.0), entropy=0.5), solve(term, unary, PDHG(9000, 1e-9), entropy=0.5))
    assert not torch.allclose(fast.probabilities, free.probabilities, atol=1e-6)
    limited = solve(term, unary, PDHG(9000, 1e-9, momentum=0.9), entropy=0.5)
    torch.testing.assert_close(limited.probabilities, exact.probabilities, rtol=0, atol=1e-4)


def test_a_start_need_not_be_feasible() -> None:
    """It is projected, also where no difference is taken and the projection moves nothing."""
    for regularizer in REGULARIZERS:
        term, unary = problem(regularizer)
        cold = solve(term, unary, PDHG(1, 0.0), entropy=0.5)
        far = dataclasses.replace(cold.state, duals=tuple(50 * torch.randn_like(y) for y in cold.state.duals))
        fast, slow = (solve(term, unary, PDHG(30, 0.0, compiled=flag), entropy=0.5, warm=far) for flag in BOTH)
        assert_same(fast, slow, 1e-10)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_a_scaled_form_is_compiled_too(regularizer: Any, counted: Counted) -> None:
    """Learnt weights come as a factor of K."""
    term, unary = problem(regularizer)
    form = term.form(Saddle).scaled(torch.tensor(0.7, dtype=torch.float64))
    for steps in ("diagonal", "norm"):
        fast, slow = (
            PDHG(40, 0.0, steps=steps, compiled=flag).minimise(Problem(form=form, unary=unary, entropy=0.5))
            for flag in BOTH
        )
        assert_same(fast, slow, 1e-10)
    assert counted.compiled == counted.tensors == 80


def test_threads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    term, unary = problem(REGULARIZERS[3])
    alone = solve(term, unary, PDHG(40, 1e-6), entropy=0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    together = solve(term, unary, PDHG(40, 1e-6), entropy=0.5)
    assert_same(together, alone, 0.0)


class Stranger(Gradient):
    """It may compute something else, so fast code for gradients is not for it."""


def test_everything_else_goes_by_tensors(counted: Counted) -> None:
    """Several parts, the lazy method, types without fast code, a gradient that is recorded, or by request."""
    term, unary = problem(REGULARIZERS[0])
    both = Sum([REGULARIZERS[0], REGULARIZERS[3]]).bind(torch.rand(3, 3, *SIZE, dtype=torch.float64))
    (part,) = term.form(Saddle).parts
    stranger = Stranger(part.operator.size, dtype=torch.float64)
    bare = Saddle((SaddlePart(stranger, part.dual_set),))
    solve(both, unary, PDHG(10, 0.0), entropy=0.5)
    solve(term, unary, PDHG(10, 0.0, "lazy"), entropy=0.5)
    solve(term, unary, PDHG(10, 0.0, compiled=False), entropy=0.5)
    PDHG(10, 0.0).minimise(Problem(form=bare, unary=unary, entropy=0.5))
    PDHG(10, 0.0).minimise(Problem(form=term.form(Saddle), unary=unary.clone().requires_grad_(), entropy=0.5))
    layer = RegularizedSoftmax(REGULARIZERS[0], backward="unrolled", max_steps=10)
    layer((-unary).requires_grad_(), term).sum().backward()
    assert (counted.compiled, counted.tensors) == (0, 60)
    layer = RegularizedSoftmax(REGULARIZERS[0], max_steps=10, tolerance=0.0)
    layer((-unary).requires_grad_(), term).square().sum().backward()
    assert counted.compiled == 10


def test_arguments_are_not_modified() -> None:
    for regularizer in REGULARIZERS:
        term, unary = problem(regularizer)
        first = solve(term, unary, PDHG(10, 0.0), entropy=0.5)
        kept: list[Tensor] = [value.clone() for value in (unary, first.probabilities, *first.state.duals)]
        solve(term, unary, PDHG(10, 0.0), entropy=0.5, warm=first)
        for value, copy in zip((unary, first.probabilities, *first.state.duals), kept, strict=True):
            assert torch.equal(value, copy)
