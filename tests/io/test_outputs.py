"""Folders and files for results: new, or known."""

import io
from pathlib import Path

import pytest

from regloss.errors import UsageError
from regloss.io.outputs import check_new_file, check_new_folder, make_new_folder, write_new


def test_new_folders(tmp_path):
    check_new_folder(tmp_path / "a" / "b", (), overwrite=False)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file; a folder is needed"):
        check_new_folder(tmp_path / "file", (), overwrite=True)
    with pytest.raises(UsageError, match=r"cannot be made: .*file is not a folder"):
        check_new_folder(tmp_path / "file" / "below", (), overwrite=False)
    with pytest.raises(UsageError, match="cannot be written"):
        make_new_folder(tmp_path / "file" / "below", ())


def test_what_is_read_is_not_replaced(tmp_path):
    for name in ("labels/a.png", "mine.png", "out/labels/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "out/overlay.png").symlink_to(tmp_path / "mine.png")
    expected = ("labels", "overlay.png")
    for read in ("out/labels/a.png", "out/labels", "out", "mine.png", "out/../out/labels"):
        with pytest.raises(UsageError, match=r"would replace .*, which is read"):
            check_new_folder(tmp_path / "out", expected, overwrite=True, read=(None, tmp_path / read))
    check_new_folder(tmp_path / "out", expected, overwrite=True, read=(tmp_path / "labels", tmp_path))
    check_new_folder(tmp_path / "new", expected, overwrite=True, read=(tmp_path / "new",))


def test_new_files(tmp_path):
    write_new(tmp_path / "scores.json", "{}")
    with pytest.raises(UsageError, match=r"scores.json exists already"):
        write_new(tmp_path / "scores.json", "[]")
    assert (tmp_path / "scores.json").read_text() == "{}"
    with pytest.raises(UsageError, match="cannot be written"):
        write_new(tmp_path / "absent" / "scores.json", "{}")


def test_of_a_file_that_does_not_fit_nothing_is_left(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    def opened(path, *args, **options):
        path.touch()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UsageError, match="No space left"):
        write_new(tmp_path / "scores.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_two_files_are_not_one(tmp_path):
    check_new_file(tmp_path / "a.json", tmp_path / "b.csv")
    with pytest.raises(UsageError, match="needs a name of its own"):
        check_new_file(tmp_path / "a.json", tmp_path / "b.csv", tmp_path / ".." / tmp_path.name / "a.json")
