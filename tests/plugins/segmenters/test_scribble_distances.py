"""Distances to scribbles by place and by what colours say."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from regloss import UsageError, scribble_distances
from regloss_plugins.segmenters.scribble_distances import _factors, image_diagonal


def strokes(*shape, seed=0):
    """(1, *S) three seeds of class 0 and two of class 2."""
    scribbles = torch.full((1, *shape), 255)
    places = torch.randperm(scribbles.numel(), generator=torch.Generator().manual_seed(seed))[:5]
    scribbles.view(-1)[places] = torch.tensor([0, 0, 0, 2, 2])
    return scribbles


@pytest.mark.parametrize("shape", [(40,), (23, 31), (8, 9, 10)])
def test_lengths_alone_are_near_euclidean_ones(shape):
    """Never shorter, and longer by no more than paths among neighbours can be: 8 % in 2D, 13 % in 3D."""
    scribbles = strokes(*shape)
    found = scribble_distances(scribbles, torch.rand(1, 3, *shape), barrier=0.0)
    for k in (0, 2):
        exact = ndimage.distance_transform_edt(scribbles[0].numpy() != k) / image_diagonal(shape)
        assert (found[0, k].numpy() >= exact - 1e-5).all()
        assert (found[0, k].numpy() <= 1.13 * exact + 1e-5).all()
    assert not found[0, 1].any()


def test_a_wall_of_another_colour_is_gone_around():
    """Or, if that is too far, through it, for a barrier on the way in and another on the way out."""
    scribbles = torch.full((1, 21, 21), 255)
    scribbles[0, 10, 2], scribbles[0, 0, 12] = 0, 1
    costs = torch.zeros(1, 2, 21, 21)
    costs[0, 1] = 50
    costs[0, 0, :, 10], costs[0, 1, :, 10] = 50, 0
    size = image_diagonal((21, 21))
    closed = scribble_distances(scribbles, costs, 0.1)[0, 0]
    step = (1 + (0.1 * size) ** 2) ** 0.5
    assert float(closed[10, 9]) == pytest.approx(7 / size, rel=1e-5)
    assert float(closed[10, 18]) == pytest.approx((14 + 2 * step) / size, rel=1e-5)
    assert float(closed[10, 10]) == pytest.approx((7 + step) / size, rel=1e-5)
    costs[0, 0, 7, 10], costs[0, 1, 7, 10] = 0, 50
    around = scribble_distances(scribbles, costs, 0.1)[0, 0]
    assert float(around[10, 18]) == pytest.approx((10 + 6 * 2**0.5) / size, rel=1e-5)


def test_an_enlarged_image_has_the_same_distances():
    """Nothing has the unit of a pixel, but for what the boundaries of pixels leave open."""
    generator = torch.Generator().manual_seed(3)
    costs = ndimage.gaussian_filter(torch.randn(2, 20, 30, generator=generator).numpy(), (0, 3, 3))
    small = torch.from_numpy(20 * costs).unsqueeze(0)
    scribbles = torch.full((1, 20, 30), 255)
    scribbles[0, 4:8, 3:6], scribbles[0, 12:16, 22:26] = 0, 1
    large = torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
    enlarged = scribbles.repeat_interleave(4, 1).repeat_interleave(4, 2)
    first = scribble_distances(scribbles, small)
    second = torch.nn.functional.avg_pool2d(scribble_distances(enlarged, large), 4)
    assert float((first - second).abs().max()) < 0.03
    assert float(first.max()) > 0.5


def test_spacing():
    """Blocks of six pixels are as long as wide here."""
    shape, spacing = (20, 90), (3.0, 0.5)
    scribbles = torch.full((1, *shape), 255)
    scribbles[0, :2, :12], scribbles[0, -2:, -12:] = 0, 1
    found = scribble_distances(scribbles, torch.zeros(1, 2, *shape), 0.0, spacing)
    assert _factors(shape, spacing, 2**16) == [1, 6]
    size = image_diagonal(shape, spacing)
    assert size == pytest.approx(np.hypot(60, 45))
    for k in (0, 1):
        exact = ndimage.distance_transform_edt(scribbles[0].numpy() != k, sampling=spacing)
        np.testing.assert_allclose(size * found[0, k].numpy(), exact, rtol=0.085, atol=3.0)
    doubled = scribble_distances(scribbles, torch.zeros(1, 2, *shape), 0.0, (6.0, 1.0))
    torch.testing.assert_close(doubled, found)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((90, 61), None), ((30, 33, 12), None), ((20, 90, 13), (3.0, 0.5, 2.0))]
)
def test_large_images_are_looked_at_by_blocks(shape, spacing):
    """Distances that hardly differ from those between all pixels, at every pixel, whatever is left over at the end."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, *shape, generator=generator).numpy()
    costs = torch.from_numpy(30 * ndimage.gaussian_filter(noise, (0, *[6] * len(shape)))).unsqueeze(0)
    scribbles = torch.full((1, *shape), 255)
    scribbles[(0, *(slice(2, 6) for _ in shape))] = 0
    scribbles[(0, *(slice(-6, -2) for _ in shape))] = 1
    for barrier in (0.0, 0.08):
        fine = scribble_distances(scribbles, costs, barrier, spacing)
        found = scribble_distances(scribbles, costs, barrier, spacing, most=1000)
        assert found.shape == fine.shape
        assert bool(found.isfinite().all())
        assert not torch.equal(found, fine)
        assert float((found - fine).abs().max()) < 0.08
        assert float((found - fine).abs().mean()) < 0.03
        assert float(fine.max()) > 0.5


def test_blocks_are_as_cubic_as_can_be():
    assert _factors((512, 512), (1.0, 1.0), 2**16) == [2, 2]
    assert _factors((100, 400, 400), (3.0, 0.5, 0.5), 10**6) == [1, 6, 6]
    assert _factors((3, 1000), (1.0, 1.0), 100) == [3, 10]
    assert _factors((300, 200), (1.0, 1.0), 60_000) == [1, 1]
    assert _factors((7,), (1.0,), 1) == [7]


def test_images_of_a_batch_do_not_see_each_other():
    scribbles = torch.cat([strokes(9, 11), strokes(9, 11, seed=1)])
    costs = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(2))
    together = scribble_distances(scribbles, costs)
    for i in range(2):
        torch.testing.assert_close(scribble_distances(scribbles[[i]], costs[[i]]), together[[i]])


def test_classes_without_scribbles_do_not_count():
    """Whatever their costs are."""
    scribbles = strokes(9, 11)
    costs = torch.randn(1, 3, 9, 11, generator=torch.Generator().manual_seed(2))
    changed = costs.clone()
    changed[:, 1] = -100
    torch.testing.assert_close(scribble_distances(scribbles, changed), scribble_distances(scribbles, costs))


def test_bad_input():
    scribbles, costs = strokes(9, 11), torch.zeros(1, 3, 9, 11)
    with pytest.raises(UsageError, match="barrier must be finite and not negative; got -1"):
        scribble_distances(scribbles, costs, -1.0)
    with pytest.raises(UsageError, match="Labels must be 0 to 1"):
        scribble_distances(scribbles, costs[:, :2])
    with pytest.raises(UsageError, match="shape"):
        scribble_distances(scribbles[..., 1:], costs)
    with pytest.raises(UsageError, match="NaN"):
        scribble_distances(scribbles, costs / 0)
    with pytest.raises(UsageError, match="spacing"):
        scribble_distances(scribbles, costs, spacing=(1.0,))
