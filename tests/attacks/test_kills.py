"""A training that is killed at any of its file operations goes on to the same bits, a prediction with what is left."""

import pytest
from attacks import prediction_kills
from attacks.kills import kills


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "every"), [(0, 1), (2, 7)])
def test_kills_at_file_operations(workers, every, tmp_path):
    found = list(kills(tmp_path, workers, every))
    assert len(found) >= 10
    assert [(kill.place, kill.wrong) for kill in found if kill.wrong] == []


@pytest.mark.slow
def test_kills_of_a_prediction(tmp_path):
    run, images = prediction_kills.train_model(tmp_path)
    found = list(prediction_kills.kills(tmp_path, run, images, 1))
    assert len(found) >= 30
    assert [(kill.place, kill.operation, kill.wrong) for kill in found if kill.wrong] == []
