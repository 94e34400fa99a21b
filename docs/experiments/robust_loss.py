"""The robust loss and its gradient over the network's output, for several epsilon.

    python docs/experiments/robust_loss.py

Two classes, the label is the first; x is the difference of its logit from the other one's.
"""

from __future__ import annotations

from pathlib import Path

import drawing
import torch
from matplotlib.figure import Figure

from regloss import RobustKL

EPSILONS = {0.0: "#1f2937", 0.01: "#2563eb", 0.1: "#059669", 0.3: "#d97706", 0.45: "#dc2626"}


def curves(epsilon: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, the loss of one pixel, and its derivative by x."""
    x = torch.linspace(-10, 6, 321, dtype=torch.float64, requires_grad=True)
    logits = torch.stack([x, torch.zeros_like(x)], 1)  # (B, K, *S) with B pixels of their own
    loss = RobustKL(epsilon)(torch.zeros(len(x), dtype=torch.int64), logits)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return x.detach(), loss.detach(), slope


def main() -> None:
    """Draw both, and print where each loss levels off."""
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    losses, slopes = figure.subplots(1, 2)
    for epsilon, color in EPSILONS.items():
        x, loss, slope = curves(epsilon)
        name = "0: cross entropy" if epsilon == 0 else f"{epsilon:g}"
        losses.plot(x, loss, color=color, label=name)
        slopes.plot(x, slope, color=color, label=name)
        steepest = int(slope.argmin())
        print(
            f"epsilon {epsilon:g}: loss at x = -10 {loss[0]:.2f}, steepest {slope[steepest]:.3f} at {x[steepest]:.1f}"
        )
    losses.set(xlabel="x", ylabel="loss", ylim=(0, 8))
    slopes.set(xlabel="x", ylabel="derivative of the loss")
    losses.legend(title="epsilon", frameon=False, fontsize=8)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    drawing.save(figure, Path(__file__).resolve().parent / "robust-loss.png", dpi=90)


if __name__ == "__main__":
    main()
