"""The inherited checks, and what is special to this data set."""

import math

import numpy as np
import pytest

import regloss
from regloss.testing import DatasetConformance
from regloss_cli.templates.dataset.component import MyComponent


class TestMyComponent(DatasetConformance):
    subsets = ("train", "val", "test")

    def make(self) -> MyComponent:
        return MyComponent(count=4, size=32)


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("dataset", "my-component") is MyComponent


def test_scribbles_agree_with_labels_and_seed_both_classes() -> None:
    dataset = MyComponent(count=20, size=16)
    for sample in map(dataset.load, dataset.ids("train")):
        assert sample.label is not None
        assert sample.scribble is not None
        given = sample.scribble != 255
        assert np.array_equal(sample.scribble[given], sample.label[given])
        assert set(np.unique(sample.scribble[given])) == {0, 1}
        assert given.mean() < 0.15


def test_without_noise_discs_are_bright() -> None:
    sample = MyComponent(noise=0.0).load("val-3")
    assert sample.label is not None
    np.testing.assert_allclose(sample.image[0], np.where(sample.label == 1, 0.7, 0.3), rtol=1e-6)


@pytest.mark.parametrize("settings", [{"count": 0}, {"size": 8}, {"noise": -0.1}, {"noise": math.nan}])
def test_invalid_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(regloss.UsageError, match=next(iter(settings))):
        regloss.create("dataset", "my-component", **settings)
