"""Volumes made of ACDC's slices, halved: python docs/experiments/volumes.py ACDC OUTPUT.

The slices carry no spacing; 1.5 x 1.5 x 10 mm is assumed, so that the halved volumes have 3 x 3 x 10 mm.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nibabel
import numpy as np

from regloss.io.images import read_image
from regloss.io.labels import read_values
from regloss.io.reduction import reduce_image, reduce_labels, reduce_scribbles
from regloss.io.volumes import Geometry, write_label_volume

SPACING = (10.0, 3.0, 3.0)


def main(source: Path, output: Path) -> None:
    """Write ``output``/images, labels and scribbles from the folders of these names below ``source``."""
    cases: dict[str, dict[int, str]] = {}
    for path in (source / "images").glob("*.png"):
        name = re.fullmatch(r"(patient\d+_frame\d+)_slice_(\d+)", path.stem)
        if name is None:
            raise SystemExit(f"{path} is not named as ACDC's slices are.")
        cases.setdefault(name[1], {})[int(name[2])] = path.name
    for part in ("images", "labels", "scribbles"):
        (output / part).mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING[::-1], 1.0])
    for case, slices in sorted(cases.items()):
        names = [slices[number] for number in sorted(slices)]
        image = np.stack([reduce_image(read_image(source / "images" / name, 1), 2)[0] for name in names])
        labels = np.stack([reduce_labels(read_values(source / "labels" / name), 2) for name in names])
        scribbles = np.stack([reduce_scribbles(read_values(source / "scribbles" / name), 2) for name in names])
        geometry = Geometry(labels.shape, SPACING, affine)
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(image.T), affine), output / "images" / f"{case}.nii.gz")
        write_label_volume(output / "labels" / f"{case}.nii.gz", labels, geometry)
        write_label_volume(output / "scribbles" / f"{case}.nii.gz", scribbles, geometry)
    print(f"{len(cases)} volumes in {output}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
