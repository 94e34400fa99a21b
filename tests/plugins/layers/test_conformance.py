"""The conformance suite, inherited by every built-in layer."""

from __future__ import annotations

import regloss
from regloss.layer import RegularizedLayer
from regloss.testing import LayerConformance

EXACT = {"name": "pdhg", "max_steps": 20000, "tolerance": 1e-14}


class TestSoftmax(LayerConformance):
    spatial = (1, 2, 3)

    def make(self) -> RegularizedLayer:
        return regloss.RegularizedSoftmax(
            regloss.TotalVariation(0.3), EXACT, learn=("weight", "entropy"), backward_tolerance=1e-12
        )


class TestSoftmaxByOneStep(LayerConformance):
    gradient_tolerance = None  # one step is a biased gradient

    def make(self) -> RegularizedLayer:
        return regloss.RegularizedSoftmax(
            # In single precision no step is small enough to be the last.
            ["tv", {"name": "nltv", "weight": 0.2, "neighbors": 3}],
            EXACT | {"max_steps": 2000},
            learn=("weight",),
            backward="one-step",
        )


class TestSigmoid(LayerConformance):
    gives_classes = False  # a call gives the probabilities of the sets

    def make(self) -> RegularizedLayer:
        return regloss.RegularizedSigmoid(
            ["tv", "ordered"], EXACT, learn=("weight", "entropy"), backward_tolerance=1e-12
        )


class TestDenseCRF(LayerConformance):
    def make(self) -> RegularizedLayer:
        learn = ("weights", "sigma_xy", "sigma_rgb", "compatibility", "entropy")
        return regloss.DenseCRFLayer(
            self.classes,
            weights=(2.0, 1.0),
            sigma_xy=(4.0, 2.0),
            sigma_rgb=(0.3, float("inf")),
            max_steps=4,
            learn=learn,
        )
