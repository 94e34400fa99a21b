"""What is drawn is on disk after every stroke, complete, and what was there before is kept."""

import os

import numpy as np
import pytest
from annotation import OTHER_TAB, TAB, strokes_of, write_images
from PIL import Image

from regloss.apps.annotate.image_set import ImageSet
from regloss.apps.annotate.leases import SECONDS, Leases
from regloss.apps.annotate.scribbles import OutOfDate, Scribbles, Stroke
from regloss.errors import FailedWrite, UsageError
from regloss.io.classes import read_classes

HEIGHT, WIDTH = 40, 56


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "set")


def store(root):
    return Scribbles(ImageSet(root))


def stroke(revision, runs, number=0, tab=TAB):
    return Stroke(tab, number, revision, runs)


def save(path, labels):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(labels).save(path)


def blank():
    return np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)


def test_a_stroke_is_on_disk_when_it_is_answered(root):
    scribbles = store(root)
    assert not scribbles.is_drawn(1)
    assert scribbles.draw(1, stroke(0, [0, 3, 0, WIDTH, 2, 1])) == 1
    expected = blank()
    expected[0, :3], expected[1, :2] = 0, 1
    np.testing.assert_array_equal(strokes_of(root / "scribbles/i1.png"), expected)
    assert scribbles.is_drawn(1)
    assert [path.name for path in (root / "scribbles").iterdir()] == ["i1.png"]
    # Without classes.toml nobody could train on it.
    assert read_classes(root / "classes.toml")[0] == ("background", "object")
    # Whoever comes next, finds it.
    labels, _ = store(root).read(1)
    np.testing.assert_array_equal(labels, expected)


def test_an_image_without_strokes_has_no_file(root):
    scribbles = store(root)
    scribbles.draw(0, stroke(0, [5, 4, 1]))
    scribbles.draw(0, stroke(1, [5, 4, 255], 1))
    assert not (root / "scribbles/i0.png").exists()
    assert not scribbles.is_drawn(0)


def test_a_stroke_that_is_sent_twice_counts_once(root):
    scribbles = store(root)
    first = stroke(0, [5, 4, 1])
    assert scribbles.draw(0, first) == scribbles.draw(0, first) == 1


def test_strokes_on_another_state_are_refused(root):
    """Of another tab, and of another program, whose file is read and not replaced."""
    scribbles = store(root)
    scribbles.draw(0, stroke(0, [5, 4, 1]))
    with pytest.raises(OutOfDate, match="i0 has been changed elsewhere"):
        scribbles.draw(0, stroke(0, [9, 1, 0], tab=OTHER_TAB))
    foreign = blank()
    foreign[30] = 1
    save(root / "scribbles/i0.png", foreign)
    with pytest.raises(OutOfDate):
        scribbles.draw(0, stroke(1, [9, 1, 0], 1))
    labels, revision = scribbles.read(0)
    np.testing.assert_array_equal(labels, foreign)
    scribbles.draw(0, stroke(revision, [9, 1, 0], 2))
    foreign[0, 9] = 0
    np.testing.assert_array_equal(strokes_of(root / "scribbles/i0.png"), foreign)


def test_what_was_there_is_kept_beside(root):
    path, copy = root / "scribbles/i0.png", root / "scribbles/i0.png.bak"
    before = blank()
    before[3, 4:9] = 1
    save(path, before)
    original = path.read_bytes()
    scribbles = store(root)
    _, revision = scribbles.read(0)
    assert not copy.exists()
    for number in range(3):
        revision = scribbles.draw(0, stroke(revision, [200 + number, 1, 0], number))
    assert copy.read_bytes() == original
    assert ImageSet(root).ids == ("i0", "i1", "i2")


def test_a_copy_gives_way_to_one_with_more_alone(root):
    path = root / "scribbles/i0.png"
    before = blank()
    before[3, 4:9] = 1
    save(path, before)

    def session(runs):
        scribbles = store(root)
        scribbles.draw(0, stroke(scribbles.read(0)[1], runs))

    session([200, 5, 0])  # more than before
    session([300, 5, 0])  # its copy has all of the first one's strokes, which gives way
    assert sorted(found.name for found in path.parent.iterdir()) == ["i0.png", "i0.png.bak"]
    assert (strokes_of(path.with_name("i0.png.bak")) == 0).sum() == 5
    session([200, 5, 255])  # takes away
    session([400, 5, 0])  # its copy has less, and has to find another name
    assert sorted(found.name for found in path.parent.iterdir()) == ["i0.png", "i0.png.bak", "i0.png.bak.1"]
    assert (strokes_of(path.with_name("i0.png.bak")) == 0).sum() == 10
    assert (strokes_of(path.with_name("i0.png.bak.1")) == 0).sum() == 5


def test_a_file_that_cannot_be_written_changes_nothing(root, monkeypatch):
    scribbles = store(root)
    scribbles.draw(0, stroke(0, [5, 4, 1]))
    saved = (root / "scribbles/i0.png").read_bytes()

    def full(*arguments, **options):
        raise FailedWrite("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("regloss.apps.annotate.sources.save_label_png", full)
        with pytest.raises(FailedWrite):
            scribbles.draw(0, stroke(1, [9, 4, 0], 1))
    assert (root / "scribbles/i0.png").read_bytes() == saved
    assert scribbles.draw(0, stroke(1, [9, 4, 0], 1)) == 2  # sent again


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [1, 2],
        [-1, 2, 0],
        [0, 0, 0],
        [0, -1, 0],
        [HEIGHT * WIDTH - 1, 2, 0],
        [2**62, 2**62, 0],
        [2**70, 1, 0],
        [0, 1, 2],
        [0, 1, 254],
        [0, 1, -1],
        [0, HEIGHT * WIDTH, 0, 0, 1, 1],
    ],
)
def test_runs_that_are_none(root, runs):
    scribbles = store(root)
    with pytest.raises(UsageError):
        scribbles.draw(0, stroke(0, runs))
    assert not (root / "scribbles").exists()
    assert scribbles.read(0)[1] == 0


