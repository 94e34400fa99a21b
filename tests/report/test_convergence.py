"""The table and the picture of how an energy fell."""

import csv
from itertools import pairwise

import torch
from PIL import Image

from regloss.alternation import HalfStep
from regloss.report.convergence import Convergence, Row
from regloss.solver import Look


def half(number, kind, energy, bound=-torch.inf):
    return HalfStep(number, kind, torch.tensor([energy], dtype=torch.float64), torch.tensor([bound]))


def look(steps, energy, bound):
    return Look(steps, torch.tensor([0]), torch.tensor([energy]), torch.tensor([bound]))


def filled():
    convergence = Convergence()
    convergence.tell(half(0, "start", 90.0))
    for steps in range(0, 60, 10):
        convergence.observe(look(steps, 20 - steps / 10, steps / 10))
    convergence.tell(half(1, "labels", 15.0, 5.0))
    convergence.tell(half(2, "statistics", 14.0))
    convergence.observe(look(0, 14.0, 6.0))
    convergence.tell(half(2, "labels", 13.0, 12.0))
    return convergence


def test_rows_keep_their_order_and_round():
    rows = filled().rows
    assert rows[0] == Row(0, "start", 0, 90.0, -float("inf"))
    assert [row.round for row in rows] == [0] + [1] * 7 + [2] * 3
    assert [row.step for row in rows if row.event == "step"] == [0, 10, 20, 30, 40, 50, 0]
    later = [row.energy for row in rows if row.event in ("labels", "statistics")]
    assert all(a > b for a, b in pairwise(later))


def test_the_table(tmp_path):
    filled().write_table(tmp_path / "convergence.csv")
    with (tmp_path / "convergence.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["round", "event", "step", "energy", "bound"]
    assert len(table) == 11
    assert table[-1] == {"round": "2", "event": "labels", "step": "0", "energy": "13.0", "bound": "12.0"}


def test_the_picture(tmp_path):
    """Two panels, one where there is but one thing to show, and no trouble with what is not known."""
    convergence = filled()
    convergence.rows[0] = Row(0, "start", 0, float("nan"), -float("inf"))
    halves = Convergence([row for row in filled().rows if row.event != "step"])
    steps = Convergence([row for row in filled().rows if row.event == "step"])
    for name, drawn in (("both", convergence), ("halves", halves), ("steps", steps)):
        assert drawn.has_curve()
        drawn.write_chart(tmp_path / f"{name}.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "halves.png") as one:
        assert both.width > 1.5 * one.width
        assert len(both.convert("RGB").getcolors(100_000)) > 10


def test_a_single_energy_is_no_curve():
    convergence = Convergence()
    assert not convergence.has_curve()
    convergence.tell(half(0, "start", float("nan")))
    convergence.tell(half(1, "labels", 3.0, 2.0))
    assert not convergence.has_curve()
    convergence.tell(half(2, "labels", 2.0))
    assert convergence.has_curve()
