"""TOML as editors of any system write it."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from regloss.errors import UsageError
from regloss.io.toml import read_toml, toml_value
from regloss.training.config import read

TEXT = 'output = "runs/a"\r\n[data]\r\nroot = "ä"\r\n'


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    ],
    ids=["utf-8", "byte order mark", "utf-16", "utf-16 big endian"],
)
def test_byte_order_marks(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(data)
    assert read_toml(tmp_path / "a.toml") == {"output": "runs/a", "data": {"root": "ä"}}
    with pytest.raises(UsageError, match=r"the key 'data\.dataset' is missing"):  # all else was read
        read(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "value", [r"C:\Users\me", r"C:\data\cells", r"data\wbc", r"\\server\share", r"D:\temp", r"C:\new", r"C:\runs\a"]
)
def test_windows_paths_in_double_quotes(tmp_path: Path, value: str) -> None:
    r"""Those that are no TOML, and those of which \t, \n or \r would silently become a control character."""
    path = tmp_path / "a.toml"
    path.write_text(f'output = "{value}"\n')
    for function in (read_toml, read):
        with pytest.raises(UsageError, match=r"single quotes, 'C:.data.cells', or with forward slashes") as caught:
            function(path)
        assert str(path) in str(caught.value)
    path.write_text(f"output = '{value}'\n")
    assert read_toml(path) == {"output": value}


def test_other_errors_do_not_speak_of_windows(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("output = [1,\n")
    with pytest.raises(UsageError, match=r"a\.toml cannot be read as TOML") as caught:
        read_toml(tmp_path / "a.toml")
    assert "slashes" not in str(caught.value)
    with pytest.raises(UsageError, match=r"a\.toml is not valid TOML"):
        read(tmp_path / "a.toml")


def test_values_on_a_command_line() -> None:
    assert toml_value(r"C:\data") == r"C:\data"
    assert toml_value(r"'C:\data'") == r"C:\data"
    with pytest.raises(UsageError, match=r"begins with a quote.*single quotes"):
        toml_value(r'"C:\Users"')
