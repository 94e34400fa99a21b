"""Checks for layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from regloss.errors import UsageError
from regloss.layer import RegularizedLayer, attach
from regloss.testing.suite import (
    SIZES,
    Suite,
    Unchanged,
    assert_close,
    box_region,
    inner_products,
    no_make,
    normal_values,
    random_image,
    without_border,
)

__all__ = ["LayerConformance"]


class LayerConformance(Suite):
    """Checks of a `RegularizedLayer`: distributions, gradients, region of interest, batches, what is learnt.

    >>> from regloss import RegularizedSoftmax
    >>> class TestMyLayer(LayerConformance):
    ...     def make(self):
    ...         return RegularizedSoftmax("tv", learn=("weight",))
    >>> TestMyLayer().test_it_gives_distributions(ndim=2)
    """

    # ---- what must be defined

    def make(self) -> RegularizedLayer:
        """The layer, with settings that matter and whatever it can learn being learnt, for ``classes`` classes."""
        raise no_make(self)

    # ---- what might be defined

    spatial: ClassVar[Sequence[int]] = (2,)
    classes: ClassVar[int] = 3
    channels: ClassVar[int] = 3
    tolerance: ClassVar[float] = 1e-6
    """Of probabilities: of an image alone against a batch, and in a region of interest against a crop."""
    gradient_tolerance: ClassVar[float | None] = 1e-4
    """Of gradients against finite differences; None = it is not promised that they agree."""
    gives_classes: ClassVar[bool] = True
    """Whether a call gives the probabilities of the classes; else it gives something of its own."""

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"ndim": "spatial", "dtype": "dtypes"}

    def _layer(self) -> RegularizedLayer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().double()

    def _image(self, ndim: int) -> Tensor:
        return random_image(2, self.channels, SIZES[ndim], seed=81)

    def _logits(self, ndim: int, seed: int = 82) -> Tensor:
        return 2 * normal_values(2, self.classes, *SIZES[ndim], seed=seed)

    def test_it_gives_distributions(self, ndim: int) -> None:
        """(B, K, *S), >= 0, with the sum 1 at every pixel; logarithms that are finite."""
        log = self._layer().log_probabilities(self._logits(ndim), self._image(ndim))
        assert log.shape == (2, self.classes, *SIZES[ndim])
        assert bool(log.isfinite().all()), "log-probabilities must be finite"
        assert_close(log.exp().sum(1), torch.ones(2, *SIZES[ndim]), 1e-9, "sums of the probabilities")

    def test_a_call_gives_the_same(self, ndim: int) -> None:
        """If ``gives_classes``: the probabilities whose logarithms `log_probabilities` gives."""
        layer, logits, image = self._layer(), self._logits(ndim), self._image(ndim)
        if self.gives_classes:
            expected = layer.log_probabilities(logits, image).exp()
            assert_close(layer(logits, image), expected, self.tolerance, "a call and exp of the log-probabilities")

    def test_it_depends_on_the_logits(self, ndim: int) -> None:
        """Other logits, other probabilities; a class that all pixels speak for has all of them."""
        layer, image = self._layer(), self._image(ndim)
        first, second = (layer.log_probabilities(self._logits(ndim, seed), image) for seed in (82, 83))
        assert not torch.equal(first, second), "the probabilities do not depend on the logits"
        certain = torch.zeros_like(self._logits(ndim))
        certain[:, 1] = 50.0
        assert bool((layer.log_probabilities(certain, image).argmax(1) == 1).all())

    def test_gradient_in_the_logits(self, ndim: int) -> None:
        """Against finite differences, unless ``gradient_tolerance`` is None; finite in any case."""
        layer, logits, image = self._layer(), self._logits(ndim).requires_grad_(), self._image(ndim)
        cotangent, direction = (normal_values(*logits.shape, seed=seed) for seed in (84, 85))
        value = inner_products(layer.log_probabilities(logits, image), cotangent).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        assert bool(gradient.isfinite().all()), "the gradient is not finite"
        if self.gradient_tolerance is None:
            return
        with torch.no_grad():
            ahead, behind = (
                inner_products(layer.log_probabilities(logits + step * direction, image), cotangent).sum()
                for step in (1e-5, -1e-5)
            )
        expected = (ahead - behind) / 2e-5
        assert_close((gradient * direction).sum(), expected, self.gradient_tolerance, "gradient in the logits")

    def test_gradient_in_what_is_learnt(self, ndim: int) -> None:
        """Every parameter has one, and it agrees with finite differences, unless ``gradient_tolerance`` is None."""
        layer, logits, image = self._layer(), self._logits(ndim), self._image(ndim)
        parameters = list(layer.parameters())
        if not parameters:
            return
        cotangent = normal_values(*logits.shape, seed=84)

        def value() -> Tensor:
            return inner_products(layer.log_probabilities(logits, image), cotangent).sum()

        gradients = torch.autograd.grad(value(), parameters)
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            assert bool(gradient.isfinite().all()), f"the gradient of parameter {number} is not finite"
            if self.gradient_tolerance is None:
                continue
            direction, found = normal_values(*parameter.shape, seed=86), []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.add_(step * direction)
                    found.append(value())
                    parameter.sub_(step * direction)
            expected = (found[0] - found[1]) / 2e-5
            what = f"gradient of parameter {number}"
            assert_close((gradient * direction).sum(), expected, self.gradient_tolerance, what)

    def test_region_of_interest_is_like_a_crop(self, ndim: int) -> None:
        """Nothing outside is seen: probabilities inside a box are those of the image cut to the box."""
        layer, logits, image = self._layer(), self._logits(ndim), self._image(ndim)
        size, region = SIZES[ndim], box_region(2, SIZES[ndim])
        inside = without_border(layer.log_probabilities(logits, image, region), size).exp()
        crop = layer.log_probabilities(without_border(logits, size), without_border(image, size)).exp()
        assert_close(inside, crop, self.tolerance, "probabilities in a region of interest and of a crop")

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        layer, logits, image = self._layer(), self._logits(ndim), self._image(ndim)
        together = layer.log_probabilities(logits, image).exp()
        for i in range(2):
            alone = layer.log_probabilities(logits[[i]], image[[i]]).exp()
            assert_close(together[[i]], alone, self.tolerance, "probabilities in a batch and alone")

    def test_the_same_twice(self, ndim: int) -> None:
        """Nothing is random, and a call leaves nothing behind that the next one would see."""
        layer, logits, image = self._layer(), self._logits(ndim), self._image(ndim)
        before = torch.random.get_rng_state()
        first, _, second = (layer.log_probabilities(given, image) for given in (logits, logits.flip(1), logits))
        assert torch.equal(first, second), "the same logits gave other probabilities"
        assert torch.equal(before, torch.random.get_rng_state()), "the global random generator was used"

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Logits, image and region are read only."""
        logits, image, region = self._logits(ndim), self._image(ndim), box_region(2, SIZES[ndim])
        with Unchanged(logits=logits, image=image, region=region):
            self._layer().log_probabilities(logits, image, region)

    def test_logits_of_any_precision(self, dtype: torch.dtype) -> None:
        """The result has their type, and is close to that of the same numbers in float64, under autocast too."""
        ndim = self.spatial[0]
        logits, image = self._logits(ndim).to(dtype), self._image(ndim).float()
        layer = self._layer().to(dtype if dtype == torch.float64 else torch.float32)
        image = image.double() if dtype == torch.float64 else image
        found = layer.log_probabilities(logits, image)
        assert found.dtype == dtype, f"log-probabilities of {dtype} logits must be of that type; got {found.dtype}"
        exact = self._layer().log_probabilities(logits.double(), image.double())
        allowed = max(self.tolerance, 2e-2 if dtype == torch.bfloat16 else 1e-4)
        assert_close(found.exp(), exact.exp(), allowed, f"probabilities of {dtype} logits")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = layer.log_probabilities(logits, image)
        assert_close(cast.exp(), exact.exp(), allowed, "probabilities under autocast")

    def test_what_is_learnt_is_named_and_told(self) -> None:
        """`learnable_parameters` are the parameters; `scalars` has finite numbers for each of them."""
        layer = self._layer()
        named, scalars = layer.learnable_parameters(), layer.scalars()
        assert {id(value) for value in named.values()} == {id(value) for value in layer.parameters()}
        assert set(named) <= set(scalars), "scalars must have an entry for each setting that is learnt"
        for name, numbers in scalars.items():
            assert numbers or name not in named, f"scalars has no number for {name}"
            assert all(torch.tensor(value).isfinite() for value in numbers.values()), f"{name} is not finite"
        layer.check()

    def test_parameters_can_be_saved_and_loaded(self) -> None:
        """Another layer with them gives the same probabilities: they are all that is learnt."""
        layer, ndim = self._layer(), self.spatial[0]
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters()):
                parameter.add_(0.1 * normal_values(*parameter.shape, seed=number))
        other = self._layer()
        state = other.state_dict()
        other.load_state_dict({**state, **{name: value.detach() for name, value in layer.named_parameters()}})
        found = other.log_probabilities(self._logits(ndim), self._image(ndim))
        expected = copy.deepcopy(layer).log_probabilities(self._logits(ndim), self._image(ndim))
        assert_close(found, expected, 1e-9, "log-probabilities after loading parameters")

    def test_it_can_be_attached_to_a_network(self) -> None:
        """Log-probabilities of the network's logits, which back-propagate into it."""
        layer, ndim = self._layer(), self.spatial[0]
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = convolution(self.channels, self.classes, 1).double()
        image, whole = self._image(ndim), attach(network, layer)
        found = whole(image)
        assert_close(found, layer.log_probabilities(network(image), image), 1e-9, "of the whole and of its parts")
        (gradient,) = torch.autograd.grad((found * normal_values(*found.shape, seed=87)).sum(), network.weight)
        assert float(gradient.abs().max()) > 0, "no gradient reaches the network"

    def test_bad_input_is_refused(self) -> None:
        """NaN, another size than the image's, integers."""
        layer, ndim = self._layer(), self.spatial[0]
        logits, image = self._logits(ndim), self._image(ndim)
        bad = logits.clone()
        bad.view(-1)[3] = float("nan")
        with pytest.raises(UsageError, match=r"NaN|finite"):
            layer.log_probabilities(bad, image)
        with pytest.raises(UsageError):
            layer.log_probabilities(logits[..., 1:], image)
        with pytest.raises(UsageError):
            layer.log_probabilities(logits.long(), image)
        with pytest.raises(UsageError):
            layer.log_probabilities(logits, 2 * image + 1)
