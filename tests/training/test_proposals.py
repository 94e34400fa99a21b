"""The proposal store: whole files and whole generations only, from several writers."""

import multiprocessing
import os

import numpy as np
import pytest
from PIL import Image

from regloss.errors import ReglossError
from regloss.training.proposals import ProposalStore


@pytest.fixture
def store(tmp_path):
    return ProposalStore(tmp_path / "proposals")


def labels(value=1, size=(5, 6)):
    made = np.full(size, value, dtype=np.uint8)
    made[0, 0] = 255
    return made


@pytest.mark.parametrize("size", [(5, 6), (1, 1), (3, 5, 6)])
def test_what_is_written_is_read(store, size):
    made = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    store.write(0, "a b.c", made)
    store.finish(0, 1)
    read = store.read(0, "a b.c")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, made)


def test_nothing_is_made_before_the_first_proposal(store):
    store.keep_from(3)
    store.discard_after(-1)
    assert not store.folder.exists()


def test_an_incomplete_generation_is_not_read(store):
    store.write(0, "a", labels())
    with pytest.raises(ReglossError, match=r"generation-0000 are not complete"):
        store.read(0, "a")
    store.finish(0, 1)
    np.testing.assert_array_equal(store.read(0, "a"), labels())
    with pytest.raises(ReglossError, match="no proposal for 'b'"):
        store.read(0, "b")


def test_generations_are_kept_apart(store):
    for generation in range(3):
        store.write(generation, "a", labels(generation))
        store.finish(generation, 1)
    assert [store.read(generation, "a")[1, 1] for generation in range(3)] == [0, 1, 2]
    store.keep_from(1)
    store.discard_after(1)
    assert [path.name for path in store.folder.iterdir()] == ["generation-0001"]
    store.discard_after(-1)
    assert not list(store.folder.iterdir())


def test_many_generations_are_told_apart(store):
    for generation in (9, 10, 12345):
        store.write(generation, "a", labels())
    store.keep_from(10)
    store.discard_after(10)
    assert [path.name for path in store.folder.iterdir()] == ["generation-0010"]


@pytest.mark.parametrize("size", [(5, 6), (2, 5, 6)])
def test_a_write_that_fails_leaves_what_was_there(store, monkeypatch, size):
    store.write(0, "a", labels(1, size))
    store.finish(0, 1)

    def fail(*arguments, **options):
        file = arguments[1] if hasattr(arguments[1], "write") else arguments[0]
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    monkeypatch.setattr(np, "save", lambda file, array: fail(None, file))
    with pytest.raises(OSError, match="disk full"):
        store.write(0, "a", labels(2, size))
    np.testing.assert_array_equal(store.read(0, "a"), labels(1, size))


def test_several_processes_write(store):
    """Each its own samples; names of unfinished files carry the process."""
    context = multiprocessing.get_context("forkserver")
    writers = [
        context.Process(target=store.write, args=(0, name, labels(value))) for value, name in enumerate(("a", "b"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store.finish(0, 2)
    assert [store.read(0, name)[1, 1] for name in ("a", "b")] == [0, 1]
    assert sorted(os.listdir(store.folder / "generation-0000")) == ["a.png", "b.png", "complete.json"]
