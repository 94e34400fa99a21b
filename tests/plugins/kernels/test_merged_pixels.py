"""The implicit gradient over merged pixels against the dense linear algebra of its definition, and the tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import regloss
from regloss import PDHG, NonlocalTV, RegularizedSoftmax, TotalVariation
from regloss.dispatch import find
from regloss.forms import Saddle
from regloss.implicit import AdjointProblem, softmax_response, solve_adjoint
from regloss.operators import unscaled
from regloss_plugins.kernels.merged_pixels import MergedPixels, Rows

CASES = {
    "tv": (TotalVariation(0.4), (2, 3, 7, 9)),
    "tv, many classes": (TotalVariation(0.2), (1, 33, 6, 5)),
    "tv, one row": (TotalVariation(0.4), (2, 2, 1, 12)),
    "tv, one pixel": (TotalVariation(0.4), (1, 3, 1, 1)),
    "tv, volume": (TotalVariation(0.3), (1, 3, 3, 4, 5)),
    "isotropic": (TotalVariation(0.4, isotropic=True), (2, 3, 7, 9)),
    "isotropic, one column": (TotalVariation(0.4, isotropic=True), (1, 3, 12, 1)),
    "isotropic, volume": (TotalVariation(0.3, isotropic=True), (2, 3, 3, 4, 5)),
    "nltv": (NonlocalTV(0.3, neighbors=3, sigma_rgb=0.3), (2, 3, 7, 9)),
    "nltv, volume": (NonlocalTV(0.2, neighbors=3, sigma_rgb=0.3), (1, 2, 3, 4, 5)),
}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem_of(
    regularizer: Any, shape: tuple[int, ...], solver: PDHG, *, roi: Tensor | None = None, dtype: torch.dtype
) -> AdjointProblem:
    """The system at the solver's solution for random logits, entropy 0.5."""
    batch, _, *size = shape
    image = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    term = regularizer.bind(image, roi)
    logits = random(*shape, seed=2, dtype=dtype)
    solution = regloss.solve(term, -logits, solver, entropy=0.5)
    (part,) = term.form(Saddle).parts
    (dual,) = solution.state.duals
    log_s = ((logits - part.operator.adjoint(dual)) / 0.5).log_softmax(1)
    start = softmax_response(log_s.exp(), 0.5)(random(*shape, seed=3, dtype=dtype))
    return AdjointProblem(part, dual, log_s, 0.5, start, 2000, 1e-13 if dtype == torch.float64 else 1e-7)


def fast(problem: AdjointProblem) -> Any:
    solve = find(
        "adjoint", type(unscaled(problem.part.operator)[0]), type(problem.part.dual_set), device=torch.device("cpu")
    )
    assert solve is not None
    return solve(problem)


def dense(problem: AdjointProblem) -> Tensor:
    """V, by the pseudoinverse of the whole matrix, in double precision."""
    found = []
    for image in range(len(problem.start)):
        one = torch.tensor([image])
        part, dual, s = problem.part[one], problem.dual[one], problem.log_probabilities[one].exp()
        form = Saddle((part,))
        tangent = part.dual_set.tangent(part.residual(s), dual)
        respond = softmax_response(s, problem.entropy)

        def system(value: Tensor) -> Tensor:
            (free,) = (tangent.project(value),)  # noqa: B023 - called within the turn
            image = part.operator.apply(respond(form.adjoint([free])))  # noqa: B023
            return tangent.project(image + tangent.curvature * free)  # noqa: B023

        unit = torch.eye(dual.numel(), dtype=dual.dtype).reshape(-1, *dual.shape[1:])
        matrix = torch.stack([system(row.unsqueeze(0)).flatten() for row in unit]).double()
        right = tangent.project(part.operator.apply(problem.start[one])).flatten().double()
        nu = (torch.linalg.pinv(matrix, rtol=1e-11, hermitian=True) @ right).reshape(dual.shape).to(dual.dtype)
        found.append(problem.start[one] - respond(form.adjoint([tangent.project(nu)])))
    return torch.cat(found)


