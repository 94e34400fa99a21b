"""One training at a time in an output folder: a lock that the system releases when its process ends or is killed."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType

from regloss.errors import UsageError

LOCK = ".lock"
"""Name of the lock in an output folder. It is removed with the end of the training, and means nothing after a kill."""

if sys.platform == "win32":
    import msvcrt

    def _take(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # behind what it says, which others may read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class OutputLock:
    """The lock on an output folder, a context manager that releases it; the file says which process holds it.

    Args:
        folder: of the run.
        callback: told where the file system has no locks, so that nothing keeps a second training out.
    """

    def __init__(self, folder: Path, callback: Callable[[str], None]) -> None:
        self.folder = folder
        self.callback = callback
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock, if the folder exists and this object does not hold it already.

        Raises:
            UsageError: another process holds it, which is named with its start; or the folder cannot be written.
        """
        path = self.folder / LOCK
        while self._file is None and self.folder.is_dir():
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as cause:
                raise UsageError(f"The output {self.folder} cannot be written: {cause}") from cause
            try:
                _take(file)
            except OSError as cause:
                os.close(file)
                if cause.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                    raise UsageError(
                        f"The output {self.folder} is in use: {_holder(path)} trains there. Wait until it ends, end "
                        "it, or choose another output."
                    ) from None
                self.callback(f"Nothing keeps another training out of {self.folder}: it cannot be locked ({cause}).")
                return
            if not _is_still(path, file):  # its holder removed it between our opening and our locking it
                os.close(file)
                continue
            self._file = file
            os.ftruncate(file, 0)
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            os.pwrite(file, json.dumps([os.getpid(), socket.gethostname(), started]).encode(), 0)

    def release(self) -> None:
        """Give the lock up."""
        if self._file is not None:
            # Removed first: who finds the file after that makes a new one.
            (self.folder / LOCK).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def check_idle(folder: Path) -> None:
    """Raise `UsageError` if a training is under way in ``folder``; nothing is changed."""
    if (folder / LOCK).exists():
        with OutputLock(folder, lambda message: None) as lock:
            lock.acquire()


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        process, host, started = json.loads(path.read_text())
    except (OSError, ValueError):  # taken a moment ago
        return "another process"
    return f"process {process} on {host}, begun {started},"
