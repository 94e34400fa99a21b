"""Annotations as other programs write them, by their documentation: six images of a box, scribbled or outlined."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = (24, 28)
NAMES = [f"i{number}" for number in range(6)]
BOX = (slice(6, 18), slice(8, 20))
STROKES = {"background": (slice(2, 3), slice(3, 25)), "box": (slice(11, 12), slice(10, 18))}
"""Rows and columns of one stroke a class."""

Labels = npt.NDArray[np.uint8]


def scribbles(unlabelled: int = 255, first: int = 0) -> Labels:
    """The strokes as a map: values from ``first`` on."""
    found = np.full(SIZE, unlabelled, dtype=np.uint8)
    for index, window in enumerate(STROKES.values()):
        found[window] = first + index
    return found


def labels() -> Labels:
    """1 in the box, 0 elsewhere."""
    found = np.zeros(SIZE, dtype=np.uint8)
    found[BOX] = 1
    return found


def write_images(folder: Path, names: list[str] | None = None) -> list[Path]:
    """A bright box on dark ground, with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths = []
    for name in names or NAMES:
        values = 60 + 120 * labels() + generator.normal(0, 10, SIZE)
        paths.append(folder / f"{name}.png")
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def _middle(window: tuple[slice, slice]) -> list[list[float]]:
    """A line (x, y) that is drawn as the one row of pixels ``window``, at a width of 1."""
    rows, columns = window
    return [[columns.start + 0.5, rows.start + 0.5], [columns.stop - 0.5, rows.start + 0.5]]


def labelme(root: Path) -> Path:
    """LabelMe 5: a JSON file beside each image."""
    for path in write_images(root):
        shapes = [
            {"label": name, "points": _middle(window), "group_id": None, "shape_type": "linestrip", "flags": {}}
            for name, window in STROKES.items()
        ]
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": path.name, "imageData": None}
        content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        path.with_suffix(".json").write_text(json.dumps(content, indent=2))
    return root


def _corners() -> list[float]:
    rows, columns = BOX
    return [float(value) for value in (columns.start, rows.start, columns.stop, rows.start, columns.stop, rows.stop,
                                       columns.start, rows.stop)]  # fmt: skip


def runs(mask: npt.NDArray[Any], order: str) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, 0 first; "F" down the columns, "C" along the rows."""
    flat = mask.astype(bool).ravel(order=order)
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *changes, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def coco_text(counts: list[int]) -> str:
    """COCO's compression: differences to the last but one from the fourth on, 5 bits a character, lowest first."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | (32 if more else 0)) + 48)
    return text


