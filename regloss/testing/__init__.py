"""Conformance checks that plugin authors inherit. Needs pytest, which the extra ``regloss[dev]`` brings.

Subclass the suite of your component's kind in a test module, say how to make the component, and pytest runs every check
of the suite on it. A suite's docstring begins with what you write; its attributes state facts about your component, and
are overridden where the default does not hold. Further tests of your own go into the same class.

Each suite is divided by banners: what must be defined, what might be, and the checks, which should not be redefined.
The name of a subclass must begin with ``Test``, or pytest does not collect it; the suites themselves are not collected.
For assertions that show the values compared, put this into your ``conftest.py``, before anything imports the module:

    pytest.register_assert_rewrite("regloss.testing")

>>> from regloss import TotalVariation
>>> class TestMyPrior(RegularizerConformance):
...     nonnegative = True
...
...     def make(self):
...         return TotalVariation(weight=2.0)
>>> TestMyPrior().test_weight_scales_the_energy(ndim=2)  # pytest calls this one and some thirty others
"""

from __future__ import annotations

from regloss.testing.constraint import ConstraintConformance
from regloss.testing.data_term import DataTermConformance
from regloss.testing.dataset import DatasetConformance
from regloss.testing.divergence import DivergenceConformance
from regloss.testing.layer import LayerConformance
from regloss.testing.network import NetworkConformance
from regloss.testing.outer_loop import OuterLoopConformance
from regloss.testing.region_force import RegionForceConformance
from regloss.testing.regularizer import RegularizerConformance
from regloss.testing.segmenter import SegmenterConformance
from regloss.testing.solver import SolverConformance

__all__ = [
    "ConstraintConformance",
    "DataTermConformance",
    "DatasetConformance",
    "DivergenceConformance",
    "LayerConformance",
    "NetworkConformance",
    "OuterLoopConformance",
    "RegionForceConformance",
    "RegularizerConformance",
    "SegmenterConformance",
    "SolverConformance",
]
