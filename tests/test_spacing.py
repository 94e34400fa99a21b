"""Spacing: lengths, areas and bandwidths in mm, on grids whose axes differ."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

import regloss
from regloss import DenseCRF, GatedCRF, GridCRF, KernelCut, NonlocalTV, NormalizedCut, ThresholdDynamics, TotalVariation
from regloss.errors import UsageError
from regloss.forms import Graph, Saddle
from regloss.grid import boundary_lengths, neighbor_offsets
from regloss.regularizer import Regularizer

RADIUS = 20.0
SPACINGS = [(1.0, 1.0, 1.0), (0.5, 0.5, 3.0), (1.5, 1.5, 10.0)]


def ball(spacing, margin=6.0):
    """(*S) float64: 1 in a ball of RADIUS mm, sampled at the centres of voxels."""
    counts = [2 * math.ceil((RADIUS + margin) / step) + 1 for step in spacing]
    axes = [(np.arange(count) - count // 2) * step for count, step in zip(counts, spacing, strict=True)]
    squares = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    return torch.from_numpy((squares <= RADIUS**2).astype(np.float64))


def two_classes(inside):
    return torch.stack([1 - inside, inside]).unsqueeze(0)


def area(regularizer, inside, spacing):
    """Energy times the volume of a voxel: an area in mm^2, up to the regularizer's constant."""
    term = regularizer.bind(torch.zeros(1, 1, *inside.shape, dtype=torch.float64), spacing=spacing)
    return float(term.energy(two_classes(inside))) * math.prod(spacing)


# Sum over directions of |<n, e / |e|>|, its mean over the sphere: half of the number of directions.
CONSTANT = 13 / 2


@pytest.mark.parametrize(("spacing", "error"), list(zip(SPACINGS, (0.02, 0.03, 0.09), strict=True)))
def test_the_cut_of_a_ball_is_its_surface(spacing, error):
    """Whatever the grid. The last has four slices in a radius, the first twenty."""
    expected = 4 * math.pi * RADIUS**2
    assert area(GridCRF(), ball(spacing), spacing) / CONSTANT == pytest.approx(expected, rel=error)


@pytest.mark.parametrize(("spacing", "error"), list(zip(SPACINGS, (0.02, 0.02, 0.08), strict=True)))
def test_anisotropic_total_variation_of_a_ball(spacing, error):
    """The l1 length of a normal is 3 / 2 on the mean; both classes count."""
    expected = 2 * 3 / 2 * 4 * math.pi * RADIUS**2
    assert area(TotalVariation(), ball(spacing), spacing) == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("axis", range(3))
def test_planes_are_measured_alike(axis):
    """Across a plane, TV is exact at any spacing and the CRF within the evenness of its directions."""
    spacing = (1.5, 1.5, 4.0)
    inside = torch.zeros(16, 16, 16, dtype=torch.float64)
    inside.narrow(axis, 0, 8).fill_(1)
    expected = math.prod(16 * step for other, step in enumerate(spacing) if other != axis)
    assert area(TotalVariation(isotropic=True), inside, spacing) == pytest.approx(2 * expected, rel=1e-12)
    assert area(GridCRF(connectivity=6), inside, spacing) == pytest.approx(expected, rel=1e-12)


def test_heat_content_in_mm_measures_a_ball():
    regularizer = ThresholdDynamics(sigma=3.0, unit="mm", perimeter=True)
    for spacing in ((1.0, 1.0, 1.0), (0.75, 0.75, 2.0)):
        # Kernel and curvature: heat content is below the area by the order of (sigma / radius)^2.
        assert area(regularizer, ball(spacing, 14.0), spacing) == pytest.approx(2 * 4 * math.pi * RADIUS**2, rel=0.04)


