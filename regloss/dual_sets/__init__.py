"""Dual sets Y of saddle forms, R(s) = max over y in Y of <K s - b, y>: one file each, shared by many priors."""

from regloss.dual_sets.balls import Balls
from regloss.dual_sets.box import Box
from regloss.dual_sets.dual_set import DualSet, Tangent
from regloss.dual_sets.free import Free
from regloss.dual_sets.orthant import Orthant

__all__ = ["Balls", "Box", "DualSet", "Free", "Orthant", "Tangent"]
