"""The inherited checks, and what is special to this solver."""

import torch
from regloss_geodesic.modes import IteratedModes

import regloss
from regloss.testing import SolverConformance


class TestIteratedModes(SolverConformance):
    local = True  # which local minimum is found depends on the order of the pixels

    def make(self) -> IteratedModes:
        return IteratedModes()


def test_no_change_of_one_pixel_improves_the_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 5, 6, generator=generator, dtype=torch.float64)
    unary = torch.randn(1, 3, 5, 6, generator=generator, dtype=torch.float64)
    term = regloss.GridCRF(weight=0.5).bind(image)
    solution = regloss.solve(term, unary, regloss.create("solver", "iterated-modes"))
    assert solution.status == (regloss.Status.CONVERGED,)
    for place in torch.cartesian_prod(torch.arange(5), torch.arange(6)).tolist():
        for label in range(3):
            changed = solution.labels.clone()
            changed[0, place[0], place[1]] = label
            s = torch.nn.functional.one_hot(changed, 3).movedim(-1, 1).double()
            assert float((unary * s).sum() + term.energy(s)) >= float(solution.energy) - 1e-9
