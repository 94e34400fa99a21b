"""nnU-Net's raw layout: channels, labels, the ignore label, and a dataset.json that disagrees with the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volume_files import SIZE, SPACING, save

from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.testing import DatasetConformance
from regloss_plugins.datasets.nnunet import NnUNetDataset

pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")

CARD: dict[str, Any] = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "gland": 1, "ignore": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def write(root: Path, **changes: Any) -> Path:
    """Two cases of two channels with labels where some is ignored, and one to test on."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / folder).mkdir(parents=True)
    for number, part in ((0, "Tr"), (1, "Tr"), (2, "Ts")):
        for channel in range(2):
            values = rng.integers(0, 1000, SIZE).astype(np.int16)
            save(root / f"images{part}" / f"case{number}_000{channel}.nii.gz", values)
        label = rng.integers(0, 2, SIZE).astype(np.uint8)
        label[:, 5:] = 2
        label[3:] = 2
        save(root / f"labels{part}" / f"case{number}.nii.gz", label)
    (root / "dataset.json").write_text(json.dumps({**CARD, **changes}))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write(tmp_path_factory.mktemp("data") / "Dataset001")


class TestNnUNet(DatasetConformance):
    subsets = ("train", "test")

    @pytest.fixture(autouse=True)
    def _root(self, root: Path) -> None:
        type(self).root = root

    def make(self) -> NnUNetDataset:
        return NnUNetDataset(self.root)


class TestNnUNetSlices(TestNnUNet):
    subsets = ("train-scribbled", "test")

    def make(self) -> NnUNetDataset:
        return NnUNetDataset(self.root, dims=2)


def test_what_is_read(root: Path) -> None:
    data = NnUNetDataset(root)
    assert (data.channels, data.classes) == (2, ("background", "gland"))
    assert (data.ids("train"), data.ids("test")) == (("case0", "case1"), ("case2",))
    sample = data.load("case1")
    assert sample.image.shape == (2, *SIZE)
    assert (sample.group, sample.spacing) == ("case1", SPACING)
    assert sample.label is not None
    assert sample.scribble is not None
    assert set(np.unique(sample.label)) == {0, 1, IGNORE}
    np.testing.assert_array_equal(sample.label, sample.scribble)
    assert (sample.label[:, 5:] == IGNORE).all()
    data.check("train", need=("scribble", "label"))
    drawn = tuple(f"case{case}-00{number}" for case in (0, 1) for number in range(3))
    assert NnUNetDataset(root, dims=2).ids("train-scribbled") == drawn
    assert NnUNetDataset(root, split={"train": ["case0"], "test": ["case1"]}).ids("test") == ("case1",)
    assert NnUNetDataset(root, window=[0, 100]).load("case0").image.mean() > 0.8


def test_the_older_form_and_dense_labels(tmp_path: Path) -> None:
    card = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "gland", "2": "stone"}}
    root = write(tmp_path / "old")
    (root / "dataset.json").write_text(json.dumps(card))
    data = NnUNetDataset(root)
    assert data.classes == ("background", "gland", "stone")
    sample = data.load("case0")
    assert sample.scribble is None
    assert sample.label is not None
    assert set(np.unique(sample.label)) == {0, 1, 2}
    data.check("train", need=("label",))
    with pytest.raises(UsageError, match=r'has no "ignore" label, .*data\.supervision = "labels"'):
        data.check("train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numTraining": 3}, "says numTraining = 3, but imagesTr holds 2 cases"),
        ({"channel_names": {"0": "T2"}}, r"do not have the channels 0 to 0, a file each: case0 \(0, 1\)"),
        ({"channel_names": {"0": "a", "1": "b", "2": "c"}}, r"do not have the channels 0 to 2, .*: case0 \(0, 1\)"),
        ({"channel_names": ["T2"]}, '"channel_names" must name the channels'),
        ({"channel_names": {"1": "T2"}}, '"channel_names" must name the channels'),
        ({"labels": {"background": 0, "gland": 2}}, r"0, 1, 2, \.\.\. without a gap; got \[0, 2\]"),
        ({"labels": {"background": 0, "gland": 1, "ignore": 0}}, "both have the value 0"),
        ({"labels": {"background": 0, "ignore": 1}}, "has 1 classes"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "the label 'whole' is a region"),
        (
            {"labels": {"background": 0, "gland": "one"}},
            "the label 'one' must be a whole number",
        ),
        ({"labels": None}, '"labels" must name the classes'),
        ({"file_ending": ".png"}, "\"file_ending\" is '.png'; volumes are read from"),
        ({"file_ending": ".mha"}, r"imagesTr holds no file that ends in \.mha"),
    ],
)
def test_a_card_that_disagrees(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NnUNetDataset(write(tmp_path / "wrong", **changes))


def test_files_that_disagree(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    label = root / "labelsTr" / "case1.nii.gz"
    other = np.zeros(SIZE, np.uint8)
    other[0, 0, 0] = 7
    save(label, other)
    with pytest.raises(UsageError, match=r'case1\.nii\.gz holds the label value 7, .*"labels" of .*dataset\.json'):
        NnUNetDataset(root).load("case1")
    save(label, other[:, 1:])
    with pytest.raises(UsageError, match="has the size"):
        NnUNetDataset(root).check("train", need=("label",))
    label.rename(label.with_name("case5.nii.gz"))
    with pytest.raises(UsageError, match=r"1 files of .*labelsTr have no image in .*imagesTr: case5"):
        NnUNetDataset(root)
    label.with_name("case5.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 cases of .*imagesTr have no label in .*labelsTr: case1"):
        NnUNetDataset(root)
    (root / "imagesTr" / "case0_0000.nii.gz").rename(root / "imagesTr" / "case0.nii.gz")
    with pytest.raises(UsageError, match=r"1 files of .*imagesTr have no number of a channel .*: case0"):
        NnUNetDataset(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match=r"dataset\.json is not valid JSON"):
        NnUNetDataset(root)
    (root / "dataset.json").unlink()
    with pytest.raises(UsageError, match=r"there is no .*dataset\.json"):
        NnUNetDataset(root)


def test_a_case_in_both_parts(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    for channel in range(2):
        path = root / "imagesTs" / f"case2_000{channel}.nii.gz"
        path.rename(path.with_name(f"case0_000{channel}.nii.gz"))
    (root / "labelsTs" / "case2.nii.gz").rename(root / "labelsTs" / "case0.nii.gz")
    with pytest.raises(UsageError, match="1 cases are both in imagesTr and in imagesTs: case0"):
        NnUNetDataset(root)


def test_files_of_a_sample_are_those_that_say_what_is_in_it(root):
    source = NnUNetDataset(root)
    found = {path.relative_to(root).as_posix() for path in source.files_of("case0")}
    images = {f"imagesTr/case0_000{channel}.nii.gz" for channel in range(2)}
    assert found == {*images, "labelsTr/case0.nii.gz", "dataset.json"}
