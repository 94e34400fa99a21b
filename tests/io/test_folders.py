"""Finding files in folders, and what lies beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from regloss.errors import UsageError, listed
from regloss.io.folders import find_file, index_folder
from regloss.io.palettes import class_colors


def test_index_ignores_what_is_no_image(tmp_path: Path) -> None:
    for name in (".hidden.png", "b.PNG", "a.jpg", "notes.txt", "c.tar.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert {stem: path.name for stem, path in index_folder(tmp_path).items()} == {
        "a": "a.jpg",
        "b": "b.PNG",
        "c.tar": "c.tar.png",
    }
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match=r"share a name.*a\.jpg and a\.png"):
        index_folder(tmp_path)


def test_find_file_prefers_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, current = tmp_path / "root", tmp_path / "current"
    root.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    (current / "a.toml").touch()
    assert find_file("a.toml", root, "split file") == current / "a.toml"
    (root / "a.toml").touch()
    assert find_file("a.toml", root, "split file") == root / "a.toml"
    with pytest.raises(UsageError, match=r"no split file 'b.toml'; looked for .*root.* and .*current"):
        find_file("b.toml", root, "split file")


def test_listed_counts_the_rest() -> None:
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert listed(range(10)).endswith("8, 9")


def test_class_colors_are_those_of_voc() -> None:
    colors = class_colors(256)
    # From the published colour table: bicycle, aeroplane, tv monitor, and the border of objects.
    assert (colors[2], colors[1], colors[20], colors[255]) == ((0, 128, 0), (128, 0, 0), (0, 64, 128), (224, 224, 192))
    assert len(set(colors)) == 256
