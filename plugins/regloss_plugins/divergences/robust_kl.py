"""Robust Kullback-Leibler divergence: the proposal is the true label seen through a noisy channel.

With the row-stochastic noise matrix T, T[l, k] = Pr(proposal k | true label l), the network's prediction of the
*proposal* is q~ = T^T q, and

    D(X, logits) = KL(X || T^T softmax(logits));     one-hot X = y:  -log sum over l of T[l, y] q_l

For uniform outliers of probability epsilon, a = epsilon / (K - 1) and b = 1 - K a, this is -log(a + b q_y), whose
gradient in the logits is -b q_y (e_y - q) / (a + b q_y): bounded loss, no pull where a confident network disagrees.
epsilon = 0 is the plain divergence; at epsilon = (K - 1) / K the loss is constant, beyond it would teach wrong labels.
On seeds, whose label is known, there are no outliers: plain -log q_y.

Source: Marin, Boykov, "Robust trust region for weakly supervised segmentation", ICCV 2021; forward correction by a
known noise matrix: Patrini et al., "Making deep neural networks robust to label noise", CVPR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regloss.checks import at_least_float32
from regloss.divergence import Divergence, gather_labels, log_softmax
from regloss.errors import UsageError


@dataclass(frozen=True)
class RobustKL(Divergence):
    """KL(target || T^T softmax(logits)), with uniform outliers or a noise matrix; see the module's text.

    Args:
        epsilon: outlier probability, 0 <= epsilon < (K - 1) / K.
        noise_matrix: (K, K) row-stochastic T, a tensor, an array or nested lists; then ``epsilon`` must be 0.

    Raises:
        UsageError: epsilon too large for K, or the matrix is not row-stochastic or not (K, K).

    >>> bool(RobustKL(0.5)(torch.tensor([0]), torch.tensor([[-60.0, 0.0, 0.0]])) < 1.4)  # cross entropy: 60.7
    True
    """

    epsilon: float = 0.0
    noise_matrix: Any = None

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, int | float) and 0 <= self.epsilon < 1):
            raise UsageError(f"epsilon is a probability, 0 <= epsilon < (K - 1) / K; got {self.epsilon!r}.")
        if self.noise_matrix is None:
            return
        if self.epsilon != 0:
            raise UsageError(
                f"Give either epsilon (uniform outliers) or noise_matrix, not both; got epsilon = {self.epsilon}."
            )
        matrix = self.noise_matrix
        if not isinstance(matrix, Tensor):
            if not isinstance(matrix, Sequence) and not hasattr(matrix, "__array__"):
                raise UsageError(f"noise_matrix must be a (K, K) tensor, array or nested lists; got {type(matrix)}.")
            matrix = torch.as_tensor(matrix)
        matrix = matrix.detach().to(torch.float64).clone()  # a copy: the caller may change theirs
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise UsageError(f"noise_matrix must be (K, K); got {tuple(matrix.shape)}.")
        sums = matrix.sum(1)
        if not (bool((matrix >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-6)):
            raise UsageError(
                "noise_matrix must be row-stochastic: T[l, k] = Pr(proposal k | true label l) >= 0, and every row sums "
                f"to 1; got rows that sum to {[round(value, 6) for value in sums.tolist()]}."
            )
        object.__setattr__(self, "noise_matrix", matrix)

    def of_labels(self, labels: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """-log (T^T q)_y, and -log q_y on seeds."""
        log_likelihood = gather_labels(log_probabilities, labels)
        robust = self._seen_at(labels, log_probabilities)
        return -(robust if seeds is None else torch.where(seeds, log_likelihood, robust))

    def of_probabilities(self, target: Tensor, log_probabilities: Tensor, seeds: Tensor | None) -> Tensor:
        """<X, log X> - <X, log T^T q>, and with log q on seeds."""
        seen = self._seen(log_probabilities)
        if seeds is not None:
            seen = torch.where(seeds.unsqueeze(1), log_probabilities, seen)
        values: Tensor = torch.special.xlogy(target, target) - target * seen
        return values.sum(1)

    def unary(self, logits: Tensor) -> Tensor:
        """-log (T^T q)_k for each k."""
        return -self._seen(log_softmax(logits))

    def _log_mixture(self, classes: int) -> tuple[float, float]:
        """Log of a and log of b."""
        if not self.epsilon < (classes - 1) / classes:
            raise UsageError(
                f"epsilon = {self.epsilon} is too large for K = {classes} classes: from (K - 1) / K = "
                f"{(classes - 1) / classes:.4g} on, a + b q_y no longer grows with q_y (b <= 0), so that the loss has "
                "no gradient or teaches wrong labels. Choose a smaller epsilon."
            )
        outlier = self.epsilon / (classes - 1)
        return math.log(outlier), math.log(1 - classes * outlier)

    def _seen_at(self, labels: Tensor, log_probabilities: Tensor) -> Tensor:
        """(B, *S): log of the predicted probability of seeing ``labels``."""
        classes = log_probabilities.shape[1]
        if self.noise_matrix is None:
            if self.epsilon == 0:
                return gather_labels(log_probabilities, labels)
            log_a, log_b = self._log_mixture(classes)
            log_q = gather_labels(log_probabilities, labels)
            return torch.logaddexp(torch.full_like(log_q, log_a), log_b + log_q)
        log_columns = self._log_matrix(log_probabilities)[:, labels].movedim(0, 1)  # (B, K, *S): log T[l, y]
        return torch.logsumexp(log_columns + log_probabilities, dim=1)

    def _seen(self, log_probabilities: Tensor) -> Tensor:
        """(B, K, *S): log T^T q."""
        classes = log_probabilities.shape[1]
        if self.noise_matrix is None:
            if self.epsilon == 0:
                return log_probabilities
            log_a, log_b = self._log_mixture(classes)
            return torch.logaddexp(torch.full_like(log_probabilities, log_a), log_b + log_probabilities)
        log_matrix = self._log_matrix(log_probabilities)
        columns = [
            torch.logsumexp(log_matrix[:, k].reshape(1, -1, *[1] * (log_probabilities.ndim - 2)) + log_probabilities, 1)
            for k in range(classes)
        ]
        return torch.stack(columns, dim=1)

    def _log_matrix(self, log_probabilities: Tensor) -> Tensor:
        classes = log_probabilities.shape[1]
        if self.noise_matrix.shape[0] != classes:
            raise UsageError(f"noise_matrix is {tuple(self.noise_matrix.shape)}, but the logits have K = {classes}.")
        matrix: Tensor = self.noise_matrix.to(log_probabilities)
        return at_least_float32(matrix).log()
