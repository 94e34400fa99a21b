"""From samples to batches: checks, the order of samples over processes, crops and what they carry."""

import os
import pickle
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from regloss.dataset import Dataset, Sample
from regloss.errors import UsageError
from regloss.training.config import Data
from regloss.training.loader import (
    EpochOrder,
    TrainingLoader,
    TrainingSet,
    collate,
    crop_size,
    like_groups,
    whole_batch,
)
from regloss.training.proposals import ProposalStore
from regloss.training.sample_checks import check_evaluation_samples, check_training_samples
from regloss.training.sample_reader import SampleReader, check_sample
from regloss.training.survey import Survey
from regloss_plugins.datasets.folder import FolderDataset


def sample(name="a", size=(6, 7), channels=1, **changes):
    rng = np.random.default_rng(len(name))
    label = rng.integers(0, 3, size).astype(np.uint8)
    scribble = np.where(rng.random(size) < 0.15, label, np.uint8(255))
    scribble.reshape(-1)[:3] = (0, 1, 2)
    made = Sample(name, rng.random((channels, *size), dtype=np.float32), label, scribble, name)
    return replace(made, **changes)


class InMemory(Dataset):
    classes = ("background", "one", "two")
    colors = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    channels = 1

    def __init__(self, *samples, test=()):
        self.samples = {one.id: one for one in (*samples, *test)}
        self.subsets = {"train": [one.id for one in samples], "test": [one.id for one in test]}
        self.loaded = []

    def ids(self, subset):
        return self.subsets[subset]

    def load(self, sample_id):
        self.loaded.append(sample_id)
        return self.samples[sample_id]


# -- Checks ------------------------------------------------------------------------------------------------------------


def test_a_sound_sample_passes():
    check_sample(sample(), 3)
    check_sample(sample(size=(4, 5, 6)), 3)
    check_sample(sample(label=None, scribble=None), 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image": np.zeros((6, 7), np.float32)}, r"a: an image must be \(C, \*S\) float32; got \(6, 7\)"),
        ({"image": np.zeros((1, 6, 7))}, r"a: an image must be .*float32; got .*float64"),
        ({"image": np.full((1, 6, 7), np.nan, np.float32)}, r"a: image values must lie in \[0, 1\]; got NaN"),
        ({"image": np.full((1, 6, 7), 1.5, np.float32)}, r"got values from 1\.5 to 1\.5. Rescale"),
        ({"image": np.full((1, 6, 7), -np.inf, np.float32)}, r"got values from -inf"),
        ({"image": np.zeros((1, 7, 6), np.float32)}, r"a: the label has the size \(6, 7\), the image \(7, 6\)"),
        ({"scribble": np.zeros((6, 8), np.uint8)}, r"a: the scribble has the size \(6, 8\), the image \(6, 7\)"),
        ({"label": np.full((6, 7), 3, np.uint8)}, r"a: the label holds the values \[3\], but there are 3 classes"),
        ({"scribble": np.full((6, 7), 254, np.uint8)}, r"a: the scribble holds the values \[254\]"),
        ({"label": np.full((6, 7), -1, np.int16)}, r"a: the label holds the values \[-1\]"),
        ({"label": np.full((6, 7), 0.5)}, "a: the label must hold integers; got float64"),
    ],
)
def test_an_unsound_sample_is_refused(changes, expected):
    with pytest.raises(UsageError, match=expected):
        check_sample(sample(**changes), 3)


def test_mirrored_and_read_only_arrays_become_tensors():
    """As views of a file, or of another array, are."""
    plain = sample()
    mirrored = [np.ascontiguousarray(array[..., ::-1])[..., ::-1] for array in (plain.image, plain.label)]
    scribble = plain.scribble.astype(np.uint16)
    scribble.setflags(write=False)
    given = replace(plain, image=mirrored[0], label=mirrored[1], scribble=scribble)
    found = SampleReader(InMemory(given)).load("a")
    for name in ("image", "label", "scribble"):
        np.testing.assert_array_equal(torch.from_numpy(getattr(found, name)).numpy(), getattr(plain, name))
    assert found.scribble.dtype == np.uint8


def only(label, name):
    scribble = np.full((6, 7), 255, dtype=np.uint8)
    if label is not None:
        scribble[2, 3] = label
    return sample(name, scribble=scribble)


def survey_of(source):
    return Survey(SampleReader(source))


def test_images_without_a_scribble_are_listed():
    survey = survey_of(InMemory(sample("a"), only(None, "bb"), only(None, "ccc")))
    with pytest.raises(UsageError, match=r"2 training images have no labelled pixel in their scribbles: bb, ccc"):
        check_training_samples(survey, ["a", "bb", "ccc"], "scribbles")


