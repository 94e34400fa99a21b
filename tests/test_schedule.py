"""Schedules: shapes, ends, and what they may be given as."""

import itertools
import math

import pytest

from regloss import Schedule, UsageError
from regloss.schedule import SHAPES, as_schedule


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("begin", "finish"), [(0.0, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize(("start", "end"), [(0.2, 0.9), (3.0, 0.1)])
def test_it_goes_from_start_to_end_and_stays_between(shape, begin, finish, start, end):
    schedule = Schedule(start, end, shape, begin, finish)
    values = [schedule.at(step / 200) for step in range(201)]
    assert values[0] == pytest.approx(start)
    assert schedule.at(begin) == pytest.approx(start)
    assert schedule.at(finish) == pytest.approx(end)
    assert values[-1] == pytest.approx(end)
    rising = 1 if end > start else -1
    assert all(rising * (b - a) >= -1e-12 for a, b in itertools.pairwise(values))
    assert min(start, end) - 1e-12 <= min(values)
    assert max(values) <= max(start, end) + 1e-12


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 2.5), ("cosine", 2.5), ("exponential", 2.0), ("step", 1.0)])
def test_value_halfway(shape, halfway):
    assert Schedule(1.0, 4.0, shape).at(0.5) == pytest.approx(halfway)


def test_cosine_starts_and_ends_gently():
    schedule = Schedule(0.0, 1.0, "cosine")
    assert schedule.at(0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert schedule.at(0.01) < 0.001


def test_outside_of_training_the_ends_hold():
    schedule = Schedule(1.0, 2.0)
    assert schedule.at(-0.1) == 1.0
    assert schedule.at(1.1) == 2.0


def test_given_as_number_schedule_or_table():
    assert [as_schedule(3, "x").at(t) for t in (0, 0.5, 1)] == [3.0, 3.0, 3.0]
    schedule = Schedule(0.1, 0.2)
    assert as_schedule(schedule, "x") is schedule
    assert as_schedule({"start": 0.1, "end": 0.2}, "x") == schedule


@pytest.mark.parametrize("given", ["0.5", None, True, math.nan, math.inf, [1.0]])
def test_other_things_are_refused_by_name(given):
    with pytest.raises(UsageError, match=r"coupling must be a finite number or a schedule"):
        as_schedule(given, "coupling")


@pytest.mark.parametrize("table", [{"start": 1.0}, {"start": 1.0, "end": 2.0, "till": 3}, {"from": 0.0}])
def test_tables_with_other_keys_are_refused(table):
    with pytest.raises(UsageError, match="coupling as a table takes start, end, shape, begin and finish"):
        as_schedule(table, "coupling")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": "square"}, "linear, cosine, exponential, step"),
        ({"begin": 0.5, "finish": 0.5}, "begin < finish"),
        ({"begin": -0.1}, "begin < finish"),
        ({"finish": 5.0}, "fractions of the training"),
        ({"shape": "exponential", "start": 0.0}, "positive"),
        ({"start": math.nan}, "finite"),
        ({"end": math.inf}, "finite"),
    ],
)
def test_invalid_settings_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Schedule(**{"start": 1.0, "end": 2.0, **settings})
