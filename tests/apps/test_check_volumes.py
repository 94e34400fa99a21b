"""All that is wrong with volumes is said at once, and nothing where nothing is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from volume_files import AFFINE, SIZE, save, save_series, write_volumes

from regloss.apps.check_data import draw_samples
from regloss.apps.check_volumes import VolumesCheck, layout_of
from regloss.errors import UsageError
from regloss_cli.main import app

nibabel = pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")
CLASSES = {"classes": ["background", "ball"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_volumes(tmp_path / "balls")


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """The same, as nnU-Net has it."""
    folder = write_volumes(tmp_path / "Dataset001_Balls")
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    card = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "ball": 1}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps({**card, "file_ending": ".nii.gz"}))
    return folder


def values(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).T


def check_by_command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    return result.exit_code, result.output


def test_good_volumes(root: Path, tmp_path: Path) -> None:
    assert layout_of(root) == "volumes"
    check = VolumesCheck(root, "volumes", {**CLASSES, "dims": 2, "axis": 0})
    assert not check.findings.problems
    assert check.findings.lines()[-1] == "Nothing is wrong."
    assert check.findings.facts[0] == "volumes: 3: 3 of 6 x 20 x 24, 3 x 1 x 1 mm (slices first)"
    assert check.findings.facts[1].startswith(
        "scribbles: 2 of 3 images: background 4.31% in 2, ball 0.49% in 2; no lab"
    )
    assert check.findings.facts[2].startswith("labels: 3 of 3 images: background 89.86% in 3, ball 10.14%")
    assert draw_samples(check, tmp_path / "sheet.png").endswith("3 of 3 samples: image, scribbles, labels")
    shown = check.understood("case1")
    assert shown.id == "case1, slice 1 of 6"
    assert shown.scribble is not None
    np.testing.assert_array_equal(shown.scribble, values(root / "scribbles" / "case1.nii.gz")[1])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * 240


def test_everything_that_is_wrong_at_once(root: Path, tmp_path: Path) -> None:
    images, labels, scribbles = (root / part for part in ("images", "labels", "scribbles"))
    first = values(images / "case0.nii.gz")
    for key in ("case3", "case4", "case5", "case6", "case8"):
        save(images / f"{key}.nii.gz", first)
    (images / "case0.nii.gz").write_bytes((images / "case0.nii.gz").read_bytes()[:500])
    save(images / "case1.nii.gz", np.stack([first] * 2))
    save(labels / "case2.nii.gz", values(labels / "case2.nii.gz")[:, :-1])
    for key in ("case3", "case4"):
        save(labels / f"{key}.nii.gz", np.full(SIZE, 9, np.uint8))
    save(scribbles / "case5.nii.gz", np.full(SIZE, 255, np.uint8), np.diag([-1, -1, 1, 1]) @ AFFINE)
    save(images / "case6.nii.gz", np.full(SIZE, 7, np.int16))
    save(labels / "case77.nii.gz", np.zeros(SIZE, np.uint8))
    save(scribbles / "case8.nii.gz", np.zeros(SIZE, np.uint8))
    nan = first.astype(np.float32)
    nan[0, 0, 0] = np.nan
    save(images / "case9.nii.gz", nan)
    before = sorted(root.rglob("*"))
    check = VolumesCheck(root, "volumes", CLASSES)
    said = "\n".join(check.findings.lines())
    for part in (
        f"{images / 'case0.nii.gz'} cannot be read as NIfTI",
        f"{images / 'case1.nii.gz'} has 4 axes",
        f"{labels / 'case2.nii.gz'} has the size (6, 19, 24)",
        f"{labels / 'case3.nii.gz'} holds the label value 9, but there are 2 classes",
        "(and 1 others likewise)",
        f"{scribbles / 'case5.nii.gz'} has another place or orientation",
        "case6.nii.gz: All voxels have the value 7",
        "1 files have no image of their name: case77.nii.gz",
        "all are of class background; draw in two or more",
        "1 files label more than 33% of their image",
        f"{images / 'case9.nii.gz'} holds 1 voxels that are NaN",
    ):
        assert part in said, f"{part}\n{said}"
    assert said.endswith("10 problems.")
    assert set(check.faulty) == {f"case{number}" for number in (0, 1, 2, 3, 4, 5, 6, 9)}
    assert sorted(root.rglob("*")) == before
    assert "8 of 9 samples" in draw_samples(check, tmp_path / "sheet.png", rows=8)


def test_layouts_are_told_apart(tmp_path: Path, nnunet: Path) -> None:
    pytest.importorskip("SimpleITK")
    assert layout_of(nnunet) == "nnunet"
    folders = {name: tmp_path / name / "images" for name in ("pictures", "arrays", "series")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folders["pictures"] / "a.png")
    np.save(folders["arrays"] / "a.npy", np.zeros((3, 8, 8)))
    save_series(folders["series"] / "a", np.zeros((3, 8, 8), np.int16))
    assert [layout_of(tmp_path / name) for name in folders] == ["folder", "folder", "volumes"]


def test_of_nnunet(nnunet: Path) -> None:
    code, said = check_by_command(nnunet)
    assert code == 0
    assert "volumes: 3: 3 of 6 x 20 x 24" in said
    assert "Nothing is wrong" in said
    save(nnunet / "labelsTr" / "case1.nii.gz", np.full(SIZE, 2, np.uint8))
    code, said = check_by_command(nnunet)
    assert code == 1
    assert "case1.nii.gz holds the label value 2" in said
    (nnunet / "labelsTr" / "case2.nii.gz").unlink()
    code, said = check_by_command(nnunet)
    assert code == 1
    assert "1 of 3 cases of" in said
    assert "until this is mended, nothing more can be told" in said


def test_the_layout_may_be_given(root: Path) -> None:
    with pytest.raises(UsageError, match="--layout is one of folder, volumes, nnunet; got 'volume'"):
        CliRunner().invoke(app, ["data", "check", str(root), "--layout", "volume"], catch_exceptions=False)
    code, said = check_by_command(root, "--layout", "volumes", "--set", "classes=2", "--picture", root / "a.png")
    assert code == 0, said
    assert (root / "a.png").is_file()
