"""Training: the loop that couples data, network, solver and optimizer. Read `_run` from top to bottom.

What a run leaves in its output folder:

    config.json                       the configuration, every default spelt out
    log/steps.csv, log/epochs.csv     numbers of every logged step and of every epoch
    checkpoints/STEP/                 the last complete checkpoint (`regloss.training.checkpoints`)
    modules/NAME.safetensors          further networks that were trained: an encoder, a discriminator
    proposals/generation-N/           the proposals in use (`regloss.training.proposals`)
    model.safetensors, model.json     the trained model
    scores.json, report.html, report/ scores, report and its pictures
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed
from torch.multiprocessing.spawn import ProcessException

from regloss.batch import Batch
from regloss.dataset import IGNORE, Dataset, Sample
from regloss.errors import ReglossError, UsageError
from regloss.hooks import manager
from regloss.metrics.foreground import RULES
from regloss.metrics.scores import Scores
from regloss.outer_loop import OuterLoop, Proposal
from regloss.registry import create, resolve
from regloss.training import checkpoints
from regloss.training.config import Config, as_written, build_loop, build_proposals, parse
from regloss.training.data import (
    EpochOrder,
    Prepared,
    SampleCache,
    TrainingSet,
    check_evaluation_samples,
    check_training_samples,
    crop_size,
    same_size_groups,
    supervision_of,
    training_batches,
    whole_batch,
)
from regloss.training.evaluation import evaluate_samples, examples_of
from regloss.training.logs import CsvLog
from regloss.training.model import (
    NotFinite,
    Segmenter,
    build_segmenter,
    describe_layer,
    layer_report,
    model_card,
    predict,
    save_model,
)
from regloss.training.proposals import ProposalStore

Tell = Callable[[str], None]

# What a training leaves in its folder. Only a folder with nothing else in it is ever replaced.
_OUTPUT_FILES = ("config.json", "model.safetensors", "model.json", "scores.json", "report.html")
_OUTPUT_FOLDERS = ("log", "checkpoints", "proposals", "modules", "report")
# Settings that may differ when a run goes on.
_FREE = ("output", "data.workers", "data.cache")


def _silent(message: str) -> None:
    """No one listens."""


@dataclass(frozen=True)
class Parts:
    """Everything that a configuration names, built and checked, before anything is written.

    checkpoint: what the run goes on from, its weights in ``segmenter`` already; None at a beginning.
    """

    config: Config
    dataset: Dataset
    cache: SampleCache
    segmenter: Segmenter
    loop: OuterLoop
    ids: list[str]
    warnings: list[str]
    checkpoint: checkpoints.Checkpoint | None


def build(config: Config, *, resume: bool = False) -> Parts:
    """Build all parts of a run and check the data.

    Args:
        config: see `train`.
        resume: whether to go on from the last checkpoint in the output folder, if it holds one.

    Raises:
        UsageError: anything that would stop the run later: files missing or of different sizes, labels outside the
            classes, images without a scribble, settings that do not fit each other, weights of another network.
    """
    data = config.data
    dataset = create("dataset", data.dataset, **data.component_settings())
    dataset.check(data.train, need=() if data.supervision == "none" else (data.supervision[:-1],))
    for key, subset in (("val", data.val), ("test", data.test)):
        if subset is not None:
            try:
                dataset.check(subset, need=("label",))
            except UsageError as error:
                raise UsageError(f'{error}\nTo train without this subset, set data.{key} = "".') from error
    checkpoint = _last_checkpoint(Path(config.output)) if resume else None
    start_from = config.training.start_from if checkpoint is None else None
    torch.manual_seed(config.seed)
    trained = checkpoint is not None or start_from is not None
    segmenter = build_segmenter(config, dataset.channels, len(dataset.classes), trained=trained)
    if checkpoint is not None:
        segmenter.load_weights(checkpoint.network, f"the checkpoint in {config.output}")
    elif start_from is not None:
        segmenter.load_weights(checkpoints.read_weights(Path(start_from)), start_from, start=True)
    build_optimizer(config, segmenter)
    loop = build_loop(config.loss, data.supervision)
    Scores(dataset.classes, config.evaluation.trimap)
    if config.evaluation.energy is not None:
        resolve("regularizer", config.evaluation.energy)

    ids = list(dataset.ids(data.train))
    proposals = build_proposals(data.proposals)
    if proposals is not None:
        proposals.only_of(ids)
    cache = SampleCache(dataset, data.cache, data.scribble_length, proposals)
    if not ids:
        raise UsageError(f"The subset {data.train!r} of the data set is empty: there is nothing to train on.")
    image = torch.from_numpy(cache.load(ids[0]).image).unsqueeze(0)
    crop_size(data, image.ndim - 2)
    _check_loop(loop, cache.load(ids[0]), len(dataset.classes), data.supervision)
    _check_network(segmenter, image, len(dataset.classes))
    warnings = check_training_samples(cache, ids, data.supervision)
    for subset in (data.val, data.test):
        if subset is not None:
            check_evaluation_samples(cache, subset)
    _check_layer(segmenter, TrainingSet(cache, ids, data, config.seed)[0, 0, -1], len(dataset.classes))
    return Parts(config, dataset, cache, segmenter, loop, ids, warnings, checkpoint)


def _last_checkpoint(folder: Path) -> checkpoints.Checkpoint | None:
    found = checkpoints.complete(folder / "checkpoints")
    return checkpoints.load(found[-1]) if found else None


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
        proposal = None if loop.update_every == "never" else _propose(loop, logits, batch)
        loop.objective(logits, batch, proposal)
    loop.set_progress(0.0)


def _propose(loop: OuterLoop, logits: Tensor, batch: Batch, warm: Tensor | None = None) -> Proposal | None:
    """The loop's proposal; errors name the images, and settings as a configuration spells them."""
    try:
        return loop.propose(logits, batch, warm)
    except UsageError as error:
        where = f" for {', '.join(batch.ids)}" if batch.ids else ""
        raise type(error)(f"No proposal{where}: {as_written(str(error))}") from error


