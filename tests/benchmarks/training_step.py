"""Cost of a training step: partial cross entropy, and each outer loop between updates, paired in one run.

    python tests/benchmarks/training_step.py [--rounds 30]

Prints milliseconds (median) and the ratio of medians to the plain step.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

import regloss
from regloss.outer_loop import OuterLoop, Proposal


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--size", type=int, default=128)
    arguments.add_argument("--batch", type=int, default=8)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.rand(chosen.batch, 1, chosen.size, chosen.size)
    labels = torch.full((chosen.batch, chosen.size, chosen.size), 255)
    labels[:, 10, 10:60], labels[:, 60, 10:60] = 0, 1
    labels[:, 90, 10:60], labels[:, 110, 10:60] = 2, 3
    batch = regloss.Batch(image, labels, roi=torch.ones_like(labels, dtype=torch.bool))
    network = regloss.create("network", "unet", in_channels=1, classes=4, channels=16)
    optimizer = torch.optim.Adam(network.parameters())
    crf = regloss.GridCRF(weight=1.0)
    loops: dict[str, OuterLoop] = {
        "partial cross entropy": regloss.GradientDescent(),
        "trust region, between updates": regloss.TrustRegion(crf, epsilon=0.5),
        "gradient descent on the grid CRF": regloss.GradientDescent(crf),
        "ADM, a graph cut every step": regloss.ADM(crf),
    }
    stored = Proposal(torch.randint(0, 4, labels.shape))
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(chosen.rounds + 3):
        for name, loop in loops.items():  # in turn, so that a change of the machine's speed meets all alike
            began = time.perf_counter()
            logits = network(batch.image)
            proposal = loop.propose(logits.detach(), batch) if loop.update_every == "step" else stored
            loss = loop.objective(logits, batch, proposal)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if turn >= 3:  # the first ones compile and allocate
                times[name].append(time.perf_counter() - began)
    plain = median(times["partial cross entropy"])
    print(f"U-Net, 16 channels, batch {chosen.batch}, {chosen.size}x{chosen.size}, one thread, {chosen.rounds} rounds")
    for name, values in times.items():
        print(f"{name:34} {1000 * median(values):7.1f} ms   {median(values) / plain:5.2f} x plain")


if __name__ == "__main__":
    main()
