"""The table and the picture of how an energy fell."""

import csv
from itertools import pairwise

import torch
from PIL import Image

import regloss
from regloss.report.convergence import has_curve, write_chart, write_table
from regloss.segmenter import EnergyRecord

UNKNOWN = float("nan")


def half(number, event, energy, bound=-float("inf")):
    return EnergyRecord(number, event, 0, energy, bound)


def filled():
    steps = [EnergyRecord(1, "step", steps, 20 - steps / 10, steps / 10) for steps in range(0, 60, 10)]
    later = [half(2, "statistics", 14.0), EnergyRecord(2, "step", 0, 14.0, 6.0), half(2, "labels", 13.0, 12.0)]
    return [half(0, "start", 90.0), *steps, half(1, "labels", 15.0, 5.0), *later]


def test_records_keep_their_order_and_round():
    """As an alternation with a solver that tells its steps makes them."""
    image = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    image[..., 4:] += 0.6
    solver = regloss.create("solver", "pdhg", max_steps=40, tolerance=0.0)
    segmenter = regloss.create("segmenter", "chan-vese", solver=solver, entropy=0.1, max_rounds=2)
    records = segmenter(image, phases=2).history
    assert records[0].event == "start"
    assert all(before.round <= after.round for before, after in pairwise(records))
    events = [(record.round, record.event) for record in records if record.event != "step"]
    assert events[:4] == [(0, "start"), (1, "labels"), (2, "statistics"), (2, "labels")]
    steps = [record.step for record in records if record.event == "step" and record.round == 1]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_the_table(tmp_path):
    write_table(filled(), tmp_path / "convergence.csv")
    with (tmp_path / "convergence.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["round", "event", "step", "energy", "bound"]
    assert len(table) == 11
    assert table[-1] == {"round": "2", "event": "labels", "step": "0", "energy": "13.0", "bound": "12.0"}


def test_the_picture(tmp_path):
    """Two panels, one where there is but one thing to show, and no trouble with what is not known."""
    both = [half(0, "start", UNKNOWN), *filled()[1:]]
    halves = [record for record in filled() if record.event != "step"]
    steps = [record for record in filled() if record.event == "step"]
    for name, drawn in (("both", both), ("halves", halves), ("steps", steps)):
        assert has_curve(drawn)
        write_chart(drawn, tmp_path / f"{name}.png")
    with Image.open(tmp_path / "both.png") as both_panels, Image.open(tmp_path / "halves.png") as one:
        assert both_panels.width > 1.5 * one.width
        assert len(both_panels.convert("RGB").getcolors(100_000)) > 10


def test_a_single_energy_is_no_curve():
    records = []
    assert not has_curve(records)
    records += [half(0, "start", UNKNOWN), half(1, "labels", 3.0, 2.0)]
    assert not has_curve(records)
    records.append(half(2, "labels", 2.0))
    assert has_curve(records)
