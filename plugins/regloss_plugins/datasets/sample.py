"""Objects in photographs and a micrograph: real images, few and small enough for a minute of training on one core.

The images come out of the installed scikit-image, whose wheel carries them; nothing is downloaded. Regions of three
images, their masks and their scribbles are ours and lie in ``sample_data``, whose README says how they were made.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from regloss.dataset import Dataset, Sample
from regloss.errors import MissingDependency, UsageError, listed
from regloss.io.images import read_image
from regloss.io.labels import read_label_map
from regloss.io.samples import subset_ids
from regloss.io.toml import read_toml
from regloss.io.types import FloatImage, LabelMap

_DATA = Path(__file__).with_name("sample_data")
_NAME = "the data set 'sample'"
_WAY_OUT = "install regloss[sample], which brings a scikit-image that carries its images"


@dataclass(frozen=True)
class Region:
    """Part of a larger image.

    Attributes:
        image: the file of the whole image.
        sha256: checksum of the whole image's pixels, (3, H, W) uint8.
        box: left, top, right and bottom in pixels; the last two are exclusive.
    """

    image: Path
    sha256: str
    box: tuple[int, int, int, int]


class SampleDataset(Dataset):
    """Coins, glands of a tissue, and a coffee cup on its saucer: two classes, "background" and "object".

    19 RGB samples of 128 to 192 pixels a side: 11 in "train", 3 in "val", 5 in "test". They are disjoint regions of
    three images, each of which has samples in every subset. All have a dense label and scribbles; these cover 2 to 3
    per cent of the pixels, seed both classes, and leave some objects and some kinds of background out.

    The labels of the tissue leave out two pixels on either side of a boundary, which is no sharper than that.

    Attributes:
        regions: what each sample shows, by id.
        subsets: ids by the subset's name.

    Raises:
        MissingDependency: scikit-image is not installed, or was installed without these images.

    Example:
        >>> dataset = SampleDataset()
        >>> dataset.ids("val")
        ('coins-bottom-middle', 'tissue-right', 'coffee-top-right')
        >>> dataset.load("tissue-right").image.shape
        (3, 144, 160)
    """

    classes = ("background", "object")
    colors = ((0, 0, 0), (0, 150, 255))  # a blue that occurs in none of the images
    channels = 3

    def __init__(self) -> None:
        index = read_toml(_DATA / "index.toml")
        paths = _image_files(image["file"] for image in index["image"])
        checksums = {image["file"]: image["sha256"] for image in index["image"]}
        self.regions: dict[str, Region] = {}
        self.subsets: dict[str, list[str]] = {}
        for entry in index["sample"]:
            name = entry["image"]
            self.regions[entry["id"]] = Region(paths[name], checksums[name], tuple(entry["box"]))
            self.subsets.setdefault(entry["subset"], []).append(entry["id"])

    def ids(self, subset: str) -> tuple[str, ...]:
        """Ids of "train", "val" or "test".

        Raises:
            UsageError: there is no such subset.
        """
        return subset_ids(self.subsets, subset, _NAME)

    def load(self, sample_id: str) -> Sample:
        """Read one sample: image (3, H, W), label and scribble (H, W).

        Raises:
            UsageError: there is no such id, the installed image is not the one that the masks were drawn on, or a file
                of ``sample_data`` is missing or damaged.
        """
        if sample_id not in self.regions:
            raise UsageError(f"{_NAME} has no image {sample_id!r}; there are {listed(self.regions, 30)}")
        region = self.regions[sample_id]
        left, top, right, bottom = region.box
        image = _read_image(region.image, region.sha256)[:, top:bottom, left:right].copy()
        label, scribble = (self._map(f"{sample_id}.{part}.png", image) for part in ("label", "scribble"))
        return Sample(sample_id, image, label, scribble, group=sample_id)

    def _map(self, name: str, image: FloatImage) -> LabelMap:
        labels = read_label_map(_DATA / name, self.classes)
        if labels.shape != image.shape[1:]:
            raise UsageError(f"{_DATA / name} is {labels.shape}, but its box in index.toml is {image.shape[1:]}")
        return labels


def _image_files(names: Iterable[str]) -> dict[str, Path]:
    """Paths of some of scikit-image's own images, by file name."""
    # Looking the package up, rather than importing it, saves its start-up time; and its own functions for these images
    # would download what the wheel lacks.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(f"{_NAME} shows images of scikit-image, which is not installed; {_WAY_OUT}")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = {name: folder / name for name in names}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise MissingDependency(f"{_NAME} needs {listed(missing)} in {folder}, which scikit-image lacks; {_WAY_OUT}")
    return files


@lru_cache(maxsize=4)
def _read_image(path: Path, sha256: str) -> FloatImage:
    """A whole image (3, H, W), read-only because callers share it."""
    image = read_image(path, channels=3)
    # Pixels are compared rather than files: a PNG that is compressed anew is the same image.
    if hashlib.sha256(np.rint(image * 255).astype(np.uint8).tobytes()).hexdigest() != sha256:
        raise UsageError(f"{path} is not the image that the masks of {_NAME} were drawn on; {_WAY_OUT}")
    image.setflags(write=False)
    return image
