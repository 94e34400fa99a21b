"""What the pages print is true: code runs, configurations parse, commands, links and settings exist.

Code blocks of one page share a namespace and run in their order, in an empty folder. A block whose first line is a
comment that names a file, ``# ddp.py``, is a script of its own, started with ``torchrun``.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import matplotlib.pyplot as plt
import pytest
import torch
import typer
from components_table import completed, heading
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from regloss import hooks, registry
from regloss.errors import MissingDependency
from regloss.forms import Form
from regloss.training.config import Config, build_layer, build_proposals, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALL = [path for path in sorted(DOCS.rglob("*.md")) if not {"build", "__pycache__", ".pytest_cache"} & set(path.parts)]
EXPERIMENTS = [page for page in ALL if page.parent.name == "experiments"]  # whose code takes hours
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
    *(page for page in ALL if page not in EXPERIMENTS),
]
LINKED = [*PAGES, *EXPERIMENTS, ROOT / "CHANGELOG.md"]
NAMES = {page: page.relative_to(ROOT).as_posix() for page in LINKED}

AS_NOTEBOOK = {DOCS / "start" / "first-training.md"}
"""Pages whose code goes on from their commands: the test of the notebooks runs both."""

NEEDS = {
    "docs/integrations/lightning.md": ["lightning"],
    "docs/integrations/monai.md": ["monai", "ignite"],
    "docs/integrations/transformers.md": ["transformers", "accelerate"],
    "docs/integrations/nnunet.md": ["nnunetv2"],
    "docs/integrations/export.md": ["onnx", "onnxscript", "onnxruntime"],
    "docs/integrations/loggers.md": ["wandb", "mlflow"],
}
"""Packages without which the code of a page is not run."""

APART = {"docs/integrations/nnunet.md"}
"""Pages whose code has a process of its own: nnU-Net learns its folders from the environment as it is imported."""

pages = pytest.mark.parametrize("page", PAGES, ids=NAMES.get)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the page, the line of its first line (from 1), and its text."""

    language: str
    page: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{NAMES[self.page]}:{self.line}"

    @property
    def script(self) -> str | None:
        """The file that the block is, if it says so."""
        found = re.match(r"# ([\w-]+\.py)\b", self.text)
        return found[1] if found else None


def blocks(page: Path, *languages: str) -> list[Block]:
    found = []
    inside: tuple[str, int] | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if inside is None:
            inside = (line[3:].strip(), number + 1)
            continue
        language, first = inside
        inside = None
        if language in languages:
            found.append(Block(language, page, first, "\n".join(lines[first - 1 : number - 1]) + "\n"))
    assert inside is None, f"{NAMES[page]}: the block that begins at line {inside[1] - 1} does not end"
    return found


# -- Code --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what a page registers by hand is forgotten, as is the state of the random numbers.

    So is what it puts into the environment; its figures are closed.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_by_hand", {})
    environment = dict(os.environ)
    with torch.random.fork_rng(devices=[]):
        yield tmp_path
    os.environ.clear()
    os.environ.update(environment)
    plt.close("all")


def _with_code(page: Path) -> Any:
    """A page to run; those that solve and draw at length are slow."""
    long = page.parent.name in ("methods", "start") or page.name == "choose.md"
    missing = [name for name in NEEDS.get(NAMES[page], ()) if importlib.util.find_spec(name) is None]
    marks = [pytest.mark.slow] if long else []
    marks += [pytest.mark.skip(reason=f"needs {', '.join(missing)}")] if missing else []
    # What these frameworks say of the machine, of torch and of each other.
    marks += [pytest.mark.filterwarnings("default")] if NAMES[page] in NEEDS else []
    return pytest.param(page, id=NAMES.get(page), marks=marks)


