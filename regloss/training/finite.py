"""A training that diverges ends with a sentence that names the step and the images."""

from __future__ import annotations

import torch
from torch import Tensor

from regloss.batch import Batch
from regloss.errors import ReglossError


def check_finite_logits(logits: Tensor, step: int | None, batch: Batch) -> None:
    """Raise what `diverged` says where the network's output is NaN or infinite."""
    if not bool(torch.isfinite(logits).all()):
        raise diverged("The network's output became NaN or infinite", step, batch)


def diverged(what: str, step: int | None, batch: Batch) -> ReglossError:
    """The error to raise when ``what`` happened at ``step``, if that is known."""
    where = "" if step is None else f" at step {step}"
    return ReglossError(
        f"{what}{where}. Lower the learning rate, or look at the images of this batch: " + ", ".join(batch.ids or ())
    )
