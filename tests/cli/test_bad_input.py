"""Bad input: one clear message, exit code 2, nothing written; and the library raises the same message."""

import numpy as np
import pytest
from PIL import Image

from regloss.errors import BrokenPlugin, UsageError
from regloss.training.config import read
from regloss.training.trainer import train

SIZE = (24, 28)


def save(path, values):
    Image.fromarray(values).save(path)


def change(path, function):
    with Image.open(path) as picture:
        values = np.array(picture)
    save(path, function(values))


def only(label):
    def keep(values):
        return np.where(values == label, values, np.uint8(255))

    return keep


def float_image(value):
    def write(root):
        (root / "images" / "i2.png").unlink()
        values = np.full(SIZE, 0.5, dtype=np.float32)
        values[3, 4] = value
        save(root / "images" / "i2.tif", values)

    return write


def everywhere(root, part, function):
    for path in (root / part).iterdir():
        change(path, function)


def remove(root, *names):
    for name in names:
        (root / name).unlink()


DATA = {
    "label of another size": (
        lambda root: change(root / "labels/i6.png", lambda values: values[1:]),
        r"labels/i6.png is 23 pixels high and 28 wide, but .*images/i6.png is 24 high and 28 wide",
    ),
    "scribble of another size": (
        lambda root: change(root / "scribbles/i1.png", lambda values: values[:, 2:]),
        r"scribbles/i1.png is 24 pixels high and 26 wide",
    ),
    "missing scribbles": (
        lambda root: remove(root, "scribbles/i0.png", "scribbles/i3.png"),
        r"2 of 6 images have no scribble file in .*scribbles: i0, i3",
    ),
    "missing labels": (
        lambda root: remove(root, "labels/i7.png"),
        r"1 of 2 images have no label file in .*labels: i7",
    ),
    "scribbles without image": (
        lambda root: (root / "scribbles/i5.png").rename(root / "scribbles/j5.png"),
        r"(?s)1 files of scribbles have no image of that name.*j5.png.*1 of 6 images have no scribble.*i5",
    ),
    "scribble outside the classes": (
        lambda root: change(root / "scribbles/i4.png", lambda values: np.where(values == 2, np.uint8(9), values)),
        r"scribbles/i4.png holds the label value 9, but there are 3 classes",
    ),
    "evaluation label outside the classes": (
        lambda root: change(root / "labels/i7.png", lambda values: np.where(values == 2, np.uint8(7), values)),
        r"labels/i7.png holds the label value 7, but there are 3 classes",
    ),
    "NaN": (float_image(np.nan), r"images/i2.tif holds NaN"),
    "too bright": (
        float_image(17.0),
        r"images/i2.tif holds floats from 0.5 to 17; float images must lie within \[0, 1\]",
    ),
    "negative": (float_image(-0.5), r"images/i2.tif holds floats from -0.5 to 0.5"),
    "NaN in an evaluation image": (
        lambda root: (remove(root, "images/i6.png"), save(root / "images/i6.tif", np.full(SIZE, np.nan, np.float32))),
        r"images/i6.tif holds NaN",
    ),
    "no scribble in an image": (
        lambda root: [change(root / f"scribbles/i{n}.png", lambda values: values * 0 + 255) for n in (2, 4)],
        r"2 training images have no labelled pixel in their scribbles: i2, i4. Label them, or leave them out",
    ),
    "one class seeded in all images": (
        lambda root: everywhere(root, "scribbles", only(1)),
        r"All scribbles of the training images are of class 1 \('class 1'\).*Label at least two classes",
    ),
    "no images": (
        lambda root: remove(root, *(f"images/i{n}.png" for n in range(8))),
        r"images holds no image .*, but nothing",
    ),
    "no folder of images": (lambda root: (root / "images").rename(root / "pictures"), r"has no folder 'images'"),
    "an image that is none": (
        lambda root: (root / "images/i0.png").write_text("nonsense"),
        r"images/i0.png cannot be read as a PNG, JPEG, TIFF",
    ),
    "JPEG labels": (
        lambda root: (root / "labels/i0.png").rename(root / "labels/i0.jpg"),
        r"label maps are PNG files .* holds i0.jpg",
    ),
}

