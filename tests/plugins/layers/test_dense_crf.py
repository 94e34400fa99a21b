"""DenseCRFLayer: brute force mean field, derivatives of everything that is learnt, memory, reference vectors."""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import regloss
from regloss import DenseCRFLayer, Status, UsageError

EVERYTHING = ("weights", "sigma_xy", "sigma_rgb", "compatibility", "entropy")


def problem(size=(6, 5), classes=3, batch=1):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    costs = 1 - torch.eye(classes, dtype=torch.float64)
    costs = costs + 0.2 * torch.randn(classes, classes, generator=generator, dtype=torch.float64)
    return image, logits, cotangent, costs


def small(costs, **settings):
    kernels = {"weights": (2.0, 1.0), "sigma_xy": (3.0, 1.5), "sigma_rgb": (0.4, math.inf)}
    settings = {**kernels, "learn": EVERYTHING, "compatibility": costs, **settings}
    return DenseCRFLayer(len(costs), **settings).double()


def brute_force(layer, logits, image, steps):
    """Mean field with every pair of pixels in a matrix: kernels times label costs, no pixel its own neighbour."""
    height, width = image.shape[2:]
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    colours = image[0].flatten(1).T
    total = torch.zeros(len(places), len(places), dtype=torch.float64)
    for weight, xy, rgb in zip(layer.weights, layer.sigma_xy, layer.sigma_rgb, strict=True):
        squares = (places[:, None] - places[None]).square().sum(-1) / xy**2
        squares = squares + (colours[:, None] - colours[None]).square().sum(-1) / rgb**2
        total = total + weight * torch.exp(-squares / 2) / (2 * math.pi * xy**2)
    total = total - torch.diag(total.diagonal())
    costs = (layer.compatibility + layer.compatibility.T) / 2
    o = logits[0].flatten(1).T
    s = (o / layer.entropy).softmax(1)
    for _ in range(steps):
        s = ((o - total @ s @ costs) / layer.entropy).softmax(1)
    return s.T.reshape(logits.shape)


@pytest.mark.parametrize("steps", [1, 5])
def test_it_is_mean_field_by_all_pairs(steps):
    """On a 12x12 image, with two kernels and learnt costs; and so are its derivatives."""
    image, logits, cotangent, costs = problem((12, 12))
    layer = small(costs, max_steps=steps, damped=False)
    found, expected = layer(logits, image), brute_force(layer, logits, image, steps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad((found * cotangent).sum(), list(layer.parameters()))
    theirs = torch.autograd.grad((expected * cotangent).sum(), list(layer.parameters()))
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("backward", "steps"), [("unrolled", 4), ("implicit", 2000)])
def test_derivatives_match_finite_differences(backward, steps, scale):
    """Of logits, weights, both widths, label costs and entropy, each number by itself."""
    image, logits, cotangent, costs = problem()
    layer = small(
        costs,
        backward=backward,
        max_steps=steps,
        tolerance=1e-13,
        backward_tolerance=1e-12,
        scale=scale,
        backend="exact",
    )
    logits.requires_grad_()

    def loss():
        return (layer(logits, image) * cotangent).sum()

    tensors = [logits, *layer.parameters()]
    assert len(tensors) == 6
    found = torch.autograd.grad(loss(), tensors)
    if backward == "implicit":
        assert layer.solution.status == (Status.CONVERGED,)
    for tensor, gradient in zip(tensors, found, strict=True):
        flat, numbers = tensor.detach().view(-1), []
        for index in range(min(len(flat), 12)):
            kept, values = flat[index].item(), []
            for step in (1e-5, -1e-5):
                flat[index] = kept + step
                with torch.no_grad():
                    values.append(float(loss()))
            flat[index] = kept
            numbers.append((values[0] - values[1]) / 2e-5)
        expected = torch.tensor(numbers, dtype=torch.float64)
        error = (gradient.flatten()[: len(numbers)] - expected).abs().max()
        assert float(error) < 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("backward", ["unrolled", "implicit"])
def test_derivatives_through_a_lattice(backward):
    """Of what does not move the lattice they are exact: logits, weights, label costs and entropy."""
    image, logits, cotangent, costs = problem((9, 8))
    learn = ("weights", "compatibility", "entropy")
    steps = {"max_steps": 3} if backward == "unrolled" else {"max_steps": 2000, "tolerance": 1e-12}
    layer = small(costs, backward=backward, backend="lattice", learn=learn, backward_tolerance=1e-12, **steps)
    logits.requires_grad_()
    tensors = [logits, *layer.parameters()]
    found = torch.autograd.grad((layer(logits, image) * cotangent).sum(), tensors)
    generator = torch.Generator().manual_seed(3)
    for tensor, gradient in zip(tensors, found, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                tensor += step * direction
                values.append(float((layer(logits, image) * cotangent).sum()))
                tensor -= step * direction
        expected = (values[0] - values[1]) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)


