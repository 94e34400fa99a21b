"""What is in the samples of a data set: found out once before a training or an evaluation, and remembered.

A set of a million images is read for the better part of an hour before its training can be known to be sound. What is
asked of a sample fits into a line, so it is kept, and read again only if one of the sample's files has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

import regloss
from regloss.dataset import IGNORE
from regloss.errors import FailedWrite, ReglossError
from regloss.io.outputs import replace_file, writing
from regloss.training.processes import end_with_parent, received
from regloss.training.progress import progress_bar
from regloss.training.sample_reader import SampleReader, supervision_of

PATIENCE = 2.0
"""Seconds of reading before other processes, which take about as long to start, and a progress bar."""

_FORMAT = 1  # of the files; those of another are not read
_CHUNK = 16  # samples that a process reads before it tells of them


@dataclass(frozen=True)
class Facts:
    """What is asked of a sample.

    Attributes:
        classes: those that the labels of the training hold.
        ignored: whether the dense labels hold 255.
        scribbled: fraction of the pixels that scribbles label, before they are shortened.
        spacing: in mm; None = not known.
    """

    classes: tuple[int, ...]
    ignored: bool
    scribbled: float
    spacing: tuple[float, ...] | None


def find_facts(reader: SampleReader, sample_id: str, supervision: str) -> Facts:
    """Read and check a sample; raises what `SampleReader.load` and `supervision_of` do."""
    sample = reader.load(sample_id)
    classes = np.unique(supervision_of(sample, supervision)).tolist()
    return Facts(
        tuple(label for label in classes if label != IGNORE),
        sample.label is not None and bool((sample.label == IGNORE).any()),
        reader.scribbled.get(sample_id, 0.0),
        sample.spacing,
    )


class Survey:
    """Facts of samples, each of which is read once.

    Args:
        reader: reads them.
        workers: processes that do, where there are many; 0 = this one does.
        memory: where facts are kept; None = nowhere.
        quiet: no progress bar.

    Attributes:
        classes: names of the data set's classes.
        notes: sentences for the reader.
    """

    def __init__(
        self, reader: SampleReader, *, workers: int = 0, memory: Memory | None = None, quiet: bool = True
    ) -> None:
        self.reader = reader
        self.classes = reader.source.classes
        self.workers = workers
        self.memory = memory
        self.quiet = quiet
        self.notes: list[str] = []
        self._found: dict[tuple[str, str], Facts] = {}

    def __call__(self, ids: Sequence[str], supervision: str) -> dict[str, Facts]:
        """Facts of samples, for a training that sees "scribbles", "labels" or "none".

        Raises:
            UsageError: of the first sample that cannot be read, breaks the contract, or has no labels of that kind.
            ReglossError: a process that reads was killed.
        """
        keys = {sample_id: (sample_id, self._seen(sample_id, supervision)) for sample_id in ids}
        unknown = [key for key in keys.values() if key not in self._found]
        if self.memory is not None:
            self._found |= self.memory.recall(unknown)
            unknown = [key for key in unknown if key not in self._found]
        try:
            for key, facts in zip(unknown, self._read(unknown), strict=True):
                self._found[key] = facts
        finally:
            # An interrupted survey, or one that ends at a damaged file, goes on from here the next time.
            if self.memory is not None and unknown:
                try:
                    self.memory.keep({key: self._found[key] for key in unknown if key in self._found})
                except FailedWrite as error:
                    self.notes.append(f"Samples will be read again the next time: {error}")
        return {sample_id: self._found[key] for sample_id, key in keys.items()}

    def _seen(self, sample_id: str, supervision: str) -> str:
        return "none" if sample_id in self.reader.unlabelled else supervision

    def _read(self, keys: Sequence[tuple[str, str]]) -> Iterator[Facts]:
        began, done = time.monotonic(), 0
        while done < len(keys) and time.monotonic() - began < PATIENCE:
            yield find_facts(self.reader, *keys[done])
            done += 1
        rest = keys[done:]
        if not rest:
            return
        with progress_bar("samples", len(keys), done, self.quiet) as advance:
            for facts in self._read_by_processes(rest) if self.workers else self._read_here(rest):
                done += 1
                advance(done, {})
                yield facts

    def _read_here(self, keys: Sequence[tuple[str, str]]) -> Iterator[Facts]:
        return (find_facts(self.reader, *key) for key in keys)

    def _read_by_processes(self, keys: Sequence[tuple[str, str]]) -> Iterator[Facts]:
        loader = DataLoader(
            _Surveyed(self.reader, keys),
            batch_size=_CHUNK,
            num_workers=self.workers,
            collate_fn=_as_they_are,
            multiprocessing_context="forkserver",  # as the loader of the training
            worker_init_fn=_begin,
        )
        for chunk in received(loader, "begin again"):
            yield from chunk


class _Surveyed(Dataset[Any]):
    """Facts by place, or what went wrong with the first of them that cannot be read."""

    def __init__(self, reader: SampleReader, keys: Sequence[tuple[str, str]]) -> None:
        self.reader = reader
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitems__(self, places: Sequence[int]) -> list[Facts] | Exception:
        """Those of a chunk."""
        try:
            return [find_facts(self.reader, *self.keys[place]) for place in places]
        except (ReglossError, OSError) as error:
            return error


def _as_they_are(chunk: Any) -> Any:
    return chunk


def _begin(worker: int) -> None:
    end_with_parent()


class Memory:
    """Facts of samples as they were read last, for as long as the size and time of change of their files stay.

    Args:
        path: of the file that they are in; a damaged one is as good as none.
        reader: knows the files of samples; see `regloss.dataset.Dataset.files_of`.
    """

    def __init__(self, path: Path, reader: SampleReader) -> None:
        self.path = path
        self.source = reader.source
        self._entries: dict[str, Any] = {}
        try:
            stored = json.loads(path.read_bytes())
        except (OSError, ValueError):  # it is not there, or cut short
            return
        if isinstance(stored, dict) and stored.get("format") == _FORMAT:
            self._entries = stored["samples"]

    @classmethod
    def of(cls, name: str, settings: dict[str, Any], reader: SampleReader) -> Memory | None:
        """That of a data set with its settings; None where what a sample holds does not follow from files alone."""
        if reader.proposals is not None:
            return None
        source = reader.source
        # Settings may say "median", or leave a window to be found: what becomes of a sample then hangs on the others.
        decided = {"window": source.window, "spacing": source.spacing}
        given = {key: value for key, value in settings.items() if decided.get(key) is None}
        told = [regloss.__version__, name, given, source.classes, decided, reader.scribble_length, str(Path.cwd())]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
        return cls(cache_folder() / "samples" / f"{digest[:32]}.json", reader)

    def recall(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Facts]:
        """Facts of those samples that are known."""
        found = {}
        for key in keys:
            entry = self._entries.get(_written(key))
            if entry is not None and entry["files"] == self._state(key[0]):
                facts = entry["facts"]
                spacing = None if facts["spacing"] is None else tuple(facts["spacing"])
                found[key] = Facts(tuple(facts["classes"]), facts["ignored"], facts["scribbled"], spacing)
        return found

    def keep(self, found: dict[tuple[str, str], Facts]) -> None:
        """Add facts, and write the file.

        Raises:
            FailedWrite: it cannot be written.
        """
        for key, facts in found.items():
            state = self._state(key[0])
            if state:
                self._entries[_written(key)] = {"files": state, "facts": asdict(facts)}
        if not self._entries:
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps({"format": _FORMAT, "samples": self._entries}).encode())

    def _state(self, sample_id: str) -> list[list[Any]]:
        """Name, size and time of change of each file; nothing where they are not known, or one is not there."""
        found: list[list[Any]] = []
        for path in self.source.files_of(sample_id):
            try:
                state = path.stat()
            except OSError:
                return []
            found.append([str(path), state.st_size, state.st_mtime_ns])
        return found


def _written(key: tuple[str, str]) -> str:
    return f"{key[1]}/{key[0]}"


def cache_folder() -> Path:
    """Where files are kept that can be made again: $REGLOSS_CACHE, or regloss in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("REGLOSS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regloss"
