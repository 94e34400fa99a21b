"""DataTerm: what supervision there is; and several of them with weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.errors import UsageError
from regloss.registry import name_of, resolve
from regloss.settings import CheckedSettings


class DataTerm(metaclass=CheckedSettings):
    """A loss of network output against given labels, or against the image itself.

    It returns sums and counts instead of means, so that the mean is taken once, in the outer loop, over the whole batch
    and over all processes: weights then do not depend on how a batch is split over devices.

    Attributes:
        needs_labels: whether it says nothing of images without labels.
        needs_image: whether it looks at the values of the image; `regloss.losses` does without one where it does not.
        example: settings for examples with two classes, where the defaults alone do not make a data term.
    """

    needs_labels: ClassVar[bool] = True
    needs_image: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {}

    # ---- what must be defined

    @abstractmethod
    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each image.

        Args:
            logits: (B, K, *S).
            batch: the images and labels.

        Returns:
            sums (B,), differentiable, and counts (B,): what to divide by for a mean (labelled pixels, say).
        """

    # ---- what might be defined

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks that the data term owns, by name (no dots); none, unless it says so.

        Their parameters are trained like those of the network that makes the logits: whoever trains must move them to
        the device, give them to the optimizer and keep them in checkpoints. Always the same objects under the same
        names.
        """
        return {}

    def maps(self, image: Tensor) -> Mapping[str, Tensor]:
        """Numbers of each pixel (B, *S), by name, that reports show beside the image (B, C, *S); none by default."""
        return {}

    def loss_terms(self, logits: Tensor, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        """What it consists of: sums (B,), weights included, and counts (B,) by name, each of which has its own mean.

        One, without a name, unless it is a `WeightedSum`.
        """
        return {"": self(logits, batch)}


@dataclass(frozen=True)
class WeightedSum(DataTerm):
    """Several data terms, whose means, times their weights, add up.

    Attributes:
        terms: at least one, by the name under which its mean is logged.
        weights: factors >= 0 of the means, under the same names.

    >>> import torch
    >>> both = combine_data_terms(["cross-entropy", {"name": "entropy", "weight": 0.1}])
    >>> batch = Batch(torch.zeros(1, 1, 1, 2), torch.tensor([[[0, 255]]]))  # of two pixels one is labelled
    >>> both.loss_terms(torch.zeros(1, 2, 1, 2), batch)
    {'cross-entropy': (tensor([0.6931]), tensor([1.])), 'entropy': (tensor([0.1386]), tensor([2.]))}
    """

    terms: Mapping[str, DataTerm]
    weights: Mapping[str, float]

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether one of the terms does."""
        return any(term.needs_labels for term in self.terms.values())

    @property
    def needs_image(self) -> bool:  # type: ignore[override]
        """Whether one of the terms does."""
        return any(term.needs_image for term in self.terms.values())

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums and counts whose quotient over this batch is the weighted sum of the terms' means.

        Means over several batches, of other processes say, do not follow from them: those take `loss_terms`.
        """
        parts = list(self.loss_terms(logits, batch).values())
        counts = torch.stack([of_part for _, of_part in parts]).sum(0)
        means = [sums / torch.where(of_part.sum() > 0, of_part.sum(), 1) for sums, of_part in parts]
        return torch.stack(means).sum(0) * counts.sum(), counts

    def loss_terms(self, logits: Tensor, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Weighted sums, and counts, of each term."""
        found = {}
        for name, term in self.terms.items():
            sums, counts = term(logits, batch)
            found[name] = (self.weights[name] * sums, counts)
        return found

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks of all terms; the term's name stands before each, if there are several terms."""
        return self._joined({name: term.modules() for name, term in self.terms.items()})

    def maps(self, image: Tensor) -> Mapping[str, Tensor]:
        """Those of all terms, named like their networks."""
        return self._joined({name: term.maps(image) for name, term in self.terms.items()})

    def _joined(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        single = len(self.terms) == 1
        return {
            name if single else f"{prefix}-{name}": value
            for prefix, of_term in found.items()
            for name, value in of_term.items()
        }


def combine_data_terms(given: Any) -> DataTerm:
    """One or several data terms as one.

    Args:
        given: an object, a name, a table (with the key ``weight``, if it is not 1), or a sequence of these; in a
            sequence also pairs of an object, name or table with its weight.

    Returns:
        The data term itself if there is one only, without a weight; else a `WeightedSum`.

    Raises:
        UsageError: an empty sequence, or a weight that is negative or not finite.

    >>> combine_data_terms("cross-entropy")
    CrossEntropy(class_weights=None, label_smoothing=0.0)
    >>> combine_data_terms(["cross-entropy", {"name": "entropy", "weight": 0.1}]).weights
    {'cross-entropy': 1.0, 'entropy': 0.1}
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    entries = list(given) if several else [given]
    if not entries:
        raise UsageError('The list of data terms is empty. Name at least one, "partial-cross-entropy" for example.')
    found = [_weighted(entry) for entry in entries]
    if len(found) == 1 and found[0][1] == 1:
        return found[0][0]
    names = [name_of(term) for term, _ in found]
    # Two of one kind are told apart by their place.
    names = [name if names.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(names)]
    return WeightedSum(
        {name: term for name, (term, _) in zip(names, found, strict=True)},
        {name: weight for name, (_, weight) in zip(names, found, strict=True)},
    )


def _weighted(entry: Any) -> tuple[DataTerm, float]:
    weight: Any = 1.0
    if isinstance(entry, tuple) and len(entry) == 2:
        entry, weight = entry
    elif isinstance(entry, Mapping):
        entry = dict(entry)
        weight = entry.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise UsageError(f"The weight of a data term must be a finite number, and not negative; got {weight!r}.")
    return resolve("data-term", entry), float(weight)
