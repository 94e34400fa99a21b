"""Files as people have them, made of arrays, through every command: right, or exit code 2 and a message."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_data
from picture_files import write_png
from PIL import Image

from regloss.training.config import read
from regloss.training.trainer import train
from regloss_plugins.datasets.folder import FolderDataset

SIZE = (24, 28)
ROWS, COLUMNS = np.indices(SIZE)
DISK = ((ROWS - 11) ** 2 + (COLUMNS - 15) ** 2 < 50).astype(np.uint8)
VALUES = 0.3 + 0.4 * DISK
RGB = np.stack([VALUES, VALUES, VALUES], axis=-1)
STROKES = np.full(SIZE, 255, np.uint8)
STROKES[1, 3:25], STROKES[11, 11:19] = 0, 1


def scaled(values: np.ndarray, top: float, kind: type = np.uint8) -> np.ndarray:
    return (values * top).round().astype(kind)


def picture(name: str, values: np.ndarray, mode: str | None = None, **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = Image.fromarray(values)
        (made if mode is None else made.convert(mode)).save(folder / name, **options)
        return folder / name

    return write


def png(color_type: int, values: np.ndarray) -> Callable[[Path], Path]:
    rows = [row.astype(">u2").tobytes() for row in values]
    return lambda folder: write_png(folder / "x.png", rows, SIZE[1], 16, color_type)


def tiff(values: np.ndarray, **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pytest.importorskip("tifffile").imwrite(folder / "x.tif", values, **options)
        return folder / "x.tif"

    return write


def data(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def pages(folder: Path) -> Path:
    first = Image.fromarray(scaled(VALUES, 255))
    first.save(folder / "x.tif", save_all=True, append_images=[first])
    return folder / "x.tif"


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


WEAK = ("--regularizer", "tv:weight=0.01")
OPAQUE = np.full((*SIZE, 1), 255, np.uint8)
HALF = np.full((*SIZE, 1), 128, np.uint8)
ALPHA = np.full((*SIZE, 1), 65535)
IR = scaled(0.6 - 0.2 * DISK, 255)[..., None]
COLOR = scaled(RGB, 255)
GREY = scaled(VALUES, 255)

# What is written; and the values of the two regions in each channel, or what is said.
IMAGES: dict[str, tuple[Callable[[Path], Path], list[tuple[float, float]] | str]] = {
    "8 bits": (picture("x.png", GREY), [(0.3, 0.7)]),
    "16 bits": (picture("x.png", scaled(VALUES, 65535, np.uint16)), [(0.3, 0.7)]),
    "12 of 16 bits": (picture("x.png", scaled(VALUES, 4095, np.uint16)), [(0.3, 0.7)]),
    "10 of 16 bits": (picture("x.png", scaled(VALUES, 1023, np.uint16)), [(0.3, 0.7)]),
    "8 of 16 bits": (picture("x.png", scaled(VALUES, 235, np.uint16)), [(0.2745, 0.6431)]),
    "16 bits with an offset": (picture("x.png", scaled(VALUES, 4095, np.uint16) + 32768), [(0, 1)]),
    "16 bits in TIFF": (picture("x.tif", scaled(VALUES, 4095, np.uint16)), [(0.3, 0.7)]),
    "RGB": (picture("x.png", COLOR), [(0.3, 0.7)] * 3),
    "RGB of 12 in 16 bits": (png(2, scaled(RGB, 4095, np.uint16)), [(0.3, 0.7)] * 3),
    "RGB of 12 in 16 bits in TIFF": (tiff(scaled(RGB, 4095, np.uint16), photometric="rgb"), [(0.3, 0.7)] * 3),
    "RGBA of 12 in 16 bits": (png(6, np.concatenate([scaled(RGB, 4095, int), ALPHA], -1)), [(0.3, 0.7)] * 3),
    "grey and alpha in 16 bits": (png(4, np.concatenate([scaled(VALUES, 4095, int)[..., None], ALPHA], -1)), "upper 8"),
    "opaque": (picture("x.png", np.concatenate([COLOR, OPAQUE], -1)), [(0.3, 0.7)] * 3),
    "transparent": (picture("x.png", np.concatenate([COLOR, HALF], -1)), "transparent pixels"),
    "palette": (picture("x.png", GREY, "P"), [(0.3, 0.7)] * 3),
    "one bit": (picture("x.png", DISK.astype(bool)), [(0, 1)]),
    "JPEG": (picture("x.jpg", GREY, quality=100), [(0.3, 0.7)]),
    "JPEG in colour": (picture("x.jpeg", COLOR, quality=100), [(0.3, 0.7)] * 3),
    "CMYK": (picture("x.jpg", COLOR, "CMYK"), "CMYK"),
    "upside down": (picture("x.jpg", GREY[::-1, ::-1].copy(), quality=100, exif=turned(3)), [(0.3, 0.7)]),
    "turned": (picture("x.jpg", np.rot90(GREY).copy(), quality=100, exif=turned(6)), [(0.3, 0.7)]),
    "turned TIFF": (picture("x.tif", GREY, exif=turned(6)), "orientation tag 6"),
    "BMP": (picture("x.bmp", GREY), [(0.3, 0.7)]),
    "BMP in colour": (picture("x.BMP", COLOR), [(0.3, 0.7)] * 3),
    "WebP": (picture("x.webp", COLOR, lossless=True), [(0.3, 0.7)] * 3),
    "GIF": (picture("x.gif", GREY), "PNG, JPEG, TIFF, BMP or WebP|holds no image"),
    "floats": (picture("x.tif", VALUES.astype(np.float32)), [(0.3, 0.7)]),
    "Hounsfield units": (picture("x.tif", (1000 * VALUES - 500).astype(np.float32)), r"window = \[LOW, HIGH\]"),
    "NaN": (picture("x.tif", np.where(DISK, np.nan, VALUES).astype(np.float32)), "NaN"),
    "32 bits": (picture("x.tif", scaled(VALUES, 70000, np.int32)), "kind 'I'"),
    "pages": (pages, "several frames"),
    "two channels": (
        tiff(np.concatenate([IR, GREY[..., None]], -1), photometric="minisblack", planarconfig="contig"),
        [(0.6, 0.4), (0.3, 0.7)],
    ),
    "RGB and infrared": (
        tiff(np.concatenate([COLOR, IR], -1), photometric="rgb", extrasamples=["unspecified"]),
        [(0.3, 0.7)] * 3 + [(0.6, 0.4)],
    ),
    "RGB and alpha": (
        tiff(np.concatenate([COLOR, OPAQUE], -1), photometric="rgb", extrasamples=["unassalpha"]),
        [(0.3, 0.7)] * 3,
    ),
    "nothing": (data("x.png", b""), "cannot be read"),
    "text": (data("x.tif", b"no image"), "cannot be read"),
}

# Label maps: what is written, and the labels read or what is said when training on them and scoring.
LABELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "indices": (picture("x.png", DISK), ""),
    "palette": (picture("x.png", DISK, "P"), ""),
    "borders": (picture("x.png", np.where(STROKES == 0, np.uint8(255), DISK)), ""),
    "masks": (picture("x.png", DISK * 255), r'data.label-values = \{0 = "background", 255 = "object"\}'),
    "inverted masks": (picture("x.png", 255 - DISK * 254), r'label-values = \{1 = "object", 255 = "background"\}'),
    "grey levels": (picture("x.png", DISK * 128), r'label-values = \{0 = "background", 128 = "object"\}'),
    "three levels": (picture("x.png", np.where(STROKES == 0, np.uint8(77), DISK * 255)), "label value 77"),
    "colours": (picture("x.png", COLOR), "holds the label values #4c4c4c, #b2b2b2, but there are 2 classes"),
    "grey and alpha": (picture("x.png", np.concatenate([DISK[..., None], OPAQUE], -1)), "grey with alpha"),
    "16 bits": (picture("x.png", DISK.astype(np.uint16)), ""),
    "JPEG": (picture("x.jpg", DISK), "label maps are PNG"),
    "BMP": (picture("x.bmp", DISK), "label maps are PNG"),
    "another size": (picture("x.png", DISK[1:]), "23 pixels high"),
    "nothing known": (picture("x.png", np.full(SIZE, 255, np.uint8)), "no labelled pixel|255 alone"),
    "sensor order": (picture("x.png", np.rot90(DISK).copy()), "28 pixels high"),
}

# Those that are phases to start from: 255 is no opinion there.
STARTS = ("indices", "palette", "borders", "16 bits")

# Scribbles, likewise; the last is what `segment` is told so that it is right.
SCRIBBLES: dict[str, tuple[np.ndarray, str, str]] = {
    "0 where nothing is drawn": (
        np.where(STROKES == 255, 0, np.where(STROKES == 1, 1, 2)),
        "label value 2|100 %",
        "0",
    ),
    "4 where nothing is drawn": (np.where(STROKES == 255, 4, STROKES), "label value 4|labels 0, 1, 4", "4"),
    "K where nothing is drawn": (np.where(STROKES == 255, 2, STROKES), "label value 2|100 %", "2"),
    "gaps": (np.where(STROKES == 1, 200, STROKES), "label value 200|labels 0, 200, 255", "0=0,200=1"),
    "levels": (np.where(STROKES == 1, 128, STROKES), "label value 128|labels 0, 128, 255", "0=0,128=1"),
    "dense labels": (DISK, "more than 33 %|100 %", ""),
    "one class": (np.where(STROKES == 0, 255, STROKES), "class 1 is labelled|of class 1", ""),
    "none": (np.full(SIZE, 255), "no pixel is labelled|no labelled pixel", ""),
}


def folder_of(root: Path, image: Callable[[Path], Path], *, label: object = None, scribble: object = None) -> Path:
    """Two images, "a" to train on and "b" to score."""
    for part, write in (
        ("images", image),
        ("labels", label or picture("x.png", DISK)),
        ("scribbles", scribble or picture("x.png", STROKES)),
    ):
        for name in "ab":
            (root / part).mkdir(parents=True, exist_ok=True)
            path = write(root / part)
            path.rename(path.with_name(name + path.suffix))
    return root


def configuration(root: Path, output: Path, **more: object) -> Path:
    table = {
        "output": str(output),
        "data": {
            "dataset": "folder",
            "root": str(root),
            "classes": ["background", "object"],
            "split": {"train": ["a"], "test": ["b"]},
            **more,
        },
        "network": {"name": "plain-cnn", "layers": 1, "channels": 2},
        "training": {"epochs": 1, "accelerator": "cpu"},
        "evaluation": {"examples": 0, "energy": ""},
    }
    path = output.with_suffix(".toml")
    path.write_text(small_data.toml(table))
    return path


def refused(done: object, expected: str, *outputs: Path) -> None:
    assert (done.code, done.out) == (2, ""), done
    assert done.err.startswith("Error: ")
    assert re.search(expected, done.err, re.DOTALL), done.err
    assert not any(path.exists() for path in outputs)


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind, regloss, trained, tmp_path):
    write, expected = IMAGES[kind]
    path = write(tmp_path)
    out, run = tmp_path / "out", tmp_path / "run"
    data = folder_of(tmp_path / "data", write)
    config = configuration(data, run)
    strokes = picture("strokes.png", STROKES)(tmp_path)
    drawn = regloss("segment", path, "--scribbles", strokes, "-o", tmp_path / "drawn")
    done = regloss("segment", path, "--method", "chan-vese", *WEAK, "-o", out)
    if isinstance(expected, str):
        refused(done, expected, out)
        refused(drawn, expected, tmp_path / "drawn")
        refused(regloss("predict", trained, path, "-o", out), expected, out)
        refused(regloss("train", config), expected, run)
        return
    assert done.code == 0, done
    assert "nan" not in done.out
    with Image.open(out / "labels.png") as found:
        dark_first = sum(values[0] for values in expected) < sum(values[1] for values in expected)
        np.testing.assert_array_equal(np.asarray(found), DISK if dark_first else 1 - DISK)
    assert drawn.code == 0, drawn
    with Image.open(tmp_path / "drawn" / "labels.png") as found:
        np.testing.assert_array_equal(np.asarray(found), DISK)
    sample = FolderDataset(data, classes=2).load("a")
    atol = 0.02 if path.suffix.startswith(".jp") else 0.003
    for channel, (outside, inside) in zip(sample.image, expected, strict=True):
        np.testing.assert_allclose(channel, np.where(DISK, inside, outside), atol=atol)
    done = regloss("predict", trained, path, "-o", tmp_path / "predicted")
    if len(expected) in (1, 3):
        assert done.code == 0, done
        with Image.open(tmp_path / "predicted" / "labels" / "x.png") as found:
            assert found.size == SIZE[::-1]
    else:
        refused(done, f"has {len(expected)} channels, but 1 is needed", tmp_path / "predicted")
    assert regloss("train", config).code == 0
    done = regloss("evaluate", run)
    assert done.code == 0, done
    assert done.out.startswith("test: mean-iou 0.")
    done = regloss("predict", run, path, "--crf", "--probabilities", "npy", "-o", tmp_path / "again")
    assert done.code == 0, done
    refined = np.load(tmp_path / "again" / "probabilities" / "x.npy")
    assert refined.shape == (2, *SIZE)
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run of a training on files that nothing is wrong with; not to be changed."""
    folder = tmp_path_factory.mktemp("plain")
    train(read(configuration(folder_of(folder / "data", picture("x.png", GREY)), folder / "run")))
    return folder / "run"


