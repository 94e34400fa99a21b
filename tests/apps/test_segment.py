"""One image, without a network: with scribbles, and without any label."""

import csv
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from regloss import ChanVese, GridCRF, MeanField, TotalVariation, create
from regloss.apps.components import parse_component
from regloss.apps.segment import default_segmenter, parse_values, segment_file
from regloss.errors import BrokenPlugin, MissingForm, UnknownComponent, UsageError
from regloss.solver import Status

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
    assert (
        result.segmentation.solution.status == (Status.OPTIMAL,)
        or result.segmentation.solution.status[0] is Status.OPTIMAL
    )
    lines = result.lines()
    assert f"energy {float(result.segmentation.solution.energy[0]):.6g}, lower bound" in lines[0]
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
    one = segment(files, regularizers=["grid-crf:weight=3"]).segmentation.solution.energy
    two = segment(
        files, regularizers=["grid-crf:weight=1", "grid-crf:weight=2"], overwrite=True
    ).segmentation.solution.energy
    torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


def test_classes_that_are_not_scribbled_are_not_used(files):
    Image.fromarray(np.where(strokes() == 1, np.uint8(4), strokes())).save(files / "scribbles.png")
    with pytest.raises(
        UsageError, match=r"holds the labels 0, 4, 255, .*--values 0=0,4=1 counts them, --values 0=0,4=4"
    ):
        segment(files)
    result = segment(files, values={0: 0, 4: 4})
    assert set(np.unique(result.labels)) == {0, 4}
    assert result.lines()[1] == "pixels per class: 0: 460, 4: 140"


def test_grey_images(files):
    with Image.open(files / "image.png") as picture:
        picture.convert("L").save(files / "grey.png")
    labels = segment_file(files / "grey.png", files / "out", scribbles=files / "scribbles.png").labels
    assert labels.shape == SIZE


# -- Without scribbles -------------------------------------------------------------------------------------------------


def phases(files, **options):
    return segment_file(files / "image.png", files / "out", **{"phases": 2, **options})


def rows(files):
    with (files / "out" / "convergence.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", [None, "chan-vese", "region-competition", "graph-cut"])
def test_colours_alone(files, method):
    """The rectangle is the brighter phase."""
    result = phases(files, method=method)
    assert (result.labels == truth()).mean() > 0.99
    folder = files / "out"
    assert [path.relative_to(folder).as_posix() for path in result.files] == [
        "labels.png",
        "overlay.png",
        "masks/phase-0.png",
        "masks/phase-1.png",
        "convergence.csv",
        "convergence.png",
    ]
    for phase in (0, 1):
        with Image.open(folder / "masks" / f"phase-{phase}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), 255 * (result.labels == phase))
    assert result.segmentation.alternation is not None
    energies = [float(row["energy"]) for row in rows(files)]
    assert all(a >= b for a, b in pairwise(energies))
    assert energies[-1] == pytest.approx(float(result.segmentation.solution.energy))
    with Image.open(files / "image.png") as picture:
        values = np.asarray(picture)[result.labels == 1].mean(0) / 255
    np.testing.assert_allclose(result.segmentation.means[1], values, rtol=1e-5)
    lines = result.lines()
    assert lines[0].startswith("energy ")
    assert lines[2].startswith("mean colours: 0: (0.1")


def test_the_solver_s_steps_are_in_the_table(files):
    phases(files, regularizers=["tv:weight=0.1,isotropic=true"], solver="pdhg:max-steps=100", entropy=0.02)
    table = rows(files)
    first = [row for row in table if row["event"] == "step" and row["round"] == "1"]
    assert [row["step"] for row in first] == [str(10 * i) for i in range(len(first))]
    assert all(float(row["bound"]) <= float(row["energy"]) for row in first)


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"phases": 3}, 3),
        ({"phases": 4, "region_force": "gaussian:min-variance=0.001"}, 4),
        ({"region_force": "histogram:bins=8"}, 2),
        ({"regularizers": ["threshold-dynamics:weight=0.3"], "solver": "dca", "entropy": 0.02}, 2),
        (
            {
                "regularizers": ["tv:weight=0.05", "volume:volumes=[0.7,0.3],unit=fraction"],
                "solver": "pdhg:tolerance=1e-4,max-steps=1000",
                "entropy": 0.02,
            },
            2,
        ),
    ],
)
def test_phases_forces_and_priors(files, options, classes):
    result = phases(files, **options)
    assert set(np.unique(result.labels)) <= set(range(classes))
    assert result.segmentation.means.shape == (classes, 3)
    energies = result.segmentation.alternation.energies[1:, 0]
    assert bool((energies[1:] <= energies[:-1]).all())
    if "volume" in str(options):
        # The constraint is on the probabilities; the colours leave no doubt about most pixels' labels.
        assert float(result.segmentation.solution.probabilities[0, 1].mean()) == pytest.approx(0.3, abs=0.002)


