"""The noise experiment: its pictures, its noise, its scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from experiment_scripts import script_module


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    pytest.importorskip("skimage")
    with script_module("chan_vese_noise") as module:
        yield module


def test_five_pictures_with_two_regions_each(script: ModuleType) -> None:
    found = script.pictures()
    assert len(found) == 5
    for picture, mask in found.values():
        assert picture.shape == mask.shape
        assert max(picture.shape) == script.LONGEST
        assert 0 <= picture.min() < picture.max() <= 1
        assert 0.01 < mask.mean() < 0.6
        assert picture[mask].mean() > picture[~mask].mean() + 0.1  # the object is the brighter region


def test_noise_is_repeatable_and_as_strong_as_said(script: ModuleType) -> None:
    flat = np.full((400, 500), 0.5)
    first, second = (script.noisy(flat, 100, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0 == first.min() < first.max() == 1
    # 0.1 and 99.9 per cent quantiles of a normal distribution lie 3.09 deviations from its middle.
    assert first.std() == pytest.approx(1 / (2 * 3.09), rel=0.02)


def test_scores_of_known_masks(script: ModuleType) -> None:
    truth = np.array([[True, True, False, False]])
    assert script.scores(truth, truth) == (1.0, 1.0)
    assert script.scores(~truth, truth) == (0.0, 0.0)
    assert script.scores(np.array([[True, False, True, False]]), truth) == (0.5, 0.5)


def test_the_table_has_a_row_a_method(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.TABLE = tmp_path / "rows.csv"
    script.METHODS = {"start": script.METHODS["start"], "chan-vese 0.03": script.METHODS["chan-vese 0.03"]}
    script.run([100])
    script.run([100])  # nothing is left to do
    rows = script.rows()
    assert len(rows) == 10
    capsys.readouterr()
    script.table()
    assert len(capsys.readouterr().out.splitlines()) == 4
    means = {m: np.mean([float(r["f-measure"]) for r in rows if r["method"] == m]) for m in script.METHODS}
    assert min(means.values()) > 0.5
