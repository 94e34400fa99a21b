"""Proposal store: segmentations by sample id, on disk, so that workers, processes and resumed runs share them.

Each stage A writes a *generation*: a folder of 8-bit PNG label maps (255 outside the region of interest; volumes as
.npy), one for each sample, written to a temporary name and moved into place, and a marker once all are there. Reading
uses a complete generation only. Older generations are removed no earlier than the last checkpoint no longer needs them,
so a run that was killed resumes from exactly what it had.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from regloss.errors import ReglossError

_MARKER = "complete.json"


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
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            if labels.ndim == 2:
                Image.fromarray(labels, mode="L").save(file, format="PNG", compress_level=1)
            else:
                np.save(file, labels)
        temporary.replace(path)

    def finish(self, generation: int, count: int) -> None:
        """Mark ``generation`` complete, with ``count`` proposals; call it once, after all processes have written."""
        path = self.folder / _name(generation) / _MARKER
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{_MARKER}.{os.getpid()}")
        temporary.write_text(json.dumps({"proposals": count}))
        temporary.replace(path)

    def read(self, generation: int, sample_id: str) -> npt.NDArray[np.uint8]:
        """Labels (*S) of one sample.

        Raises:
            ReglossError: the generation is not complete, or has no such sample.
        """
        if not (self.folder / _name(generation) / _MARKER).is_file():
            raise ReglossError(f"The proposals of {self.folder / _name(generation)} are not complete.")
        for ndim in (2, 3):
            path = self._path(generation, sample_id, ndim)
            if path.is_file():
                return np.load(path) if ndim == 3 else np.array(Image.open(path))
        raise ReglossError(f"{self.folder / _name(generation)} holds no proposal for {sample_id!r}.")

    def keep_from(self, generation: int) -> None:
        """Remove generations before ``generation``: no checkpoint needs them any more."""
        for path in self.folder.glob("generation-*"):
            if int(path.name.removeprefix("generation-")) < generation:
                shutil.rmtree(path)

    def discard_after(self, generation: int) -> None:
        """Remove generations after ``generation`` (all, if -1): a resumed run makes them anew."""
        for path in self.folder.glob("generation-*"):
            if int(path.name.removeprefix("generation-")) > generation:
                shutil.rmtree(path)

    def _path(self, generation: int, sample_id: str, ndim: int) -> Path:
        return self.folder / _name(generation) / f"{sample_id}{'.png' if ndim == 2 else '.npy'}"


def _name(generation: int) -> str:
    return f"generation-{generation:04d}"