@pytest.mark.parametrize("kind", LABELS)
def test_labels(kind, regloss, plain, tmp_path):
    write, expected = LABELS[kind]
    data = folder_of(tmp_path / "data", picture("x.png", GREY), label=write)
    scored = regloss("evaluate", plain, "--set", f"data.root={data}", "-o", tmp_path / "scores.json")
    label = next((data / "labels").glob("a.*"))
    started = regloss("segment", data / "images" / "a.png", "--start", label, *WEAK, "-o", tmp_path / "started")
    if expected:
        refused(scored, expected, tmp_path / "scores.json")
    else:
        assert scored.code == 0, scored
    if kind in STARTS:
        assert started.code == 0, started
        with Image.open(tmp_path / "started" / "labels.png") as found:
            np.testing.assert_array_equal(np.asarray(found), DISK)
    else:
        refused(started, r"a\.(png|jpg|bmp)|In the start", tmp_path / "started")
    for supervision in ("scribbles", "labels"):
        run = tmp_path / supervision
        done = regloss("train", configuration(data, run, supervision=supervision))
        if expected:
            refused(done, expected, run)
        else:
            assert done.code == 0, done
            assert "no label is of class" not in done.out


@pytest.mark.parametrize("kind", SCRIBBLES)
def test_scribbles(kind, regloss, tmp_path):
    values, expected, way_out = SCRIBBLES[kind]
    write = picture("x.png", values.astype(np.uint8))
    data = folder_of(tmp_path / "data", picture("x.png", GREY), scribble=write)
    run, out = tmp_path / "run", tmp_path / "out"
    refused(regloss("train", configuration(data, run)), expected, run)
    image, scribbles = data / "images" / "a.png", data / "scribbles" / "a.png"
    refused(regloss("segment", image, "--scribbles", scribbles, "-o", out), expected, out)
    if way_out:
        option = "--values" if "=" in way_out else "--unlabelled"
        done = regloss("segment", image, "--scribbles", scribbles, option, way_out, "-o", out)
        assert done.code == 0, done
        with Image.open(out / "labels.png") as found:
            labels = np.asarray(found)
        background = 2 if kind.startswith("0") else 0
        np.testing.assert_array_equal(labels, np.where(DISK, 1, background))


