"""Size bounds: conformance, the barrier against its definition, units, and bounds that do not apply."""

import math

import pytest
import torch

from regloss import Batch, SizeBounds, UsageError
from regloss.testing import DataTermConformance
from regloss_plugins.data_terms.size_bounds import barrier


class TestSizeBounds(DataTermConformance):
    uses_labels = False

    def make(self):
        return SizeBounds(lower=[0.1, 0.5, 0.0], upper=[0.3, 0.9, 0.2], sharpness=3.0)


class TestPixels(DataTermConformance):
    uses_labels = False

    def make(self):
        return SizeBounds(upper=[10, 20, 30], unit="pixels", sharpness=20.0)


def batch_of(*shape, labels=None, roi=None):
    return Batch(torch.zeros(shape[0], 1, *shape[1:]), labels, roi)


def logits_of(*shares, pixels=4):
    """One image whose classes have these sizes."""
    return torch.tensor(shares, dtype=torch.float64).log().reshape(1, -1, 1, 1).expand(1, len(shares), 1, pixels)


@pytest.mark.parametrize("t", [0.5, 1.0, 5.0, 40.0])
def test_barrier(t):
    """Its value and slope are the logarithm's inside, and meet the line where it begins."""
    z = torch.linspace(-2, 2, 401, dtype=torch.float64, requires_grad=True)
    value = barrier(z, t)
    (slope,) = torch.autograd.grad(value.sum(), z)
    inside = z <= -1 / t**2
    torch.testing.assert_close(value[inside], -(-z[inside]).log() / t)
    torch.testing.assert_close(slope[inside], -1 / (t * z[inside]))
    torch.testing.assert_close(slope[~inside], torch.full_like(slope[~inside], t))
    joint = torch.tensor([-1 / t**2 - 1e-9, -1 / t**2 + 1e-9], dtype=torch.float64)
    below, above = barrier(joint, t).tolist()
    assert above - below == pytest.approx(2e-9 * t, rel=1e-3)
    assert bool((slope.diff() >= -1e-12).all())  # convex


def test_sum_over_classes_and_bounds():
    term = SizeBounds(lower=[0.0, 0.3, 0.0], upper=[0.4, 1.0, 0.1], sharpness=5.0)
    sums, counts = term(logits_of(0.5, 0.2, 0.3), batch_of(1, 1, 4))
    z = torch.tensor([0.1, 0.1, 0.2], dtype=torch.float64)  # three bounds are violated, the others say nothing
    assert float(sums) == pytest.approx(float(barrier(z, 5.0).sum()), rel=1e-12)
    assert counts.tolist() == [1]


def test_pixels_are_fractions_times_the_region_of_interest():
    roi = torch.tensor([[[True, True, True, True, False]]])
    batch, logits = batch_of(1, 1, 5, roi=roi), logits_of(0.5, 0.5, pixels=5)
    pixels = SizeBounds(lower=[0, 3], unit="pixels")(logits, batch)[0]
    fraction = SizeBounds(lower=[0, 0.75])(logits, batch)[0]
    assert float(pixels) == pytest.approx(float(fraction), rel=1e-12)
    assert float(SizeBounds(upper=[4, 9], unit="pixels")(logits, batch)[0]) == 0  # as many as there are: no bound


def test_the_gradient_pulls_sizes_between_their_bounds():
    for lower, upper, sign in (([0, 0.6], [1, 1], -1), ([0, 0], [1, 0.2], 1)):
        logits = logits_of(0.6, 0.4).clone().requires_grad_()
        SizeBounds(lower, upper)(logits, batch_of(1, 1, 4))[0].sum().backward()
        assert bool((sign * logits.grad[:, 1] > 0).all())


def test_present_bounds_only_classes_that_are_labelled():
    labels = torch.tensor([[[1, 255, 255, 255]], [[2, 255, 255, 255]]])
    logits = logits_of(0.5, 0.2, 0.3).expand(2, 3, 1, 4)
    term = SizeBounds(lower=[0, 0.4, 0.6], present=True)
    sums, _ = term(logits, batch_of(2, 1, 4, labels=labels))
    expected = barrier(torch.tensor([0.2, 0.3], dtype=torch.float64), 5.0)
    torch.testing.assert_close(sums, expected)
    with pytest.raises(UsageError, match="present = true needs labels"):
        term(logits, batch_of(2, 1, 4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs lower or upper"),
        ({"lower": [-0.1, 0]}, "lower bounds"),
        ({"upper": [0, 1.5]}, r"\[0, 1\]"),
        ({"upper": [math.nan, 1.0]}, r"\[0, 1\]"),
        ({"lower": [0.5, 0], "upper": [0.4, 1]}, "above the upper"),
        ({"lower": [0.5, 0], "upper": [1.0]}, "one number a class"),
        ({"lower": [0.5, 0], "unit": "percent"}, "unit"),
        ({"lower": [0.5, 0], "sharpness": 0.0}, "sharpness"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        SizeBounds(**settings)


def test_bounds_must_fit_the_classes():
    with pytest.raises(UsageError, match="2 bounds for K = 3"):
        SizeBounds(lower=[0, 0.1])(logits_of(0.5, 0.2, 0.3), batch_of(1, 1, 4))
