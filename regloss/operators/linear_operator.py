"""`LinearOperator`: K from segmentations to dual variables, and its adjoint."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class LinearOperator(ABC):
    """K: segmentations (B, K, *S) to arrays of its dual shape (B, ...), image by image.

    ``K[images]`` with int64 indices (M,) is the operator of these images alone, so that solvers can let images go that
    are done. Operators are never modified.
    """

    # ---- what must be defined

    @abstractmethod
    def apply(self, s: Tensor) -> Tensor:
        """K s, of dual shape, for ``s`` (B, K, *S)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """K^T y (B, K, *S), for ``y`` of dual shape: <K s, y> = <s, K^T y>."""

    @property
    @abstractmethod
    def norm(self) -> float:
        """An upper bound on the operator norm ||K||, over all images."""

    @abstractmethod
    def __getitem__(self, images: Tensor) -> LinearOperator:
        """The operator of the images with the indices ``images`` (M,) alone."""

    # ---- what might be defined

    def absolute(self) -> LinearOperator | None:
        """|K|, or an entrywise upper bound on it: its row and column sums give one step for each dual variable.

        None = solvers take their steps from the norm.
        """
        return None

    def squared(self) -> LinearOperator | None:
        """K * K, entry by entry; it preconditions linear systems, so near is good enough. None = they go without."""
        return None

    @property
    def classes_are_alike(self) -> bool:
        """Whether K treats each class for itself and all in the same way, so that sums of one class's entries do."""
        return False

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Tensors that K is computed from and that may need a gradient."""
        return ()

    @property
    def dtype(self) -> torch.dtype | None:
        """Precision of K; solvers work in it where it is finer than that of the unaries. None = any will do."""
        return None
