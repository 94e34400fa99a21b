"""Post-processing of a network's predictions by a prior, without training: dense CRFs by default.

    labels = argmax of s = argmin over s in the simplex at every pixel of
             -<log softmax(logits), s> + entropy <s, log s> + R(s; image)

With entropy = 1 and no R that is the network's own answer. R is by default the sum of two dense CRFs, of place and
colour and of place alone, and ten steps of mean field are taken: what papers put behind their networks.

Source: Krähenbühl, Koltun, NeurIPS 2011; weights and widths as in Tang et al., ECCV 2018, in the units of `dense-crf`
(theirs divide every kernel by its sums around a pixel; in regions of one colour that is the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regloss.apps.components import parse_component
from regloss.checks import check_entropy
from regloss.regularizer import Regularizer, combine
from regloss.solver import Solution, Solver, negotiate, solve

REGULARIZERS = (
    "dense-crf:weight=10,sigma-xy=80,sigma-rgb=0.051,scale=1",
    "dense-crf:weight=3,sigma-xy=3,sigma-rgb=inf,scale=1",
)
SOLVER = "mean-field:max-steps=10,tolerance=1e-3"
ENTROPY = 1.0


@dataclass(frozen=True)
class PostProcess:
    """A prior, and how it is solved with the network's log-probabilities as unaries.

    Attributes:
        regularizer: R.
        solver: one that accepts a form of it.
        entropy: weight of the entropy, >= 0; 0 for solvers over labels.
    """

    regularizer: Regularizer
    solver: Solver
    entropy: float = ENTROPY

    @classmethod
    def parse(
        cls, regularizers: Sequence[str] | None = None, solver: str | None = None, entropy: float | None = None
    ) -> PostProcess:
        """From ``NAME`` or ``NAME:setting=value,...`` of a command line; what is not given is as above.

        Raises:
            MissingForm: the solver cannot serve the regularizers.
            UsageError: names or settings that do not exist or are invalid.
        """
        chosen = combine([parse_component("regularizer", text) for text in regularizers or REGULARIZERS])
        assert isinstance(chosen, Regularizer)
        by: Solver = parse_component("solver", solver or SOLVER)
        negotiate(chosen, by)
        entropy = ENTROPY if entropy is None else entropy
        check_entropy(entropy)
        return cls(chosen, by, entropy)

    def __call__(self, logits: Tensor, image: Tensor, spacing: Sequence[float] | None = None) -> Solution:
        """Solve for images (B, C, *S) in [0, 1] with ``logits`` (B, K, *S), in float32 at least.

        Args:
            logits: of a network.
            image: what the prior looks at.
            spacing: of its axes in mm; None = not known.
        """
        unary = -torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        return solve(self.regularizer.bind(image, spacing=spacing), unary, self.solver, entropy=self.entropy)
