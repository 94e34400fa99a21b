"""Runs compared: their names, the rows of the table, the curves of the chart, and what is refused beforehand."""

import csv
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regloss.apps.compare import as_csv, check_chart, compare_runs, parse_widths, table_of
from regloss.apps.evaluate import evaluate_noisy
from regloss.errors import UsageError
from regloss.report.charts import comparison_chart

NAME = "model.safetensors"


@pytest.fixture(scope="module")
def two(trained, tmp_path_factory):
    """A run, and a copy of it whose weights are noisy."""
    copy = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "copy")
    torch.manual_seed(0)
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in load_file(copy / NAME).items()}
    save_file(weights, copy / NAME)
    return trained, copy


@pytest.fixture(scope="module")
def comparison(two):
    return compare_runs(two, "test", ["gaussian:0.1", "salt:0.2"], ["evaluation.trimap=[1, 3]"])


def test_a_comparison_has_the_scores_of_each_run(comparison, two):
    assert list(comparison) == [two[0].name, "copy"]
    assert comparison["copy"]["test"]["mean-iou"] != comparison[two[0].name]["test"]["mean-iou"]
    alone = evaluate_noisy(two[1], "test", ["gaussian:0.1", "salt:0.2"], ["evaluation.trimap=[1, 3]"])
    assert comparison["copy"] == alone


def test_the_table_has_a_row_for_each_run_noise_and_band(comparison):
    text = as_csv(table_of(comparison))
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2 * 3 * 3
    assert [(row["noise"], row["level"], row["trimap"]) for row in rows[:4]] == [
        ("none", "0.0", ""),
        ("none", "0.0", "1"),
        ("none", "0.0", "3"),
        ("gaussian", "0.1", ""),
    ]
    scores = comparison["copy"]["test salt:0.2"]
    (whole,) = [row for row in rows if (row["run"], row["noise"], row["trimap"]) == ("copy", "salt", "")]
    assert float(whole["mean-foreground-dice"]) == scores["mean-foreground-dice"]
    assert float(whole["energy"]) == scores["energy"]
    (band,) = [row for row in rows if (row["run"], row["noise"], row["trimap"]) == ("copy", "salt", "3")]
    assert float(band["accuracy"]) == scores["trimap"]["3"]["accuracy"]
    assert band["energy"] == ""


def test_the_chart_has_a_curve_of_each_run(comparison):
    rows = table_of(comparison)
    panels = comparison_chart(rows).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Accuracy near true boundaries",
        "Mean IoU near true boundaries",
        "Mean IoU with gaussian noise",
        "Mean IoU with salt noise",
    ]
    names = list(comparison)
    for axes in panels:
        assert [line.get_label() for line in axes.get_lines()] == names
    expected = [comparison["copy"]["test"]["trimap"][width]["accuracy"] for width in ("1", "3")]
    np.testing.assert_array_equal(panels[0].get_lines()[1].get_xydata(), np.transpose([[1, 3], expected]))
    expected = [comparison["copy"][name]["mean-iou"] for name in ("test", "test salt:0.2")]
    np.testing.assert_array_equal(panels[3].get_lines()[1].get_xydata(), np.transpose([[0, 0.2], expected]))
    assert comparison_chart([row for row in rows if row["noise"] == "none" and row["trimap"] != 3]) is None


def test_runs_of_one_name_go_by_their_paths(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "else" / trained.name)
    assert list(compare_runs([trained, other], "test")) == [str(trained), str(other)]


@pytest.mark.parametrize("text", ["", "4,", "4,4", "0,4", "-1", "2.5", "two"])
def test_widths_that_are_none(text):
    with pytest.raises(UsageError, match="different positive numbers of pixels, for example 2,4,8,16; got "):
        parse_widths(text)


def test_what_is_refused_before_any_scoring(trained, tmp_path):
    with pytest.raises(UsageError, match="is given twice"):
        compare_runs([trained, trained], "test")
    with pytest.raises(UsageError, match="nothing"):
        compare_runs([trained, tmp_path / "nothing"], "test", callback=pytest.fail)
    with pytest.raises(UsageError, match=r"A chart is a file \.png, \.svg or \.pdf; got .*chart\.txt"):
        check_chart(tmp_path / "chart.txt", [4, 8], ())
    with pytest.raises(UsageError, match="needs curves: over bands of two widths"):
        check_chart(tmp_path / "chart.png", [4], ())
    (tmp_path / "chart.png").touch()
    with pytest.raises(UsageError, match="exists already"):
        check_chart(tmp_path / "chart.png", [4, 8], ())
