"""A server of `regloss annotate` that is killed loses no stroke that it has answered."""

import sys

import pytest
from attacks.annotate_kills import kills, random_moments

pytest.importorskip("starlette", reason="needs regloss[annotate]")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")


def check(root, moments):
    found = list(kills(root, moments))
    assert [kill.wrong for kill in found if kill.wrong] == []
    assert len(found) == len(moments)
    return sum(kill.answered for kill in found)


def test_kills_of_a_server(tmp_path):
    """Before the first file is there, while one is written, and at a random moment."""
    assert check(tmp_path, [0, 4, 6, *random_moments(1)]) > 0


@pytest.mark.slow
def test_thirty_kills_at_random_moments(tmp_path):
    assert check(tmp_path, random_moments(30)) > 100


@pytest.mark.slow
def test_kills_at_file_operations(tmp_path):
    check(tmp_path, list(range(24)))
