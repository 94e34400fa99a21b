"""Everything that a configuration names, built and checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from regloss.batch import Batch
from regloss.dataset import IGNORE, Dataset, Sample
from regloss.errors import UsageError, listed
from regloss.metrics.scores import Scores
from regloss.outer_loop import OuterLoop
from regloss.registry import resolve
from regloss.training import checkpoints
from regloss.training.config import Config, Data, build_loop, build_proposals, build_warm_up
from regloss.training.folds import open_dataset
from regloss.training.further_logits import check_decoders
from regloss.training.loader import Prepared, TrainingSet, crop_size, whole_batch
from regloss.training.model import SegmentationModel, build_model, predict
from regloss.training.optimization import build_optimizer, optimizer_of
from regloss.training.proposals import ProposalStore
from regloss.training.sample_checks import check_evaluation_samples, check_spacings, check_training_samples
from regloss.training.sample_reader import SampleReader, supervision_of
from regloss.training.stage_a import propose
from regloss.training.survey import Memory, Survey


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        config: what was asked for.
        dataset: where samples come from.
        reader: reads them.
        segmenter: network, and the layer behind it.
        optimizers: "network", that of the segmenter, and those of the networks that the loop trains beside it, by their
            names. One for each: then a loop may update them apart, and as optimizers treat every parameter by itself,
            together it makes no difference.
        loop: couples the segmenter with solver and losses.
        warm_up: what trains on its data term alone in the first epochs; None = nothing does.
        ids: of the training samples, those without labels last.
        warnings: worth reading before the training.
        checkpoint: what the run goes on from, its weights in ``segmenter`` already; None at a beginning.
    """

    config: Config
    dataset: Dataset
    reader: SampleReader
    segmenter: SegmentationModel
    optimizers: dict[str, torch.optim.Optimizer]
    loop: OuterLoop
    warm_up: OuterLoop | None
    ids: list[str]
    warnings: list[str]
    checkpoint: checkpoints.Checkpoint | None


def build(config: Config, *, resume: bool = False, quiet: bool = True) -> Parts:
    """Build all parts of a run and check the data.

    Args:
        config: see `regloss.training.trainer.train`.
        resume: whether to go on from the last checkpoint in the output folder, if it holds one.
        quiet: no progress bar while samples are read.

    Raises:
        UsageError: anything that would stop the run later: files missing or of different sizes, labels outside the
            classes, images without a scribble, settings that do not fit each other, weights of another network.
    """
    data = config.data
    dataset = open_dataset(data)

    # What settings alone decide comes before the samples are looked at, of which there may be many.
    checkpoint = _last_checkpoint(Path(config.output)) if resume else None
    start_from = config.training.start_from if checkpoint is None else None
    torch.manual_seed(config.seed)
    trained = checkpoint is not None or start_from is not None
    segmenter = build_model(config, dataset.channels, len(dataset.classes), trained=trained)
    if checkpoint is not None:
        segmenter.load_weights(checkpoint.network, f"the checkpoint in {config.output}")
    elif start_from is not None:
        if Path(start_from).resolve().is_relative_to(Path(config.output).resolve()):
            raise UsageError(
                f"training.start-from is {start_from}, in the output that the training replaces; killed early, it "
                "would leave neither. Copy these weights, or choose another output."
            )
        segmenter.load_weights(checkpoints.read_weights(Path(start_from)), start_from, start=True)
    loop = build_loop(config.loss, data.supervision)
    check_decoders(segmenter.network, loop)
    loop.attach(segmenter)
    warm_up = build_warm_up(loop) if config.training.warm_up > 0 else None
    optimizers = {"network": build_optimizer(config, segmenter)} | {
        name: optimizer_of(config, module.parameters()) for name, module in loop.modules().items()
    }
    proposals = build_proposals(data.proposals)
    Scores(dataset.classes, config.evaluation.trimap)
    if config.evaluation.energy is not None:
        resolve("regularizer", config.evaluation.energy)

    dataset.check(data.train, need=() if data.supervision == "none" else (data.supervision[:-1],))
    for key, subset in (("val", data.val), ("test", data.test)):
        if subset is not None:
            try:
                dataset.check(subset, need=("label",))
            except UsageError as error:
                raise UsageError(f'{error}\nTo train without this subset, set data.{key} = "".') from error
    labelled = list(dataset.ids(data.train))
    if not labelled:
        raise UsageError(f"The subset {data.train!r} of the data set is empty: there is nothing to train on.")
    unlabelled = _unlabelled_ids(dataset, data, labelled)
    ids = [*labelled, *unlabelled]
    if proposals is not None:
        proposals.only_of(labelled)
    reader = SampleReader(dataset, data.cache, data.scribble_length, proposals, unlabelled)
    first = reader.load(ids[0])
    crop_size(data, first.image.ndim - 1)
    if config.training.channels_last:
        order = torch.channels_last if first.image.ndim == 3 else torch.channels_last_3d
        segmenter.network.to(memory_format=order)  # type: ignore[call-overload]
    _check_loop(loop, first, len(dataset.classes), data.supervision)
    _check_network(segmenter, first, len(dataset.classes))
    memory = Memory.of(data.dataset, data.component_settings(), reader)
    survey = Survey(reader, workers=data.workers, memory=memory, quiet=quiet)
    warnings = check_training_samples(survey, ids, data.supervision, data.max_scribbled)
    check_spacings(survey, ids, data.supervision, config.training.batch_size)
    for subset in (data.val, data.test):
        if subset is not None:
            check_evaluation_samples(survey, subset)
    if start_from is not None and Path(start_from).is_dir() and not checkpoints.has_ended(Path(start_from)):
        warnings.append(f"training.start-from: the run {start_from} has not ended, and its last checkpoint is taken.")
    warnings = [*dataset.notes, *survey.notes, *warnings]
    crops, batch_size = len(ids) * data.crops_per_image, config.training.batch_size
    if batch_size > crops:
        warnings.append(
            f"A batch of {batch_size} is more than the {crops} crops of an epoch, so some of them are in it twice or "
            f"more. Lower training.batch-size to {crops}, or raise data.crops-per-image."
        )
    if checkpoint is not None:
        _check_checkpoint(checkpoint, config, optimizers, loop, crops)
    _check_layer(segmenter, TrainingSet(reader, ids, data, config.seed)[0, 0, -1], len(dataset.classes))
    return Parts(config, dataset, reader, segmenter, optimizers, loop, warm_up, ids, warnings, checkpoint)


