"""One image and its scribbles, without a network."""

import numpy as np
import pytest
import torch
from PIL import Image

from regloss import GridCRF, MeanField, TotalVariation
from regloss.errors import MissingForm, UnknownComponent, UsageError
from regloss.solver import Status
from regloss.training.segment import HISTOGRAM_BINS, colour_unaries, parse_component, segment_file

SIZE = (20, 30)


def truth():
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[5:15, 8:22] = 1
    return labels


def strokes(**changes):
    scribble = np.full(SIZE, 255, dtype=np.uint8)
    scribble[1, 2:28], scribble[10, 12:18] = 0, 1
    for value, place in changes.items():
        scribble[place] = int(value[1:])
    return scribble


@pytest.fixture
def files(tmp_path):
    """A red rectangle on blue, noisy, and its scribbles."""
    rng = np.random.default_rng(0)
    colours = np.array([[40, 50, 180], [190, 60, 50]])[truth()]
    Image.fromarray(np.clip(colours + rng.normal(0, 12, colours.shape), 0, 255).astype(np.uint8)).save(
        tmp_path / "image.png"
    )
    Image.fromarray(strokes()).save(tmp_path / "scribbles.png")
    return tmp_path


def segment(files, **options):
    given = {"scribbles": files / "scribbles.png", **options}
    return segment_file(files / "image.png", files / "out", **given)


def test_scribbles_grow_into_a_segmentation(files):
    result = segment(files)
    np.testing.assert_array_equal(result.labels, truth())
    assert [path.name for path in result.files] == ["labels.png", "overlay.png"]
    with Image.open(files / "out" / "labels.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), truth())
    with Image.open(files / "out" / "overlay.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (30, 20))
    assert result.solution.status == (Status.OPTIMAL,) or result.solution.status[0] is Status.OPTIMAL
    lines = result.lines()
    assert f"energy {float(result.solution.energy[0]):.6g}, lower bound" in lines[0]
    assert lines[1] == "pixels per class: 0: 460, 1: 140"
    assert lines[2:] == [f"wrote {path}" for path in result.files]


def test_seeds_are_kept_whatever_the_colours_say(files):
    wrong = strokes()
    wrong[7, 9:20] = 0  # within the rectangle
    Image.fromarray(wrong).save(files / "scribbles.png")
    labels = segment(files, regularizers=["grid-crf:weight=100"]).labels
    given = wrong != 255
    np.testing.assert_array_equal(labels[given], wrong[given])


def test_without_a_colour_model_the_regularizer_decides(files):
    """Uniform unaries: the cheapest cut between the seeds runs along the strongest edges, here the rectangle's."""
    np.testing.assert_array_equal(segment(files, unary="uniform").labels, truth())


@pytest.mark.parametrize("solver", ["alpha-expansion:max-cycles=2", "mean-field:max-steps=50"])
def test_any_solver(files, solver):
    entropy = 1.0 if "mean" in solver else 0.0
    labels = segment(files, solver=solver, entropy=entropy).labels
    assert (labels == truth()).mean() > 0.98


def test_regularizers_add_up(files):
    one = segment(files, regularizers=["grid-crf:weight=3"]).solution.energy
    two = segment(files, regularizers=["grid-crf:weight=1", "grid-crf:weight=2"], overwrite=True).solution.energy
    torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


def test_classes_that_are_not_scribbled_are_not_used(files):
    Image.fromarray(np.where(strokes() == 1, np.uint8(4), strokes())).save(files / "scribbles.png")
    assert set(np.unique(segment(files).labels)) == {0, 4}


def test_grey_images(files):
    with Image.open(files / "image.png") as picture:
        picture.convert("L").save(files / "grey.png")
    labels = segment_file(files / "grey.png", files / "out", scribbles=files / "scribbles.png").labels
    assert labels.shape == SIZE


# -- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"scribbles": None}, UsageError, "Give scribbles"),
        ({"unary": "colour"}, UsageError, 'unary must be "color" or "uniform"'),
        ({"solver": "alpha"}, UnknownComponent, "no solver called 'alpha'. Did you mean 'alpha-expansion'"),
        ({"regularizers": ["grid-crf:wieght=2"]}, UsageError, "no setting 'wieght'. Did you mean 'weight'"),
        ({"regularizers": ["grid-crf:weight=1,sigma"]}, UsageError, "written NAME:setting=value"),
        ({"regularizers": ["tv:isotropic=true"]}, MissingForm, r"alpha-expansion"),
        ({"entropy": 0.5}, UsageError, "entropy"),
    ],
)
def test_bad_settings(files, options, error, expected):
    with pytest.raises(error, match=expected):
        segment(files, **options)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("scribble", "expected"),
    [
        (np.full(SIZE, 255, np.uint8), "labels no pixel; scribble at least two classes"),
        (np.where(strokes() == 0, np.uint8(255), strokes()), "labels only class 1; scribble at least two classes"),
        (strokes()[1:], r"has the size \(19, 30\), .*image.png \(20, 30\) \(height, width\). They must agree"),
    ],
)
def test_bad_scribbles(files, scribble, expected):
    Image.fromarray(scribble).save(files / "scribbles.png")
    with pytest.raises(UsageError, match=expected):
        segment(files)
    assert not (files / "out").exists()