def test_what_was_meant_is_accepted(regloss, tmp_path):
    """The ways out that the messages name."""
    masks = picture("x.png", DISK * 255)
    data = folder_of(tmp_path / "data", picture("x.png", GREY), label=masks, scribble=picture("x.png", DISK))
    values = {"0": "background", "255": "object"}
    done = regloss("train", configuration(data, tmp_path / "a", supervision="labels", labels=values))
    assert done.code == 0, done
    assert regloss("evaluate", tmp_path / "a").code == 0  # the map is stored with the run
    config = configuration(data, tmp_path / "b", **{"label-values": values})
    refused(regloss("train", config), r"data.max-scribbled = 1\.00", tmp_path / "b")
    assert regloss("train", config, "--set", "data.max-scribbled=1").code == 0
    image, scribbles = data / "images" / "a.png", data / "scribbles" / "a.png"
    done = regloss("segment", image, "--scribbles", scribbles, "--max-scribbled", 1, "-o", tmp_path / "c")
    assert done.code == 0, done


def test_a_class_that_no_label_holds_is_said(regloss, tmp_path):
    data = folder_of(tmp_path / "data", picture("x.png", GREY))
    config = configuration(data, tmp_path / "run")
    done = regloss("train", config, "--set", 'data.classes=["background","object","rest"]')
    assert done.code == 0, done
    told = "test: no label is of class 'rest', so these scores say nothing of it"
    assert told in done.out.splitlines()
    assert told in regloss("evaluate", tmp_path / "run").out.splitlines()


