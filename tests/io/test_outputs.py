"""Folders and files for results: new, or known."""

import pytest

from regloss.errors import UsageError
from regloss.io.outputs import check_new_folder, make_new_folder, write_new


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


def test_new_files(tmp_path):
    write_new(tmp_path / "scores.json", "{}")
    with pytest.raises(UsageError, match=r"scores.json exists already"):
        write_new(tmp_path / "scores.json", "[]")
    assert (tmp_path / "scores.json").read_text() == "{}"
    with pytest.raises(UsageError, match="cannot be written"):
        write_new(tmp_path / "absent" / "scores.json", "{}")
