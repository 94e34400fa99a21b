"""The conformance suite, inherited by every built-in network."""

from __future__ import annotations

import regloss
from regloss.testing import NetworkConformance


class TestUNet(NetworkConformance):
    def make(self):
        return regloss.create(
            "network", "unet", in_channels=self.in_channels, classes=self.classes, levels=3, channels=4
        )


class TestUNet3D(NetworkConformance):
    sizes = ((9, 10, 11),)

    def make(self):
        return regloss.create(
            "network", "unet", in_channels=self.in_channels, classes=self.classes, levels=2, channels=4, dims=3
        )


class TestSegNet(NetworkConformance):
    def make(self):
        return regloss.create(
            "network", "segnet", in_channels=self.in_channels, classes=self.classes, levels=3, channels=4
        )


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


class TestDeepLabV3Plus(NetworkConformance):
    def make(self):
        return regloss.create("network", "deeplabv3plus", in_channels=self.in_channels, classes=self.classes)
