"""CSV logs: what was written is there, whatever happened to the process."""

import csv

import pytest

from regloss.training.logs import CsvLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "steps.csv"


def on_disk(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_at_once(path):
    log = CsvLog(path)
    log.add({"step": 1, "loss": 0.5})
    assert on_disk(path) == [{"step": "1", "loss": "0.5"}]
    log.add({"step": 2, "loss": 0.25})
    assert [row["step"] for row in on_disk(path)] == ["1", "2"]


def test_numbers_come_back_exactly(path):
    values = [0.1, 1 / 3, 1e-300, -2.5e17, float("inf")]
    log = CsvLog(path)
    for step, value in enumerate(values):
        log.add({"step": step, "loss": value})
    assert [row["loss"] for row in CsvLog(path).rows] == values


def test_a_new_column_leaves_earlier_rows_empty(path):
    log = CsvLog(path)
    log.add({"step": 1, "loss": 0.5})
    log.add({"step": 2, "loss": 0.25, "dice": 0.9})
    log.add({"step": 3, "loss": 0.125})
    assert [row["dice"] for row in on_disk(path)] == ["", "0.9", ""]
    again = CsvLog(path)
    assert again.rows == log.rows
    assert again.columns == ["step", "loss", "dice"]


def test_a_resumed_log_goes_on(path):
    first = CsvLog(path)
    for step in range(5):
        first.add({"step": step, "loss": 1.0})
    second = CsvLog(path)
    second.keep(lambda row: row["step"] <= 2)
    second.add({"step": 3, "loss": 2.0})
    assert path.read_text() == "step,loss\n0,1.0\n1,1.0\n2,1.0\n3,2.0\n"


@pytest.mark.parametrize("cut", range(2, 13))
def test_a_line_cut_short_is_dropped(path, cut):
    """Its numbers may be cut, too: step 1 of step 12."""
    log = CsvLog(path)
    log.add({"step": 11, "loss": 0.5})
    log.add({"step": 12, "loss": 1.25e-7})
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["step"] for row in CsvLog(path).rows] == [11]


def test_a_log_cut_in_its_header_is_empty(path):
    log = CsvLog(path)
    log.add({"step": 1, "loss": 0.5})
    path.write_bytes(path.read_bytes()[:4])
    assert CsvLog(path).rows == []


def test_an_empty_log_has_no_file(path):
    assert CsvLog(path).rows == []
    assert not path.exists()
