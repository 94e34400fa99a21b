"""Augmentation: one geometry, read alike from image, labels and proposals, and as an independent resampler reads it."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from regloss.errors import UsageError
from regloss.training.augmentation import AppliedGeometry, Geometry, identity, photometric, sample_geometry
from regloss.training.config import Augment

OUTSIDE = 255
FLIPS = Augment(flip=True, flip_vertical=True)
TURNS = Augment(flip=True, quarter_turns=True)
EVERYTHING = Augment(flip=True, flip_vertical=True, quarter_turns=True, scale=(0.6, 1.7), rotate=35.0)
SIZES = [((17, 22), None), ((17, 22), (12, 12)), ((17, 22), (30, 25)), ((17, 22), (40, 9)), ((5, 12, 14), (4, 9, 20))]


def noise(size, channels=2):
    return torch.rand(channels, *size, generator=torch.Generator().manual_seed(0))


def codes(size):
    """Labels by which a pixel can be told from its neighbours."""
    return (torch.arange(math.prod(size)) % 251).to(torch.uint8).reshape(size)


def reference(array, geometry, order):
    """What scipy reads through the same map; its rounding and its interpolation, not ours."""
    return ndimage.affine_transform(
        array.astype(np.float64), np.array(geometry.matrix), geometry.shift, geometry.size, order=order, mode="nearest"
    )


def positions(geometry):
    axes = np.indices(geometry.size).reshape(len(geometry.size), -1)
    moved = np.array(geometry.matrix) @ axes + np.array(geometry.shift)[:, None]
    return moved.reshape(-1, *geometry.size)


# -- Arrays read through a geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "crop"), SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_images_and_labels_are_read_as_scipy_reads_them(source, crop, seed):
    geometry = sample_geometry(source, crop, EVERYTHING, [seed])
    applied = AppliedGeometry(geometry, source)
    inside = applied.inside.numpy()
    where = positions(geometry)
    assert np.array_equal(
        inside, np.all([(p >= -0.5) & (p < n - 0.5) for p, n in zip(where, source, strict=True)], axis=0)
    )
    labels, image = codes(source), noise(source)
    expected = np.where(inside, reference(labels.numpy(), geometry, 0), OUTSIDE)
    assert np.array_equal(applied.labels(labels, OUTSIDE).numpy(), expected)
    for read, channel in zip(applied.image(image), image, strict=True):
        np.testing.assert_allclose(
            read.numpy(), np.where(inside, reference(channel.numpy(), geometry, 1), 0), atol=2e-5
        )


@pytest.mark.parametrize("augment", [Augment(), FLIPS, TURNS])
@pytest.mark.parametrize(("source", "crop"), SIZES)
def test_without_interpolation_image_labels_and_proposals_agree_exactly(source, crop, augment):
    """Label values are written into the image and found again beside them, bit for bit."""
    labels = codes(source)
    for seed in range(8):
        geometry = sample_geometry(source, crop, augment, [seed])
        assert geometry.exact
        applied = AppliedGeometry(geometry, source)
        read = applied.image(labels.to(torch.float32).unsqueeze(0) / 255)[0] * 255
        expected = applied.labels(labels, 0).to(torch.float32)
        assert torch.equal(read.round(), expected)
        assert torch.equal(applied.labels(labels, OUTSIDE), applied.labels(labels.clone(), OUTSIDE))


def test_with_interpolation_they_agree_away_from_edges():
    """Of two halves, image and labels have the border at the same place, to a pixel."""
    source = (40, 40)
    labels = torch.zeros(source, dtype=torch.uint8)
    labels[:, 20:] = 1
    for seed in range(10):
        applied = AppliedGeometry(sample_geometry(source, (32, 32), EVERYTHING, [seed]), source)
        image = applied.image(labels.float().unsqueeze(0))[0]
        read = applied.labels(labels, 0).float()
        assert ((image - read).abs() <= 0.5 + 1e-5)[applied.inside].all()
        assert (image == read)[applied.inside].float().mean() > 0.85


def test_a_flip_mirrors():
    source = (5, 7)
    labels, image = codes(source), noise(source)
    found = set()
    for seed in range(40):
        applied = AppliedGeometry(sample_geometry(source, None, FLIPS, [seed]), source)
        assert applied.inside.all()
        read = applied.labels(labels, OUTSIDE)
        (axes,) = (
            axes for axes in ((), (0,), (1,), (0, 1)) if torch.equal(read, labels.flip(axes) if axes else labels)
        )
        assert torch.equal(applied.image(image), image.flip([axis + 1 for axis in axes]) if axes else image)
        found.add(axes)
    assert found == {(), (0,), (1,), (0, 1)}


def test_quarter_turns_are_exact_and_equally_likely():
    """Whole images keep all their pixels; the four turns come as often."""
    for source in ((17, 22), (5, 12, 14)):
        labels = codes(source)
        found = [0] * 4
        for seed in range(400):
            applied = AppliedGeometry(sample_geometry(source, None, Augment(quarter_turns=True), [seed]), source)
            read = applied.labels(labels, OUTSIDE)
            turns = [torch.rot90(labels, k, (-2, -1)) for k in range(4)]
            found[next(k for k, turn in enumerate(turns) if turn.shape == read.shape and torch.equal(read, turn))] += 1
        assert min(found) > 70


@pytest.mark.parametrize("crop", [(8, 8), (10, 6)])
def test_crops_of_quarter_turns_lie_anywhere_inside(crop):
    source = (17, 22)
    seen = torch.zeros(source)
    for seed in range(300):
        geometry = sample_geometry(source, crop, Augment(quarter_turns=True), [seed])
        assert AppliedGeometry(geometry, source).inside.all()
        assert geometry.size == crop
        rows, columns = positions(geometry).astype(int)
        seen[rows, columns] += 1
    assert seen.any(0).all()
    assert seen.any(1).all()


def test_a_quarter_turn_of_unequal_spacings_is_one_in_mm():
    spacing = (10.0, 1.0, 2.0)
    for seed in range(8):
        geometry = sample_geometry((3, 21, 21), None, Augment(quarter_turns=True), [seed], spacing=spacing)
        moved = np.diag(spacing) @ np.array(geometry.matrix) @ np.diag([1 / step for step in spacing])
        np.testing.assert_allclose(moved @ moved.T, np.eye(3), atol=1e-12)


def test_flips_are_as_likely_as_not():
    geometries = [sample_geometry((5, 7), None, Augment(flip=True), [seed]) for seed in range(400)]
    assert 0.42 < np.mean([geometry.matrix[1][1] < 0 for geometry in geometries]) < 0.58
    assert all(geometry.matrix[0][0] > 0 for geometry in geometries)


def test_a_crop_is_a_window():
    source, crop = (9, 11), (6, 8)
    labels = codes(source)
    windows = {
        labels[top : top + 6, left : left + 8].numpy().tobytes(): (top, left) for top in range(4) for left in range(4)
    }
    found = set()
    for seed in range(300):
        applied = AppliedGeometry(sample_geometry(source, crop, Augment(), [seed]), source)
        assert applied.inside.all()
        found.add(windows[applied.labels(labels, OUTSIDE).numpy().tobytes()])
    assert found == set(windows.values())


def test_padding_is_outside_the_region_of_interest():
    """It is not "unlabelled": outside, nothing is regularised either."""
    source, crop = (5, 6), (9, 6)
    labels = codes(source)
    for seed in range(5):
        applied = AppliedGeometry(sample_geometry(source, crop, FLIPS, [seed]), source)
        assert int(applied.inside.sum()) == 30
        read = applied.labels(labels, OUTSIDE)
        assert sorted(read[applied.inside].tolist()) == sorted(labels.flatten().tolist())
        assert (read[~applied.inside] == OUTSIDE).all()
        assert (applied.image(noise(source) + 0.1)[:, ~applied.inside] == 0).all()
        assert applied.inside[2:7].all()  # in the middle


def test_volumes_are_turned_in_their_last_two_axes():
    geometry = sample_geometry((6, 20, 24), None, Augment(rotate=30.0), [1])
    matrix = np.array(geometry.matrix)
    assert matrix[0].tolist() == matrix[:, 0].tolist() == [1, 0, 0]
    assert matrix[1, 2] == -matrix[2, 1] != 0
    read = AppliedGeometry(geometry, (6, 20, 24)).labels(torch.arange(6).reshape(6, 1, 1).expand(6, 20, 24), 9)
    assert all(set(plane.unique().tolist()) <= {depth, 9} for depth, plane in enumerate(read))


def test_a_rotation_is_one_in_mm_across_the_coarsest_axis():
    """Lengths in mm stay, whichever axis is the coarse one."""
    for spacing, fixed in (((3.0, 0.5, 0.5), 0), ((0.5, 0.7, 3.0), 2), ((1.0, 1.0, 1.0), 0)):
        matrix = np.array(sample_geometry((6, 20, 24), None, Augment(rotate=40.0), [1], spacing=spacing).matrix)
        physical = np.diag(spacing) @ matrix @ np.diag(1 / np.array(spacing))
        np.testing.assert_allclose(physical @ physical.T, np.eye(3), atol=1e-12)
        assert matrix[fixed].tolist() == matrix[:, fixed].tolist() == np.eye(3)[fixed].tolist()
        assert abs(physical[fixed - 1, fixed - 2]) > 0.05


def test_a_volume_is_mirrored_along_its_first_axis():
    labels = codes((4, 3, 3))
    found = set()
    for seed in range(20):
        read = AppliedGeometry(sample_geometry((4, 3, 3), None, Augment(flip_depth=True), [seed]), (4, 3, 3))
        mirrored = torch.equal(read.labels(labels, OUTSIDE), labels.flip(0))
        assert mirrored or torch.equal(read.labels(labels, OUTSIDE), labels)
        found.add(mirrored)
    assert found == {False, True}
    with pytest.raises(UsageError, match="flip-depth mirrors the first axis of volumes"):
        sample_geometry((4, 3), None, Augment(flip_depth=True), [0])


def test_a_crop_holds_a_pixel():
    source, crop, pixel = (6, 20, 24), (2, 8, 40), (5, 0, 11)
    starts = set()
    for seed in range(60):
        geometry = sample_geometry(source, crop, FLIPS, [seed], holds=pixel)
        applied = AppliedGeometry(geometry, source)
        marked = torch.zeros(source)
        marked[pixel] = 1
        assert applied.labels(marked, 0).sum() == 1
        starts.add(float(applied.positions[1].min()))
    assert starts == {0.0}  # the pixel lies at the border
    starts = {sample_geometry((20,) * 2, (8, 8), Augment(), [seed], holds=(10, 3)).shift for seed in range(200)}
    assert {first for first, _ in starts} == set(range(3, 11))
    assert {second for _, second in starts} == set(range(4))


def test_the_identity():
    labels = codes((6, 5))
    applied = AppliedGeometry(identity((6, 5)), (6, 5))
    assert torch.equal(applied.labels(labels, OUTSIDE), labels)
    assert applied.inside.all()


def test_halves_are_rounded_one_way():
    """Between two pixels, neighbours still read different ones."""
    applied = AppliedGeometry(Geometry((5,), ((1.0,),), (0.5,)), (6,))
    assert applied.labels(torch.arange(6), OUTSIDE).tolist() == [1, 2, 3, 4, 5]


def test_arguments_are_left_alone():
    source = (9, 8)
    labels, image = codes(source), noise(source)
    before = labels.clone(), image.clone()
    applied = AppliedGeometry(sample_geometry(source, (12, 12), EVERYTHING, [3]), source)
    applied.labels(labels, OUTSIDE).fill_(0)
    applied.image(image).fill_(0)
    photometric(image, Augment(brightness=0.3, contrast=0.5), [3])
    exact = AppliedGeometry(identity(source), source)
    exact.labels(labels, OUTSIDE).fill_(0)
    exact.image(image).fill_(0)
    assert torch.equal(labels, before[0])
    assert torch.equal(image, before[1])


# -- Sampling ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same():
    draws = [sample_geometry((30, 31), (16, 16), EVERYTHING, [0, 3, 5]) for _ in range(2)]
    assert draws[0] == draws[1]
    others = {sample_geometry((30, 31), (16, 16), EVERYTHING, seed) for seed in ([0, 3, 6], [0, 4, 5], [1, 3, 5])}
    assert len(others | set(draws)) == 4


def test_the_global_generators_play_no_part():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    sample_geometry((30, 31), (16, 16), EVERYTHING, [0])
    photometric(noise((4, 4)), Augment(brightness=0.3), [0])
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_magnification_and_rotation_stay_in_their_ranges():
    angles, scales = [], []
    for seed in range(200):
        matrix = np.array(sample_geometry((50, 50), None, Augment(scale=(0.5, 2.0), rotate=20.0), [seed]).matrix)
        scales.append(1 / math.sqrt(np.linalg.det(matrix)))
        angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
    assert 0.5 <= min(scales) < 0.55
    assert 1.8 < max(scales) <= 2.0
    assert abs(np.mean(np.log(scales))) < 0.1  # as often smaller as larger
    assert -20 <= min(angles) < -18
    assert 18 < max(angles) <= 20


def test_magnification_enlarges():
    labels = torch.zeros(40, 40, dtype=torch.uint8)
    labels[16:24, 16:24] = 1
    geometry = sample_geometry((40, 40), None, Augment(scale=(1.5, 1.5)), [0])
    assert int((AppliedGeometry(geometry, (40, 40)).labels(labels, 0) == 1).sum()) == 144


def test_a_magnified_crop_reads_inside_the_image():
    """Where the crop fits, its centre's place is drawn so that nothing is padded."""
    for seed in range(30):
        geometry = sample_geometry((40, 50), (20, 20), Augment(flip=True, scale=(0.9, 2.0)), [seed])
        assert AppliedGeometry(geometry, (40, 50)).inside.all()


