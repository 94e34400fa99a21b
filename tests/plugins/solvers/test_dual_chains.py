"""What is particular to dual-chains; the bound itself is tested in kernels/test_chains.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import regloss
from regloss import GridCRF, Status, Term, UsageError, solve
from regloss.solver import Solver
from regloss.testing import SolverConformance
from regloss_plugins.solvers.dual_chains import DualChains


def photograph(step: int = 4) -> Tensor:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed (extra regloss[sample])")
    picture = torch.from_numpy(data.astronaut()).permute(2, 0, 1).unsqueeze(0) / 255
    return picture[:, :, ::step, ::step].double()


def problem(classes: int, noise: float, strength: float) -> tuple[Term, Tensor]:
    """A photograph, and noisy distances to some of its colours."""
    image = photograph()
    random = torch.Generator().manual_seed(classes)
    pixels = image[0].flatten(1).T
    colours = pixels[torch.randperm(len(pixels), generator=random)[:classes]]
    distances = torch.cdist(pixels, colours).T.reshape(1, classes, *image.shape[2:])
    noise_part = noise * torch.randn(distances.shape, generator=random, dtype=torch.float64)
    return GridCRF().bind(image), strength * (distances + noise_part)


@pytest.mark.parametrize(("noise", "strength", "gap"), [(0.1, 10.0, 0.01), (0.5, 2.0, 0.02)])
def test_certifies_labels_of_another_solver(noise: float, strength: float, gap: float) -> None:
    """Above no labelling, and close to the energy of expansion moves."""
    term, unary = problem(5, noise, strength)
    expanded = solve(term, unary, "alpha-expansion")
    certified = solve(term, unary, DualChains(max_steps=60), warm=expanded)
    assert certified.start_energy.item() == pytest.approx(expanded.energy.item(), rel=1e-9)
    assert certified.energy.item() <= expanded.energy.item() * (1 + 1e-12)
    assert certified.bound.item() <= certified.energy.item()
    assert certified.gap.item() <= gap * abs(expanded.energy.item())


def test_two_classes_reach_the_minimum() -> None:
    term, unary = problem(2, 0.1, 10.0)
    cut = solve(term, unary, "alpha-expansion")
    found = solve(term, unary, DualChains(max_steps=200, tolerance=0.0))
    assert found.energy.item() == pytest.approx(cut.energy.item(), rel=1e-4)
    assert found.bound.item() == pytest.approx(cut.energy.item(), rel=1e-4)
    assert found.bound.item() <= cut.energy.item() * (1 + 1e-12)


def test_status_says_how_it_ended() -> None:
    term, unary = problem(3, 0.1, 10.0)
    assert solve(term, unary, DualChains(max_steps=1)).status == (Status.MAX_STEPS,)
    assert solve(term, unary, DualChains(max_steps=500, tolerance=0.5)).status == (Status.CONVERGED,)
    row = GridCRF(connectivity=2).bind(torch.rand(1, 1, 30, generator=torch.Generator().manual_seed(0)))
    solution = solve(row, torch.rand(1, 3, 30, generator=torch.Generator().manual_seed(1)), DualChains())
    assert solution.status == (Status.OPTIMAL,)
    assert solution.gap.item() == 0


def test_images_in_threads_are_those_alone() -> None:
    term, unary = problem(3, 0.1, 10.0)
    image = photograph()
    both = GridCRF().bind(torch.cat([image, image.flip(3)]))
    two = solve(both, torch.cat([unary, unary.flip(3)]), DualChains(max_steps=5, workers=2))
    one = solve(term, unary, DualChains(max_steps=5))
    assert two.bound[0].item() == one.bound.item()
    assert torch.equal(two.labels[:1], one.labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"tolerance": 1.0}, r"tolerance must lie in \[0, 1\)"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_refuses_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        regloss.create("solver", "dual-chains", **settings)


def test_refuses_what_is_no_problem_over_labels() -> None:
    term, unary = problem(3, 0.1, 1.0)
    with pytest.raises(UsageError, match=r"dual-chains minimises over labels.*entropy = 0\.5"):
        solve(term, unary, DualChains(), entropy=0.5)
    with pytest.raises(UsageError, match="Discrete solvers start from labels"):
        solve(term, unary, DualChains(), warm={})


class TestDualChains(SolverConformance):
    def make(self) -> Solver:
        return DualChains(workers=1)
