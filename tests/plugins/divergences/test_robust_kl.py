"""Robust KL divergence: conformance, reference vectors in 50 digits, its limits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from regloss import KL, RobustKL, UsageError
from regloss.testing import DivergenceConformance

NOISE = [[0.7, 0.1, 0.1, 0.1], [0.0, 0.9, 0.1, 0.0], [0.2, 0.2, 0.5, 0.1], [0.05, 0.05, 0.05, 0.85]]


class TestUniformOutliers(DivergenceConformance):
    def make(self):
        return RobustKL(epsilon=0.6)


class TestFewOutliersOfTwoClasses(DivergenceConformance):
    classes = 2

    def make(self):
        return RobustKL(epsilon=0.01)


class TestNoOutliers(DivergenceConformance):
    def make(self):
        return RobustKL()


class TestNoiseMatrix(DivergenceConformance):
    def make(self):
        return RobustKL(noise_matrix=NOISE)


class TestNoiseMatrixAsArray(DivergenceConformance):
    def make(self):
        return RobustKL(noise_matrix=np.array(NOISE, dtype=np.float32))


@pytest.fixture(scope="module")
def oracle(oracles: Path):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(oracles / "robust.npz").items()}


def test_oracle_loss(oracle):
    loss = RobustKL(float(oracle["eps"]))(oracle["y"], oracle["logits"], seeds=oracle["seed"])
    torch.testing.assert_close(loss, oracle["loss"], rtol=1e-10, atol=1e-10)


def test_oracle_gradient(oracle):
    logits = oracle["logits"].clone().requires_grad_()
    loss = RobustKL(float(oracle["eps"]))(oracle["y"], logits, seeds=oracle["seed"])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, oracle["grad"], rtol=1e-10, atol=1e-10)


def test_oracle_as_an_image(oracle):
    """The same 12 rows as the pixels of one 3x4 image: their sum, and the gradient of each."""
    logits = oracle["logits"].T.reshape(1, 4, 3, 4).clone().requires_grad_()
    loss = RobustKL(float(oracle["eps"]))(oracle["y"].reshape(1, 3, 4), logits, seeds=oracle["seed"].reshape(1, 3, 4))
    assert float(loss.detach()) == pytest.approx(float(oracle["loss"].sum()), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient.reshape(4, 12).T, oracle["grad"], rtol=1e-10, atol=1e-10)


def test_oracle_forward_correction(oracle):
    loss = RobustKL(noise_matrix=oracle["T"])(oracle["y"], oracle["logits"])
    torch.testing.assert_close(loss, oracle["forward_loss"], rtol=1e-10, atol=1e-10)


def test_oracle_overflow_row_in_float32(oracle):
    """Logit 60: exp overflows nothing, value and gradient are finite and right to single precision."""
    logits = oracle["logits"][:1].float().requires_grad_()
    loss = RobustKL(float(oracle["eps"]))(oracle["y"][:1], logits, seeds=oracle["seed"][:1])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(loss.detach().double(), oracle["loss"][:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), oracle["grad"][:1], rtol=1e-4, atol=1e-6)


def test_without_outliers_it_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (2, 4, 4), generator=generator)
    expected = F.cross_entropy(logits, labels, reduction="none").sum((1, 2))
    torch.testing.assert_close(RobustKL(0.0)(labels, logits), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(RobustKL(0.0).unary(logits), KL().unary(logits), rtol=0, atol=0)
    torch.testing.assert_close(RobustKL(noise_matrix=torch.eye(5))(labels, logits), expected, rtol=1e-12, atol=0)


def test_uniform_outliers_are_a_noise_matrix():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (2, 3, 3), generator=generator)
    matrix = torch.full((4, 4), 0.3 / 3, dtype=torch.float64).fill_diagonal_(0.7)
    first, second = RobustKL(0.3), RobustKL(noise_matrix=matrix)
    torch.testing.assert_close(first(labels, logits), second(labels, logits), rtol=1e-12, atol=0)
    torch.testing.assert_close(first.unary(logits), second.unary(logits), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 4, 21])
def test_epsilon_ends_where_the_loss_would_turn_over(classes):
    """The last float below (K - 1) / K is taken, (K - 1) / K itself is refused with the reason."""
    limit = (classes - 1) / classes
    logits, labels = torch.randn(3, classes), torch.zeros(3, dtype=torch.int64)
    assert bool(RobustKL(math.nextafter(limit, 0.0))(labels, logits).isfinite().all())
    for epsilon in (limit, math.nextafter(limit, 1.0)):
        for use in (lambda d: d(labels, logits), lambda d: d(logits.softmax(1), logits), lambda d: d.unary(logits)):
            with pytest.raises(UsageError, match=rf"too large for K = {classes}.*no longer grows.*smaller epsilon"):
                use(RobustKL(epsilon))


def test_loss_and_gradient_of_a_confident_network_that_disagrees():
    """At most -log a, and without pull; cross entropy pulls with force 1."""
    logits = torch.tensor([[-40.0, 0.0, 40.0]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0])
    robust = RobustKL(0.3)(label, logits)
    assert float(robust.detach()) == pytest.approx(-math.log(0.3 / 2), rel=1e-12)
    (gradient,) = torch.autograd.grad(robust.sum(), logits)
    assert float(gradient.abs().max()) < 1e-12
    (plain,) = torch.autograd.grad(KL()(label, logits).sum(), logits)
    assert plain[0, 0].item() == pytest.approx(-1)


def test_seeds_have_no_outliers():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (1, 4, 4), generator=generator)
    seeds = torch.zeros(1, 4, 4, dtype=torch.bool)
    seeds[0, :2] = True
    robust = RobustKL(0.5)
    value = robust(labels, logits, seeds=seeds)
    expected = KL()(labels, logits, weight=seeds.double()) + robust(labels, logits, weight=(~seeds).double())
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    soft = F.one_hot(labels, 3).movedim(-1, 1).double()
    torch.testing.assert_close(robust(soft, logits, seeds=seeds), expected, rtol=1e-12, atol=0)


def test_the_matrix_is_copied():
    matrix = torch.eye(3)
    robust = RobustKL(noise_matrix=matrix)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    before = robust(labels, logits)
    matrix.fill_(1 / 3)
    assert torch.equal(robust(labels, logits), before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": -0.1}, "probability"),
        ({"epsilon": 1.0}, "probability"),
        ({"epsilon": math.nan}, "probability"),
        ({"epsilon": "much"}, "probability"),
        ({"noise_matrix": [[0.5, 0.4], [0.0, 1.0]]}, "row-stochastic"),
        ({"noise_matrix": [[1.5, -0.5], [0.0, 1.0]]}, "row-stochastic"),
        ({"noise_matrix": [[1.0, 0.0]]}, r"\(K, K\)"),
        ({"noise_matrix": {"a": 1}}, "tensor, array or nested lists"),
        ({"epsilon": 0.1, "noise_matrix": [[1.0, 0.0], [0.0, 1.0]]}, "not both"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        RobustKL(**settings)


def test_matrix_of_another_number_of_classes_is_refused():
    with pytest.raises(UsageError, match="K = 3"):
        RobustKL(noise_matrix=torch.eye(4))(torch.tensor([0]), torch.zeros(1, 3))
