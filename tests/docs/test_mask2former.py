"""The module of the page on transformers that makes logits of Mask2Former's masks and classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regloss

pytest.importorskip("transformers", reason="pip install 'regloss[transformers]'")

# What transformers says of torch and of itself.
pytestmark = pytest.mark.filterwarnings("default")

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "transformers.md"
SWIN = {
    "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4,
    "image_size": 64, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
TINY = {
    "num_labels": 3, "num_queries": 5, "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32,
    "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "encoder_feedforward_dim": 16,
    "dim_feedforward": 16, "backbone_config": SWIN,
}  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
    (code,) = (block.split("```")[0] for block in blocks if "class SemanticMask2Former" in block)
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


def network(**arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    target = "my_networks:SemanticMask2Former"
    made = regloss.create("network", "module", in_channels=3, classes=3, target=target, arguments=arguments)
    assert isinstance(made, torch.nn.Module)
    return made


@pytest.mark.usefixtures("module")
def test_probabilities_are_the_scores_over_their_sum() -> None:
    made = network(config=TINY).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        logits = made(image)
        found = made.module.model(pixel_values=image)
    assert logits.shape == (2, 3, 64, 96)
    classes, masks = found.class_queries_logits.softmax(-1), found.masks_queries_logits.sigmoid()
    assert classes.shape == (2, 5, 4)
    scores = torch.stack([sum(classes[:, q, k, None, None] * masks[:, q] for q in range(5)) for k in range(3)], 1)
    with torch.no_grad():
        own = made.module(image)
    torch.testing.assert_close(own.softmax(1), scores / scores.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("module")
def test_it_learns_scribbles_and_is_read_from_a_folder(tmp_path: Path) -> None:
    made = network(config=TINY).train()
    image, labels = torch.rand(1, 3, 64, 64), torch.full((1, 64, 64), 255)
    image[..., 32:] *= 0.2
    labels[:, 5, :28], labels[:, 40, 36:] = 1, 2
    prior = regloss.losses.GridCRFLoss(weight=0.1)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        logits = made(image)
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255) + prior(logits, image=image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    made.module.model.save_pretrained(tmp_path / "saved")
    again = network(folder=str(tmp_path / "saved"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(image), made.eval()(image), rtol=0, atol=1e-5)
