"""Writing results: files that are complete or absent, folders that are new or whose contents are known."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from regloss.errors import FailedWrite, UsageError

_UNFINISHED = re.compile(r"\.(.+)\.\d+")  # .NAME.PROCESS, what `replacing` writes to


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, beside ``path``, which it replaces at the end; so ``path`` is all there, or as before.

    Raises:
        FailedWrite: the block or the replacement raised an OSError; what was written is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of the block, which has no file's name where the disk is full, names ``path``.

    Raises:
        FailedWrite: instead of an OSError.
    """
    try:
        yield
    except FailedWrite:
        raise
    except OSError as cause:
        raise FailedWrite(f"{path} cannot be written: {cause}") from cause


def finished_name(path: Path) -> str | None:
    """The name that an unfinished file of `replacing` was to have, if its process was killed; None = it is none."""
    match = _UNFINISHED.fullmatch(path.name)
    return None if match is None else match[1]


def replace_file(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file so that it is either all there or as before.

    Args:
        path: the file.
        data: its contents.
        durable: wait until the disk has it, so that not even a loss of power takes it back; some milliseconds.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the disk know of a file's new name; Windows has no such call, and writes names by itself."""
    if os.name == "nt":
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def keep_copy(path: Path, gives_way: Callable[[Path], bool] = lambda copy: False) -> None:
    """Copy a file, if there is one, to NAME.bak, or to NAME.bak.1, ...: the first name that is free.

    Args:
        path: the file. A copy that is equal to it already will do.
        gives_way: whether an older copy may be replaced; by default none is.

    Raises:
        FailedWrite: it cannot be written.
    """
    if not path.is_file():
        return
    with writing(path):
        data = path.read_bytes()
        for number in itertools.count():
            copy = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
            ours = copy.is_file() and not copy.is_symlink()
            if ours and copy.read_bytes() == data:
                return
            if (ours and gives_way(copy)) or not (copy.exists() or copy.is_symlink()):
                replace_file(copy, data, durable=True)
                return


def check_new_folder(
    folder: Path, expected: Sequence[str], *, overwrite: bool, read: Sequence[Path | None] = ()
) -> None:
    """Make sure that ``folder`` may be written; nothing is changed.

    It may if it is new or empty, or if ``overwrite`` is set and it holds only ``expected`` entries.

    Args:
        folder: for the results.
        expected: what an earlier call may have left there, and `make_new_folder` removes.
        overwrite: whether it may.
        read: files and folders of the user's that the results are made of; none of them may go.

    Raises:
        UsageError: it is in use, or holds something that no call of regloss has put there, or what is read.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"The output {folder} is a file; a folder is needed.")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if present and not overwrite:
        raise UsageError(f"The output {folder} exists already. Replace it with --overwrite, or choose another.")
    foreign = [name for name in present if name not in expected]
    if foreign:
        raise UsageError(
            f"The output {folder} also holds {', '.join(foreign[:5])}, so it is left alone. Choose another."
        )
    for path in filter(None, read):
        whole = path.resolve()
        replaced = [folder / name for name in present]
        if (present and whole == folder.resolve()) or any(whole.is_relative_to(each.resolve()) for each in replaced):
            raise UsageError(f"The output {folder} would replace {path}, which is read. Choose another.")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise UsageError(f"The output {folder} cannot be made: {parent} is not a folder that can be written to.")


def make_new_folder(folder: Path, expected: Sequence[str]) -> None:
    """Make ``folder``, without the ``expected`` entries that an earlier call may have left in it.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [folder / name for name in expected]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as cause:
        raise UsageError(f"The output {folder} cannot be written: {cause}") from cause


def check_new_file(*paths: Path) -> None:
    """Make sure that files may be written; nothing is changed.

    Raises:
        UsageError: one exists already, or its folder does not; or two of them are one.
    """
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists already. Choose another name.")
        if not path.parent.is_dir():
            raise UsageError(f"{path} cannot be written: there is no folder {path.parent}.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"Each of {', '.join(map(str, paths))} needs a name of its own.")


def write_new(path: Path, text: str) -> None:
    """Write a new text file, which is complete or absent.

    Raises:
        UsageError: it exists already, or cannot be written.
    """
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as cause:
        raise UsageError(f"{path} exists already. Choose another name.") from cause
    except OSError as cause:
        raise UsageError(f"{path} cannot be written: {cause}") from cause
    try:
        with file:
            file.write(text)
    except OSError as cause:  # of a full disk, of which an open file tells when it is closed
        path.unlink()
        raise UsageError(f"{path} cannot be written: {cause}") from cause