def test_the_default_weights_suit_the_region_force(files):
    """Nats and squared distances differ by orders of magnitude."""
    by_force = phases(files, region_force="gaussian")
    by_method = phases(files, method="region-competition", overwrite=True)
    assert float(by_force.segmentation.solution.energy) == float(by_method.segmentation.solution.energy)


def test_a_start_of_one_s_own(files):
    given = np.full(SIZE, 255, dtype=np.uint8)
    given[1, 2:28], given[10, 12:18] = 1, 0  # the other way round than k-means has it
    Image.fromarray(given).save(files / "start.png")
    result = phases(files, phases=None, start=files / "start.png")
    np.testing.assert_array_equal(result.labels, 1 - truth())


def test_scribbles_are_the_start_of_several_rounds(files):
    told = []
    result = segment(files, max_rounds=5, callback=told.append)
    assert len(told) == int(result.segmentation.alternation.rounds) > 1
    assert told[0].startswith("round 1: energy ")
    assert [path.name for path in result.files[2:]] == ["convergence.csv", "convergence.png"]
    assert (result.labels == truth()).all()


def test_any_image_gives_the_same_twice(files):
    first = phases(files, phases=3, seed=1)
    second = phases(files, phases=3, seed=1, overwrite=True)
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.parametrize("name", ["camera", "coins", "astronaut"])
@pytest.mark.parametrize("count", [2, 3])
def test_photographs(name, count, tmp_path):
    """At a quarter of their size, grey and in colour: energies fall, and two phases are solved to optimality."""
    skimage = pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    picture = Image.fromarray(getattr(skimage.data, name)())
    picture.resize((picture.width // 4, picture.height // 4)).save(tmp_path / "image.png")
    result = segment_file(tmp_path / "image.png", tmp_path / "out", method="chan-vese", phases=count)
    energies = result.segmentation.alternation.energies[:, 0]
    assert bool((energies[1:] <= energies[:-1]).all())
    assert energies[-1] < 0.95 * energies[0]
    assert result.segmentation.alternation.status == (Status.CONVERGED,)
    if count == 2:
        assert float(result.segmentation.solution.gap) == 0
    assert len(np.unique(result.labels)) == count


def test_horses(data_root, tmp_path):
    """Energies fall on real photographs of another kind, in two and four phases."""
    for path in sorted((data_root / "weizmann_horse" / "images").iterdir())[:2]:
        for count in (2, 4):
            folder = tmp_path / f"{path.stem}-{count}"
            result = segment_file(path, folder, method="chan-vese", phases=count)
            energies = result.segmentation.alternation.energies[:, 0]
            assert bool((energies[1:] <= energies[:-1]).all())


# -- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"scribbles": None}, UsageError, "Give scribbles"),
        ({"unary": "colour"}, UsageError, 'unary must be "color" or "uniform"'),
        (
            {"solver": "alpha-expand"},
            UnknownComponent,
            "no solver called 'alpha-expand'. Did you mean 'alpha-expansion'",
        ),
        ({"regularizers": ["grid-crf:wieght=2"]}, UsageError, "no setting 'wieght'. Did you mean 'weight'"),
        ({"regularizers": ["grid-crf:weight=1,sigma"]}, UsageError, "written NAME:setting=value"),
        ({"regularizers": ["tv:isotropic=true"]}, MissingForm, r"alpha-expansion"),
        ({"entropy": 0.5}, UsageError, "entropy"),
        ({"phases": 2}, UsageError, "Leave --phases out"),
        ({"unary": "uniform", "region_force": "chan-vese"}, UsageError, "neither method nor region force"),
        ({"scribbles": None, "phases": 2, "unary": "uniform"}, UsageError, "give scribbles"),
        ({"scribbles": None, "phases": 1}, UsageError, "at least two phases"),
        ({"scribbles": None, "phases": 999}, UsageError, "whole number from 2 to 255"),
        ({"method": "snakes"}, UsageError, "no segmenter called 'snakes'. Known: chan-vese"),
        ({"region_force": "chan-vese:scale=0"}, UsageError, "scale must be a positive number"),
        ({"region_force": "gauss"}, UnknownComponent, "no region-force called 'gauss'"),
        ({"max_rounds": 0}, UsageError, "max_rounds must be at least 1"),
    ],
)
def test_bad_settings(files, options, error, expected):
    with pytest.raises(error, match=expected):
        segment(files, **options)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("scribble", "expected"),
    [
        (np.full(SIZE, 255, np.uint8), "In the scribbles no pixel is labelled; give labels of at least two classes"),
        (
            np.where(strokes() == 0, np.uint8(255), strokes()),
            "In the scribbles only class 1 is labelled; give labels of at least two classes",
        ),
        (strokes()[1:], r"has the size \(19, 30\), .*image.png \(20, 30\) \(height, width\). They must agree"),
    ],
)
def test_bad_scribbles(files, scribble, expected):
    Image.fromarray(scribble).save(files / "scribbles.png")
    with pytest.raises(UsageError, match=expected):
        segment(files)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (np.zeros(SIZE, np.uint8), None, "In the start only class 0 is labelled; give labels of at least two"),
        (np.full(SIZE, 255, np.uint8), None, "In the start no pixel is labelled"),
        (truth(), 3, "has the phases 0 to 1, but 3 phases are asked for"),
        (2 * truth(), None, r"holds the labels 0, 2, and no pixel of the classes between \(1\)"),
        (truth()[1:], None, "They must agree"),
    ],
)
def test_bad_starts(files, start, count, expected):
    Image.fromarray(start).save(files / "start.png")
    with pytest.raises(UsageError, match=expected):
        phases(files, phases=count, start=files / "start.png")
    assert not (files / "out").exists()


