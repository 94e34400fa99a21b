"""Proposals from scribbles and colours: seeds, classes, once for each image, and a training on them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from regloss import ChanVese, MissingForm, UsageError, alternate
from regloss.dataset import IGNORE
from regloss.registry import create
from regloss.training import color_pseudo_labels
from regloss.training.color_pseudo_labels import ColorPseudoLabels
from regloss.training.config import Proposals, build_proposals
from regloss.training.loader import TrainingSet
from regloss.training.sample_reader import SampleReader
from regloss.training.trainer import train


@pytest.fixture
def source(config):
    data = config().data
    return create("dataset", data.dataset, **data.component_settings())


def make(ids, **settings):
    proposals = build_proposals(Proposals(**settings))
    assert proposals is not None
    proposals.only_of(ids)
    return proposals


def test_they_are_full_segmentations_that_keep_the_seeds(source):
    ids = source.ids("train")
    proposals = make(ids)
    cache, plain = SampleReader(source, proposals=proposals), SampleReader(source)
    scores = []
    for sample_id in ids:
        sample, given = cache.load(sample_id), plain.load(sample_id)
        assert sample.scribble.dtype == np.uint8
        assert sample.scribble.shape == given.scribble.shape
        seeded = given.scribble != IGNORE
        np.testing.assert_array_equal(sample.scribble[seeded], given.scribble[seeded])
        assert set(np.unique(sample.scribble)) <= set(np.unique(given.scribble[seeded]))
        np.testing.assert_array_equal(sample.label, given.label)
        scores.append((sample.scribble == sample.label).mean())
        by_hand = alternate(
            "histogram",
            {"name": "grid-crf", "weight": 5.0},
            "alpha-expansion",
            torch.from_numpy(given.image)[None],
            torch.from_numpy(given.scribble)[None],
            fixed=torch.from_numpy(np.where(seeded, given.scribble.astype(np.int64), -1))[None],
            max_rounds=5,
        )
        np.testing.assert_array_equal(sample.scribble, by_hand.labels[0])
    assert np.mean(scores) > 0.9


def test_others_than_the_training_images_keep_their_scribbles(source):
    cache = SampleReader(source, proposals=make(source.ids("train")))
    plain = SampleReader(source)
    for sample_id in source.ids("test"):
        np.testing.assert_array_equal(cache.load(sample_id).scribble, plain.load(sample_id).scribble)


def test_only_scribbled_classes_take_part(source):
    """Classes 1 and 2 of three, under their own names; one class alone, or none, stays as it is."""
    ids = source.ids("train")
    sample = source.load(ids[0])
    proposals = make(ids)
    two = np.where(sample.scribble == 0, IGNORE, sample.scribble).astype(np.uint8)
    found = proposals.propose(replace(sample, scribble=two))
    assert set(np.unique(found)) == {1, 2}
    for kept in ([2], []):
        scribble = np.where(np.isin(sample.scribble, kept), sample.scribble, IGNORE).astype(np.uint8)
        np.testing.assert_array_equal(proposals.propose(replace(sample, scribble=scribble)), scribble)
    unscribbled = replace(sample, scribble=None)
    assert make(ids)(unscribbled) is unscribbled


def test_each_image_is_solved_for_once(source, monkeypatch):
    calls = []

    def counted(*arguments, **settings):
        calls.append(1)
        return alternate(*arguments, **settings)

    monkeypatch.setattr(color_pseudo_labels, "alternate", counted)
    ids = source.ids("train")
    cache = SampleReader(source, enabled=False, proposals=make(ids, rounds=1))
    first = [cache.load(sample_id).scribble for sample_id in ids]
    again = pickle.loads(pickle.dumps(cache))  # as a loader process gets it
    for sample_id, expected in zip(ids, first, strict=True):
        np.testing.assert_array_equal(cache.load(sample_id).scribble, expected)
        np.testing.assert_array_equal(again.load(sample_id).scribble, expected)
    assert len(calls) == len(ids)


def test_scribbles_are_shortened_first(source):
    ids = source.ids("train")
    made = make(ids, rounds=1)
    short = SampleReader(source, scribble_length=0.0).load(ids[0])
    found = SampleReader(source, scribble_length=0.0, proposals=made).load(ids[0])
    np.testing.assert_array_equal(found.scribble, made.propose(short))
    assert (found.scribble != IGNORE).all()


def test_a_training_learns_them(config, tmp_path):
    parsed = config("data.proposals={rounds = 2}", "training.epochs=1", loop="gradient-descent")
    dataset = create("dataset", parsed.data.dataset, **parsed.data.component_settings())
    proposals = build_proposals(parsed.data.proposals)
    proposals.only_of(dataset.ids("train"))
    items = TrainingSet(SampleReader(dataset, proposals=proposals), dataset.ids("train"), parsed.data, 0)
    item = items[0, 0, -1]
    assert bool((item.labels[item.roi] != IGNORE).all())
    train(parsed)
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    train(config("training.epochs=1", loop="gradient-descent", output="plain"))
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() != first


def test_components_and_settings_are_checked_before_the_training(config):
    parsed = config(
        'data.proposals={region-force = "chan-vese", regularizer = "tv", solver = {name = "pdhg"}, entropy = 0.1}'
    )
    proposals = build_proposals(parsed.data.proposals)
    assert isinstance(proposals.region_force, ChanVese)
    assert config('data.proposals=""').data.proposals is None
    for change, error, words in (
        ("data.proposals.rounds=0", UsageError, "data.proposals.rounds"),
        ("data.proposals.entropy=-1", UsageError, "data.proposals.entropy"),
        ("data.proposals.round=3", UsageError, "Did you mean 'rounds'"),
        ('data.proposals.region-force="histgram"', UsageError, r"\[data.proposals\].*histogram"),
        ('data.proposals.regularizer={name = "grid-crf", wait = 1}', UsageError, "wait"),
        ('data.proposals.solver="pdhg"', MissingForm, "Cannot use pdhg with grid-crf"),
    ):
        with pytest.raises(error, match=words):
            build_proposals(config(change).data.proposals)
    with pytest.raises(UsageError, match="made of scribbles"):
        config("data.proposals={}", "data.supervision=labels", loop="gradient-descent")


def test_what_a_force_cannot_use_names_the_image(source):
    sample = source.load(source.ids("train")[0])
    four = replace(sample, image=np.repeat(sample.image, 4, axis=0))
    with pytest.raises(UsageError, match=rf"^{sample.id}: no proposal by histogram: "):
        make([sample.id])(four)
    with pytest.raises(UsageError, match="need a regularizer"):
        ColorPseudoLabels("histogram", [], "alpha-expansion", 0.0, 1)
