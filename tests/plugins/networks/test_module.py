"""Modules of other libraries as networks: what they may give back, what is refused, and that they train."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import regloss
from regloss.errors import MissingDependency, UsageError
from regloss.network_output import logits_of
from regloss.testing import NetworkConformance


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Settings:
    """A configuration object, as Hugging Face's models take them."""

    def __init__(self, labels=2):
        self.labels = labels


class HalfSize(nn.Module):
    """Logits at half the size, inside of what ``form`` says."""

    def __init__(self, config, form="dataclass"):
        super().__init__()
        self.head = nn.Conv2d(1, config.labels, 2, stride=2)
        self.form = form

    def forward(self, image):
        logits = self.head(image)
        return {"dataclass": Output(logits), "mapping": {"out": logits, "aux": 1}, "tuple": (logits,)}[self.form]


def module(name="HalfSize", *, classes=2, **arguments):
    arguments = {"config": {"target": f"{__name__}:Settings", "labels": 2}, **arguments}
    return regloss.create(
        "network", "module", in_channels=1, classes=classes, target=f"{__name__}:{name}", arguments=arguments
    )


@pytest.mark.parametrize("form", ["dataclass", "mapping"])
def test_logits_are_found_and_enlarged(form):
    network = module(form=form)
    image = torch.rand(2, 1, 7, 8)
    logits = network(image)
    assert logits.shape == (2, 2, 7, 8)
    small = network.module.head(image)
    torch.testing.assert_close(logits, nn.functional.interpolate(small, (7, 8), mode="bilinear"))


class KeywordsAlone(HalfSize):
    """As segmentation-models-pytorch's models, whose options cannot be given by their places."""

    def load_state_dict(self, state_dict, **options):
        return super().load_state_dict(state_dict, **options)


def test_state_dicts_of_a_module_that_takes_options_by_keyword():
    network = module("KeywordsAlone")
    state = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    assert all(bool((value == 1).all()) for value in network.module.state_dict().values())


def test_an_empty_text_is_none():
    settings = {"normalized_shape": 4, "device": ""}
    made = regloss.create(
        "network", "module", in_channels=1, classes=2, target="torch.nn:LayerNorm", arguments=settings
    )
    assert made.module.weight.device.type == "cpu"


def test_volumes_are_enlarged_trilinearly():
    small = torch.rand(1, 2, 2, 3, 4)
    expected = nn.functional.interpolate(small, (4, 6, 8), mode="trilinear")
    torch.testing.assert_close(logits_of(small, (4, 6, 8)), expected)


def test_weights_have_the_names_of_the_library():
    network, other = module(), HalfSize(Settings())
    assert network.state_dict().keys() == other.state_dict().keys()
    network.load_state_dict(other.state_dict())
    torch.testing.assert_close(network.module.head.weight, other.head.weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("torch.nn", UsageError, r'target is "package.module:name".*got .torch.nn.'),
        ("no_such_package.models:x", MissingDependency, "needs the package 'no_such_package', which is not installed"),
        ("torch.nn:Unet", UsageError, "torch.nn has no 'Unet'"),
        ("math:pi", UsageError, "math:pi is a float, which cannot be called"),
        ("builtins:dict", UsageError, "makes a dict, not a torch.nn.Module"),
    ],
)
def test_targets_that_make_no_network(target, error, message):
    with pytest.raises(error, match=message):
        regloss.create("network", "module", in_channels=1, classes=2, target=target)


def test_what_else_is_refused():
    with pytest.raises(UsageError, match=r"HalfSize refuses its arguments config, width: .*unexpected keyword"):
        module(width=3)
    with pytest.raises(UsageError, match=r"output is a tuple; needed are logits, or a mapping or dataclass"):
        module(form="tuple")(torch.rand(1, 1, 8, 8))
    with pytest.raises(UsageError, match="makes logits of 2 classes instead of 3"):
        module(classes=3)(torch.rand(1, 1, 8, 8))
    with pytest.raises(UsageError, match=r"logits of \(8, 8\), larger than their image of \(4, 4\)"):
        logits_of(torch.zeros(1, 2, 8, 8), (4, 4))
    with pytest.raises(UsageError, match=r"logits have the axes \(B, K, \*S\)"):
        logits_of(torch.zeros(1, 2), (4, 4))


class TestModuleNetwork(NetworkConformance):
    def make(self):
        return regloss.create(
            "network",
            "module",
            in_channels=self.in_channels,
            classes=self.classes,
            target="torch.nn:Conv2d",
            arguments={
                "in_channels": self.in_channels,
                "out_channels": self.classes,
                "kernel_size": 2,
                "stride": 2,
                "padding": 1,
            },
        )
