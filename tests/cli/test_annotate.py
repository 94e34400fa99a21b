"""`regloss annotate` refuses what it cannot serve, before it listens."""

import sys

import pytest


def test_folders_that_cannot_be_annotated(regloss, tmp_path):
    pytest.importorskip("starlette", reason="needs regloss[annotate]")
    done = regloss("annotate", tmp_path / "absent", "--no-browser")
    assert (done.code, done.out) == (2, "")
    assert "there is no folder" in done.err
    done = regloss("annotate", tmp_path, "--no-browser")
    assert done.code == 2
    assert "no images to draw on" in done.err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_none(regloss, images, tmp_path):
    pytest.importorskip("starlette", reason="needs regloss[annotate]")
    done = regloss("annotate", images, "--run", tmp_path, "--no-browser")
    assert done.code == 2
    assert "not the output folder of a training" in done.err


@pytest.mark.parametrize("name", ["uvicorn", "starlette"])
def test_what_is_not_installed_is_named(regloss, images, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    done = regloss("annotate", images, "--no-browser")
    assert done.code == 2
    assert f"regloss annotate needs {name}" in done.err
    assert "regloss[annotate]" in done.err
