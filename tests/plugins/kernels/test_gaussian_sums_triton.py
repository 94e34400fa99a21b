"""Gaussian sums in Triton against float64 sums, run by Triton's interpreter in a process of its own."""

from __future__ import annotations

import pytest
from triton_interpreter import interpreted

CODE = """
import torch

from regloss_plugins.kernels.gaussian_sums_triton import gaussian_sums

generator = torch.Generator().manual_seed(0)
for points, features, classes in ((1, 2, 1), (1, 0, 2), (64, 5, 21), (130, 3, 2), (201, 6, 33), (70, 2, 70), (0, 2, 3)):
    for dtype in (torch.float32, torch.float64):
        f = 2 * torch.randn(points, features, generator=generator, dtype=torch.float64).to(dtype)
        v = torch.rand(points, classes, generator=generator)
        found = gaussian_sums(f, v)
        exact = torch.exp(-(f.double()[:, None] - f.double()[None]).square().sum(2) / 2) @ v.double()
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
# Symmetric to rounding, and the diagonal is 1: what adjoints and definiteness rest on.
f = 3 * torch.randn(90, 5, generator=generator)
w = gaussian_sums(f, torch.eye(90))
assert torch.equal(w, w.T)
assert torch.equal(w.diagonal(), torch.ones(90))
# Bandwidths far below the range of the features, which products of float32 features would lose.
f = 3000 + torch.arange(80.0)[:, None]
exact = torch.exp(-(f.double() - f.double().T).square() / 2)
torch.testing.assert_close(gaussian_sums(f, torch.eye(80)).double(), exact, rtol=1e-5, atol=1e-5)
compiled = torch.library.opcheck(gaussian_sums, (f, torch.rand(80, 3)), test_utils=("test_schema", "test_faketensor"))
print(compiled)
"""

FILTER = """
import torch

import regloss_plugins.bindings.gaussian_sums as bindings
from regloss.dispatch import _registered, find
from regloss_plugins.filters.gaussian import gaussian_filter

find("gaussian-sums", device=torch.device("cpu"))
image = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
roi = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(1)) > 0.3
values = torch.rand(2, 4, 9, 7, generator=torch.Generator().manual_seed(2))
for region in (None, roi):
    bound = gaussian_filter(image, 3.0, 0.2, region, backend="exact")
    expected = bound(values.double())
    _registered["gaussian-sums", (), "cpu"] = bindings.gaussian_sums  # as on a CUDA device
    found, double = bound(values), bound(values.double())
    del _registered["gaussian-sums", (), "cpu"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(double, expected)
print("done")
"""


@pytest.mark.parametrize("code", [CODE, FILTER], ids=["kernel", "filter"])
def test_against_the_sums_themselves(code: str) -> None:
    interpreted(code)