def test_names_of_classes_beside_scribbles(regloss, tmp_path):
    data = folder_of(
        tmp_path / "data", picture("x.png", GREY), scribble=picture("x.png", np.where(STROKES == 1, 2, STROKES))
    )
    names = "".join(
        f'[[class]]\nname = "{name}"\ncolor = [{n}, 9, 9]\n' for n, name in enumerate(["sky", "sea", "ship"])
    )
    (data / "classes.toml").write_text(names)
    image, scribbles = data / "images" / "a.png", data / "scribbles" / "a.png"
    done = regloss("segment", image, "--scribbles", scribbles, "-o", tmp_path / "out")
    assert f"pixels per class: 0 (sky): {(DISK == 0).sum()}, 2 (ship): {DISK.sum()}" in done.out.splitlines()
    assert f"Classes are those of {data / 'classes.toml'}." in done.out.splitlines()
    with Image.open(tmp_path / "out" / "labels.png") as found:
        assert found.getpalette()[:9] == [0, 9, 9, 1, 9, 9, 2, 9, 9]
    done = regloss("segment", image, "--scribbles", scribbles, "-o", tmp_path / "b", "--values", "0=sea,2=ship")
    assert f"pixels per class: 1 (sea): {(DISK == 0).sum()}, 2 (ship): {DISK.sum()}" in done.out.splitlines()


