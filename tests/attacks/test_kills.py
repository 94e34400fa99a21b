"""A training that is killed at any of its file operations goes on to the same bits."""

import pytest
from attacks.kills import kills


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "every"), [(0, 1), (2, 7)])
def test_kills_at_file_operations(workers, every, tmp_path):
    found = list(kills(tmp_path, workers, every))
    assert len(found) >= 10
    assert [(kill.place, kill.wrong) for kill in found if kill.wrong] == []