def test_images_with_one_class_are_told():
    survey = survey_of(InMemory(only(0, "a"), only(1, "bb"), sample("ccc")))
    (warning,) = check_training_samples(survey, ["a", "bb", "ccc"], "scribbles")
    assert "In 2 images only one class is seeded" in warning
    assert warning.endswith("a, bb.")
    assert check_training_samples(survey, ["ccc"], "scribbles") == []


def test_one_class_in_all_images_is_refused():
    survey = survey_of(InMemory(only(1, "a"), only(1, "bb")))
    with pytest.raises(UsageError, match=r"All scribbles .* are of class 1 \('one'\).*Label at least two classes"):
        check_training_samples(survey, ["a", "bb"], "scribbles")
    assert len(check_training_samples(survey_of(InMemory(only(0, "a"), only(1, "bb"))), ["a", "bb"], "scribbles")) == 1


def test_supervision_that_is_not_there():
    survey = survey_of(InMemory(sample("a", scribble=None)))
    assert check_training_samples(survey, ["a"], "labels") == []
    with pytest.raises(UsageError, match="a has no scribble, and training was asked to use scribbles"):
        check_training_samples(survey, ["a"], "scribbles")


def test_evaluation_needs_sound_labels():
    check_evaluation_samples(survey_of(InMemory(test=[sample("a", scribble=None)])), "test")
    with pytest.raises(UsageError, match="'test' of the data set is empty"):
        check_evaluation_samples(survey_of(InMemory(sample("a"))), "test")
    with pytest.raises(UsageError, match="a has no label"):
        check_evaluation_samples(survey_of(InMemory(test=[sample("a", label=None)])), "test")
    wrong = sample("a", label=np.full((6, 7), 7, np.uint8))
    with pytest.raises(UsageError, match=r"the label holds the values \[7\]"):
        check_evaluation_samples(survey_of(InMemory(test=[wrong])), "test")


# -- Cache -------------------------------------------------------------------------------------------------------------


def test_samples_are_read_once():
    source = InMemory(sample("a"))
    cache = SampleReader(source)
    assert cache.load("a") is cache.load("a")
    assert source.loaded == ["a"]
    off = SampleReader(source, enabled=False)
    off.load("a"), off.load("a")
    assert source.loaded == ["a"] * 3


