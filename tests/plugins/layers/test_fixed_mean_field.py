"""Mean field of fixed steps gives what the dense-crf layer gives with exact filters, and survives `torch.export`."""

from __future__ import annotations

import math

import pytest
import torch

from regloss.errors import UsageError
from regloss_plugins.layers.dense_crf import DenseCRFLayer
from regloss_plugins.layers.fixed_mean_field import FixedMeanField, Kernel


def layer(**settings: object) -> DenseCRFLayer:
    given = {"weights": [4.0, 2.0], "sigma_xy": [5.0, 1.5], "sigma_rgb": [0.1, math.inf], "backend": "exact"}
    torch.manual_seed(1)
    made = DenseCRFLayer(3, **{**given, **settings})
    with torch.no_grad():
        made.compatibility.add_(0.2 * torch.rand(3, 3))  # not symmetric, and no longer what it was made with
    return made


@pytest.mark.parametrize("damped", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.4])
@pytest.mark.parametrize("weights", [[4.0, 2.0], [40.0, 20.0]], ids=["weak", "strong"])
def test_steps_are_those_of_the_layer(scale: float, damped: bool, weights: list[float]) -> None:
    given = layer(scale=scale, damped=damped, weights=weights, max_steps=6)
    image, logits = torch.rand(2, 3, 13, 18), 3 * torch.randn(2, 3, 13, 18)
    with torch.no_grad():
        expected = given.log_probabilities(logits, image).exp()
        found = given.unrolled().log_probabilities(logits, image).exp()
        other = given.unrolled(2).log_probabilities(logits, image).exp()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert float((other - expected).abs().max()) > 1e-3


def test_volumes_and_rows_of_pixels() -> None:
    given = layer(max_steps=3)
    for size in ((11,), (5, 6, 7)):
        image, logits = torch.rand(1, 2, *size), torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(given.unrolled()(logits, image), given(logits, image), rtol=0, atol=2e-5)


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    given = layer().unrolled()
    image, logits = torch.rand(1, 3, 9, 7), torch.randn(1, 3, 9, 7)
    whole = given(logits, image)
    monkeypatch.setattr("regloss_plugins.layers.fixed_mean_field._TILE", 10)
    torch.testing.assert_close(given(logits, image), whole, rtol=0, atol=1e-6)


def test_export_holds_another_image() -> None:
    given = layer(max_steps=2).unrolled()
    program = torch.export.export(given, (torch.randn(1, 3, 8, 9), torch.rand(1, 1, 8, 9)), strict=False)
    logits, image = torch.randn(1, 3, 8, 9), torch.rand(1, 1, 8, 9)
    torch.testing.assert_close(program.module()(logits, image), given(logits, image), rtol=0, atol=1e-6)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = layer().unrolled()
    with pytest.raises(UsageError, match=r"weights of all pairs of pixels, 9 GB for 200 x 240\. Take smaller images"):
        given(torch.zeros(1, 3, 200, 240), torch.zeros(1, 1, 200, 240))
    with pytest.raises(UsageError, match="without a region of interest"):
        given(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))


def test_places_alone_need_no_pairs() -> None:
    kernel = Kernel(1 - torch.eye(2), sigma_xy=3.0, sigma_rgb=math.inf)
    made = FixedMeanField([kernel], entropy=1.0, scale=1.0, max_steps=1, damped=True)
    probabilities = made(torch.zeros(1, 2, 200, 240), torch.zeros(1, 1, 200, 240))
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.5))