@pytest.mark.parametrize("page", [_with_code(page) for page in PAGES if page not in AS_NOTEBOOK])
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    if NAMES[page] in APART:
        code = "\n".join(block.text for block in blocks(page, "python"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python", "pycon"):
        if block.script is not None:
            continue
        if block.language == "pycon":
            parsed = doctest.DocTestParser().get_doctest(block.text, namespace, block.place, block.place, block.line)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            report: list[str] = []
            runner.run(parsed, out=report.append, clear_globs=False)
            assert runner.failures == 0, "".join(report)
            namespace.update(parsed.globs)
        else:
            # Blank lines in front give tracebacks the page's own line numbers.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


SCRIPTS = [block for page in PAGES for block in blocks(page, "python") if block.script is not None]


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.place)
def test_scripts_run_in_two_processes(block: Block, tmp_path: Path) -> None:
    assert block.script is not None
    (tmp_path / block.script).write_text(block.text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", block.script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


# -- Configurations ----------------------------------------------------------------------------------------------------

OUTPUT = {"output": "runs/x"}
SMALLEST: dict[str, dict[str, Any]] = {
    "data": {"dataset": "sample"},
    "network": {"name": "unet"},
    "training": {"epochs": 1},
}


@pages
def test_toml_blocks_parse(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are checked as `regloss train` does; parts of one are put into the smallest that there is."""
    monkeypatch.syspath_prepend(DOCS / "writing-a-plugin")
    for kind, name, module, cls in (  # as if the example were installed
        ("regularizer", "geodesic-length", "length", "GeodesicLength"),
        ("layer", "geodesic-votes", "votes", "GeodesicVotes"),
    ):
        registry.register(kind, name)(getattr(importlib.import_module(f"regloss_geodesic.{module}"), cls))
    for block in blocks(page, "toml"):
        table = tomllib.loads(block.text)
        if not set(table) <= {name.replace("_", "-") for name in Config.model_fields}:
            continue  # a split, class names, a pyproject.toml
        if "output" not in table:
            table = (
                {name: {**part, **table.get(name, {})} for name, part in SMALLEST.items()}
                | OUTPUT
                | {name: part for name, part in table.items() if name not in SMALLEST}
            )
        config = parse(table, block.place)
        build_layer(config.layer, classes=2)
        build_proposals(config.data.proposals)


def test_the_first_training_has_a_complete_configuration() -> None:
    assert any("output" in tomllib.loads(block.text) for block in blocks(DOCS / "start" / "first-training.md", "toml"))


# -- Commands ----------------------------------------------------------------------------------------------------------


def application() -> Any:
    from regloss_cli.main import app

    return typer.main.get_command(app)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it."""

    def below(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, f"{words} {name}")
            else:
                yield f"{words} {name}", command

    yield from below(application(), "regloss")


def calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Calls of regloss in shell blocks: where, and the words behind "regloss"."""
    for block in blocks(page, "sh"):
        for offset, line in enumerate(block.text.replace("\\\n", " ").splitlines()):
            words = shlex.split(line, comments=True)
            if words and words[0] == "regloss":
                yield f"{block.place} + {offset}", words[1:]


@pages
def test_printed_commands_exist(page: Path, workplace: Path) -> None:
    """Commands, options and the number of arguments are what the program takes; nothing is executed."""
    for place, words in calls(page):
        command, name = application(), "regloss"
        while words and words[0] in getattr(command, "commands", {}):
            name = words.pop(0)
            command = command.commands[name]
        try:
            command.make_context(name, words, resilient_parsing=False)
        except (typer.Exit, SystemExit):
            assert "--help" in words or "--version" in words, place
        except Exception as error:
            raise AssertionError(f"{place}: regloss does not take this: {error}") from error


def section(page: Path, heading: str, within: str | None = None) -> str:
    """Text below a heading, up to the next one of the same or a higher level; the one ``within`` another's text."""
    lines = (page.read_text(encoding="utf-8") if within is None else section(page, within)).splitlines()
    start = next((number for number, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(heading)}", line)), None)
    assert start is not None, f"{NAMES[page]} has no heading {heading!r}"
    level = lines[start].index(" ")
    end = next(
        (n for n, line in enumerate(lines[start + 1 :], start + 1) if re.match(rf"#{{1,{level}}} ", line)), len(lines)
    )
    return "\n".join(lines[start:end])


COMMAND_LINE = DOCS / "guide" / "command-line.md"


def test_every_command_and_option_is_in_the_guide() -> None:
    for name, command in commands():
        text = section(COMMAND_LINE, f"`{name}`")
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert f"`{option}" in text, f"{name} {option} is not explained in {NAMES[COMMAND_LINE]}"


def test_every_variable_and_every_kind_is_in_the_guide() -> None:
    sources = [path for folder in ("regloss", "plugins", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {name for path in sources for name in re.findall(r"\bREGLOSS_[A-Z]+\b", path.read_text(encoding="utf-8"))}
    assert found
    text = section(COMMAND_LINE, "Environment")
    assert not {name for name in found if f"| `{name}` |" not in text}
    (kinds,) = re.findall(r"only this kind: (.*) \|", section(COMMAND_LINE, "`regloss plugins list`"))
    assert re.split(", | or ", kinds) == list(registry.KINDS)


# -- References: each setting with its default -------------------------------------------------------------------------


def rows(text: str) -> dict[str, str]:
    """The first two cells of each row of a settings table: name and default, without their quotes."""
    found = re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", text, flags=re.MULTILINE)
    return {name: default.strip() for name, default in found}


def check_rows(text: str, expected: dict[str, Any], where: str) -> None:
    """``expected`` holds each setting's default; `PydanticUndefined` for none, `None` for "absent"."""
    documented = rows(text)
    assert list(documented) == list(expected), f"the settings of {where} are {list(expected)}"
    for name, default in expected.items():
        shown = documented[name]
        if default is PydanticUndefined:
            assert shown == "required", f"{where}, {name}: it has no default"
        elif default is None:
            assert shown == "absent", f"{where}, {name}: by default it is absent"
        else:
            value = tomllib.loads(f"value = {shown.strip('`')}")["value"]
            assert value == default, f"{where}, {name}: the default is {default!r}"


def plain(value: Any) -> Any:
    """As TOML would give it: a component as a table with its name and the settings that are not its defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = type(value)()
        changed = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"name": registry.name_of(value)} | {k: v for k, v in changed.items() if v != getattr(own, k)}
    return list(value) if isinstance(value, tuple) else value


def models(annotation: Any) -> dict[type[BaseModel], None]:
    """The model of a subsection, which may be optional."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation: None}
    return {model: None for part in get_args(annotation) for model in models(part)}


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """Settings of a section, without its subsections."""
    found = {}
    for name, field in model.model_fields.items():
        if not models(field.annotation):
            found[name.replace("_", "-")] = plain(field.get_default(call_default_factory=True))
    return found


def sections(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section by its heading."""
    for name, field in model.model_fields.items():
        full = f"{prefix}{name.replace('_', '-')}"
        for subsection in models(field.annotation):
            yield f"`[{full}]`", subsection
            yield from sections(subsection, f"{full}.")


def test_every_configuration_key_is_in_the_guide_with_its_default() -> None:
    check_rows(section(COMMAND_LINE, "Top level"), fields(Config), "the top level")
    for name, model in sections():
        check_rows(section(COMMAND_LINE, name), fields(model), name)


COMPONENTS = DOCS / "guide" / "components.md"
OWN = [c for kind in registry.KINDS for c in registry.components(kind) if c.distribution == "regloss"]


def of_component(component: registry.Component) -> str:
    """Its text in the guide; components of two kinds may have one name."""
    return section(
        COMPONENTS,
        f"`{component.name}`",
        {"dataset": "Data sets"}.get(component.kind, component.kind.replace("-", " ").capitalize() + "s"),
    )


@pytest.mark.parametrize("component", OWN, ids=lambda component: f"{component.kind}-{component.name}")
def test_every_setting_of_every_component_is_in_the_guide_with_its_default(component: registry.Component) -> None:
    try:
        cls = registry.load(component)
    except MissingDependency as missing:
        pytest.skip(str(missing))
    given = {"network": ("in_channels", "classes"), "layer": ("classes",)}.get(component.kind, ())  # by the data
    defaults = {name: parameter.default for name, parameter in registry.settings(cls).items() if name not in given}
    expected = {
        name.replace("_", "-"): PydanticUndefined if default is inspect.Parameter.empty else plain(default)
        for name, default in defaults.items()
    }
    text = of_component(component)
    check_rows(text, expected, f"the {component.kind} {component.name}")
    for preset in getattr(cls, "presets", {}):
        assert f"`{preset}`" in text, f"the preset {preset} of {component.name} is not explained"


NEEDED: dict[str, dict[str, Any]] = {"volume": {"volumes": (10.0, 10.0)}}
"""Settings of regularizers that cannot be made by default ones alone."""


@pytest.mark.parametrize("component", [c for c in OWN if c.kind in ("regularizer", "solver")], ids=lambda c: c.name)
def test_forms_of_every_regularizer_and_solver_are_in_the_guide(component: registry.Component) -> None:
    """Those that it has with its default settings; a text may name others, for other settings."""
    try:
        cls: Any = registry.load(component)
    except MissingDependency as missing:
        pytest.skip(str(missing))
    if component.kind == "solver":
        label, forms = "Accepts", cls.accepts
    else:
        label, forms = "Forms", cls(**NEEDED.get(component.name, {})).forms
    sentence = re.search(rf"\b{label}:\s([^.]*)\.", of_component(component))
    assert sentence is not None, f"the section of {component.name} has no sentence {label}: ..."
    shown = re.findall(r"`(\w+)`", sentence[1])
    assert {form.__name__ for form in forms} <= set(shown)
    assert set(shown) <= {form.__name__ for form in subclasses(Form)}


def subclasses(cls: type) -> Iterator[type]:
    """All of them, at any depth."""
    child: type
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_component_is_in_the_concepts() -> None:
    text = section(DOCS / "guide" / "concepts.md", "What is inside")
    for component in OWN:
        (row,) = re.findall(rf"^\| {heading(component.kind)} \| .*$", text, flags=re.MULTILINE)
        assert f"`{component.name}`" in row, f"{component.kind} {component.name} is missing: run `make stub`"


def test_the_table_of_components_is_completed() -> None:
    text = "| solvers | `one` (fast), `two`; optional: `three` |\n| networks | `net`: all |\n"
    assert completed(text, "solver", ["one", "three", "two"]) == text
    found = completed(text, "solver", ["new", "one", "newer"])
    assert found == text.replace("`two`;", "`two`, `new`, `newer`;")
    assert "`net`, `other`: all" in completed(text, "network", ["other"])
    with pytest.raises(ValueError, match=r"no row that begins with .*data sets"):
        completed(text, "dataset", ["folder"])


METHOD_PAGES = {
    DOCS / "methods" / f"{component.name}{'-layer' * (component.kind == 'layer')}.md": component
    for component in OWN
    if component.kind in ("regularizer", "outer-loop", "layer")
}


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_every_prior_loop_and_layer_has_a_page(page: Path) -> None:
    component = METHOD_PAGES[page]
    assert page.is_file(), f"the {component.kind} {component.name} has no page {page.relative_to(ROOT)}"
    for part in ("Problem", "Picture", "Settings", "When to use it", "Guarantee", "Source"):
        section(page, part)
    anchor = re.search(r"components\.md#([\w-]+)\b", section(page, "Settings"))
    assert anchor is not None, "the settings are to lead to the table of all of them"
    assert anchor[1].startswith(component.name) or anchor[1] == "layers"  # "dense-crf" is a regularizer's, too
    assert re.search(r"!\[[^\]]+\]\([^)]+\.png\)", page.read_text(encoding="utf-8")), "it has no picture"
    row = re.compile(rf"^\| \[{component.name}\]\({page.name}\) \|", flags=re.MULTILINE)
    assert row.search((DOCS / "methods" / "index.md").read_text(encoding="utf-8")), "it is not in the index of methods"


WITH_SETTINGS = {
    page: component
    for component in OWN
    for page in (DOCS / "methods" / f"{component.name}.md",)
    if METHOD_PAGES.get(page, component) == component and page.is_file() and rows(section(page, "Settings"))
}


@pytest.mark.parametrize("page", WITH_SETTINGS, ids=lambda page: page.stem)
def test_settings_that_a_method_page_repeats_are_the_components(page: Path) -> None:
    """Defaults that are no code are said in words there, a schedule for instance."""
    component = WITH_SETTINGS[page]
    known = {
        name.replace("_", "-"): setting.default for name, setting in registry.settings(registry.load(component)).items()
    }
    for name, shown in rows(section(page, "Settings")).items():
        assert name in known, f"{component.name} has no setting {name}"
        if shown.startswith("`"):
            assert tomllib.loads(f"value = {shown.strip('`')}")["value"] == plain(known[name]), name


def test_every_prior_loop_and_layer_can_be_chosen() -> None:
    text = (DOCS / "guide" / "choose.md").read_text(encoding="utf-8")
    for page in METHOD_PAGES:
        assert f"](../methods/{page.name})" in text, f"{page.stem} is not on the page by which one chooses"


def test_every_picture_is_in_the_gallery_with_a_command() -> None:
    """The command is that of a script which exists, for a page of that name."""
    gallery = DOCS / "gallery.md"
    text = gallery.read_text(encoding="utf-8")
    shown = {(DOCS / target).resolve() for target in re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", text)}
    assert shown == {path for path in DOCS.rglob("*.png") if "build" not in path.parts}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        (command,) = re.findall(r"`python ([\w/-]+\.py)( [^`]*)?`", part)
        assert (ROOT / command[0]).is_file()


def test_every_hook_is_in_the_guide_with_its_arguments() -> None:
    text = (DOCS / "guide" / "plugins.md").read_text(encoding="utf-8")
    for name, hook in inspect.getmembers(hooks.Specification, inspect.isfunction):
        arguments = [argument for argument in inspect.signature(hook).parameters if argument != "self"]
        assert f"`{name}({', '.join(arguments)})`" in text


def test_every_kind_and_suite_is_in_the_guide() -> None:
    from regloss import testing

    text = (DOCS / "guide" / "plugins.md").read_text(encoding="utf-8")
    for kind, description in registry.KINDS.items():
        assert f"`{kind}`" in text
        assert f"`{description.group}`" in text
    for suite in testing.__all__:
        assert f"`{suite}`" in text


# -- Links -------------------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The name that a heading is linked by."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", LINKED, ids=NAMES.get)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{NAMES[page]} links to {target}, which does not exist"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), f"{NAMES[page]} links to {target}, which has no such heading"


@pytest.mark.parametrize("check", [blocks, calls], ids=["blocks", "calls"])
def test_the_guide_is_looked_at(check: Callable[..., Any]) -> None:
    """The checks above find something: a change of style must not switch them off."""
    found = [item for page in PAGES for item in (check(page, "python") if check is blocks else check(page))]
    assert len(found) > 10
