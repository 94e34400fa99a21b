"""``regloss plugins new``: for every kind a plugin that works as it is written."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from regloss import registry
from regloss.registry import KINDS
from regloss.training.config import read
from regloss_cli.scaffold import EXAMPLES, Plugin, write_plugin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

kinds = pytest.mark.parametrize("kind", KINDS)


def install(folder: Path) -> None:
    """Metadata beside the package, made of pyproject.toml, as installing would put it somewhere on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, targets in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in targets.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Plugin, Path]]:
    """One plugin of each kind, on nobody's path yet; not to be changed."""
    root = tmp_path_factory.mktemp("plugins")
    made = {kind: write_plugin(kind, f"tiny-{kind}-2", root / kind, ["Ada Lovelace"]) for kind in KINDS}
    for _, folder in made.values():
        install(folder)
    return made


@pytest.fixture
def on_path(plugins, monkeypatch):
    """All of them installed in this process, until the test ends."""
    for _, folder in plugins.values():
        monkeypatch.syspath_prepend(folder)
    registry.refresh()
    yield plugins
    for name in [name for name in sys.modules if name.startswith("regloss_tiny_")]:
        del sys.modules[name]
    monkeypatch.undo()
    importlib.invalidate_caches()
    registry.refresh()


def call(plugins, *command: str, cwd: Path = ROOT) -> str:
    """Run a command in a process that has all plugins installed; what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "REGLOSS_PLUGINS"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(str(folder) for _, folder in plugins.values()),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- What is written ---------------------------------------------------------------------------------------------------


def test_what_is_written_and_printed(regloss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda program: str(Path(sys.executable).with_name(program)))
    done = regloss(
        "plugins", "new", "data-term", "my-loss", "--author", 'Ada "A" Lovelace <ada@host>', "--author", "Bö"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-3:] == [
        "python -m pip install -e 'regloss-my-loss[test]'",
        "regloss plugins show my-loss",
        "python -m pytest regloss-my-loss/tests",
    ]
    folder = tmp_path / "regloss-my-loss"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "example.toml",
        "pyproject.toml",
        "regloss_my_loss/__init__.py",
        "regloss_my_loss/my_loss.py",
        "regloss_my_loss/py.typed",
        "tests/conftest.py",
        "tests/test_my_loss.py",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["authors"] == [{"name": 'Ada "A" Lovelace', "email": "ada@host"}, {"name": "Bö"}]
    assert project["name"] == "regloss-my-loss"
    assert project["entry-points"] == {"regloss.data_terms": {"my-loss": "regloss_my_loss.my_loss:MyLoss"}}
    readme = (folder / "README.md").read_text()
    assert project["optional-dependencies"] == {"test": ["pytest>=8"]}
    for line in (
        'python -m pip install -e ".[test]"',
        "regloss plugins show my-loss",
        "python -m pytest tests",
        "## Licence",
    ):
        assert f"{line}\n" in readme


def test_another_folder(regloss, tmp_path):
    folder = tmp_path / "a b" / "c"
    done = regloss("plugins", "new", "network", "net7", "--output", folder)
    assert done.code == 0
    assert (folder / "regloss_net7" / "net7.py").is_file()
    assert done.out.splitlines()[-3].endswith(f" -m pip install -e '{folder}[test]'")


def test_printed_steps_call_this_environment(regloss, tmp_path, monkeypatch):
    """Not another Python that the shell would find, nor one that it would not find at all."""
    for number, elsewhere in enumerate((None, "/elsewhere/bin/python")):
        monkeypatch.setattr("shutil.which", lambda program, place=elsewhere: place)
        folder = tmp_path / f"net{number}"
        lines = regloss("plugins", "new", "network", f"net{number}", "--output", folder).out.splitlines()[-3:]
        assert [shlex.split(line)[:3] for line in lines] == [
            [sys.executable, "-m", "pip"],
            [sys.executable, "-m", "regloss_cli.main"],
            [sys.executable, "-m", "pytest"],
        ]


@kinds
def test_nothing_of_the_templates_shines_through(kind, plugins):
    plugin, folder = plugins[kind]
    for path in folder.rglob("*"):
        assert "component" not in path.name
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text(encoding="utf-8")
            assert not re.search("[Mm]y.?[Cc]omponent|KIND|GROUP|regloss_cli|template", text), path
    assert f"class {plugin.cls}(" in (folder / plugin.package / f"{plugin.module}.py").read_text()


def test_the_template_names_can_be_used(regloss, tmp_path):
    done = regloss("plugins", "new", "solver", "my-component", "--output", tmp_path / "new")
    assert done.code == 0
    assert "class MyComponent(Solver)" in (tmp_path / "new" / "regloss_my_component" / "my_component.py").read_text()


# -- It works ----------------------------------------------------------------------------------------------------------


@kinds
def test_it_is_listed_shown_and_found_to_work(kind, on_path, regloss):
    plugin, _ = on_path[kind]
    listed = regloss("plugins", "list", "--kind", kind).out
    assert re.search(rf"^{kind} +{plugin.name} +{plugin.distribution} 0\.1\.0$", listed, flags=re.MULTILINE)
    checked = regloss("plugins", "check", "--kind", kind)
    assert re.search(rf"^{kind} +{plugin.distribution}:{plugin.name} +ok$", checked.out, flags=re.MULTILINE)
    shown = regloss("plugins", "show", plugin.name)
    assert shown.code == 0
    assert f"{kind} {plugin.distribution}:{plugin.name} ({plugin.package}.{plugin.module}:{plugin.cls})" in shown.out
    assert "(no description)" not in shown.out


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in EXAMPLES])
def test_its_example_is_a_configuration_that_names_it(kind, on_path):
    plugin, folder = on_path[kind]
    config = read(folder / "example.toml")
    assert plugin.name in str(config.dump())
    assert config.output == f"runs/{plugin.name}"


def test_the_example_of_a_segmenter_segments(plugins):
    pytest.importorskip("skimage", reason="the photograph comes with scikit-image")
    _, folder = plugins["segmenter"]
    readme = (folder / "README.md").read_text()
    assert "\npython example.py\n" in readme
    assert "example.toml" not in readme
    printed = call(plugins, sys.executable, str(folder / "example.py"))
    assert re.match(r"energy \d+.*\npixels per class: \[\d+, \d+, \d+\]$", printed.strip()), printed


def test_its_own_tests_pass(plugins, tmp_path):
    """Of all kinds in one process; warnings are errors."""
    report = tmp_path / "report.xml"
    folders = [str(folder / "tests") for _, folder in plugins.values()]
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), f"--junit-xml={report}")
    call(plugins, sys.executable, "-m", "pytest", *options, *folders, cwd=tmp_path)
    cases = ElementTree.parse(report).getroot().iter("testcase")
    passed = Counter(case.attrib["classname"] for case in cases if case.find("skipped") is None)
    for plugin, _ in plugins.values():
        inherited, own = (
            sum(count for name, count in passed.items() if name.endswith(end))
            for end in (f"test_{plugin.module}.Test{plugin.cls}", f"test_{plugin.module}")
        )
        assert inherited >= 8, plugin.kind
        assert own >= 3, plugin.kind


def test_its_code_is_tidy(plugins):
    """By this project's rules, and by its own."""
    folders = [str(folder) for _, folder in plugins.values()]
    packages = [plugin.package for plugin, _ in plugins.values()]
    ruff = (sys.executable, "-m", "ruff")
    alike = f"lint.isort.known-first-party={['regloss', *packages]}"  # as here, where all of regloss is
    ours = ("--config", str(ROOT / "pyproject.toml"), "--no-cache")
    call(plugins, *ruff, "check", *ours, "--config", alike, "--per-file-ignores", "test_*.py:D", *folders)
    call(plugins, *ruff, "check", "--no-cache", *folders)
    call(plugins, *ruff, "format", "--check", "--no-cache", *folders)


