"""PASCAL VOC 2012 for segmentation, with scribbles as PNG index maps or as ScribbleSup's XML files.

    root/                                   the folder VOC2012 of the archive
      JPEGImages/             *.jpg
      SegmentationClass/      *.png         the official label maps
      SegmentationClassAug/   *.png         those of the trainaug images, if there are any
      ImageSets/Segmentation/ *.txt         train, val, trainval, trainaug, ...: one id a line
      scribbles/              *.png, *.xml  (or scribbles_xml/)

Everingham, Van Gool, Williams, Winn and Zisserman, "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010. The
scribbles: Lin, Dai, Jia, He and Sun, "ScribbleSup: Scribble-Supervised Convolutional Networks for Semantic
Segmentation", CVPR 2016.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from regloss.dataset import IGNORE, Dataset, Sample
from regloss.errors import UsageError, listed
from regloss.io.drawing import draw_stroke
from regloss.io.folders import find_root, index_folder, index_label_folder
from regloss.io.labels import read_label_map
from regloss.io.palettes import class_colors
from regloss.io.reduction import check_reduce
from regloss.io.samples import SampleFiles, check_samples, find_sample, load_sample, subset_ids
from regloss.io.toml import read_text
from regloss.io.types import LabelMap, PathLike, Size

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_SCRIBBLE_TAGS = {
    "plane": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "plant": "pottedplant",
    "monitor": "tvmonitor",
}
"""What ScribbleSup calls classes that VOC calls otherwise."""


class VOCDataset(Dataset):
    """The 21 classes of PASCAL VOC 2012; see the top of this module for the layout.

    Args:
        root: the folder VOC2012, which holds JPEGImages.
        scribbles: the folder of the scribbles, relative to ``root``: ``ID.png`` (class indices, 255 = unlabelled) or
            ``ID.xml`` (ScribbleSup). None reads none. Without a folder of the default name, ``scribbles_xml`` is taken
            if it exists.
        labels: the folder of the label maps, relative to ``root``; by default SegmentationClass, and for images that
            have no label map there, SegmentationClassAug.
        image_sets: the folder of the lists; each file in it is a subset, by the name of the file.
        scribble_width: width in pixels of the lines drawn for an XML file.
        reduce: integer factor by which samples are reduced, as in `FolderDataset`.

    Raises:
        UsageError: a folder is missing, an image of "val" is also in "train" or "trainaug", or an option is out of
            range.
    """

    channels = 3
    classes = VOC_CLASSES
    colors = class_colors(len(VOC_CLASSES))

    def __init__(
        self,
        root: PathLike,
        *,
        scribbles: str | None = "scribbles",
        labels: str | None = None,
        image_sets: str = "ImageSets/Segmentation",
        scribble_width: float = 3.0,
        reduce: int = 1,
    ) -> None:
        self.root = _voc_root(find_root(root))
        self.reduce = check_reduce(reduce)
        if not (scribble_width >= 1 and math.isfinite(scribble_width)):
            raise UsageError(f"scribble_width = {scribble_width!r} must be at least one pixel")
        self.scribble_width = float(scribble_width)
        image_files = index_folder(self.root / "JPEGImages", (".jpg", ".jpeg"))
        label_files = _label_files(self.root, labels)
        self._scribble_folder, scribble_files = _scribble_files(self.root, scribbles)
        self._label_folder = labels or "SegmentationClass"
        self.subsets = _read_image_sets(self.root / image_sets)
        self.samples = {
            sample_id: SampleFiles(
                sample_id, path, label_files.get(sample_id), scribble_files.get(sample_id), sample_id
            )
            for sample_id, path in image_files.items()
        }

    def ids(self, subset: str) -> tuple[str, ...]:
        """Ids of a subset, in the order of its list.

        Raises:
            UsageError: there is no such subset, it is empty, or images that it lists are missing.
        """
        found = subset_ids(self.subsets, subset, str(self.root))
        missing = [sample_id for sample_id in found if sample_id not in self.samples]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(found)} images of {subset!r} are not in {self.root / 'JPEGImages'}: "
                f"{listed(missing)}"
            )
        return found

    def load(self, sample_id: str) -> Sample:
        """Read one sample.

        Raises:
            UsageError: there is no such id; or its files cannot be read, differ in size, or hold values or tags that
                are no classes.
        """
        return load_sample(
            find_sample(self.samples, sample_id, str(self.root)),
            classes=self.classes,
            channels=self.channels,
            reduce=self.reduce,
            read_scribble=partial(_read_scribble, width=self.scribble_width),
        )

    def files_of(self, sample_id: str) -> list[Path]:
        """Image, labels and scribbles."""
        return find_sample(self.samples, sample_id, str(self.root)).paths()

    def check(self, subset: str, need: Sequence[str] = ("scribble",), *, contents: bool = False) -> None:
        """Verify a subset before it is used, and report everything that is wrong with it in one message.

        Args:
            subset: its name.
            need: the parts that each image must have: "scribble", "label", both or none.
            contents: also decode every file, rather than the headers only.

        Raises:
            UsageError: images are missing or lack a part that is needed; sizes differ; or what `load` would refuse, if
                ``contents``; then also scribbles that label nothing, or one class only.
        """
        samples = [self.samples[sample_id] for sample_id in self.ids(subset)]
        folders = {
            "label": str(self.root / self._label_folder),
            "scribble": str(self.root / self._scribble_folder),
        }
        check_samples(samples, need, load=self.load if contents else None, folders=folders)


def _voc_root(root: Path) -> Path:
    if (root / "JPEGImages").is_dir():
        return root
    inside = [root / name for name in ("VOC2012", "VOCdevkit/VOC2012") if (root / name / "JPEGImages").is_dir()]
    hint = f"; give {inside[0]} as the root" if inside else ", as the VOC2012 folder of the archive does"
    raise UsageError(f"{str(root)!r} does not hold the folder JPEGImages{hint}")


def _label_files(root: Path, labels: str | None) -> dict[str, Path]:
    if labels is not None:
        return index_label_folder(root / labels)
    found: dict[str, Path] = {}
    for name in ("SegmentationClassAug", "SegmentationClass"):
        if (root / name).is_dir():
            found |= index_label_folder(root / name)
    return found


def _scribble_files(root: Path, scribbles: str | None) -> tuple[str, dict[str, Path]]:
    """The folder's name and its files. It may be absent only if nobody asked for it by a name of its own."""
    if scribbles is None:
        return "scribbles", {}
    if scribbles == "scribbles" and not (root / scribbles).is_dir():
        if not (root / "scribbles_xml").is_dir():
            return scribbles, {}
        scribbles = "scribbles_xml"
    return scribbles, index_folder(root / scribbles, (".png", ".xml"))


