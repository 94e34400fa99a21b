from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

import regloss
from regloss import (
    DataTerm,
    Divergence,
    GatedCRF,
    GridCRF,
    NonlocalTV,
    ThresholdDynamics,
    TotalVariation,
    UsageError,
    registry,
)
from regloss.errors import MissingDependency
from regloss.settings import described, fits

NUMBER = "must be a number; got "


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedCRF(sigma_xy=(1.0, 2.0)), rf"^sigma_xy of gated-crf {NUMBER}\(1\.0, 2\.0\)\.$"),
        (lambda: GatedCRF(sigma_rgb="0.1"), f"^sigma_rgb of gated-crf {NUMBER}'0.1'"),
        (lambda: NonlocalTV(sigma_xy=None), "^sigma_xy of nltv must be a number or a tensor; got None"),
        (lambda: NonlocalTV(neighbors=[3]), r"^neighbors of nltv must be a whole number; got \[3\]"),
        (lambda: NonlocalTV(neighbors=3.5), "^neighbors of nltv must be a whole number; got 3.5"),
        (lambda: TotalVariation(True), f"^weight of tv {NUMBER}True"),
        (lambda: TotalVariation(isotropic="no"), "^isotropic of tv must be True or False; got 'no'"),
        (lambda: TotalVariation(edge_scale=True), f"^edge_scale of tv {NUMBER}True"),
        (lambda: ThresholdDynamics(sigma=[1, 2]), r"^sigma of threshold-dynamics must be a number or a tensor; got \["),
        (lambda: regloss.DenseCRF(scale=(1, 2)), f"^scale of dense-crf {NUMBER}"),
        (lambda: regloss.DCA(max_steps="10"), "^max_steps of dca must be a whole number; got '10'"),
        (lambda: regloss.MeanField(damping=None), f"^damping of mean-field {NUMBER}None"),
        (lambda: regloss.RobustKL(epsilon="0"), "^epsilon is a probability.*got '0'"),
        (
            lambda: regloss.CrossEntropy(class_weights=("1", "2")),
            "^class_weights of cross-entropy must be",
        ),
        (lambda: regloss.GradientDescent("tv", weight_schedule=None), "weight.schedule"),
        (lambda: regloss.ChanVese(scale=None), "scale"),
        (
            lambda: regloss.RegularizedSoftmax("tv", entropy=[0.5]),
            rf"^entropy of softmax {NUMBER}\[0\.5\]",
        ),
        (lambda: regloss.RegularizedSoftmax("tv", max_steps=True), "max_steps"),
        (lambda: registry.create("segmenter", "deep-chan-vese", learning_rate="fast"), "learning_rate"),
        (lambda: registry.create("network", "unet", in_channels=1, classes=2, dropout=[0.1]), "dropout"),
        (lambda: registry.create("network", "segnet", in_channels=1, classes=2, levels="4"), "levels"),
        (lambda: registry.create("dataset", "folder", root="nowhere", reduce="2"), "reduce|nowhere"),
        # names
        (
            lambda: GatedCRF(spacing=(1, 1)),  # type: ignore[call-arg]
            "^gated-crf has no setting 'spacing'. Its settings are: weight, radius, sigma_xy",
        ),
        (lambda: NonlocalTV(sigma=3.0), "'sigma'. Did you mean 'sigma_xy'"),  # type: ignore[call-arg]
        (lambda: regloss.ADM(), "^adm cannot be made without: regularizer"),  # type: ignore[call-arg]
        (lambda: TotalVariation(1.0, False, 0.0, 3), "too many"),  # type: ignore[call-arg]
    ],
)
def test_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_every_number_of_every_component_refuses_what_is_none() -> None:
    """Text, None, a list, a bool and a tensor that needs a gradient for each setting that is a number and no more."""
    tried = 0
    for kind in set(registry.KINDS) - {"dataset"}:  # these look for their files first
        for component in registry.components(kind):
            try:
                cls = registry.load(component)
            except MissingDependency:
                continue
            needed: dict[str, Any] = {
                "in_channels": 1,
                "classes": 2,
                "regularizer": "tv",
                "target": "torch.nn:Identity",
            }
            own = registry.settings(cls)
            given = {name: needed[name] for name in own if own[name].default is inspect.Parameter.empty}
            given |= getattr(cls, "example", {})
            for name, parameter in own.items():
                if parameter.annotation not in ("float", "int"):
                    continue
                for bad in ("two", None, [1, 2], {"a": 1}, True, torch.tensor(1.0, requires_grad=True)):
                    with pytest.raises(UsageError, match=name.replace("_", ".")):
                        cls(**{**given, name: bad})
                    tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, m: regloss.scribble_distances(i[:, 0].long(), m, most=float("nan")), "most of .* whole number"),
        (lambda i, m: regloss.scribble_distances(i[:, 0].long(), m, barrier=True), "barrier of .* a number; got True"),
        (lambda i, m: regloss.scribble_distances(i[:, 0].long(), m / 0), "costs holds .* NaN or infinite"),
        (lambda i, m: regloss.guided_filter(i, m, epsilon="1"), "epsilon of guided_filter must be a number; got '1'"),
        (lambda i, m: regloss.guided_filter(i, m, radius=0), "radius must be at least 1"),
        (lambda i, m: regloss.guided_filter(i, m / 0), "values holds .* NaN or infinite"),
        (lambda i, m: regloss.guided_filter(i, m.long()), "values must be floating point"),
        (lambda i, m: regloss.phases_by_color(i, 2, tries=2.5), "tries of phases_by_color must be a whole number"),
        (lambda i, m: regloss.phases_by_saliency(i, None), "saliency of .* must be a text or a function; got None"),
        (lambda i, m: regloss.phases_by_saliency(i, lambda image: image), r"maps \(B, \*S\) = \(1, 5, 6\); got"),
        (lambda i, m: regloss.deep_chan_vese(i, warm_up=True), "warm_up of deep_chan_vese must be a whole number"),
        (
            lambda i, m: regloss.alternate("chan-vese", "tv", "alpha-expansion", i, m, max_rounds=True),
            "max_rounds of alternate must be a whole number; got True",
        ),
        (
            lambda i, m: regloss.solve(GridCRF(), m, "alpha-expansion"),
            r"bound to images, R\.bind\(image\); got Grid",
        ),
        (lambda i, m: GridCRF().bind(i, spacing=(True, 1.0)), "spacing must be 2 numbers"),
        (
            lambda i, m: regloss.attach(regloss.RegularizedSoftmax("tv"), torch.nn.Conv2d(1, 2, 1)),  # type: ignore[arg-type]
            r"attach\(network, layer\).*; got RegularizedSoftmax and Conv2d",
        ),
        (lambda i, m: regloss.Schedule(True, 2.0), "start of a schedule must be a number; got True"),
        (lambda i, m: regloss.TrustRegion("tv", coupling={"start": 1.0, "end": None}), "end of a schedule .* got None"),
    ],
)
def test_functions_refuse_what_they_cannot_use(call: Callable[..., object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(torch.zeros(1, 1, 5, 6), torch.rand(1, 2, 5, 6))


def test_tensors_with_gradients_are_learnt_or_refused() -> None:
    sigma = torch.tensor(0.05, requires_grad=True)
    with pytest.raises(UsageError, match="sigma"):
        GridCRF(sigma=sigma)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"sigma_rgb of gated-crf must be a number, and cannot be learnt.*\.detach"):
        GatedCRF(sigma_rgb=sigma)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Bandwidths are learnt with the weights"):
        NonlocalTV(sigma_rgb=sigma, weights="zmp")
    image = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    NonlocalTV(sigma_rgb=sigma, neighbors=2).bind(image).energy(torch.rand(1, 2, 5, 6).softmax(1)).sum().backward()
    assert sigma.grad is not None
    assert float(sigma.grad) != 0
    learnt = torch.tensor(2.0, requires_grad=True)
    s = torch.rand(1, 2, 5, 6).softmax(1)
    ThresholdDynamics(sigma=learnt).bind(torch.zeros(1, 1, 5, 6)).energy(s).sum().backward()
    assert learnt.grad is not None
    assert float(learnt.grad) != 0


def test_numbers_of_other_kinds_are_numbers() -> None:
    image, s = torch.rand(1, 1, 4, 5), torch.rand(1, 2, 4, 5).softmax(1)
    expected = GatedCRF(radius=2, sigma_xy=3.0).bind(image).energy(s)
    for number in (np.float32(3), np.int64(3), np.array(3.0), torch.tensor(3.0)):
        torch.testing.assert_close(GatedCRF(radius=2, sigma_xy=number).bind(image).energy(s), expected)  # type: ignore[arg-type]


def test_classes_look_as_without_checks() -> None:
    assert list(inspect.signature(TotalVariation).parameters) == ["weight", "isotropic", "edge_scale"]
    made = TotalVariation(2.0)
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == replace(made, weight=2.0)
    with pytest.raises(TypeError, match="abstract"):
        Divergence()  # type: ignore[abstract]


def test_own_faults_and_own_messages_stay() -> None:
    """A class's own error is not hidden where its settings are of the types that it says."""

    @dataclass(frozen=True)
    class Broken(DataTerm):
        number: float = 1.0
        names: OnlyForTypeCheckers = ()  # type: ignore[name-defined]  # noqa: F821

        def __post_init__(self) -> None:
            if isinstance(self.number, str):
                raise UsageError("a number, please")
            raise TypeError("a fault of its own")

        def __call__(self, logits, batch): ...  # type: ignore[no-untyped-def, override]

    with pytest.raises(TypeError, match=r"^a fault of its own"):
        Broken(names=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^a number, please"):
        Broken("3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^number of .*Broken must be a number; got \[3\]"):
        Broken([3])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "kind", "yes"),
    [
        (1, float, True),
        (np.bool_(True), float, False),
        (1.0, int, False),
        (np.int32(3), int, True),
        (0, bool, True),
        (2, bool, False),
        (np.bool_(True), bool, True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        (None, float | None, True),
        ("x", float | None, False),
        ("abc", Sequence[str], False),
        (["a", "b"], Sequence[str], True),
        ([1, "b"], Sequence[float], False),
        ([[1.0], [2.0]], Sequence[Sequence[float]], True),
        (np.ones(3), Sequence[float], True),
        (torch.ones(3), Sequence[float], True),
        (torch.ones(3, requires_grad=True), Sequence[float], False),
        (torch.ones(3, requires_grad=True), Sequence[float] | torch.Tensor, True),
        (object(), dict[str, Any], True),  # not understood, and left to the class
        (3, Any, True),
    ],
)
def test_fits(value: object, kind: object, yes: bool) -> None:
    assert fits(value, kind) is yes


def test_described() -> None:
    assert (
        described(Sequence[Sequence[float]] | torch.Tensor)
        == "a sequence, each entry a sequence of numbers or a tensor"
    )
    assert described(Literal["a", "b"] | None) == "'a', 'b' or None"
