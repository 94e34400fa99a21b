"""Scores of a trained model on a subset of its data set, on images as they are and with noise added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regloss.apps.noise import Noise
from regloss.errors import UsageError
from regloss.registry import get, settings
from regloss.training.devices import one_process
from regloss.training.evaluation import evaluate_samples
from regloss.training.folds import open_dataset
from regloss.training.model import load_model
from regloss.training.sample_reader import SampleReader, check_evaluation_samples


def evaluate_run(run: Path, subset: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Scores of a run's model on a subset of its data set; see `regloss.training.evaluation.evaluate_samples`.

    Args:
        run: output folder of a training.
        subset: "test", "val", "train", or a name of the data set's own.
        changes: ``section.key=value`` settings that replace the run's: another root, another split, more steps of the
            layer.

    Raises:
        UsageError: no such run or subset, samples without dense labels, or labels of one class and 255 alone.
    """
    return evaluate_noisy(run, subset, (), changes)[subset]


def evaluate_noisy(
    run: Path,
    subset: str,
    noise: Sequence[str | Noise],
    changes: Sequence[str] = (),
    *,
    callback: Callable[[str], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores on a subset, and once more for each kind and level of noise that is added to its images.

    Args:
        run: output folder of a training.
        subset: see `evaluate_run`.
        noise: `Noise`, or text like "gaussian:0.1"; drawn anew for every image, from its id and the run's ``seed``.
        changes: see `evaluate_run`; ``seed=1`` draws other noise.
        callback: called with sentences on the data set: files left out, ranges found.

    Returns:
        Scores by "test" and "test gaussian:0.1" (with the subset's name).

    Raises:
        UsageError: see `evaluate_run`; noise of another kind, or a level outside its range.
    """
    levels = [Noise.parse(level) if isinstance(level, str) else level for level in noise]
    model = load_model(run, changes)
    config = model.config
    chosen = config.data.component_settings()
    if model.window is not None and "window" in settings(get("dataset", config.data.dataset)):
        chosen = {"window": model.window.as_list(), **chosen}  # images become what they were in training
    dataset = open_dataset(config.data, chosen)
    if callback is not None:
        for note in dataset.notes:
            callback(note)
    dataset.check(subset, need=("label",))
    if tuple(dataset.classes) != model.classes:
        raise UsageError(f"The data set has the classes {list(dataset.classes)}, the model {list(model.classes)}.")
    process = one_process(config)
    segmenter = model.segmenter.to(process.device)
    reader = SampleReader(dataset)
    check_evaluation_samples(reader, subset)
    scores = {subset: evaluate_samples(process, segmenter, reader, config, subset)}
    for level in levels:
        scores[f"{subset} {level}"] = evaluate_samples(process, segmenter, reader, config, subset, level)
    return scores
