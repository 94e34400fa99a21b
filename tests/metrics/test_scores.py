"""Scores against the reference vectors, against loops, and at the ends of their scales."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regloss.errors import UsageError
from regloss.metrics.boundary import (
    BoundaryDensity,
    TrimapScores,
    boundary_density,
    boundary_distance,
    trimap,
)
from regloss.metrics.confusion import Confusion
from regloss.metrics.foreground import ForegroundScores
from regloss.metrics.scores import Scores
from regloss.metrics.surface import SurfaceDistances, hausdorff_distance, surface_distances

NAMES = ("background", "a", "b", "c")


def random_maps(seed, shape=(13, 17), classes=4, ignored=0.1):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, shape, generator=generator)
    prediction = torch.where(
        torch.rand(shape, generator=generator) < 0.6, label, torch.randint(classes, shape, generator=generator)
    )
    label[torch.rand(shape, generator=generator) < ignored] = 255
    return prediction, label


def scored(images, classes=NAMES, widths=()):
    scores = Scores(classes, widths)
    for prediction, label, group in images:
        scores.update(prediction, label, group)
    return scores.compute()


@pytest.fixture
def reference(oracles: Path):
    with np.load(oracles / "metrics.npz") as file:
        return {name: file[name] for name in file.files}


def test_reference_scores(reference):
    prediction, truth = torch.from_numpy(reference["pred"]), torch.from_numpy(reference["gt"])
    result = scored([(prediction, truth, "one")], widths=reference["trimap_width"].tolist())
    assert result["confusion"] == reference["confusion"].tolist()
    assert result["accuracy"] == pytest.approx(float(reference["accuracy"]), rel=1e-14)
    assert result["iou"]["c"] is None
    assert np.isnan(reference["iou"][3])
    np.testing.assert_allclose([result["iou"][name] for name in NAMES[:3]], reference["iou"][:3], rtol=1e-14)
    assert result["mean-iou"] == pytest.approx(float(reference["miou_present"]), rel=1e-14)
    assert result["dice"]["a"] == pytest.approx(float(reference["f_class1"]), rel=1e-14)
    assert result["boundary-density"] == pytest.approx(float(reference["RE_cc"]), rel=1e-14)
    of_truth = scored([(truth.where(truth < 255, 0), truth, "one")])
    assert result["true-boundary-density"] == of_truth["true-boundary-density"] == boundary_density(truth) > 0
    for index, width in enumerate(reference["trimap_width"]):
        band = result["trimap"][str(width)]
        assert band["pixels"] == reference["trimap_count"][index]
        assert band["accuracy"] == pytest.approx(reference["trimap_acc"][index], rel=1e-14)
        assert band["mean-iou"] == pytest.approx(reference["trimap_miou"][index], rel=1e-14)


def test_reference_trimaps(reference):
    truth = torch.from_numpy(reference["gt"])
    counts = [int(trimap(truth, width).sum()) for width in reference["trimap_width"].tolist()]
    assert counts == reference["trimap_count"].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_confusion_is_that_of_a_loop(seed):
    prediction, label = random_maps(seed)
    expected = np.zeros((4, 4), int)
    for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if truth != 255:
            expected[truth, guess] += 1
    result = scored([(prediction, label, "one")])
    assert result["confusion"] == expected.tolist()
    assert result["pixels"] == expected.sum()


@pytest.mark.parametrize("shape", [(7, 6), (4, 5, 3)])
def test_distance_is_that_of_a_loop(shape):
    _, label = random_maps(5, shape, classes=2, ignored=0.3)
    label[0] = 0  # flat parts, so that some distances are long
    label[:, :3] = 0
    values = label.numpy()
    pixels = list(itertools.product(*map(range, shape)))
    boundary = [
        p
        for p in pixels
        for q in pixels
        if sum(abs(a - b) for a, b in zip(p, q, strict=True)) == 1
        and values[p] != values[q]
        and 255 not in (values[p], values[q])
    ]
    expected = np.array([min(math.dist(p, q) for q in boundary) for p in pixels]).reshape(shape)
    assert expected.max() > 1.5
    np.testing.assert_allclose(boundary_distance(label).numpy(), expected, rtol=1e-14)


def test_perfect_prediction():
    _, label = random_maps(1)
    prediction = label.where(label != 255, 2)
    result = scored([(prediction, label, "one")], widths=[2])
    assert result["accuracy"] == result["mean-iou"] == result["mean-foreground-dice"] == 1.0
    assert set(result["iou"].values()) == set(result["dice"].values()) == {1.0}
    assert result["trimap"]["2"]["mean-iou"] == 1.0


def test_all_positive_prediction_scores_the_prevalence():
    label = torch.zeros(10, 10, dtype=torch.uint8)
    label[:3, :3] = 1
    result = scored([(torch.ones_like(label), label, "one")], classes=("background", "object"))
    assert result["accuracy"] == 0.09
    assert result["iou"] == {"background": 0.0, "object": 0.09}
    assert result["dice"]["object"] == pytest.approx(2 * 9 / (9 + 100))


def test_ignored_pixels_do_not_count():
    prediction, label = random_maps(2, ignored=0.5)
    other = torch.where(label == 255, (prediction + 1) % 4, prediction)
    blank = torch.where(label == 255, 255, prediction)
    results = [scored([(image, label, "one")], widths=[1, 3]) for image in (prediction, other, blank)]
    for result in results:
        assert result["pixels"] == int((label != 255).sum())
        result.pop("boundary-density")  # of the prediction itself, ignored or not
    assert results[0] == results[1] == results[2]


def test_groups():
    """A class in neither truth nor prediction of a group is left out of the group's mean and of the class's mean."""
    both = torch.tensor([[0, 1, 1, 2]])
    one = torch.tensor([[0, 1, 1, 1]])
    nothing = torch.zeros_like(one)
    images = [
        (torch.tensor([[0, 1, 0, 2]]), both, "p"),  # dice a = 2/3, b = 1
        (torch.tensor([[0, 0, 0, 1]]), one, "q"),  # first half of q: hits 1, sizes 1 + 3
        (torch.tensor([[0, 1, 1, 1]]), one, "q"),  # second half: hits 3, sizes 3 + 3; q has dice a = 8/10, no b
        (nothing, nothing, "r"),  # no foreground at all
        (nothing, torch.full_like(one, 255), "s"),  # no label at all
    ]
    result = scored(images, classes=NAMES[:3])
    assert result["images"] == 5
    assert list(result["groups"]) == ["p", "q", "r", "s"]
    assert result["groups"]["p"]["dice"] == pytest.approx({"background": 2 / 3, "a": 2 / 3, "b": 1.0})
    assert result["groups"]["p"]["mean-foreground-dice"] == pytest.approx(5 / 6)
    assert result["groups"]["q"]["dice"] == pytest.approx({"background": 2 / 3, "a": 0.8, "b": None})
    assert result["groups"]["q"]["mean-foreground-dice"] == pytest.approx(0.8)
    assert result["groups"]["r"] == {"dice": {"background": 1.0, "a": None, "b": None}, "mean-foreground-dice": None}
    assert result["groups"]["s"]["dice"] == {"background": None, "a": None, "b": None}
    assert result["mean-foreground-dice"] == pytest.approx((5 / 6 + 0.8) / 2)
    assert result["dice-per-group"] == pytest.approx({"background": 7 / 9, "a": (2 / 3 + 0.8) / 2, "b": 1.0})
    # Over the whole set class a has hits 1 + 1 + 3 and sizes 3 + 4 + 6, which is no mean over groups.
    assert result["dice"]["a"] == pytest.approx(10 / 13)


def test_a_false_alarm_counts_as_zero_in_its_group():
    truth, alarm = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[0, 0], [0, 1]])
    result = scored([(alarm, truth, "p")], classes=("background", "a"))
    assert result["groups"]["p"]["dice"]["a"] == 0.0
    assert result["mean-foreground-dice"] == 0.0


def test_undefined_is_none_and_json_holds_it():
    result = scored([(torch.zeros(3, 3, dtype=torch.int64), torch.full((3, 3), 255), "p")], widths=[2])
    assert result["accuracy"] is result["mean-iou"] is result["mean-foreground-dice"] is None
    assert result["trimap"] == {"2": {"accuracy": None, "mean-iou": None, "pixels": 0}}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_processes_add_up():
    images = [(*random_maps(seed), f"patient-{seed % 3}") for seed in range(7)]
    whole = scored(images, widths=[1, 4])
    parts = [Scores(NAMES, [1, 4]) for _ in range(3)]
    for index, image in enumerate(images):
        parts[index % 2].update(*image)  # the third has seen nothing
    total = Scores(NAMES, [1, 4])
    for part in parts:
        total.merge_state(part)
    result = total.compute()
    for name in ("boundary-density", "true-boundary-density"):
        assert result.pop(name) == pytest.approx(whole.pop(name), rel=1e-14)
    assert result == whole


def test_updates_keep_their_arguments():
    prediction, label = random_maps(3)
    copies = prediction.clone(), label.clone()
    scored([(prediction, label, "p")], widths=[2])
    assert torch.equal(prediction, copies[0])
    assert torch.equal(label, copies[1])


def test_a_clone_is_a_copy():
    scores = Scores(NAMES)
    scores.update(*random_maps(0), "p")
    before, copy = scores.compute(), scores.clone()
    scores.update(*random_maps(1), "p")
    assert copy.compute() == before
    assert before["images"] == 1
    assert scores.compute()["images"] == 2


def test_bytes_do_not_overflow():
    """A class index times the number of classes exceeds a byte."""
    classes = [f"class {index}" for index in range(100)]
    label = torch.arange(100, dtype=torch.uint8).reshape(10, 10)
    assert scored([(label, label, "p")], classes=classes)["mean-iou"] == 1.0


def test_volumes():
    prediction, label = random_maps(4, (5, 7, 9))
    result = scored([(prediction, label, "p")], widths=[2])
    assert result["pixels"] == int((label != 255).sum())
    slices = [boundary_density(part) for part in prediction]
    assert result["boundary-density"] == pytest.approx(np.mean(slices), rel=1e-14)
    assert result["true-boundary-density"] == boundary_density(label) != result["boundary-density"]


@pytest.mark.parametrize("radius", [20, 40.5, 60])
def test_boundary_density_is_a_disc_s_perimeter(radius):
    y, x = torch.meshgrid(torch.arange(160) - 80.2, torch.arange(160) - 79.7, indexing="ij")
    disc = (y**2 + x**2 <= radius**2).long()
    assert boundary_density(disc) == pytest.approx(100 * 2 * math.pi * radius / 160**2, rel=0.01)


def test_boundary_density_leaves_out_ignored_pixels():
    halves = torch.tensor([[0, 0, 1, 1]] * 4)
    padded = torch.full((8, 8), 255)
    padded[2:6, 2:6] = halves
    assert boundary_density(padded) == boundary_density(halves) > 0
    assert boundary_density(torch.full((3, 3), 255)) == 0
    assert boundary_density(torch.ones(3, 3, dtype=torch.int64)) == 0


def test_flat_labels_have_no_trimap():
    label = torch.ones(5, 5, dtype=torch.int64)
    assert not trimap(label, 1e6).any()
    label[2] = 255  # a change to ignored is no boundary
    assert not trimap(label, 1e6).any()


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (torch.zeros(3, 3).long(), torch.zeros(3, 4).long(), r"\(3, 3\) and \(3, 4\)"),
        (torch.zeros(2, 2, 3, 3).long(), torch.zeros(2, 2, 3, 3).long(), "no batch axis"),
        (torch.zeros(0, 3).long(), torch.zeros(0, 3).long(), "2 or 3 axes"),
        (torch.zeros(3, 3), torch.zeros(3, 3).long(), "argmax"),
        (torch.zeros(3, 3).long(), torch.zeros(3, 3).bool(), "integer"),
        (torch.full((3, 3), 4), torch.zeros(3, 3).long(), r"prediction must hold the classes 0 to 3.*\[4\]"),
        (torch.zeros(3, 3).long(), torch.full((3, 3), -1), r"label must hold the classes 0 to 3.*\[-1\]"),
        (torch.full((3, 3), 255), torch.zeros(3, 3).long(), "255 .no class. at 9 pixels"),
    ],
)
def test_bad_images(prediction, label, message):
    scores = Scores(NAMES, [2])
    with pytest.raises(UsageError, match=message):
        scores.update(prediction, label, "p")
    with pytest.raises(UsageError, match="no image"):
        scores.compute()


@pytest.mark.parametrize("classes", [("one",), ("a", "a"), "ab", ()])
def test_bad_classes(classes):
    with pytest.raises(UsageError, match="different class names"):
        Scores(classes)


@pytest.mark.parametrize("widths", [(0,), (2, 2), (-1,), (math.nan,)])
def test_bad_widths(widths):
    with pytest.raises(UsageError, match="positive"):
        Scores(NAMES, widths)


def test_bad_functions():
    with pytest.raises(UsageError, match="width"):
        trimap(torch.zeros(3, 3).long(), 0)
    with pytest.raises(UsageError, match="2 or 3 axes"):
        trimap(torch.zeros(3).long(), 1)
    with pytest.raises(UsageError, match="2 or 3 axes"):
        boundary_density(torch.zeros(1, 2, 3, 3).long())
    label, scores = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]), torch.rand(2, 4)
    for call in (
        lambda: boundary_density(scores),
        lambda: trimap(scores, 2),
        lambda: hausdorff_distance(scores, label, 1),
        lambda: hausdorff_distance(label, scores, 1),
    ):
        with pytest.raises(UsageError, match=r"must hold integer class indices; got torch\.float32\. Of"):
            call()
    with pytest.raises(UsageError, match="same shape"):  # which numpy would broadcast
        surface_distances(label[:1], label, 1)
    with pytest.raises(UsageError, match="percentile must lie between 0 and 100; got nan"):
        hausdorff_distance(label, label, 1, math.nan)


@pytest.mark.parametrize("other", [Scores(NAMES[:3], [2]), Scores(NAMES, [3]), Scores(NAMES)])
def test_only_the_same_scores_merge(other):
    with pytest.raises(UsageError, match="Only scores of the same"):
        Scores(NAMES, [2]).merge_state(other)


def boundary_places(mask):
    """Pixels of the mask with a neighbour along an axis that is not in it; outside of the image nothing is."""
    inside = {tuple(place) for place in mask.nonzero().tolist()}
    steps = [
        tuple(sign * (axis == other) for other in range(mask.ndim)) for axis in range(mask.ndim) for sign in (1, -1)
    ]
    return [
        p for p in inside if any(tuple(a + b for a, b in zip(p, step, strict=True)) not in inside for step in steps)
    ]


@pytest.mark.parametrize("shape", [(13, 17), (5, 6, 7)])
@pytest.mark.parametrize("percentile", [95, 100])
def test_hausdorff_distance_is_that_of_a_search(shape, percentile):
    prediction, label = random_maps(1, shape)
    for k in range(4):
        first, second = (boundary_places((of == k) & (label != 255)) for of in (prediction, label))
        apart = torch.cdist(torch.tensor(first).double(), torch.tensor(second).double()).numpy()
        expected = max(np.percentile(apart.min(1), percentile), np.percentile(apart.min(0), percentile))
        assert hausdorff_distance(prediction, label, k, percentile) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((13, 17), (2.0, 0.5)), ((5, 6, 7), (3.0, 0.5, 0.75)), ((5, 6, 7), None)]
)
def test_surfaces_are_as_far_off_as_a_search_finds(shape, spacing):
    prediction, label = random_maps(1, shape)
    scores = SurfaceDistances(NAMES, tolerance=0.8)
    scores.update(prediction, label, "one", spacing)
    found = scores.compute()
    for k, name in enumerate(NAMES):
        first, second = (boundary_places((of == k) & (label != 255)) for of in (prediction, label))
        steps = torch.tensor(spacing or (1.0,) * len(shape), dtype=torch.float64)
        apart = torch.cdist(torch.tensor(first).double() * steps, torch.tensor(second).double() * steps).numpy()
        both = np.concatenate([apart.min(1), apart.min(0)])
        assert found["surface-distance"][name] == pytest.approx(both.mean(), abs=1e-7)
        assert found["surface-dice"][name] == pytest.approx((both <= 0.8).mean(), abs=1e-12)
        hd95 = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
        assert found["hd95"][name] == pytest.approx(hd95, abs=1e-7)
        assert hausdorff_distance(prediction, label, k, 95, spacing) == pytest.approx(hd95, abs=1e-7)
    assert found["distance-unit"] == ("pixels" if spacing is None else "mm")
    assert found["surface-tolerance"] == 0.8


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.5, 0.5), (10.0, 1.5, 1.5)])
def test_balls_of_other_radii_are_as_far_off_on_any_grid(spacing):
    """22 mm and 20 mm about one centre: 2 mm apart, to half a voxel's diagonal."""
    axes = [(torch.arange(round(56 / step)) - round(28 / step)) * step for step in spacing]
    squares = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij"))
    masks = (squares <= 22**2).long(), (squares <= 20**2).long()
    half = math.dist(spacing, (0, 0, 0)) / 2
    assert np.concatenate(surface_distances(*masks, 1, spacing)).mean() == pytest.approx(2, abs=min(half, 0.8))
    assert hausdorff_distance(*masks, 1, 95, spacing) <= 2 + 2 * half