SETTINGS = {
    "unknown network": ("network.name=unett", r"no network called 'unett'. Did you mean 'unet'"),
    "unknown dataset": ("data.dataset=folders", r"no dataset called 'folders'. Did you mean 'folder'"),
    "unknown regularizer": (
        "loss.regularizer.0.name=gridcrf",
        r"no regularizer called 'gridcrf'. Did you mean 'grid-crf'",
    ),
    "unknown loop": (
        "loss.outer-loop.name=trustregion",
        r"no outer-loop called 'trustregion'. Did you mean 'trust-region'",
    ),
    "unknown solver": (
        "loss.outer-loop.solver=expansion",
        r"no solver called 'expansion'. Did you mean 'alpha-expansion'",
    ),
    "unknown divergence": (
        "loss.outer-loop.divergence=robust",
        r"no divergence called 'robust'. Did you mean 'robust-kl'",
    ),
    "unknown data term": ("loss.data-term=crossentropy", r"no data-term called 'crossentropy'. Did you mean"),
    "key": (
        "training.epoch=3",
        r"unknown key 'training.epoch'. Did you mean 'epochs'\? Allowed here: epochs, batch-size",
    ),
    "section": ("trainig.epochs=3", r"unknown key 'trainig'. Did you mean 'training'"),
    "component key": ("network.chanels=3", r"unknown key 'chanels' for the network 'unet'. Did you mean 'channels'"),
    "optimizer key": ("training.optimizer.momentun=1", r"training.optimizer: .*momentun"),
    "no section": ("epochs", r"--set takes section.key=value"),
    "one class": ("data.classes=1", r"there are 1 classes; needed are 2"),
    "too few classes": ("data.classes=2", r"holds the label value 2, but there are 2 classes"),
    "empty subset": ("data.split.train=[]", r"subset 'train' of .* is empty"),
    "no such image": ('data.split.test=["j*"]', r"these entries match no image of .*'j\*' \(test\)"),
    "no such subset": ("data.test=tset", r"no subset 'tset'; there are 'train', 'test', 'all'"),
    "large epsilon": (
        "loss.outer-loop.divergence.epsilon=0.67",
        r"0.67 is too large for K = 3 classes: .*Choose a smaller",
    ),
    "solver and regularizer": (
        'loss.regularizer=[{name = "tv", isotropic = true}]',
        r"Cannot use .*alpha-expansion.* with .*tv|tv.*alpha-expansion",
    ),
    "start weights": ("training.start-from=nowhere", r"There is no weights file nowhere"),
    "device": ("training.accelerator=gpuu", r"training.accelerator"),
}


