"""Robust KL as a plain classification loss: Fashion-MNIST with half of the training labels redrawn.

    REGLOSS_DATA=<data folder> python docs/experiments/fashion_mnist.py

Every training label is redrawn uniformly over the 10 classes with probability 1/2; the draw may hit the true class, so
that .5 * 9/10 = .45 of the labels are wrong. One small network is trained with RobustKL(epsilon) for each epsilon, and
with forward correction, RobustKL(noise_matrix=T), T = 1/2 I + 1/20 (all ones). The same seed gives every loss the same
noise, the same initial weights and the same batches, so that losses are compared in pairs.

Each finished run is appended to the CSV, and runs found there are skipped: a stopped experiment goes on where it was.
"""

from __future__ import annotations

import csv
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import typer
from torch import Tensor, nn

import regloss
from regloss.divergence import Divergence

CLASSES = 10
REDRAWN = 0.5
OUTLIERS = REDRAWN * (CLASSES - 1) / CLASSES  # a redrawn label is the true one once in ten
NOISE_MATRIX = (1 - REDRAWN) * torch.eye(CLASSES) + REDRAWN / CLASSES  # T[l, k] = Pr(label k seen | class l)
EPSILONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PAPER_BEST = 0.4  # Marin, Boykov, "Robust trust region for weakly supervised segmentation", ICCV 2021
ROBUST, FORWARD = "robust-kl", "forward correction"
LOSSES = [*((ROBUST, epsilon) for epsilon in EPSILONS), (FORWARD, OUTLIERS)]


class Data(NamedTuple):
    """Images (N, 1, 28, 28) float32, standardised, and labels (N,) int64; the training labels are still clean."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Row(NamedTuple):
    """One epoch of one run, a line of the CSV."""

    loss: str  # ROBUST, or FORWARD with the epsilon that its matrix amounts to
    epsilon: float
    seed: int
    epoch: int  # from 1
    train_loss: float
    memorised: float  # share of the wrongly labelled training images that were given just that wrong label
    test_accuracy: float
    cpu_seconds: float  # since the run began, evaluation included


# ---- data


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes: two zero bytes, the type 8, the number of axes, their lengths, the values."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise regloss.UsageError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:3]!r}.")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())


def load(folder: Path, test: int) -> Data:
    """The last ``test`` images for testing, those before for training: the data folder has no separate test file."""
    images = read_idx(folder / "train-images-idx3-ubyte.gz").unsqueeze(1) / 255
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz").long()
    images = (images - images[:-test].mean()) / images[:-test].std()
    return Data(images[:-test], labels[:-test], images[-test:], labels[-test:])


def corrupt(labels: Tensor, seed: int) -> Tensor:
    """A copy of ``labels`` (N,), each redrawn uniformly over the classes with probability 1/2."""
    generator = torch.Generator().manual_seed(seed)
    redrawn = torch.rand(len(labels), generator=generator) < REDRAWN
    return torch.where(redrawn, torch.randint(CLASSES, labels.shape, generator=generator), labels)


# ---- one run


def make_divergence(loss: str, epsilon: float) -> Divergence:
    """RobustKL with uniform outliers, or with the matrix that made the noise."""
    return regloss.RobustKL(noise_matrix=NOISE_MATRIX) if loss == FORWARD else regloss.RobustKL(epsilon)


def make_network(seed: int) -> nn.Module:
    """Two convolutional and two dense layers; strides instead of pooling keep a run near a minute on one core."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),  # 28 -> 14
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),  # 14 -> 7
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 256), nn.ReLU()),
        nn.Linear(256, CLASSES),
    )


def train(loss: str, epsilon: float, data: Data, seed: int, epochs: int, batch_size: int = 128) -> Iterator[Row]:
    """Train with Adam, the learning rate falling linearly from 1e-3 to 0; one row after each epoch."""
    start = time.process_time()
    divergence, network = make_divergence(loss, epsilon), make_network(seed)
    noisy = corrupt(data.train_labels, seed)
    wrong = noisy != data.train_labels
    order = torch.Generator().manual_seed(1000 + seed)  # another stream than the noise's
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    steps = epochs * -(-len(noisy) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    for epoch in range(1, epochs + 1):
        total, memorised = torch.zeros(()), torch.zeros(())
        for chosen in torch.split(torch.randperm(len(noisy), generator=order), batch_size):
            logits = network(data.train_images[chosen])
            values = divergence(noisy[chosen], logits)  # (B,)
            optimizer.zero_grad()
            torch.autograd.backward(values.mean())
            optimizer.step()
            schedule.step()
            total += values.detach().sum()
            memorised += ((logits.argmax(1) == noisy[chosen]) & wrong[chosen]).sum()
        mean, share = float(total / len(noisy)), float(memorised / wrong.sum())
        right = accuracy(network, data.test_images, data.test_labels)
        seconds = time.process_time() - start
        yield Row(loss, epsilon, seed, epoch, round(mean, 5), round(share, 5), round(right, 5), round(seconds, 1))


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that are classified right."""
    predicted = torch.cat([network(part).argmax(1) for part in torch.split(images, 500)])
    return float((predicted == labels).double().mean())


# ---- results


def read_rows(path: Path) -> list[Row]:
    """What earlier runs left in the CSV; nothing, if there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    return [Row(loss, float(eps), int(seed), int(epoch), *map(float, rest)) for loss, eps, seed, epoch, *rest in lines]


def append_rows(path: Path, rows: list[Row]) -> None:
    """Add one finished run."""
    header = [] if path.exists() else [Row._fields]
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*header, *rows])