def test_a_tolerance_must_be_positive():
    for tolerance in (0.0, -1.0, math.inf):
        with pytest.raises(UsageError, match="The tolerance of the surface Dice must be positive"):
            SurfaceDistances(NAMES, tolerance)


def test_units_that_are_mixed_are_told():
    label = torch.zeros(3, 6, dtype=torch.int64)
    label[:, 2:4] = 1
    scores = SurfaceDistances(NAMES)
    scores.update(label, label, "one", (1.0, 2.0))
    scores.update(label, label, "two")
    assert scores.compute()["distance-unit"] == "mm and pixels"


def test_hausdorff_scores():
    """Means over images with the class in both, then groups; the others are counted."""
    label = torch.zeros(3, 6, dtype=torch.int64)
    label[:, 2:4] = 1
    moved, none = label.roll(1, 1), torch.zeros_like(label)
    scores = Scores(("background", "a", "b"), hausdorff=True)
    halves = [Scores(("background", "a", "b"), hausdorff=True) for _ in range(2)]
    images = [
        (label, label, "one"),
        (moved, label, "one"),
        (moved, label, "two"),
        (none, label, "two"),
        (none, none, "x"),
    ]
    for number, image in enumerate(images):
        scores.update(*image)
        halves[number % 2].update(*image)
    found = scores.compute()
    assert found["hd95"]["a"] == pytest.approx((0.5 + 1) / 2)
    assert found["hd95"]["b"] is None
    assert found["mean-foreground-hd95"] == pytest.approx(0.75)
    assert found["unmatched"] == pytest.approx(1 / 4)
    assert hausdorff_distance(none, label, 1) == math.inf
    assert math.isnan(hausdorff_distance(none, none, 1))
    halves[0].merge_state(halves[1])
    assert halves[0].compute() == found
    assert "hd95" not in scored(images, ("background", "a", "b"))


