"""Exported models give what the model gives; what cannot be exported is said before anything is written."""

import pytest
import torch

import regloss
from regloss.apps.export import export_run
from regloss.errors import UsageError
from regloss.training.trainer import train

# What torch's exporter and its dependencies say of themselves.
pytestmark = pytest.mark.filterwarnings("default")

TV = 'layer={regularizer = "tv", entropy = 0.5, max-steps = 20, learn = ["weight", "entropy"]}'
DIFFUSION = 'layer={regularizer = "threshold-dynamics", solver = "dca", entropy = 0.5, max-steps = 5}'


@pytest.fixture
def run(config, tmp_path):
    def make(*changes):
        train(config("training.epochs=1", 'evaluation.energy=""', "data.test=", *changes, loop="gradient-descent"))
        return tmp_path / "run"

    return make


@pytest.mark.parametrize(
    ("layer", "to_model"),  # 5 steps of threshold dynamics are far from where they end
    [(TV, 0.02), (DIFFUSION, 0.2), ('layer=""', 1e-6)],
    ids=["tv", "threshold-dynamics", "none"],
)
def test_torch_export(run, images, tmp_path, layer, to_model):
    folder = run(layer)
    made = export_run(folder, images / "images", tmp_path / "model.pt2", "torch-export")
    assert (made.size, made.images) == ((24, 28), 5)
    assert made.difference < 1e-6
    assert made.to_model < to_model
    assert made.bytes == (tmp_path / "model.pt2").stat().st_size
    image = torch.rand(1, 1, 24, 28)
    logits = torch.export.load(tmp_path / "model.pt2").module()(image)
    expected = regloss.load(folder, device="cpu").logits(image[0].numpy())
    assert float((logits.softmax(1) - expected.softmax(1)).abs().max()) < to_model


def test_onnx(run, images, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'regloss[onnx]'")
    made = export_run(run(TV), images / "images", tmp_path / "model.onnx", steps=5)
    assert made.difference < 1e-5
    with pytest.raises(UsageError, match="exists already"):
        export_run(tmp_path / "run", images / "images", tmp_path / "model.onnx")


def test_what_is_refused(run, images, tmp_path):
    folder, pictures = run('layer={regularizer = "nltv", max-steps = 5}'), images / "images"
    with pytest.raises(UsageError, match=r"nltv computes weights or a graph .* cannot be exported"):
        export_run(folder, pictures, tmp_path / "model.pt2", "torch-export")
    with pytest.raises(UsageError, match=r"ends in \.pt2; got"):
        export_run(folder, pictures, tmp_path / "model.onnx", "torch-export")
    with pytest.raises(UsageError, match="one of onnx, torch-export; got 'tflite'"):
        export_run(folder, pictures, tmp_path / "model.pt2", "tflite")
    with pytest.raises(UsageError, match="neither an image nor a folder"):
        export_run(folder, tmp_path / "nothing", tmp_path / "model.pt2", "torch-export")
    layer = regloss.RegularizedSoftmax(["tv", regloss.StarShape(label=1)], max_steps=5)
    with pytest.raises(UsageError, match="star holds by a search over labels"):
        layer.unrolled()
    assert not (tmp_path / "model.pt2").exists()


def test_a_layer_that_stays_in_python(run, images, tmp_path):
    """The network alone is exported, and the layer behind its logits gives what the model gives."""
    folder = run('layer={regularizer = "nltv", max-steps = 5}')
    made = export_run(folder, images / "images", tmp_path / "model.pt2", "torch-export", changes=['layer=""'])
    assert made.to_model == made.difference < 1e-6
    image = torch.rand(1, 1, 24, 28)
    logits = torch.export.load(tmp_path / "model.pt2").module()(image)
    model = regloss.load(folder, device="cpu")
    found = model.model.segmenter.layer.log_probabilities(logits, image).softmax(1)
    expected = model.logits(image[0].numpy()).softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_layer_without_fixed_steps(run, images, tmp_path):
    folder = run('layer={kind = "sigmoid", regularizer = "ordered"}')
    with pytest.raises(UsageError, match=r"layer 'sigmoid' has no form of fixed steps"):
        export_run(folder, images / "images", tmp_path / "model.pt2", "torch-export")


CRF = 'layer={kind = "dense-crf", weights = [3.0, 1.0], sigma-xy = [9.0, 2.0], sigma-rgb = [0.2, "inf"], max-steps = 5}'


def test_a_dense_crf(run, images, tmp_path):
    """Few pixels are summed exactly by the model, too."""
    folder = run(CRF)
    made = export_run(folder, images / "images", tmp_path / "model.pt2", "torch-export")
    assert made.difference < 1e-6
    assert made.to_model < 1e-5
    assert made.pixels_changed == 0


@pytest.mark.slow
def test_a_dense_crf_at_half_resolution(run, images, tmp_path):
    """The model sums at half the resolution, and what is exported at full, for as many steps as it takes."""
    folder = run(CRF)
    changes = ["layer.scale=0.5"]
    made = export_run(folder, images / "images", tmp_path / "model.pt2", "torch-export", steps=50, changes=changes)
    assert made.difference < 1e-6
    assert made.to_model > 1e-5


def test_a_dense_crf_as_onnx(run, images, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'regloss[onnx]'")
    made = export_run(run(CRF), images / "images", tmp_path / "model.onnx")
    assert made.difference < 1e-5
    assert made.to_model < 1e-5
