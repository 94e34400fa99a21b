"""Reading images and label maps from files: what the data sets of this folder share.

Images become float32 in [0, 1], label maps uint8 class indices with 255 for "no label". Every function here takes what
it needs as arguments and knows no folder layout; the layouts are the data sets' business.
"""

from __future__ import annotations

import difflib
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from regloss.dataset import IGNORE, Sample
from regloss.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FloatImage: TypeAlias = npt.NDArray[np.float32]
LabelMap: TypeAlias = npt.NDArray[np.uint8]
Color: TypeAlias = tuple[int, int, int]
Size: TypeAlias = tuple[int, int]
PathLike: TypeAlias = str | os.PathLike[str]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Endings of image files, in lower case."""

MAX_CLASSES = IGNORE
"""Class indices are 0..254, because 255 says that there is no label."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"})
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


@dataclass(frozen=True)
class SampleFiles:
    """Where the parts of one sample lie.

    Attributes:
        id: the sample's name.
        image: the image file.
        label: the dense label map, or None.
        scribble: the scribbles, or None.
        group: the unit that scores are averaged over.
    """

    id: str
    image: Path
    label: Path | None
    scribble: Path | None
    group: str


ScribbleReader: TypeAlias = Callable[[Path, Sequence[str], Size], LabelMap]
"""Reads scribbles: file, class names, the image's (H, W) -> (H, W) uint8. `read_scribble_map` is the usual one."""


# -- Messages ----------------------------------------------------------------------------------------------------------


def listed(names: Iterable[object], limit: int = 10) -> str:
    """The first ``limit`` names, and how many more there are.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    items = [str(name) for name in names]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def subset_ids(subsets: Mapping[str, Sequence[str]], subset: str, where: str) -> tuple[str, ...]:
    """The ids of one subset.

    Args:
        subsets: ids by the subset's name.
        subset: the one that is asked for.
        where: what the subsets belong to, for the message.

    Raises:
        UsageError: there is no such subset, or it is empty.
    """
    if subset not in subsets:
        raise UsageError(f"{where} has no subset {subset!r}; there are {listed(map(repr, subsets))}")
    if not subsets[subset]:
        raise UsageError(f"subset {subset!r} of {where} is empty")
    return tuple(subsets[subset])


def find_sample(samples: Mapping[str, SampleFiles], sample_id: str, where: str) -> SampleFiles:
    """The files of one sample.

    Raises:
        UsageError: there is no such id; the message offers similar ones.
    """
    if sample_id not in samples:
        near = difflib.get_close_matches(str(sample_id), samples, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"ids look like {next(iter(samples))!r}"
        raise UsageError(f"{where} has no image {sample_id!r}; {hint}")
    return samples[sample_id]


# -- Folders and small text files --------------------------------------------------------------------------------------


def index_folder(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files of a folder by their stem, in the order of the stems; hidden files and other endings are left out.

    Args:
        folder: where to look; its subfolders are not searched.
        suffixes: the endings that count, in lower case; files may write them in any case.

    Raises:
        UsageError: two files have one stem, or ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.stem, []).append(path)
    double = [" and ".join(path.name for path in paths) for paths in found.values() if len(paths) > 1]
    if double:
        raise UsageError(f"files of {folder} share a name, so that it is not clear which is meant: {listed(double)}")
    return {stem: found[stem][0] for stem in sorted(found)}


def index_label_folder(folder: Path) -> dict[str, Path]:
    """The PNG files of a folder of label maps by stem, refusing pictures in other formats.

    Raises:
        UsageError: as `index_folder`; or the folder holds pictures that are not PNG.
    """
    found = index_folder(folder)
    wrong = [path.name for path in found.values() if path.suffix.lower() != ".png"]
    if wrong:
        raise UsageError(
            f"label maps are PNG files holding class indices, but {folder} holds {listed(wrong)}; save them as PNG "
            "from their source (JPEG compression changes the indices, so converting a JPEG does not bring them back)"
        )
    return found


def find_root(path: PathLike) -> Path:
    """A data set's folder: as given, or below the folder that the environment variable ``REGLOSS_DATA`` names.

    Raises:
        UsageError: it is in neither place.
    """
    given = Path(path).expanduser()
    places = [given]
    if not given.is_absolute() and os.environ.get("REGLOSS_DATA"):
        places.append(Path(os.environ["REGLOSS_DATA"]) / given)
    for place in places:
        if place.is_dir():
            return place
    hint = "" if len(places) > 1 else "; set REGLOSS_DATA to the folder that holds data sets, or give a full path"
    raise UsageError(f"there is no folder {' or '.join(repr(str(place)) for place in places)}{hint}")


def find_file(path: PathLike, root: Path, purpose: str) -> Path:
    """A file given by the user: looked up in ``root`` first, then in the current folder.

    Raises:
        UsageError: it is in neither.
    """
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [root / given, Path.cwd() / given]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"there is no {purpose} {os.fspath(path)!r}; looked for {' and '.join(map(str, places))}")


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error


# -- Classes -----------------------------------------------------------------------------------------------------------


def class_colors(count: int) -> tuple[Color, ...]:
    """The colour map of PASCAL VOC: the bits of the class index, dealt to red, green and blue from the top bit down.

    Args:
        count: number of classes K, at most 256.

    Returns:
        K triples of 0..255.

    >>> class_colors(4)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    colors: list[Color] = []
    for index in range(count):
        red = green = blue = 0
        for place in range(3):
            red |= ((index >> (3 * place)) & 1) << (7 - place)
            green |= ((index >> (3 * place + 1)) & 1) << (7 - place)
            blue |= ((index >> (3 * place + 2)) & 1) << (7 - place)
        colors.append((red, green, blue))
    return tuple(colors)


