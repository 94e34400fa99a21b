"""Annotations of other programs become data sets: what was drawn, pixel by pixel; counts; a training on each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
from foreign_files import NAMES, SIZE, WRITERS

from regloss.apps.import_data import import_annotations
from regloss.errors import UsageError
from regloss.io.foreign.source import Options
from regloss.training.config import parse
from regloss.training.trainer import train
from regloss_plugins.datasets.folder import FolderDataset

OPTIONS: dict[str, Options] = {
    "labelme": Options(stroke_width=1),
    "cvat": Options(stroke_width=1),
    "label-tiff": Options(classes=("background", "box")),
    "ilastik": Options(classes=("background", "box")),
    "wsl4mis": Options(classes=("background", "box")),
    "strokes": Options(colors={(255, 0, 0): "box", (0, 0, 255): "background"}),
}
HAS = {
    "labelme": {"scribbles"},
    "coco": {"labels"},
    "label-studio": {"scribbles"},
    "cvat": {"scribbles", "labels"},
    "labelmap": {"labels"},
    "label-tiff": {"scribbles"},
    "ilastik": {"scribbles"},
    "strokes": {"scribbles"},
    "wsl4mis": {"scribbles", "labels"},
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_program_wrote_is_imported_and_trained_on(name: str, tmp_path: Path) -> None:
    source = WRITERS[name](tmp_path / "source")
    root = tmp_path / "set"
    result = import_annotations(source, root, options=OPTIONS.get(name))
    assert result.images == len(NAMES)
    assert result.classes == ("background", "box")
    assert {part for part, count in result.files.items() if count} == HAS[name]
    assert not any(result.skipped.values())
    dataset = FolderDataset(root)
    assert dataset.ids("train") == tuple(NAMES)
    for image_id in NAMES:
        sample = dataset.load(image_id)
        if "scribbles" in HAS[name]:
            assert sample.scribble is not None
            np.testing.assert_array_equal(sample.scribble, foreign_files.scribbles())
        if sample.label is not None:
            np.testing.assert_array_equal(sample.label, foreign_files.labels())
    assert (tmp_path / "set" / "labels").is_dir() == ("labels" in HAS[name])
    settings: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "data": {"dataset": "folder", "root": str(root), "crop": 24, "test": ""},
        "network": {"name": "unet", "levels": 2, "channels": 2, "norm": "group"},
        "loss": {"outer-loop": {"name": "gradient-descent"}, "regularizer": [{"name": "grid-crf"}]},
        "training": {"epochs": 1, "batch-size": 6, "accelerator": "cpu", "threads": 1},
        "evaluation": {"examples": 0},
    }
    if "scribbles" not in HAS[name]:
        settings["data"]["supervision"] = "labels"
    train(parse(settings))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert 'root = "' in result.configuration()
    assert ('supervision = "labels"' in result.configuration()) == ("scribbles" not in HAS[name])


def labelme_file(root: Path, *shapes: dict[str, Any], **changes: Any) -> Path:
    """One image, and a JSON file of LabelMe with ``shapes``."""
    (path,) = foreign_files.write_images(root, ["a"])
    content: dict[str, Any] = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.png"}
    content |= {"imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1], **changes}
    path.with_suffix(".json").write_text(json.dumps(content))
    return root


def shape(label: str, kind: str, *points: tuple[float, float], **more: Any) -> dict[str, Any]:
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, "flags": {}, **more}


def test_every_shape_of_labelme(tmp_path: Path) -> None:
    """Areas become labels in their order, strokes scribbles; what cannot be used is counted."""
    mask = np.array([[0, 255], [255, 255]], dtype=np.uint8)
    source = labelme_file(
        tmp_path / "source",
        shape("tissue", "rectangle", (0, 0), (28, 12)),
        shape("cell", "circle", (5, 5), (8, 5)),
        shape("cell", "polygon", (20, 14), (26, 14), (26, 20), (20, 20)),
        shape("cell", "mask", (10, 15), (11, 16), mask=foreign_files.encoded_png(mask)),
        {"label": "cell", "points": [[0, 20], [2, 20], [2, 22], [0, 22]]},
        shape("__ignore__", "rectangle", (24, 0), (28, 4)),
        shape("cell", "line", (3.5, 3.5), (6.5, 3.5)),
        shape("tissue", "point", (14.5, 6.5)),
        shape("cell", "points", (2.5, 8.5), (4.5, 8.5)),
        shape("cell", "polygon", (1, 1), (2, 2)),
        shape("cell", "circle", (3, 3), (3, 3)),
        shape("cell", "cuboid", (3, 3)),
        shape("cell", "point", (-20, 6.5)),
    )  # fmt: skip
    result = import_annotations(source, tmp_path / "set", options=Options(stroke_width=1))
    assert result.classes == ("background", "cell", "tissue")
    sample = FolderDataset(tmp_path / "set").load("a")
    assert sample.label is not None
    assert sample.scribble is not None
    rows, columns = np.indices(SIZE) + 0.5
    expected = np.where(rows < 12, 2, 0)
    expected[(rows - 5) ** 2 + (columns - 5) ** 2 <= 9] = 1
    expected[14:20, 20:26] = 1
    expected[15:17, 10:12][mask > 0] = 1
    expected[20:22, :2] = 1
    expected[:4, 24:] = 255
    np.testing.assert_array_equal(sample.label, expected)
    drawn = np.full(SIZE, 255)
    drawn[3, 3:7], drawn[6, 14], drawn[8, [2, 4]] = 1, 2, 1
    np.testing.assert_array_equal(sample.scribble, drawn)
    assert result.shapes == {
        ("labels", "tissue"): 1, ("labels", "cell"): 4, ("scribbles", "cell"): 4, ("scribbles", "tissue"): 1
    }  # fmt: skip
    assert result.covered == int(((rows - 5) ** 2 + (columns - 5) ** 2 <= 9).sum()) + 16
    assert result.outside == 1
    said = "\n".join(result.lines())
    for part in (
        "1 x polygon with fewer than 3 points",
        "1 x circle without extent",
        "1 x shape of type 'cuboid', which is not known",
        "1 shapes have no pixel in their image",
        "covered by no shape: background",
    ):
        assert part in said


def test_where_shapes_go_and_which_classes(tmp_path: Path) -> None:
    source = labelme_file(
        tmp_path / "source",
        shape("b", "polygon", (2, 2), (8, 2), (8, 8)),
        shape("a", "line", (3, 20), (20, 20)),
        shape("c", "line", (3, 22), (20, 22)),
    )
    result = import_annotations(source, tmp_path / "s", to="scribbles", options=Options(classes=("b", "a")))
    assert result.classes == ("b", "a")
    assert set(result.files) == {"scribbles"}
    assert result.skipped["shape of 'c', which --classes does not name"] == 1
    found = FolderDataset(tmp_path / "s").load("a")
    assert found.scribble is not None
    assert found.label is None
    assert set(np.unique(found.scribble).tolist()) == {0, 1, 255}
    result = import_annotations(source, tmp_path / "l", to="labels")
    assert result.classes == ("background", "a", "b", "c")
    assert set(np.unique(FolderDataset(tmp_path / "l").load("a").label).tolist()) == {0, 1, 2, 3}
    assert import_annotations(source, tmp_path / "l", overwrite=True).classes == ("background", "a", "b", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l", "s", "source"]


def test_into_the_folder_that_one_is_in_and_not_over_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = labelme_file(
        tmp_path / "source", shape("a", "line", (3, 20), (20, 20)), shape("b", "line", (3, 2), (9, 2))
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_annotations(source, Path())
    assert {path.name for path in Path().iterdir()} == {"images", "scribbles", "classes.toml"}
    assert len(list(tmp_path.iterdir())) == 2
    source.rename("images/source")
    with pytest.raises(UsageError, match=r"would replace .*source, which is read"):
        import_annotations(Path("images/source"), Path(), overwrite=True)
    assert Path("images/source").is_dir()


def test_images_within_the_file_and_elsewhere(tmp_path: Path) -> None:
    line = (shape("background", "line", (1, 1), (9, 1)), shape("b", "line", (1, 9), (9, 9)))
    source = labelme_file(tmp_path / "source", *line, imagePath="..\\images\\a.png")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (source / "a.png").rename(tmp_path / "elsewhere" / "deep" / "a.png")
    with pytest.raises(UsageError, match="no annotated image that can be used: 1 x annotated image that is neither in"):
        import_annotations(source, tmp_path / "set")
    found = import_annotations(source, tmp_path / "set", options=Options(images=tmp_path / "elsewhere"))
    assert found.images == 1
    values = np.full((*SIZE, 3), 90, dtype=np.uint8)
    labelme_file(tmp_path / "inner", *line, imageData=foreign_files.encoded_png(values))
    (tmp_path / "inner" / "a.png").unlink()
    assert import_annotations(tmp_path / "inner", tmp_path / "two").images == 1
    np.testing.assert_allclose(FolderDataset(tmp_path / "two").load("a").image, 90 / 255, rtol=1e-6)


def test_images_of_one_name_in_several_folders(tmp_path: Path) -> None:
    for place in ("one", "two"):
        labelme_file(
            tmp_path / "source" / place, shape("a", "line", (1, 1), (9, 1)), shape("b", "line", (1, 9), (9, 9))
        )
    assert import_annotations(tmp_path / "source", tmp_path / "set").images == 2
    assert FolderDataset(tmp_path / "set").ids("train") == ("one_a", "two_a")


def test_shapes_of_label_studio(tmp_path: Path) -> None:
    """Percents of the image; the first annotation that was not cancelled; labels in results of their own."""
    foreign_files.write_images(tmp_path / "source" / "images", ["a", "b", "c"])

    def result(kind: str, label: str, **value: Any) -> dict[str, Any]:
        size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
        return {"type": kind, "id": "x", "value": {**value, kind: [label]}, **size}

    box = result("rectanglelabels", "box", x=25.0, y=25.0, width=50.0, height=25.0, rotation=0)
    ring = result("ellipselabels", "ring", x=50.0, y=75.0, radiusX=10.0, radiusY=10.0, rotation=0)
    poly = result("polygonlabels", "box", points=[[0, 0], [25, 0], [25, 25], [0, 25]])
    dot = result("keypointlabels", "ring", x=50.0, y=50.0, width=1.0)
    brush = result("brush", "", format="rle", rle=foreign_files.label_studio_rle(foreign_files.labels())) | {"id": "y"}
    brush["value"].pop("brush")
    name = {"type": "labels", "id": "y", "value": {"labels": ["ring"]}}
    tasks = [
        {
            "data": {"image": "/data/local-files/?d=images/a.png", "note": "x"},
            "annotations": [
                {"was_cancelled": True, "result": [dot]},
                {"result": [box, ring, poly, dot, brush, name, {"type": "choices", "value": {}}]},
                {"result": [dot]},
            ],
        },
        {"data": {"image": "s3://bucket/images/b.png"}, "annotations": []},
        {
            "data": {"image": "https://some.where/c.png"},
            "annotations": [{"result": [dot | {"value": {"x": 1, "y": 1}}]}],
        },
    ]
    (tmp_path / "source" / "export.json").write_text(json.dumps(tasks))
    found = import_annotations(tmp_path / "source", tmp_path / "set", options=Options(stroke_width=1))
    assert found.classes == ("background", "box", "ring")
    label = FolderDataset(tmp_path / "set").load("a").label
    assert label is not None
    rows, columns = np.indices(SIZE) + 0.5
    expected = np.zeros(SIZE)
    expected[6:12, 7:21] = 1
    expected[((rows - 18) / 2.4) ** 2 + ((columns - 14) / 2.8) ** 2 <= 1] = 2
    expected[:6, :7] = 1
    np.testing.assert_array_equal(label, expected)
    scribble = FolderDataset(tmp_path / "set").load("a").scribble
    assert scribble is not None
    np.testing.assert_array_equal(scribble == 2, (foreign_files.labels() == 1))
    assert {reason: count for reason, count in found.skipped.items() if count} == {
        "annotation that was cancelled": 1,
        "further annotation of an image that has one": 1,
        "task without annotation": 1,
        "result of type 'choices'": 1,
        "keypointlabels without a label": 1,
    }


def test_shapes_of_cvat_in_the_order_of_z(tmp_path: Path) -> None:
    foreign_files.write_images(tmp_path / "source" / "images", ["a"])
    (tmp_path / "source" / "annotations.xml").write_text(
        f"""<annotations><meta><project><labels>
        <label><name>car</name><color>#ff8000</color></label><label><name>road</name><color>#808080</color></label>
        </labels></project></meta>
        <image id="0" name="a.png" width="{SIZE[1]}" height="{SIZE[0]}">
          <box label="car" xtl="4" ytl="4" xbr="12" ybr="8" z_order="1"></box>
          <polygon label="road" points="0,0;28,0;28,12;0,12" z_order="0"></polygon>
          <ellipse label="car" cx="20" cy="6" rx="4" ry="2" rotation="90" z_order="2"></ellipse>
          <points label="car" points="3.5,20.5;6.5,20.5" z_order="0"></points>
          <tag label="sunny"></tag>
        </image>
        <image id="1" name="absent.png" width="4" height="4"></image></annotations>"""
    )
    found = import_annotations(tmp_path / "source", tmp_path / "set", options=Options(stroke_width=1))
    dataset = FolderDataset(tmp_path / "set")
    assert dataset.classes == ("background", "car", "road")
    assert dataset.colors == ((0, 0, 0), (255, 128, 0), (128, 128, 128))
    sample = dataset.load("a")
    rows, columns = np.indices(SIZE) + 0.5
    expected = np.where(rows < 12, 2, 0)
    expected[4:8, 4:12] = 1
    expected[((columns - 20) / 2) ** 2 + ((rows - 6) / 4) ** 2 <= 1] = 1
    np.testing.assert_array_equal(sample.label, expected)
    assert sample.scribble is not None
    assert (sample.scribble == 1).sum() == 2
    assert found.skipped["tag, which is no area or stroke"] == 1
    assert sum(found.skipped.values()) == 2


def test_volumes_of_wsl4mis_become_slices(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "source").mkdir()
    generator = np.random.default_rng(0)
    image = generator.integers(-1000, 2000, (11, 8, 9)).astype(np.int16)
    scribble = np.full((11, 8, 9), 4, dtype=np.uint8)
    scribble[:, 2], scribble[:, 5, :4] = 0, 3
    with h5py.File(tmp_path / "source" / "patient001_frame01.h5", "w") as file:
        file["image"], file["scribble"] = image, scribble
    with h5py.File(tmp_path / "source" / "other.h5", "w") as file:
        file["image"] = image
    found = import_annotations(tmp_path / "source", tmp_path / "set")
    assert found.images == 11
    assert found.skipped["HDF5 file without an image, or without label and scribble"] == 1
    assert "group = '^(.+)_slice_\\d+$'" in found.configuration()
    dataset = FolderDataset(tmp_path / "set", group=r"^(.+)_slice_\d+$", window=[-1000, 2000])
    assert dataset.classes == ("background", "label 3")
    sample = dataset.load("patient001_frame01_slice_07")
    assert sample.group == "patient001_frame01"
    np.testing.assert_allclose(sample.image[0], (image[7] + 1000) / 3000, atol=1e-6)
    np.testing.assert_array_equal(sample.scribble == 1, scribble[7] == 3)


def test_a_map_of_colours_as_scribbles_leaves_the_ground_unlabelled(tmp_path: Path) -> None:
    source = foreign_files.labelmap(tmp_path / "source")
    import_annotations(source, tmp_path / "set", to="scribbles")
    scribble = FolderDataset(tmp_path / "set").load("i1").scribble
    np.testing.assert_array_equal(scribble, np.where(foreign_files.labels() == 1, 1, 255))


LINE = shape("a", "line", (1, 1), (9, 1))
WRONG: dict[str, tuple[Any, str]] = {
    "size": (
        lambda root: labelme_file(root, LINE, imageWidth=99),
        r"a.json: a was drawn on an image of 24 x 99 pixels",
    ),
    "no points": (lambda root: labelme_file(root, LINE | {"points": 3}), r"a.json, shape 0: expected points \[x, y\]"),
    "point": (lambda root: labelme_file(root, LINE | {"points": [[1]]}), r"expected a point \[x, y\], got \[1\]"),
    "nan": (lambda root: labelme_file(root, LINE | {"points": [["a", 1]]}), "expected a number, got 'a'"),
    "label": (lambda root: labelme_file(root, LINE | {"label": None}), "shape 0: 'label' must be str; got None"),
    "shapes": (lambda root: labelme_file(root, shapes={}), "'shapes' must be list; got {}"),
    "mask": (lambda root: labelme_file(root, shape("a", "mask", (1, 1), (2, 2), mask="??")), "mask cannot be decoded"),
    "one class": (lambda root: labelme_file(root, shape("background", "line", (1, 1), (9, 1))), "nothing is drawn but"),
    "image data": (
        lambda root: labelme_file(root, LINE, imagePath="b.png", imageData="AAAA").joinpath("a.png").unlink(),
        "the image a within the annotations cannot be read",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    write, message = WRONG[name]
    write(tmp_path / "source")
    with pytest.raises(UsageError, match=message):
        import_annotations(tmp_path / "source", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FILES: dict[str, tuple[str, Any, str]] = {
    "coco of another image": (
        "coco", lambda root: replaced(root / "annotations/instances.json", '"image_id": 11', '"image_id": 99'),
        "annotation 1 is of image 99 and category 7; the file does not list both",
    ),
    "coco with damaged runs": (
        "coco", lambda root: replaced(root / "annotations/instances.json", '"counts": [', '"counts": [1, '),
        "run lengths of 673 pixels do not fit a mask of 24 x 28",
    ),
    "label studio in short": (
        "label-studio", lambda root: root.joinpath("project-3.json").write_text(
            json.dumps([{"image": "a.png", "tag": [], "annotator": 1, "annotation_id": 2}])
        ), "export the project as JSON instead",
    ),
    "cvat of a video": (
        "cvat", lambda root: replaced(root / "annotations.xml", "</annotations>", "<track/></annotations>"),
        "holds tracks of a video",
    ),
    "cvat with entities": (
        "cvat", lambda root: replaced(root / "annotations.xml", "<version>", '<!DOCTYPE a [<!ENTITY b "c">]><version>'),
        "declares entities",
    ),
    "cvat without end": (
        "cvat", lambda root: replaced(root / "annotations.xml", "</annotations>", ""), "cannot be read as XML",
    ),
    "labelmap without a colour": (
        "labelmap", lambda root: replaced(root / "labelmap.txt", "box:250,50,83", "box:250,50,84"),
        r"colours that labelmap.txt does not name: \(250, 50, 83\) \(144 pixels\)",
    ),
    "labelmap with nonsense": (
        "labelmap", lambda root: replaced(root / "labelmap.txt", "250,50,83", "250,50"), "line 3: expected NAME:RED",
    ),
    "strokes in other colours": (
        "strokes", lambda root: (root / "i0_scribbles.png").write_bytes((root / "i0.png").read_bytes()),
        "has none of the colours #ff0000, #0000ff",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    program, damage, message = FILES[name]
    source = WRITERS[program](tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(UsageError, match=message):
        import_annotations(source, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_numbered_objects_are_no_classes(tmp_path: Path) -> None:
    import tifffile

    foreign_files.write_images(tmp_path, ["a"])
    tifffile.imwrite(tmp_path / "a_labels.tif", np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE))
    with pytest.raises(UsageError, match="671 different values; it numbers objects one by one"):
        import_annotations(tmp_path, tmp_path / "set")
    tifffile.imwrite(tmp_path / "a_labels.tif", np.zeros((5, *SIZE), dtype=np.uint8))
    with pytest.raises(UsageError, match="Save the slices of a stack one by one"):
        import_annotations(tmp_path, tmp_path / "set")
    tifffile.imwrite(tmp_path / "a_labels.tif", np.full(SIZE, 3, dtype=np.uint8))
    with pytest.raises(UsageError, match=r"holds the value 3, for which --classes has no name: 1 = a, 2 = b"):
        import_annotations(tmp_path, tmp_path / "set", options=Options(classes=("a", "b")))


def test_options_of_other_formats_and_sources_that_are_none(tmp_path: Path) -> None:
    source = foreign_files.coco(tmp_path / "source")
    with pytest.raises(UsageError, match="COCO makes no use of --stroke-width and --unlabelled"):
        import_annotations(source, tmp_path / "set", options=Options(stroke_width=5, unlabelled=0))
    wsl = foreign_files.wsl4mis(tmp_path / "h5")
    with pytest.raises(UsageError, match="WSL4MIS makes no use of --as"):
        import_annotations(wsl, tmp_path / "set", to="labels")
    with pytest.raises(UsageError, match="there is no format 'yolo'; there are labelme, coco,"):
        import_annotations(source, tmp_path / "set", format="yolo")
    with pytest.raises(UsageError, match="there is no file or folder"):
        import_annotations(tmp_path / "absent", tmp_path / "set")
    with pytest.raises(UsageError, match="of no format that is recognised; --format names one of labelme"):
        import_annotations(source / "images", tmp_path / "set")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="is packed; unpack it"):
        import_annotations(tmp_path / "a.zip", tmp_path / "set")
    with pytest.raises(UsageError, match="names nucleus, which is not drawn; there are box"):
        import_annotations(source, tmp_path / "set", options=Options(classes=("box", "nucleus")))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        import_annotations(source, tmp_path / "set")
    with pytest.raises(UsageError, match=r"also holds thesis\.tex"):
        import_annotations(source, tmp_path / "set", overwrite=True)