def _unlabelled_ids(dataset: Dataset, data: Data, labelled: Sequence[str]) -> list[str]:
    """Ids of the samples that are trained on without labels; none where no subset is named.

    Raises:
        UsageError: some of them are trained on with labels.
    """
    if data.train_unlabelled is None:
        return []
    dataset.check(data.train_unlabelled, need=())
    ids = list(dataset.ids(data.train_unlabelled))
    both = sorted(set(ids) & set(labelled))
    if both:
        raise UsageError(
            f"{len(both)} images of data.train-unlabelled = {data.train_unlabelled!r} are in data.train = "
            f"{data.train!r} too: {listed(both)}. Take them out of one of the two."
        )
    return ids


def _last_checkpoint(folder: Path) -> checkpoints.Checkpoint | None:
    found = checkpoints.complete(folder / "checkpoints")
    return checkpoints.load(found[-1]) if found else None


def _check_checkpoint(
    checkpoint: checkpoints.Checkpoint,
    config: Config,
    optimizers: Mapping[str, torch.optim.Optimizer],
    loop: OuterLoop,
    crops: int,
) -> None:
    """Raise `UsageError` unless this training, and its files, can go on from the checkpoint."""
    folder, state = Path(config.output), checkpoint.state
    further = {name: optimizer for name, optimizer in optimizers.items() if name != "network"}
    checkpoints.check(checkpoint, optimizers["network"], further, str(folder))
    where = f"The checkpoint in {folder} is damaged: state.json"
    steps = -(-crops // config.training.batch_size)  # of an epoch; several processes take fewer
    if state["step"] > config.training.epochs * steps:
        raise UsageError(
            f"{where} has step {state['step']}, but the training ends with {config.training.epochs * steps}."
        )
    generation, made_in = state["generation"], state["generation-epoch"]
    stored = isinstance(loop.update_every, int)
    possible, needed = state["step"] > 0, state["step"] > config.training.warm_up * steps
    proposed = generation >= 0
    if proposed > (stored and possible) or proposed < (stored and needed) or proposed != (made_in >= 0):
        raise UsageError(
            f"{where} has generation {generation} and generation-epoch {made_in} at step {state['step']}, which "
            f"{'needs' if stored else 'has no'} stored proposals."
        )
    if generation >= 0 and not ProposalStore(folder / "proposals").is_complete(generation):
        raise UsageError(
            f"The checkpoint in {folder} goes on from proposals/generation-{generation:04d}, which is not complete or "
            "not there. Take it from a copy of the run, or begin anew with --overwrite."
        )


def _check_loop(loop: OuterLoop, sample: Sample, classes: int, supervision: str) -> None:
    """Run one objective on a tiny image, so that settings that do not fit K or each other show before training.

    What a tiny image refuses, as it does volumes in pixels or a centre in an image of the real size, is run on
    ``sample`` itself.
    """
    channels, *size = sample.image.shape
    image = torch.full((1, channels, *[4] * len(size)), 0.5)
    image.view(-1)[-1] = 0.6  # an image of one colour has no saliency, for instance
    labels = torch.full((1, *image.shape[2:]), IGNORE)
    labels.view(-1)[0], labels.view(-1)[-1] = 0, 1
    try:
        _rehearse(loop, Batch(image, labels), classes)
    except UsageError:
        _rehearse(loop, whole_batch([sample], [supervision_of(sample, supervision)]), classes)


def _rehearse(loop: OuterLoop, batch: Batch, classes: int) -> None:
    """One objective at the beginning and one at the end of the training, for a network that knows nothing."""
    logits = torch.zeros(batch.shape[0], classes, *batch.shape[1:], requires_grad=True)
    for progress in (0.0, 1.0):
        loop.set_progress(progress)
        proposal = None if loop.update_every == "never" else propose(loop, [logits], batch)
        loop.objective(logits, batch, proposal)
    loop.set_progress(0.0)


def _check_network(segmenter: SegmentationModel, sample: Sample, classes: int) -> None:
    """Run the network on one image: what it cannot take, or a wrong output, shows before training."""
    logits = predict(segmenter, torch.from_numpy(sample.image).unsqueeze(0), sample.spacing)
    if logits.shape[1] != classes:
        raise UsageError(
            f"{type(segmenter.network).__name__} makes logits of {logits.shape[1]} classes; the data set has {classes}."
        )


def _check_layer(segmenter: SegmentationModel, crop: Prepared, classes: int) -> None:
    """Run the layer on one training crop: volumes, say, may fit whole images only."""
    if segmenter.layer is None:
        return
    logits = torch.zeros(1, classes, *crop.image.shape[1:])
    try:
        with torch.no_grad():
            segmenter.layer.log_probabilities(
                logits, crop.image.unsqueeze(0), crop.roi.unsqueeze(0), spacing=crop.spacing
            )
    except UsageError as error:
        raise type(error)(f"[layer], on a training crop: {error}") from error
    segmenter.layer.solution = None  # nothing to be sent to other processes