@pytest.mark.parametrize("steps", [7, 20000])  # where the solver is far from its end, and where it is there
@pytest.mark.parametrize("name", CASES)
def test_it_solves_the_system(name: str, steps: int) -> None:
    """Of a solution that is not one as of one that is: to 1e-8 of the largest entry."""
    regularizer, shape = CASES[name]
    problem = problem_of(regularizer, shape, PDHG(steps, 1e-15), dtype=torch.float64)
    found = fast(problem)
    if shape == (1, 33, 6, 5):  # the pseudoinverse would take long
        form = Saddle((problem.part,))
        s = problem.log_probabilities.exp()
        respond = softmax_response(s, 0.5)
        given = {"max_steps": 5000, "tolerance": 1e-12}
        expected = solve_adjoint(form, [problem.dual], s, 0.5, problem.start, respond, **given).response
    else:
        expected = dense(problem)
    assert float((found.response - expected).abs().max()) <= 1e-8 * float(expected.abs().max())
    assert bool((found.residual <= 1e-13).all())


@pytest.mark.parametrize("name", ["tv", "isotropic", "nltv"])
def test_single_precision_and_a_region(name: str) -> None:
    """Float32 within 1e-4 of the same system in double precision; nothing passes the region's border."""
    regularizer, shape = CASES[name]
    roi = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
    roi[:, :, 5:] = False
    roi[1, :3] = False
    problem = problem_of(regularizer, shape, PDHG(3000, 1e-7), roi=roi, dtype=torch.float32)
    found = fast(problem).response
    expected = dense(problem)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    outside = ~roi.unsqueeze(1).expand(shape)
    torch.testing.assert_close(found[outside], problem.start[outside], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 3])
def test_stopped_early_it_keeps_its_bounds(name: str, steps: int) -> None:
    """Sums of 0 over classes, <g, v> >= 0 and |v| <= |g| / (2 entropy), wherever it is stopped."""
    regularizer, shape = CASES[name]
    problem = problem_of(regularizer, shape, PDHG(200, 1e-9), dtype=torch.float64)
    found = fast(AdjointProblem(problem.part, problem.dual, problem.log_probabilities, 0.5, problem.start, steps, 0.0))
    g = random(*shape, seed=3)
    assert found.steps <= steps
    assert float(found.response.sum(1).abs().max()) <= 1e-12
    for image in range(shape[0]):
        assert float((g[image] * found.response[image]).sum()) >= 0
        assert float(found.response[image].norm()) <= float(g[image].norm()) / (2 * 0.5)


def test_probabilities_that_underflow() -> None:
    """A component's response is that of its pixels' logarithms, however small the probabilities are."""
    log_s = np.array([[-800.0, -800.0, 0.0], [0.0, 0.0, -np.inf]])
    ends = np.arange(3, dtype=np.int32)
    free = np.array([[True, False, False], [False, False, False]])
    merged = MergedPixels(ends, ends + 1, free, log_s, 0.5)
    start = np.array([[1.0, 3.0, 0.0], [-1.0, -3.0, 0.0]])
    found = merged.respond(start, Rows.none(np.float64), 100, 0.0)
    np.testing.assert_allclose(found.values[0], [2, 2, 0], atol=1e-12)
    np.testing.assert_allclose(found.values.sum(0), 0, atol=1e-12)


@pytest.mark.parametrize("regularizer", [TotalVariation(0.3), TotalVariation(0.3, isotropic=True), NonlocalTV(0.1)])
def test_a_layer_has_the_gradient_of_the_tensor_version(regularizer: Any) -> None:
    """Of logits, weight and entropy, where neither is exact: in float64, at a gap of 1e-6 a pixel."""
    image = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for compiled in (True, False):
        solver = PDHG(20000, 1e-12, compiled=compiled)
        layer = RegularizedSoftmax(regularizer, solver, learn=("weight", "entropy"), backward_tolerance=1e-11)
        layer = layer.double()
        layer.backward_steps = 5000
        logits = random(2, 3, 10, 12, seed=2).requires_grad_()
        (layer(logits, image) * random(2, 3, 10, 12, seed=3)).sum().backward()
        assert layer.backward_residual is not None
        assert layer.backward_residual.shape == (2,)
        gradients.append([logits.grad, layer.log_weight.grad, layer.log_entropy.grad])
    for fast_one, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fast_one, reference, rtol=1e-5, atol=1e-7)
