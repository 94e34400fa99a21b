"""Scores of a trained model, and what is said when there are none."""

import json
import shutil

import pytest
import small_data

from regloss.apps.evaluate import evaluate_run
from regloss.errors import UsageError
from regloss.training.config import parse
from regloss.training.trainer import train


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a training's output, which may be changed."""
    return shutil.copytree(trained, tmp_path / "copy")


def test_evaluating_gives_the_trainings_scores(trained):
    expected = json.loads((trained / "scores.json").read_text())["test"]
    assert evaluate_run(trained, "test") == expected
    assert evaluate_run(trained, "train")["images"] == 6
    changed = evaluate_run(trained, "test", ["evaluation.trimap=[2]", 'evaluation.energy=""'])
    assert changed["trimap"].keys() == {"2"}
    assert "energy" not in changed


@pytest.mark.parametrize("change", ["data.window=[10, 200]", "data.scribble-length=0.5", "evaluation.trimap=[2]"])
def test_samples_are_not_checked_again_that_a_training_has_checked(change, images, tmp_path, monkeypatch):
    monkeypatch.setenv("REGLOSS_CACHE", str(tmp_path / "cache"))
    train(parse(small_data.settings(images, tmp_path / "run", change, "training.epochs=1")))
    monkeypatch.setattr("regloss.training.survey.find_facts", None)
    assert evaluate_run(tmp_path / "run", "test")["images"] == 2
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        evaluate_run(tmp_path / "run", "train")


def test_evaluating_on_other_data(trained, tmp_path):
    other = small_data.write_folder(tmp_path / "other", size=(30, 20))
    scores = evaluate_run(trained, "all", [f"data.root={other}"])
    assert scores["images"] == 8
    assert sum(map(sum, scores["confusion"])) == 8 * 30 * 20


def test_what_cannot_be_evaluated(trained, tmp_path, images):
    with pytest.raises(UsageError, match="no subset 'tset'"):
        evaluate_run(trained, "tset")
    with pytest.raises(UsageError, match=r"The data set has the classes .*'class 3'\], the model \['background'"):
        evaluate_run(trained, "test", ["data.classes=4"])
    other = small_data.write_folder(tmp_path / "other")
    (other / "labels" / "i6.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 images have no label file in .*: i6"):
        evaluate_run(trained, "test", [f"data.root={other}"])
    with pytest.raises(UsageError, match="given changes: unknown key"):
        evaluate_run(trained, "test", ["data.rot=3"])