@pytest.mark.slow
def test_its_types_are_right(plugins, tmp_path):
    sources = [str(folder / part) for plugin, folder in plugins.values() for part in (plugin.package,)]
    command = (sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"))
    call(plugins, *command, "--cache-dir", str(tmp_path / "cache"), *sources)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in EXAMPLES])
def test_its_example_trains(kind, plugins, tmp_path):
    _, folder = plugins[kind]
    printed = call(
        plugins, sys.executable, "-m", "regloss_cli.main", "train", str(folder / "example.toml"), cwd=tmp_path
    )
    found = re.match(r"test: mean-iou (0\.\d+)", printed)
    assert found is not None, printed
    assert (tmp_path / "runs" / plugins[kind][0].name / "report.html").is_file()


# -- Bad input ---------------------------------------------------------------------------------------------------------

BAD = {
    "kind": (("prior", "x-y"), r"no kind of component called 'prior'. The kinds are: regularizer, solver, .*, dataset"),
    "capitals": (("solver", "MyCut2"), r"kebab-case.*got 'MyCut2'. 'my-cut2' would do"),
    "underscores": (("solver", "my_cut"), r"kebab-case.*got 'my_cut'. 'my-cut' would do"),
    "two hyphens": (("solver", "my--cut"), r"kebab-case.*'my-cut' would do"),
    "a digit first": (("solver", "3d-cut"), r"kebab-case.*'d-cut' would do"),
    "nothing": (("solver", ""), r"kebab-case.*'my-prior' would do"),
    "a path": (("solver", "../cut"), r"kebab-case.*'cut' would do"),
    "a line": (("solver", "cut\n"), r"kebab-case"),
    "keyword": (("network", "lambda"), r"'lambda' cannot be used: lambda is a keyword of Python. Choose .*my-lambda"),
    "keyword as a class": (("network", "none"), r"'none' cannot be used: None is a keyword"),
    "tests": (("network", "test-net"), r"pytest would take the class TestNet for a test. Choose another, my-test-net"),
    "used": (("solver", "pdhg"), r"a solver called 'pdhg' already, of distribution regloss \S+ \(regloss_plugins"),
    "used by another kind": (("solver", "tv"), r"a regularizer called 'tv' already, of distribution regloss "),
    "used by its code": (("solver", "grid-graph"), r"needs something else called GridGraph. Choose .*my-grid-graph"),
    "used by its tests": (("dataset", "dataset-conformance"), r"needs something else called DatasetConformance"),
    "package": (
        ("solver", "plugins"),
        r"there is a Python package regloss_plugins already. Choose another, my-plugins",
    ),
    "author": (("solver", "my-cut", "--author", "<ada@host>"), r'"NAME" or "NAME <EMAIL>"; got \'<ada@host>\''),
    "empty author": (("solver", "my-cut", "--author", " "), r'"NAME" or "NAME <EMAIL>"'),
    "no email": (("solver", "my-cut", "--author", "Ada <home>"), r'"NAME" or "NAME <EMAIL>"'),
}


