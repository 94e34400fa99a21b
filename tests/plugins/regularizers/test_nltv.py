"""Nonlocal total variation: conformance, definition by loops, exact neighbours, weights, cache, given graphs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regloss import PDHG, Graph, NonlocalTV, Saddle, UsageError, solve
from regloss.testing import RegularizerConformance
from regloss_plugins.kernels.neighbors import nearest, nearest_in_window
from regloss_plugins.regularizers import nltv
from regloss_plugins.regularizers.nltv import NonlocalTerm


class TestBilateral(RegularizerConformance):
    spatial = (1, 2, 3)
    nonnegative = True

    def make(self) -> NonlocalTV:
        return NonlocalTV(weight=1.3, neighbors=4, sigma_xy=3.0, sigma_rgb=0.3)


class TestWindowAndPatches(RegularizerConformance):
    nonnegative = True

    def make(self) -> NonlocalTV:
        return NonlocalTV(weight=0.7, neighbors=3, weights="zmp", window=2, patch=1, sigma_rgb=0.3)


class TestCosine(RegularizerConformance):
    spatial = (2,)
    nonnegative = True

    def make(self) -> NonlocalTV:
        return NonlocalTV(weight=0.7, neighbors=3, weights="cosine", sigma_rgb=0.3)


def image_of(*size: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(image: Tensor, settings: NonlocalTV) -> dict[tuple[int, int], float]:
    """The definition for pixels without patches: all pairs, sorted."""
    height, width = image.shape[1:]
    places = [(y, x) for y in range(height) for x in range(width)]
    colours = [image[:, y, x].tolist() for y, x in places]

    def squared(i: int, j: int) -> float:
        apart = math.dist(places[i], places[j]) / settings.sigma_xy
        return (math.dist(colours[i], colours[j]) / settings.sigma_rgb) ** 2 + apart**2

    chosen = {}
    for i in range(len(places)):
        others = [j for j in range(len(places)) if j != i]
        if settings.window is not None:
            near = settings.window
            others = [j for j in others if max(abs(a - b) for a, b in zip(places[i], places[j], strict=True)) <= near]
        chosen[i] = sorted(others, key=lambda j: squared(i, j))[: settings.neighbors]
    edges: dict[tuple[int, int], float] = {}
    for i, others in chosen.items():
        for j in others:
            if settings.weights == "zmp":
                scale = math.sqrt(squared(i, chosen[i][-1]) * squared(j, chosen[j][-1]))
                weight = math.exp(-squared(i, j) / scale)
            elif settings.weights == "cosine":
                product = sum(a * b for a, b in zip(colours[i], colours[j], strict=True))
                weight = max(product, 0.0) / (math.hypot(*colours[i]) * math.hypot(*colours[j]))
            else:
                weight = math.exp(-squared(i, j) / 2)
            if settings.weights == "bilateral":
                weight += settings.near * math.exp(
                    -(math.dist(places[i], places[j]) ** 2) / (2 * settings.sigma_near**2)
                )
            key = (min(i, j), max(i, j))
            edges[key] = edges.get(key, 0.0) + weight
    return edges


@pytest.mark.parametrize(
    "settings",
    [
        NonlocalTV(neighbors=5),
        NonlocalTV(neighbors=5, window=2),
        NonlocalTV(neighbors=4, sigma_xy=math.inf, near=0.0),
        NonlocalTV(neighbors=3, weights="rbf", sigma_rgb=0.2),
        NonlocalTV(neighbors=3, weights="zmp", window=3),
    ],
    ids=str,
)
def test_graph_follows_the_definition(settings: NonlocalTV) -> None:
    image = image_of(7, 6)
    graph = settings.bind(image).form(Graph)
    expected = by_loops(image[0], settings)
    assert {tuple(edge) for edge in graph.edges.tolist()} == {pair for pair, weight in expected.items() if weight > 0}
    for edge, weight in zip(graph.edges.tolist(), graph.weights[0].tolist(), strict=True):
        assert weight == pytest.approx(2 * expected[tuple(edge)], rel=1e-12)  # both classes of a cut edge jump


def test_cosine_weights_are_cosines_and_never_negative() -> None:
    settings = NonlocalTV(neighbors=3, weights="cosine", sigma_xy=math.inf)
    image = image_of(5, 6)
    image[:, :, 2, 3] = 0  # black has no direction: weight 0
    term = settings.bind(image)
    colours = image[0].flatten(1).T
    for (i, j), weight in zip(term.edges[0].tolist(), term.weights[0].tolist(), strict=True):
        lengths = colours[i].norm() * colours[j].norm()
        cosine = float(colours[i] @ colours[j] / lengths) if lengths > 0 else 0.0
        assert weight == pytest.approx(cosine, abs=1e-12) or weight == pytest.approx(2 * cosine, abs=1e-12)
        assert weight >= 0


@pytest.mark.parametrize("window", [None, 4])
def test_neighbours_are_exact_on_a_natural_image(window: int | None) -> None:
    """Against all distances, on a crop."""
    skimage_data = pytest.importorskip("skimage.data")
    image = skimage_data.astronaut()[100:130, 200:232] / 255.0
    places = np.argwhere(np.ones(image.shape[:2], dtype=bool))
    features = np.concatenate([image.reshape(-1, 3) / (13 / 255), places / 40.0], axis=1)
    squared = np.square(features[:, None] - features[None]).sum(2)
    np.fill_diagonal(squared, np.inf)
    if window is not None:
        squared[np.abs(places[:, None] - places[None]).max(2) > window] = np.inf
        indices, distances = nearest_in_window(features, places, image.shape[:2], window, 20)
    else:
        indices, distances = nearest(features, 20)
    np.testing.assert_allclose(distances, np.sort(squared, axis=1)[:, :20], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(squared, indices, 1), distances, rtol=1e-9, atol=1e-12)
    assert all(len(set(row)) == 20 for row in indices.tolist())


def test_window_at_a_corner_may_hold_too_few() -> None:
    features, places = np.arange(3.0)[:, None], np.arange(3)[:, None]
    indices, distances = nearest_in_window(features, places, (3,), 1, 2)
    assert indices.tolist() == [[1, -1], [0, 2], [1, -1]]
    assert distances.tolist() == [[1.0, math.inf], [1.0, 1.0], [1.0, math.inf]]
    term = NonlocalTV(neighbors=2, window=1).bind(torch.rand(1, 1, 3))
    assert term.form(Graph).edges.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("window", [None, 1])
def test_tensors_find_the_same_neighbours(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device without a search of its own, a few rows of the distances at a time."""
    settings, image = NonlocalTV(neighbors=5, window=window), image_of(6, 5, batch=2)
    region = torch.ones(2, 6, 5, dtype=torch.bool)
    region[1, :2] = False
    expected = settings.bind(image, region)
    monkeypatch.setattr(nltv, "find", lambda task, device: None)
    monkeypatch.setattr(nltv, "_ENTRIES", 100)
    found = settings.bind(image, region)
    assert torch.equal(found.edges, expected.edges)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-12, atol=1e-12)


