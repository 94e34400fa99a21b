"""Sliding windows, flips and largest components: against the whole image, and against what they promise."""

import numpy as np
import pytest
import torch

from regloss.errors import UsageError
from regloss.training.inference import by_windows, gaussian_weights, largest_components, window_starts, with_flips
from regloss_plugins.networks.plain_cnn import PlainCNN


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_cover_and_overlap(overlap):
    for length in range(1, 40):
        for window in (1, 4, 7):
            starts = window_starts(length, window, overlap)
            covered = np.zeros(length, dtype=int)
            for start in starts:
                assert 0 <= start <= max(length - window, 0)
                covered[start : start + window] += 1
            assert covered.all()
            steps = np.diff(starts)
            assert (steps >= 1).all()
            assert (steps <= max(1, int(window * (1 - overlap)))).all()


def test_weights():
    weights = gaussian_weights((5, 16))
    assert weights.shape == (5, 16)
    assert float(weights.max()) == 1
    assert torch.equal(weights, weights.flip(0, 1))
    # Half a standard deviation off the middle, an eighth of 16, to both sides; one more, a step of one.
    assert float(weights[2, 9] / weights[2, 8]) == pytest.approx(np.exp(-(1.5**2 - 0.5**2) / 2 / 2**2))
    assert 0 < float(gaussian_weights((32, 32, 32)).min()) < 1e-9


@pytest.mark.parametrize(("size", "window"), [((37, 41), 24), ((37, 20), (24, 24)), ((11, 26, 23), (8, 16, 16))])
def test_a_network_that_sees_little_says_the_same_by_windows(size, window):
    """Away from windows' borders exactly; there its zero padding is seen, with little weight."""
    torch.manual_seed(0)
    network = PlainCNN(2, 3, layers=1, channels=4, dims=len(size)).eval()
    image = torch.rand(1, 2, *size)
    with torch.no_grad():
        whole, parts = network(image), by_windows(network, image, window, 0.5)
    assert parts.shape == whole.shape
    difference = (whole - parts).abs()
    assert float(difference.mean()) < 0.003 * float(whole.abs().mean())
    lengths = (window,) * len(size) if isinstance(window, int) else window
    if all(length >= whole_length for length, whole_length in zip(lengths, size, strict=True)):
        assert torch.equal(whole, parts)


def test_pointwise_networks_do_not_notice_windows():
    image = torch.rand(2, 3, 19, 23, dtype=torch.float64)
    torch.testing.assert_close(by_windows(lambda part: part**2, image, (5, 8), 0.3), image**2)
    torch.testing.assert_close(by_windows(lambda part: part**2, image, 100), image**2)


def test_several_windows_at_once():
    """The same labels, in fewer calls; of a batch of images, too, whose own mean each network sees."""
    image, seen = torch.rand(2, 1, 20, 23, dtype=torch.float64), []

    def network(part):
        seen.append(len(part))
        return part - part.mean((1, 2, 3), keepdim=True)

    single, together = (by_windows(network, image, 8, 0.5, count) for count in (1, 5))
    torch.testing.assert_close(together, single, rtol=0, atol=1e-12)
    assert seen == [2] * 20 + [10] * 4


def test_windows_that_do_not_fit():
    image = torch.rand(1, 1, 9, 9)
    with pytest.raises(
        UsageError, match=r"inference\.window must be one number, or one for each of the image's 2 axes"
    ):
        by_windows(lambda part: part, image, (3, 3, 3))
    with pytest.raises(UsageError, match="sizes must agree"):
        by_windows(lambda part: part[..., :-1], image, 4)


def test_flips():
    """A network that reads places: its mean over mirror images is symmetric."""
    ramp = torch.arange(12.0).reshape(1, 1, 3, 4)
    image = torch.zeros(1, 1, 3, 4)
    assert torch.equal(with_flips(lambda part: part + ramp, image, ()), ramp)
    found = with_flips(lambda part: part + ramp, image, (-1, -2))
    assert torch.equal(found, torch.full_like(found, 5.5))
    rows = with_flips(lambda part: part + ramp, image, (-1,))
    assert torch.equal(rows, ramp.mean(-1, keepdim=True).expand_as(rows))


def test_largest_components():
    labels = np.zeros((3, 6, 6), np.uint8)
    labels[0, 0, :3] = labels[1, 0, 2] = 1
    labels[2, 5, 4:] = 1
    labels[0, 5, 5], labels[2, 0, 0] = 2, 255
    given = labels.copy()
    found = largest_components(labels, 3)
    np.testing.assert_array_equal(labels, given)
    labels[2, 5, 4:] = 0
    np.testing.assert_array_equal(found, labels)
