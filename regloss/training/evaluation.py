"""Scores of a network on a subset, and the examples that a report shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from regloss.checks import at_least_float32
from regloss.registry import resolve
from regloss.regularizer import Regularizer
from regloss.solver import one_hot
from regloss.training.config import Config
from regloss.training.data import SampleCache, same_size_groups, supervision_of, whole_batch
from regloss.training.metrics import Scores
from regloss.training.model import Segmenter, predict
from regloss.training.report import Example


def evaluate_samples(
    fabric: Fabric, segmenter: Segmenter, cache: SampleCache, config: Config, subset: str
) -> dict[str, Any]:
    """Scores over ``subset``, over the images of all processes; see `regloss.training.metrics.Scores`.

    With ``evaluation.energy`` set, "energy" is the mean over images of that regularizer's discrete energy per pixel of
    the predicted labels.
    """
    scores = Scores(cache.source.classes, config.evaluation.trimap)
    energy: Regularizer | None = None
    if config.evaluation.energy is not None:
        energy = resolve("regularizer", config.evaluation.energy)
    energies = 0.0
    ids = list(cache.source.ids(subset))
    own = ids[fabric.global_rank :: fabric.world_size]
    samples = [cache.load(sample_id) for sample_id in own]
    for group in same_size_groups([sample.image.shape for sample in samples], config.training.batch_size):
        chosen = [samples[place] for place in group]
        batch = whole_batch(chosen, None)
        image = batch.image.to(fabric.device)
        predictions = predict(segmenter, image).argmax(1)
        for sample, prediction in zip(chosen, predictions.cpu(), strict=True):
            if sample.label is not None:
                scores.update(prediction, torch.from_numpy(sample.label.astype(np.int64)), sample.group)
        if energy is not None:
            hard = one_hot(predictions, len(cache.source.classes), at_least_float32(image).dtype)
            energies += float((energy.bind(image).energy(hard) / batch.pixels.to(image.device)).sum())
    if fabric.world_size > 1:
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, (scores.state(), energies))
        scores, energies = Scores(cache.source.classes, config.evaluation.trimap), 0.0
        for state, part in gathered:
            scores.merge(state)
            energies += part
    result = scores.compute()
    if energy is not None:
        result["energy"] = energies / len(ids)
    return result


def examples_of(
    fabric: Fabric,
    segmenter: Segmenter,
    cache: SampleCache,
    config: Config,
    read_proposal: Callable[[str], np.ndarray] | None,
) -> list[Example]:
    """Evenly spaced images of the training and the test subset, with everything that is known of them."""
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
        examples.append(
            Example(
                id=sample_id,
                image=sample.image,
                scribble=supervision_of(sample, "scribbles") if training and sample.scribble is not None else None,
                proposal=read_proposal(sample_id) if training and read_proposal is not None else None,
                prediction=prediction,
                label=sample.label,
            )
        )
    return examples


def _evenly(names: list[str], count: int) -> list[str]:
    if count <= 0 or not names:
        return []
    places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
    return [names[place] for place in places]