@pytest.mark.parametrize(("ndim", "connectivity"), [(2, 4), (2, 8), (3, 6), (3, 18), (3, 26)])
def test_equal_spacings_are_distances_and_others_are_continuous(ndim, connectivity):
    offsets = neighbor_offsets(ndim, connectivity)
    unit = np.array([math.hypot(*offset) for offset in offsets])
    assert boundary_lengths(offsets) == tuple(unit)
    assert boundary_lengths(offsets, (1.0,) * ndim) == tuple(unit)
    np.testing.assert_allclose(boundary_lengths(offsets, (3.0,) * ndim), 3 * unit, rtol=1e-15)
    near = boundary_lengths(offsets, (*(1.0,) * (ndim - 1), 1.0 + 1e-7))
    np.testing.assert_allclose(near, unit, rtol=1e-6)


def test_directions_stay_as_even_as_the_grid_allows():
    offsets = neighbor_offsets(3, 26)
    normals = np.random.default_rng(0).normal(size=(3000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for spacing, low, high in (
        ((1.0, 1.0, 1.0), 0.93, 1.03),
        ((1.5, 1.5, 10.0), 0.78, 1.12),
        ((0.5, 0.5, 3.0), 0.78, 1.12),
    ):
        steps = np.array(offsets) * spacing
        cost = np.abs(normals @ steps.T) @ (1 / np.array(boundary_lengths(offsets, spacing)))
        cost /= CONSTANT
        assert (low <= cost.min(), cost.max() <= high) == (True, True), (spacing, cost.min(), cost.max())


def test_the_same_problem_resampled_has_the_same_answer():
    """A noisy ball, its unaries given in mm: the cut's volume agrees within a layer of half a coarse voxel."""
    volumes = []
    for spacing in ((1.0, 1.0, 1.0), (1.0, 1.0, 2.0)):
        inside = ball(spacing)
        noise = ndimage.zoom(
            np.random.default_rng(0).normal(size=(14, 14, 14)), [n / 14 for n in inside.shape], order=1
        )
        gain = torch.from_numpy((inside.numpy() - 0.5) * 2 + 2 * noise)
        unary = torch.stack([gain, -gain]).unsqueeze(0) / 2
        term = GridCRF(weight=0.4).bind(torch.zeros(1, 1, *inside.shape, dtype=torch.float64), spacing=spacing)
        solution = regloss.solve(term, unary, "alpha-expansion")
        volumes.append(float(solution.labels.sum()) * math.prod(spacing))
        assert float(solution.gap) == pytest.approx(0, abs=1e-6)
    # 4 pi R^2 * .5 mm is 7 % of the ball.
    assert volumes[1] == pytest.approx(volumes[0], rel=0.07)


@pytest.mark.parametrize("isotropic", [False, True])
def test_saddle_solvers_agree_with_the_energy_on_unequal_axes(isotropic):
    """Compiled ascents and tensors: the gap closes, with the diagonal's steps and with the norm's."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 7, 5, generator=generator, dtype=torch.float64)
    unary = torch.randn(1, 3, 6, 7, 5, generator=generator, dtype=torch.float64)
    term = TotalVariation(0.4, isotropic=isotropic).bind(image, spacing=(0.7, 1.3, 2.9))
    energies = []
    for steps in ("diagonal", "norm"):
        solver = regloss.PDHG(max_steps=4000, tolerance=1e-7, steps=steps)
        solution = regloss.solve(term, unary, solver, entropy=0.2)
        assert float(solution.gap) <= 1e-5 * abs(float(solution.energy))
        energies.append(float(solution.energy))
    assert energies[0] == pytest.approx(energies[1], rel=1e-5)
    if not isotropic:
        labels = solution.labels
        hard = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
        assert float(term.form(Graph).cut(labels)) == pytest.approx(float(term.energy(hard)), rel=1e-12)


# --------------------------------------------------------------------------------------------------------------------
# Bandwidths in mm


def brute_force_dense(image, probabilities, spacing, sigma_xy, sigma_rgb):
    places = torch.cartesian_prod(
        *[torch.arange(n, dtype=torch.float64) * step for n, step in zip(image.shape[2:], spacing, strict=True)]
    )
    colours, s = image[0].flatten(1).T, probabilities[0].flatten(1).T
    squares = torch.cdist(places, places).square() / (2 * sigma_xy**2)
    weights = torch.exp(-squares - torch.cdist(colours, colours).square() / (2 * sigma_rgb**2))
    weights.fill_diagonal_(0)
    mass = (2 * math.pi * sigma_xy**2) ** (len(spacing) / 2) / math.prod(spacing)
    return float((weights * (1 - s @ s.T)).sum()) / 2 / mass


@pytest.mark.parametrize("spacing", [(2.0, 0.5), (0.8, 0.8, 5.0)])
def test_dense_and_gated_bandwidths_in_mm(spacing):
    generator = torch.Generator().manual_seed(1)
    size = (7, 6, 5)[: len(spacing)]
    image = torch.rand(1, 2, *size, generator=generator, dtype=torch.float64)
    probabilities = torch.rand(1, 3, *size, generator=generator, dtype=torch.float64).softmax(1)
    expected = brute_force_dense(image, probabilities, spacing, 3.0, 0.4)
    dense = DenseCRF(sigma_xy=3.0, sigma_rgb=0.4, scale=1.0, backend="exact", unit="mm")
    assert float(dense.bind(image, spacing=spacing).energy(probabilities)) == pytest.approx(expected, rel=1e-9)
    gated = GatedCRF(radius=10, sigma_xy=3.0, sigma_rgb=0.4, unit="mm")
    mass = (2 * math.pi * 9.0) ** (len(spacing) / 2) / math.prod(spacing)
    assert float(gated.bind(image, spacing=spacing).energy(probabilities)) == pytest.approx(expected * mass, rel=1e-9)
    learnt = DenseCRF(
        sigma_xy=torch.tensor(3.0, dtype=torch.float64, requires_grad=True), sigma_rgb=0.4, scale=1.0, unit="mm"
    )
    energy = learnt.bind(image, spacing=spacing).energy(probabilities).sum()
    assert float(energy.detach()) == pytest.approx(expected, rel=1e-9)
    (slope,) = torch.autograd.grad(energy, learnt.sigma_xy)
    step = 1e-5
    above, below = (brute_force_dense(image, probabilities, spacing, 3.0 + d, 0.4) for d in (step, -step))
    assert float(slope) == pytest.approx((above - below) / (2 * step), rel=1e-5)


def test_the_lattice_takes_a_bandwidth_for_each_axis():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 1, 30, 40, generator=generator, dtype=torch.float64)
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False)
    probabilities = torch.rand(1, 2, 30, 40, generator=generator, dtype=torch.float64).softmax(1)
    energies = [
        float(
            DenseCRF(sigma_xy=8.0, sigma_rgb=0.1, scale=1.0, backend=backend, accuracy="finest", unit="mm")
            .bind(image, spacing=(2.0, 0.8))
            .energy(probabilities)
        )
        for backend in ("exact", "lattice")
    ]
    assert energies[1] == pytest.approx(energies[0], rel=0.01)


def test_neighbours_in_mm():
    """Along an axis of wide spacing, neighbours are farther than two steps along the other."""
    image = torch.full((1, 1, 5, 5), 0.5, dtype=torch.float64)
    nltv = NonlocalTV(neighbors=2, sigma_xy=1.0, near=0.0, unit="mm")
    edges = nltv.bind(image, spacing=(3.0, 1.0)).form(Graph).edges
    assert bool((edges[:, 0] // 5 == edges[:, 1] // 5).all())
    straight = nltv.bind(image, spacing=(1.0, 1.0)).form(Graph).edges
    assert not bool((straight[:, 0] // 5 == straight[:, 1] // 5).all())


def test_cached_graphs_know_their_spacing(tmp_path):
    image = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nltv = NonlocalTV(neighbors=3, sigma_xy=2.0, unit="mm", cache=str(tmp_path))
    found = [
        nltv.bind(image, spacing=spacing).form(Graph).weights for spacing in ((1.0, 1.0), (1.0, 4.0)) for _ in "ab"
    ]
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])


def test_volumes_in_ml():
    image = torch.zeros(1, 1, 10, 10, 10)
    lower, upper = (0.0, 0.5), (9.0, 0.6)  # a voxel has 1.5 * 1.5 * 2 = 4.5 mm^3: 111.1 to 133.3 voxels
    term = regloss.Volume(lower=lower, upper=upper, unit="ml").bind(image, spacing=(1.5, 1.5, 2.0))
    unary = torch.stack([torch.zeros(10, 10, 10), torch.full((10, 10, 10), 1.0)]).unsqueeze(0)
    unary[:, 1] += torch.rand(10, 10, 10, generator=torch.Generator().manual_seed(0))
    solution = regloss.solve(term, unary, "dca", entropy=0.1)
    assert int(solution.labels.sum()) == 112
    with pytest.raises(
        UsageError, match="need an image of 3 dimensions with its spacing in mm; the spacing is not known"
    ):
        regloss.Volume(lower=lower, upper=upper, unit="ml").bind(image)
    with pytest.raises(UsageError, match="need an image of 3 dimensions with its spacing in mm; the image has 2"):
        regloss.Volume(lower=lower, upper=upper, unit="mm3").bind(image[..., 0], spacing=(1.0, 1.0))


@pytest.mark.parametrize(
    "regularizer",
    [
        DenseCRF(unit="mm"), GatedCRF(unit="mm"), NonlocalTV(unit="mm"), NormalizedCut(unit="mm"), KernelCut(unit="mm"),
        ThresholdDynamics(unit="mm"), GridCRF() + DenseCRF(unit="mm"),
    ],
    ids=lambda made: type(made).__name__,
)  # fmt: skip
def test_mm_without_a_spacing_is_refused(regularizer: Regularizer):
    with pytest.raises(UsageError, match=r'unit = "mm"\), and the spacing of the image is not known'):
        regularizer.bind(torch.rand(1, 3, 6, 6))


@pytest.mark.parametrize("kind", [DenseCRF, GatedCRF, NonlocalTV, NormalizedCut, KernelCut, ThresholdDynamics])
def test_unknown_units_are_refused(kind):
    with pytest.raises(UsageError, match='must be "pixel" or "mm"; got \'cm\''):
        kind(unit="cm")


@pytest.mark.parametrize(
    "spacing", [(1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, -2.0), (1.0, math.inf), 3.0, ("a", "b")]
)
def test_bad_spacings_are_refused(spacing):
    with pytest.raises(UsageError, match="spacing must be 2"):
        GridCRF().bind(torch.rand(1, 1, 4, 4), spacing=spacing)


def test_a_radius_in_mm_is_refused():
    for settings in ({"kernel": "disk"}, {"radius": 3}):
        with pytest.raises(UsageError, match="A radius is in pixels"):
            ThresholdDynamics(unit="mm", **settings)


def test_tv_norm_bounds_the_operator():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    (part,) = TotalVariation().bind(image, spacing=(0.5, 2.0)).form(Saddle).parts
    s = torch.ones(1, 1, 9, 9, dtype=torch.float64)
    s[..., ::2, :] *= -1
    s[..., ::2] *= -1
    length = float(part.operator.apply(s).norm() / s.norm())
    assert 0.9 * part.operator.norm < length <= part.operator.norm


# --------------------------------------------------------------------------------------------------------------------
# Through losses, batches and loops


def test_losses_loops_and_functions_hand_the_spacing_on():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 8, generator=generator)
    logits = torch.randn(1, 2, 6, 8, generator=generator)
    spacing = (3.0, 0.5)
    energy = TotalVariation().bind(image, spacing=spacing).energy(logits.softmax(1)) / 48
    assert float(regloss.losses.TVLoss()(logits, spacing=spacing)) == pytest.approx(float(energy), rel=1e-6)
    batch = regloss.Batch(image, torch.full((1, 6, 8), 255), spacing=spacing)
    loop = regloss.GradientDescent(TotalVariation())
    assert float(loop.objective(logits, batch)) == pytest.approx(float(energy), rel=1e-6)
    trust = regloss.TrustRegion(GridCRF(weight=0.5), "alpha-expansion", coupling=1.0, seeded_only=False)
    proposal = trust.propose(logits, batch)
    expected = regloss.solve(
        GridCRF(weight=0.5).bind(image, spacing=spacing), trust.divergence.unary(logits), "alpha-expansion"
    )
    assert torch.equal(proposal.labels, expected.labels)
    plain = regloss.solve(GridCRF(weight=0.5).bind(image), trust.divergence.unary(logits), "alpha-expansion")
    assert not torch.equal(plain.labels, expected.labels)
    smooth = regloss.denoise(image, TotalVariation(0.1), spacing=spacing)
    bound = regloss.denoise(image, TotalVariation(0.1).bind(image, spacing=spacing))
    assert torch.equal(smooth.image, bound.image)
    start = (image[:, 0] > 0.5).long()
    found = regloss.alternate("chan-vese", TotalVariation(0.1), "alpha-expansion", image, start, spacing=spacing)
    term = TotalVariation(0.1).bind(image, spacing=spacing)
    assert torch.equal(found.labels, regloss.alternate("chan-vese", term, "alpha-expansion", image, start).labels)


@pytest.mark.parametrize("name", ["TVLoss", "GridCRFLoss", "DenseCRFLoss"])
def test_compiled_losses_hand_it_on(name):
    made = getattr(regloss.losses, name)
    loss = made(sigma_xy=3.0, unit="mm") if name == "DenseCRFLoss" else made()
    image, logits = torch.rand(1, 3, 6, 8), torch.randn(1, 2, 6, 8)
    expected = loss(logits, image=image, spacing=(3.0, 0.5))
    assert float(expected) != pytest.approx(float(made()(logits, image=image)), rel=1e-3)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert float(compiled(logits, image=image, spacing=(3.0, 0.5))) == pytest.approx(float(expected), rel=1e-5)
    assert float(compiled(logits, image=image, spacing=(3.0, 1.5))) == pytest.approx(
        float(loss(logits, image=image, spacing=(3.0, 1.5))), rel=1e-5
    )


def test_a_batch_checks_its_spacing():
    with pytest.raises(UsageError, match="spacing must be 2"):
        regloss.Batch(torch.rand(1, 1, 6, 8), None, spacing=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: regloss.RegularizedSoftmax(TotalVariation(0.1), max_steps=200),
        lambda: regloss.RegularizedSigmoid([TotalVariation(0.1), "ordered"], max_steps=200),
        lambda: regloss.DenseCRFLayer(classes=3),
    ],
)
def test_layers_take_the_spacing(layer):
    """1 mm changes nothing; longer pixels along one axis do what binding with that spacing does."""
    torch.manual_seed(0)
    made = layer().eval()
    image, logits = torch.rand(1, 1, 5, 7, 6, dtype=torch.float64), torch.randn(1, 3, 5, 7, 6, dtype=torch.float64)
    plain = made.log_probabilities(logits, image)
    torch.testing.assert_close(made.log_probabilities(logits, image, spacing=(1.0, 1.0, 1.0)), plain)
    spaced = made.log_probabilities(logits, image, spacing=(4.0, 1.0, 1.0))
    if isinstance(made, regloss.RegularizedSoftmax):
        assert not torch.allclose(spaced, plain, atol=1e-3)
        term = made.regularizer.bind(image, spacing=(4.0, 1.0, 1.0))
        torch.testing.assert_close(spaced, made.log_probabilities(logits, term))
        with pytest.raises(UsageError, match="its region of interest and its spacing already"):
            made.log_probabilities(logits, term, spacing=(4.0, 1.0, 1.0))
    network = torch.nn.Conv3d(1, 3, 1).double()
    attached = regloss.attach(network, made)
    torch.testing.assert_close(
        attached(image, spacing=(4.0, 1.0, 1.0)),
        made.log_probabilities(network(image), image, spacing=(4.0, 1.0, 1.0)),
    )
