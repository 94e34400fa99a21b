"""What is in samples is found out once, by several processes, and remembered while their files stay as they are."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from regloss.dataset import Dataset, Sample
from regloss.errors import UsageError
from regloss.training import survey
from regloss.training.sample_reader import SampleReader
from regloss.training.survey import Facts, Memory, Survey, find_facts
from regloss_plugins.datasets.folder import FolderDataset


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four images of three classes, with labels and scribbles; nothing is remembered of any."""
    monkeypatch.setenv("REGLOSS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for part in ("images", "labels", "scribbles"):
        (tmp_path / part).mkdir()
    for number in range(4):
        label = rng.integers(0, 3, (8, 9)).astype(np.uint8)
        label[0, 0] = 255 if number == 1 else 0
        scribble = np.full_like(label, 255)
        scribble[0, 1 : 3 + number] = label[0, 1 : 3 + number]
        Image.fromarray(rng.integers(0, 255, (8, 9)).astype(np.uint8)).save(tmp_path / "images" / f"i{number}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"i{number}.png")
        Image.fromarray(scribble).save(tmp_path / "scribbles" / f"i{number}.png")
    return tmp_path


class Counted(FolderDataset):
    """Counts what it reads."""

    def load(self, sample_id):
        self.loaded = [*getattr(self, "loaded", []), sample_id]
        return super().load(sample_id)


def surveyed(root, supervision="scribbles", **settings):
    """Facts of all samples, and which were read for them."""
    source = Counted(root, classes=3)
    reader = SampleReader(source, **settings)
    memory = Memory.of("folder", {"root": str(root)}, reader)
    found = Survey(reader, memory=memory)(source.ids("all"), supervision)
    return found, getattr(source, "loaded", [])


def test_facts_are_those_of_the_samples(root):
    found, read = surveyed(root)
    assert read == list(found) == ["i0", "i1", "i2", "i3"]
    for sample_id, facts in found.items():
        sample = FolderDataset(root, classes=3).load(sample_id)
        assert facts.classes == tuple(np.unique(sample.scribble)[:-1])
        assert facts.scribbled == (sample.scribble != 255).mean()
        assert facts.ignored == (sample_id == "i1")
        assert facts.spacing is None


def test_nothing_is_read_twice(root):
    first, _ = surveyed(root)
    again, read = surveyed(root)
    assert again == first
    assert read == []


@pytest.mark.parametrize("part", ["images", "labels", "scribbles"])
def test_a_file_that_changed_is_read_again(root, part):
    surveyed(root)
    path = root / part / "i2.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert surveyed(root)[1] == ["i2"]
    (root / "scribbles" / "i3.png").unlink()
    with pytest.raises(UsageError, match="i3 has no scribble"):
        surveyed(root)


def test_other_questions_have_other_answers(root):
    scribbles, _ = surveyed(root)
    labels, read = surveyed(root, "labels")
    assert len(read) == 4
    assert labels["i0"].classes == (0, 1, 2) != scribbles["i0"].classes
    assert len(surveyed(root, scribble_length=0.0)[1]) == 4
    _, read = surveyed(root, unlabelled=["i0"])
    assert read == ["i0"]
    assert surveyed(root)[0] == scribbles


def test_what_was_read_before_a_damaged_file_is_remembered(root):
    Image.fromarray(np.full((8, 9), 7, np.uint8)).save(root / "scribbles" / "i2.png")
    with pytest.raises(UsageError, match="i2"):
        surveyed(root)
    with pytest.raises(UsageError, match="i2"):
        surveyed(root)
    Image.fromarray(np.full((8, 9), 1, np.uint8)).save(root / "scribbles" / "i2.png")
    assert surveyed(root)[1] == ["i2", "i3"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", json.dumps({"format": 0, "samples": 3}).encode()])
def test_a_damaged_memory_is_none(root, content):
    first, _ = surveyed(root)
    (path,) = (survey.cache_folder() / "samples").glob("*.json")
    path.write_bytes(content)
    found, read = surveyed(root)
    assert found == first
    assert len(read) == 4
    assert json.loads(path.read_bytes())["format"] == 1


def test_a_memory_that_cannot_be_written_is_told(root, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REGLOSS_CACHE", str(tmp_path / "file"))
    source = FolderDataset(root, classes=3)
    reader = SampleReader(source)
    asked = Survey(reader, memory=Memory.of("folder", {}, reader))
    assert len(asked(source.ids("all"), "scribbles")) == 4
    (note,) = asked.notes
    assert note.startswith("Samples will be read again the next time: ")
    assert str(tmp_path / "file") in note


def test_samples_without_files_are_not_remembered(monkeypatch):
    class Made(Dataset):
        classes, colors, channels = ("a", "b"), ((0, 0, 0), (1, 1, 1)), 1

        def ids(self, subset):
            return ["one"]

        def load(self, sample_id):
            labels = np.eye(4, dtype=np.uint8)
            return Sample("one", np.zeros((1, 4, 4), np.float32), labels, labels, "one", (1.0, 2.0))

    reader = SampleReader(Made())
    memory = Memory.of("made", {}, reader)
    assert Survey(reader, memory=memory)(["one"], "labels") == {"one": Facts((0, 1), False, 1.0, (1.0, 2.0))}
    assert not memory.path.exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_find_the_same(root, monkeypatch, damaged):
    monkeypatch.setattr(survey, "PATIENCE", 0.0)
    source = FolderDataset(root, classes=3)
    reader = SampleReader(source)
    ids = source.ids("all")
    expected = {sample_id: find_facts(reader, sample_id, "scribbles") for sample_id in ids}
    asked = Survey(SampleReader(source), workers=1)
    if damaged:
        (root / "images" / "i1.png").write_bytes(b"")
        with pytest.raises(UsageError, match="i1"):
            asked(ids, "scribbles")
    else:
        assert asked(ids, "scribbles") == expected
        assert asked.reader._samples == {}


def test_what_all_samples_decide_together_is_part_of_the_question(root):
    """A spacing of "median" and a window that is found change with other samples' files, not with the sample's own."""
    reader = SampleReader(FolderDataset(root, classes=3))
    paths = {Memory.of("folder", {}, reader).path}
    for name, value in (("spacing", (1.0, 2.0)), ("spacing", (1.0, 3.0)), ("window", [0, 4095])):
        setattr(reader.source, name, value)
        paths.add(Memory.of("folder", {}, reader).path)
    assert len(paths) == 4


def test_pseudo_labels_are_not_remembered(root):
    reader = SampleReader(FolderDataset(root, classes=3), proposals=replace)
    assert Memory.of("folder", {}, reader) is None
