"""Scores of a network on a subset, and the examples that a report shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from regloss.checks import at_least_float32
from regloss.data_term import DataTerm
from regloss.registry import resolve
from regloss.regularizer import Regularizer
from regloss.solver import Status, one_hot
from regloss.training.charts import Example
from regloss.training.config import Config
from regloss.training.data import SampleCache, same_size_groups, supervision_of, whole_batch
from regloss.training.metrics import ForegroundScores, Scores
from regloss.training.model import Segmenter, describe_layer, predict
from regloss.training.noise import Noise


def evaluate_samples(
    fabric: Fabric,
    segmenter: Segmenter,
    cache: SampleCache,
    config: Config,
    subset: str,
    noise: Noise | None = None,
) -> dict[str, Any]:
    """Scores over ``subset``, over the images of all processes; see `regloss.training.metrics.Scores`.

    With ``evaluation.energy`` set, "energy" is the mean over images of that regularizer's discrete energy per pixel of
    the predicted labels. Behind a layer, "layer" tells its settings and what its solver reported: mean gap per pixel,
    mean steps, fraction of the images that converged. After a training without labels, whose classes have no names,
    "unsupervised" holds what `regloss.training.metrics.ForegroundScores` says. ``noise`` is added to the images, drawn
    from the run's seed and the images' ids.
    """
    scores = Scores(cache.source.classes, config.evaluation.trimap, config.evaluation.hausdorff)
    foreground = ForegroundScores(len(cache.source.classes))
    energy: Regularizer | None = None
    if config.evaluation.energy is not None:
        energy = resolve("regularizer", config.evaluation.energy)
    energies = 0.0
    ids = list(cache.source.ids(subset))
    own = ids[fabric.global_rank :: fabric.world_size]
    samples = [cache.load(sample_id) for sample_id in own]
    if noise is not None:
        samples = [replace(sample, image=noise(sample.image, sample.id, config.seed)) for sample in samples]
    layer = _LayerReport()
    for group in same_size_groups([sample.image.shape for sample in samples], config.training.batch_size):
        chosen = [samples[place] for place in group]
        batch = whole_batch(chosen, None)
        image = batch.image.to(fabric.device)
        predictions = predict(segmenter, image).argmax(1)
        layer.update(segmenter, batch.pixels)
        for sample, prediction in zip(chosen, predictions.cpu(), strict=True):
            if sample.label is not None:
                label = torch.from_numpy(sample.label.astype(np.int64))
                scores.update(prediction, label, sample.group)
                foreground.update(prediction, label, sample.id)
        if energy is not None:
            hard = one_hot(predictions, len(cache.source.classes), at_least_float32(image).dtype)
            energies += float((energy.bind(image).energy(hard) / batch.pixels.to(image.device)).sum())
    if fabric.world_size > 1:
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, (scores.state(), foreground.state(), energies, layer.sums))
        scores, energies = Scores(cache.source.classes, config.evaluation.trimap, config.evaluation.hausdorff), 0.0
        foreground, layer = ForegroundScores(len(cache.source.classes)), _LayerReport()
        for state, of_foreground, part, sums in gathered:
            scores.merge(state)
            foreground.merge(of_foreground)
            energies += part
            layer.merge(sums)
    result = scores.compute()
    if config.data.supervision == "none":
        result["unsupervised"] = foreground.compute()
    if energy is not None:
        result["energy"] = energies / len(ids)
    if segmenter.layer is not None:
        result["layer"] = {**describe_layer(segmenter.layer), **layer.compute()}
    return result


class _LayerReport:
    """What a layer's solver reports, over a set of images.

    All are absent where backward = "unrolled", which takes its steps without looking, and the gap also where the solver
    knows no bound.
    """

    def __init__(self) -> None:
        self.sums = {"gap": 0.0, "steps": 0.0, "converged": 0.0, "images": 0.0}

    def update(self, segmenter: Segmenter, pixels: Tensor) -> None:
        """Add the images of the layer's last call, with their numbers of pixels (B,)."""
        solution = None if segmenter.layer is None else segmenter.layer.solution
        if solution is not None:
            found = {
                "gap": float((solution.gap / pixels.to(solution.gap)).sum()),
                "steps": float(solution.steps.sum()),
                "converged": float(sum(status is not Status.MAX_STEPS for status in solution.status)),
                "images": float(len(solution.status)),
            }
            self.merge(found)

    def merge(self, sums: dict[str, float]) -> None:
        """Add the sums of another process."""
        self.sums = {name: value + sums[name] for name, value in self.sums.items()}

    def compute(self) -> dict[str, float]:
        """Means over the images."""
        count = self.sums["images"]
        means = {f"layer-{name}": value / count for name, value in self.sums.items() if name != "images" and count}
        return {name: value for name, value in means.items() if np.isfinite(value)}


def examples_of(
    fabric: Fabric,
    segmenter: Segmenter,
    cache: SampleCache,
    config: Config,
    read_proposal: Callable[[str], np.ndarray] | None,
    data_term: DataTerm | None = None,
) -> list[Example]:
    """Evenly spaced images of the training and the test subset, with everything that is known of them.

    Args:
        fabric: for the device.
        segmenter: predicts.
        cache: has the samples.
        config: of the run.
        read_proposal: gives a training image's proposal.
        data_term: its `regloss.data_term.DataTerm.maps` are shown too.
    """
    wanted = config.evaluation.examples
    train_ids = list(cache.source.ids(config.data.train))
    test_ids = list(cache.source.ids(config.data.test)) if config.data.test is not None else []
    chosen = _evenly(train_ids, (wanted + 1) // 2 if test_ids else wanted)
    chosen += [sample_id for sample_id in _evenly(test_ids, wanted - len(chosen)) if sample_id not in chosen]
    examples = []
    for sample_id in chosen:
        sample = cache.load(sample_id)
        image = torch.from_numpy(sample.image).unsqueeze(0).to(fabric.device)
        prediction = predict(segmenter, image).argmax(1)[0].cpu().numpy().astype(np.uint8)
        training = sample_id in train_ids
        with torch.no_grad():
            found = {} if data_term is None else data_term.maps(image)
        examples.append(
            Example(
                id=sample_id,
                image=sample.image,
                scribble=supervision_of(sample, "scribbles") if training and sample.scribble is not None else None,
                proposal=read_proposal(sample_id) if training and read_proposal is not None else None,
                prediction=prediction,
                label=sample.label,
                numbers={name: values[0].float().cpu().numpy() for name, values in found.items()},
            )
        )
    return examples


def _evenly(names: list[str], count: int) -> list[str]:
    if count <= 0 or not names:
        return []
    places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    return [names[place] for place in places]