def test_ranges_of_values(regloss, trained, tmp_path):
    """Said, chosen, and kept with the model."""
    deep = picture("x.png", scaled(VALUES, 4095, np.uint16))
    path = deep(tmp_path)
    done = regloss("segment", path, "--phases", 2, "-o", tmp_path / "a")
    assert "values from 1228 to 2866 of 65535: 0 to 4095 stretched to 0..1; --window LOW HIGH" in done.out
    done = regloss("segment", path, "--phases", 2, "--window", 0, 65535, "-o", tmp_path / "b")
    assert done.code == 0
    assert "nan" not in done.out
    assert "Warning: all pixels are of class 0" in done.out
    assert "--window 1228 2866 stretches them" in done.out
    done = regloss("segment", path, "--phases", 2, "--window", 1500, 2000, "-o", tmp_path / "c")
    assert "100 % of its values, which go from 1228 to 2866, lie outside of the window 1500 to 2000" in done.out
    refused(
        regloss("segment", path, "--phases", 2, "--window", 9, 1, "-o", tmp_path / "d"),
        "A window is two",
        tmp_path / "d",
    )
    done = regloss("predict", trained, path, "-o", tmp_path / "e")  # the training had images of 8 bits alone
    assert "0 to 4095 stretched to 0..1; --window LOW HIGH" in done.err

    config = configuration(folder_of(tmp_path / "data", deep), tmp_path / "run")
    done = regloss("train", config)
    assert "0 to 4095 stretched to 0..1; window = [LOW, HIGH] chooses another range." in done.err
    brighter = picture("y.png", scaled(VALUES, 9000, np.uint16))(tmp_path)
    done = regloss("predict", tmp_path / "run", brighter, "-o", tmp_path / "f")
    assert "y.png: 22 % of its values, which go from 2700 to 6300, lie outside of the window 0 to 4095" in done.err
    done = regloss("predict", tmp_path / "run", brighter, "--window", 0, 9000, "-o", tmp_path / "g")
    assert (done.code, done.err) == (0, "")