def curves(rows: list[Row], column: str) -> dict[tuple[str, float], np.ndarray]:
    """(seeds, epochs) of a column in percent, for every loss that has rows."""
    seeds, epochs = sorted({row.seed for row in rows}), max(row.epoch for row in rows)
    result = {loss: np.full((len(seeds), epochs), np.nan) for loss in LOSSES}
    for row in rows:
        result[row.loss, row.epsilon][seeds.index(row.seed), row.epoch - 1] = 100 * getattr(row, column)
    return {loss: values for loss, values in result.items() if not np.isnan(values).any()}


def table(rows: list[Row]) -> str:
    """Markdown: accuracy after the last epoch for each seed, mean and range, the best epoch's, memorised labels."""
    seeds, memorised = sorted({row.seed for row in rows}), curves(rows, "memorised")
    heads = ["epsilon", *(f"seed {seed}" for seed in seeds), "mean", "range", "best epoch, mean", "memorised"]
    lines = [heads, ["---"] * len(heads)]
    for (loss, epsilon), values in curves(rows, "test_accuracy").items():
        last, best, share = values[:, -1], values.max(1).mean(), memorised[loss, epsilon][:, -1].mean()
        label = f"{epsilon:g}" if loss == ROBUST else f"{FORWARD} with T (= {epsilon:g})"
        mean = f"**{last.mean():.1f}**"
        lines += [
            [label, *(f"{value:.1f}" for value in last), mean, f"{np.ptp(last):.1f}", f"{best:.1f}", f"{share:.1f}"]
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: list[Row], path: Path) -> None:
    """Left: accuracy over epsilon, mean and range of the seeds. Right: accuracy over the epochs for some epsilons."""
    import matplotlib.pyplot as plt  # after main has chosen the backend

    accuracies = curves(rows, "test_accuracy")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for name, colour, style in ((ROBUST, "C0", "o-"), (FORWARD, "C3", "D")):
        x = [epsilon for loss, epsilon in accuracies if loss == name]
        last = np.array([values[:, -1] for (loss, _), values in accuracies.items() if loss == name])
        best = [values.max(1).mean() for (loss, _), values in accuracies.items() if loss == name]
        mean = last.mean(1)
        reach = np.abs(np.stack([last.min(1), last.max(1)]) - mean)
        left.errorbar(x, mean, reach, fmt=style, color=colour, capsize=3, label=f"{name}, last epoch: mean and range")
        if name == ROBUST:
            left.plot(x, best, ":", color=colour, label=f"{name}, best epoch: mean")
    left.axvline(OUTLIERS, color="grey", linestyle="--", linewidth=1, label=f"share of wrong labels, {OUTLIERS:g}")
    left.axvline(PAPER_BEST, color="C2", linestyle="-.", linewidth=1, label=f"best in the paper, {PAPER_BEST:g}")
    left.set(xlabel="epsilon", ylabel="test accuracy (%)", title="After training, half of the labels redrawn")
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    for (loss, epsilon), values in accuracies.items():
        if loss == ROBUST and round(10 * epsilon) % 2 == 0:
            shade = mpl.colormaps["viridis"](epsilon / 0.9)
            right.plot(np.arange(1, values.shape[1] + 1), values.mean(0), color=shade, label=f"epsilon {epsilon:g}")
    right.set(xlabel="epoch", ylabel="test accuracy (%)", title="During training, mean of the seeds")
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    data: Annotated[Path, typer.Option(envvar="REGLOSS_DATA", help="Folder that holds fashion_mnist/.")],
    output: Annotated[Path, typer.Option(help="Where the CSV and the picture go.")] = Path(__file__).parent,
    epochs: int = 16,
    seeds: int = 3,
    test: Annotated[int, typer.Option(help="How many of the last images are kept for testing.")] = 10_000,
) -> None:
    """Run what the CSV does not hold yet, then draw the picture and print the table."""
    torch.set_num_threads(1)
    mpl.use("Agg")
    results = output / "fashion-mnist.csv"
    rows = read_rows(results)
    if rows and max(row.epoch for row in rows) != epochs:
        raise regloss.UsageError(f"{results} holds runs of another length than {epochs} epochs: give another --output.")
    images = load(data / "fashion_mnist", test)
    for seed in range(seeds):
        for loss, epsilon in LOSSES:
            if any((loss, epsilon, seed) == row[:3] for row in rows):
                continue
            run = list(train(loss, epsilon, images, seed, epochs))
            append_rows(results, run)
            rows += run
            print(run[-1], flush=True)
    plot(rows, output / "fashion-mnist.png")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
