"""Weights & Biases and MLflow: only if asked for, and then with curves, settings and scores."""

import json
import sys

import pytest

from regloss.errors import MissingDependency, UsageError
from regloss.hooks import manager
from regloss.training.trainer import train

# What the loggers say of themselves.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def trained_with(config, tmp_path, monkeypatch):
    def make(loggers):
        monkeypatch.setenv("REGLOSS_LOGGERS", loggers)
        train(config("training.epochs=1", 'evaluation.energy=""', loop="gradient-descent"))
        return tmp_path / "run"

    return make


def test_no_logger_is_used_unasked(trained_with):
    names = {name for name, _ in manager().list_name_plugin()}
    assert {"regloss:wandb", "regloss:mlflow"} <= names
    assert sorted(path.name for path in (trained_with("") / "log").iterdir()) == ["epochs.csv", "steps.csv"]


def test_a_logger_that_there_is_not_is_refused_before_anything_is_written(trained_with, tmp_path):
    with pytest.raises(UsageError, match="REGLOSS_LOGGERS names 'wanbd'; the loggers are wandb and mlflow"):
        trained_with("mlflow, wanbd")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(
    name, trained_with, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=rf"pip install 'regloss\[{name}\]'"):
        trained_with(name)
    assert not (tmp_path / "run").exists()


def test_mlflow_keeps_curves_settings_and_scores(trained_with):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'regloss[mlflow]'")
    folder = trained_with("mlflow")
    client = mlflow.MlflowClient((folder / "log" / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("regloss").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["network.name"] == "unet"
    scores = json.loads((folder / "scores.json").read_text())
    assert run.data.metrics["test/mean-iou"] == pytest.approx(scores["test"]["mean-iou"])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "step/loss")] == [1, 2, 3]
    assert "epoch/loss" in run.data.metrics


def test_wandb_writes_an_offline_run(trained_with, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: pip install 'regloss[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = trained_with("wandb")
    (run,) = (folder / "log" / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    content = file.read_bytes()
    for text in (b"step/loss", b"epoch/loss", b"test/mean-iou", b"network.name"):
        assert text in content
