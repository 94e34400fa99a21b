"""regloss: regularized losses and layers for image segmentation with few, weak or no labels.

Nothing heavy is imported until it is used: ``import regloss`` itself does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from regloss.errors import (
    AmbiguousName,
    BrokenPlugin,
    MissingDependency,
    MissingForm,
    ReglossError,
    UnknownComponent,
    UsageError,
)
from regloss.registry import create, get, names, register, unregister

if TYPE_CHECKING:  # what the lazy lookup below finds at run time, spelt out for type checkers and editors
    from regloss.alternation import Alternation, alternate
    from regloss.batch import Batch
    from regloss.data_term import DataTerm
    from regloss.dataset import Dataset, Sample
    from regloss.deep_segmentation import DeepChanVese, deep_chan_vese
    from regloss.denoising import Denoised, denoise
    from regloss.dense_crf_layer import DenseCRFLayer
    from regloss.divergence import Divergence
    from regloss.guided import guided_filter
    from regloss.layer import RegularizedNetwork, RegularizedSoftmax, attach
    from regloss.outer_loop import OuterLoop, Proposal, Update
    from regloss.region_force import RegionForce, phases_by_color
    from regloss.regularizer import Concave, Form, Graph, GridGraph, Mixed, Projection, Regularizer, Saddle, Sum, Term
    from regloss.saliency import phases_by_saliency
    from regloss.schedule import Schedule
    from regloss.sigmoid_layer import RegularizedSigmoid
    from regloss.solver import Problem, Solution, Solver, Status, solve
    from regloss_plugins.data_terms.boundary import Boundary
    from regloss_plugins.data_terms.collision_cross_entropy import CollisionCrossEntropy
    from regloss_plugins.data_terms.cross_entropy import CrossEntropy
    from regloss_plugins.data_terms.elbo import ELBO
    from regloss_plugins.data_terms.entropy import Entropy
    from regloss_plugins.data_terms.partial_cross_entropy import PartialCrossEntropy
    from regloss_plugins.data_terms.size_bounds import SizeBounds
    from regloss_plugins.divergences.euclidean import Euclidean
    from regloss_plugins.divergences.kl import KL
    from regloss_plugins.divergences.robust_kl import RobustKL
    from regloss_plugins.outer_loops.adm import ADM
    from regloss_plugins.outer_loops.gradient_descent import GradientDescent
    from regloss_plugins.outer_loops.soft_self_labeling import SoftSelfLabeling
    from regloss_plugins.outer_loops.trust_region import TrustRegion
    from regloss_plugins.outer_loops.variable_splitting import Splitting
    from regloss_plugins.region_forces.chan_vese import ChanVese
    from regloss_plugins.region_forces.gaussian import GaussianForce
    from regloss_plugins.region_forces.histogram import HistogramForce
    from regloss_plugins.regularizers.convex import ConvexShape
    from regloss_plugins.regularizers.dense_crf import DenseCRF
    from regloss_plugins.regularizers.gated_crf import GatedCRF
    from regloss_plugins.regularizers.grid_crf import GridCRF
    from regloss_plugins.regularizers.kernel_cut import KernelCut
    from regloss_plugins.regularizers.nltv import NonlocalTV
    from regloss_plugins.regularizers.normalized_cut import NormalizedCut
    from regloss_plugins.regularizers.ordered import Ordered
    from regloss_plugins.regularizers.star import StarShape
    from regloss_plugins.regularizers.threshold_dynamics import ThresholdDynamics
    from regloss_plugins.regularizers.tree_energy import TreeEnergy
    from regloss_plugins.regularizers.tv import TotalVariation
    from regloss_plugins.regularizers.volume import Volume
    from regloss_plugins.solvers.alpha_expansion import AlphaExpansion
    from regloss_plugins.solvers.dca import DCA
    from regloss_plugins.solvers.mean_field import MeanField
    from regloss_plugins.solvers.pdhg import PDHG

__version__ = "0.1.0"

_NOUNS = {
    "Alternation": "alternation",
    "Batch": "batch",
    "Concave": "regularizer",
    "DataTerm": "data_term",
    "Dataset": "dataset",
    "DeepChanVese": "deep_segmentation",
    "Denoised": "denoising",
    "DenseCRFLayer": "dense_crf_layer",
    "Divergence": "divergence",
    "Form": "regularizer",
    "Graph": "regularizer",
    "GridGraph": "regularizer",
    "Mixed": "regularizer",
    "OuterLoop": "outer_loop",
    "Problem": "solver",
    "Projection": "regularizer",
    "Proposal": "outer_loop",
    "Update": "outer_loop",
    "RegionForce": "region_force",
    "RegularizedNetwork": "layer",
    "RegularizedSigmoid": "sigmoid_layer",
    "RegularizedSoftmax": "layer",
    "Regularizer": "regularizer",
    "Saddle": "regularizer",
    "Sample": "dataset",
    "Schedule": "schedule",
    "Solution": "solver",
    "Solver": "solver",
    "Status": "solver",
    "Sum": "regularizer",
    "Term": "regularizer",
    "alternate": "alternation",
    "attach": "layer",
    "deep_chan_vese": "deep_segmentation",
    "denoise": "denoising",
    "guided_filter": "guided",
    "phases_by_color": "region_force",
    "phases_by_saliency": "saliency",
    "solve": "solver",
}

__all__ = [
    "ADM",
    "DCA",
    "ELBO",
    "KL",
    "PDHG",
    "AlphaExpansion",
    "Alternation",
    "AmbiguousName",
    "Batch",
    "Boundary",
    "BrokenPlugin",
    "ChanVese",
    "CollisionCrossEntropy",
    "Concave",
    "ConvexShape",
    "CrossEntropy",
    "DataTerm",
    "Dataset",
    "DeepChanVese",
    "Denoised",
    "DenseCRF",
    "DenseCRFLayer",
    "Divergence",
    "Entropy",
    "Euclidean",
    "Form",
    "GatedCRF",
    "GaussianForce",
    "GradientDescent",
    "Graph",
    "GridCRF",
    "GridGraph",
    "HistogramForce",
    "KernelCut",
    "MeanField",
    "MissingDependency",
    "MissingForm",
    "Mixed",
    "NonlocalTV",
    "NormalizedCut",
    "Ordered",
    "OuterLoop",
    "PartialCrossEntropy",
    "Problem",
    "Projection",
    "Proposal",
    "RegionForce",
    "ReglossError",
    "RegularizedNetwork",
    "RegularizedSigmoid",
    "RegularizedSoftmax",
    "Regularizer",
    "RobustKL",
    "Saddle",
    "Sample",
    "Schedule",
    "SizeBounds",
    "SoftSelfLabeling",
    "Solution",
    "Solver",
    "Splitting",
    "StarShape",
    "Status",
    "Sum",
    "Term",
    "ThresholdDynamics",
    "TotalVariation",
    "TreeEnergy",
    "TrustRegion",
    "UnknownComponent",
    "Update",
    "UsageError",
    "Volume",
    "__version__",
    "alternate",
    "attach",
    "create",
    "deep_chan_vese",
    "denoise",
    "get",
    "guided_filter",
    "names",
    "phases_by_color",
    "phases_by_saliency",
    "register",
    "solve",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name in _NOUNS:
        value = getattr(importlib.import_module(f"regloss.{_NOUNS[name]}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'regloss' has no attribute {name!r}")
    else:
        from regloss.registry import load, public_classes

        component = public_classes().get(name)
        if component is None:
            raise AttributeError(f"module 'regloss' has no attribute {name!r}")
        value = load(component)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
