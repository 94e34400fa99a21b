"""Lengths of vectors along an inner axis, against torch's own."""

from __future__ import annotations

import pytest
import torch

from regloss.numerics import vector_lengths


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lengths_and_their_derivatives(count: int) -> None:
    """At 0, and where some entries are, too."""
    values = torch.randn(2, 3, count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values[0], values[1, 0, :1], values[1, 1, 1:] = 0, 0, 0
    values.requires_grad_()
    expected = torch.linalg.vector_norm(values, dim=2)
    torch.testing.assert_close(vector_lengths(values, 2), expected)
    torch.testing.assert_close(vector_lengths(values.detach(), 2), expected.detach())
    weights = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, exact = (
        torch.autograd.grad((weights * of).sum(), values)[0] for of in (vector_lengths(values, 2), expected)
    )
    torch.testing.assert_close(found, exact)


def test_neither_underflow_nor_overflow() -> None:
    values = torch.tensor([[3e30, 4e30], [3e-30, 4e-30]], requires_grad=True)
    for given in (values, values.detach()):
        torch.testing.assert_close(vector_lengths(given, 1).detach(), torch.tensor([5e30, 5e-30]), rtol=1e-6, atol=0)
