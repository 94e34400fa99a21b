"""``regloss plugins``: what is installed, what it is, whether it works; and the beginning of a new one."""

from __future__ import annotations

import inspect
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from regloss.errors import ReglossError
from regloss.registry import KINDS, Component, components, load, settings

app = typer.Typer(
    help="List, describe and check the installed components, or begin one of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KindOption = Annotated[str | None, typer.Option(help="Only this kind: " + ", ".join(KINDS) + ".")]


def _all(kind: str | None) -> list[Component]:
    return [component for one in ([kind] if kind else KINDS) for component in components(one)]


@app.command("list")
def list_(kind: KindOption = None) -> None:
    """Names of all components by kind, with the distribution that offers them; nothing is imported."""
    for component in _all(kind):
        origin = f"{component.distribution} {component.version}".strip()
        typer.echo(f"{component.kind:13} {component.name:24} {origin}")


@app.command()
def show(name: str, kind: KindOption = None) -> None:
    """What a component is, and its settings with their defaults."""
    found = [component for component in _all(kind) if name in (component.name, component.qualified)]
    if not found:
        known = ", ".join(sorted({component.name for component in _all(kind)}))
        from regloss.errors import UnknownComponent

        raise UnknownComponent(f"There is no component called {name!r}. Known: {known}.")
    for component in found:
        cls = load(component)
        typer.echo(f"{component.kind} {component.qualified} ({component.target})\n")
        typer.echo(inspect.getdoc(cls) or "(no description)")
        typer.echo("\nSettings:")
        for setting, parameter in settings(cls).items():
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            typer.echo(f"  {setting.replace('_', '-')}{default}")
        presets = getattr(cls, "presets", {})
        if presets:
            typer.echo("\nPresets: " + ", ".join(presets))


@app.command()
def check(kind: KindOption = None) -> None:
    """Import every component and say which ones are broken; exit code 1 if any is."""
    broken = 0
    for component in _all(kind):
        try:
            load(component)
            verdict = "ok"
        except ReglossError as error:
            optional = type(error).__name__ == "MissingDependency"
            broken += not optional
            verdict = f"{'not installed' if optional else 'BROKEN'}: {error}"
        typer.echo(f"{component.kind:13} {component.qualified:32} {verdict}")
    if broken:
        raise typer.Exit(1)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="One of " + ", ".join(KINDS) + ".")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the component, in kebab-case: my-prior, say.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to make; must not exist yet. [default: regloss-NAME]"),
    ] = None,
    author: Annotated[
        list[str] | None,
        typer.Option(metavar="AUTHOR", help='For the metadata: "NAME" or "NAME <EMAIL>"; may be repeated.'),
    ] = None,
) -> None:
    """Write a new plugin: a component that works, its tests, and an example, as a package to install."""
    from regloss_cli.scaffold import write_plugin

    plugin, folder = write_plugin(kind, name, output, author or ())
    with_pytest = shlex.quote(f"{folder}[test]")
    typer.echo(f"The {plugin.kind} {plugin.name} and its tests are in {folder}; see its README.md. Next:\n")
    typer.echo(f"{_python()} -m pip install -e {with_pytest}")
    typer.echo(f"{_regloss()} plugins show {plugin.name}")
    typer.echo(f"{_python()} -m pytest {shlex.quote(str(folder / 'tests'))}")


def _python() -> str:
    """How to call the Python of this environment: by name if that finds it, else by its path."""
    return "python" if _is_here("python") else shlex.quote(sys.executable)


def _regloss() -> str:
    """How to call regloss of this environment."""
    return "regloss" if _is_here("regloss") else f"{_python()} -m regloss_cli.main"


def _is_here(program: str) -> bool:
    """Whether the shell finds a program in this environment, and not in another or nowhere."""
    found = shutil.which(program)
    return found is not None and Path(found).absolute().parent == Path(sys.executable).absolute().parent