def _check_network(segmenter: Segmenter, image: Tensor, classes: int) -> None:
    """Run the network on one image: what it cannot take, or a wrong output, shows before training."""
    logits = predict(segmenter, image)
    if logits.shape[1] != classes:
        raise UsageError(
            f"{type(segmenter.network).__name__} makes logits of {logits.shape[1]} classes; the data set has {classes}."
        )


def _check_layer(segmenter: Segmenter, crop: Prepared, classes: int) -> None:
    """Run the layer on one training crop: volumes, say, may fit whole images only."""
    if segmenter.layer is None:
        return
    logits = torch.zeros(1, classes, *crop.image.shape[1:])
    try:
        with torch.no_grad():
            segmenter.layer.log_probabilities(logits, crop.image.unsqueeze(0), crop.roi.unsqueeze(0))
    except UsageError as error:
        raise type(error)(f"[layer], on a training crop: {error}") from error
    segmenter.layer.solution = None  # nothing to be sent to other processes


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, quiet: bool = True, tell: Tell = _silent
) -> dict[str, Any]:
    """Train as ``config`` says.

    Args:
        config: from `regloss.training.config.read` or `parse`.
        resume: go on from the last checkpoint in the output folder, if it holds one.
        overwrite: replace an output folder that an earlier run left.
        quiet: no progress bars.
        tell: called with messages worth reading.

    Returns:
        Scores by subset, as in scores.json.

    Raises:
        UsageError: the output folder is in use or not writable, or see `build`.
    """
    folder = Path(config.output)
    # Processes that Fabric (or a cluster) starts by running the command again find the folder that the first one made.
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    first = all(int(rank) == 0 for rank in ranks)
    if first:
        check_output(folder, config, resume=resume, overwrite=overwrite)
    fabric = _fabric(config)
    parts = build(config, resume=resume)
    if first:
        for warning in parts.warnings:
            tell(warning)
        prepare_output(folder, config, parts.dataset, overwrite=overwrite)
    try:
        scores: dict[str, Any] = fabric.launch(_launched, _Parcel(parts), quiet, tell)  # type: ignore[arg-type]
    except ProcessException as error:
        raise ReglossError(f"A training process failed. {error}") from error
    return scores


