"""Random walks: conformance, against dense linear systems and walks of known outcome, and the missing package."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import regloss
from regloss.dataset import IGNORE
from regloss.errors import UsageError
from regloss.segmenter import Segmenter
from regloss.solver import Status
from regloss.testing import SegmenterConformance
from regloss_plugins.segmenters.random_walker import RandomWalker


class TestRandomWalker(SegmenterConformance):
    def make(self) -> Segmenter:
        return RandomWalker()


class TestByConjugateGradients(SegmenterConformance):
    def make(self) -> Segmenter:
        return RandomWalker(beta=50.0, method="cg", tolerance=1e-6)


def problem(channels: int, size: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random image, and scribbles of the classes 0, 2 and 3 at a few pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, channels, *size, generator=generator, dtype=torch.float64)
    scribbles = torch.full((1, *size), IGNORE)
    places = torch.randperm(math.prod(size), generator=generator)[:7]
    scribbles.view(-1)[places] = torch.tensor([0, 2, 3, 0, 2, 3, 3])
    return image, scribbles


def by_hand(
    image: Tensor, scribbles: Tensor, beta: float, spacing: tuple[float, ...]
) -> tuple[NDArray[np.float64], float]:
    """Probabilities (K, *S) by the dense Laplacian, and their energy."""
    values, labels = image[0].numpy(), scribbles[0].numpy()
    size = labels.shape
    number = np.arange(labels.size).reshape(size)
    laplacian = np.zeros((labels.size, labels.size))
    for place in itertools.product(*map(range, size)):
        for axis, step in enumerate(spacing):
            if place[axis] + 1 == size[axis]:
                continue
            other = tuple(at + (axis == which) for which, at in enumerate(place))
            contrast = sum(((channel[place] - channel[other]) / step) ** 2 for channel in values)
            weight = math.exp(-beta * contrast / (10 * values.std() * math.sqrt(len(values)))) + 1e-10
            p, q = number[place], number[other]
            laplacian[[p, q], [p, q]] += weight
            laplacian[[p, q], [q, p]] -= weight
    flat = labels.ravel()
    free = flat == IGNORE
    x = np.eye(4)[:, np.where(free, 0, flat)] * ~free
    x[:, free] = np.linalg.solve(laplacian[np.ix_(free, free)], -laplacian[np.ix_(free, ~free)] @ x[:, ~free].T).T
    return x.reshape(4, *size), float(sum(row @ laplacian @ row for row in x))


@pytest.mark.parametrize("method", ["direct", "cg"])
@pytest.mark.parametrize(
    ("channels", "size", "spacing"),
    [(1, (9, 11), None), (3, (8, 6), (2.0, 0.5)), (2, (4, 5, 3), (3.0, 1.0, 1.0)), (1, (40,), (0.7,))],
)
def test_probabilities_are_those_of_the_linear_systems(
    method: str, channels: int, size: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    image, scribbles = problem(channels, size)
    found = RandomWalker(beta=20.0, method=method, tolerance=1e-12)(image, scribbles=scribbles, spacing=spacing)
    expected, energy = by_hand(image, scribbles, 20.0, spacing or (1.0,) * len(size))
    np.testing.assert_allclose(found.probabilities[0].numpy(), expected, atol=1e-7)
    assert found.energy == pytest.approx(energy, rel=1e-7)
    assert torch.equal(found.labels, found.probabilities.argmax(1))
    assert found.bound == (found.energy if method == "direct" else -math.inf)
    assert found.status == (Status.OPTIMAL if method == "direct" else Status.CONVERGED)


def test_other_probabilities_cost_more() -> None:
    image, scribbles = problem(1, (7, 9))
    walker = RandomWalker()
    found = walker(image, scribbles=scribbles)
    free = (scribbles == IGNORE)[0].numpy()
    x = found.probabilities[0].numpy()
    for seed in range(5):
        moved = x + 1e-3 * np.random.default_rng(seed).normal(size=x.shape) * free
        assert walker.energy(image[0].numpy(), moved, (1.0, 1.0)) > found.energy


@pytest.mark.parametrize("image", [torch.full((1, 1, 1, 6), 0.4), torch.rand(1, 1, 1, 6)], ids=["flat", "beta 0"])
def test_without_edges_the_gamblers_ruin(image: Tensor) -> None:
    """Of six pixels in a row, a walk from the second reaches the first before the last with probability 4/5."""
    scribbles = torch.tensor([[[0, IGNORE, IGNORE, IGNORE, IGNORE, 1]]])
    found = RandomWalker(beta=130.0 if float(image.std()) == 0 else 0.0)(image, scribbles=scribbles)
    torch.testing.assert_close(found.probabilities[0, 0, 0], torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))


def test_scribbles_everywhere_are_the_answer() -> None:
    scribbles = torch.tensor([[[0, 1], [1, 0]]])
    found = RandomWalker()(torch.rand(1, 3, 2, 2), scribbles=scribbles)
    assert torch.equal(found.labels, scribbles)
    assert set(found.probabilities.unique().tolist()) == {0.0, 1.0}


def test_what_conjugate_gradients_do_not_reach_is_in_doubt() -> None:
    """A square that strong edges cut off: nothing is known of walks from there unless the tolerance is tiny."""
    image = torch.zeros(1, 1, 9, 9)
    image[..., 3:6, 3:6] = 1
    scribbles = torch.full((1, 9, 9), IGNORE)
    scribbles[0, 0, 0], scribbles[0, 8, 8] = 0, 1
    found = RandomWalker(beta=1e4, method="cg")(image, scribbles=scribbles)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(1, 9, 9))
    torch.testing.assert_close(found.probabilities[0, :, 3:6, 3:6], torch.full((2, 3, 3), 0.5), atol=1e-3, rtol=0)


def test_bad_settings_are_refused() -> None:
    for settings, words in (
        ({"beta": -1.0}, "beta"),
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
        ({"method": "lu"}, "auto, direct, cg"),
    ):
        with pytest.raises(regloss.UsageError, match=words):
            RandomWalker(**settings)  # type: ignore[arg-type]
    with pytest.raises(regloss.UsageError, match="random-walker needs scribbles"):
        RandomWalker()(torch.rand(1, 1, 4, 4), phases=2)


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "random-walker" in regloss.names("segmenter")
    with pytest.raises(regloss.MissingDependency, match=r"regloss\[random-walker\]"):
        regloss.create("segmenter", "random-walker")


def test_walks_that_are_not_known_are_told():
    """In the words of the settings, and where it matters: a warning of scikit-image would be an error here."""
    rows, columns = np.indices((12, 12))
    ball = (rows - 6) ** 2 + (columns - 6) ** 2 < 16
    noise = np.random.default_rng(0).normal(size=(6, 12, 12))
    image = torch.from_numpy(np.clip(0.2 + 0.5 * ball + 0.2 * noise, 0, 1))[None, None]
    scribbles = torch.full((1, 6, 12, 12), IGNORE)
    scribbles[0, 3, 6, 5:8], scribbles[0, 0, 1] = 1, 0
    exact = RandomWalker(method="direct")(image, scribbles=scribbles)
    found = RandomWalker(tolerance=1e-2)(image, scribbles=scribbles)
    assert float((found.probabilities - exact.probabilities).abs().max()) < 0.1
    assert found.notes == exact.notes == ()
    (note,) = RandomWalker(beta=2000.0)(image, scribbles=scribbles).notes
    assert "of 864 pixels were known" in note


def test_classes_beyond_the_value_of_unlabelled_pixels_are_refused():
    with pytest.raises(UsageError, match="must be below 255, which means no label; got 300"):
        RandomWalker()(torch.rand(1, 1, 1, 3), scribbles=torch.tensor([[[0, 255, 300]]]))