def _read_image_sets(folder: Path) -> dict[str, tuple[str, ...]]:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; the lists train.txt, val.txt, ... are expected there")
    subsets = {path.stem: _read_ids(path) for path in sorted(folder.glob("*.txt")) if not path.name.startswith(".")}
    if not subsets:
        raise UsageError(f"{folder} holds no list; expected are train.txt, val.txt, ... with one id a line")
    held_out = set(subsets.get("val", ()))
    for name in ("train", "trainaug"):
        # The images that trainaug is drawn from include images of val, so a list made by hand easily tests on
        # training images.
        both = [sample_id for sample_id in subsets.get(name, ()) if sample_id in held_out]
        if both:
            raise UsageError(f"{folder}: {len(both)} images are both in {name!r} and in 'val': {listed(both)}")
    return subsets


def _read_ids(path: Path) -> tuple[str, ...]:
    """The ids of a list; of lines with the paths of image and label (the habit of DeepLab's lists), the image's."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    ids = [_line_id(line.split()[0]) for line in lines if line.strip()]
    double = [sample_id for sample_id, count in Counter(ids).items() if count > 1]
    if double:
        raise UsageError(f"{path} lists ids more than once: {listed(double)}")
    return tuple(ids)


def _line_id(field: str) -> str:
    return Path(field).stem if "/" in field or field.endswith(".jpg") else field


# -- Scribbles ---------------------------------------------------------------------------------------------------------


def _read_scribble(path: Path, classes: Sequence[str], size: Size, *, width: float) -> LabelMap:
    if path.suffix.lower() == ".xml":
        return read_scribble_xml(path, classes, size, width=width)
    return read_label_map(path, classes)


def read_scribble_xml(path: PathLike, classes: Sequence[str], size: Size, *, width: float = 3.0) -> LabelMap:
    """Scribbles in ScribbleSup's format, drawn as lines.

    Each ``<polygon>`` is one stroke: a ``<tag>`` with the class name and ``<point>``s with ``<X>`` (column) and
    ``<Y>`` (row), counted from 0 at the centre of the upper left pixel. Strokes are drawn in the order of the file,
    later ones over earlier ones; they are not closed. What lies outside of the image is left out, as annotators do
    draw over the border.

    Args:
        path: the XML file.
        classes: the K class names.
        size: (H, W) of the image. If the file holds ``<size>``, it must say the same.
        width: of the lines, in pixels: a pixel is labelled if its centre is within width / 2 of the stroke.

    Returns:
        (H, W) uint8, 255 where there is no stroke.

    Raises:
        UsageError: no such XML, an unknown class name, a stroke without points, or another size.
    """
    path = Path(path)
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UsageError(f"{path} cannot be read as XML: {error}") from error
    stated = tree.find("size")
    if stated is not None:
        shape = tuple(int(_number(stated, name, path)) for name in ("height", "width"))
        if shape != size:
            raise UsageError(
                f"{path} belongs to an image of {shape[0]} x {shape[1]} pixels (height x width), not {size}"
            )
    scribble = np.full(size, IGNORE, dtype=np.uint8)
    for stroke in tree.iter("polygon"):
        tag = (stroke.findtext("tag") or "").strip()
        name = tag if tag in classes else _SCRIBBLE_TAGS.get(tag, tag)
        if name not in classes:
            raise UsageError(f"{path} has a stroke of class {tag!r}; there are {listed(classes, len(classes))}")
        points = [(_number(point, "Y", path), _number(point, "X", path)) for point in stroke.iter("point")]
        if not points:
            raise UsageError(f"{path} has a stroke of class {tag!r} without points")
        draw_stroke(scribble, np.array(points), classes.index(name), width)
    return scribble


def _number(parent: ElementTree.Element, name: str, path: Path) -> float:
    text = parent.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{path}: <{parent.tag}> has <{name}> {text!r}, where a number is expected")
    return value
