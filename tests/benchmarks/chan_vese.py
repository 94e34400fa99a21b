"""Chan-Vese on photographs: CPU seconds and energy beside scikit-image; all methods in one run, on one thread.

    python tests/benchmarks/chan_vese.py [--mu 0.25] [--repeats 3] [--horses 3] [--quick]

The functional. scikit-image's chan_vese stretches the grey image to [0, 1] and flows along

    phi_t = delta(phi) (mu div(grad phi / |grad phi|) - lambda_1 (I - c_1)^2 + lambda_2 (I - c_2)^2),

c_1 and c_2 being the means where phi > 0 and elsewhere: the descent of

    F = mu Length(C) + lambda_1 sum inside (I - c_1)^2 + lambda_2 sum outside (I - c_2)^2          (*)

(Getreuer, "Chan-Vese segmentation", IPOL 2012, without the area term). Two things in its source change the flow's
speed or what it reports, not (*): its delta is 1 / (1 + phi^2), pi times the derivative of its Heaviside function, so
that the energies it lists weigh the length by pi mu; and these are sums over a smeared phi that no mask has. Energies
here are those of masks, with lambda_1 = lambda_2 = 1, each mask with its own means, and the length measured in three
ways:

    isotropic     sum of |grad u|_2, forward differences
    l1            sum of |grad u|_1: what tv's cuts minimise, which the solver's bound certifies
    8 neighbours  Cauchy-Crofton: pi / 8 (straight pairs + diagonal pairs / sqrt 2), the nearest to Euclid's

regloss solves for the labels globally, given the means, and fits the means in turn; k-means for its start is in the
time. Its length is that of tv, l1, and in the last row that of 8 neighbours: a grid CRF bound to a flat image, whose
contrast weights are all 1. morphological_chan_vese minimises no energy, and knows no mu; it is there to compare, with
35 steps as in scikit-image's gallery. --horses takes photographs of $REGLOSS_DATA/weizmann_horse.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from skimage import data
from skimage.segmentation import chan_vese, morphological_chan_vese
from torch import Tensor

import regloss
from regloss.io.images import read_image
from regloss.regularizer import Term

Grey = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def stretched(image: npt.NDArray[np.generic]) -> Grey:
    """Grey, with values from 0 to 1, as scikit-image's function makes them."""
    grey = image.astype(np.float64)
    grey = grey @ [0.299, 0.587, 0.114] if grey.ndim == 3 else grey
    grey -= grey.min()
    return grey / grey.max()


def photographs(horses: int, quick: bool) -> Iterator[tuple[str, Grey]]:
    """Names and images."""
    for name in ("camera", "coins", "astronaut"):
        grey = stretched(getattr(data, name)())
        yield name, grey[::2, ::2] if quick else grey
    folder = Path(os.environ.get("REGLOSS_DATA", "")) / "weizmann_horse" / "images"
    if horses == 0:
        return
    if not (os.environ.get("REGLOSS_DATA") and folder.is_dir()):
        print("horses: skipped, REGLOSS_DATA does not name a folder with weizmann_horse")
        return
    for path in sorted(folder.iterdir())[:horses]:
        yield f"horse {path.stem}", stretched(read_image(path, 1)[0])


def energies(grey: Grey, mask: Mask, mu: float) -> dict[str, float]:
    """F of a mask, with the three lengths."""
    u = mask.astype(np.float64)
    dy = np.pad(np.diff(u, axis=0), [(0, 1), (0, 0)])
    dx = np.pad(np.diff(u, axis=1), [(0, 0), (0, 1)])
    straight = np.abs(dx).sum() + np.abs(dy).sum()
    diagonal = np.abs(u[1:, 1:] - u[:-1, :-1]).sum() + np.abs(u[1:, :-1] - u[:-1, 1:]).sum()
    lengths = {
        "isotropic": np.hypot(dx, dy).sum(),
        "l1": straight,
        "8 neighbours": np.pi / 8 * (straight + diagonal / np.sqrt(2)),
    }
    fit = sum(((grey[part] - grey[part].mean()) ** 2).sum() for part in (mask, ~mask) if part.any())
    return {name: float(mu * length + fit) for name, length in lengths.items()}


def l1(image: Tensor, mu: float) -> Term:
    """mu times the l1 length, which tv counts for both phases."""
    return regloss.TotalVariation(mu / 2).bind(image)


def euclidean(image: Tensor, mu: float) -> Term:
    """mu times the length by Cauchy and Crofton; pairs of 8 neighbours weigh 1 / distance."""
    return regloss.GridCRF(weight=np.pi / 8 * mu).bind(torch.zeros_like(image))


def ours(mu: float, max_rounds: int, length: Callable[[Tensor, float], Term] = l1) -> Callable[[Grey], Mask]:
    """The method chan-vese of `regloss segment`."""
    solver = regloss.AlphaExpansion(workers=1)

    def run(grey: Grey) -> Mask:
        image = torch.from_numpy(grey).float()[None, None]
        start = regloss.phases_by_color(image, 2)
        found = regloss.alternate("chan-vese", length(image, mu), solver, image, start, max_rounds=max_rounds)
        if not bool((found.energies[1:] <= found.energies[:-1]).all()):
            raise AssertionError(f"the energy rose: {found.energies[:, 0].tolist()}")
        return found.labels[0].numpy() == 1

    return run


def main() -> None:
    """Print one row for each image and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mu", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--horses", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the photographs at half their size")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    mu = chosen.mu
    methods: dict[str, Callable[[Grey], Mask]] = {
        "skimage chan_vese": lambda grey: chan_vese(grey, mu=mu),
        "  its tol 1e-4": lambda grey: chan_vese(grey, mu=mu, tol=1e-4),
        "  morphological": lambda grey: morphological_chan_vese(grey, num_iter=35).astype(bool),
        "regloss, 1 round": ours(mu, 1),
        "regloss": ours(mu, 50),
        "regloss, 8 neighb.": ours(mu, 50, euclidean),
    }
    ours(mu, 2)(stretched(np.arange(100).reshape(10, 10)))  # compile before timing
    print(
        f"{'image':22} {'method':20} {'CPU s':>8} {'of skimage':>10} {'isotropic':>10} {'l1':>10} {'8 neighb.':>10}"
        f" {'worse by %':>10}"
    )
    for name, grey in photographs(chosen.horses, chosen.quick):
        found: dict[str, tuple[float, dict[str, float]]] = {}
        for method, run in methods.items():
            times = []
            for _ in range(chosen.repeats):
                began = time.process_time()
                mask = run(grey)
                times.append(time.process_time() - began)
            found[method] = median(times), energies(grey, mask, mu)
        reference = found["skimage chan_vese"][0]
        best = min(values["8 neighbours"] for _, values in found.values())
        size = "x".join(map(str, grey.shape))
        for method, (seconds, values) in found.items():
            numbers = " ".join(f"{value:10.2f}" for value in values.values())
            worse = 100 * (values["8 neighbours"] / best - 1)
            print(
                f"{f'{name} {size}':22} {method:20} {seconds:8.3f} {seconds / reference:10.2f} {numbers} {worse:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