def test_files_that_are_no_scribbles_are_left_alone(root):
    (root / "classes.toml").write_text('[[class]]\nname = "a"\n\n[[class]]\nname = "b"\n')
    save(root / "scribbles/i0.png", np.zeros((3, 4), dtype=np.uint8))
    save(root / "scribbles/i1.png", np.full((HEIGHT, WIDTH), 7, dtype=np.uint8))
    (root / "scribbles/i2.png").write_bytes(b"no picture")
    before = {path.name: path.read_bytes() for path in (root / "scribbles").iterdir()}
    scribbles = store(root)
    for index, why in ((0, "3 pixels high and 4 wide"), (1, "label value 7"), (2, "i2.png")):
        with pytest.raises(UsageError, match=why):
            scribbles.draw(index, stroke(0, [0, 1, 1]))
    assert {path.name: path.read_bytes() for path in (root / "scribbles").iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_that_lead_out(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    scribbles = store(root)
    (root / "scribbles").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of"):
        scribbles.draw(0, stroke(0, [0, 1, 1]))
    assert not list(outside.iterdir())
    with pytest.raises(UsageError, match="leads out of"):
        ImageSet(root)
    (root / "scribbles").unlink()
    secret = outside / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    (root / "images/link.png").symlink_to(secret)
    with pytest.raises(UsageError, match=r"link.png is a link that leads out of"):
        ImageSet(root)


def test_unfinished_files_of_killed_servers_are_removed(root):
    (root / "scribbles").mkdir()
    old, new = root / "scribbles/.i0.png.99999", root / "scribbles/.i1.png.99998"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    store(root)
    assert not old.exists()
    assert new.exists()  # of a server that may be writing it now


def test_more_images_than_stay_in_memory(tmp_path, monkeypatch):
    root = write_images(tmp_path / "set", count=20)
    scribbles = store(root)
    monkeypatch.setattr("regloss.apps.annotate.scribbles._KEPT", 5 * 40 * 56)
    for index in range(20):
        assert scribbles.draw(index, stroke(0, [index, 1, 1])) == 1
    for index in range(20):
        labels, revision = scribbles.read(index)
        assert (revision, np.flatnonzero(labels.ravel() == 1).tolist()) == (1, [index])
        assert sum(drawing.planes is not None for drawing in scribbles._drawings.values()) == 5


def test_images_beside_each_other_will_do(tmp_path):
    root = write_images(tmp_path / "photographs", folder=".")
    images = ImageSet(root)
    assert (images.folder, images.ids) == (".", ("i0", "i1", "i2"))
    Scribbles(images).draw(0, stroke(0, [5, 4, 1]))
    assert (root / "scribbles/i0.png").exists()
    assert ImageSet(root).ids == ("i0", "i1", "i2")


def test_grey_and_colour_images_together(root):
    Image.new("L", (WIDTH, HEIGHT), 90).save(root / "images/grey.png")
    images = ImageSet(root)
    assert images.image(0).shape == (3, HEIGHT, WIDTH)
    assert any("mixed" in note for note in images.notes)


def test_folders_without_images(tmp_path):
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(UsageError, match="no images to draw on"):
        ImageSet(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        ImageSet(tmp_path / "absent")


def test_classes_are_changed_and_kept(root):
    text = '# mine\n[[class]]\nname = "sky"\n\n[[class]]\nname = "sea"\ncolor = [0, 0, 250]\n'
    (root / "classes.toml").write_text(text)
    images = ImageSet(root)
    assert images.classes.names == ("sky", "sea")
    images.change_classes(["sky", 'a "ship"', "Möwe"], [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert read_classes(root / "classes.toml") == (("sky", 'a "ship"', "Möwe"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    assert (root / "classes.toml.bak").read_text() == text
    for names, why in (
        (["a", "b"], "There are 3 classes"),
        (["a", "a", "b"], "must differ"),
        (["a", "", "b"], "differ"),
    ):
        with pytest.raises(UsageError, match=why):
            images.change_classes(names, [(0, 0, 0)] * len(names))
    with pytest.raises(UsageError, match="printable"):
        images.change_classes(["a", "b\n", "c\x7f"], [(0, 0, 0)] * 3)


def test_classes_that_nobody_named(root):
    drawn = blank()
    drawn[0, 0] = 3
    save(root / "scribbles/i0.png", drawn)
    assert ImageSet(root).classes.names == ("background", "object", "class 2", "class 3")
    drawn[0, 0] = 128
    save(root / "scribbles/i0.png", drawn)
    with pytest.raises(UsageError, match="as if there were 129 classes"):
        ImageSet(root)


def test_leases_of_tabs():
    now = 0.0
    leases = Leases(lambda: now)
    assert leases.claim(0, TAB)
    assert leases.claim(0, TAB)
    assert not leases.claim(0, OTHER_TAB)
    assert leases.claim(1, OTHER_TAB)
    assert leases.claim(0, OTHER_TAB, take=True)
    assert not leases.claim(0, TAB)
    leases.release(0, TAB)  # not its own
    assert not leases.claim(0, TAB)
    now = SECONDS + 1
    assert leases.claim(0, TAB)
    leases.release(0, TAB)
    assert leases.claim(0, OTHER_TAB)
