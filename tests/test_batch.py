"""Batches: what they refuse, what they count."""

import pytest
import torch

from regloss import Batch, UsageError


def test_counts_follow_labels_and_region():
    labels = torch.full((2, 4, 5), 255)
    labels[0, 0, :3] = torch.tensor([0, 1, 2])
    labels[1, :, 0] = 1
    roi = torch.ones(2, 4, 5, dtype=torch.bool)
    roi[0, 0, 0] = False
    roi[1, 2:] = False
    whole, part = Batch(torch.rand(2, 3, 4, 5), labels), Batch(torch.rand(2, 3, 4, 5), labels, roi)
    assert whole.shape == (2, 4, 5)
    assert whole.pixels.tolist() == [20, 20]
    assert part.pixels.tolist() == [19, 10]
    assert whole.labelled.sum((1, 2)).tolist() == [3, 4]
    assert part.labelled.sum((1, 2)).tolist() == [2, 2]
    assert part.labelled.dtype == torch.bool


def test_without_labels_nothing_is_labelled():
    batch = Batch(torch.rand(2, 1, 3, 4, 5), None)
    assert batch.shape == (2, 3, 4, 5)
    assert not batch.labelled.any()


IMAGE = torch.full((2, 3, 4, 5), 0.5)
LABELS = torch.zeros(2, 4, 5, dtype=torch.int64)
ROI = torch.ones(2, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": IMAGE.mul(255).byte()}, r"floating-point.*uint8.*255"),
        ({"image": IMAGE * 255}, r"\[0, 1\].*127.5.*divide by 255"),
        ({"image": IMAGE - 1}, r"from -0.5 to -0.5"),
        ({"image": IMAGE / 0}, "240|120"),
        ({"image": torch.full((2, 3, 4, 5), torch.nan)}, "120 values that are not finite"),
        ({"image": IMAGE[0, 0]}, r"\(B, C, \*S\)"),
        ({"image": IMAGE[:0], "labels": LABELS[:0]}, r"\(0, 3, 4, 5\)"),
        ({"image": IMAGE.numpy()}, "ndarray"),
        ({"labels": LABELS.float()}, "integers"),
        ({"labels": LABELS.bool()}, "integers"),
        ({"labels": LABELS[:, :3]}, r"\(2, 4, 5\).*\(2, 3, 5\)"),
        ({"roi": ROI.byte()}, "bool"),
        ({"roi": ROI[:1]}, r"\(2, 4, 5\).*\(1, 4, 5\)"),
        ({"roi": ROI & torch.tensor([True, False])[:, None, None]}, "empty in at least one image"),
        ({"ids": ["only one"]}, "as many ids; got 1"),
    ],
)
def test_bad_batches_are_refused(given, words):
    with pytest.raises(UsageError, match=words):
        Batch(**{"image": IMAGE, "labels": LABELS, **given})


def test_rounding_of_half_precision_is_forgiven():
    Batch((IMAGE * 2).half() + 0.0005, LABELS)


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Batch(IMAGE, LABELS).labels = None
