"""The commands, from their arguments to what they print and leave."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from regloss import hooks
from regloss.hooks import hookimpl


def test_a_session(regloss, config_file, images, tmp_path, real_report):
    """Train, resume, evaluate, predict."""
    done = regloss("train", config_file(), "--set", "training.epochs=2", "--set", "loss.regularizer.0.weight=2")
    assert (done.code, done.out.split()[:2]) == (0, ["test:", "mean-iou"])
    assert "mean-foreground-dice 0." in done.out
    assert "energy 0." in done.out
    report, *to_try = done.err.splitlines()
    assert report == f"Report: {tmp_path / 'run' / 'report.html'}"
    assert to_try[:1] == ["What to try:"]  # two epochs teach little
    assert all(line.startswith("- ") for line in to_try[1:])
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["training"]["epochs"], stored["loss"]["regularizer"][0]["weight"]) == (2, 2)

    again = regloss("train", config_file("training.epochs=2", "loss.regularizer.0.weight=2"), "--resume")
    assert (again.code, again.out) == (0, done.out)
    assert again.err.splitlines()[0] == "Going on from step 6 of 6."

    scored = regloss("evaluate", tmp_path / "run", "--output", tmp_path / "scores.json")
    assert (scored.code, scored.out) == (0, done.out)
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads((tmp_path / "run/scores.json").read_text())

    predicted = regloss("predict", tmp_path / "run", images / "images", "--output", tmp_path / "out", "--quiet")
    assert predicted.code == 0
    assert (
        predicted.out == f"8 images: label maps in {tmp_path / 'out/labels'}, overlays in {tmp_path / 'out/overlays'}\n"
    )
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 8


def test_a_session_with_a_layer(regloss, config_file, images, tmp_path, real_report):
    """As a file says it; solved further for scores and label maps."""
    path = config_file("training.epochs=1")
    path.write_text(
        path.read_text() + 'layer = {regularizer = "nltv", solver = "pdhg", steps = 10, learn = ["weight"]}\n'
    )
    done = regloss("train", path)
    assert done.code == 0
    assert "layer-gap" in done.out
    assert done.err.startswith("Layer after training: weight-nltv ")
    run = tmp_path / "run"
    assert (run / "log" / "steps.csv").read_text().splitlines()[0].endswith("layer-gap,layer-steps,layer-weight-nltv")
    more = regloss("evaluate", run, "--set", "layer.steps=100")
    assert more.code == 0
    assert float(more.out.split("layer-steps ")[1].split()[0]) > 10
    predicted = regloss("predict", run, images / "images", "--set", "layer.steps=100", "--output", tmp_path / "out")
    assert predicted.code == 0
    refused = regloss("evaluate", run, "--set", "layer.step=100")
    assert refused.code == 2
    assert "unknown key 'layer.step'. Did you mean 'max-steps'?" in refused.err


def test_the_installed_command(config_file, images, tmp_path):
    """A process of its own, as a user starts it, with every built-in hook."""
    command = [sys.executable, "-m", "regloss_cli.main", "train", str(config_file("training.epochs=1"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test: mean-iou 0.")
    assert (tmp_path / "run" / "report.html").is_file()
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"Error: The output {tmp_path / 'run'} exists already.")
    assert "Traceback" not in refused.stderr


def test_overwriting(regloss, config_file):
    path = config_file("training.epochs=1")
    assert regloss("train", path).code == 0
    assert regloss("train", path).code == 2
    assert regloss("train", path, "--overwrite").code == 0


def test_evaluating_other_subsets(regloss, trained, tmp_path):
    done = regloss("evaluate", trained, "--subset", "train", "--set", 'evaluation.energy=""')
    assert done.code == 0
    assert done.out.startswith("train: mean-iou")
    assert "energy" not in done.out


def test_evaluating_with_noise(regloss, trained, tmp_path):
    levels = ("--noise", "gaussian:0.05", "--noise", "salt-and-pepper:0.1")
    done = regloss("evaluate", trained, *levels, "--output", tmp_path / "scores.json")
    assert done.code == 0
    names = ["test", "test gaussian:0.05", "test salt-and-pepper:0.1"]
    assert [line.split(": mean-iou")[0] for line in done.out.splitlines()] == names
    assert list(json.loads((tmp_path / "scores.json").read_text())) == names
    refused = regloss("evaluate", trained, "--noise", "gaussian:12")
    assert (refused.code, refused.out) == (2, "")


def test_comparing_runs(regloss, trained, tmp_path):
    runs = (trained, shutil.copytree(trained, tmp_path / "copy"))
    table, chart, scores = (tmp_path / name for name in ("bands.csv", "bands.png", "scores.json"))
    written = ("--table", table, "--chart", chart, "--output", scores)
    done = regloss("evaluate", *runs, "--trimap", "1,3", *written)
    assert done.code == 0
    first = trained.name
    assert [line.split(": ")[0] for line in done.out.splitlines()] == [
        f"{run}, test{band}"
        for run in (first, "copy")
        for band in ("", *(f", within {n} pixels of a boundary" for n in (1, 3)))
    ]
    assert list(json.loads(scores.read_text())) == [first, "copy"]
    assert len(table.read_text().splitlines()) == 1 + 2 * 3
    with Image.open(chart) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    refused = regloss("evaluate", *runs, "--trimap", "1,3", "--chart", chart)
    assert (refused.code, refused.out) == (2, "")


def test_segmenting_one_image(regloss, tmp_path):
    labels = np.zeros((12, 16), dtype=np.uint8)
    labels[3:9, 4:12] = 1
    scribbles = np.full((12, 16), 255, dtype=np.uint8)
    scribbles[0, :], scribbles[5, 6:9] = 0, 1
    Image.fromarray(60 + 120 * labels).save(tmp_path / "image.png")
    Image.fromarray(scribbles).save(tmp_path / "scribbles.png")
    arguments = ("segment", tmp_path / "image.png", "--scribbles", tmp_path / "scribbles.png", "-o", tmp_path / "out")
    done = regloss(*arguments, "--regularizer", "grid-crf:weight=2", "--solver", "alpha-expansion:max-cycles=3")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("energy ")
    assert lines[1] == "pixels per class: 0: 144, 1: 48"
    with Image.open(tmp_path / "out" / "labels.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), labels)
    assert regloss(*arguments).code == 2
    assert regloss(*arguments, "--overwrite").code == 0


def test_version(regloss):
    import regloss as package

    done = regloss("--version")
    assert (done.code, done.out) == (0, f"regloss {package.__version__}\n")


def test_exit_codes(regloss, config_file):
    """1: failed while running. 2: bad input."""
    diverged = regloss("train", config_file('training.optimizer={name = "sgd", lr = 1e30}'))
    assert diverged.code == 1
    assert diverged.err.startswith("Error: ")
    assert "at step" in diverged.err
    assert regloss("train").code == 2
    assert regloss("tran").code == 2


def test_an_error_of_the_system_is_one_message(regloss, config_file, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "scores.json")

    monkeypatch.setattr("regloss.apps.train.train_file", fail)
    done = regloss("train", config_file())
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: OSError: [Errno 28] No space left on device: 'scores.json'\n"


# -- Plugins -----------------------------------------------------------------------------------------------------------


def test_components_are_listed(regloss):
    done = regloss("plugins", "list")
    assert done.code == 0
    listed = {tuple(line.split()[:2]) for line in done.out.splitlines()}
    for kind, name in (
        ("regularizer", "grid-crf"),
        ("solver", "alpha-expansion"),
        ("divergence", "robust-kl"),
        ("data-term", "partial-cross-entropy"),
        ("outer-loop", "trust-region"),
        ("network", "unet"),
        ("dataset", "folder"),
    ):
        assert (kind, name) in listed
    assert all(line.split()[2] == "regloss" for line in done.out.splitlines())
    only = regloss("plugins", "list", "--kind", "network")
    assert {tuple(line.split()[:2]) for line in only.out.splitlines()} == {
        pair for pair in listed if pair[0] == "network"
    }
    assert regloss("plugins", "list", "--kind", "colour").code == 2


def test_a_component_is_shown(regloss):
    done = regloss("plugins", "show", "grid-crf")
    assert done.code == 0
    assert "regularizer regloss:grid-crf (regloss_plugins.regularizers.grid_crf:GridCRF)" in done.out
    for line in ("weight = 1.0", "connectivity = 8", "sigma = 'auto'", "relaxation = 'bilinear'"):
        assert f"  {line}\n" in done.out
    loop = regloss("plugins", "show", "trust-region").out
    assert "  update-every = 5\n" in loop
    assert "Presets: voc-scribbles" in loop
    unknown = regloss("plugins", "show", "grid-cfr")
    assert (unknown.code, unknown.out) == (2, "")
    assert "no component called 'grid-cfr'" in unknown.err


def test_all_built_in_components_work(regloss):
    done = regloss("plugins", "check")
    assert done.code == 0
    verdicts = {line.split()[2] for line in done.out.splitlines()}
    assert verdicts <= {"ok", "not"}  # "not installed" for those that need an extra


def test_a_broken_plugin_is_found(regloss, installed):
    installed(
        "stranger",
        {"regloss.solvers": {"strange": "strange_solver:Strange", "odd": "odd_solver:Odd"}},
        {"strange_solver": "import nowhere", "odd_solver": "class Odd: pass"},
    )
    listed = regloss("plugins", "list", "--kind", "solver")
    assert listed.code == 0  # nothing is imported
    assert "strange " in listed.out
    done = regloss("plugins", "check")
    assert done.code == 1
    verdicts = {line.split()[1]: line for line in done.out.splitlines()}
    assert "BROKEN" in verdicts["stranger:strange"]
    assert "No module named 'nowhere'" in verdicts["stranger:strange"]
    assert "BROKEN" in verdicts["stranger:odd"]
    assert "not a class derived from" in verdicts["stranger:odd"]
    assert verdicts["regloss:alpha-expansion"].endswith("ok")
    shown = regloss("plugins", "show", "strange")
    assert (shown.code, "cannot be imported" in shown.err) == (2, True)


def test_a_plugin_may_add_commands(regloss, monkeypatch):
    class Plugin:
        @hookimpl
        def regloss_commands(self, app):
            @app.command("greet")
            def greet(name: str):
                """Say hello."""
                print(f"hello {name}")

    from regloss_cli.main import app

    before = list(app.registered_commands)
    hooks.manager().register(Plugin(), name="greeter")
    try:
        assert regloss("greet", "you").out == "hello you\n"
        assert "greet" in regloss("--help").out
    finally:
        hooks.manager().unregister(name="greeter")
        app.registered_commands[:] = before
    assert regloss("greet", "you").code == 2


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "segment", "demo", "plugins"])
def test_every_command_has_help(regloss, command):
    done = regloss(command, "--help")
    assert done.code == 0
    assert "Usage: regloss" in done.out
