"""Differences along edges and their adjoint: against sums written out, and against autograd's route."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regloss import NonlocalTV, Saddle
from regloss_plugins.kernels import edges as kernels
from regloss_plugins.regularizers.nltv import NonlocalTerm

FIRST = np.array([0, 0, 3, 2])
SECOND = np.array([1, 3, 2, 3])  # the pair (2, 3) stands there in both directions
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_follow_the_definition(sign: int, dtype: type) -> None:
    random = np.random.default_rng(0)
    values, flows = random.normal(size=(3, 5)).astype(dtype), random.normal(size=(3, 4)).astype(dtype)
    weights = WEIGHTS.astype(dtype)
    along = np.empty((3, 4), dtype=dtype)
    kernels.differences(FIRST, SECOND, weights, values, sign, along)
    np.testing.assert_allclose(along, WEIGHTS * (values[:, SECOND] + sign * values[:, FIRST]), rtol=1e-5)
    total = np.zeros((3, 5), dtype=dtype)
    kernels.scatter(FIRST, SECOND, weights, flows, sign, total)
    matrix = np.zeros((4, 5))
    for edge, (i, j, weight) in enumerate(zip(FIRST, SECOND, WEIGHTS, strict=True)):
        matrix[edge, j] += weight
        matrix[edge, i] += sign * weight
    np.testing.assert_allclose(total, flows @ matrix, rtol=1e-5, atol=1e-6)


def test_recorded_operations_give_the_same() -> None:
    """With a gradient asked for, torch's operations take the kernels' place."""
    random = torch.Generator().manual_seed(0)
    bound = NonlocalTV(neighbors=3).bind(torch.rand(2, 3, 4, 5, generator=random, dtype=torch.float64))
    plain = bound.form(Saddle).parts[0].operator
    weights = bound.weights.clone().requires_grad_()
    recorded = NonlocalTerm(NonlocalTV(), bound.edges, weights, (2, 4, 5)).form(Saddle).parts[0].operator
    values = torch.rand(2, 3, 4, 5, generator=random, dtype=torch.float64)
    dual = torch.rand(plain.apply(values).shape, generator=random, dtype=torch.float64)
    for fast, slow in ((plain, recorded), (plain.absolute(), recorded.absolute())):
        for name, argument in (("apply", values), ("adjoint", dual)):
            by_kernel, by_torch = getattr(fast, name)(argument), getattr(slow, name)(argument)
            assert by_torch.requires_grad
            assert not by_kernel.requires_grad
            torch.testing.assert_close(by_kernel, by_torch.detach(), rtol=1e-12, atol=1e-14)
