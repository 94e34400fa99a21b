"""KL divergence: conformance, and agreement with torch's own."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from regloss import KL
from regloss.testing import DivergenceConformance


class TestKL(DivergenceConformance):
    def make(self):
        return KL()


class TestTwoClasses(DivergenceConformance):
    classes = 2

    def make(self):
        return KL()


def test_labels_give_cross_entropy():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    labels[0, 0, 0] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction="none").sum((1, 2))
    torch.testing.assert_close(KL()(labels, logits), expected, rtol=1e-12, atol=0)


def test_probabilities_give_torch_kl_divergence():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    expected = F.kl_div(logits.log_softmax(1), target, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(KL()(target, logits), expected, rtol=1e-12, atol=1e-12)


def test_it_vanishes_at_the_target_only():
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(KL()(logits.softmax(1), logits)) == pytest.approx(0, abs=1e-12)
    assert float(KL()(logits.roll(1, 1).softmax(1), logits)) > 0.1


def test_gradient_is_prediction_minus_target():
    """METHODS: the gradient in the logits of an unlabelled pixel is S - X."""
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = torch.randint(4, (1, 3, 3), generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(KL()(labels, logits).sum(), logits)
    expected = logits.detach().softmax(1) - F.one_hot(labels, 4).movedim(-1, 1)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
