"""The conformance suite, inherited by every built-in segmenter."""

from __future__ import annotations

from dataclasses import replace

import regloss
from regloss.segmenter import Segmenter
from regloss.testing import SegmenterConformance


class TestChanVese(SegmenterConformance):
    def make(self) -> Segmenter:
        return regloss.ChanVeseSegmenter()


class TestRegionCompetition(SegmenterConformance):
    def make(self) -> Segmenter:
        return regloss.RegionCompetition()


class TestGraphCut(SegmenterConformance):
    def make(self) -> Segmenter:
        return regloss.GraphCut()


class TestGraphCutOfProbabilities(SegmenterConformance):
    accuracy = 0.9

    def make(self) -> Segmenter:
        return regloss.GraphCut(solver={"name": "mean-field", "max_steps": 50}, entropy=0.5)


class TestScribbleCut(SegmenterConformance):
    def make(self) -> Segmenter:
        return regloss.ScribbleCut()


class TestGraphCutWithPlace(SegmenterConformance):
    def make(self) -> Segmenter:
        return regloss.GraphCut(place=20.0, colors="lab")


class TestDeepChanVese(SegmenterConformance):
    channel_counts = (3,)
    takes_start = False  # its networks begin there; so small and short a fit need not stay where phases are reversed

    def make(self) -> Segmenter:
        encoder = {"name": "plain-cnn", "layers": 2, "channels": 6, "norm": "instance"}
        decoder = {"name": "plain-cnn", "layers": 1, "channels": 6}
        return regloss.DeepChanVeseSegmenter(encoder=encoder, decoder=decoder, warm_up=30, max_steps=60)

    def test_snapshots_are_announced(self) -> None:
        segmenter = replace(self.make(), snapshots=(0, 40))  # type: ignore[type-var]
        image = self._image()
        assert "snapshots" in segmenter.figures
        assert set(segmenter(image, phases=2).figures(image)) == set(segmenter.figures)
