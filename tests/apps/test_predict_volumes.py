"""Volumes segmented by trained models: NIfTI that lies on the image, whole or in slices, by windows and averages."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from volume_files import AFFINE, SIZE, SPACING, save, save_series, volume_settings, write_volumes

import regloss
from regloss.apps.evaluate import evaluate_run
from regloss.apps.post_process import PostProcess
from regloss.apps.predict import predict_files
from regloss.errors import UsageError
from regloss.registry import create
from regloss.training.inference import largest_components
from regloss.training.model import load_model, predict
from regloss.training.trainer import train

nibabel = pytest.importorskip("nibabel", reason="pip install 'regloss[volumes]'")

QUICK = ("training.epochs=2", "loss.outer-loop.name=gradient-descent")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("data") / "balls")


@pytest.fixture(scope="module")
def runs(balls, tmp_path_factory):
    """Models of slices and of volumes; the latter see windows."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regloss.report.page.write_report", lambda folder, **contents: folder)
        for dims in (2, 3):
            windows = ["inference.window=[4, 16, 16]"] if dims == 3 else []
            train(volume_settings(balls, folder / str(dims), dims, *QUICK, *windows))
    return folder


def labels_in(path):
    return np.asarray(nibabel.load(path).dataobj).T


@pytest.mark.parametrize("dims", [2, 3])
def test_a_folder_is_segmented(runs, balls, tmp_path, dims):
    run = runs / str(dims)
    assert predict_files(run, balls / "images", tmp_path / "out", probabilities="npy") == 3
    model = load_model(run)
    dataset = create("dataset", "volumes", **model.config.data.component_settings())
    ids = [name for name in dataset.ids("all") if name.startswith("case2")]
    expected = [
        predict(model.segmenter, torch.from_numpy(dataset.load(name).image).unsqueeze(0)).argmax(1)[0] for name in ids
    ]
    image = nibabel.load(tmp_path / "out" / "labels" / "case2.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, np.stack(expected) if dims == 2 else expected[0])
    probabilities = np.load(tmp_path / "out" / "probabilities" / "case2.npy")
    assert probabilities.shape == (2, *SIZE)
    np.testing.assert_array_equal(probabilities.argmax(0), labels_in(tmp_path / "out" / "labels" / "case2.nii.gz"))
    with Image.open(tmp_path / "out" / "overlays" / "case2.png") as picture:
        assert picture.mode == "RGB"


def test_one_file_of_another_format(runs, balls, tmp_path):
    itk = pytest.importorskip("SimpleITK", reason="pip install 'regloss[volumes]'")
    itk.WriteImage(itk.ReadImage(str(balls / "images" / "case1.nii.gz")), str(tmp_path / "one.mha"))
    predict_files(runs / "3", tmp_path / "one.mha", tmp_path / "a")
    predict_files(runs / "3", balls / "images" / "case1.nii.gz", tmp_path / "b")
    np.testing.assert_array_equal(
        labels_in(tmp_path / "a" / "labels" / "one.nii.gz"), labels_in(tmp_path / "b" / "labels" / "case1.nii.gz")
    )


def test_stacks_and_series(runs, balls, tmp_path):
    """A folder of NPY, TIFF and DICOM is segmented as the same volumes of NIfTI are; spacing where there is none."""
    itk = pytest.importorskip("SimpleITK", reason="pip install 'regloss[volumes]'")
    tifffile = pytest.importorskip("tifffile", reason="pip install 'regloss[tiff]'")
    (tmp_path / "scans").mkdir()
    values = labels_in(balls / "images" / "case1.nii.gz")
    np.save(tmp_path / "scans" / "a.npy", values)
    tifffile.imwrite(tmp_path / "scans" / "b.tif", values, photometric="minisblack")
    save_series(tmp_path / "scans" / "c", values)
    run = runs / "3"
    assert predict_files(run, tmp_path / "scans", tmp_path / "out", [f"data.file-spacing={list(SPACING)}"]) == 3
    predict_files(run, balls / "images" / "case1.nii.gz", tmp_path / "nifti")
    expected = labels_in(tmp_path / "nifti" / "labels" / "case1.nii.gz")
    for name in "abc":
        written = nibabel.load(tmp_path / "out" / "labels" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj).T, expected)
        np.testing.assert_allclose(written.header.get_zooms(), SPACING[::-1], rtol=1e-6)
    image = itk.ReadImage([str(tmp_path / "scans" / "c" / f"{place}.dcm") for place in range(SIZE[0])][::-1])
    labels = itk.ReadImage(str(tmp_path / "out" / "labels" / "c.nii.gz"))
    np.testing.assert_allclose(labels.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(labels.GetDirection(), image.GetDirection(), atol=1e-6)
    for name in ("a.npy", "c"):
        predict_files(run, tmp_path / "scans" / name, tmp_path / name)
        np.testing.assert_array_equal(labels_in(tmp_path / name / "labels" / f"{name[0]}.nii.gz"), expected)


def test_several_channels(balls, tmp_path):
    """Trained on two, of which only the second shows anything: predicted alike from a file with both, and one each."""
    generator = np.random.default_rng(0)
    root = shutil.copytree(balls, tmp_path / "two")
    for path in (root / "images").iterdir():
        values = labels_in(path)
        noise = generator.normal(0, 50, values.shape).astype(np.int16)
        save(path, np.stack([noise, values])[:, None])
    changes = ("training.epochs=16", "loss.outer-loop={name = 'trust-region', coupling = 0.1, update-every = 8}")
    scores = train(volume_settings(root, tmp_path / "run", 3, *changes))["test"]
    assert scores["mean-foreground-dice"] > 0.5
    predict_files(tmp_path / "run", root / "images", tmp_path / "out")
    expected = labels_in(tmp_path / "out" / "labels" / "case2.nii.gz")
    assert expected.any()
    values = np.asarray(nibabel.load(root / "images" / "case2.nii.gz").dataobj)[:, :, :, 0].T
    (tmp_path / "each").mkdir()
    for number, channel in enumerate(values):
        save(tmp_path / "each" / f"case2_{number:04d}.nii.gz", channel)
    predict_files(tmp_path / "run", tmp_path / "each", tmp_path / "other")
    np.testing.assert_array_equal(labels_in(tmp_path / "other" / "labels" / "case2.nii.gz"), expected)
    model = regloss.load(tmp_path / "run")
    for given in (root / "images" / "case2.nii.gz", sorted((tmp_path / "each").iterdir())):
        np.testing.assert_array_equal(model.predict(given), expected)
    np.testing.assert_array_equal(model.predict(values, spacing=SPACING), expected)
    with pytest.raises(UsageError, match="has 1 channel, but 2 are needed"):
        predict_files(tmp_path / "run", balls / "images", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("dims", [2, 3])
def test_in_a_program(runs, balls, tmp_path, dims):
    """An array, and a file, as the command segments the file."""
    path = balls / "images" / "case1.nii.gz"
    predict_files(runs / str(dims), path, tmp_path / "out", probabilities="npy")
    expected = labels_in(tmp_path / "out" / "labels" / "case1.nii.gz")
    model = regloss.load(runs / str(dims))
    values = labels_in(path)
    for image in (path, str(path), [path], values, torch.from_numpy(values.astype(np.float32)), values[None]):
        spacing = None if isinstance(image, list | str) or image is path else SPACING
        np.testing.assert_array_equal(model.predict(image, spacing=spacing), expected)
    probabilities = model.predict_probabilities(values, spacing=SPACING)
    np.testing.assert_allclose(probabilities, np.load(tmp_path / "out" / "probabilities" / "case1.npy"), atol=1e-6)
    turned = model.predict(np.moveaxis(values, 0, 2), spacing=(*SPACING[1:], SPACING[0]))
    if dims == 2:  # slices are cut across the largest spacing
        np.testing.assert_array_equal(np.moveaxis(turned, 2, 0), expected)
    for image, spacing, message in (
        (values[0], None, r"A volume for this model is \(D, H, W\), slices first; got the shape \(20, 24\)"),
        (np.stack([values] * 2), None, r"got the shape \(2, 6, 20, 24\)"),
        (np.full(SIZE, np.nan), None, "got NaN or infinity"),
        (values, (1.0, 1.0), "spacing must be 3"),
        ([path, path], None, r"Volumes of 1 channel are needed, in one file or in one for each; got 2 files"),
        (tmp_path / "none.nii.gz", None, "none.nii.gz"),
    ):
        with pytest.raises(UsageError, match=message):
            model.predict(image, spacing=spacing)


def test_models_are_averaged(runs, balls, tmp_path):
    image = balls / "images" / "case0.nii.gz"
    both = [runs / "2", runs / "3"]
    for name, run in (("2", runs / "2"), ("3", runs / "3"), ("both", both)):
        predict_files(run, image, tmp_path / name, probabilities="npy")
    two, three, mean = (np.load(tmp_path / name / "probabilities" / "case0.npy") for name in ("2", "3", "both"))
    np.testing.assert_allclose(mean, (two + three) / 2, atol=1e-5)
    changed = shutil.copytree(runs / "2", tmp_path / "changed")
    card = (changed / "model.json").read_text().replace('"ball"', '"box"')
    (changed / "model.json").write_text(card)
    with pytest.raises(UsageError, match="Models that are averaged have the same classes and channels"):
        predict_files([runs / "2", changed], image, tmp_path / "out")


def test_a_prior_behind_it_heeds_the_spacing(runs, balls, tmp_path):
    seen = []
    refine = PostProcess.parse(["grid-crf:weight=1"], "alpha-expansion", 0)

    def post_process(logits, image, spacing):
        seen.append(spacing)
        return refine(logits, image, spacing)

    predict_files(runs / "2", balls / "images" / "case0.nii.gz", tmp_path / "out", post_process=post_process)
    assert seen == [SPACING]


def test_the_largest_component_is_kept(runs, balls, tmp_path):
    image = balls / "images" / "case0.nii.gz"
    predict_files(runs / "2", image, tmp_path / "all")
    predict_files(runs / "2", image, tmp_path / "one", ["inference.largest-component=true"])
    before, after = (labels_in(tmp_path / name / "labels" / "case0.nii.gz") for name in ("all", "one"))
    np.testing.assert_array_equal(after, largest_components(before, 2))


def test_flips_are_those_of_the_training(runs, balls, tmp_path):
    image = balls / "images" / "case0.nii.gz"
    predict_files(runs / "3", image, tmp_path / "out", ["inference.flips=true"], probabilities="npy")
    with pytest.raises(UsageError, match=r"averages over the mirror images that data.augment makes, and it makes none"):
        predict_files(runs / "3", image, tmp_path / "none", ["inference.flips=true", "data.augment={}"])


@pytest.mark.parametrize("dims", [2, 3])
def test_scores_are_those_of_volumes_in_mm(runs, balls, tmp_path, dims):
    """Predicted files and true ones, compared by hand."""
    from regloss.metrics.surface import SurfaceDistances

    run = runs / str(dims)
    scores = evaluate_run(run, "test", ["evaluation.hausdorff=true", "evaluation.surface-tolerance=2"])
    predict_files(run, balls / "images" / "case2.nii.gz", tmp_path / "out")
    pair = [
        torch.from_numpy(labels_in(path).astype(np.int64))
        for path in (tmp_path / "out" / "labels" / "case2.nii.gz", balls / "labels" / "case2.nii.gz")
    ]
    by_hand = SurfaceDistances(["background", "ball"], 2.0)
    by_hand.update(*pair, "case2", SPACING)
    for name, value in by_hand.compute().items():
        assert scores[name] == value, name
    assert (scores["images"], scores["distance-unit"]) == (1, "mm")
    hits = int((pair[0] * pair[1]).sum())
    assert scores["mean-foreground-dice"] == pytest.approx(2 * hits / int(pair[0].sum() + pair[1].sum()))


def test_slices_with_gaps_are_scored_one_by_one(runs):
    split = 'data.split={train = ["case0"], test = ["case2-00[0-2]", "case2-005"]}'
    scores = evaluate_run(runs / "2", "test", [split, "evaluation.hausdorff=true"])
    assert scores["images"] == 4


def test_what_does_not_fit(runs, trained, images, balls, tmp_path):
    out = tmp_path / "out"
    for run, what, message in (
        (runs / "3", images / "images" / "i0.png", "was trained on volumes; .*i0.png is a picture"),
        (runs / "3", images / "images", "neither a volume nor a folder with volumes"),
        (runs / "2", tmp_path / "absent.nii.gz", "neither a volume nor a folder with volumes"),
    ):
        with pytest.raises(UsageError, match=message):
            predict_files(run, what, out)
    with pytest.raises(UsageError, match="Probabilities of volumes are written as npy; got 'tiff'"):
        predict_files(runs / "3", balls / "images", out, probabilities="tiff")
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read as NIfTI"):
        predict_files(runs / "3", tmp_path / "bad.nii.gz", out)
    save(tmp_path / "flat.nii.gz", np.full(SIZE, 7, np.int16))
    with pytest.raises(UsageError, match="All voxels have the value 7"):
        predict_files(runs / "3", tmp_path / "flat.nii.gz", out)
    assert not out.exists()


def test_a_model_of_pictures_segments_volumes_slice_by_slice(trained, balls, tmp_path):
    predict_files(trained, balls / "images" / "case0.nii.gz", tmp_path / "out")
    assert labels_in(tmp_path / "out" / "labels" / "case0.nii.gz").shape == SIZE


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_of_one_spacing(balls, tmp_path, dims):
    """Volumes of several spacings are learnt together, and segmented and scored on their own grids."""
    root = tmp_path / "mixed"
    shutil.copytree(balls, root)
    affine = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    affine[:2, 3] -= 0.25
    for path in [path for key in ("case1", "case2") for path in root.glob(f"*/{key}.nii.gz")]:
        save(path, labels_in(path).repeat(2, 1).repeat(2, 2), affine)
    spacing = list(SPACING[-dims:])
    run = tmp_path / "run"
    trained = train(
        volume_settings(root, run, dims, f"data.spacing={spacing}", "loss.outer-loop.name=gradient-descent")
    )
    assert load_model(run).segmenter.spacing == tuple(spacing)
    predict_files(run, root / "images", tmp_path / "out")
    for key in ("case0", "case1", "case2"):
        image = nibabel.load(tmp_path / "out" / "labels" / f"{key}.nii.gz")
        np.testing.assert_allclose(image.affine, AFFINE if key == "case0" else affine)
        found, truth = np.asarray(image.dataobj).T, labels_in(root / "labels" / f"{key}.nii.gz")
        assert found.shape == truth.shape
        assert 2 * ((found == 1) & (truth == 1)).sum() / (found.sum() + truth.sum()) > 0.55
    steps = tuple(nibabel.load(root / "images" / "case2.nii.gz").header.get_zooms()[::-1])
    np.testing.assert_array_equal(
        regloss.load(run).predict(labels_in(root / "images" / "case2.nii.gz"), spacing=steps), found
    )
    scores = evaluate_run(run, "test", ["evaluation.hausdorff=true"])
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())  # of case2, the last
    assert scores["mean-foreground-dice"] == pytest.approx(dice, abs=1e-6)
    assert abs(scores["mean-foreground-dice"] - trained["test"]["mean-foreground-dice"]) < 0.05


def test_a_model_of_one_spacing_must_know_that_of_an_image(runs):
    segmenter = load_model(runs / "2").segmenter
    segmenter.spacing = (1.0, 1.0)
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 6), scale_factor=4.0, mode="bilinear")
    with pytest.raises(UsageError, match=r"learnt from images of 1 x 1 mm a pixel, and the spacing .* is not known"):
        predict(segmenter, image)
    expected = predict(segmenter, image, (1.0, 1.0))
    finer = torch.nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")
    found = predict(segmenter, finer, (0.5, 0.5))
    assert found.shape == (1, 2, 40, 48)
    assert (found[..., ::2, ::2].argmax(1) == expected.argmax(1)).float().mean() > 0.95
