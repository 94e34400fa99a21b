"""`regloss data`: annotations become a data set that is trained on; a check says what is wrong, with its exit code."""

from __future__ import annotations

import foreign_files
from PIL import Image


def test_import_check_and_train(regloss, tmp_path):
    source = foreign_files.strokes(tmp_path / "source")
    root = tmp_path / "set"
    done = regloss("data", "import", source, "-o", root, "--colors", "red=box,#00f=background")
    assert done.code == 0, done.err
    assert "strokes in colours: 6 images, 2 classes: 0 background, 1 box" in done.out
    assert f'dataset = "folder"\nroot = "{root}"' in done.out
    assert "Nothing is wrong." in done.out
    assert regloss("data", "import", source, "-o", root).code == 2
    assert regloss("data", "import", source, "-o", root, "--overwrite").code == 0
    checked = regloss("data", "check", root, "--picture", tmp_path / "sheet.png")
    assert checked.code == 0
    assert "6 of 6 samples" in checked.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 700
    again = regloss("data", "check", root, "--picture", tmp_path / "sheet.png")
    assert again.code == 2
    assert "exists already" in again.err
    (root / "scribbles" / "i3.png").write_bytes(b"")
    checked = regloss("data", "check", root)
    assert checked.code == 1
    assert "i3.png is no PNG file" in checked.out
    checked = regloss("data", "check", root, "--set", "scribbles=other")
    assert checked.code == 1
    assert "which a setting names" in checked.out


def test_bad_input_exits_with_2(regloss, tmp_path):
    source = foreign_files.labelme(tmp_path / "source")

    def refused(message, *options):
        done = regloss("data", *options)
        assert (done.code, message in done.err) == (2, True), done.err

    given = ("import", source, "-o", tmp_path / "set")
    refused("from 1 to 1000; got 0.5", *given, "--stroke-width", 0.5)
    refused("list of different names", *given, "--classes", "a,a")
    refused("'reddish' is no colour", *given, "--colors", "reddish=a")
    refused("must be a colour of its own and a class", *given, "--colors", "red")
    refused("--as is scribbles or labels", *given, "--as", "lines")
    refused("there is no folder", "check", tmp_path / "absent")
    refused("must end in .png", "check", source, "--picture", tmp_path / "a.jpg")
    refused("--set is KEY=VALUE", "check", source, "--set", "unlabelled")
    assert not (tmp_path / "set").exists()
