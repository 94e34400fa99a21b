"""Noise at evaluation: its distribution, that it repeats, and what comes out."""

import json

import numpy as np
import pytest
import torch

from regloss.apps.evaluate import evaluate_noisy, evaluate_run
from regloss.apps.noise import KINDS, Noise
from regloss.errors import UsageError
from regloss.io.images import read_image
from regloss.metrics.scores import Scores
from regloss.training.model import load_model, predict
from regloss_plugins.datasets.folder import FolderDataset

GREY = np.full((3, 120, 150), 0.5, dtype=np.float32)


def test_gaussian_noise_is_independent_in_pixels_and_channels():
    given = GREY.copy()
    noisy = Noise("gaussian", 0.1)(GREY, "a", 0)
    assert (noisy.dtype, noisy.shape) == (np.float32, GREY.shape)
    assert np.array_equal(GREY, given)
    added = (noisy - GREY).reshape(3, -1) / 0.1  # 18,000 numbers each; five sigma are not clipped
    np.testing.assert_allclose(added.mean(1), 0, atol=4 / 18000**0.5)
    np.testing.assert_allclose(added.std(1), 1, atol=4 / 36000**0.5)
    assert np.abs(np.corrcoef(added) - np.eye(3)).max() < 4 / 18000**0.5
    grid = added.reshape(3, 120, 150)
    assert abs((grid[:, 1:] * grid[:, :-1]).mean()) < 4 / 53000**0.5


def test_salt_and_pepper_turns_whole_pixels_black_or_white():
    noisy = Noise("salt-and-pepper", 0.2)(GREY, "a", 0)
    assert set(np.unique(noisy)) == {0, 0.5, 1}
    assert np.array_equal(noisy.min(0), noisy.max(0))
    black, white = (float((noisy[0] == value).mean()) for value in (0, 1))
    assert (black, white) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.1, abs=0.01))


def test_salt_is_white_and_pepper_black():
    for kind, value in (("salt", 1), ("pepper", 0)):
        noisy = Noise(kind, 0.2)(GREY, "a", 0)
        assert set(np.unique(noisy)) == {0.5, value}
        assert np.array_equal(noisy.min(0), noisy.max(0))
        assert float((noisy[0] == value).mean()) == pytest.approx(0.2, abs=0.01)
        few = Noise(kind, 0.05)(GREY, "a", 0) != GREY
        assert np.array_equal(noisy[few], np.full(few.sum(), value, dtype=np.float32))
        assert few.any()


def test_what_it_depends_on():
    noise = Noise("gaussian", 0.1)
    first = noise(GREY, "a", 0)
    assert np.array_equal(noise(GREY, "a", 0), first)
    for other in (noise(GREY, "b", 0), noise(GREY, "a", 1)):
        assert abs(np.corrcoef((other - GREY).ravel(), (first - GREY).ravel())[0, 1]) < 0.02


def test_levels_share_their_random_numbers():
    weak, strong = (Noise("gaussian", level)(GREY, "a", 0) - GREY for level in (0.02, 0.06))
    np.testing.assert_allclose(strong, 3 * weak, rtol=1e-4, atol=1e-6)
    few, many = (Noise("salt-and-pepper", level)(GREY, "a", 0) for level in (0.1, 0.3))
    touched = few != GREY
    assert np.array_equal(many[touched], few[touched])
    for kind in KINDS:
        assert np.array_equal(Noise(kind, 0.0)(GREY, "a", 0), GREY)


def test_values_stay_in_range():
    noisy = Noise("gaussian", 1.0)(GREY, "a", 0)
    assert (noisy.min(), noisy.max()) == (0, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gaussian", r"KIND:LEVEL, for example gaussian:0.1 .*; got 'gaussian'"),
        ("gaussian:much", "KIND:LEVEL"),
        ("gaussian:nan", "KIND:LEVEL"),
        ("poisson:0.1", r"Noise is gaussian, salt-and-pepper, salt or pepper; got 'poisson'"),
        ("gaussian:25", r"standard deviation in units of \[0, 1\] \(25/255 = 0.098, say\), from 0 to 1; got 25"),
        ("gaussian:-0.1", "from 0 to 1; got -0.1"),
        ("salt-and-pepper:1.5", "a fraction of the pixels, from 0 to 1; got 1.5"),
        ("salt:3", "level of salt noise must be a fraction of the pixels, from 0 to 1; got 3"),
    ],
)
def test_invalid_noise(text, expected, trained):
    with pytest.raises(UsageError, match=expected):
        evaluate_noisy(trained, "test", [text])


def test_scores_of_noisy_images(trained, images):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    levels = ["gaussian:0", "gaussian:0.3", Noise("salt-and-pepper", 0.5)]
    scores = evaluate_noisy(trained, "test", levels)
    assert list(scores) == ["test", "test gaussian:0", "test gaussian:0.3", "test salt-and-pepper:0.5"]
    assert scores["test"] == scores["test gaussian:0"] == evaluate_run(trained, "test")
    assert json.loads(json.dumps(scores)) == scores
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert evaluate_noisy(trained, "test", levels) == scores
    assert evaluate_noisy(trained, "test", levels[1:2], ["seed=1"])["test gaussian:0.3"] != scores["test gaussian:0.3"]

    # By hand, from the files.
    model, noise = load_model(trained), Noise("gaussian", 0.3)
    by_hand = Scores(model.classes)
    dataset = FolderDataset(root=str(images), classes=3, split={"test": ["i6", "i7"]})
    for key in ("i6", "i7"):
        image = noise(read_image(images / "images" / f"{key}.png"), key, seed=0)
        prediction = predict(model.segmenter, torch.from_numpy(image).unsqueeze(0)).argmax(1)[0]
        by_hand.update(prediction, torch.from_numpy(dataset.load(key).label.astype(np.int64)), key)
    expected, found = by_hand.compute(), scores["test gaussian:0.3"]
    assert {name: found[name] for name in expected if name != "trimap"} == {
        name: value for name, value in expected.items() if name != "trimap"
    }
