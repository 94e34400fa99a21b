"""Linear operators K of saddle forms, R(s) = max over y in Y of <K s - b, y>: one file each, shared by many priors."""

from regloss.operators.class_differences import ClassDifferences
from regloss.operators.class_sums import ClassSums
from regloss.operators.edge_differences import EdgeDifferences
from regloss.operators.gradient import Gradient
from regloss.operators.linear_operator import LinearOperator
from regloss.operators.scaled import Scaled, unscaled
from regloss.operators.tree_differences import TreeDifferences

__all__ = [
    "ClassDifferences",
    "ClassSums",
    "EdgeDifferences",
    "Gradient",
    "LinearOperator",
    "Scaled",
    "TreeDifferences",
    "unscaled",
]
