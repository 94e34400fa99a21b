"""The search for neighbours in Triton against all distances in float64, run by Triton's interpreter."""

from __future__ import annotations

from triton_interpreter import interpreted

CODE = """
import torch

from regloss import NonlocalTV
from regloss.dispatch import _registered, find
from regloss_plugins.bindings.neighbors import on_cuda
from regloss_plugins.kernels.neighbors_triton import nearest
from regloss_plugins.regularizers.nltv import nearest_others

generator = torch.Generator().manual_seed(0)
find("nearest-others", device=torch.device("cpu"))
on_cpu = _registered.pop(("nearest-others", (), "cpu"))


def check(size, width, window, count, constant=False):
    places = torch.ones(size).nonzero()
    features = torch.rand(len(places), width, generator=generator, dtype=torch.float64)
    features = torch.cat([features * (not constant), places / 4], 1)
    indices, squared = on_cuda(features, places, size, window, count)
    expected, exact = nearest_others(features, places, size, window, count)
    torch.testing.assert_close(squared, exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(indices < 0, expected < 0)
    own = (features[indices] - features[:, None]).square().sum(2)
    torch.testing.assert_close(torch.where(indices < 0, torch.inf, own), exact, rtol=1e-5, atol=1e-6)
    for number, row in enumerate(indices.tolist()):
        there = [one for one in row if one >= 0]
        assert len(set(there)) == len(there) and number not in there


check((9, 15), 3, None, 5)
check((9, 15), 3, 2, 5)
check((70, 1), 1, 1, 2)  # at the ends there are fewer
check((3, 4, 6), 2, 1, 9)
check((2, 2), 0, None, 3)  # all others
check((9, 9), 1, None, 4, constant=True)

given = torch.rand(70, 3, generator=generator), torch.ones(7, 10).nonzero(), 2, 4
torch.library.opcheck(nearest, given, test_utils=("test_schema", "test_faketensor"))

image = torch.rand(1, 3, 8, 9, generator=generator)
roi = torch.rand(1, 8, 9, generator=generator) > 0.2
for settings in ({}, {"window": 2, "patch": 1}, {"weights": "zmp"}):
    found = []
    for search in (on_cuda, on_cpu):
        _registered["nearest-others", (), "cpu"] = search
        found.append(NonlocalTV(neighbors=4, **settings).bind(image, roi))
    assert torch.equal(found[0].edges, found[1].edges)
    torch.testing.assert_close(found[0].weights, found[1].weights, rtol=1e-5, atol=1e-6)
"""


def test_neighbours_are_exact() -> None:
    interpreted(CODE)
