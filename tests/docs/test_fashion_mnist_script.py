"""The Fashion-MNIST experiment: its reader, its noise, its losses, and a run on tiny IDX files of our own."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from experiment_scripts import EXPERIMENTS, script_module

import regloss

TRAIN, TEST = 300, 50


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with script_module("fashion_mnist") as module:
        yield module
    torch.set_num_threads(threads)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder of images that are easy to tell apart: class k has a bright band at rows 2k and 2k + 1."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, TRAIN + TEST)
    images = generator.integers(0, 100, (TRAIN + TEST, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    folder = tmp_path / "data" / "fashion_mnist"
    folder.mkdir(parents=True)
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)
    return folder.parent


def test_idx_files_are_read_as_written(script: ModuleType, tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5) * 8
    write_idx(tmp_path / "x.gz", values)
    np.testing.assert_array_equal(script.read_idx(tmp_path / "x.gz").numpy(), values)
    (tmp_path / "float.gz").write_bytes(gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x00"))
    with pytest.raises(regloss.UsageError, match=r"float\.gz is not an IDX file of unsigned bytes"):
        script.read_idx(tmp_path / "float.gz")


def test_the_last_images_are_kept_for_testing(script: ModuleType, root: Path) -> None:
    data = script.load(root / "fashion_mnist", TEST)
    assert data.train_images.shape == (TRAIN, 1, 28, 28)
    assert data.test_images.shape == (TEST, 1, 28, 28)
    every = script.read_idx(root / "fashion_mnist" / "train-labels-idx1-ubyte.gz")
    assert torch.equal(torch.cat([data.train_labels, data.test_labels]), every.long())
    assert abs(float(data.train_images.mean())) < 1e-4
    assert abs(float(data.train_images.std()) - 1) < 1e-4


def test_the_noise_has_the_rates_of_the_matrix(script: ModuleType) -> None:
    labels = torch.arange(10).repeat(10_000)
    noisy = script.corrupt(labels, seed=1)
    assert torch.equal(labels, torch.arange(10).repeat(10_000))  # the argument is left alone
    counts = torch.zeros(10, 10).index_put((labels, noisy), torch.ones(len(labels)), accumulate=True)
    # four standard deviations of a rate of .55 among 10,000 draws: .02
    torch.testing.assert_close(counts / 10_000, script.NOISE_MATRIX, rtol=0, atol=0.02)
    assert abs(float((noisy != labels).double().mean()) - script.OUTLIERS) < 0.005
    assert not torch.equal(noisy, script.corrupt(labels, seed=2))


def test_forward_correction_is_the_robust_loss_at_the_share_of_wrong_labels(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (64,), generator=generator)
    logits = (5 * torch.randn(64, 10, generator=generator, dtype=torch.float64)).requires_grad_()
    results = []
    for loss in (script.ROBUST, script.FORWARD):
        values = script.make_divergence(loss, script.OUTLIERS)(labels, logits)
        results.append((values.detach(), *torch.autograd.grad(values.sum(), logits)))
    # the matrix is float32 (.55 and .05 are not exact there), hence not 1e-15
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-6)


def test_training_learns_through_the_noise(script: ModuleType, root: Path) -> None:
    data = script.load(root / "fashion_mnist", TEST)
    rows = list(script.train(script.ROBUST, 0.4, data, seed=0, epochs=12, batch_size=20))
    assert [row.epoch for row in rows] == list(range(1, 13))
    assert rows[-1].train_loss < rows[0].train_loss
    assert rows[-1].test_accuracy > 0.5  # chance is .1, and only 165 of the 300 labels are right
    again = script.train(script.FORWARD, script.OUTLIERS, data, seed=0, epochs=1)
    same = script.train(script.ROBUST, script.OUTLIERS, data, seed=0, epochs=1)
    assert next(again).train_loss == pytest.approx(next(same).train_loss, abs=2e-5)


def test_a_stopped_experiment_goes_on(
    script: ModuleType, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LOSSES", [(script.ROBUST, 0.0), (script.ROBUST, 0.4), (script.FORWARD, 0.45)])
    script.main(root, tmp_path, epochs=2, seeds=1, test=TEST)
    first = (tmp_path / "fashion-mnist.csv").read_text().splitlines()
    assert first[0].split(",") == list(script.Row._fields)
    assert len(first) == 1 + 3 * 2
    capsys.readouterr()
    script.main(root, tmp_path, epochs=2, seeds=2, test=TEST)
    both = (tmp_path / "fashion-mnist.csv").read_text().splitlines()
    assert both[:7] == first
    assert {line.split(",")[2] for line in both[7:]} == {"1"}
    assert len(both) == 1 + 6 * 2
    printed = capsys.readouterr().out
    assert printed.count("Row(") == 3
    assert "| forward correction with T (= 0.45) |" in printed
    assert (tmp_path / "fashion-mnist.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(regloss.UsageError, match="another length than 5 epochs"):
        script.main(root, tmp_path, epochs=5, seeds=1, test=TEST)


def test_the_published_table_is_that_of_the_published_runs(script: ModuleType) -> None:
    rows = script.read_rows(EXPERIMENTS / "fashion-mnist.csv")
    assert len(script.curves(rows, "test_accuracy")) == len(script.LOSSES)
    assert script.table(rows) in (EXPERIMENTS / "fashion-mnist.md").read_text()