def test_coinciding_points_are_not_their_own_neighbours() -> None:
    indices, distances = nearest(np.zeros((9, 2)), 4)
    assert (indices != np.arange(9)[:, None]).all()
    assert (distances == 0).all()
    assert all(len(set(row)) == 4 for row in indices.tolist())


@pytest.mark.parametrize("weights", ["bilateral", "rbf", "zmp", "cosine"])
def test_constant_and_black_images_are_limits_not_nan(weights: Any) -> None:
    for value in (0.0, 0.5):
        term = NonlocalTV(neighbors=4, weights=weights, sigma_xy=math.inf, near=0.0).bind(
            torch.full((1, 3, 5, 5), value)
        )
        energy = term.energy(torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(1))
        assert bool(energy.isfinite())
        if weights != "cosine":
            assert term.weights.unique().tolist() in ([1.0], [1.0, 2.0], [2.0])
        elif value == 0:
            assert float(term.weights.abs().max()) == 0


def test_all_weights_zero_leaves_the_softmax_alone() -> None:
    term = NonlocalTV(neighbors=2, weights="cosine").bind(torch.zeros(1, 1, 4, 4))
    unary = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solution = solve(term, unary, PDHG(), entropy=0.5)
    torch.testing.assert_close(solution.probabilities, (-unary / 0.5).softmax(1))
    assert solution.steps.tolist() == [0]


def test_cache_notices_changed_settings_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(6, 5)
    cached = NonlocalTV(neighbors=3, cache=str(tmp_path / "graphs"))
    first = cached.bind(image)
    assert len(list((tmp_path / "graphs").iterdir())) == 1
    plain = dataclasses.replace(cached, cache=None).bind(image)
    computed = []
    original = NonlocalTV._compute
    monkeypatch.setattr(NonlocalTV, "_compute", lambda self, *given: computed.append(1) or original(self, *given))
    again = cached.bind(image)
    assert not computed
    for term in (again, plain):
        assert torch.equal(term.edges, first.edges)
        assert torch.equal(term.weights, first.weights)
    changes = [
        {"neighbors": 4},
        {"weights": "rbf"},
        {"window": 2},
        {"sigma_xy": 7.0},
        {"sigma_rgb": 0.2},
        {"near": 0.1},
        {"sigma_near": 1.0},
        {"patch": 1},
    ]
    for number, change in enumerate(changes, start=1):
        dataclasses.replace(cached, **change).bind(image)
        assert len(computed) == number, f"{change} was answered from the cache"
    cached.bind(1 - image)
    region = torch.ones(1, 6, 5, dtype=torch.bool)
    region[0, 0, 0] = False
    cached.bind(image, region)
    assert len(computed) == len(changes) + 2
    dataclasses.replace(cached, weight=5.0).bind(image)  # the graph does not depend on the weight
    assert len(computed) == len(changes) + 2
    # Every setting but weight and cache is part of the key; the unit is by the steps that it makes.
    names = {field.name for field in dataclasses.fields(NonlocalTV)} - {"weight", "cache", "unit"}
    assert names == set(cached._key((1.0, 1.0))) - {"version"}
    assert names | {"steps"} == set(cached._key((1.0, 2.0))) - {"version"}


