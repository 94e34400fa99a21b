"""Place beside colour, and an image that is prepared once for many scribbles."""

import math

import pytest
import torch

from regloss import GraphCut, GridCRF, RegionCompetition, ScribbleCut, TotalVariation, UsageError, scribble_distances
from regloss.forms import GridGraph
from regloss_plugins.segmenters.scribble_distances import image_diagonal


def twins():
    """(1, 3, 40, 60): two disks of one colour, in noise, and their labels (1, 40, 60)."""
    y, x = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    truth = (((y - 20) ** 2 + (x - 15) ** 2 < 80) | ((y - 20) ** 2 + (x - 45) ** 2 < 80)).long()
    colours = torch.tensor([[0.3, 0.4, 0.5], [0.42, 0.4, 0.38]])[truth].movedim(-1, 0)
    noise = 0.05 * torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(0))
    return (colours + noise).clamp(0, 1).unsqueeze(0), truth.unsqueeze(0)


def strokes(*, both=False, classes=(0, 1)):
    scribbles = torch.full((1, 40, 60), 255)
    scribbles[0, 20, 10:20] = classes[1]
    scribbles[0, 3, 5:55] = scribbles[0, 36, 5:55] = classes[0]
    if both:
        scribbles[0, 20, 40:50] = classes[1]
    return scribbles


SEGMENTERS = [
    ScribbleCut(),
    ScribbleCut(regularizer=TotalVariation(3.0), colors="rgb"),
    GraphCut(place=20.0, place_limit=10.0, colors="lab"),
    RegionCompetition(place=10.0, barrier=0.0),
    GraphCut(),
    GraphCut(region_force=None),
]


@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=lambda segmenter: repr(segmenter)[:60])
@pytest.mark.parametrize("classes", [(0, 1), (2, 0)])
def test_a_prepared_image_gives_what_the_segmenter_does(segmenter, classes):
    """Costs, energies and labels, also where a class has no scribbles; and from any start."""
    image, _ = twins()
    scribbles = strokes(classes=classes)
    found = segmenter(image, scribbles=scribbles)
    prepared = segmenter.prepare(image)
    again = prepared.solve(scribbles)
    assert torch.equal(again.labels, found.labels)
    torch.testing.assert_close(again.energy, found.solution.energy)
    warm = prepared.solve(scribbles, warm=prepared.solve(strokes(both=True, classes=classes)))
    torch.testing.assert_close(warm.energy, found.solution.energy)
    more = prepared.solve(scribbles, 5)
    assert torch.equal(more.labels, found.labels)
    assert more.probabilities.shape[1] == 5


def test_two_objects_of_one_colour():
    """Colours alone find both; place leaves out the one that is not scribbled, and keeps both that are."""
    image, truth = twins()
    left = truth.clone()
    left[..., 30:] = 0
    for options, scribbles, expected in [
        ({"place": 0.0}, strokes(), truth),
        ({}, strokes(), left),
        ({}, strokes(both=True), truth),
        ({"place_limit": 0.0}, strokes(), truth),
    ]:
        labels = ScribbleCut(**options)(image, scribbles=scribbles).labels
        assert float((labels == expected).float().mean()) > 0.99, options


def test_place_is_limited_and_counts_from_the_nearest():
    """Costs of place, written out."""
    segmenter = ScribbleCut(place=20.0, place_limit=3.0, barrier=0.1)
    scribbles = strokes(classes=(2, 0))
    costs = torch.rand(1, 4, 40, 60, generator=torch.Generator().manual_seed(1))
    distances = scribble_distances(scribbles, costs, 0.1)[:, [0, 2]]
    expected = torch.zeros_like(costs)
    expected[:, [0, 2]] = (20 * (distances - distances.amin(1, keepdim=True))).clamp(max=3.0)
    torch.testing.assert_close(segmenter.place_costs(scribbles, costs), expected)
    assert float(expected.max()) == 3.0


def test_costs_of_some_pixels():
    image, _ = twins()
    segmenter = ScribbleCut()
    features, where = segmenter.features(image), torch.zeros(1, 40, 60, dtype=torch.bool)
    where[:, 10:20, 5:50] = True
    everywhere = segmenter.color_costs(features, strokes(), 3)
    some = segmenter.color_costs(features, strokes(), 3, where)
    torch.testing.assert_close(some, everywhere * where.unsqueeze(1))
    assert not segmenter.color_costs(features, strokes(), 3, torch.zeros_like(where)).any()


def test_the_default_weight_follows_the_image():
    segmenter = ScribbleCut(smoothness=0.2)
    assert segmenter.prior((30, 40)) == GridCRF(10.0)
    assert segmenter.prior((30, 40), (2.0, 2.0)) == GridCRF(20.0)
    assert ScribbleCut(regularizer=GridCRF(7.0)).prior((30, 40)) == GridCRF(7.0)


def test_a_boundary_costs_alike_in_a_volume_and_in_its_slices():
    """A sphere, and the circles in which slices cut it."""
    places = torch.stack(torch.meshgrid(*[torch.arange(41) - 20.0] * 3, indexing="ij"))
    ball = (places.square().sum(0) < 15**2).long()
    costs = []
    for shape in ((41, 41, 41), (41, 41)):
        slices = ball.reshape(-1, *shape)
        prior = ScribbleCut(smoothness=1.0).prior(shape)
        weight = prior.weight / image_diagonal(shape)
        form = GridCRF(weight).bind(torch.zeros(len(slices), 1, *shape)).form(GridGraph)
        costs.append(float(form.cut(slices).sum()))
    # Where a boundary is tilted against the slices less of it is seen in them: of a sphere pi / 4.
    assert costs[1] / costs[0] == pytest.approx(math.pi / 4, rel=0.05)


def test_an_enlarged_image_is_segmented_alike():
    image, _ = twins()
    large = torch.nn.functional.interpolate(image, scale_factor=3, mode="bicubic").clamp(0, 1)
    scribbles = strokes().repeat_interleave(3, 1).repeat_interleave(3, 2)
    small = ScribbleCut()(image, scribbles=strokes()).labels
    labels = ScribbleCut()(large, scribbles=scribbles).labels
    assert float((labels[:, 1::3, 1::3] == small).float().mean()) > 0.98
    assert small.any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"place": -1.0}, "place must be finite and not negative"),
        ({"place_limit": float("nan")}, "place_limit must be"),
        ({"barrier": float("inf")}, "barrier must be"),
        ({"smoothness": -0.1}, "smoothness must be"),
        ({"colors": "hsv"}, "colors must be one of rgb, lab; got .hsv."),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UsageError, match=message):
        ScribbleCut(**setting)
