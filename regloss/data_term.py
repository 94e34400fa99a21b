"""DataTerm: what supervision there is; and several of them with weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from regloss.batch import Batch
from regloss.errors import UsageError
from regloss.registry import name_of, resolve


class DataTerm(ABC):
    """A loss of network output against given labels, or against the image itself.

    It returns sums and counts instead of means, so that the mean is taken once, in the outer loop, over the whole batch
    and over all processes: weights then do not depend on how a batch is split over devices.

    Attributes:
        needs_labels: whether it says nothing of images without labels.
    """

    needs_labels: ClassVar[bool] = True

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


@dataclass(frozen=True)
class WeightedTerm:
    """One of several data terms.

    Attributes:
        name: under which its mean is logged.
        term: the data term.
        weight: factor of its mean, >= 0.
    """

    name: str
    term: DataTerm
    weight: float = 1.0


@dataclass(frozen=True)
class DataTerms:
    """Several data terms, whose weighted means add up. Each has its own mean, so they are no `DataTerm` together.

    Attributes:
        parts: at least one, with different names.
    """

    parts: tuple[WeightedTerm, ...]

    @property
    def needs_labels(self) -> bool:
        """Whether one of the parts does."""
        return any(part.term.needs_labels for part in self.parts)

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks of all parts; the part's name stands before each, if there are several parts."""
        if len(self.parts) == 1:
            return self.parts[0].term.modules()
        return {f"{part.name}-{name}": module for part in self.parts for name, module in part.term.modules().items()}


def combine_data_terms(given: Any) -> DataTerm | DataTerms:
    """One or several data terms as one thing.

    Args:
        given: an object, a name, a table (with the key ``weight``, if it is not 1), or a sequence of these; in a
            sequence also pairs of an object, name or table with its weight.

    Returns:
        The `DataTerm` itself if there is one only, without a weight.

    Raises:
        UsageError: an empty sequence, or a weight that is negative or not finite.

    >>> combine_data_terms("cross-entropy")
    CrossEntropy(class_weights=None, label_smoothing=0.0)
    >>> [part.weight for part in combine_data_terms(["cross-entropy", {"name": "entropy", "weight": 0.1}]).parts]
    [1.0, 0.1]
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
    return DataTerms(tuple(WeightedTerm(name, *pair) for name, pair in zip(names, found, strict=True)))


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
