"""Gated windows in Triton against the sum over offsets in float64, run by Triton's interpreter."""

from __future__ import annotations

import pytest
from triton_interpreter import interpreted

CODE = """
import torch

from regloss import GatedCRF
from regloss.dispatch import _registered, find
from regloss_plugins.bindings.gated_windows import gated_windows

find("gated-windows", device=torch.device("cpu"))
called = []

def counted(*given):
    found = gated_windows(*given)
    called.append(found is not None)
    return found


def check(shape, radius=2, roi=None, spacing=None, **settings):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(shape[0], 3, *shape[2:], generator=generator)
    s = torch.randn(shape, generator=generator).softmax(1)
    factors = torch.arange(1.0, shape[0] + 1)
    regularizer = GatedCRF(1.7, radius, sigma_xy=2.0, sigma_rgb=0.3, **settings)
    results = []
    for dtype in (torch.float32, torch.float64):
        given = s.to(dtype, copy=True).requires_grad_()
        if dtype == torch.float32:
            _registered["gated-windows", (), "cpu"] = counted  # as on a CUDA device
        energy = regularizer.bind(image.to(dtype), roi, spacing).energy(given)
        (energy * factors.to(dtype)).sum().backward()
        _registered.pop(("gated-windows", (), "cpu"), None)
        results.append((energy.detach().double(), given.grad.double()))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

"""

CASES = {
    "sizes": """
for shape in ((2, 3, 9, 11), (1, 2, 1, 9), (1, 21, 7, 1), (1, 33, 5, 6), (2, 2, 3, 4, 5)):
    check(shape)
check((1, 2, 1, 1))  # no pair, and nothing to sum
assert called == [True] * 5
# A single class, which no energy has: the same sums as beside another.
values, image = torch.rand(1, 2, 6, 5), torch.rand(1, 3, 6, 5)
settings = (image, (None, None, None), [(0, 1), (1, -1), (1, 0), (1, 1)], (1.0, 1.0), 2.0, 0.3)
torch.testing.assert_close(gated_windows(values[:, :1], *settings)[0], gated_windows(values, *settings)[0][:, :1])
""",
    "settings": """
generator = torch.Generator().manual_seed(2)
roi, source, destination = torch.rand(3, 2, 9, 8, generator=generator) > 0.3
check((2, 3, 9, 8), roi=roi)
check((2, 3, 9, 8), source=source)
check((2, 3, 9, 8), roi=roi, source=source, destination=destination)
check((2, 3, 9, 8), spacing=(1.0, 2.5), unit="mm")
check((2, 3, 9, 8), radius=20)
assert called == [True] * 5
""",
}


@pytest.mark.parametrize("case", ["sizes", pytest.param("settings", marks=pytest.mark.slow)])
def test_energy_and_gradient(case: str) -> None:
    interpreted(CODE + CASES[case])
