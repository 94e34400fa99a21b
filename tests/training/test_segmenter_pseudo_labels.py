"""Proposals that a segmenter makes of the scribbles: thresholds, what stays as it is, and a training on them."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

import regloss
from regloss import UsageError
from regloss.dataset import IGNORE
from regloss.registry import create
from regloss.training.config import build_proposals, parse
from regloss.training.sample_reader import SampleReader
from regloss.training.segmenter_pseudo_labels import SegmenterPseudoLabels
from regloss.training.trainer import train


@pytest.fixture
def source(config):
    data = config().data
    return create("dataset", data.dataset, **data.component_settings())


def test_doubtful_pixels_stay_unlabelled(source):
    sample = source.load(source.ids("train")[0])
    given = sample.scribble != IGNORE
    by_hand = regloss.get("segmenter", "random-walker")(beta=40.0)(
        torch.from_numpy(sample.image)[None], scribbles=torch.from_numpy(sample.scribble.astype(np.int64))[None]
    )
    largest = by_hand.probabilities.amax(1)[0].numpy()
    for threshold in (0.0, 0.8):
        made = SegmenterPseudoLabels({"name": "random-walker", "beta": 40.0}, threshold).propose(sample)
        assert made.dtype == np.uint8
        np.testing.assert_array_equal(made[given], sample.scribble[given])
        np.testing.assert_array_equal(made == IGNORE, (largest < threshold) & ~given)
        kept = made != IGNORE
        np.testing.assert_array_equal(made[kept], by_hand.labels[0].numpy()[kept])
    assert 0 < (made == IGNORE).mean() < 0.9


def test_one_class_alone_stays_as_it_is(source):
    sample = source.load(source.ids("train")[0])
    made = SegmenterPseudoLabels("random-walker", 0.0)
    only = np.where(sample.scribble == 1, sample.scribble, IGNORE).astype(np.uint8)
    np.testing.assert_array_equal(made.propose(replace(sample, scribble=only)), only)


def test_the_rest_of_a_sample_is_kept(source):
    sample = replace(source.load(source.ids("train")[0]), spacing=(2.0, 1.0))
    made = SegmenterPseudoLabels("random-walker", 0.0)
    made.only_of([sample.id])
    found = made(sample)
    for field in dataclasses.fields(sample):
        if field.name != "scribble":
            assert getattr(found, field.name) is getattr(sample, field.name)
    np.testing.assert_array_equal(found.scribble, made.propose(sample))


def test_a_training_learns_them(config, tmp_path):
    change = 'data.proposals={segmenter = {name = "random-walker", beta = 90}, threshold = 0.7}'
    parsed = config(change, "training.epochs=1", loop="gradient-descent")
    assert parse(parsed.dump()) == parsed
    dataset = create("dataset", parsed.data.dataset, **parsed.data.component_settings())
    proposals = build_proposals(parsed.data.proposals)
    assert proposals is not None
    proposals.only_of(dataset.ids("train"))
    plain, reader = SampleReader(dataset), SampleReader(dataset, proposals=proposals)
    for sample_id in dataset.ids("train"):
        made, given = (each.load(sample_id).scribble for each in (reader, plain))
        assert (given != IGNORE).sum() < (made != IGNORE).sum()
    train(parsed)
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    train(config("training.epochs=1", loop="gradient-descent", output="plain"))
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() != first


def test_settings_are_checked_before_the_training(config):
    cut = build_proposals(config('data.proposals={segmenter = "scribble-cut"}').data.proposals)
    assert isinstance(cut, SegmenterPseudoLabels)
    for change, words in (
        ('data.proposals={segmenter = "random-walker", rounds = 2}', "by itself, and rounds would change nothing"),
        ("data.proposals={threshold = 0.5}", "threshold is of the probabilities"),
        ('data.proposals={segmenter = "random-walker", threshold = 1}', "data.proposals.threshold"),
        ('data.proposals={segmenter = "random-walk"}', r"\[data.proposals\].*random-walker"),
        ('data.proposals={segmenter = {name = "random-walker", bta = 1}}', "bta"),
    ):
        with pytest.raises(UsageError, match=words):
            build_proposals(config(change).data.proposals)
