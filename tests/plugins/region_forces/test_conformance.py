"""The conformance suite, inherited by every built-in region force."""

from __future__ import annotations

import regloss
from regloss.region_force import RegionForce
from regloss.testing import RegionForceConformance


class TestChanVese(RegionForceConformance):
    nonnegative = True

    def make(self) -> RegionForce:
        return regloss.ChanVese(scale=2.0)


class TestGaussian(RegionForceConformance):
    def make(self) -> RegionForce:
        return regloss.GaussianForce(min_variance=1e-3)


class TestHistogram(RegionForceConformance):
    nonnegative = True

    def make(self) -> RegionForce:
        return regloss.HistogramForce(bins=8)
