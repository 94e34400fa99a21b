"""One loss in four frameworks: for equal logits of the sample images it is one number."""

import pytest
import torch

import regloss
from regloss.network_output import logits_of

# What the frameworks say of the machine, of torch and of each other.
pytestmark = pytest.mark.filterwarnings("default")

cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=255)
prior = regloss.losses.GridCRFLoss(weight=0.3)


@pytest.fixture(scope="module")
def data():
    """Image (2, 3, 96, 96) and scribbles of two of the sample images."""
    samples = regloss.create("dataset", "sample")
    chosen = [samples.load(name) for name in samples.ids("train")[:2]]
    image = torch.stack([torch.from_numpy(sample.image[:, 40:136, 40:136]) for sample in chosen])
    return image, torch.stack([torch.from_numpy(sample.scribble[40:136, 40:136]).long() for sample in chosen])


def network():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 2, 5, padding=2)


@pytest.fixture(scope="module")
def expected(data):
    """The loss in plain PyTorch."""
    image, labels = data
    with torch.no_grad():
        logits = network()(image)
        terms = [float(cross_entropy(logits, labels)), float(prior(logits, image=image))]
    assert min(terms) > 1e-3
    return sum(terms)


def test_lightning(data, expected, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: regloss[lightning]")
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, number):
            image, labels = batch
            logits = self.network(image)
            loss = cross_entropy(logits, labels) + prior(logits, image=image)
            seen.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=2))
    assert seen == [pytest.approx(expected, abs=1e-6)]


def test_monai(data, expected):
    pytest.importorskip("monai", reason="MONAI is not installed: regloss[monai]")
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed: regloss[monai]")
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedTrainer

    from regloss.apps.monai import ImageLoss

    model, loss = network(), ImageLoss([cross_entropy, prior])
    entries = [{"image": image, "label": labels[None]} for image, labels in zip(*data, strict=True)]
    engine = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(entries), batch_size=2),
        network=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss_function=loss,
        prepare_batch=loss.prepare_batch,
    )
    engine.run()
    assert float(engine.state.output[0]["loss"]) == pytest.approx(expected, abs=1e-6)


def test_transformers(data, expected, tmp_path):
    """The trainer's mean over its only step."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: regloss[transformers]")
    pytest.importorskip("accelerate", reason="accelerate is not installed: regloss[transformers]")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, pixel_values, labels=None):
            return transformers.modeling_outputs.SemanticSegmenterOutput(logits=self.network(pixel_values))

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            image, labels = inputs["pixel_values"], inputs["labels"]
            outputs = model(pixel_values=image)
            logits = logits_of(outputs, image.shape[2:])
            loss = cross_entropy(logits, labels) + prior(logits, image=image)
            return (loss, outputs) if return_outputs else loss

    entries = [{"pixel_values": image, "labels": labels} for image, labels in zip(*data, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    done = Trainer(Model(), arguments, train_dataset=entries).train()
    assert done.training_loss == pytest.approx(expected, abs=1e-6)
