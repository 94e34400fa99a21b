"""Which modules may be left out of the doctests: those that cannot be imported for want of a package, and no others."""

from __future__ import annotations

import importlib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_modules_are_left_out_only_where_their_import_fails() -> None:
    spec = spec_from_file_location("root_conftest", ROOT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    conftest = module_from_spec(spec)
    spec.loader.exec_module(conftest)
    for package, files in conftest.OPTIONAL.items():
        for file in files:
            assert (ROOT / file).is_file(), file
            if find_spec(package) is None:
                with pytest.raises(ImportError):
                    importlib.import_module(file.removeprefix("plugins/").removesuffix(".py").replace("/", "."))
