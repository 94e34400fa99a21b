"""Conjugate gradients of the implicit gradient in Triton against those by tensors in float64, by the interpreter."""

from __future__ import annotations

from triton_interpreter import interpreted

CODE = """
import torch

import regloss
from regloss import NonlocalTV, PDHG, RegularizedSoftmax, Saddle, TotalVariation
from regloss.dispatch import _registered, find
from regloss.dual_sets import Balls, Box
from regloss.implicit import AdjointProblem, softmax_response, solve_adjoint
from regloss.operators import EdgeDifferences, Gradient
from regloss_plugins.bindings import adjoint_steps as binding

find("adjoint", device=torch.device("cpu"))
binding.look_every = lambda device: 3
generator = torch.Generator().manual_seed(1)


def check(regularizer, shape, roi=None, spacing=None, steps=4, tolerance=0.0, entropy=0.5):
    image = torch.rand(shape[0], 1, *shape[2:], generator=generator, dtype=torch.float64)
    (part,) = regularizer.bind(image, roi, spacing).form(Saddle).parts
    logs = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(1)
    z = part.operator.apply(logs)
    dual = part.dual_set.project(0.8 * torch.randn(z.shape, generator=generator, dtype=torch.float64))
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    respond = softmax_response(logs.exp(), entropy)
    start = respond(g)
    given = dict(max_steps=steps, tolerance=tolerance)
    expected = solve_adjoint(Saddle((part,)), [dual], logs.exp(), entropy, start, respond, **given)
    (single,) = regularizer.bind(image.float(), roi, spacing).form(Saddle).parts
    problem = AdjointProblem(single, dual.float(), logs.float(), entropy, start.float(), **given)
    found = binding.adjoint_steps(problem)
    torch.testing.assert_close(found.response.double(), expected.response, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.duals[0].double(), expected.duals[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.residual.double(), expected.residual, rtol=1e-4, atol=1e-5)
    return found, expected


tv, isotropic, nltv = TotalVariation(0.4), TotalVariation(0.4, isotropic=True), NonlocalTV(0.3, neighbors=3)
inside = torch.rand(2, 7, 6, generator=generator) > 0.2
for prior in (tv, isotropic):
    check(prior, (1, 2, 23, 29), steps=3)
    check(prior, (1, 2, 1, 1), steps=2)
    check(prior, (1, 21, 1, 9), steps=2)
    check(prior, (1, 33, 5, 4), steps=2)
    check(prior, (2, 2, 3, 4, 5))
    check(prior, (2, 3, 7, 6), inside, (1.0, 2.5))
check(nltv, (2, 3, 7, 6), inside)
check(nltv, (1, 33, 3, 2), steps=2)
check(nltv, (1, 2, 17, 19), steps=2)

# What has ended stays as it is while others go on, and the host looks at every third step alone.
found, expected = check(tv, (2, 2, 6, 5), steps=30, tolerance=0.2)
assert expected.steps <= found.steps < expected.steps + 3

# Of a layer, whose weight is learnt; double precision is left to the reference.
logits = torch.randn(2, 2, 6, 5, generator=generator)
kinds = {isotropic: (Gradient, Balls), nltv: (EdgeDifferences, Box)}


def gradients(prior, dtype):
    settings = {"learn": ["weight"], "backward_steps": 6, "backward_tolerance": 1e-9}
    layer = RegularizedSoftmax(prior, PDHG(20, 0.0), **settings).to(dtype)
    scores = logits.to(dtype).requires_grad_()
    loss = layer(scores, logits[:, :1].sigmoid().to(dtype))[:, 0].square().sum()
    return [one.double() for one in torch.autograd.grad(loss, [scores, layer.log_weight])]


called = []
for prior, types in kinds.items():
    def counted(problem):
        made = binding.adjoint_steps(problem)
        called.append(made is not None)
        return made

    _registered["adjoint", types, "cpu"] = counted
    for mine, theirs in zip(gradients(prior, torch.float32), gradients(prior, torch.float64)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
assert called == [True, False, True, False]
"""


def test_they_are_those_of_the_tensors() -> None:
    interpreted(CODE)
