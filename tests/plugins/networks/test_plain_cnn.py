"""The plain network: its receptive field, and settings that are refused."""

import pytest
import torch

import regloss
from regloss.errors import UsageError
from regloss.testing import NetworkConformance


def test_sees_as_many_pixels_as_it_has_layers():
    torch.manual_seed(0)  # with few channels, a network may start with all its ReLUs closed
    network = regloss.create("network", "plain-cnn", in_channels=1, classes=2, layers=3, channels=4)
    image = torch.zeros(1, 1, 21, 21, requires_grad=True)
    network(image + 0.1)[0, 0, 10, 10].backward()
    seen = image.grad[0, 0].abs().nonzero()
    assert int(seen.min()) >= 7
    assert int(seen.max()) <= 13
    assert int(seen.max() - seen.min()) >= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layers": 0}, "layers"), ({"norm": "layer"}, "norm"), ({"dims": 1}, "dims"), ({"channels": 0}, "channels")],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=f"plain-cnn: {message}"):
        regloss.create("network", "plain-cnn", in_channels=1, classes=2, **settings)


def test_another_number_of_channels_is_refused():
    network = regloss.create("network", "plain-cnn", in_channels=3, classes=2)
    with pytest.raises(UsageError, match="plain-cnn: expected an image"):
        network(torch.zeros(1, 1, 8, 8))


class TestPlainCNN(NetworkConformance):
    def make(self):
        return regloss.create(
            "network", "plain-cnn", in_channels=self.in_channels, classes=self.classes, channels=4, norm="instance"
        )


class TestPlainCNN3D(NetworkConformance):
    sizes = ((5, 6, 7),)

    def make(self):
        return regloss.create(
            "network", "plain-cnn", in_channels=self.in_channels, classes=self.classes, layers=2, channels=4, dims=3
        )
