"""The example plugin and the README's loop, in a fresh environment that has regloss as a wheel, not as a checkout."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "writing-a-plugin"

CONFIGURATION = """
output = "run"

[data]
dataset = "folder"
root = "tiny"
split = {train = ["a", "b"], test = ["c"]}
classes = ["background", "square"]

[network]
name = "unet"
levels = 2
channels = 4

[[loss.regularizer]]
name = "geodesic-length"
weight = 2.0
contrast = 0.05

[loss.outer-loop]
name = "trust-region"
update-every = 1

[training]
epochs = 2
batch-size = 2
"""


class Environment:
    """A virtual environment below ``folder``, and a current folder for what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self.call(sys.executable, "-m", "venv", "--without-pip", str(folder / "env"))
        self.scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / "python"
        self.site = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    def call(self, *command: str) -> str:
        """Run a command in ``work``; its standard output."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "REGLOSS_PLUGINS")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, code: str) -> str:
        """Run Python code."""
        return self.call(str(self.python), "-c", code)

    def regloss(self, *arguments: str) -> str:
        """Run the installed command."""
        return self.call(str(self.scripts / "regloss"), *arguments)

    def pip(self, *arguments: str) -> None:
        """Install with this interpreter's pip."""
        check = ("--disable-pip-version-check", "--quiet")
        self.call(sys.executable, "-m", "pip", "--python", str(self.python), "install", *check, *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy, so that nothing is left in the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("regloss", "plugins", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("regloss-*.whl")
    return built


def plugin_copy(folder: Path) -> Path:
    """A copy of the example, for the same reason."""
    return shutil.copytree(EXAMPLE, folder / "plugin", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """regloss from the wheel and the plugin; what they depend on is borrowed from this interpreter's environment."""
    made = Environment(tmp_path_factory.mktemp("fresh"))
    # In a .pth file rather than on PYTHONPATH: .pth files in the borrowed folder are then not read, and those would
    # bring the checkout in.
    borrowed = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (made.site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    made.pip("--no-deps", str(wheel))
    made.pip("--no-deps", "--no-build-isolation", str(plugin_copy(made.folder)))
    return made


def write_folder(root: Path) -> None:
    """Three small images of a bright square, with scribbles and labels."""
    generator = np.random.default_rng(0)
    for folder in ("images", "labels", "scribbles"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate("abc"):
        label = np.zeros((24, 28), dtype=np.uint8)
        label[6 + number : 18, 8 : 20 + number] = 1
        image = 60 + 120 * label + generator.integers(0, 30, label.shape)
        scribble = np.full_like(label, 255)
        scribble[1, 2:-2], scribble[12, 11:16] = 0, 1
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(label).save(root / "labels" / f"{name}.png")
        Image.fromarray(scribble).save(root / "scribbles" / f"{name}.png")


def check_regloss_is_the_wheel(made: Environment) -> None:
    for module in ("regloss", "regloss_plugins", "regloss_cli", "regloss_geodesic"):
        file = Path(made.run(f"import {module}; print({module}.__file__)").strip())
        assert file.is_relative_to(made.site), f"{module} comes from {file}"


def check_training_by_name(made: Environment) -> None:
    """`regloss train` with the plugin's regularizer, which only the plugin's metadata makes known."""
    write_folder(made.work / "tiny")
    (made.work / "plugin.toml").write_text(CONFIGURATION)
    printed = made.regloss("train", "plugin.toml")
    scores = json.loads((made.work / "run" / "scores.json").read_text())
    assert f"mean-iou {scores['test']['mean-iou']:.4f}" in printed
    proposals = np.asarray(Image.open(made.work / "run" / "proposals" / "generation-0001" / "a.png"))
    assert set(np.unique(proposals)) == {0, 1}
    report = (made.work / "run" / "report.html").read_text()
    assert "Boundary length" in report
    assert f"<li>test: {scores['test']['boundary-density']:.2f} pixels of boundary" in report


def check_layer_by_name(made: Environment) -> None:
    """`regloss train` with the plugin's layer behind the network, whose parameter is learnt, logged and saved."""
    changes = [
        "layer.kind=geodesic-votes",
        "layer.weight=0.5",
        "output=layered",
        "loss.outer-loop={name = 'gradient-descent'}",
    ]
    printed = made.regloss("train", "plugin.toml", *(part for change in changes for part in ("--set", change)))
    assert "layer-log-weight" in printed
    config = json.loads((made.work / "layered" / "config.json").read_text())
    assert config["layer"] == {"kind": "geodesic-votes", "weight": 0.5, "contrast": 0.1, "steps": 5}


def check_method_by_name(made: Environment) -> None:
    """`regloss segment` with the plugin's segmenter."""
    image, scribbles = made.work / "tiny" / "images" / "a.png", made.work / "tiny" / "scribbles" / "a.png"
    options = ("--scribbles", str(scribbles), "--method", "nearest-seed:contrast=0.02", "--output", "found")
    printed = made.regloss("segment", str(image), *options)
    assert re.match(r"energy (\S+), lower bound \1; \d+ steps?; solved to optimality\n", printed), printed
    labels = np.asarray(Image.open(made.work / "found" / "labels.png"))
    given, truth = (np.asarray(Image.open(made.work / "tiny" / name / "a.png")) for name in ("scribbles", "labels"))
    np.testing.assert_array_equal(labels[given != 255], given[given != 255])
    assert (labels == truth).mean() > 0.8  # noise lengthens all paths, and below the square nothing is scribbled


def check_own_loop(made: Environment) -> None:
    """The page that README sends people with a loop of their own to."""
    page = (ROOT / "docs" / "start" / "your-loop.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    printed = made.run("\n".join(code))
    accuracies = re.findall(r"accuracy (0\.\d\d)", printed)
    assert accuracies, printed
    assert max(map(float, accuracies)) > 0.6, printed


def test_regloss_comes_from_the_wheel(environment: Environment) -> None:
    check_regloss_is_the_wheel(environment)


def test_the_plugin_is_listed_and_shown(environment: Environment) -> None:
    listed = environment.regloss("plugins", "list", "--kind", "regularizer")
    assert re.search(r"^regularizer +geodesic-length +regloss-geodesic 1\.0$", listed, flags=re.MULTILINE)
    shown = environment.regloss("plugins", "show", "geodesic-length")
    assert "contrast = 0.1" in shown


def test_the_plugin_trains_by_name(environment: Environment) -> None:
    check_training_by_name(environment)


def test_the_plugins_layer_trains_and_its_segmenter_segments_by_name(environment: Environment) -> None:
    if not (environment.work / "tiny").exists():
        write_folder(environment.work / "tiny")
    (environment.work / "plugin.toml").write_text(CONFIGURATION)
    check_layer_by_name(environment)
    check_method_by_name(environment)


@pytest.mark.parametrize(
    ("file", "most"), [("length.py", 40), ("bending.py", 40), ("modes.py", 60), ("votes.py", 60), ("nearest.py", 60)]
)
def test_examples_are_short(file: str, most: int) -> None:
    """Lines of code, without comments, texts and blank lines."""
    tree = ast.parse((EXAMPLE / "regloss_geodesic" / file).read_text())
    texts = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = (EXAMPLE / "regloss_geodesic" / file).read_text().splitlines()
    bare = [line.strip() for number, line in enumerate(lines, 1) if number not in texts]
    code = [line for line in bare if line and not line.startswith("#")]
    assert len(code) <= most, f"{file} has {len(code)} lines of code"


def test_the_plugins_own_tests_pass(environment: Environment) -> None:
    tests = str(environment.folder / "plugin" / "tests")
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", tests)
    printed = environment.call(str(environment.python), "-m", "pytest", *options, tests)
    passed = re.search(r"\b(\d+) passed", printed)
    assert passed is not None, printed
    assert int(passed[1]) >= 45


def test_a_new_plugin_is_written_and_installed(environment: Environment) -> None:
    """`regloss plugins new` finds its templates in the wheel, and what it says to do next works."""
    printed = environment.regloss("plugins", "new", "divergence", "fresh-distance")
    install, show, test = (shlex.split(line) for line in printed.splitlines()[-3:])
    # This environment is not the one on PATH, so its Python is named.
    assert install == [str(environment.python), "-m", "pip", "install", "-e", "regloss-fresh-distance[test]"]
    folder = install[-1].removesuffix("[test]")
    environment.pip("--no-deps", "--no-build-isolation", str(environment.work / folder))  # from no index
    shown = environment.call(*show)
    assert "divergence regloss-fresh-distance:fresh-distance (regloss_fresh_distance.fresh_distance:Fresh" in shown
    printed = environment.call(*test, "-q", "-p", "no:cacheprovider")
    assert re.search(r"\b3\d passed", printed), printed
    environment.run(
        "from pathlib import Path\n"
        "from regloss.registry import KINDS\n"
        "from regloss_cli.scaffold import write_plugin\n"
        "for kind in KINDS: write_plugin(kind, f'any-{kind}', Path('any') / kind)"
    )


def test_a_loop_of_ones_own_runs(environment: Environment) -> None:
    check_own_loop(environment)


@pytest.mark.slow
def test_everything_from_the_index(wheel: Path, tmp_path: Path) -> None:
    """The same in an environment that borrows nothing: all dependencies are downloaded."""
    made = Environment(tmp_path / "fresh")
    made.pip("--constraint", str(ROOT / "constraints.txt"), f"{wheel}[sample]")
    made.pip(str(plugin_copy(made.folder)))
    check_regloss_is_the_wheel(made)
    check_training_by_name(made)
    check_own_loop(made)
