"""The graph of nonlocal total variation: how many neighbours, and which weights, against four neighbours on the grid.

    python docs/experiments/neighbors.py

No network: the distance of colours to those of k-means says what each pixel of a photograph costs, so that what differs
is the graph alone, whose edges weigh the same in all. Prints a table and draws neighbors-photograph.png. Set
REGLOSS_DATA to the folder that holds iseg.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import drawing
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import regloss
from regloss import NonlocalTV, Regularizer, TotalVariation
from regloss.io.images import read_image
from regloss.metrics.boundary import boundary_density

HERE = Path(__file__).resolve().parent
PHOTOGRAPH, PHASES = "iseg/images/209070.png", 6
WINDOW = (slice(70, 150), slice(110, 220))  # of the enlarged view
TOTAL_WEIGHT = 2.0  # of all edges, per pixel
SPREAD = 0.1  # standard deviation of a phase's colours
ENTROPY = 1.0
BANDWIDTHS = {"sigma_xy": 20.0, "sigma_near": 1.5}  # half of the published ones, for half of the published size


def nltv(neighbors: int, weights: str = "bilateral", patch: int = 0) -> NonlocalTV:
    return NonlocalTV(neighbors=neighbors, weights=weights, patch=patch, **BANDWIDTHS)  # type: ignore[arg-type]


GRAPHS: dict[str, Regularizer | None] = {
    "none": None,
    "4 on the grid": TotalVariation(),
    **{f"{count} neighbours": nltv(count) for count in (4, 10, 20, 40)},
    "10, rbf": nltv(10, "rbf"),
    "10, zmp": nltv(10, "zmp"),
    "10, cosine of 3x3 patches": nltv(10, "cosine", patch=1),
}


def segment(costs: Tensor, term: regloss.Term | None, weight: float) -> Tensor:
    """Labels (H, W) of the minimiser of <costs, s> + <s, log s> + weight R(s)."""
    if term is None:
        return costs.argmin(1)[0]
    # Weighted costs instead of weighted graphs: the minimiser is that of all three over the weight.
    solver = regloss.PDHG(max_steps=400, tolerance=1e-3 / weight)
    return regloss.solve(term, costs / weight, solver, entropy=ENTROPY / weight).labels[0]


def total_weight(term: regloss.Term) -> float:
    """Sum of all edges' weights of one image."""
    weights = term.form(regloss.Graph).weights  # each counts twice, for both its classes
    return float(weights.sum()) / 2


def edges_of(term: regloss.Term | None) -> int:
    """Number of edges of one image's graph."""
    if term is None:
        return 0
    if isinstance(term.regularizer, TotalVariation):
        height, width = term.shape[1:]
        return height * (width - 1) + (height - 1) * width
    return len(term.form(regloss.Graph).edges)


def main() -> None:
    """Segment the photograph by every graph; print a table, and draw the phases in their mean colours."""
    torch.set_num_threads(1)
    image = read_image(Path(os.environ["REGLOSS_DATA"]) / PHOTOGRAPH)
    batch = torch.from_numpy(image)[None]
    start = regloss.phases_by_color(batch, PHASES, seed=0)[0].numpy()
    means = np.stack([image[:, start == k].mean(1) for k in range(PHASES)])
    costs = torch.from_numpy(np.square(image[None] - means[:, :, None, None]).sum(1) / (2 * SPREAD**2))[None].float()
    panels = {"image": image}
    print("| graph | weight | edges | boundary | colour error | graph, s | solver, s |\n" + "|---" * 7 + "|")
    for name, regularizer in GRAPHS.items():
        began = time.process_time()
        term = None if regularizer is None else regularizer.bind(batch)
        bound, began = time.process_time() - began, time.process_time()
        weight = 0.0 if term is None else TOTAL_WEIGHT * costs[0, 0].numel() / total_weight(term)
        labels = segment(costs, term, weight)
        solved = time.process_time() - began
        painted = means[labels.numpy()].transpose(2, 0, 1)
        panels[name] = painted.astype(np.float32)
        error = 255 * float(np.sqrt(np.square(image - painted).mean()))
        numbers = f"{edges_of(term)} | {boundary_density(labels):.2f} | {error:.2f} | {bound:.2f} | {solved:.2f}"
        print(f"| {name} | {weight:.3f} | {numbers} |", flush=True)
    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    for number, (name, values) in enumerate(panels.items()):
        row, column = divmod(number, 5)
        for half, part in enumerate(((slice(None), slice(None)), WINDOW)):
            axes = figure.add_subplot(4, 5, 10 * row + 5 * half + column + 1)
            axes.imshow(values[(slice(None), *part)].transpose(1, 2, 0), interpolation="nearest")
            axes.set_axis_off()
            if half == 0:
                axes.set_title(name, fontsize=9)
    drawing.save(figure, HERE / "neighbors-photograph.png", dpi=80)


if __name__ == "__main__":
    main()