# -- Photometry --------------------------------------------------------------------------------------------------------


def test_photometry():
    image = noise((20, 20)) * 0.2 + 0.4
    assert photometric(image, Augment(), [0]) is image
    augment = Augment(brightness=0.1, contrast=0.5)
    changed = photometric(image, augment, [0])
    assert torch.equal(changed, photometric(image, augment, [0]))
    assert not torch.equal(changed, photometric(image, augment, [1]))
    shift = changed.mean() - image.mean()
    assert 0 < abs(float(shift)) <= 0.1
    ratio = changed.std() / image.std()
    assert 0.5 <= float(ratio) <= 1.5
    torch.testing.assert_close(changed - changed.mean(), ratio * (image - image.mean()), rtol=0, atol=1e-6)
    strong = photometric(noise((20, 20)), Augment(brightness=1.0), [4])
    assert 0 <= strong.min() < strong.max() <= 1


@pytest.mark.parametrize("size", [(20, 24), (6, 20, 24)])
def test_blur_noise_gamma_and_low_resolution(size):
    image = noise(size)
    roughness = float(image.std())
    for seed in range(3):
        softer = [photometric(image, augment, [seed]) for augment in (Augment(blur=2.0), Augment(low_resolution=4.0))]
        for changed in softer:
            assert changed.shape == image.shape
            assert float(changed.std()) < 0.95 * roughness
            assert abs(float(changed.mean() - image.mean())) < 0.02
        noisy = photometric(torch.full_like(image, 0.5), Augment(noise=0.1), [seed])
        assert 0 < float(noisy.std()) <= 0.105
        darker = photometric(image, Augment(gamma=(1.5, 2.0)), [seed])
        exponent = (darker.log() / image.log()).median()
        assert 1.5 <= exponent <= 2
        torch.testing.assert_close(darker, image**exponent, atol=1e-4, rtol=0)
        assert 0 <= noisy.min() <= noisy.max() <= 1


