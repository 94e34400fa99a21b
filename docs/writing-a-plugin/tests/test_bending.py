"""The inherited checks, and what is special to this prior."""

import torch
from regloss_geodesic.bending import Bending

import regloss
from regloss.testing import RegularizerConformance


class TestBending(RegularizerConformance):
    discrete = False  # it is no relaxation of an energy of labels
    nonnegative = True

    def make(self) -> Bending:
        return Bending(0.7)


def test_ramps_cost_nothing_but_at_their_ends() -> None:
    ramp = torch.linspace(0, 1, 6, dtype=torch.float64).expand(1, 1, 4, 6)
    s = torch.cat([ramp, 1 - ramp], dim=1)
    # At both ends of each row of each class the Laplacian is the slope, 0.2.
    energy = Bending().bind(torch.zeros(1, 1, 4, 6, dtype=torch.float64)).energy(s)
    torch.testing.assert_close(energy, torch.tensor([2 * 4 * 2 * 0.2], dtype=torch.float64))


def test_solvers_take_it_by_name() -> None:
    unary = torch.randn(1, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = regloss.create("regularizer", "bending", weight=0.3).bind(torch.zeros(1, 1, 6, 7, dtype=torch.float64))
    solver = regloss.create("solver", "pdhg", max_steps=3000, tolerance=1e-8)
    solution = regloss.solve(term, unary, solver, entropy=0.5)
    assert solution.status == (regloss.Status.CONVERGED,)
    assert 0 <= float(solution.gap) <= 1e-6
