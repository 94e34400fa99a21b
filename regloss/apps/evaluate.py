"""Scores of a trained model on a subset of its data set, on images as they are and with noise added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from regloss.apps.noise import Noise
from regloss.apps.several import check_processes, spread
from regloss.dataset import Dataset
from regloss.errors import UsageError
from regloss.registry import get, settings
from regloss.training.devices import Process, one_process
from regloss.training.evaluation import evaluate_samples
from regloss.training.folds import open_dataset
from regloss.training.model import Model, load_model
from regloss.training.sample_checks import check_evaluation_samples
from regloss.training.sample_reader import SampleReader
from regloss.training.survey import Memory, Survey


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
    devices: int = 1,
    nodes: int = 1,
    callback: Callable[[str], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores on a subset, and once more for each kind and level of noise that is added to its images.

    Args:
        run: output folder of a training.
        subset: see `evaluate_run`.
        noise: `Noise`, or text like "gaussian:0.1"; drawn anew for every image, from its id and the run's ``seed``.
        changes: see `evaluate_run`; ``seed=1`` draws other noise.
        devices: processes that images are spread over, each with a GPU of its own, or on the CPU.
        nodes: machines that they are spread over; see `regloss.apps.several`.
        callback: called with sentences on the data set: files left out, ranges found.

    Returns:
        Scores by "test" and "test gaussian:0.1" (with the subset's name).

    Raises:
        UsageError: see `evaluate_run`; noise of another kind, or a level outside its range.
    """
    check_processes(devices, nodes)
    levels = [Noise.parse(level) if isinstance(level, str) else level for level in noise]
    model, dataset = _open(run, subset, changes)
    data = model.config.data
    reader = SampleReader(dataset, scribble_length=data.scribble_length)  # as in training, whose memory it shares
    memory = Memory.of(data.dataset, data.component_settings(), reader)
    survey = Survey(reader, workers=data.workers, memory=memory)
    if callback is not None:
        for note in dataset.notes:
            callback(note)
    check_evaluation_samples(survey, subset)
    if callback is not None:
        for note in survey.notes:
            callback(note)
    if devices == nodes == 1:
        return _score(model, reader, subset, levels, one_process(model.config))
    return spread(partial(_share, run, subset, levels, tuple(changes)), devices, nodes)


def _open(run: Path, subset: str, changes: Sequence[str]) -> tuple[Model, Dataset]:
    """A run's model, and its data set, whose subset can be scored."""
    model = load_model(run, changes)
    config = model.config
    chosen = config.data.component_settings()
    known = settings(get("dataset", config.data.dataset))
    if model.window is not None and "window" in known:
        chosen = {"window": model.window.as_list(), **chosen}  # images become what they were in training
    if model.segmenter.spacing is not None and "spacing" in known:
        chosen = {**chosen, "spacing": None}  # the model resamples, and scores are those on the grids of the files
    dataset = open_dataset(config.data, chosen)
    dataset.check(subset, need=("label",))
    if tuple(dataset.classes) != model.classes:
        raise UsageError(f"The data set has the classes {list(dataset.classes)}, the model {list(model.classes)}.")
    return model, dataset


def _score(
    model: Model, reader: SampleReader, subset: str, levels: Sequence[Noise], process: Process
) -> dict[str, dict[str, Any]]:
    segmenter = model.segmenter.to(process.device)
    scores = {subset: evaluate_samples(process, segmenter, reader, model.config, subset)}
    for level in levels:
        scores[f"{subset} {level}"] = evaluate_samples(process, segmenter, reader, model.config, subset, level)
    return scores


def _share(
    run: Path, subset: str, levels: Sequence[Noise], changes: Sequence[str], fabric: Any
) -> dict[str, dict[str, Any]]:
    """What one of several processes does; all get the scores of all images."""
    model, dataset = _open(run, subset, changes)
    scores = _score(model, SampleReader(dataset), subset, levels, fabric)
    fabric.barrier()
    return scores
