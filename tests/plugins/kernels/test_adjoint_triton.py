"""Conjugate gradients of the implicit gradient in Triton against those by tensors in float64, by the interpreter."""

from __future__ import annotations

from triton_interpreter import interpreted

CODE = """
import torch

import regloss
from regloss import NonlocalTV, Ordered, PDHG, RegularizedSoftmax, Saddle, StarShape, TotalVariation, Volume
from regloss.dispatch import _registered, find
from regloss.implicit import JointAdjointProblem, softmax_response, solve_adjoint
from regloss_plugins.bindings import adjoint_steps as binding
from regloss_plugins.kernels import adjoint_triton

# As on a CUDA device, where there is no code that goes image by image.
find("joint-adjoint", device=torch.device("cpu"))
for task, types, device in list(_registered):
    if task == "adjoint-part":
        _registered[task, types, "cpu"] = _registered[task, types, device]
    elif task == "adjoint":
        del _registered[task, types, device]
binding.look_every = lambda device: 3
generator = torch.Generator().manual_seed(1)


def check(priors, shape, roi=None, spacing=None, steps=4, tolerance=0.0, entropy=0.5):
    prior = priors[0] if len(priors) == 1 else regloss.Sum(priors)
    image = torch.rand(shape[0], 1, *shape[2:], generator=generator, dtype=torch.float64)
    form = prior.bind(image, roi, spacing).form(Saddle)
    logs = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(1)
    duals = []
    for part in form.parts:
        z = part.operator.apply(logs)
        duals.append(part.dual_set.project(0.8 * torch.randn(z.shape, generator=generator, dtype=torch.float64)))
    respond = softmax_response(logs.exp(), entropy)
    start = respond(torch.randn(shape, generator=generator, dtype=torch.float64))
    given = dict(max_steps=steps, tolerance=tolerance)
    expected = solve_adjoint(form, duals, logs.exp(), entropy, start, respond, **given)
    parts = prior.bind(image.float(), roi, spacing).form(Saddle).parts
    single = tuple(dual.float() for dual in duals)
    problem = JointAdjointProblem(parts, single, logs.float(), entropy, start.float(), **given)
    found = binding.joint_adjoint(problem)
    torch.testing.assert_close(found.response.double(), expected.response, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found.duals, expected.duals, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.residual.double(), expected.residual, rtol=1e-4, atol=1e-5)
    return found, expected


tv, isotropic, nltv = TotalVariation(0.4), TotalVariation(0.4, isotropic=True), NonlocalTV(0.3, neighbors=3)
inside = torch.rand(2, 7, 6, generator=generator) > 0.2
for prior in (tv, isotropic):
    check([prior], (1, 2, 23, 29), steps=3)
    check([prior], (1, 2, 1, 1), steps=2)
    check([prior], (1, 21, 1, 9), steps=2)
    check([prior], (1, 33, 5, 4), steps=2)
    check([prior], (2, 2, 3, 4, 5))
    check([prior], (2, 3, 7, 6), inside, (1.0, 2.5))
check([nltv], (2, 3, 7, 6), inside)
check([nltv], (1, 33, 3, 2), steps=2)
check([nltv], (1, 2, 17, 19), steps=2)


bounds, exact = (Volume(**{name: (0.5, 0.5) for name in names}, unit="fraction") for names in (["upper"], ["volumes"]))
for prior in (bounds, exact, Ordered(), StarShape(center=(3, 2))):
    check([prior], (2, 2, 7, 6), inside, steps=3, tolerance=1e-3)  # those of volumes are solved at once
check([Ordered()], (1, 33, 5, 4), steps=2)
check([StarShape(center=(0, 4), label=20)], (1, 21, 1, 9), steps=2)
check([exact, tv, StarShape(center=(3, 2))], (1, 2, 23, 29), steps=3)
check([isotropic, nltv, StarShape(center=(3, 2), label=2)], (1, 3, 7, 6), steps=3)
check([Ordered(), isotropic], (1, 3, 3, 2, 4), steps=3)

# What has ended stays as it is while others go on, and the host looks at every third step alone.
found, expected = check([tv], (2, 2, 6, 5), steps=30, tolerance=0.2)
assert expected.steps <= found.steps < expected.steps + 3

# What the operation says that it writes is what it writes.
taken = []
operation = adjoint_triton.adjoint_steps
adjoint_triton.adjoint_steps = lambda *given: taken.append(given) or operation(*given)
check([tv, exact], (1, 2, 6, 5), steps=1)
torch.library.opcheck(operation, taken[0], test_utils=("test_schema", "test_faketensor"))

# Of a layer, whose weight is learnt; double precision is left to the reference.
logits = torch.randn(2, 2, 6, 5, generator=generator)
def gradients(prior, dtype):
    settings = {"learn": ["weight"], "backward_steps": 6, "backward_tolerance": 1e-9}
    layer = RegularizedSoftmax(prior, PDHG(20, 0.0), **settings).to(dtype)
    scores = logits.to(dtype).requires_grad_()
    loss = layer(scores, logits[:, :1].sigmoid().to(dtype))[:, 0].square().sum()
    return [one.double() for one in torch.autograd.grad(loss, [scores, layer.log_weight])]


called = []


def counted(problem):
    made = binding.joint_adjoint(problem)
    called.append(made is not None)
    return made


_registered["joint-adjoint", (), "cpu"] = counted
for prior in (isotropic, [nltv, bounds]):
    for mine, theirs in zip(gradients(prior, torch.float32), gradients(prior, torch.float64)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
assert called == [True, False, True, False]
"""


def test_they_are_those_of_the_tensors() -> None:
    interpreted(CODE)