def refused(regloss, path, tmp_path, expected, error=UsageError, *options):
    """Both ways say the same, and leave nothing."""
    done = regloss("train", path, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    changes = [option for option in options if option != "--set"]
    with pytest.raises(error, match=expected) as caught:
        train(read(path, changes))
    assert done.err == f"Error: {caught.value}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("damage", "expected"), DATA.values(), ids=DATA)
def test_data(damage, expected, regloss, write_folder, config_file, tmp_path):
    root = write_folder(tmp_path / "data")
    damage(root)
    refused(regloss, config_file(root=root), tmp_path, expected)


@pytest.mark.parametrize(("setting", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_settings(setting, expected, regloss, config_file, tmp_path):
    refused(regloss, config_file(), tmp_path, expected, UsageError, "--set", setting)


def test_one_class_seeded_in_some_images_is_told(regloss, write_folder, config_file, tmp_path):
    """It is no error: other images seed the other classes."""
    root = write_folder(tmp_path / "data")
    change(root / "scribbles/i3.png", only(0))
    done = regloss("train", config_file("training.epochs=1", root=root))
    assert done.code == 0
    assert "In 1 images only one class is seeded, so proposals may take any class: i3." in done.err


def test_a_used_output(regloss, config_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for options, expected in (
        ([], "exists already. Go on with --resume, replace it with --overwrite, or choose another."),
        (["--resume"], "was not made by a training"),
        (["--overwrite"], "was not made by a training"),
        (["--overwrite", "--resume"], "Choose one of resume and overwrite."),
    ):
        done = regloss("train", config_file(), *options)
        assert (done.code, done.out) == (2, "")
        assert expected in done.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_an_output_that_cannot_be_made(regloss, config_file, tmp_path):
    (tmp_path / "file").write_text("")
    done = regloss("train", config_file(), "--set", f"output={tmp_path / 'file' / 'run'}")
    assert done.code == 2
    assert "file is not a folder that can be written to" in done.err


def test_a_run_begun_with_other_settings(regloss, config_file, tmp_path):
    assert regloss("train", config_file("training.epochs=1")).code == 0
    done = regloss("train", config_file("training.epochs=1", "seed=4"), "--resume")
    assert done.code == 2
    assert "begun with other settings and cannot be resumed with these: seed (was 0, is 4)" in done.err


@pytest.mark.parametrize("other", ["network.channels=5", "data.classes=4"])
def test_weights_of_another_network(other, regloss, config_file, trained, tmp_path):
    expected = r"weights of .*trained are of another network than the configured UNet: .* instead of "
    start = f"training.start-from={trained}"
    refused(regloss, config_file(), tmp_path, expected, UsageError, "--set", start, "--set", other)


def test_weights_of_another_version(regloss, config_file, trained, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "new.safetensors"
    save_file(load_file(trained / "model.safetensors"), path, metadata={"regloss-format": "9"})
    expected = r"new.safetensors has the format version 9, but this regloss reads version 1"
    refused(regloss, config_file(), tmp_path, expected, UsageError, "--set", f"training.start-from={path}")


def test_a_broken_plugin(regloss, config_file, installed, tmp_path):
    installed("stranger", {"regloss.regularizers": {"strange": "strange_crf:CRF"}}, {"strange_crf": "import nowhere"})
    expected = r"'strange' of distribution 'stranger' \(strange_crf:CRF\) cannot be imported: .*'nowhere'"
    refused(regloss, config_file(), tmp_path, expected, BrokenPlugin, "--set", "loss.regularizer.0.name=strange")


@pytest.mark.parametrize("text", [None, 'output = "x', "\x00"])
def test_files_that_are_no_configuration(text, regloss, tmp_path):
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    done = regloss("train", path)
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert "config.toml" in done.err


def test_a_split_is_needed_only_for_what_is_asked(regloss, config_file, tmp_path):
    """Without a split there is no test subset; the message says how to do without."""
    path = config_file("data.split={train = ['i*']}")
    done = regloss("train", path)
    assert done.code == 2
    assert 'set data.test = ""' in done.err
    assert regloss("train", path, "--set", "data.test=''", "--set", "training.epochs=1").code == 0


# -- The other commands ------------------------------------------------------------------------------------------------


def test_evaluate(regloss, trained, tmp_path, monkeypatch):
    for arguments, expected in (
        ((tmp_path, "--trimap", "0"), "is not the output folder of a training"),  # whatever else is wrong
        ((trained, "--subset", "tset"), "no subset 'tset'"),
        ((trained, "--set", "data.root=absent"), "no folder 'absent'"),
    ):
        done = regloss("evaluate", *arguments)
        assert (done.code, done.out) == (2, "")
        assert expected in done.err
    (tmp_path / "scores.json").write_text("mine")
    monkeypatch.setattr("regloss.apps.evaluate.evaluate_samples", None)  # refused before the work
    for output, expected in (("scores.json", "exists already"), ("absent/scores.json", "there is no folder")):
        done = regloss("evaluate", trained, "--output", tmp_path / output)
        assert done.code == 2
        assert expected in done.err
    assert (tmp_path / "scores.json").read_text() == "mine"


def test_predict(regloss, trained, images, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("")
    for arguments, expected in (
        ((tmp_path, images, "-o", tmp_path / "out", "--solver", "dca"), "is not the output folder of a training"),
        ((trained, tmp_path / "absent", "-o", tmp_path / "out"), "neither an image nor a folder"),
        ((trained, images / "images", "-o", tmp_path / "used"), "exists already"),
        ((trained, images / "images", "-o", tmp_path / "used", "--overwrite"), "also holds mine.txt"),
        ((trained, images / "images", "-o", tmp_path / "out", "--solver", "dca"), "belong to --crf"),
        ((trained, images / "images", "-o", tmp_path / "out", "--crf", "--regularizer", "denss-crf"), "dense-crf"),
    ):
        done = regloss("predict", *arguments)
        assert (done.code, done.out) == (2, "")
        assert expected in done.err
    assert not (tmp_path / "out").exists()


def test_segment(regloss, images, tmp_path):
    image, scribbles = images / "images/i0.png", images / "scribbles/i0.png"
    save(tmp_path / "one.png", np.where(np.arange(28) < 9, 1, 255).astype(np.uint8)[None].repeat(24, 0))
    save(tmp_path / "small.png", np.zeros((5, 5), np.uint8))
    shares = "volume:volumes=[0.001,0.899,0.1],unit=fraction"
    volumes = ("--regularizer", "tv", "--regularizer", shares, "--solver", "pdhg", "--entropy", "0.1")
    for arguments, expected in (
        ((image,), "Give scribbles"),
        ((image, "--scribbles", tmp_path / "one.png"), "In the scribbles only class 1 is labelled"),
        ((image, "--scribbles", tmp_path / "small.png"), "They must agree"),
        ((image, "--scribbles", scribbles, "--solver", "cut"), "no solver called 'cut'"),
        ((image, "--scribbles", scribbles, *volumes), "in image 0 of the batch: 18 pixels must be class 0"),
        ((tmp_path / "absent.png", "--solver", "cut"), "There is no file"),  # whatever else is wrong
        ((image, "--scribbles", tmp_path / "absent.png", "--solver", "cut"), "There is no file"),
        ((image, "--start", tmp_path / "absent.png", "--solver", "cut"), "There is no file"),
    ):
        done = regloss("segment", *arguments, "--output", tmp_path / "out")
        assert (done.code, done.out) == (2, "")
        assert expected in done.err
    assert not (tmp_path / "out").exists()