def label_values(paths: Iterable[Path]) -> list[int]:
    """All values in some label maps, 255 left out, ascending."""
    present = np.zeros(256, dtype=bool)
    for path in paths:
        present |= np.bincount(_read_indices(path).ravel(), minlength=256) > 0
    present[IGNORE] = False
    return [int(value) for value in np.flatnonzero(present)]


# -- Images ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded: (H, W) as `read_image` returns it, and the channels, 1 or 3."""

    size: Size
    channels: int


def read_header(path: Path) -> Header:
    """Size and channels of an image, without decoding it.

    Raises:
        UsageError: the file cannot be read, or has pixels of an unknown kind.
    """
    with _opened(path) as picture:
        channels = _channels(picture, path)
        width, height = picture.size
        return Header((width, height) if _orientation(picture, path) >= 5 else (height, width), channels)


def common_channels(paths: Sequence[Path], where: Path) -> int:
    """The channels of some images, which must agree.

    Raises:
        UsageError: grey and colour images are mixed.
    """
    channels = [read_header(path).channels for path in paths]
    grey = [path.name for path, count in zip(paths, channels, strict=True) if count == 1]
    color = [path.name for path, count in zip(paths, channels, strict=True) if count == 3]
    if grey and color:
        raise UsageError(
            f"{where} mixes {len(grey)} grey images ({listed(grey, 3)}) and {len(color)} colour images "
            f"({listed(color, 3)}); grey = true turns all into grey, grey = false all into RGB"
        )
    return 1 if grey else 3


