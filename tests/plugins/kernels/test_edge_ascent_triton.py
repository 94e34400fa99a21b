"""Sums along edges and dual ascent on graphs in Triton against tensors in float64, run by Triton's interpreter."""

from __future__ import annotations

from triton_interpreter import interpreted

CODE = """
import dataclasses
import torch

import regloss
from regloss import NonlocalTV, PDHG, Saddle, StarShape
from regloss.dispatch import _registered, find
from regloss.dual_sets import Box
from regloss.operators import EdgeDifferences, TreeDifferences
from regloss_plugins.bindings.edge_sums_on_device import EdgeSumsOnDevice, TreeSumsOnDevice
from regloss_plugins.bindings.joint_steps import joint_steps
from regloss_plugins.kernels.edges_triton import edge_differences, edge_sums
from regloss_plugins.regularizers.nltv import NonlocalTerm

# As on a CUDA device, where there is no code that goes image by image.
find("joint-steps", device=torch.device("cpu"))
called = []

def counted(problem, most):
    steps = joint_steps(problem, most)
    called.append(steps is not None)
    return steps

del _registered["dual-ascent", (EdgeDifferences, Box), "cpu"]
del _registered["edge-sums", (EdgeDifferences,), "cpu"]
_registered["joint-part", (EdgeDifferences, Box), "cpu"] = _registered["joint-part", (EdgeDifferences, Box), "cuda"]
_registered["joint-steps", (), "cpu"] = counted
generator = torch.Generator().manual_seed(1)


def graph(batch, size, count, padded=0):
    pixels = torch.Size(size).numel()
    first = torch.randint(pixels, (batch, count), generator=generator)
    second = (first + 1 + torch.randint(pixels - 1, (batch, count), generator=generator)) % pixels
    weights = torch.rand(batch, count, generator=generator)
    weights[:, count - padded :] = 0
    return torch.stack([first, second], dim=2), weights


def check(batch, classes, size, count, roi=None, method="accelerated", factor=0.4, steps=6, **settings):
    edges, weights = graph(batch, size, count, padded=count // 5)
    unary = torch.randn(batch, classes, *size, generator=generator)
    solver = PDHG(steps, 0.0, method, check_every=4, **settings)
    terms = [
        NonlocalTerm(NonlocalTV(factor), edges, values, (batch, *size), roi) for values in (weights, weights.double())
    ]
    found = regloss.solve(terms[0], unary, solver, entropy=0.5)
    expected = regloss.solve(terms[1], unary.double(), dataclasses.replace(solver, compiled=False), entropy=0.5)
    torch.testing.assert_close(found.probabilities.double(), expected.probabilities, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.state.duals[0].double(), expected.state.duals[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-5, atol=1e-4)
    assert called.pop()  # the kernel took the steps


# Products alone, of numbers of another precision than the weights; some edges are padding.
for batch, classes, size, count in ((2, 3, (5, 7), 140), (1, 1, (1, 2), 3), (1, 2, (2, 3, 4), 60)):
    edges, weights = graph(batch, size, count, padded=2)
    s = torch.randn(batch, classes, *size, generator=generator)
    y = torch.randn(batch, classes, count, generator=generator)
    for dtype, sign, tolerance in ((torch.float32, -1, 1e-5), (torch.float64, 1, 1e-12)):
        plain = EdgeDifferences(edges, weights.to(dtype), size, sign=sign)
        expected = plain.apply(s.double()), plain.adjoint(y.double())
        _registered["edge-sums", (EdgeDifferences,), "cpu"] = EdgeSumsOnDevice
        found = plain.apply(s), plain.adjoint(y)
        del _registered["edge-sums", (EdgeDifferences,), "cpu"]
        for one, exact in zip(found, expected):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance)
assert plain.incidence.order is plain.squared().incidence.order  # found once
checks = {"test_utils": ("test_schema", "test_faketensor")}
torch.library.opcheck(edge_differences, (edges, weights, s.flatten(2), -1), **checks)
torch.library.opcheck(edge_sums, (*plain.incidence, weights, y, -1), **checks)

# Of the one class of a star shape, which is a tree.
tree = StarShape(center=(2, 3)).bind(torch.zeros(2, 1, 5, 7)).form(Saddle).parts[0].operator
s = torch.randn(2, 3, 5, 7, generator=generator)
for operator in (tree, tree.absolute()):
    expected = operator.apply(s.double()), operator.adjoint(s.double())
    _registered["tree-sums", (TreeDifferences,), "cpu"] = TreeSumsOnDevice
    found = operator.apply(s), operator.adjoint(s)
    del _registered["tree-sums", (TreeDifferences,), "cpu"]
    for one, exact in zip(found, expected):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5)
assert "edges" in vars(tree)

check(2, 3, (5, 7), 140)
check(1, 33, (3, 1), 5, steps=3)
check(2, 21, (2, 3, 2), 40, steps=3)
check(2, 2, (4, 5), 40, method="projected-gradient", steps=4)
check(1, 2, (4, 5), 40, momentum=0.9)
check(1, 2, (4, 5), 40, factor=0.0, steps=2)

image = torch.rand(1, 1, 4, 5, generator=generator)
denoised = regloss.denoise(image, NonlocalTV(0.2, neighbors=3), max_steps=4, tolerance=0.0).image  # one channel
assert called.pop()
exact = regloss.denoise(image.double(), NonlocalTV(0.2, neighbors=3), max_steps=4, tolerance=0.0).image
assert not called.pop()  # double precision is left to the tensors
torch.testing.assert_close(denoised.double(), exact, rtol=1e-5, atol=1e-5)

# A learnt weight is a factor of K.
logits = torch.randn(1, 2, 4, 5, generator=generator)
layers = [
    regloss.RegularizedSoftmax(NonlocalTV(0.3, neighbors=3), max_steps=4, tolerance=0.0, learn=learn)
    for learn in (["weight"], [])
]
learnt, fixed = (layer(logits, image) for layer in layers)
torch.testing.assert_close(learnt, fixed, rtol=1e-5, atol=1e-5)
assert called == [True, True]

# The first image is solved at once, the second goes on alone; a warm start goes on where it stopped.
edges, weights = graph(2, (4, 5), 40)
unary = torch.randn(2, 2, 4, 5, generator=generator)
unary[0] = 0
term = NonlocalTerm(NonlocalTV(0.4), edges, weights, (2, 4, 5))
fast, slow = PDHG(20, 1e-4, check_every=4), PDHG(20, 1e-4, check_every=4, compiled=False)
found, expected = (regloss.solve(term, unary, solver, entropy=0.5) for solver in (fast, slow))
assert found.steps.tolist() == expected.steps.tolist()
assert found.steps[0] < found.steps[1]
torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-5, atol=1e-5)
fast, slow = PDHG(4, 0.0), PDHG(4, 0.0, compiled=False)
warm, cold = (regloss.solve(term, unary, solver, entropy=0.5, warm=found.state) for solver in (fast, slow))
torch.testing.assert_close(warm.probabilities, cold.probabilities, rtol=1e-5, atol=1e-5)
"""


def test_they_are_those_of_the_tensors() -> None:
    interpreted(CODE)