@pytest.mark.parametrize(("arguments", "expected"), BAD.values(), ids=BAD)
def test_bad_input(arguments, expected, regloss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = regloss("plugins", "new", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert re.search(expected, done.err), done.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_use_by_a_plugin(installed, regloss, tmp_path):
    installed("stranger", {"regloss.solvers": {"strange-cut": "strange:Cut"}}, {"regloss_stranger": ""})
    for name, expected in (
        ("strange-cut", "a solver called 'strange-cut' already, of distribution stranger 1.0 (strange:Cut)"),
        ("stranger", "there is a Python package regloss_stranger already"),
    ):
        done = regloss("plugins", "new", "solver", name, "--output", tmp_path / "new")
        assert done.code == 2
        assert expected in done.err
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("there", ["a file", "an empty folder", "a folder", "a dead link"])
def test_what_exists_is_never_overwritten(there, regloss, tmp_path):
    target = tmp_path / "mine"
    if there == "a file":
        target.write_text("mine")
    elif there == "a dead link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if there == "a folder":
            (target / "pyproject.toml").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = regloss("plugins", "new", "solver", "my-cut", "--output", target)
    assert (done.code, done.out) == (2, "")
    assert f"{target} exists already, and is left as it is. Name another folder with --output." in done.err
    assert sorted(tmp_path.rglob("*")) == before
    if there == "a folder":
        assert (target / "pyproject.toml").read_text() == "mine"


def test_a_place_that_cannot_be_written(regloss, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    done = regloss("plugins", "new", "solver", "my-cut", "--output", tmp_path / "file" / "deep" / "new")
    assert done.code == 2
    assert f"{tmp_path / 'file'} is not a folder that can be written to. Name another with --output." in done.err
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write everywhere
    done = regloss("plugins", "new", "solver", "my-cut", "--output", tmp_path / "new")
    assert done.code == 2
    assert f"{tmp_path} is not a folder that can be written to" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing_behind(regloss, tmp_path, monkeypatch):
    write, left = Path.write_text, [3]

    def until_full(path, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", until_full)
    done = regloss("plugins", "new", "solver", "my-cut", "--output", tmp_path / "new")
    assert (done.code, done.out) == (2, "")
    assert "No space left on device" in done.err
    assert left[0] < 0
    assert list(tmp_path.iterdir()) == []