def test_checkpoints_change_nothing_but_the_memory():
    image, logits, cotangent, costs = problem((10, 9), batch=2)
    found, kept = [], []
    for checkpoint in (False, True):
        layer = small(costs, max_steps=6, checkpoint=checkpoint)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = (layer(logits, image) * cotangent).sum()
        kept.append(sum(sizes))
        found.append(torch.autograd.grad(loss, list(layer.parameters())))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    # One array a step, and what the ends of the chain need.
    assert kept[1] < 12 * logits.numel() < kept[0] / 2


def test_implicit_is_the_limit_of_unrolling():
    image, logits, cotangent, costs = problem()
    layers = [
        small(costs, backward="unrolled", max_steps=80),
        small(costs, backward="implicit", max_steps=500, tolerance=1e-12, backward_tolerance=1e-10),
    ]
    found = []
    for layer in layers:
        found.append(torch.autograd.grad((layer(logits, image) * cotangent).sum(), list(layer.parameters())))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


def test_reference_vectors(oracles: Path):
    """One step from the reference's S, whose filtered values and pairs are given: softmax(log S + weight W S)."""
    dense = np.load(oracles / "densecrf.npz")
    s = torch.from_numpy(dense["S"])
    sigma = float(dense["sigma_xy"])
    weight = 2 * math.pi * sigma**2  # takes back the kernel's divisor
    image = torch.from_numpy(dense["img"]).movedim(-1, 0).unsqueeze(0)
    layer = DenseCRFLayer(
        3,
        weights=[weight],
        sigma_xy=[sigma],
        sigma_rgb=[float(dense["sigma_rgb"])],
        max_steps=1,
        damped=False,
        backend="exact",
    ).double()
    # A parameter is kept in float32 as a logarithm.
    found = layer(s.log().T.reshape(1, 3, 12, 12), image)[0].flatten(1).T
    torch.testing.assert_close(found, (s.log() + torch.from_numpy(dense["WS"])).softmax(1), rtol=0, atol=1e-5)


def test_learning_lowers_a_loss():
    """A noisy image of two halves: the layer learns to trust neighbours, and the truth becomes more probable."""
    generator = torch.Generator().manual_seed(0)
    truth = (torch.arange(16) >= 8).long().expand(1, 12, 16)
    image = 0.2 + 0.6 * truth.unsqueeze(1) + 0.05 * torch.rand(1, 1, 12, 16, generator=generator)
    logits = 2.0 * torch.nn.functional.one_hot(truth, 2).movedim(-1, 1) + 2 * torch.randn(
        1, 2, 12, 16, generator=generator
    )
    layer = DenseCRFLayer(2, weights=[0.5, 0.5], sigma_xy=[4.0, 1.0], sigma_rgb=[0.2, math.inf])
    before = {name: value.clone() for name, value in layer.named_parameters()}
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(layer.log_probabilities(logits, image), truth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in layer.named_parameters())
    assert bool((layer.weights[0] > 1).all())
    assert float((layer(logits, image).argmax(1) == truth).float().mean()) > float(
        (logits.argmax(1) == truth).float().mean()
    )


def test_saved_and_loaded_it_is_the_same():
    image, logits, _, costs = problem(batch=2)
    layer = small(costs, learn=("weights",))
    assert [name for name, _ in layer.named_parameters()] == ["log_weights"]
    other = small(1 - torch.eye(3), learn=("weights",), weights=(5.0, 6.0), sigma_xy=(1.0, 9.0))
    assert not torch.allclose(layer(logits, image), other(logits, image))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(logits, image), other(logits, image), rtol=0, atol=0)


def test_it_can_be_copied_and_pickled():
    """Before and after a call, as averages of weights and other processes need it."""
    image, logits, cotangent, costs = problem()
    layer = small(costs)
    expected = layer(logits, image)
    (expected * cotangent).sum().backward()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(logits, image), expected, rtol=0, atol=0)
        with torch.no_grad():
            other.log_weights += 1
        assert not torch.allclose(other(logits, image), layer(logits, image))


def test_what_is_learnt_and_reported():
    _, _, _, costs = problem()
    layer = small(costs)
    assert set(layer.learnable_parameters()) == set(EVERYTHING) == set(layer.scalars())
    assert {id(value) for value in layer.learnable_parameters().values()} == {id(value) for value in layer.parameters()}
    assert list(small(costs, learn=("sigma_xy", "entropy")).learnable_parameters()) == ["sigma_xy", "entropy"]
    found = layer.scalars()
    assert found["weights"] == pytest.approx({"weight-0": 2.0, "weight-1": 1.0})
    assert found["sigma_xy"] == pytest.approx({"sigma-xy-0": 3.0, "sigma-xy-1": 1.5})
    assert found["sigma_rgb"] == pytest.approx({"sigma-rgb-0": 0.4})
    assert found["entropy"] == {"entropy": 1.0}