@pytest.mark.parametrize("size", [(50, 60), (4, 30, 40)])
def test_salt_and_pepper(size):
    """Levels lie in their range; salt and pepper come after the Gaussian noise, in all channels at once."""
    grey = torch.full((2, *size), 0.5)
    salted = photometric(grey, Augment(noise={"salt": (0.1, 0.2)}), [0])
    assert set(salted.unique().tolist()) == {0.5, 1.0}
    assert torch.equal(salted[0], salted[1])
    assert 0.08 < float((salted == 1).float().mean()) < 0.22
    shares = [float((photometric(grey, Augment(noise={"pepper": 0.1}), [n]) == 0).float().mean()) for n in range(20)]
    assert max(shares) <= 0.12
    assert max(shares) - min(shares) > 0.04
    every = Augment(noise={"gaussian": (0.05, 0.05), "salt": (0.1, 0.1), "pepper": (0.1, 0.1)})
    noisy = photometric(grey, every, [3])
    rest = noisy[(noisy > 0) & (noisy < 1)]
    assert float(rest.std()) == pytest.approx(0.05, rel=0.05)
    assert float((noisy == 0).float().mean()) == pytest.approx(0.1, abs=0.02)  # pepper covers some of the salt
    assert float((noisy == 1).float().mean()) == pytest.approx(0.09, abs=0.02)


def test_noise_from_a_number_is_gaussian():
    for seed in range(3):
        changed = [photometric(noise((9, 9)), Augment(noise=given), [seed]) for given in (0.1, {"gaussian": (0, 0.1)})]
        assert torch.equal(*changed)


def test_blur_is_in_mm():
    """Along an axis of six times the spacing there is next to none."""
    point = torch.zeros(1, 9, 25, 25)
    point[0, 4, 12, 12] = 1
    changed = photometric(point, Augment(blur=2.0), [0], (6.0, 1.0, 1.0))[0]
    assert changed[4].sum() > 0.99
    assert 0.01 < changed[4, 12, 12] < 0.5


def test_photometry_does_not_depend_on_geometry():
    """Both draw from the same seed, each its own numbers."""
    seed = [0, 1, 2]
    values = {
        float(photometric(torch.full((1, 3, 3), 0.5), Augment(brightness=0.2, scale=scale), seed)[0, 0, 0])
        for scale in ((1.0, 1.0), (0.5, 2.0))
    }
    assert len(values) == 1
