"""CVAT: its XML for images, and its segmentation masks in colours.

<annotations>
  <meta><task><labels><label><name>cell</name><color>#ff0000</color></label>...</labels></task></meta>
  <image id="0" name="a.png" width="W" height="H">
    <polygon label="cell" points="x,y;x,y;..." z_order="0"/>
    <polyline .../> <points .../> <box label xtl ytl xbr ybr rotation/> <ellipse label cx cy rx ry rotation/>
    <mask label="cell" rle="0, 3, 5, ..." left top width height/>
  </image>
</annotations>

labelmap.txt              background:0,0,0::
                          cell:128,0,0::           name : colour : parts : actions
SegmentationClass/a.png   in these colours, RGB or palette
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ImageColor

from regloss.errors import UsageError, listed
from regloss.io.drawing import Bitmap, Ellipse, Line, Mask, Point, Polygon, Shape, rectangle
from regloss.io.foreign.run_lengths import RunLengths
from regloss.io.foreign.source import (
    Drawn,
    Entry,
    ImageFinder,
    Maps,
    Options,
    Shapes,
    holds,
    number,
    points_of,
)
from regloss.io.limits import LARGEST_TEXT, check_regular
from regloss.io.palettes import Color
from regloss.io.raster import read_rgba
from regloss.io.toml import read_text

_AREAS = frozenset({"polygon", "box", "ellipse", "mask"})
_LINES = frozenset({"polyline", "points"})


class CvatXml(Shapes):
    """CVAT's XML file for images (its export "CVAT for images"), or the folder that holds it as annotations.xml."""

    name = "cvat"
    program = "CVAT"
    heeds = frozenset({"stroke_width", "to"})

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._width = options.stroke_width
        path = _xml(source)
        root = _parsed(path)
        if root.find("track") is not None:
            raise UsageError(
                f"{path} holds tracks of a video; export it as 'CVAT for images', which has a shape a frame"
            )
        for label in root.iter("label"):
            if label.findtext("name"):
                name = str(label.findtext("name"))
                self.classes = (*self.classes, name)
                if label.findtext("color"):
                    self.colors[name] = _color(str(label.findtext("color")), f"{path}, label {name}")
        finder = ImageFinder(path, options.images)
        found: dict[str, Entry] = {}
        for element in root.iter("image"):
            name = element.get("name", "")
            image = finder.find(name) if name else None
            if image is None:
                self.skipped[f"image that is not in {finder.described()}"] += 1
                continue
            where = f"{path}, image {name}"
            size = (int(_attribute(element, "height", where)), int(_attribute(element, "width", where)))
            ordered = sorted(element, key=lambda shape: number(shape.get("z_order", 0), where))
            drawn = [one for shape in ordered for one in self._drawn(shape, where)]
            found[name] = Entry(image, path, size, drawn)
        self.add(found)

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether there is an XML file with <annotations> and <image>."""
        path = _xml(source)
        return path.is_file() and holds(path, ("<annotations", "<image"))

    def _drawn(self, element: ElementTree.Element, where: str) -> list[Drawn]:
        kind = element.tag
        if kind not in _AREAS | _LINES:
            self.skipped[f"{kind}, which is no area or stroke"] += 1
            return []
        where = f"{where}, {kind}"
        label = element.get("label")
        if not label:
            raise UsageError(f"{where} has no label")
        if kind == "points":  # each a dot
            return [Drawn(label, Line([point], self._width)) for point in _points(element, where)]
        shape = self._shape(element, where)
        return [] if shape is None else [Drawn(label, shape)]

    def _shape(self, element: ElementTree.Element, where: str) -> Shape | None:
        def value(name: str) -> float:
            return _attribute(element, name, where)

        angle = number(element.get("rotation", 0), f"{where}, rotation")
        if element.tag == "box":
            return rectangle((value("xtl"), value("ytl")), (value("xbr"), value("ybr")), angle)
        if element.tag == "ellipse":
            if min(value("rx"), value("ry")) <= 0:
                self.skipped["ellipse without extent"] += 1
                return None
            return Ellipse((value("cx"), value("cy")), (value("rx"), value("ry")), angle)
        if element.tag == "mask":
            counts = [int(number(count, where)) for count in element.get("rle", "").split(",")]
            box = (int(value("height")), int(value("width")))
            return RunLengths(counts, box, "rows", where, int(value("top")), int(value("left")))
        points = _points(element, where)
        if element.tag == "polyline":
            return Line(points, self._width)
        if len(points) < 3:
            self.skipped["polygon with fewer than 3 points"] += 1
            return None
        return Polygon([points])


class ColorMaps(Maps):
    """Pictures in the colours of a labelmap.txt (CVAT's export "Segmentation mask"), with the images beside them."""

    name = "labelmap"
    program = "labelmap.txt"
    heeds = frozenset({"to"})
    ground = "background"

    def __init__(self, source: Path, options: Options) -> None:
        super().__init__(source, options)
        self._table = read_labelmap(source / "labelmap.txt")
        self.classes, self.colors = tuple(self._table.values()), {name: color for color, name in self._table.items()}
        folder = source / "SegmentationClass"
        if not folder.is_dir():
            raise UsageError(
                f"{source} has a labelmap.txt, but no folder SegmentationClass with pictures in its colours"
            )
        finder = ImageFinder(source, options.images)
        self.add({path: finder.with_stem(path.stem) for path in sorted(folder.glob("*.png"))}, finder.described())

    @staticmethod
    def recognises(source: Path) -> bool:
        """Whether there is a labelmap.txt."""
        return (source / "labelmap.txt").is_file()

    def used(self) -> set[tuple[str, bool]]:
        """See `Annotations.used`; all are declared."""
        return {(name, True) for name in self.classes}

    def drawn(self, image_id: str) -> Sequence[Drawn]:
        """See `Annotations.drawn`.

        Raises:
            UsageError: a picture has colours that are not in the table.
        """
        path = self.files[image_id]
        masks, others = masks_by_color(read_rgba(path), self._table)
        if others:
            found = listed(f"{color} ({count} pixels)" for color, count in others)
            raise UsageError(
                f"{path} has colours that labelmap.txt does not name: {found}; add them to it, or export the pictures "
                "again"
            )
        return [Drawn(name, Bitmap(mask)) for name, mask in masks.items()]


def read_labelmap(path: Path) -> dict[Color, str]:
    """Names by colours, from lines ``name:red,green,blue:parts:actions``; what begins with # is a comment.

    Raises:
        UsageError: it cannot be read, a line is none of these, or two have one colour or one name.
    """
    check_regular(path, LARGEST_TEXT)
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    table: dict[Color, str] = {}
    for place, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.split(":")[0].split(",")
        if (
            not name.strip()
            or len(parts) != 3
            or not all(part.strip().isdecimal() and int(part) < 256 for part in parts)
        ):
            raise UsageError(
                f"{path}, line {place}: expected NAME:RED,GREEN,BLUE:: with colours of 0..255, got {line!r}"
            )
        color = (int(parts[0]), int(parts[1]), int(parts[2]))
        if color in table or name.strip() in table.values():
            raise UsageError(f"{path}, line {place}: the colour or the name of {line!r} stands there twice")
        table[color] = name.strip()
    if not table:
        raise UsageError(f"{path} names no colour; it holds lines NAME:RED,GREEN,BLUE::")
    return table


def masks_by_color(
    rgba: npt.NDArray[np.uint8], table: Mapping[Color, str]
) -> tuple[dict[str, Mask], list[tuple[Color, int]]]:
    """Where a picture has the colours of a table.

    Args:
        rgba: (H, W, 4) or (H, W, 3) uint8; transparent pixels have no colour.
        table: names by colours.

    Returns:
        A mask (H, W) for each name whose colour occurs; and other colours, with the number of their pixels, the most
        frequent first.
    """
    channels = rgba.astype(np.int32)
    codes = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    if channels.shape[-1] == 4:
        codes[channels[..., 3] == 0] = -1
    values, counts = np.unique(codes[codes >= 0], return_counts=True)
    masks: dict[str, Mask] = {}
    others: list[tuple[Color, int]] = []
    for value, count in sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        color = (value >> 16, value >> 8 & 255, value & 255)
        if color in table:
            masks[table[color]] = codes == value
        else:
            others.append((color, count))
    return masks, others


def _xml(source: Path) -> Path:
    return source / "annotations.xml" if source.is_dir() else source


def _parsed(path: Path) -> ElementTree.Element:
    check_regular(path)
    if holds(path, ("<!ENTITY",)):  # entities of entities fill any memory
        raise UsageError(f"{path} declares entities, which CVAT does not write; export it again")
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UsageError(f"{path} cannot be read as XML: {error}") from error


def _attribute(element: ElementTree.Element, name: str, where: str) -> float:
    return number(element.get(name), f"{where}, {name}")


def _points(element: ElementTree.Element, where: str) -> list[Point]:
    return points_of([pair.split(",") for pair in element.get("points", "").split(";")], where)


def _color(text: str, where: str) -> Color:
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UsageError(f"{where}: {text!r} is no colour, such as #ff0000") from error
    return red, green, blue
