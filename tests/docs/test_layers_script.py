"""The layers experiment: its layers are valid configurations, and its checks of shapes find what they should."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from experiment_scripts import script_module
from numpy.typing import NDArray

from regloss.io.toml import toml_value
from regloss.training.config import build_layer, read


@pytest.fixture(scope="module")
def layers() -> Iterator[ModuleType]:
    """docs/experiments/layers.py as a module; dataclasses look it up by its name."""
    with script_module("layers") as module:
        yield module


def disc(radius: float, center: tuple[int, int] = (20, 24)) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:40, :48]
    found: NDArray[np.bool_] = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2
    return found


def test_every_layer_is_a_valid_configuration(layers: ModuleType) -> None:
    seen = 0
    for name, experiment in layers.EXPERIMENTS.items():
        tables = [*experiment.trained(0).values(), *(layer for _, layer in experiment.swapped.values())]
        for table in tables:
            if table is not None:
                config = read(layers.configuration(name), [f"layer={layers.toml(table)}"])
                assert build_layer(config.layer, 2) is not None
                seen += 1
        for settings in experiment.network.values():
            assert read(layers.configuration(name), settings) != read(layers.configuration(name))
    assert seen >= 14


def test_what_is_swapped_was_trained(layers: ModuleType) -> None:
    for experiment in layers.EXPERIMENTS.values():
        for trained, _ in experiment.swapped.values():
            assert all(trained in experiment.trained(seed) for seed in layers.SEEDS)


def test_pictures_tell_the_volume_to_the_method_that_is_told_it(
    layers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "labels_of", lambda model, image, told=None: (model, told))
    found = layers.predictions_of({"std": "one", layers.TOLD: "other"}, "image", "label")
    assert found == {"std": ("one", None), layers.TOLD: ("other", "label")}


@pytest.mark.parametrize("value", [{"a": [1, 2.5, True], "b-c": {"d": 'quote " and \\ backslash'}}, [[]], "x"])
def test_tables_survive_the_way_through_toml(layers: ModuleType, value: Any) -> None:
    assert toml_value(layers.toml(value)) == value


def test_convex_shapes_have_no_dents(layers: ModuleType) -> None:
    half = np.zeros((40, 48), dtype=bool)
    half[:, :20] = True  # beyond the border is background
    for region in (disc(12), half, np.zeros((40, 48), dtype=bool)):
        assert layers.dents(region) == 0


def test_dents_by_counting_pixels(layers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "RADII", (1.5, 3, 5))
    region = np.zeros((20, 24), dtype=bool)
    region[2:18, 2:8] = region[12:18, 2:20] = True  # an L
    region[14, 12] = False  # with a hole
    pixels = set(map(tuple, np.argwhere(region)))
    expected = 0
    for row, column in np.ndindex(region.shape):
        found = False
        for radius in (1.5, 3, 5):
            shifts = [(y, x) for y in range(-5, 6) for x in range(-5, 6) if y * y + x * x <= radius**2]
            inside = sum((row + y, column + x) in pixels for y, x in shifts)
            found |= 2 * inside > len(shifts)
        expected += found and (row, column) not in pixels
    assert expected > 1
    assert layers.dents(region) == expected / len(pixels)


def test_star_shapes(layers: ModuleType) -> None:
    cross = np.zeros((40, 48), dtype=bool)
    cross[18:23, 4:44] = cross[4:36, 22:27] = True
    assert layers.star_shaped(disc(12))
    assert layers.star_shaped(cross)
    assert layers.star_shaped(np.zeros((40, 48), dtype=bool))
    assert not layers.star_shaped(disc(6, (10, 10)) | disc(6, (30, 38)))
    assert not layers.star_shaped(disc(15) & ~disc(8))


def test_nerve_shapes_of_nested_discs(layers: ModuleType) -> None:
    truth = disc(14).astype(np.int64) + disc(6)
    found = layers.nerve_shapes(truth, truth)
    assert found["disc"] == found["cup"] == 1
    assert not any(found[key] for key in layers.COUNTS if key in found)
    assert {key for key in layers.COUNTS if key != "not-star"} <= set(found)
    outward = np.where(disc(6, (20, 36)), 2, disc(14).astype(np.int64))
    touching = layers.nerve_shapes(outward, truth)
    assert touching["cups-at-edge"]
    assert touching["disc-dents"] > 0
    assert touching["cup"] == 2 * (disc(6) & disc(6, (20, 36))).sum() / (2 * disc(6).sum())
    apart = np.where(disc(2, (3, 3)), 1, truth)
    assert layers.nerve_shapes(apart, truth)["split-discs"]


def test_lesion_scores(layers: ModuleType) -> None:
    truth, shifted = disc(10).astype(np.int64), disc(10, (20, 28)).astype(np.int64)
    found = layers.lesion_shapes(shifted, truth)
    both, either = ((truth == 1) & (shifted == 1)).sum(), ((truth == 1) | (shifted == 1)).sum()
    assert found["jaccard"] == pytest.approx(both / either, rel=1e-12)
    assert not found["not-star"]
