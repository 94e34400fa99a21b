"""Dual ascent on several parts in Triton against the steps by tensors in float64, run by Triton's interpreter."""

from __future__ import annotations

from triton_interpreter import interpreted

CODE = """
import dataclasses
import torch

import regloss
from regloss import NonlocalTV, Ordered, PDHG, RegularizedSoftmax, StarShape, TotalVariation, Volume
from regloss.dispatch import _registered, find
from regloss_plugins.bindings.joint_steps import joint_steps
from regloss_plugins.kernels import joint_ascent_triton

# As on a CUDA device, where there is no code that goes image by image.
find("joint-steps", device=torch.device("cpu"))
called = []

def counted(problem, most):
    steps = joint_steps(problem, most)
    called.append(steps is not None)
    return steps

for task, types, device in list(_registered):
    if task == "joint-part":
        _registered[task, types, "cpu"] = _registered[task, types, device]
    elif task == "dual-ascent":
        del _registered[task, types, device]
_registered["joint-steps", (), "cpu"] = counted
generator = torch.Generator().manual_seed(1)


def check(regularizers, shape, roi=None, spacing=None, method="accelerated", count=6, **settings):
    image = torch.rand(shape[0], 1, *shape[2:], generator=generator)
    unary = torch.randn(shape, generator=generator)
    regularizer = regularizers[0] if len(regularizers) == 1 else regloss.Sum(regularizers)
    solver = PDHG(count, 0.0, method, check_every=4, **settings)
    found = regloss.solve(regularizer.bind(image, roi, spacing), unary, solver, entropy=0.5)
    reference = dataclasses.replace(solver, compiled=False)
    term = regularizer.bind(image.double(), roi, spacing)
    expected = regloss.solve(term, unary.double(), reference, entropy=0.5)
    torch.testing.assert_close(found.probabilities.double(), expected.probabilities, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found.state.duals, expected.state.duals, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-5, atol=1e-4)
    assert called.pop()  # the kernels took the steps


def fractions(classes, **given):
    names = {name: tuple(value for _ in range(classes)) for name, value in given.items()}
    return Volume(**names, unit="fraction")


def star(*center, label=1):
    return StarShape(center=center, label=label)


"""

CASES = {
    "one": """
sizes = ((1, 2, 33, 35), (1, 2, 1, 1), (1, 21, 1, 9), (1, 33, 5, 9), (2, 3, 3, 4, 5))
for shape, count in zip(sizes, (3, 2, 2, 2, 5)):
    center = [length // 2 for length in shape[2:]]
    check([fractions(shape[1], volumes=1 / shape[1])], shape, count=count)
    check([fractions(shape[1], lower=0.3 / shape[1], upper=1.5 / shape[1])], shape, count=count)
    check([star(*center, label=shape[1] - 1)], shape, count=count)
    check([Ordered()], shape, count=count)
""",
    "several": """
tv, isotropic, nltv = TotalVariation(0.4), TotalVariation(0.3, isotropic=True), NonlocalTV(0.3, neighbors=3)
check([tv, star(4, 4)], (1, 3, 23, 17), count=3)
check([fractions(3, volumes=1 / 3), isotropic, star(4, 4, label=2)], (2, 3, 9, 8), count=4)
check([nltv, tv], (1, 2, 6, 5), count=4)
check([tv, nltv, fractions(2, lower=0.2, upper=0.7)], (1, 2, 6, 5), count=4)
check([isotropic, Ordered()], (1, 33, 1, 18), count=2)
check([tv, star(0, 0, label=20)], (1, 21, 5, 1), count=2)
check([isotropic, tv, star(1, 2, 2)], (1, 2, 3, 4, 5), count=4)
""",
    "one-channel": """
image = torch.rand(1, 1, 6, 5, generator=generator)
both = regloss.Sum([TotalVariation(0.2), NonlocalTV(0.1, neighbors=3)])
denoised, exact = (regloss.denoise(f, both, max_steps=6, tolerance=0.0).image for f in (image, image.double()))
torch.testing.assert_close(denoised.double(), exact, rtol=1e-5, atol=1e-5)
assert called == [True, False]  # double precision is left to the tensors
called.clear()
""",
    "settings": """
inside = torch.rand(2, 9, 8, generator=generator) > 0.2
some = [TotalVariation(0.4, isotropic=True), star(4, 4), fractions(2, lower=0.3, upper=0.6)]
check(some, (2, 2, 9, 8), roi=inside, count=3)
check(some, (2, 2, 9, 8), spacing=(1.0, 2.5), count=2)
check(some, (2, 2, 9, 8), method="projected-gradient", steps=0.03, count=2)
check([Ordered()], (2, 3, 9, 8), roi=inside, steps="norm", momentum=0.9, count=4)
check(some[:2], (2, 3, 9, 8), steps="norm", count=2)
""",
    "others": """
# The first image is solved at once, the second goes on alone; a warm start goes on where it stopped.
unary = torch.randn(2, 2, 9, 8, generator=generator)
unary[0] = 0
term = regloss.Sum([TotalVariation(0.4), fractions(2, volumes=0.5), star(4, 4)]).bind(torch.zeros(2, 1, 9, 8))
found, expected = (regloss.solve(term, unary, PDHG(20, 1e-5, compiled=fast), entropy=0.5) for fast in (True, False))
assert called == [True]
assert found.steps.tolist() == expected.steps.tolist()
assert found.steps[0] < found.steps[1]
torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-5, atol=2e-5)
warm, cold = (
    regloss.solve(term, unary, PDHG(4, 0.0, compiled=fast), entropy=0.5, warm=found.state) for fast in (True, False)
)
torch.testing.assert_close(warm.probabilities, cold.probabilities, rtol=1e-5, atol=1e-5)

# Seeds, learnt weights, and what is left to the reference: two parts that want the sums.
called.clear()
fixed = torch.full((2, 9, 8), -1)
fixed[:, 0, 0], fixed[:, 4, 4] = 0, 1
found, expected = (
    regloss.solve(term, unary, PDHG(8, 0.0, compiled=fast), entropy=0.5, fixed=fixed) for fast in (True, False)
)
torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-5, atol=1e-5)
layers = [
    RegularizedSoftmax([TotalVariation(0.3), star(4, 4)], PDHG(6, 0.0, compiled=fast), learn=["weight"])
    for fast in (True, False)
]
found, expected = (layer(-unary, torch.zeros(2, 1, 9, 8)) for layer in layers)
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
assert called == [True, True]
twice = regloss.Sum([fractions(2, volumes=0.5), fractions(2, lower=0.1, upper=0.9)]).bind(torch.zeros(2, 1, 9, 8))
regloss.solve(twice, unary, PDHG(2, 0.0), entropy=0.5)

# What the operation says that it writes is what it writes.
taken = []
operation = joint_ascent_triton.joint_ascent
joint_ascent_triton.joint_ascent = lambda *given: taken.append(given) or operation(*given)
regloss.solve(term, unary, PDHG(1, 0.0), entropy=0.5)
torch.library.opcheck(operation, taken[0], test_utils=("test_schema", "test_faketensor"))
called.pop()
assert called[2:] == [False]
""",
}


def test_steps_are_those_of_the_tensors() -> None:
    interpreted(CODE + "".join(CASES.values()))
