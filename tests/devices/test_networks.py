"""Networks, trainings by each loop, evaluation and prediction: on every device."""

from __future__ import annotations

import json

import pytest
import small_data
import torch
from places import found_and_exact

from regloss import registry
from regloss.apps.evaluate import evaluate_run
from regloss.apps.predict import predict_files
from regloss.testing.suite import assert_close, normal_values, random_image
from regloss.training.config import parse
from regloss.training.trainer import train

pytestmark = pytest.mark.gpu

SMALL = {"unet": {"levels": 2, "channels": 4}, "segnet": {"levels": 2, "channels": 4}, "plain-cnn": {}}
LARGE = [name for name in registry.names("network") if name not in (*SMALL, "module")]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_networks(name, device, monkeypatch):
    """Relative to the largest logit; gradients, in which a ReLU or a pooling may go the other way, on the whole."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def work(place):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = place(registry.create("network", name, in_channels=3, classes=2, **SMALL.get(name, {}))).eval()
        image = place(random_image(2, 3, (32, 40))).requires_grad_()
        found = network(image)
        (gradient,) = torch.autograd.grad((found * place(normal_values(*found.shape, seed=2))).sum(), image)
        return found.detach(), gradient

    (logits, exact_logits), (gradient, exact_gradient) = found_and_exact(work, device)
    largest = exact_logits.abs().max()
    assert_close(logits.double().cpu() / largest, exact_logits / largest, 1e-3, "logits")
    assert float((gradient.double().cpu() - exact_gradient).norm() / exact_gradient.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("loop", small_data.LOOPS)
def test_training_evaluation_and_prediction(loop, device, images, tmp_path):
    changes = ["training.epochs=2", f"training.accelerator={device.type}"]
    if loop == "dual-branch":
        changes.append("network.auxiliary-decoder=true")
    if device.type == "cuda":
        changes.append("training.precision=bf16-mixed")
    output = tmp_path / "run"
    train(parse(small_data.settings(images, output, *changes, loop=loop)))
    scores = json.loads((output / "scores.json").read_text())["test"]
    assert evaluate_run(output, "test") == scores
    assert predict_files(output, images / "images", tmp_path / "out") == 8