def test_reported_label_costs_are_those_of_disagreeing():
    """By brute force: half of what a pair costs in both orders, less the mean of what its labels cost alone."""
    _, _, _, costs = problem(classes=4)
    apart = [
        float(costs[k, other] + costs[other, k] - costs[k, k] - costs[other, other]) / 2
        for k in range(4)
        for other in range(k)
    ]
    found = small(costs).scalars()["compatibility"]
    assert found == pytest.approx({"cost-least": min(apart), "cost-most": max(apart)}, rel=1e-6)
    assert small(1 - torch.eye(4)).scalars()["compatibility"] == {"cost-least": 1.0, "cost-most": 1.0}


def test_the_solution_can_be_forgotten():
    image, logits, _, costs = problem()
    layer = small(costs, backward="implicit", max_steps=50)
    layer(logits, image)
    assert layer.solution.steps.shape == (1,)
    layer.solution = None
    assert layer.solution is None
    assert layer.softmax.solution is None


def test_behind_a_network():
    network = torch.nn.Conv2d(3, 2, 1)
    whole = regloss.attach(network, DenseCRFLayer(2, sigma_xy=(5.0, 2.0)))
    image = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    roi = torch.ones(2, 9, 8, dtype=torch.bool)
    roi[1, 5:] = False
    found = whole(image, roi)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 9, 8))
    # Outside the region of interest nothing is regularised.
    torch.testing.assert_close(found[1, :, 5:], network(image)[1, :, 5:].log_softmax(0))
    found.sum().backward()
    assert network.weight.grad is not None


def test_half_precision_logits_come_back_as_such():
    image, logits, _, costs = problem()
    layer = DenseCRFLayer(3, compatibility=costs.float(), sigma_xy=(3.0, 1.0))
    found = layer(logits.to(torch.bfloat16), image)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), layer(logits, image), atol=0.02)


def test_arguments_are_not_modified():
    image, logits, cotangent, costs = problem()
    kept = [image, logits, costs]
    before = [value.clone() for value in kept]
    layer = small(costs)
    (layer(logits, image) * cotangent).sum().backward()
    with torch.no_grad():
        layer.compatibility += 1
    assert all(torch.equal(value, old) for value, old in zip(kept, before, strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": 1}, "at least two classes"),
        ({"weights": (1.0,)}, "1 weights, 2 sigma_xy, 2 sigma_rgb"),
        ({"weights": (), "sigma_xy": (), "sigma_rgb": ()}, "there must be one"),
        ({"weights": (1.0, 0.0)}, "finite and positive"),
        ({"sigma_xy": (0.0, 3.0)}, "sigma_xy"),
        ({"sigma_rgb": (13.0, math.inf)}, "divided by 255"),
        ({"compatibility": torch.ones(2, 2)}, r"\(3, 3\); got shape \(2, 2\)"),
        ({"compatibility": torch.full((3, 3), math.inf)}, "finite"),
        ({"learn": ("width",)}, "learn may hold"),
        ({"entropy": 0.0}, "entropy"),
        ({"max_steps": 0}, "max_steps"),
        ({"backward": "explicit"}, "backward must be"),
        ({"scale": 2.0}, "scale"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        DenseCRFLayer(**{"classes": 3, **settings})


def test_bad_calls_are_refused():
    image, logits, _, costs = problem()
    layer = small(costs)
    with pytest.raises(UsageError, match=r"for 3 classes got logits \(1, 2, 6, 5\)"):
        layer(logits[:, :2], image)
    with pytest.raises(UsageError, match="do not fit the images"):
        layer(logits[..., :4], image)
    with pytest.raises(UsageError, match="logits"):
        layer(logits * math.nan, image)
    with torch.no_grad():
        layer.log_sigma_rgb += 5
    with pytest.raises(UsageError, match=r"sigma_rgb of dense-crf.* Learning has driven it there: lower the"):
        layer(logits, image)
    with torch.no_grad():
        layer.log_sigma_rgb += 1000
    with pytest.raises(UsageError, match=r"sigma_rgb of a dense CRF layer must be finite .* Learning has driven it"):
        layer(logits, image)
    with pytest.raises(UsageError, match=r"weights of a dense CRF layer must be finite .* got \[inf, 1.0\]\.$"):
        DenseCRFLayer(3, weights=[1e40, 1.0])