def test_files_that_are_not_there(files):
    (files / "scribbles.png").unlink()
    with pytest.raises(UsageError, match=r"scribbles.png"):
        segment(files)
    (files / "image.png").unlink()
    with pytest.raises(UsageError, match=r"image.png"):
        segment(files)


def test_existing_output_is_refused_before_the_work(files, monkeypatch):
    segment(files)
    before = (files / "out" / "labels.png").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("regloss.training.segment.solve", None)
        with pytest.raises(UsageError, match="out exists already"):
            segment(files)
    assert (files / "out" / "labels.png").stat().st_mtime_ns == before
    segment(files, overwrite=True)
    (files / "out" / "mine.txt").write_text("")
    with pytest.raises(UsageError, match=r"also holds mine.txt"):
        segment(files, overwrite=True)


def test_a_failure_keeps_the_earlier_result(files):
    segment(files)
    with pytest.raises(UsageError):
        segment(files, solver="nothing", overwrite=True)
    assert (files / "out" / "labels.png").is_file()


# -- Parts -------------------------------------------------------------------------------------------------------------


def test_components_from_text():
    assert parse_component("regularizer", "tv") == TotalVariation()
    assert parse_component("regularizer", "regloss:grid-crf") == GridCRF()
    given = "grid-crf:weight=2.5,sigma=auto,connectivity=4"
    assert parse_component("regularizer", given) == GridCRF(weight=2.5, connectivity=4)
    assert parse_component("regularizer", f"regloss:{given}") == GridCRF(weight=2.5, connectivity=4)
    assert parse_component("solver", "mean-field:max-steps=7") == MeanField(max_steps=7)


def test_the_colour_model_is_a_smoothed_histogram():
    """Likely colours are cheap, colours of the other class cost more, and nothing costs infinitely much."""
    image = torch.full((3, 4, 8), 0.2)
    image[:, :, 4:] = 0.8
    image[:, 0, 0] = torch.tensor([0.5, 0.0, 1.0])  # a colour of neither
    seeds = torch.full((4, 8), -1)
    seeds[2, 1], seeds[2, 6] = 0, 1
    unary = colour_unaries(image, seeds, 2)
    assert unary.shape == (2, 4, 8)
    assert torch.isfinite(unary).all()
    assert (unary[0] < unary[1])[1:, :4].all()
    assert (unary[1] < unary[0])[1:, 4:].all()
    assert float(unary[0, 0, 0]) == pytest.approx(float(unary[1, 0, 0]), rel=1e-4)
    probability = torch.exp(-unary[0, 2, 1])
    assert 1 / HISTOGRAM_BINS**3 < float(probability) < 1


def test_the_colour_model_sums_to_one():
    """Over all colours of a grey image."""
    image = (torch.arange(HISTOGRAM_BINS) + 0.5).reshape(1, 1, -1) / HISTOGRAM_BINS
    seeds = torch.full((1, HISTOGRAM_BINS), -1)
    seeds[0, 3], seeds[0, 9] = 0, 1
    total = torch.exp(-colour_unaries(image, seeds, 2)).sum((1, 2))
    torch.testing.assert_close(total, torch.ones(2), rtol=1e-5, atol=0)


def test_what_a_colour_model_cannot_do():
    seeds = torch.zeros(4, 4, dtype=torch.int64)
    with pytest.raises(UsageError, match="Class 1 has no scribble"):
        colour_unaries(torch.rand(3, 4, 4), seeds, 2)
    with pytest.raises(UsageError, match="1 to 3 channels; got 4"):
        colour_unaries(torch.rand(4, 4, 4), seeds, 1)
