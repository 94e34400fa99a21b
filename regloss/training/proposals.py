"""Proposal store: segmentations by sample id, on disk, so that workers, processes and resumed runs share them.

Each stage A writes a *generation*: a folder of 8-bit PNG label maps (255 outside the region of interest; volumes as
.npy), one for each sample, written to a temporary name and moved into place, and a marker once all are there. Reading
uses a complete generation only. Older generations are removed no earlier than the last checkpoint no longer needs them,
so a run that was killed resumes from exactly what it had.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from regloss.errors import ReglossError, UsageError
from regloss.io.outputs import replacing

_MARKER = "complete.json"
_WAY_OUT = "Take it from a copy of the run, or begin anew with --overwrite."


class ProposalStore:
    """Proposals of a run, by generation and sample id.

    Args:
        folder: where generations are kept; made when the first proposal is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, generation: int, sample_id: str, labels: npt.NDArray[np.uint8]) -> None:
        """Keep ``labels`` (*S) uint8 of one sample; safe when several processes write different samples."""
        path = self._path(generation, sample_id, labels.ndim)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            if labels.ndim == 2:
                Image.fromarray(labels, mode="L").save(file, format="PNG", compress_level=1)
            else:
                np.save(file, labels)

    def finish(self, generation: int, count: int, epoch: int = 0) -> None:
        """Mark ``generation`` complete; call it once, after all processes have written.

        Args:
            generation: which.
            count: of its proposals.
            epoch: that began with them.
        """
        path = self.folder / _name(generation) / _MARKER
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"proposals": count, "epoch": epoch}))

    def is_complete(self, generation: int) -> bool:
        """Whether ``generation`` has been finished."""
        return (self.folder / _name(generation) / _MARKER).is_file()

    def generations(self) -> list[int]:
        """Those that are there, complete or not, in their order."""
        return sorted(int(path.name.removeprefix("generation-")) for path in self.folder.glob("generation-*"))

    def epoch(self, generation: int) -> int:
        """The epoch that began with a complete ``generation``.

        Raises:
            UsageError: the marker does not say so.
        """
        path = self.folder / _name(generation) / _MARKER
        try:
            epoch = json.loads(path.read_text())["epoch"]
            if not isinstance(epoch, int):
                raise ValueError(f"epoch is {epoch!r}")
        except (OSError, ValueError, TypeError, KeyError) as cause:
            raise UsageError(f"{path} does not say which epoch began with these proposals: {cause}.") from cause
        return epoch

    def holds(self, generation: int, sample_id: str) -> bool:
        """Whether there is a proposal of one sample, in a generation that need not be complete."""
        return any(self._path(generation, sample_id, ndim).is_file() for ndim in (2, 3))

    def read(self, generation: int, sample_id: str) -> npt.NDArray[np.uint8]:
        """Labels (*S) of one sample.

        Raises:
            UsageError: the file is damaged.
            ReglossError: the generation is not complete, or has no such sample.
        """
        if not self.is_complete(generation):
            raise ReglossError(f"The proposals of {self.folder / _name(generation)} are not complete.")
        for ndim in (2, 3):
            path = self._path(generation, sample_id, ndim)
            if path.is_file():
                labels = _read(path)
                if labels.dtype == np.uint8 and labels.ndim == ndim:
                    return labels
                raise UsageError(f"The proposal {path} is damaged: it holds {labels.dtype} {labels.shape}. {_WAY_OUT}")
        raise ReglossError(f"{self.folder / _name(generation)} holds no proposal for {sample_id!r}.")

    def keep_from(self, generation: int) -> None:
        """Remove generations before ``generation``: no checkpoint needs them any more."""
        for older in self.generations():
            if older < generation:
                shutil.rmtree(self.folder / _name(older))

    def discard_after(self, generation: int) -> None:
        """Remove generations after ``generation`` (all, if -1): a resumed run makes them anew."""
        for later in self.generations():
            if later > generation:
                shutil.rmtree(self.folder / _name(later))

    def _path(self, generation: int, sample_id: str, ndim: int) -> Path:
        return self.folder / _name(generation) / f"{sample_id}{'.png' if ndim == 2 else '.npy'}"


def _read(path: Path) -> npt.NDArray[Any]:
    try:
        if path.suffix == ".npy":
            volume: npt.NDArray[Any] = np.load(path)
            return volume
        with Image.open(path, formats=("PNG",)) as picture:
            return np.array(picture)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as cause:
        raise UsageError(f"The proposal {path} is damaged: {cause}. {_WAY_OUT}") from cause


def _name(generation: int) -> str:
    return f"generation-{generation:04d}"
