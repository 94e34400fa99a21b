"""The notebooks of the first pages are those pages, and run from their first cell to their last."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.fixture(scope="module")
def making() -> ModuleType:
    """docs/notebooks/make.py as a module."""
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_notebook_of_each_page_and_no_other(making: ModuleType) -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(making.PAGES)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_the_notebook_is_its_page(name: str, making: ModuleType) -> None:
    text = making.notebook(FOLDER.parent / "start" / f"{name}.md")
    written = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == text, f"{name}.ipynb is not what its page says any more: run docs/notebooks/make.py"


def test_what_becomes_a_cell(making: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```toml\n# a.toml\nx = 1\n```\n\n```toml\ny = 2\n```\n\n```sh\nregloss demo\n```\n\n"
        "```sh\nmake demo\n```\n\n![Picture](pictures/a.png)\n\nSee [that](other.md), [this](../guide/x.md).\n",
        encoding="utf-8",
    )
    (tmp_path / "cells.json").write_text(making.notebook(page), encoding="utf-8")
    nbformat = pytest.importorskip("nbformat")
    cells = nbformat.read(tmp_path / "cells.json", as_version=4).cells  # validates, too
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        ("markdown", "# Title"),
        ("code", "%%writefile a.toml\n# a.toml\nx = 1"),
        ("markdown", "```toml\ny = 2\n```"),
        ("code", "%%sh\nregloss demo"),
        ("markdown", "```sh\nmake demo\n```\n\nSee [that](../start/other.md), [this](../guide/x.md)."),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("skimage", reason="the sample images come with scikit-image")
    # Its kernel and its commands are those of this Python, whatever else is on the path.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix) / "share" / "jupyter"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises where a cell fails
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