def read_image(path: Path, channels: int | None = None) -> FloatImage:
    """One image with values in [0, 1].

    8-bit values are divided by 255 and 16-bit values by 65535; float TIFFs must hold [0, 1] already. (Of 16-bit
    *colour* files Pillow keeps the upper byte.) Palettes are resolved to RGB. The orientation tag of cameras is
    honoured in JPEG and PNG files. An alpha channel is dropped where it is opaque throughout, and refused otherwise,
    because the colour behind a transparent pixel means nothing.

    Args:
        path: a PNG, JPEG or TIFF file.
        channels: 1 turns colours into grey (luma of ITU-R BT.601), 3 repeats grey; None keeps what the file has.

    Returns:
        (C, H, W) float32.

    Raises:
        UsageError: the file cannot be read or cannot be meant: several frames, transparent pixels, CMYK, 32-bit
            integers, NaN, floats outside [0, 1], a TIFF that is not stored upright.
    """
    with _opened(path) as picture:
        own_channels = _channels(picture, path)
        if picture.format in ("PNG", "TIFF") and getattr(picture, "n_frames", 1) > 1:
            raise UsageError(f"{path} holds several frames; save the one that is meant as a file of its own")
        orientation = _orientation(picture, path)
        picture.load()
        if _orientation(picture, path) != orientation:
            raise UsageError(f"{path} states its orientation after its pixels; save it again, turned upright")
        if picture.mode in ("P", "PA"):
            values = np.asarray(picture.convert("RGBA"))
        elif picture.mode in ("YCbCr", "RGBX"):
            values = np.asarray(picture.convert("RGB"))
        else:
            values = np.asarray(picture)
        if picture.mode not in ("P", "PA") and "transparency" in picture.info:
            raise UsageError(f"{path} declares one colour as transparent; save it without transparency")

    image = _scaled(values, path)
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] in (2, 4):
        if not (image[..., -1] == 1).all():
            raise UsageError(f"{path} has transparent pixels; flatten it onto a background, or drop the alpha channel")
        image = image[..., :-1]
    image = _upright(image, orientation)
    if channels == 1 and own_channels == 3:
        # The weights add up to 1 only within rounding, and 1 is the largest value that an image may have.
        image = np.minimum(image @ _LUMA, np.float32(1))[..., None]
    elif channels == 3 and own_channels == 1:
        image = np.repeat(image, 3, axis=-1)
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def _scaled(values: npt.NDArray[Any], path: Path) -> FloatImage:
    """Pixel values as float32 in [0, 1]."""
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if values.dtype.kind == "f":
        image = values.astype(np.float32)
        if np.isnan(image).any():
            raise UsageError(f"{path} holds NaN; replace these pixels")
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise UsageError(f"{path} holds floats from {low:g} to {high:g}; float images must lie within [0, 1]")
        return image
    # 16-bit grey comes as uint16, or in older versions of Pillow as int32.
    top = 255 if values.dtype == np.uint8 else 65535
    return values.astype(np.float32) / np.float32(top)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, opened by Pillow; what goes wrong in opening or decoding becomes a UsageError that names it."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
            yield picture
    except (OSError, EOFError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as a PNG, JPEG or TIFF image: {error}") from error


def _channels(picture: Image.Image, path: Path) -> int:
    # Mode "I" is how older versions of Pillow open 16-bit PNGs; in a TIFF it means 32-bit integers, whose range is no
    # statement about the values.
    if picture.mode in _GREY_MODES and (picture.mode != "I" or picture.format == "PNG"):
        return 1
    if picture.mode in _COLOR_MODES:
        return 3
    raise UsageError(
        f"{path} has pixels of kind {picture.mode!r}; images are grey or RGB with 8 or 16 bits, or floats in [0, 1]"
    )


def _orientation(picture: Image.Image, path: Path) -> int:
    """The orientation tag, 1..8; 1 is upright."""
    # Pillow searches a PNG for the tag by decoding it, unless it stands in front of the pixels.
    if picture.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & picture.info.keys():
        return 1
    value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if value not in range(2, 9):
        return 1
    if picture.format == "TIFF":
        # Versions of Pillow differ in who turns a TIFF upright, and 13.0 garbles uncompressed ones on the way.
        raise UsageError(f"{path} is a TIFF with the orientation tag {value}; save it again, turned upright")
    return int(value)


def _upright(image: FloatImage, orientation: int) -> FloatImage:
    """(H, W, C) as stored -> as meant, by the EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


# -- Label maps --------------------------------------------------------------------------------------------------------


def read_label_size(path: Path) -> Size:
    """(H, W) of a label map, without decoding it.

    Raises:
        UsageError: the file is no PNG with one channel of at most 8 bits.
    """
    height, width, _ = _label_header(path)
    return height, width


def read_label_map(path: Path, classes: Sequence[str]) -> LabelMap:
    """Class indices from a grey or palette PNG (of a palette, the indices; its colours play no part).

    Args:
        path: a PNG file of 1, 2, 4 or 8 bits a pixel.
        classes: the K class names.

    Returns:
        (H, W) uint8, each value below K or 255.

    Raises:
        UsageError: not such a file, or a value that is neither a class nor 255.
    """
    labels = _read_indices(path)
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    outside = [int(value) for value in values if value >= len(classes) and value != IGNORE]
    if outside:
        named = ", ".join(f"{index} = {name}" for index, name in enumerate(classes[:30]))
        raise UsageError(
            f"{path} holds the label value{'s' if len(outside) > 1 else ''} {listed(outside)}, but there are "
            f"{len(classes)} classes: {named}{', ...' if len(classes) > 30 else ''}; "
            f"{IGNORE} marks pixels without label"
        )
    return labels


def read_scribble_map(path: Path, classes: Sequence[str], size: Size) -> LabelMap:
    """`read_label_map` for scribbles; ``size`` is checked by `load_sample`, as that of every label map."""
    return read_label_map(path, classes)


def _label_header(path: Path) -> tuple[int, int, int]:
    """Height, width and bits of a label map, from the 33 bytes that every PNG begins with."""
    try:
        with path.open("rb") as file:
            head = file.read(33)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(head) < 33 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise UsageError(
            f"{path} is no PNG file; label maps are, because lossy formats such as JPEG change the class indices"
        )
    width, height, bits, color_type = struct.unpack(">IIBB", head[16:26])
    if color_type not in (0, 3) or bits > 8:
        kind = _COLOR_TYPES.get(color_type, f"colour type {color_type}")
        raise UsageError(
            f"{path} is a PNG of {bits} bits, {kind}; a label map holds class indices, so it has one channel of 8 bits "
            "(grey, or palette). Colours do not say which class is meant: write the index of each class instead"
        )
    return height, width, bits


def _read_indices(path: Path) -> LabelMap:
    _, _, bits = _label_header(path)
    with _opened(path) as picture:
        indices = np.asarray(picture).astype(np.uint8)
        if picture.mode == "L" and bits < 8:
            # Pillow stretches grey of 2 or 4 bits to 0..255, which is right for brightness and wrong for indices.
            indices //= 255 // (2**bits - 1)
    return indices


# -- Reduction ---------------------------------------------------------------------------------------------------------


def _block_sums(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Sums over factor x factor blocks of the last two axes; blocks at the lower and right border may be smaller."""
    height, width = values.shape[-2:]
    below, right = -height % factor, -width % factor
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, below), (0, right)]) if below or right else values
    # Adding strided slices is ten times faster than np.add.reduceat for small factors.
    rows = padded[..., ::factor, :].copy()
    for offset in range(1, factor):
        rows += padded[..., offset::factor, :]
    sums = rows[..., ::factor].copy()
    for offset in range(1, factor):
        sums += rows[..., offset::factor]
    return sums


