"""Hooks: what many plugins may do at once. Components (one by name) are in `regloss.registry`.

A plugin implements any of the functions below with ``@regloss.hooks.hookimpl`` in a module that its distribution names
under the entry-point group ``regloss``.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import pluggy

from regloss.registry import admitted_entry_points

if TYPE_CHECKING:
    from pathlib import Path

    import typer

GROUP = "regloss"

hookspec = pluggy.HookspecMarker("regloss")
hookimpl = pluggy.HookimplMarker("regloss")


class Specification:
    """The hooks that exist."""

    @hookspec
    def regloss_commands(self, app: typer.Typer) -> None:
        """Add commands to the command line.

        Called at every start of it, so import nothing heavy at the top of the plugin's module.

        Args:
            app: the typer application; use ``@app.command()``.
        """

    @hookspec
    def regloss_start(self, folder: Path) -> None:
        """Refuse a training that cannot go well, by an error, on the main process, before it writes anything.

        Args:
            folder: the run's output folder, which need not exist.

        Raises:
            UsageError: in one sentence with what was asked for and the way out; the training ends with it.
        """

    @hookspec
    def regloss_step(self, step: int, epoch: int, values: dict[str, float], folder: Path) -> None:
        """See the numbers of a training step, on the main process, whenever they are logged.

        Args:
            step: optimizer steps done.
            epoch: current epoch, from 0.
            values: learning rate, loss and its terms by name.
            folder: the run's output folder.
        """

    @hookspec
    def regloss_epoch(self, epoch: int, values: dict[str, float], folder: Path) -> None:
        """See the numbers of an epoch: mean losses, seconds, proposal energies, scores.

        Args:
            epoch: the epoch that ended, from 0.
            values: numbers by name.
            folder: the run's output folder.
        """

    @hookspec
    def regloss_end(self, folder: Path) -> None:
        """Close what the steps and epochs of a training have opened; it has ended, be it with an error.

        Called on the main process, after the report.

        Args:
            folder: the run's output folder.
        """

    @hookspec
    def regloss_report(self, folder: Path, scores: dict[str, Any]) -> list[tuple[str, str]]:  # type: ignore[empty-body]
        """Add sections to the report of a run.

        Args:
            folder: the run's output folder; its log/ holds the curves.
            scores: scores by subset.

        Returns:
            (title, HTML) pairs.
        """


class BrokenHook(UserWarning):
    """A plugin's hooks cannot be imported; the rest goes on without it."""


_manager: pluggy.PluginManager | None = None


def manager() -> pluggy.PluginManager:
    """The plugin manager, with every admitted plugin's hooks; made at the first call.

    pluggy's own loader stops at the first plugin that fails to import; here each failure is a warning that names the
    plugin, its distribution and the cause, and the others are loaded.
    """
    global _manager
    if _manager is None:
        _manager = pluggy.PluginManager("regloss")
        _manager.add_hookspecs(Specification)
        for entry, distribution, _ in admitted_entry_points(GROUP):
            try:
                module = importlib.import_module(entry.value.partition(":")[0])
                _manager.register(module, name=f"{distribution}:{entry.name}")
            except (
                Exception,
                SystemExit,
            ) as cause:  # a stranger's module may raise anything; it is named, and breaks nothing else
                warnings.warn(
                    f"The hooks {entry.name!r} of distribution {distribution!r} ({entry.value}) cannot be loaded and "
                    f"are left out: {type(cause).__name__}: {cause}",
                    BrokenHook,
                    stacklevel=2,
                )
    return _manager
