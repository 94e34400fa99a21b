"""The inherited checks, and what is special to this outer loop."""

import pytest
import torch

import regloss
from regloss.testing import OuterLoopConformance
from regloss_cli.templates.outer_loop.component import MyComponent


class TestMyComponent(OuterLoopConformance):
    def make(self) -> MyComponent:
        loop = MyComponent(regloss.GridCRF(weight=0.4), warm_up=0.5)
        loop.set_progress(0.3)  # at the start of the training there would be no regularizer to check
        return loop


def test_it_is_found_by_its_name() -> None:
    assert regloss.get("outer-loop", "my-component") is MyComponent


def test_the_regularizer_fades_in() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 6, 7, generator=generator)
    batch = regloss.Batch(torch.rand(1, 3, 6, 7, generator=generator), torch.full((1, 6, 7), 255))
    full = regloss.GradientDescent("grid-crf").objective(logits, batch)
    loop = MyComponent("grid-crf", warm_up=0.4)
    for progress, factor in ((0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (1.0, 1.0)):
        loop.set_progress(progress)
        assert float(loop.objective(logits, batch)) == pytest.approx(factor * float(full), abs=1e-6)
        assert loop.metrics["factor"] == pytest.approx(factor)


@pytest.mark.parametrize("warm_up", [0.0, -0.1, 1.5])
def test_a_warm_up_outside_the_training_is_refused(warm_up: float) -> None:
    with pytest.raises(regloss.UsageError, match="warm_up"):
        MyComponent(warm_up=warm_up)
