"""Partial Dice: conformance, the definition in plain loops, classes without labels."""

import pytest
import torch

from regloss import Batch, PartialDice, UsageError
from regloss.testing import DataTermConformance


class TestPartialDice(DataTermConformance):
    def make(self):
        return PartialDice()


class TestSquaredAndSmooth(DataTermConformance):
    def make(self):
        return PartialDice(smooth=2.5, squared=True)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 1.5])
def test_is_its_definition(squared, smooth):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 5, 3))  # no pixel is of class 3
    labels[torch.rand(2, 5, 3) < 0.5] = 255
    labels[1][labels[1] == 2] = 255
    roi = torch.rand(2, 5, 3) < 0.8
    sums, counts = PartialDice(smooth, squared)(logits, Batch(torch.zeros(2, 1, 5, 3), labels, roi))
    assert counts.tolist() == [1, 1]
    probabilities = logits.softmax(1)
    for image in range(2):
        dice = []
        for k in range(4):
            both = given = size = 0.0
            for row in range(5):
                for column in range(3):
                    label = int(labels[image, row, column])
                    if label == 255 or not roi[image, row, column]:
                        continue
                    p = float(probabilities[image, k, row, column])
                    both += p * (label == k)
                    given += p**2 if squared else p
                    size += label == k
            if size > 0:
                dice.append((2 * both + smooth) / (given + size + smooth))
        assert 2 <= len(dice) <= 3
        assert float(sums[image]) == pytest.approx(1 - sum(dice) / len(dice), rel=1e-12)


def test_perfect_and_opposite_predictions():
    labels = torch.tensor([[[0, 1, 255]], [[1, 1, 255]]])
    right = torch.tensor([[60.0, -60, 0], [-60, 60, 0]]).reshape(1, 2, 1, 3)
    logits = torch.cat([right, torch.tensor([[60.0, 60, 0], [-60, -60, 0]]).reshape(1, 2, 1, 3)])
    sums, _ = PartialDice()(logits, Batch(torch.zeros(2, 1, 1, 3), labels))
    assert sums.tolist() == [0, 1]


def test_an_image_without_labels_is_left_out_of_the_mean():
    labels = torch.full((2, 1, 2), 255)
    labels[0] = 1
    logits = torch.zeros(2, 2, 1, 2, requires_grad=True)
    sums, counts = PartialDice()(logits, Batch(torch.zeros(2, 1, 1, 2), labels))
    assert counts.tolist() == [1, 0]
    assert sums.tolist() == [pytest.approx(1 - 2 / 3), 0]
    sums.sum().backward()
    assert float(logits.grad[1].abs().max()) == 0


@pytest.mark.parametrize("smooth", [-1.0, float("nan"), float("inf")])
def test_settings_out_of_range(smooth):
    with pytest.raises(UsageError, match="smooth of partial-dice"):
        PartialDice(smooth=smooth)