def test_a_folder_of_many_kinds(regloss, trained, tmp_path):
    folder = tmp_path / "mixed"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.bmp", "c.webp", "d.gif", "e.gif"):
        Image.fromarray(GREY).save(folder / name)
    (folder / "notes.txt").write_text("mine")
    done = regloss("predict", trained, folder, "-o", tmp_path / "out")
    assert done.out.startswith("3 images: ")
    assert "3 files that are not of the kinds" in done.err
    assert "2 .gif, 1 .txt; 1 subfolders, which are not searched: more." in done.err
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir()) == ["a.png", "b.png", "c.png"]
    for name in "abc":
        next(folder.glob(f"{name}.*")).unlink()
    refused(
        regloss("predict", trained, folder, "-o", tmp_path / "b"),
        "neither an image nor a folder.*2 .gif",
        tmp_path / "b",
    )


# Formulas to a spreadsheet, markup to a browser and to matplotlib, patterns, placeholders, colours of a terminal.
NAMES = (
    "=HYPERLINK(1)",
    "<b onclick=x>&lt;",
    "$\\frac$",
    "a,b;'c'\"",
    "%s {0} ${x}",
    "[a-z]*",
    "@\u00fc\x1b[31m",
    "-1 #",
)


class Tags(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(f"{tag} {name}" for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_with_formulas_and_markup(regloss, real_report, tmp_path):
    """Of files, folders and classes: as they are in JSON and in names of files, text on the page, nowhere in CSV."""
    data, run = tmp_path / "<i>data", tmp_path / "<u>=run$_$"
    for part, values in (("images", GREY), ("labels", DISK), ("scribbles", STROKES)):
        (data / part).mkdir(parents=True)
        for name in NAMES:
            Image.fromarray(values).save(data / part / f"{name}.png")
    split = {"train": ["=*", "<*", "$*", "a*"], "test": ["%*", "[[]*", "@*", "-*"]}
    classes = ["=1+1", "<b>$_$&amp;"]
    done = regloss("train", configuration(data, run, split=split, classes=classes), "--set", "evaluation.examples=3")
    assert done.code == 0, done
    scores = json.loads((run / "scores.json").read_text())
    assert [*scores["test"]["groups"]] == sorted(NAMES[4:])
    assert [*scores["test"]["iou"]] == classes
    page = (run / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not {"script", "b onclick", "u", "iframe", "a"} & tags.found
    for name in (*NAMES[4:], *classes, run.name):
        assert name in tags.text, name
    for path in run.rglob("*.csv"):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in header)
        assert rows
        assert all(cell == "" or np.isfinite(float(cell)) for row in rows for cell in row)
    done = regloss("predict", run, data / "images", "--crf", "--probabilities", "npy", "-o", tmp_path / "out")
    assert done.code == 0, done
    for part, suffix in (("labels", ".png"), ("overlays", ".png"), ("probabilities", ".npy")):
        assert {path.name for path in (tmp_path / "out" / part).iterdir()} >= {name + suffix for name in NAMES}
    for name in NAMES:
        image, scribbles = (data / part / f"{name}.png" for part in ("images", "scribbles"))
        done = regloss("segment", image, "--scribbles", scribbles, "-o", tmp_path / "one", "--overwrite")
        assert done.code == 0, done
        with Image.open(tmp_path / "one" / "labels.png") as found:
            np.testing.assert_array_equal(np.asarray(found), DISK)
