"""Uncertainty-aware mean teacher: a network agrees with an average of its past where that is sure of itself.

    theta' <- decay theta' + (1 - decay) theta                       after every step: the teacher
    Q   = S'(I + noise)                                              what it predicts
    U_p = entropy of the mean of S'(I + noise_t)_p over t = 1 ... T   how unsure it is
    min over theta   data(S, Y) + weight * sum of M_p |S_p - Q_p|^2 / (2 sum of M_p) + R(S; image) / N
    M_p = [U_p < threshold ln K]

with the softmax S of the network and S' of the teacher. The teacher is in training mode, so that dropout makes its
predictions differ, too. It sees the image turned by a random number of quarters of a circle, and S is turned likewise,
so that predictions have to turn with the image. Weight and threshold grow with the training. Images without labels take
part by all but the data term. R is none as published.

Source: Yu, Wang, Li, Fu, Heng, "Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium
segmentation", MICCAI 2019 (uncertainty); for scribbles, with turns: Liu, Yuan, Gao, He, Wang, Zhou, "Weakly supervised
segmentation of COVID19 infection with scribble annotation on CT images", Pattern Recognition 122, 2022; mean teacher:
Tarvainen, Valpola, NeurIPS 2017. Differs from them in: 1. the largest entropy is ln K instead of ln 2 for any number K
of classes; 2. weight and threshold are schedules of half a cosine, where theirs are exp(-5 (1 - t)^2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import at_least_float32, check_at_least_one, check_not_negative
from regloss.data_term import combine_data_terms
from regloss.errors import UsageError
from regloss.outer_loop import OuterLoop, Proposal, Update, check_logits
from regloss.regularizer import Regularizer, combine
from regloss.schedule import Schedule, as_schedule

_RAMP = {"start": 0.0, "end": 1.0, "shape": "cosine"}
_THRESHOLD = {"start": 0.75, "end": 1.0, "shape": "cosine"}


class MeanTeacher(OuterLoop):
    """Agreement with a moving average of the network, at pixels where that is certain.

    Args:
        regularizer: R, one or several (objects, names or tables); None = none.
        data_term: one or several (objects, names or tables).
        weight: factor of the disagreement, >= 0, a number or a schedule; None = from 0 to 1.
        threshold: largest entropy of a pixel that counts, as a fraction of ln K, > 0; a number or a schedule; None =
            from .75 to 1.
        decay: of the teacher, in [0, 1).
        samples: T, predictions whose mean says how certain the teacher is, at least 1.
        noise: standard deviation of the Gaussian noise on images, >= 0, in their values; cut off at twice of it.
        turn: whether the teacher sees images turned by a quarter, a half, three quarters of a circle or none, in the
            plane of their last two axes.

    Raises:
        UsageError: a setting outside its range.

    >>> loop = MeanTeacher(samples=2)
    >>> loop.attach(nn.Conv2d(1, 2, 1))
    >>> list(loop.modules())
    ['teacher']
    """

    def __init__(
        self,
        regularizer: Any = None,
        data_term: Any = "partial-cross-entropy",
        weight: float | Schedule | dict[str, Any] | None = None,
        threshold: float | Schedule | dict[str, Any] | None = None,
        decay: float = 0.99,
        samples: int = 8,
        noise: float = 0.1,
        turn: bool = True,
    ) -> None:
        super().__init__("never")
        self.regularizer: Regularizer | None = combine(regularizer)
        self.data_term = combine_data_terms(data_term)
        self.weight = as_schedule(_RAMP if weight is None else weight, "weight")
        self.threshold = as_schedule(_THRESHOLD if threshold is None else threshold, "threshold")
        if min(self.weight.start, self.weight.end) < 0:
            raise UsageError(f"weight must not be negative; got {weight!r}.")
        if min(self.threshold.start, self.threshold.end) <= 0:
            raise UsageError(f"threshold must be positive, a fraction of the largest entropy; got {threshold!r}.")
        if not 0 <= decay < 1:
            raise UsageError(f"decay must lie in [0, 1); got {decay!r}.")
        check_at_least_one(samples=samples)
        check_not_negative(noise=noise)
        self.decay, self.samples, self.noise, self.turn = decay, samples, noise, turn
        self.teacher: Teacher | None = None
        self._network: nn.Module | None = None

    def attach(self, network: nn.Module) -> None:
        """Make the teacher, a copy of ``network``."""
        self.teacher, self._network = Teacher(network), network

    def modules(self) -> Mapping[str, nn.Module]:
        """The teacher, once there is one, beside networks of the data term; no gradient reaches it."""
        found = super().modules()
        return found if self.teacher is None else {**found, "teacher": self.teacher}

    def propose(self, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> None:
        """No proposal: the teacher's predictions are soft, and last one step."""
        return None

    def objective(self, logits: Tensor, batch: Batch, proposal: Proposal | None = None) -> Tensor:
        """The loss without the teacher, whose predictions take a network; see `updates`."""
        return self.total_loss(**self._own_loss_terms(logits, batch))

    def updates(
        self,
        logits: Tensor,
        batch: Batch,
        proposal: Proposal | None,
        network: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Iterator[Update]:
        """One update, after which the teacher follows the network."""
        if self.teacher is None or self._network is None:
            raise UsageError("A mean teacher needs the network that it is a mean of: call loop.attach(network) first.")
        loss_terms = self._own_loss_terms(logits, batch)
        disagreement, certain = self.disagreement(logits, batch)
        loss_terms["teacher"] = self.weight.at(self.progress) * disagreement
        self.log_metric(certain=certain)
        yield Update(self.total_loss(**loss_terms), ("network", *super().modules()))
        self.teacher.follow(self._network, self.decay)

    def disagreement(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Half the mean squared distance to the teacher over certain pixels, a scalar; and the fraction that is."""
        assert self.teacher is not None
        quarters = int(torch.randint(4, ())) if self.turn else 0
        image, roi = _turned(batch.image, quarters), None if batch.roi is None else _turned(batch.roi, quarters)
        with torch.no_grad():
            target = self._predicted(image, roi)
            mean = torch.stack([self._predicted(image, roi) for _ in range(self.samples)]).mean(0)
            entropies = torch.special.entr(mean).sum(1)
            counted = entropies < self.threshold.at(self.progress) * math.log(logits.shape[1])
            if roi is not None:
                counted &= roi
        distances = (_turned(at_least_float32(logits).softmax(1), quarters) - target).square().sum(1) / 2
        counts = counted.flatten(1).sum(1)
        loss = self.mean((distances * counted).flatten(1).sum(1), counts)
        return loss, counts.sum() / batch.pixels.sum()

    def _predicted(self, image: Tensor, roi: Tensor | None) -> Tensor:
        """The teacher's softmax (B, K, *S) of an image with noise."""
        assert self.teacher is not None
        noise = (self.noise * torch.randn_like(image)).clamp(-2 * self.noise, 2 * self.noise)
        return at_least_float32(self.teacher(image + noise, roi)).softmax(1)

    def _own_loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        check_logits(logits, batch)
        terms = self.data_loss_terms(logits, batch)
        return {**terms, **self.regularizer_loss_terms(self.regularizer, 1.0, logits, batch)}


class Teacher(nn.Module):
    """A copy of a network whose parameters are a moving average of the network's.

    Statistics of normalisation layers are its own, of the images that it has seen.

    Args:
        network: to be copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    steps: Tensor
    """How often it has followed."""

    def forward(self, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """Logits (B, K, *S), in training mode: dropout is part of what makes it doubt."""
        parameter = next(self.network.parameters())
        image = image.to(parameter.dtype)
        # So a network that knows no regions will do where there is none.
        logits: Tensor = self.network.train()(*((image,) if roi is None else (image, roi)))
        return logits

    @torch.no_grad()
    def follow(self, network: nn.Module, decay: float) -> None:
        """Go towards the network's parameters; in the first steps their plain mean, which knows no beginning."""
        share = 1 - min(1 - 1 / (int(self.steps) + 1), decay)
        for own, other in zip(self.network.parameters(), network.parameters(), strict=True):
            own.lerp_(other.to(own), share)
        self.steps += 1


def _turned(values: Tensor, quarters: int) -> Tensor:
    return torch.rot90(values, quarters, (-2, -1))