class _Parcel:
    """Parts on their way to processes that Fabric spawns: copied by value.

    Sent as they are, tensors would lie in shared memory, and all processes would train one and the same weights.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (pickle.dumps(self.parts),)


def _unpack(content: bytes) -> _Parcel:
    return _Parcel(pickle.loads(content))


def _fabric(config: Config) -> Fabric:
    training = config.training
    try:
        return Fabric(
            accelerator=training.accelerator,
            devices=training.devices,
            num_nodes=training.nodes,
            strategy=_strategy(config),
            precision=training.precision,  # type: ignore[arg-type]
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as cause:
        raise UsageError(f"training.accelerator, devices, nodes, strategy or precision: {cause}") from cause


def _strategy(config: Config) -> str:
    training = config.training
    if training.strategy != "auto" or training.devices in (1, "auto"):
        return training.strategy
    return "ddp_spawn" if training.accelerator == "cpu" else "ddp"


def check_output(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Raise `UsageError` unless the output folder may be written; nothing is changed."""
    if resume and overwrite:
        raise UsageError("Choose one of resume and overwrite.")
    present = _entries(folder)
    used = bool(present) or folder.is_file()
    if used and not resume and not overwrite:
        raise UsageError(
            f"The output {folder} exists already. Go on with --resume, replace it with --overwrite, or choose another."
        )
    before = _begun_with(folder) if used else {}
    foreign = [name for name in present if name not in _OUTPUT_FILES + _OUTPUT_FOLDERS]
    if overwrite and foreign:
        raise UsageError(
            f"{folder} also holds {', '.join(foreign[:5])}, which no training has put there, so it is left alone. "
            "Choose another output."
        )
    if used and resume:
        # Read anew, settings that a later version has added have their defaults.
        begun = parse(before, str(folder / "config.json")).dump()
        differing = [
            f"{key} (was {was!r}, is {now!r})"
            for key, was, now in _differences(begun, config.dump())
            if key not in _FREE
        ]
        if differing:
            raise UsageError(
                f"{folder} was begun with other settings and cannot be resumed with these: {', '.join(differing[:8])}. "
                "Use the same configuration, or another output folder."
            )
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise UsageError(f"The output {folder} cannot be made: {parent} is not a folder that can be written to.")