def _block_pixels(size: Size, factor: int) -> npt.NDArray[Any]:
    """How many pixels each block has."""
    height, width = (np.minimum(factor, length - np.arange(0, length, factor)) for length in size)
    return np.outer(height, width)


def reduce_image(image: FloatImage, factor: int) -> FloatImage:
    """Box mean: each pixel is the mean of a factor x factor block, (C, H, W) -> (C, ceil(H/f), ceil(W/f)).

    Blocks start at the upper left corner; those that the lower or right border cuts average the pixels they have.
    """
    height, width = image.shape[-2:]
    pixels = _block_pixels((height, width), factor).astype(np.float32)
    mean: FloatImage = np.divide(_block_sums(image, factor), pixels, dtype=np.float32)
    return mean


def reduce_labels(labels: LabelMap, factor: int) -> LabelMap:
    """Majority of each factor x factor block, for dense labels: (H, W) -> (ceil(H/f), ceil(W/f)).

    255 where more than half of the block is 255; otherwise the most frequent class, the lowest of those that tie.

    >>> reduce_labels(np.array([[1, 1, 255, 255], [0, 2, 3, 255]], dtype=np.uint8), 2)
    array([[  1, 255]], dtype=uint8)
    """
    reduced = reduce_scribbles(labels, factor)
    height, width = labels.shape
    ignored = _block_sums((labels == IGNORE).astype(np.int32), factor)
    reduced[2 * ignored > _block_pixels((height, width), factor)] = IGNORE
    return reduced


