"""The progress bars of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int, done: int, quiet: bool) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A progress bar over steps, say, with the last losses and the time left."""
    if quiet:
        yield lambda step, values: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    # Beside the results, which go to standard output and may be piped.
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=done, values="")

        def advance(step: int, values: Mapping[str, float]) -> None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            progress.update(task, completed=step, values=text)

        yield advance
