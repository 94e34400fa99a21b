"""What is measured on training images after a training, by hand; and that a bad run says what to try."""

import numpy as np
import pytest
from PIL import Image

import regloss
from regloss.registry import create
from regloss.report.advice import TrainingMeasures
from regloss.training.devices import one_process
from regloss.training.evaluation import measure_training
from regloss.training.model import load_model
from regloss.training.sample_reader import SampleReader
from regloss.training.trainer import train


def counted(truth, found, classes=3):
    table = np.zeros((classes, classes), dtype=np.int64)
    for row, column in zip(truth.ravel(), found.ravel(), strict=True):
        if row != 255 and column != 255:
            table[row, column] += 1
    return table


def measured(config, run, proposals=None):
    model = load_model(run)
    reader = SampleReader(create("dataset", "folder", **config.data.component_settings()))
    return measure_training(one_process(config), model.segmenter, reader, config, proposals)


def test_measures_are_what_one_counts(config, trained, images):
    def proposal(sample_id):
        labels = np.array(Image.open(images / "labels" / f"{sample_id}.png"))
        labels[:4], labels[10] = 255, 1
        return labels

    found = measured(config("data.crop=[20, 26]"), trained, proposal)
    assert isinstance(found, TrainingMeasures)
    assert (found.images, found.compared, found.pixels, found.scribbles) == (6, 6, 6 * 24 * 28, True)
    model = regloss.load(trained, device="cpu")
    labelled, in_crops = np.zeros(3, dtype=int), np.zeros(3)
    at_labels, prediction, proposed = (np.zeros((3, 3), dtype=int) for _ in range(3))
    for name in (f"i{n}" for n in range(6)):
        scribble, label, image = (
            np.array(Image.open(images / folder / f"{name}.png")) for folder in ("scribbles", "labels", "images")
        )
        predicted = model.predict(image)
        at_labels += counted(scribble, predicted)
        prediction += counted(label, predicted)
        proposed += counted(label, proposal(name))
        for row, column in np.argwhere(scribble != 255):
            labelled[scribble[row, column]] += 1
            in_crops[scribble[row, column]] += np.mean(
                [top <= row < top + 20 and left <= column < left + 26 for top in range(5) for left in range(3)]
            )
    assert found.labelled.tolist() == labelled.tolist()
    assert found.labelled_images.tolist() == [6, 6, 6]
    np.testing.assert_allclose(found.in_crops, in_crops)
    assert found.crop_share == pytest.approx(20 * 26 / (24 * 28))
    np.testing.assert_array_equal(found.at_labels, at_labels)
    np.testing.assert_array_equal(found.prediction, prediction)
    np.testing.assert_array_equal(found.proposal, proposed)


def test_dense_labels_and_none(config, trained):
    dense = measured(config("data.supervision=labels"), trained)
    assert dense is not None
    assert (dense.scribbles, dense.proposal) == (False, None)
    np.testing.assert_array_equal(dense.at_labels, dense.prediction)
    model = load_model(trained)
    data = config().data.model_copy(update={"supervision": "none"})
    unsupervised = config().model_copy(update={"data": data})
    assert measure_training(one_process(unsupervised), model.segmenter, None, unsupervised, None) is None


def test_a_bad_run_says_what_to_try(config, tmp_path, monkeypatch):
    """The strokes of the small data set's background lie in the first row; untrained, it knows nothing."""
    pages = {}

    def write_report(folder, **contents):
        pages.update(contents)
        return folder / "report.html"

    monkeypatch.setattr("regloss.report.page.write_report", write_report)
    told = []
    train(config("training.epochs=1", "training.optimizer.lr=1e-9", "data.crop=16"), callback=told.append)
    lines = told[-1].splitlines()
    assert lines[0] == "What to try:"
    assert lines[1].startswith(
        "- A training crop holds 8.0 % of the scribbles of 'background', in the mean, and 38.1 %"
    )
    assert lines[1:] == [f"- {each}" for each in pages["advice"]]
    assert any("by the network. Train longer" in line for line in lines)
