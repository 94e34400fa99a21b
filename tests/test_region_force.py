"""Region forces in general."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from regloss import ChanVese, UsageError
from regloss.region_force import RegionForce, pick_statistics


class TestStatistics:
    image = torch.tensor([[[0.0, 0.2, 0.9, 1.0]]])
    labels = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]])

    def test_an_emptied_class_keeps_its_statistics(self):
        before = ChanVese().fit(self.image, self.labels)
        gone = self.labels * torch.tensor([1.0, 0.0]).reshape(1, 2, 1)
        with pytest.raises(UsageError, match=r"Class 1 has no pixels at the start of image 0.*ChanVese|chan-vese"):
            ChanVese().fit(self.image, gone)
        after = ChanVese().fit(self.image + 0.0, gone, previous=before)
        torch.testing.assert_close(after.mean, before.mean)

    def test_picking(self):
        class Pair(NamedTuple):
            first: torch.Tensor
            second: torch.Tensor

        one = Pair(torch.ones(2, 3), torch.ones(2, 3, 4))
        zero = Pair(torch.zeros(2, 3), torch.zeros(2, 3, 4))
        by_image = pick_statistics(torch.tensor([True, False]), one, zero)
        assert by_image.first.tolist() == [[1.0] * 3, [0.0] * 3]
        by_class = pick_statistics(torch.tensor([[True, False, False], [False, False, True]]), one, zero)
        assert by_class.second.sum(2).tolist() == [[4.0, 0.0, 0.0], [0.0, 0.0, 4.0]]

    def test_features_that_are_no_image(self):
        """Any finite numbers will do, unless the force says otherwise."""
        features = torch.tensor([[[-9.0, -11.0, 10.0, 12.0], [3.0, 5.0, 0.0, 0.0]]])
        means = ChanVese().fit(features, self.labels)
        assert means.mean[0].tolist() == [[-10.0, 4.0], [11.0, 0.0]]

    def test_a_force_may_refuse_features(self):
        @dataclass(frozen=True)
        class Grey(ChanVese):
            def check_features(self, features):
                if features.shape[1] != 1:
                    raise UsageError("grey images only")

        assert issubclass(Grey, RegionForce)
        with pytest.raises(UsageError, match="grey images only"):
            Grey().unary(torch.rand(1, 3, 4), ChanVese().fit(self.image, self.labels))

    def test_shapes(self):
        with pytest.raises(UsageError, match=r"\(B, C, \*S\)"):
            ChanVese().fit(torch.rand(4, 4), self.labels)
        with pytest.raises(UsageError, match="region of interest"):
            ChanVese().fit(self.image, self.labels, torch.ones(1, 3, dtype=torch.bool))