def test_the_cache_is_bounded(monkeypatch):
    one = sample("a")
    size = one.image.nbytes + one.label.nbytes + one.scribble.nbytes
    monkeypatch.setattr("regloss.training.sample_reader.CACHE_LIMIT", size + size // 2)
    source = InMemory(one, sample("bb"))
    cache = SampleReader(source)
    for name in ("a", "bb", "a", "bb"):
        cache.load(name)
    assert source.loaded == ["a", "bb", "bb"]
    source.loaded.clear()
    half = SampleReader(source)
    half.sharers = 2
    half.load("a"), half.load("a")
    assert source.loaded == ["a", "a"]


def test_loader_processes_are_not_sent_the_cache():
    cache = SampleReader(InMemory(sample("a", size=(200, 200))))
    cache.load("a")
    pickled = pickle.loads(pickle.dumps(cache))
    assert pickled._samples == {}
    assert len(cache._samples) == 1


def test_scribbles_are_shortened_once_and_labels_left():
    source = InMemory(sample("a"))
    cache = SampleReader(source, scribble_length=0.0)
    shortened = cache.load("a")
    assert 3 <= (shortened.scribble != 255).sum() < (source.samples["a"].scribble != 255).sum()
    assert np.array_equal(shortened.label, source.samples["a"].label)


# -- Order -------------------------------------------------------------------------------------------------------------


def places(order, epoch=0, **options):
    return [[place for _, place, _ in batch] for batch in order.batches(epoch, -1, **options)]


@pytest.mark.parametrize("count", [1, 5, 6, 12, 13])
@pytest.mark.parametrize(("processes", "batch"), [(2, 2), (3, 1), (4, 3)])
def test_processes_see_what_one_with_the_larger_batch_sees(count, processes, batch):
    one = EpochOrder(count, processes * batch, seed=7)
    parts = [EpochOrder(count, batch, 7, rank, processes) for rank in range(processes)]
    assert {part.steps for part in parts} == {one.steps}
    for epoch in range(3):
        together = [list(chain(*step)) for step in zip(*(places(part, epoch) for part in parts), strict=True)]
        assert together == places(one, epoch)


@pytest.mark.parametrize(("count", "batch"), [(6, 2), (7, 3), (2, 5), (1, 4)])
def test_every_sample_comes_and_the_last_batch_is_filled_from_the_start(count, batch):
    order = EpochOrder(count, batch, seed=1)
    flat = list(chain(*places(order)))
    assert len(flat) == order.steps * batch
    assert sorted(flat[:count]) == list(range(count))
    assert flat[count:] == (flat[:count] * batch)[: len(flat) - count]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {str(places(EpochOrder(20, 4, seed), epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert places(EpochOrder(20, 4, 0), 1) == places(EpochOrder(20, 4, 0), 1)


def test_a_resumed_epoch_goes_on_where_it_was():
    order = EpochOrder(11, 2, seed=0)
    assert places(order, 4, first_step=3) == places(order, 4)[3:]


def test_keys_carry_epoch_and_generation():
    (key, *_), *_ = EpochOrder(3, 1, 0).batches(5, 2)
    assert (key[0], key[2]) == (5, 2)


# -- Crops and batches -------------------------------------------------------------------------------------------------


def training_set(images, tmp_path, **settings):
    source = FolderDataset(images, classes=3)
    data = Data(dataset="folder", crop=20, augment={"flip": True, "scale": (0.7, 1.4), "rotate": 20}, **settings)
    store = ProposalStore(tmp_path / "proposals")
    for name in source.ids("train"):
        store.write(0, name, source.load(name).label)
    store.finish(0, len(source.ids("train")))
    return TrainingSet(SampleReader(source), source.ids("train"), data, 3, store)


def test_proposals_are_read_in_the_geometry_of_labels(images, tmp_path):
    """With dense labels as the proposals, a crop's proposal is its label, pixel for pixel."""
    made = training_set(images, tmp_path, supervision="labels")
    for key in [(epoch, place, 0) for epoch in range(3) for place in range(len(made))]:
        crop = made[key]
        assert torch.equal(crop.proposal, crop.labels)
        assert crop.image.shape == (1, 20, 20)
        assert (crop.labels[~crop.roi] == 255).all()
        assert (crop.image[:, ~crop.roi] == 0).all()


def test_scribbles_are_read_in_the_geometry_of_images(images, tmp_path):
    """Every scribbled pixel of a crop has the proposal's (here: the dense) label of its place."""
    made = training_set(images, tmp_path)
    for epoch in range(4):
        crop = made[epoch, 0, 0]
        seeded = crop.labels != 255
        assert 0 < seeded.sum() < crop.roi.sum() / 4
        assert torch.equal(crop.labels[seeded], crop.proposal[seeded])


def test_a_crop_depends_on_seed_epoch_and_place_alone(images, tmp_path):
    made = training_set(images, tmp_path)
    first = made[2, 1, 0].image
    torch.rand(3), np.random.random()  # what others draw plays no part
    made[0, 0, 0]
    assert torch.equal(made[2, 1, 0].image, first)
    assert not torch.equal(made[3, 1, 0].image, first)
    made.seed = 4
    assert not torch.equal(made[2, 1, 0].image, first)


def test_without_a_generation_there_is_no_proposal(images, tmp_path):
    made = training_set(images, tmp_path)
    assert made[0, 0, -1].proposal is None
    batch, proposals = collate([made[0, 0, -1], made[0, 1, -1]])
    assert proposals is None
    assert list(batch.ids) == ["i0", "i1"]


def test_images_of_different_sizes_are_padded_outside_the_region_of_interest(tmp_path):
    samples = [sample("a", (6, 9)), sample("bb", (8, 7))]
    made = TrainingSet(SampleReader(InMemory(*samples)), ["a", "bb"], Data(dataset="folder"), 0)
    batch, proposals = collate([made[0, 0, -1], made[0, 1, -1]])
    assert proposals is None
    assert batch.image.shape == (2, 1, 8, 9)
    assert batch.pixels.tolist() == [54, 56]
    for number, one in enumerate(samples):
        rows, columns = one.image.shape[1:]
        assert torch.equal(batch.image[number, :, :rows, :columns], torch.from_numpy(one.image))
        assert torch.equal(batch.labels[number, :rows, :columns], torch.from_numpy(one.scribble).long())
        assert batch.roi[number, :rows, :columns].all()
    assert (batch.labels[~batch.roi] == 255).all()
    assert (batch.image.movedim(1, -1)[~batch.roi] == 0).all()


def test_proposals_are_padded_like_labels(tmp_path):
    samples = [sample("a", (6, 9)), sample("bb", (8, 7))]
    store = ProposalStore(tmp_path)
    for one in samples:
        store.write(0, one.id, one.label)
    store.finish(0, 2)
    made = TrainingSet(SampleReader(InMemory(*samples)), ["a", "bb"], Data(dataset="folder"), 0, store)
    batch, proposals = collate([made[0, 0, 0], made[0, 1, 0]])
    assert torch.equal(proposals == 255, ~batch.roi)


def test_volumes(tmp_path):
    made = TrainingSet(SampleReader(InMemory(sample("a", (4, 6, 9)))), ["a"], Data(dataset="folder", crop=(4, 5, 6)), 0)
    assert made[0, 0, -1].image.shape == (1, 4, 5, 6)


@pytest.mark.parametrize(("crop", "ndim"), [(0, 2), ((4, 5), 3), ((4, 5, 6), 2), ((4, -1), 2)])
def test_invalid_crops(crop, ndim):
    with pytest.raises(UsageError, match="crop must be one positive number, or one for each"):
        crop_size(Data(dataset="folder", crop=crop), ndim)


def test_crop_sizes():
    assert crop_size(Data(dataset="folder"), 2) is None
    assert crop_size(Data(dataset="folder", crop=4), 3) == (4, 4, 4)
    assert crop_size(Data(dataset="folder", crop=(4, 5)), 2) == (4, 5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_loader_processes_give_the_batches_that_one_process_gives(images, tmp_path):
    made = training_set(images, tmp_path)
    order = EpochOrder(len(made), 3, seed=3)
    state = torch.get_rng_state()
    alone, helped = (TrainingLoader(made, order, workers) for workers in (0, 2))
    found = [
        [*loader.batches(1, generation=0, first_step=1), *loader.batches(2, generation=0)] for loader in (alone, helped)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    alone, helped = found
    assert len(alone) == len(helped) == 2 * order.steps - 1
    for (one, proposal), (other, same) in zip(alone, helped, strict=True):
        assert one.ids == other.ids
        for name in ("image", "labels", "roi"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(proposal, same)


class Told(InMemory):
    """Says in a sample's name which process loads it, the how manieth there, and how many share the memory."""

    def load(self, sample_id):
        one = super().load(sample_id)
        sharers = get_worker_info().dataset.training_set.reader.sharers
        return replace(one, id=f"{os.getpid()} {len(self.loaded)} {sharers}")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_loader_processes_live_through_all_epochs_and_keep_what_they_decode():
    source = Told(*map(sample, "abcd"))
    made = TrainingSet(SampleReader(source), source.ids("train"), Data(dataset="folder"), 0)
    loader = TrainingLoader(made, EpochOrder(4, 1, seed=0), 2)
    told = [one.ids[0].split() for epoch in range(8) for one, _ in loader.batches(epoch, -1)]
    assert len({process for process, _, _ in told[:4]}) == len({process for process, _, _ in told}) == 2
    assert max(int(loads) for _, loads, _ in told) <= 4
    assert {sharers for _, _, sharers in told} == {"2"}


def test_a_share_of_the_crops_holds_a_labelled_pixel_of_every_class_alike():
    scribble = np.full((4, 30, 30), 255, np.uint8)
    scribble[0, :, 0] = 0
    scribble[3, 29, 29] = 1
    one = Sample("a", np.zeros((1, 4, 30, 30), np.float32), None, scribble, "a")
    for share, least, most in ((0.5, 0.4, 0.62), (1.0, 1.0, 1.0)):
        data = Data(dataset="folder", crop=(2, 6, 6), crops_per_image=100, labelled_share=share)
        made = TrainingSet(SampleReader(InMemory(one)), ["a"], data, seed=0)
        assert len(made) == 100
        found = [set(np.unique(made[0, place, -1].labels)) - {255} for place in range(100)]
        assert least <= np.mean([bool(classes) for classes in found]) <= most
    assert 35 <= sum(classes == {1} for classes in found) <= 65


# -- Whole images ------------------------------------------------------------------------------------------------------


def sample_of(name, size, spacing=None):
    return Sample(name, np.zeros((1, *size), np.float32), None, None, name, spacing)


def test_groups_hold_consecutive_images_of_one_size_and_spacing():
    sizes = [(4, 4)] * 3 + [(4, 5)] + [(4, 4)] * 2
    samples = [sample_of(str(number), size) for number, size in enumerate(sizes)]
    found = [[sample.id for sample in group] for group in like_groups(samples, 2)]
    assert found == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert list(like_groups([], 2)) == []
    spaced = [sample_of("a", (4, 4), (1.0, 1.0)), sample_of("b", (4, 4), (1.0, 2.0)), sample_of("c", (4, 4))]
    assert list(like_groups(spaced, 3)) == [[one] for one in spaced]
    volumes = [sample_of(name, (2, 4, 4)) for name in "ab"]
    assert list(like_groups(volumes, 3)) == [[one] for one in volumes]  # each fills memory
    assert whole_batch(spaced[1:2], None).spacing == (1.0, 2.0)
    assert whole_batch(spaced[2:], None).spacing is None
    with pytest.raises(UsageError, match=r"one spacing; a has \(1.0, 1.0\) mm and b \(1.0, 2.0\)\. Resample them"):
        whole_batch(spaced, None)


def test_whole_batches():
    samples = [sample("a"), sample("bb")]
    batch = whole_batch(samples, [one.scribble for one in samples])
    assert batch.roi is None
    assert batch.labels.dtype == torch.int64
    assert torch.equal(batch.image[1], torch.from_numpy(samples[1].image))
    assert whole_batch(samples, None).labels is None
