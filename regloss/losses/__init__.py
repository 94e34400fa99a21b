"""Losses as modules, for a training loop of your own.

    loss = regloss.losses.GridCRFLoss(weight=25.0)
    loss(logits, image=image)

There is one for each regularizer and each data term that is installed, made when it is first asked for: by the name of
its class and "Loss" (`GridCRFLoss`, `NonlocalTVLoss`, `PartialDiceLoss`, ...), or by its registered name through
`loss_of`. All are called ``loss(logits, target=None, image=None, roi=None)`` and have the settings ``ignore_index``,
``reduction`` and ``validate`` beside those of their component. `RegularizerLoss` and `DataLoss` take objects,
sums among them.

Values, as opposed to shapes, are checked once for each shape, since looking at them waits for the device;
``validate=False`` and `torch.compile` leave it out altogether. NaN in logits is no error but stays NaN in the loss, so
that gradient scalers and anomaly detection see it.

All losses compile, also with ``fullgraph=True``. Most are traced into torch's own operations; those whose regularizer
is `Regularizer.opaque`, since they run compiled code on the CPU or build graphs whose size depends on the image, are
one operation to the compiler, see `regloss.losses.operation`.
"""

from __future__ import annotations

from typing import Any

from regloss.losses.making import loss_names, loss_of, named
from regloss.losses.modules import DataLoss, Loss, RegularizerLoss

__all__ = ["DataLoss", "Loss", "RegularizerLoss", "loss_of"]


def __getattr__(name: str) -> Any:
    found = None if name.startswith("_") else named(name)
    if found is None:
        known = ", ".join(loss_names())
        raise AttributeError(f"module 'regloss.losses' has no attribute {name!r}. Its losses are: {known}.")
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *loss_names()})