def test_images_that_cannot_be_phases(files):
    Image.fromarray(np.full(SIZE, 90, np.uint8)).save(files / "flat.png")
    with pytest.raises(UsageError, match="1 different colours, fewer than the 2 phases"):
        segment_file(files / "flat.png", files / "out", phases=2)
    Image.fromarray(60 * truth()).save(files / "two.png")
    with pytest.raises(UsageError, match="2 different colours, fewer than the 3 phases"):
        segment_file(files / "two.png", files / "out", phases=3)
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(files / "nan.tif")
    with pytest.raises(UsageError, match=r"NaN|finite"):
        segment_file(files / "nan.tif", files / "out", phases=2)
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
        patch.setattr("regloss_plugins.segmenters.alternating.alternate", None)
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
    assert parse_component("region-force", "chan-vese:scale=[1, 2.5]") == ChanVese(scale=(1, 2.5))
    both = "volume:lower=[0.1,0],upper=[1,1],unit=fraction"
    assert list(parse_component("regularizer", both).upper) == [1, 1]


def test_nothing_is_given_twice():
    with pytest.raises(UsageError, match="weight is given twice"):
        parse_component("regularizer", "grid-crf:weight=1,weight=2")
    with pytest.raises(UsageError, match="Each value has one class"):
        parse_values("0=0,0=1")


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_seeds_that_no_generator_takes(seed):
    with pytest.raises(UsageError, match="seed must be a whole number"):
        create("segmenter", "chan-vese")(torch.rand(1, 1, 4, 4), seed=seed)


def test_an_installation_older_than_its_code_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regloss.apps.segment.components", lambda kind: [])
    with pytest.raises(BrokenPlugin, match="Install regloss again"):
        default_segmenter("scribbles")
