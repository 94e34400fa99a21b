"""k-means: separate colours, fixed points near the best of all, seeds, regions, rare colours."""

from __future__ import annotations

import pytest
import torch

from regloss import UsageError, phases_by_color


def blobs(size=(30, 40), seed=0, spread=0.03):
    """Four well separated colours in stripes, with noise; dark ones first."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[0.1, 0.1, 0.2], [0.2, 0.6, 0.2], [0.8, 0.3, 0.4], [0.9, 0.9, 0.8]])
    labels = torch.arange(size[1]).mul(4).div(size[1], rounding_mode="floor").expand(1, *size)
    image = colours[labels].movedim(-1, 1) + spread * torch.randn(1, 3, *size, generator=generator)
    return image.clamp(0, 1), labels


@pytest.mark.parametrize("size", [(30, 40), (160, 200)])  # all pixels; a sample of them
def test_separate_colours_are_found(size):
    image, labels = blobs(size)
    assert torch.equal(phases_by_color(image, 4), labels)


def test_phases_are_numbered_from_the_darkest():
    image, _ = blobs()
    found = phases_by_color(image.flip(3), 3)
    brightness = [float(image.flip(3).sum(1)[found == k].mean()) for k in range(3)]
    assert brightness == sorted(brightness)


def test_the_same_seed_gives_the_same_labels():
    image = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(4))
    before = torch.random.get_rng_state()
    first = phases_by_color(image, 5, seed=3)
    assert torch.equal(first, phases_by_color(image, 5, seed=3))
    assert torch.equal(first[1:], phases_by_color(image[1:], 5, seed=3))
    assert torch.equal(before, torch.random.get_rng_state())
    assert sorted(first[0].unique().tolist()) == [0, 1, 2, 3, 4]


def test_labels_are_a_fixed_point():
    """No pixel is nearer to another phase's mean, and the cost is near that of the best of many runs."""
    image = torch.rand(1, 1, 15, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = phases_by_color(image, 3)
    values = image.flatten()
    means = torch.stack([values[labels.flatten() == k].mean() for k in range(3)])
    distances = (values - means[:, None]).square()
    assert torch.equal(distances.argmin(0), labels.flatten())
    # In one dimension phases are intervals: all pairs of thresholds.
    ordered = values.sort().values
    squares, sums = ordered.square().cumsum(0), ordered.cumsum(0)

    def spread(a, b):  # of ordered[a:b]
        count, total = b - a, sums[b - 1] - (sums[a - 1] if a else 0)
        return float(squares[b - 1] - (squares[a - 1] if a else 0) - total**2 / count)

    count = len(ordered)
    best = min(
        spread(0, a) + spread(a, b) + spread(b, count) for a in range(1, count - 1, 3) for b in range(a + 1, count, 3)
    )
    assert float(distances.amin(0).sum()) <= 1.02 * best


def test_region_of_interest():
    image, labels = blobs()
    roi = (labels != 3) & (torch.arange(30) > 4)[:, None]
    found = phases_by_color(image, 3, roi)
    assert torch.equal(found[roi], labels[roi])
    assert int(found[~roi].max()) == 0


def test_a_rare_colour_is_a_phase():
    """One pixel among so many that k-means looks at a sample."""
    image = torch.full((1, 1, 200, 200), 0.5)
    image[0, 0, 7, 9] = 0.9
    found = phases_by_color(image, 2)
    assert int(found.sum()) == int(found[0, 7, 9]) == 1


@pytest.mark.parametrize(
    ("image", "phases", "message"),
    [
        (torch.full((1, 3, 6, 7), 0.5), 2, "Image 0 of the batch has 1 different colours, fewer than the 2 phases"),
        (torch.tensor([[[0.1, 0.5, 0.9, 0.1]]]), 4, "3 different colours, fewer than the 4 phases"),
        (torch.rand(1, 3, 4, 4), 1, "at least two phases"),
        (torch.full((1, 1, 4), float("nan")), 2, "NaN"),
        (torch.zeros(1, 1, 4, dtype=torch.uint8), 2, "floating-point"),
    ],
)
def test_what_cannot_be_clustered(image, phases, message):
    with pytest.raises(UsageError, match=message):
        phases_by_color(image, phases)
