"""Tiles give what the whole image gives; predictions go on, and are spread, with every file once."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import small_data
import torch
from PIL import Image

from regloss.apps import predict as predict_module
from regloss.apps.predict import predict_files
from regloss.apps.tiled import Tiling, receptive_radius
from regloss.apps.trained_model import load
from regloss.errors import UsageError
from regloss.io.images import read_image
from regloss.training.config import parse
from regloss.training.trainer import train

tifffile = pytest.importorskip("tifffile")


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net with batch normalisation, three levels deep, after one epoch; mean and spread by image."""
    output = tmp_path_factory.mktemp("runs") / "tiled"
    changes = ("training.epochs=1", "network.norm=batch", "network.levels=3", "data.normalize=image")
    train(parse(small_data.settings(images, output, *changes, loop="gradient-descent")))
    return output


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blobs with noise, darker to the right; 650 x 1137 pixels, a multiple of nothing."""
    generator = np.random.default_rng(0)
    rows, columns = np.indices((650, 1137))
    values = 90 + 60 * np.sin(rows / 17) * np.cos(columns / 23) - columns / 20 + generator.normal(0, 12, rows.shape)
    path = tmp_path_factory.mktemp("large") / "large.tif"
    tifffile.imwrite(path, values.clip(0, 255).astype(np.uint8), tile=(128, 128), compression="zlib")
    return path


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_tiles_are_the_whole_image(run: Path, large: Path, tmp_path: Path) -> None:
    """Up to the rounding of sums in another order: where the two best logits are closer than 1e-4, either may win."""
    model = load(run)
    image = read_image(large)
    logits = model.logits(image)[0]
    best = logits.topk(2, dim=0).values
    sure = (best[0] - best[1] > 1e-4).numpy()
    assert sure.mean() > 0.999
    radius = receptive_radius(model)
    assert radius is not None
    assert 10 < radius < 64
    tiling = Tiling.of([model], 100)
    assert (tiling.tile, tiling.margin, tiling.exact) == (512, 64, True)
    assert predict_files(run, large, tmp_path / "png", tile=100) == 1
    assert predict_files(run, large, tmp_path / "tiff", tile=512, labels="tiff") == 1
    assert predict_files(run, large, tmp_path / "whole", labels="tiff") == 1
    whole = labels_of(tmp_path / "whole" / "labels" / "large.tif")
    np.testing.assert_array_equal(whole, logits.argmax(0))
    assert len(np.unique(whole)) > 1
    for path in (tmp_path / "png" / "labels" / "large.png", tmp_path / "tiff" / "labels" / "large.tif"):
        found = labels_of(path)
        np.testing.assert_array_equal(found[sure], whole[sure])
    with Image.open(tmp_path / "png" / "overlays" / "large.png") as overlay:
        assert overlay.size == (1137, 650)


def test_the_margin_is_needed(run: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, labels along the borders of tiles are others."""
    monkeypatch.setattr(Tiling, "seen", lambda self, start, length: slice(start, min(start + self.tile, length)))
    predict_files(run, large, tmp_path / "out", tile=100)
    whole = load(run).logits(read_image(large))[0].argmax(0).numpy()
    wrong = labels_of(tmp_path / "out" / "labels" / "large.png") != whole
    assert wrong.any()
    assert not wrong[100:400, 100:400].any()


def test_what_the_network_sees() -> None:
    tiling = Tiling(tile=512, margin=64, step=64, least=100, exact=True)
    assert tiling.seen(0, 2000) == slice(0, 576)
    assert tiling.seen(512, 2000) == slice(448, 1088)
    assert tiling.seen(1536, 1540) == slice(1408, 1540)  # less than 100 from 1472 on
    assert tiling.seen(0, 50) == slice(0, 50)


def test_networks_that_look_at_everything_say_so(trained: Path, large: Path, tmp_path: Path) -> None:
    """Normalisation over groups of channels and all pixels."""
    assert receptive_radius(load(trained)) is None
    said: list[str] = []
    predict_files(trained, large, tmp_path / "out", tile=300, callback=said.append)
    assert any("as the network looks at the whole image" in line for line in said)


def test_16_bits_by_parts(run: Path, tmp_path: Path) -> None:
    """The range is looked up by parts, too."""
    values = np.random.default_rng(0).integers(0, 3000, (600, 620)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    said: list[str] = []
    predict_files(run, tmp_path / "a.tif", tmp_path / "tiles", tile=300, callback=said.append)
    predict_files(run, tmp_path / "a.tif", tmp_path / "whole")
    assert any("values from 0 to 2999 of 65535: 0 to 4095 stretched" in line for line in said)
    found, whole = (labels_of(tmp_path / name / "labels" / "a.png") for name in ("tiles", "whole"))
    assert (found != whole).mean() < 1e-3


def test_what_needs_whole_images(run: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for options, message in (
        ({"tile": 100, "probabilities": "npy"}, "need whole images"),
        ({"tile": 0}, "A tile has 1 pixel or more"),
        ({"labels": "jpg"}, "Label maps are written as png or tiff; got 'jpg'"),
        ({"devices": 0}, "1 device or more"),
        ({"nodes": 0}, "1 machine or more"),
        ({"nodes": 2}, "MASTER_ADDR, MASTER_PORT, NODE_RANK must be set in the environment"),
    ):
        with pytest.raises(UsageError, match=message):
            predict_files(run, large, tmp_path / "out", **options)
    rgb = np.zeros((600, 600, 4), np.uint8)
    tifffile.imwrite(tmp_path / "four.tif", rgb, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(UsageError, match="has 4 channels, but 1 is needed"):
        predict_files(run, tmp_path / "four.tif", tmp_path / "out", tile=100)
    assert not (tmp_path / "out").exists()


def test_a_killed_prediction_goes_on(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    written = copy.copy(predict_module._write)
    count = 0

    def killed(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        written(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict_module, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(trained, images / "images", out)
    monkeypatch.setattr(predict_module, "_write", written)
    done = {path.name: path.stat().st_mtime_ns for path in (out / "labels").iterdir()}
    assert len(done) == 3
    (out / "labels" / ".i7.png.123").write_bytes(b"begun by a process that was killed")
    said: list[str] = []
    assert predict_files(trained, images / "images", out, resume=True, callback=said.append) == 8
    assert "3 of 8 are done already." in said
    assert len(list((out / "labels").iterdir())) == len(list((out / "overlays").iterdir())) == 8
    assert done.items() <= {path.name: path.stat().st_mtime_ns for path in (out / "labels").iterdir()}.items()
    assert predict_files(trained, images / "images", out, resume=True) == 8  # nothing is left
    with pytest.raises(UsageError, match="was begun with other labels, so it cannot go on"):
        predict_files(trained, images / "images", out, resume=True, labels="tiff")
    with pytest.raises(UsageError, match="exists already"):
        predict_files(trained, images / "images", out)
    settings = json.loads((out / "prediction.json").read_text())
    assert settings["images"] == str(images / "images")


def test_two_processes_share_the_files(trained: Path, images: Path, tmp_path: Path) -> None:
    assert torch.get_num_threads() >= 1
    predict_files(trained, images / "images", tmp_path / "one")
    assert predict_files(trained, images / "images", tmp_path / "two", devices=2) == 8
    for part in ("labels", "overlays"):
        for path in (tmp_path / "one" / part).iterdir():
            assert path.read_bytes() == (tmp_path / "two" / part / path.name).read_bytes()
    assert len(list((tmp_path / "two" / "labels").iterdir())) == 8