def leaves(result, path=""):
    """The numbers of nested scores by their place; what is undefined is -1."""
    if isinstance(result, dict | list):
        items = result.items() if isinstance(result, dict) else enumerate(result)
        return {name: number for key, part in items for name, number in leaves(part, f"{path}/{key}").items()}
    return {} if isinstance(result, str) else {path: -1 if result is None else result}


def exchange(metrics):
    """Compute each metric as one process of several would: what they send is recorded, then replayed to all."""
    sent = []
    for metric in metrics:
        tensors = []

        def record(tensor, group=None, tensors=tensors):
            tensors.append(tensor)
            return [tensor]

        metric.sync(dist_sync_fn=record, distributed_available=lambda: True)
        metric.unsync()
        sent.append(tensors)
    found = []
    for metric in metrics:
        calls = zip(*sent, strict=True)
        metric.dist_sync_fn = lambda tensor, group=None, calls=calls: list(next(calls))
        metric.distributed_available_fn = lambda: True
        metric._computed = None
        found.append(metric.compute())
        metric._computed = None
        metric.distributed_available_fn = lambda: False
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda: Confusion(NAMES),
        lambda: SurfaceDistances(NAMES),
        lambda: TrimapScores(NAMES, [1, 4]),
        lambda: BoundaryDensity(NAMES),
        lambda: ForegroundScores(4),
    ],
)
def test_declared_states_are_all_that_processes_exchange(make):
    """Three processes, the third without images; each computes the scores of all, and goes on from its own."""
    images = [(*random_maps(seed), f"Bär {seed % 3}") for seed in range(7)]
    if isinstance(make(), ForegroundScores):
        images = images[:3]
    whole, parts = make(), [make() for _ in range(3)]
    for index, image in enumerate(images):
        whole.update(*image)
        parts[index % 2].update(*image)
    expected = whole.compute()
    before = [part.compute() for part in parts[:2]]
    for found in exchange(parts):
        assert leaves(found) == pytest.approx(leaves(expected), rel=1e-12)
    assert [part.compute() for part in parts[:2]] == before
    parts[0].update(*random_maps(9), "another")
    assert parts[0].compute() != before[0]
    parts[0].reset()
    parts[0].update(*random_maps(9), "another")
    alone = make()
    alone.update(*random_maps(9), "another")
    assert parts[0].compute() == alone.compute()


def test_calling_scores_one_batch_and_keeps_the_sum():
    metric, whole = Confusion(NAMES), Confusion(NAMES)
    for seed in range(4):
        image = (*random_maps(seed), f"p{seed % 2}")
        alone = Confusion(NAMES)
        alone.update(*image)
        whole.update(*image)
        assert metric(*image) == alone.compute()
    assert metric.compute() == whole.compute()