def coco(root: Path) -> Path:
    """COCO: instances.json; polygons, run lengths, and compressed ones."""
    paths = write_images(root / "images")
    counts = runs(labels(), "F")
    kinds: list[Any] = [
        [_corners()],
        {"size": list(SIZE), "counts": counts},
        {"size": list(SIZE), "counts": coco_text(counts)},
    ]
    content = {
        "images": [
            {"id": 10 + place, "file_name": path.name, "height": SIZE[0], "width": SIZE[1]}
            for place, path in enumerate(paths)
        ],
        "annotations": [
            {"id": place, "image_id": 10 + place, "category_id": 7, "iscrowd": 0, "segmentation": kinds[place % 3]}
            for place in range(len(paths))
        ],
        "categories": [{"id": 7, "name": "box", "supercategory": ""}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances.json").write_text(json.dumps(content))
    return root


def label_studio_rle(mask: npt.NDArray[Any]) -> list[int]:
    """How Label Studio packs the RGBA picture of a stroke; both kinds of chunks, all four kinds of lengths."""
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4)
    sizes = [3, 4, 8, 16]
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        while start < stop:
            length = min(stop - start, 2 ** sizes[number % 4])
            kind = next(kind for kind in range(4) if length <= 2 ** sizes[kind])
            literal = number % 5 == 4 and length <= 16
            text += f"{int(not literal)}{kind:02b}{length - 1:0{sizes[kind]}b}"
            text += f"{values[start]:08b}" * (length if literal else 1)
            start += length
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def label_studio(root: Path) -> Path:
    """Label Studio: the export "JSON", images renamed by its page."""
    paths = write_images(root / "images")
    tasks = []
    for place, path in enumerate(paths):
        results = [
            {
                "original_width": SIZE[1],
                "original_height": SIZE[0],
                "image_rotation": 0,
                "value": {"format": "rle", "rle": label_studio_rle(_mask(window)), "brushlabels": [name]},
                "id": f"r{number}",
                "from_name": "tag",
                "to_name": "image",
                "type": "brushlabels",
                "origin": "manual",
            }
            for number, (name, window) in enumerate(STROKES.items())
        ]
        tasks.append(
            {
                "id": place,
                "annotations": [{"id": place, "completed_by": 1, "result": results, "was_cancelled": False}],
                "data": {"image": f"/data/upload/3/0f9e8d7{place}-{path.name}"},
                "predictions": [],
            }
        )
    (root / "project-3.json").write_text(json.dumps(tasks))
    return root / "project-3.json"


def _mask(window: tuple[slice, slice]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[window] = True
    return mask


def cvat(root: Path) -> Path:
    """CVAT for images 1.1: annotations.xml and images/; polylines on half of the images, a mask on the others, too."""
    paths = write_images(root / "images")
    elements = []
    for place, path in enumerate(paths):
        shapes = [
            f'<polyline label="{name}" source="manual" occluded="0" '
            f'points="{";".join(f"{x:.2f},{y:.2f}" for x, y in _middle(window))}" z_order="0"></polyline>'
            for name, window in STROKES.items()
        ]
        if place % 2:
            rows, columns = BOX
            box = labels()[BOX]
            counts = ", ".join(map(str, runs(box, "C")))
            shapes.append(
                f'<mask label="box" source="manual" occluded="0" rle="{counts}" left="{columns.start}" '
                f'top="{rows.start}" width="{box.shape[1]}" height="{box.shape[0]}" z_order="0"></mask>'
            )
        elements.append(
            f'<image id="{place}" name="{path.name}" width="{SIZE[1]}" height="{SIZE[0]}">{"".join(shapes)}</image>'
        )
    names = "".join(
        f"<label><name>{name}</name><color>{color}</color><type>any</type><attributes></attributes></label>"
        for name, color in (("background", "#000000"), ("box", "#fa3253"))
    )
    (root / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>'
        f"{names}</labels></task></meta>{''.join(elements)}</annotations>\n"
    )
    return root


def labelmap(root: Path) -> Path:
    """CVAT's segmentation masks 1.1: labelmap.txt and pictures in its colours, RGB and palette."""
    paths = write_images(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nbox:250,50,83::\n")
    for place, path in enumerate(paths):
        colors = np.array([(0, 0, 0), (250, 50, 83)], dtype=np.uint8)[labels()]
        picture = Image.fromarray(colors)
        if place % 2:
            picture = picture.quantize(8)
        picture.save(root / "SegmentationClass" / path.name)
    return root


def label_tiff(root: Path) -> Path:
    """Napari: a labels layer saved beside each image; int32, compressed, 0 = nothing."""
    import tifffile

    for path in write_images(root):
        tifffile.imwrite(
            path.with_name(f"{path.stem}-labels.tif"), scribbles(0, 1).astype(np.int32), compression="zlib"
        )
    return root


def ilastik(root: Path) -> Path:
    """ilastik: exported labels, uint8 with a channel axis, named after the images."""
    import tifffile

    for path in write_images(root):
        tifffile.imwrite(
            path.with_name(f"{path.stem}_Labels.tiff"), scribbles(0, 1)[..., None], metadata={"axes": "YXC"}
        )
    return root


def strokes(root: Path) -> Path:
    """SimpleCRF: red strokes for the object and blue ones for the background, on black."""
    for path in write_images(root):
        colors = np.zeros((*SIZE, 3), dtype=np.uint8)
        colors[STROKES["box"]], colors[STROKES["background"]] = (255, 0, 0), (0, 0, 255)
        Image.fromarray(colors).save(path.with_name(f"{path.stem}_scribbles.png"))
    return root


def wsl4mis(root: Path) -> Path:
    """WSL4MIS: image, label and scribble of a slice in HDF5; 4 = unlabelled."""
    import h5py

    root.mkdir(parents=True)
    for path in write_images(root / "png"):
        with h5py.File(root / f"{path.stem}.h5", "w") as file:
            file["image"] = np.asarray(Image.open(path)).astype(np.float64) / 255
            file["label"], file["scribble"] = labels(), scribbles(4)
    return root


def encoded_png(values: npt.NDArray[Any]) -> str:
    """An array as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


WRITERS: dict[str, Callable[[Path], Path]] = {
    "labelme": labelme,
    "coco": coco,
    "label-studio": label_studio,
    "cvat": cvat,
    "labelmap": labelmap,
    "label-tiff": label_tiff,
    "ilastik": ilastik,
    "strokes": strokes,
    "wsl4mis": wsl4mis,
}
"""Formats by name: writes files into a folder, and returns what is to be imported."""
