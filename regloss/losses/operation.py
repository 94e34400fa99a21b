"""Energies as one operation, for compilers that cannot look inside of a term.

`torch.compile` sees ``regloss::energies``: a function from probabilities, image and region of interest to the energies
(B,) and their gradient (B, K, *S), computed together, with a shape rule and a derivative. What it calls is the same
`Regularizer.bind` and `Term.penalty` that eager losses call, with torch's own derivative, so both agree to rounding.

The gradient is what the forward pass keeps for the backward one, which is one product; there is no second derivative.
The operation runs wherever torch can call Python: in the backends "eager", "aot_eager" and "inductor" on any device. It
cannot be captured in a CUDA graph (``mode="reduce-overhead"`` runs it between graphs, as it may wait for the device or
work on the CPU), nor be exported to run without Python, which would not know the regularizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from regloss.checks import without_value_checks
from regloss.errors import UsageError
from regloss.registry import name_of
from regloss.regularizer import Regularizer, Sum

# An operation takes tensors and numbers only, so a regularizer goes by number. It lives as long as its loss does.
_regularizers: WeakValueDictionary[int, Regularizer] = WeakValueDictionary()
_numbers = itertools.count()


def handle_of(regularizer: Regularizer) -> int:
    """A number by which the operation finds ``regularizer`` in this process, as long as the object lives."""
    handle = next(_numbers)
    _regularizers[handle] = regularizer
    return handle


def energies_as_one_operation(
    probabilities: Tensor, image: Tensor, roi: Tensor | None, spacing: Sequence[float] | None, handle: int
) -> Tensor:
    """Penalties (B,) at ``probabilities`` (B, K, *S), differentiable once, as one operation."""
    differentiate = torch.is_grad_enabled() and probabilities.requires_grad
    energies: Tensor = _energies(probabilities, image, roi, spacing, handle, differentiate)[0]
    return energies


def _tensors(regularizer: Regularizer) -> Iterator[Tensor]:
    for value in vars(regularizer).values():
        if isinstance(value, Tensor):
            yield value
    if isinstance(regularizer, Sum):
        for part in regularizer.parts:
            yield from _tensors(part)


def _compute(
    probabilities: Tensor,
    image: Tensor,
    roi: Tensor | None,
    spacing: Sequence[float] | None,
    handle: int,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    regularizer = _regularizers[handle]
    if any(tensor.requires_grad for tensor in _tensors(regularizer)):
        raise UsageError(
            f"{name_of(regularizer)} has settings that need a gradient, but compiled its loss has one in logits alone. "
            "Detach them, or call the loss without torch.compile."
        )
    given = probabilities.detach().requires_grad_(differentiate)
    with torch.set_grad_enabled(differentiate), without_value_checks():
        energies = regularizer.bind(image.detach(), roi, spacing).penalty(given)
        if not differentiate:
            return energies, energies.new_empty(0)
        (gradient,) = torch.autograd.grad(energies.sum(), given)
    return energies.detach(), gradient.contiguous()


_SCHEMA = (
    "(Tensor probabilities, Tensor image, Tensor? roi, float[]? spacing, int handle, bool differentiate) "
    "-> (Tensor, Tensor)"
)


# Older versions of torch cannot infer a schema from annotations that are strings.
@torch.library.custom_op("regloss::energies", mutates_args=(), schema=_SCHEMA)
def _energies(
    probabilities: Tensor,
    image: Tensor,
    roi: Tensor | None,
    spacing: Sequence[float] | None,
    handle: int,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    # Inside of an operation torch records no derivatives in this thread, but it does in another.
    stream = torch.cuda.current_stream(probabilities.device) if probabilities.is_cuda else None

    def work() -> tuple[Tensor, Tensor]:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            return _compute(probabilities, image, roi, spacing, handle, differentiate)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@_energies.register_fake
def _(
    probabilities: Tensor,
    image: Tensor,
    roi: Tensor | None,
    spacing: Sequence[float] | None,
    handle: int,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    gradient = torch.empty(probabilities.shape, dtype=probabilities.dtype, device=probabilities.device)
    return probabilities.new_empty(probabilities.shape[0]), gradient if differentiate else probabilities.new_empty(0)


def _keep_gradient(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _times_gradient(ctx: Any, of_energies: Tensor | None, of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    if of_gradient is not None:
        raise UsageError("A compiled loss of this kind has no second derivative. Call the loss without torch.compile.")
    if of_energies is None:
        return None, None, None, None, None, None
    (gradient,) = ctx.saved_tensors
    return of_energies.reshape(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None, None, None, None


_energies.register_autograd(_times_gradient, setup_context=_keep_gradient)