def reduce_scribbles(scribbles: LabelMap, factor: int) -> LabelMap:
    """Majority of the *labelled* pixels of each factor x factor block: (H, W) -> (ceil(H/f), ceil(W/f)).

    255 only where the block has no label at all, so a thin stroke stays whole; of classes that tie, the lowest.

    >>> reduce_scribbles(np.array([[1, 255, 255, 255], [255, 255, 255, 255]], dtype=np.uint8), 2)
    array([[  1, 255]], dtype=uint8)
    """
    height, width = scribbles.shape
    reduced = np.full((-(-height // factor), -(-width // factor)), IGNORE, dtype=np.uint8)
    most = np.zeros(reduced.shape, dtype=np.int32)
    for value in np.flatnonzero(np.bincount(scribbles.ravel(), minlength=256)[:IGNORE]):
        count = _block_sums((scribbles == value).astype(np.int32), factor)
        reduced[count > most] = value
        np.maximum(most, count, out=most)
    return reduced


# -- Samples -----------------------------------------------------------------------------------------------------------


def load_sample(
    files: SampleFiles,
    *,
    classes: Sequence[str],
    channels: int,
    reduce: int = 1,
    read_scribble: ScribbleReader = read_scribble_map,
) -> Sample:
    """Read, check and reduce one sample.

    Args:
        files: where it lies.
        classes: the K class names.
        channels: 1 or 3; images of the other kind are converted.
        reduce: integer factor of `reduce_image`, `reduce_labels` and `reduce_scribbles`.
        read_scribble: how scribble files are read.

    Raises:
        UsageError: a file cannot be read or cannot be meant, or the sizes differ.
    """
    image = read_image(files.image, channels)
    size = (image.shape[1], image.shape[2])
    label = scribble = None
    if files.label is not None:
        label = read_label_map(files.label, classes)
        _same_size(files.image, size, files.label, (label.shape[0], label.shape[1]))
    if files.scribble is not None:
        scribble = read_scribble(files.scribble, classes, size)
        _same_size(files.image, size, files.scribble, (scribble.shape[0], scribble.shape[1]))
    if reduce > 1:
        image = reduce_image(image, reduce)
        label = None if label is None else reduce_labels(label, reduce)
        scribble = None if scribble is None else reduce_scribbles(scribble, reduce)
    return Sample(files.id, image, label, scribble, files.group)


def _same_size(image: Path, image_size: Size, other: Path, other_size: Size) -> None:
    if image_size != other_size:
        raise UsageError(
            f"{other} is {other_size[0]} pixels high and {other_size[1]} wide, "
            f"but {image} is {image_size[0]} high and {image_size[1]} wide"
        )


def check_reduce(reduce: object) -> int:
    """``reduce`` itself, if it is a whole number of at least 1.

    Raises:
        UsageError: it is not.
    """
    if isinstance(reduce, bool) or not isinstance(reduce, int) or reduce < 1:
        raise UsageError(f"reduce = {reduce!r} must be a whole number: 1 keeps the size, 2 halves it")
    return reduce


def check_samples(
    samples: Sequence[SampleFiles],
    need: Iterable[str],
    *,
    load: Callable[[str], Sample] | None = None,
    folders: Mapping[str, str] | None = None,
    complaints: Sequence[str] = (),
) -> None:
    """Look for what would stop a training run, and report all of it at once.

    Verified from the headers: that each sample has the parts in ``need``, that image, label and scribble have one
    size, that label maps are of the right kind. With ``load`` all samples are read too: label values, NaN, and, where
    scribbles are needed, that each image has some and that they name at least two classes.

    Args:
        samples: the samples of one subset.
        need: "label" and "scribble", those that must be there.
        load: reads a sample by id; None reads headers only.
        folders: where each part is expected, for the message.
        complaints: what the caller found by itself, to be reported along.

    Raises:
        UsageError: something is wrong; each line lists the first ten cases and counts the rest.
    """
    wanted = tuple(need)
    unknown = [part for part in wanted if part not in ("label", "scribble")]
    if unknown:
        raise UsageError(f"need holds {listed(map(repr, unknown))}; it may hold 'label' and 'scribble'")
    problems = list(complaints)
    for part in wanted:
        missing = [files.id for files in samples if getattr(files, part) is None]
        if missing:
            where = f" in {folders[part]}" if folders else ""
            problems.append(f"{len(missing)} of {len(samples)} images have no {part} file{where}: {listed(missing)}")
    broken = _collect(_check_header, samples)
    if broken:
        problems.append(f"{len(broken)} of {len(samples)} samples have unusable files: {listed(broken)}")
    if load is not None and not problems:
        problems += _check_contents(samples, load, scribbles="scribble" in wanted)
    if problems:
        raise UsageError("\n".join(problems))


def _collect(check: Callable[[SampleFiles], object], samples: Sequence[SampleFiles]) -> list[str]:
    """The messages of all samples that a check refuses."""
    messages = []
    for files in samples:
        try:
            check(files)
        except UsageError as error:
            messages.append(str(error))
    return messages


def _check_header(files: SampleFiles) -> None:
    size = read_header(files.image).size
    for path in (files.label, files.scribble):
        if path is not None and path.suffix.lower() == ".png":
            _same_size(files.image, size, path, read_label_size(path))


def _check_contents(samples: Sequence[SampleFiles], load: Callable[[str], Sample], *, scribbles: bool) -> Iterator[str]:
    seeded: Counter[int] = Counter()
    empty: list[str] = []

    def read(files: SampleFiles) -> None:
        scribble = load(files.id).scribble
        if scribble is not None:
            values = np.unique(scribble[scribble != IGNORE])
            seeded.update(int(value) for value in values)
            if not values.size:
                empty.append(files.id)

    broken = _collect(read, samples)
    if broken:
        yield f"{len(broken)} of {len(samples)} samples cannot be used: {listed(broken)}"
    if scribbles and empty:
        yield f"{len(empty)} of {len(samples)} scribble files label no pixel at all: {listed(empty)}"
    if scribbles and not broken and len(seeded) == 1:
        yield f"all scribbles are of class {next(iter(seeded))}; training needs at least two classes with scribbles"
