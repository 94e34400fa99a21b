"""The guided filter against its definition, window by window."""

from __future__ import annotations

import pytest
import torch

from regloss import UsageError, guided_filter


def naive(guide, values, radius, epsilon):
    """Fit every window by least squares, then average over the windows that hold a pixel."""
    channels, height, width = guide.shape
    sums, counts = torch.zeros_like(values), torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            window = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
            colors = guide[(slice(None), *window)].reshape(channels, -1).T
            targets = values[(slice(None), *window)].reshape(len(values), -1).T
            centred = colors - colors.mean(0)
            # The ridge is that of means, so it grows with the number of pixels.
            system = centred.T @ centred / len(colors) + epsilon * torch.eye(channels, dtype=torch.float64)
            slope = torch.linalg.solve(system, centred.T @ (targets - targets.mean(0)) / len(colors))
            fitted = (colors - colors.mean(0)) @ slope + targets.mean(0)
            # Every pixel gets the mean of its windows' coefficients, which is the mean of their fits at that pixel.
            shape = guide[(slice(None), *window)].shape[1:]
            sums[(slice(None), *window)] += fitted.T.reshape(len(values), *shape)
            counts[window] += 1
    return sums / counts


@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_windows_fitted_one_by_one(channels):
    generator = torch.Generator().manual_seed(0)
    guide = torch.rand(1, channels, 7, 9, generator=generator, dtype=torch.float64)
    values = torch.rand(1, 2, 7, 9, generator=generator, dtype=torch.float64)
    found = guided_filter(guide, values, radius=2, epsilon=1e-2)
    torch.testing.assert_close(found[0], naive(guide[0], values[0], 2, 1e-2), rtol=0, atol=1e-12)


def test_probabilities_still_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    guide = torch.rand(2, 3, 6, 7, 8, generator=generator)
    probabilities = torch.randn(2, 4, 6, 7, 8, generator=generator).softmax(1)
    given = probabilities.clone()
    found = guided_filter(guide, probabilities, radius=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2, 6, 7, 8))
    assert torch.equal(probabilities, given)


def test_a_flat_guide_averages_and_the_guide_itself_is_kept():
    values = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    smooth = guided_filter(torch.full((1, 1, 12, 12), 0.5), values, radius=3)
    assert float(smooth.std()) < 0.2 * float(values.std())
    torch.testing.assert_close(guided_filter(values, values, radius=3, epsilon=1e-9), values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.zeros(1, 2, 5, 6)}, "same B"),
        ({"guide": torch.zeros(1, 1, 5)}, "same B"),
        ({"guide": torch.full((1, 1, 5, 5), torch.nan)}, "finite"),
        ({"radius": 0}, "radius"),
        ({"radius": 1.5}, "radius"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_bad_input_is_refused(changes, message):
    given = {"guide": torch.zeros(1, 1, 5, 5), "values": torch.zeros(1, 2, 5, 5), **changes}
    with pytest.raises(UsageError, match=message):
        guided_filter(**given)
