"""Annotations of other programs are named."""

from __future__ import annotations

from pathlib import Path

from regloss.io.annotations import foreign_annotations


def test_what_lies_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": "5.0", "shapes": [], "imagePath": "a.png"}')
    (tmp_path / "b.json").write_text('{"shapes": []}')
    (tmp_path / "other.json").write_text('{"shapes": []}')  # of no image
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (tmp_path / "a.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    (tmp_path / "b.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "a.nii.gz").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    found = foreign_annotations([tmp_path, tmp_path / "absent", tmp_path], ["a", "b"])
    assert f"2 LabelMe files ({tmp_path / 'a.json'}, {tmp_path / 'b.json'})" in found
    assert f"1 COCO file ({tmp_path / 'instances.json'})" in found
    assert "1 PASCAL VOC box file" in found
    assert "1 text file" in found
    assert "1 NIfTI file" in found
    assert "docs/guide/data.md" in found
    assert "other.json" not in found
    assert "`regloss data import` makes a data set of what LabelMe, COCO," in found
    assert "label maps are not read from NIfTI and PASCAL VOC box and text: docs/guide/data.md" in found
    alone = foreign_annotations([tmp_path], ["c"])
    assert alone.startswith(f"there are 1 COCO file ({tmp_path / 'instances.json'}); `regloss data import` ")
    assert "docs/guide" not in alone
    (tmp_path / "instances.json").unlink()
    assert foreign_annotations([tmp_path], ["c"]) == ""
