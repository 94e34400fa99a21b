"""Checks for networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regloss.testing.suite import Suite, Unchanged, assert_close, no_make, normal_values, random_image

__all__ = ["NetworkConformance"]


class NetworkConformance(Suite):
    """Checks of a network: logits of the image's size, gradients, evaluation mode, reproducible construction.

    >>> from torch import nn
    >>> class TestMyNetwork(NetworkConformance):
    ...     def make(self):
    ...         return nn.Conv2d(self.in_channels, self.classes, 3, padding=1)
    >>> TestMyNetwork().test_logits_have_the_size_of_the_image(size=(5, 8))
    """

    # ---- what must be defined

    def make(self) -> nn.Module:
        """The network, small, taking ``in_channels`` and giving ``classes``; no weights from files."""
        raise no_make(self)

    # ---- what might be defined

    in_channels: ClassVar[int] = 3
    classes: ClassVar[int] = 4
    sizes: ClassVar[Sequence[tuple[int, ...]]] = ((33, 47), (32, 32))
    """Image sizes; at least one should be odd, as crops and photographs are."""
    tolerance: ClassVar[float] = 1e-4
    """Error of float32 logits of an image alone against the same image in a batch."""

    # ---- the checks

    tables: ClassVar[Mapping[str, str]] = {"size": "sizes"}

    def _new(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()

    def _image(self, size: Sequence[int], batch: int = 2) -> Tensor:
        return random_image(batch, self.in_channels, size).float()

    def test_logits_have_the_size_of_the_image(self, size: tuple[int, ...]) -> None:
        """(B, K, *S), finite, in training and in evaluation."""
        network = self._new()
        for training in (True, False):
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                logits = network.train(training)(self._image(size))
            assert logits.shape == (2, self.classes, *size)
            assert logits.dtype == torch.float32
            assert bool(logits.isfinite().all())

    def test_gradient_reaches_every_parameter(self) -> None:
        """Nothing is left out of the graph, or frozen by mistake."""
        network = self._new().train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            logits = network(self._image(self.sizes[0]))
        (logits * normal_values(*logits.shape, seed=1, dtype=torch.float32)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"the parameter {name} has no gradient"
            assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
            assert float(parameter.grad.abs().max()) > 0, f"the gradient of {name} is 0"

    def test_evaluation_treats_images_one_by_one(self, size: tuple[int, ...]) -> None:
        """In evaluation mode nothing is shared over a batch, and nothing is random."""
        network = self._new().eval()
        image = self._image(size)
        with torch.no_grad():
            together = network(image)
            alone = torch.cat([network(image[[i]]) for i in range(2)])
            again = network(image)
        assert_close(alone, together, self.tolerance, "logits of an image alone and in a batch")
        assert torch.equal(again, together), "evaluation is random or changes the network"

    def test_construction_is_reproducible(self) -> None:
        """The same seed gives the same parameters, another seed others."""
        first, second = self._new().state_dict(), self._new().state_dict()
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} differs between two constructions with one seed"

    def test_state_can_be_loaded(self) -> None:
        """A checkpoint of one object makes another give the same logits."""
        first, image = self._new(), self._image(self.sizes[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            first.train()(image)  # moves running statistics, if there are any
            second = self.make()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        with torch.no_grad():
            assert_close(second.eval()(image), first.eval()(image), 1e-6, "logits after loading a state")

    def test_images_are_not_modified(self) -> None:
        """Normalisation, if any, happens on a copy."""
        image = self._image(self.sizes[0])
        with Unchanged(image=image), torch.no_grad():
            self._new().eval()(image)
