"""Post-processing of a network's predictions by a prior, without training: dense CRFs by default.

    labels = argmax of s = argmin over s in the simplex at every pixel of
             <unary, s> + entropy <s, log s> + R(s; image)

    unary = -log softmax(logits)           "log-probabilities"
    unary = 2 (1 - f)                      "labels": f is one-hot, the argmax of the logits

With log-probabilities, entropy = 1 and no R that is the network's own answer. R is by default the sum of two dense
CRFs, of place and colour and of place alone, and ten steps of mean field are taken: what papers put behind their
networks.

With labels, <unary, s> = |s - f|_1 at every pixel, on the simplex and not on its corners alone, so that with `tv` and
entropy = 0 this is TV-L1 of the predicted labels: min |s - f|_1 + TV(s). It knows nothing of how sure the network was.

Source: Krähenbühl, Koltun, NeurIPS 2011; weights and widths as in Tang et al., ECCV 2018, in the units of `dense-crf`
(theirs divide every kernel by its sums around a pixel; in regions of one colour that is the same). Chan, Esedoglu,
"Aspects of total variation regularized L1 function approximation", 2005.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regloss.apps.components import parse_component
from regloss.checks import at_least_float32, check_choice, check_entropy, check_finite
from regloss.numerics import one_hot
from regloss.regularizer import Regularizer, combine
from regloss.solver import Solution, Solver, negotiate, solve

REGULARIZERS = (
    "dense-crf:weight=10,sigma-xy=80,sigma-rgb=0.051,scale=1",
    "dense-crf:weight=3,sigma-xy=3,sigma-rgb=inf,scale=1",
)
SOLVER = "mean-field:max-steps=10,tolerance=1e-3"
ENTROPY = 1.0
UNARIES = ("log-probabilities", "labels")


@dataclass(frozen=True)
class PostProcess:
    """A prior, and how it is solved beside what the network says.

    Attributes:
        regularizer: R.
        solver: one that accepts a form of it.
        entropy: weight of the entropy, >= 0; 0 for solvers over labels.
        unary: what the solution stays near to: the network's "log-probabilities", or its "labels".

    Raises:
        UsageError: an unknown unary.
    """

    regularizer: Regularizer
    solver: Solver
    entropy: float = ENTROPY
    unary: Literal["log-probabilities", "labels"] = "log-probabilities"

    def __post_init__(self) -> None:
        check_choice(UNARIES, unary=self.unary)

    @classmethod
    def parse(
        cls,
        regularizers: Sequence[str] | None = None,
        solver: str | None = None,
        entropy: float | None = None,
        unary: str | None = None,
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
        return cls(chosen, by, entropy, unary or UNARIES[0])  # type: ignore[arg-type]

    def __call__(self, logits: Tensor, image: Tensor, spacing: Sequence[float] | None = None) -> Solution:
        """Solve for images (B, C, *S) in [0, 1] with ``logits`` (B, K, *S), in float32 at least.

        Args:
            logits: of a network.
            image: what the prior looks at.
            spacing: of its axes in mm; None = not known.
        """
        logits = at_least_float32(logits)
        check_finite(logits, "logits", "A network that gives them has diverged.")
        if self.unary == "labels":
            unary = 2 * (1 - one_hot(logits.argmax(1), logits.shape[1], logits.dtype))
        else:
            unary = -torch.log_softmax(logits, dim=1)
        return solve(self.regularizer.bind(image, spacing=spacing), unary, self.solver, entropy=self.entropy)