def test_damaged_cache_is_named(tmp_path: Path) -> None:
    cached = NonlocalTV(neighbors=3, cache=str(tmp_path))
    cached.bind(image_of(6, 5))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=file.name):
        cached.bind(image_of(6, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbors": 0}, "neighbors"),
        ({"weights": "cos"}, "bilateral"),
        ({"window": 0}, "window"),
        ({"sigma_rgb": 13}, "255"),
        ({"sigma_rgb": math.nan}, "255"),
        ({"sigma_xy": 0.0}, "sigma_xy and sigma_near must be positive"),
        ({"near": -1.0}, "near"),
        ({"patch": -1}, "patch"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NonlocalTV(**settings)


def test_too_many_neighbours_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 11"):
        NonlocalTV(neighbors=12).bind(image_of(3, 4))
    region = torch.zeros(1, 3, 4, dtype=torch.bool)
    region[0, :2] = True
    with pytest.raises(UsageError, match="at most 7"):
        NonlocalTV(neighbors=8).bind(image_of(3, 4), region)


def test_given_graphs_are_checked() -> None:
    regularizer, edges = NonlocalTV(), torch.tensor([[[0, 1], [1, 2]]])
    assert NonlocalTerm(regularizer, edges, torch.ones(1, 2), (1, 3)).form(Saddle).norm >= 3**0.5
    for bad in (torch.ones(2, 2), -torch.ones(1, 2), torch.full((1, 2), math.nan)):
        with pytest.raises(UsageError):
            NonlocalTerm(regularizer, edges, bad, (1, 3))
    with pytest.raises(UsageError, match="0 to 1"):
        NonlocalTerm(regularizer, edges, torch.ones(1, 2), (1, 2))


def test_operator_is_that_of_the_reference(oracles: Path) -> None:
    """Gradient, its adjoint, weights and norm of the directed list."""
    reference = np.load(oracles / "nltv.npz")
    index = torch.from_numpy(reference["idx"])
    edges = torch.stack([torch.arange(36).repeat_interleave(4), index.flatten()], dim=1).unsqueeze(0)
    weights = torch.from_numpy(reference["wt"]).reshape(1, -1)
    operator = NonlocalTerm(NonlocalTV(), edges, weights, (1, 6, 6)).form(Saddle).parts[0].operator
    values = torch.from_numpy(reference["u"]).T.reshape(1, 3, 6, 6)
    expected = torch.from_numpy(reference["grad_u"]).reshape(144, 3).T.unsqueeze(0)
    torch.testing.assert_close(operator.apply(values), expected, rtol=1e-12, atol=1e-14)
    dual = torch.from_numpy(reference["q"]).reshape(144, 3).T.unsqueeze(0)
    adjoint = -torch.from_numpy(reference["div_q"]).T.reshape(1, 3, 6, 6)
    torch.testing.assert_close(operator.adjoint(dual), adjoint, rtol=1e-12, atol=1e-14)
    assert operator.norm**2 >= float(reference["norm2"])
    # Its weights are those of Eq. (11) with the default bandwidths, on its own choice of neighbours.
    image = torch.from_numpy(reference["img"]).reshape(36, 3)
    colour = (image[edges[0, :, 0]] - image[edges[0, :, 1]]).square().sum(1)
    place = torch.stack([torch.arange(36) // 6, torch.arange(36) % 6], dim=1).double()
    apart = (place[edges[0, :, 0]] - place[edges[0, :, 1]]).square().sum(1)
    settings = NonlocalTV()
    bilateral = (-apart / (2 * settings.sigma_xy**2) - colour / (2 * settings.sigma_rgb**2)).exp()
    bilateral += settings.near * (-apart / (2 * settings.sigma_near**2)).exp()
    torch.testing.assert_close(weights[0], bilateral, rtol=1e-12, atol=0)