def _entries(folder: Path) -> list[str]:
    """What lies in ``folder``, but for files that a killed run was about to move into place."""
    if not folder.is_dir():
        return []
    unfinished = re.compile(r"\.(.+)\.\d+")
    found = [(path.name, unfinished.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [name for name, match in found if match is None or match[1] not in _OUTPUT_FILES]


def _begun_with(folder: Path) -> dict[str, Any]:
    """The configuration of the training that made ``folder``.

    Raises:
        UsageError: none has.
    """
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise UsageError(
            f"{folder} was not made by a training (it holds no config.json that can be read), so it is left alone."
        ) from cause
    if not (isinstance(found, dict) and {"output", "data", "network", "training"} <= set(found)):
        raise UsageError(f"{folder} was not made by a training (its config.json is another's), so it is left alone.")
    return found


def _differences(before: Any, after: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Keys of two configurations whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(set(before) | set(after))
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{where}.{key}".strip("."))]
    return [] if before == after else [(where, before, after)]


def prepare_output(folder: Path, config: Config, dataset: Dataset, *, overwrite: bool) -> None:
    """Make the output folder, with what is known at the start.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            # All but config.json, which is replaced: without it, a run that is killed here could not begin again.
            for name in _OUTPUT_FILES[1:]:
                (folder / name).unlink(missing_ok=True)
            for path in [folder / name for name in _OUTPUT_FOLDERS if (folder / name).exists()]:
                shutil.rmtree(path)
        checkpoints.write_json(folder / "config.json", config.dump())
        checkpoints.write_json(folder / "model.json", model_card(config, dataset))
    except OSError as cause:
        raise UsageError(f"The output {folder} cannot be written: {cause}") from cause


def learning_rate_factor(schedule: Mapping[str, Any], progress: float) -> float:
    """Factor of the learning rate when the fraction ``progress`` of the training is done."""
    warmup = schedule.get("warmup", 0.0)
    if progress < warmup:
        return float(progress / warmup)
    progress = (progress - warmup) / (1 - warmup)
    if schedule["name"] == "poly":
        return float((1 - progress) ** schedule.get("power", 0.9))
    if schedule["name"] == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def build_optimizer(config: Config, segmenter: Segmenter) -> torch.optim.Optimizer:
    """The configured optimizer, with the learning rates of head and layer.

    Raises:
        UsageError: torch's optimizer has no such setting.
    """
    rate = config.training.optimizer["lr"]
    groups = [
        {"params": parameters, "lr": rate * (config.training.head_lr if name == "head" else 1.0)}
        for name, parameters in segmenter.groups().items()
    ]
    if segmenter.learnt():
        # Decay would pull the logarithms to 0, and so what is learnt to 1.
        groups.append({"params": segmenter.learnt(), "lr": rate * config.training.layer_lr, "weight_decay": 0.0})
    return _optimizer(config, groups)


def _optimizer(config: Config, groups: Any) -> torch.optim.Optimizer:
    """The configured optimizer of parameters or groups of them."""
    table = {key.replace("-", "_"): value for key, value in config.training.optimizer.items()}
    optimizer: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[table.pop("name")]
    try:
        made: torch.optim.Optimizer = optimizer(groups, **table)
    except (TypeError, ValueError) as cause:
        raise UsageError(f"training.optimizer: {cause}") from cause
    return made


def _launched(fabric: Fabric, parcel: _Parcel, quiet: bool, tell: Tell) -> dict[str, Any]:
    """Run, and leave the process group: a process that ends with its threads of communication alive is aborted."""
    try:
        return _run(fabric, parcel.parts, quiet, tell)
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _run(fabric: Fabric, parts: Parts, quiet: bool, tell: Tell) -> dict[str, Any]:
    config, loop = parts.config, parts.loop
    folder, training = Path(config.output), config.training
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    store = ProposalStore(folder / "proposals")
    training_set = TrainingSet(parts.cache, parts.ids, config.data, config.seed, store)
    order = EpochOrder(len(parts.ids), training.batch_size, config.seed, fabric.global_rank, fabric.world_size)
    total_steps = training.epochs * order.steps
    if fabric.world_size > 1:
        loop.all_reduce = lambda value: fabric.all_reduce(value, reduce_op="sum")  # type: ignore[assignment, return-value]
        loop.world_size = fabric.world_size

    main = fabric.is_global_zero
    optimizer = build_optimizer(config, parts.segmenter)
    model, optimizer = fabric.setup(parts.segmenter, optimizer)
    # Networks that the loop trains beside this one. An optimizer for each: then a loop may update them apart, and as
    # optimizers treat every parameter by itself, together it makes no difference.
    modules = {name: fabric.to_device(module) for name, module in loop.modules().items()}
    optimizers = {"network": optimizer} | {
        name: fabric.setup_optimizers(_optimizer(config, module.parameters())) for name, module in modules.items()
    }
    rates = {name: [group["lr"] for group in each.param_groups] for name, each in optimizers.items()}
    segmenter = parts.segmenter  # the same weights, outside of the wrapper, for inference
    epoch, step, generation, generation_epoch = 0, 0, -1, -1
    numbers: dict[str, float] = {}  # of the current epoch
    if parts.checkpoint is not None:
        # Only now: the optimizer puts its state where the parameters are.
        checkpoints.restore_optimizer(parts.checkpoint, optimizer)
        for name, module in modules.items():
            checkpoints.restore_module(parts.checkpoint, name, module, optimizers[name])
        state = parts.checkpoint.state
        step, generation, generation_epoch = state["step"], state["generation"], state["generation-epoch"]
        epoch = step // order.steps
        numbers = dict(state.get("numbers", {}))
        if main:
            tell(f"Going on from step {step} of {total_steps}.")

    if main:
        steps_log, epochs_log = CsvLog(folder / "log" / "steps.csv"), CsvLog(folder / "log" / "epochs.csv")
        steps_log.keep(lambda row: row["step"] <= step)
        epochs_log.keep(lambda row: row["epoch"] < epoch)
        store.discard_after(generation)
    hooks = manager().hook

    def save() -> None:
        if main:
            state = {"generation": generation, "generation-epoch": generation_epoch, "numbers": numbers}
            further = {name: (module, optimizers[name]) for name, module in modules.items()}
            checkpoints.save(folder / "checkpoints", step, segmenter.weights(), optimizer, state, further)
            store.keep_from(generation)

    with _progress(total_steps, step, quiet or not main) as advance:
        while epoch < training.epochs:
            clock = time.perf_counter()
            numbers["epoch"] = epoch
            loop.set_progress(step / total_steps)

            # Stage A: proposals for all training images, un-augmented, every few epochs.
            if _due(loop, epoch, generation, generation_epoch):
                fabric.barrier()
                update = propose_all(fabric, parts, store, generation + 1, generation, step)
                generation, generation_epoch = generation + 1, epoch
                numbers |= update
                if main:
                    store.finish(generation, len(parts.ids))
                fabric.barrier()

            # Stage B: optimizer steps.
            clock = _spent(numbers, clock, "seconds")
            first_step = step - epoch * order.steps
            use_generation = generation if isinstance(loop.update_every, int) else -1
            for batch, stored in training_batches(
                training_set, order, epoch, use_generation, first_step, config.data.workers
            ):
                batch = _to_device(batch, fabric.device)
                progress = step / total_steps
                loop.set_progress(progress)
                factor = learning_rate_factor(training.schedule, progress)
                for name, each in optimizers.items():
                    for group, rate in zip(each.param_groups, rates[name], strict=True):
                        group["lr"] = rate * factor
                # All randomness of a step (dropout) follows from the step's number, so a resumed run repeats it.
                torch.manual_seed(_step_seed(config.seed, fabric.global_rank, step))
                model.train()
                try:
                    logits = model(batch.image, batch.roi)
                except NotFinite as error:
                    raise _diverged("The network's output became NaN or infinite", step + 1, batch) from error
                proposal = None
                if stored is not None:
                    proposal = Proposal(stored.to(fabric.device))
                elif loop.update_every == "step":
                    _check_finite_logits(logits, step + 1, batch)
                    solver_began = time.perf_counter()
                    proposal = _propose(loop, logits.detach(), batch)
                    _spent(numbers, solver_began, "solver-seconds")
                    _note_energies(numbers, proposal, batch)
                loss = None
                for turn in loop.updates(logits, batch, proposal, model):
                    loss = turn.loss.detach() if loss is None else loss
                    for name in turn.networks:
                        optimizers[name].zero_grad()
                    fabric.backward(turn.loss)
                    for name in turn.networks:
                        if name != "network":
                            _average_gradients(fabric, modules[name])
                        if training.clip_gradient is not None:
                            of = modules.get(name, model)
                            fabric.clip_gradients(of, optimizers[name], max_norm=training.clip_gradient)
                        optimizers[name].step()
                assert loss is not None
                step += 1

                logged = step % training.log_every == 0 or step == total_steps
                saved = training.checkpoint_every is not None and step % training.checkpoint_every == 0
                last = step % order.steps == 0
                if logged or saved or last:  # what has diverged is never saved
                    of_layer = layer_report(segmenter.layer, batch.pixels)
                    numbers_of_step = {"loss": float(loss), **loop.parts, **loop.metrics, **of_layer}
                    values = _over_processes(fabric, numbers_of_step)
                    for name in ("loss", *loop.metrics):
                        if not math.isfinite(values[name]):
                            raise _diverged(f"The {name} became {values[name]}", step, batch)
                    if segmenter.layer is not None:
                        segmenter.layer.check()
                if logged:
                    if main:
                        row = {"learning-rate": optimizer.param_groups[0]["lr"], **values}
                        steps_log.add({"step": step, "epoch": epoch, **row})
                        hooks.regloss_step(step=step, epoch=epoch, values=row, folder=folder)
                    advance(step, values)
                if saved and not last:
                    _spent(numbers, clock, "seconds")
                    clock = _spent(numbers, clock, "train-seconds")
                    save()
            _spent(numbers, clock, "seconds")
            clock = _spent(numbers, clock, "train-seconds")

            # Scores on the validation subset, and the epoch's numbers.
            if config.data.val is not None and ((epoch + 1) % training.evaluate_every == 0):
                scores = evaluate_samples(fabric, segmenter, parts.cache, config, config.data.val)
                numbers["val-mean-iou"] = scores["mean-iou"]
                numbers["val-mean-foreground-dice"] = scores["mean-foreground-dice"]
                for rule in RULES if "unsupervised" in scores else ():
                    numbers[f"val-foreground-iou-{rule}"] = scores["unsupervised"][rule]["foreground-iou"]
            if numbers.pop("proposal-images", 0.0) > 0:
                means = _over_processes(fabric, {name: numbers.pop(name) for name in _ENERGIES})
                numbers |= _finite(means)
            if main:
                _spent(numbers, clock, "seconds")
                of_epoch = [row for row in steps_log.rows if row["epoch"] == epoch]
                averaged = [name for row in of_epoch for name in row if name.startswith("layer-")]
                for name in ("loss", *loop.parts, *loop.metrics, *dict.fromkeys(averaged)):
                    values_of_epoch = [row[name] for row in of_epoch if name in row]
                    if values_of_epoch:
                        numbers[name] = sum(values_of_epoch) / len(values_of_epoch)
                epochs_log.add(numbers)
                hooks.regloss_epoch(epoch=epoch, values=numbers, folder=folder)
            epoch, numbers = epoch + 1, {}
            save()
            fabric.barrier()

    if main:
        save_model(folder, segmenter, config, parts.dataset)
        for name, module in modules.items():
            (folder / "modules").mkdir(exist_ok=True)
            checkpoints.save_network(folder / "modules" / f"{name}.safetensors", module.state_dict())
        if segmenter.layer is not None and segmenter.learnt():
            learnt = describe_layer(segmenter.layer)
            tell("Layer after training: " + ", ".join(f"{name[6:]} {value:.4g}" for name, value in learnt.items()))
    return _finish(fabric, parts, store if generation >= 0 else None, generation, tell)


def _finish(fabric: Fabric, parts: Parts, store: ProposalStore | None, generation: int, tell: Tell) -> dict[str, Any]:
    """Scores and report."""
    from regloss.report.page import write_report  # matplotlib is needed only now

    config, folder = parts.config, Path(parts.config.output)
    scores = {
        subset: evaluate_samples(fabric, parts.segmenter, parts.cache, config, subset)
        for subset in (config.data.val, config.data.test)
        if subset is not None
    }
    if not fabric.is_global_zero:
        return scores
    checkpoints.write_json(folder / "scores.json", scores)
    for module in parts.loop.modules().values():
        module.eval()
    read = None if store is None else (lambda sample_id: store.read(generation, sample_id))
    sections = [
        section for found in manager().hook.regloss_report(folder=folder, scores=scores) if found for section in found
    ]
    path = write_report(
        folder,
        title=folder.name,
        config_text=json.dumps(config.dump(), indent=1),
        steps=CsvLog(folder / "log" / "steps.csv").rows,
        epochs=CsvLog(folder / "log" / "epochs.csv").rows,
        scores=scores,
        classes=parts.dataset.classes,
        colors=parts.dataset.colors,
        examples=examples_of(fabric, parts.segmenter, parts.cache, config, read, parts.loop.data_term),
        sections=sections,
    )
    tell(f"Report: {path}")
    return scores


def _due(loop: OuterLoop, epoch: int, generation: int, generation_epoch: int) -> bool:
    """Whether this epoch begins with new proposals."""
    if not isinstance(loop.update_every, int):
        return False
    if generation_epoch == epoch:
        return False  # resumed in the middle of an epoch whose proposals are there already
    return generation < 0 if loop.update_every == 0 else epoch % loop.update_every == 0


def propose_all(
    fabric: Fabric, parts: Parts, store: ProposalStore, generation: int, previous: int, step: int = 0
) -> dict[str, float]:
    """Solve for the proposals of all training images of this process and keep them as ``generation``.

    The network works on the next images while the solver, in a thread, works on these: solvers release the interpreter.
    """
    began = time.perf_counter()
    config, loop = parts.config, parts.loop
    ids = parts.ids[fabric.global_rank :: fabric.world_size]
    samples = [parts.cache.load(sample_id) for sample_id in ids]
    totals = {"before": 0.0, "after": 0.0, "solver": 0.0}

    def solve(batch: Batch, logits: Tensor, warm: Tensor | None) -> None:
        started = time.perf_counter()
        proposal = _propose(loop, logits, batch, warm)
        assert proposal is not None
        totals["solver"] += time.perf_counter() - started
        if proposal.solution is not None:
            pixels = batch.pixels.to(proposal.solution.energy)
            totals["before"] += float((proposal.solution.start_energy / pixels).sum())
            totals["after"] += float((proposal.solution.energy / pixels).sum())
        for sample_id, labels in zip(batch.ids or (), proposal.labels.cpu().numpy().astype(np.uint8), strict=True):
            store.write(generation, sample_id, labels)

    network_seconds = 0.0
    # torch keeps the number of its threads per thread, and a new one starts with all cores.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        waiting: deque[Future[None]] = deque()
        for group in same_size_groups([sample.image.shape for sample in samples], config.training.batch_size):
            chosen = [samples[place] for place in group]
            labels = [supervision_of(sample, config.data.supervision) for sample in chosen]
            batch = _to_device(whole_batch(chosen, labels), fabric.device)
            started = time.perf_counter()
            logits = predict(parts.segmenter, batch.image)
            network_seconds += time.perf_counter() - started
            _check_finite_logits(logits, step, batch)
            warm = None
            if previous >= 0:
                stored = np.stack([store.read(previous, sample.id) for sample in chosen])
                warm = torch.from_numpy(stored).long().to(fabric.device)
            waiting.append(pool.submit(solve, batch, logits, warm))
            while len(waiting) > 2:  # bounds the memory of what waits for the solver
                waiting.popleft().result()
        for future in waiting:
            future.result()
    sums = torch.tensor([totals["before"], totals["after"], float(len(ids))], dtype=torch.float64)
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()  # type: ignore[union-attr]
    before, after, count = sums.tolist()
    return {
        **_finite(dict(zip(_ENERGIES, (before / count, after / count), strict=True))),
        "solver-seconds": totals["solver"],
        "network-seconds": network_seconds,
        "update-seconds": time.perf_counter() - began,
    }


_ENERGIES = ("proposal-energy-before", "proposal-energy-after")


def _finite(energies: dict[str, float]) -> dict[str, float]:
    """Those that exist: a start outside a hard constraint has none, and some solvers do not compute that of a start."""
    return {name: energy for name, energy in energies.items() if math.isfinite(energy)}


def _note_energies(numbers: dict[str, float], proposal: Proposal | None, batch: Batch) -> None:
    """Running means over an epoch of the energies per pixel of proposals made in every step."""
    if proposal is None or proposal.solution is None:
        return
    pixels = batch.pixels.to(proposal.solution.energy)
    count = numbers.get("proposal-images", 0.0)
    new = count + len(pixels)
    for key, energies in zip(_ENERGIES, (proposal.solution.start_energy, proposal.solution.energy), strict=True):
        numbers[key] = (numbers.get(key, 0.0) * count + float((energies / pixels).sum())) / new
    numbers["proposal-images"] = new


def _spent(numbers: dict[str, float], began: float, name: str) -> float:
    """Add the seconds since ``began`` to ``numbers[name]``; gives the time now."""
    now = time.perf_counter()
    numbers[name] = numbers.get(name, 0.0) + now - began
    return now


def _average_gradients(fabric: Fabric, module: torch.nn.Module) -> None:
    """Means over the processes, as data-parallel wrappers take them for the network itself.

    Further networks are not wrapped: they are called several times a step, and not all in every update.
    """
    if fabric.world_size == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = fabric.all_reduce(parameter.grad, reduce_op="mean")  # type: ignore[assignment]


def _over_processes(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    """Means over the processes; see `OuterLoop.mean` for why these are those of the global batch."""
    if fabric.world_size == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=fabric.device)
    means = fabric.all_reduce(tensor, reduce_op="mean")
    return dict(zip(values, means.tolist(), strict=True))  # type: ignore[union-attr]


def _check_finite_logits(logits: Tensor, step: int, batch: Batch) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise _diverged("The network's output became NaN or infinite", step, batch)


def _diverged(what: str, step: int, batch: Batch) -> ReglossError:
    return ReglossError(
        f"{what} at step {step}. Lower the learning rate, or look at the images of this batch: "
        + ", ".join(batch.ids or ())
    )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if batch.image.device == device:
        return batch
    return Batch(
        batch.image.to(device, non_blocking=True),
        None if batch.labels is None else batch.labels.to(device, non_blocking=True),
        None if batch.roi is None else batch.roi.to(device, non_blocking=True),
        batch.ids,
    )


def _step_seed(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])


@contextmanager
def _progress(total: int, done: int, quiet: bool) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A progress bar over optimizer steps, with the last losses and the time left."""
    if quiet:
        with nullcontext():
            yield lambda step, values: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("steps"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("steps", total=total, completed=done, values="")

        def advance(step: int, values: Mapping[str, float]) -> None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            progress.update(task, completed=step, values=text)

        yield advance
