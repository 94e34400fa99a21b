"""Checks for data terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.data_term import DataTerm
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.testing.suite import (
    SIZES,
    Suite,
    Unchanged,
    assert_close,
    box_region,
    directional_derivative,
    gradient_of_sum,
    inner_products,
    irregular_region,
    no_make,
    normal_values,
    random_image,
    random_labels,
    without_border,
)

__all__ = ["DataTermConformance"]


class DataTermConformance(Suite):
    """Checks of a `DataTerm`: sums and counts, ignored pixels, regions.

    >>> from regloss import CrossEntropy
    >>> class TestMyDataTerm(DataTermConformance):
    ...     def make(self):
    ...         return CrossEntropy()
    >>> TestMyDataTerm().test_gradient_matches_finite_differences(ndim=2)
    """

    # ---- what must be defined

    def make(self) -> DataTerm:
        """The data term, with settings that matter."""
        raise no_make(self)

    # ---- what might be defined

    classes: ClassVar[int] = 3
    channels: ClassVar[int] = 3
    spatial: ClassVar[Sequence[int]] = (2, 3)
    uses_labels: ClassVar[bool] = True
    """Whether it compares with given labels; False for those that look at the image alone."""
    tolerance: ClassVar[float] = 1e-10

    # ---- the checks

    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64, torch.bfloat16)
    tables: ClassVar[Mapping[str, str]] = {"ndim": "spatial", "dtype": "dtypes"}

    def _logits(self, ndim: int) -> Tensor:
        return normal_values(2, self.classes, *SIZES[ndim], seed=1)

    def _labels(self, ndim: int) -> Tensor:
        """Half of the pixels labelled, 255 elsewhere."""
        labels = random_labels(2, *SIZES[ndim], classes=self.classes, seed=2)
        return labels.masked_fill(normal_values(2, *SIZES[ndim], seed=3) > 0, IGNORE)

    def _batch(self, ndim: int, roi: Tensor | None = None) -> Batch:
        labels = self._labels(ndim) if self.uses_labels else None
        return Batch(random_image(2, self.channels, SIZES[ndim]), labels, roi)

    def test_gives_sums_and_counts(self, ndim: int) -> None:
        """Both (B,); the sum is differentiable, the count is not negative and follows no gradient."""
        for roi in (None, irregular_region(2, SIZES[ndim])):
            logits = self._logits(ndim).requires_grad_()
            sums, counts = self.make()(logits, self._batch(ndim, roi))
            assert sums.shape == (2,)
            assert counts.shape == (2,)
            assert sums.requires_grad
            assert not counts.requires_grad
            assert bool(sums.isfinite().all())
            assert bool((counts > 0).all())
            assert counts.is_floating_point()

    def test_gradient_matches_finite_differences(self, ndim: int) -> None:
        """In the logits, with a region of interest."""
        batch, logits = self._batch(ndim, irregular_region(2, SIZES[ndim])), self._logits(ndim)

        def value(at: Tensor) -> Tensor:
            return self.make()(at, batch)[0]

        gradient = gradient_of_sum(value, logits)
        for seed in range(3):
            direction = normal_values(*logits.shape, seed=10 + seed)
            expected = directional_derivative(value, logits, direction)
            assert_close(inner_products(gradient, direction), expected, max(1e-7, self.tolerance), "derivative")

    def test_pixels_that_do_not_count_have_no_gradient(self, ndim: int) -> None:
        """Neither unlabelled ones, where labels are used, nor those outside the region of interest."""
        roi = irregular_region(2, SIZES[ndim])
        batch = self._batch(ndim, roi)
        gradient = gradient_of_sum(lambda at: self.make()(at, batch)[0], self._logits(ndim)).abs().amax(1)
        counting = batch.labelled if self.uses_labels else roi
        assert float(gradient[~counting].max()) == 0
        assert float(gradient[counting].max()) > 0

    def test_region_of_interest_is_a_crop(self, ndim: int) -> None:
        """A box of interest gives what the batch cropped to it gives."""
        size = SIZES[ndim]
        batch, logits = self._batch(ndim, box_region(2, size)), self._logits(ndim)
        labels = None if batch.labels is None else without_border(batch.labels, size)
        cropped = Batch(without_border(batch.image, size), labels)
        for value, expected in zip(
            self.make()(logits, batch), self.make()(without_border(logits, size), cropped), strict=True
        ):
            assert_close(value, expected, self.tolerance, "sum or count in a box of interest")

    def test_batch_is_one_by_one(self, ndim: int) -> None:
        """Images of a batch do not see each other."""
        batch, logits = self._batch(ndim), self._logits(ndim)
        together = self.make()(logits, batch)
        for i in range(2):
            labels = None if batch.labels is None else batch.labels[[i]]
            alone = self.make()(logits[[i]], Batch(batch.image[[i]], labels))
            for value, expected in zip(alone, together, strict=True):
                assert_close(value, expected[[i]], self.tolerance, f"sum or count of image {i}")

    def test_loss_terms_add_up(self, ndim: int) -> None:
        """The means of what it consists of add up to its own mean over the batch."""
        logits, batch = self._logits(ndim), self._batch(ndim, irregular_region(2, SIZES[ndim]))
        sums, counts = self.make()(logits, batch)
        terms = self.make().loss_terms(logits, batch)
        assert terms, "a data term consists of one term at least"
        means = [of_term.sum() / over.sum().clamp(min=1e-30) for of_term, over in terms.values()]
        assert_close(torch.stack(means).sum(), sums.sum() / counts.sum(), self.tolerance, "sum of its terms' means")

    def test_modules_are_found_and_trained(self, ndim: int) -> None:
        """Networks that it owns: the same objects under the same names, reached by the gradient, moved with it."""
        term = self.make()
        owned = term.modules()
        for name, module in owned.items():
            assert isinstance(module, nn.Module)
            assert name
            assert "." not in name, f"{name!r}: a name of a module must hold no dot"
            assert term.modules()[name] is module, f"{name} is another object in each call"
        parameters = [(f"{n}.{k}", p) for n, m in owned.items() for k, p in m.named_parameters()]
        if parameters:
            term(self._logits(ndim), self._batch(ndim))[0].sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters:
            if parameter.requires_grad:
                assert parameter.grad is not None, f"the parameter {name} has no gradient"
                assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"

    def test_nothing_labelled_counts_nothing(self, ndim: int) -> None:
        """A crop may miss every scribble: then sum and count are 0, and the gradient is finite."""
        if not self.uses_labels:
            pytest.skip("uses_labels = False")
        blank = torch.full((2, *SIZES[ndim]), IGNORE)
        batch = Batch(random_image(2, self.channels, SIZES[ndim]), blank)
        sums, counts = self.make()(self._logits(ndim), batch)
        assert sums.tolist() == [0, 0]
        assert counts.tolist() == [0, 0]
        gradient = gradient_of_sum(lambda at: self.make()(at, batch)[0], self._logits(ndim))
        assert float(gradient.abs().max()) == 0

    def test_logits_of_any_precision(self, dtype: torch.dtype) -> None:
        """Half-precision logits give the float32 value of the same numbers."""
        ndim = self.spatial[0]
        logits = self._logits(ndim).to(dtype)
        sums, _ = self.make()(logits, self._batch(ndim))
        assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected, _ = self.make()(logits.double(), self._batch(ndim))
        assert_close(sums, expected, max(1e-4, self.tolerance), f"sum for {dtype} logits")

    def test_arguments_are_not_modified(self, ndim: int) -> None:
        """Logits and batch are read only."""
        batch, logits = self._batch(ndim, irregular_region(2, SIZES[ndim])), self._logits(ndim)
        with Unchanged(logits=logits, image=batch.image, labels=batch.labels, roi=batch.roi):
            self.make()(logits, batch)

    def test_bad_input_is_refused(self, ndim: int) -> None:
        """Logits of another size, labels outside the classes, no labels at all."""
        batch, logits = self._batch(ndim), self._logits(ndim)
        with pytest.raises(UsageError, match="logits"):
            self.make()(logits[..., 1:], batch)
        if self.uses_labels:
            with pytest.raises(UsageError, match="255"):
                self.make()(logits, Batch(batch.image, torch.full((2, *SIZES[ndim]), self.classes)))
            with pytest.raises(UsageError, match="labels"):
                self.make()(logits, Batch(batch.image, None))
