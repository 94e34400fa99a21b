"""Training: the loop that couples data, network, solver and optimizer. Read `_run` from top to bottom.

What a run leaves in its output folder:

    config.json                       the configuration, every default spelt out
    log/steps.csv, log/epochs.csv     numbers of every logged step and of every epoch
    checkpoints/STEP/                 the last complete checkpoint (`regloss.training.checkpoints`)
    proposals/generation-N/           the proposals in use (`regloss.training.proposals`)
    model.safetensors, model.json     the trained model
    scores.json, report.html          scores and report
"""

from __future__ import annotations

import json
import math
import os
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
from torch import Tensor

from regloss.batch import Batch
from regloss.dataset import IGNORE, Dataset
from regloss.errors import ReglossError, UsageError
from regloss.hooks import manager
from regloss.outer_loop import OuterLoop, Proposal
from regloss.registry import create
from regloss.training import checkpoints
from regloss.training.config import Config, build_loop
from regloss.training.data import (
    EpochOrder,
    SampleCache,
    TrainingSet,
    check_training_samples,
    same_size_groups,
    supervision_of,
    training_batches,
    whole_batch,
)
from regloss.training.evaluation import evaluate_samples, examples_of
from regloss.training.logs import CsvLog
from regloss.training.model import Segmenter, build_segmenter, model_card, predict, save_model
from regloss.training.proposals import ProposalStore

Tell = Callable[[str], None]


def _silent(message: str) -> None:
    """No one listens."""


@dataclass(frozen=True)
class Parts:
    """Everything that a configuration names, built and checked, before anything is written."""

    config: Config
    dataset: Dataset
    cache: SampleCache
    segmenter: Segmenter
    loop: OuterLoop
    ids: list[str]
    warnings: list[str]


def build(config: Config) -> Parts:
    """Build all parts of a run and check the data.

    Raises:
        UsageError: anything that would stop the run later: files missing or of different sizes, labels outside the
            classes, images without a scribble, settings that do not fit each other, weights of another network.
    """
    data = config.data
    dataset = create("dataset", data.dataset, **data.component_settings())
    dataset.check(data.train, need=(data.supervision[:-1],))
    for subset in (data.val, data.test):
        if subset is not None:
            dataset.check(subset, need=("label",))
    cache = SampleCache(dataset, data.cache, data.scribble_length)
    ids = list(dataset.ids(data.train))
    warnings = check_training_samples(cache, ids, data.supervision)
    torch.manual_seed(config.seed)
    segmenter = build_segmenter(config, dataset.channels, len(dataset.classes))
    if config.training.start_from is not None:
        weights = checkpoints.read_weights(Path(config.training.start_from))
        checkpoints.load_network(segmenter.network, weights, config.training.start_from)
    loop = build_loop(config.loss, data.supervision)
    _check_loop(loop, len(dataset.classes))
    return Parts(config, dataset, cache, segmenter, loop, ids, warnings)


def _check_loop(loop: OuterLoop, classes: int) -> None:
    """Run one objective on a tiny image, so that settings that do not fit K or each other show before training."""
    image = torch.full((1, 1, 4, 4), 0.5)
    labels = torch.full((1, 4, 4), IGNORE)
    labels[0, 0, 0], labels[0, 3, 3] = 0, 1
    batch = Batch(image, labels)
    logits = torch.zeros(1, classes, 4, 4, requires_grad=True)
    for progress in (0.0, 1.0):
        loop.set_progress(progress)
        loop.objective(logits, batch, loop.propose(logits, batch))
    loop.set_progress(0.0)


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
    # Processes that Fabric starts by running the command again find the folder that the first one has made.
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    if first:
        check_output(folder, config, resume=resume, overwrite=overwrite)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    parts = build(config)
    for warning in parts.warnings:
        tell(warning)
    training = config.training
    fabric = Fabric(
        accelerator=training.accelerator,
        devices=training.devices,
        num_nodes=training.nodes,
        strategy=_strategy(config),
        precision=training.precision,  # type: ignore[arg-type]
    )
    if first:
        prepare_output(folder, config, parts.dataset, overwrite=overwrite)
    scores: dict[str, Any] = fabric.launch(_run, parts, quiet, tell)  # type: ignore[arg-type]
    return scores


def _strategy(config: Config) -> str:
    training = config.training
    if training.strategy != "auto" or training.devices in (1, "auto"):
        return training.strategy
    return "ddp_spawn" if training.accelerator == "cpu" else "ddp"


def check_output(folder: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Raise `UsageError` unless the output folder may be written; nothing is changed."""
    if resume and overwrite:
        raise UsageError("Choose one of resume and overwrite.")
    used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if used and not resume and not overwrite:
        raise UsageError(
            f"The output {folder} exists already. Go on with --resume, replace it with --overwrite, or choose another."
        )
    if used and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} was not made by a training (it holds no config.json), so it is left alone.")
    if used and resume:
        before = json.loads((folder / "config.json").read_text())
        differing = _differences(before, config.dump())
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


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(set(before) | set(after))
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{where}.{key}".strip("."))]
    return [] if before == after else [f"{where} (was {before!r}, is {after!r})"]


def prepare_output(folder: Path, config: Config, dataset: Dataset, *, overwrite: bool) -> None:
    """Make the output folder, with what is known at the start."""
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.dump(), indent=1))
    (folder / "model.json").write_text(json.dumps(model_card(config, dataset), indent=1))


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
    """The configured optimizer, with the head's own learning rate.

    Raises:
        UsageError: torch's optimizer has no such setting.
    """
    table = {key.replace("-", "_"): value for key, value in config.training.optimizer.items()}
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[table.pop("name")]
    rate = table["lr"]
    groups = [
        {"params": parameters, "lr": rate * (config.training.head_lr if name == "head" else 1.0)}
        for name, parameters in segmenter.groups().items()
    ]
    optimizer: Any = cls
    try:
        made: torch.optim.Optimizer = optimizer(groups, **table)
    except (TypeError, ValueError) as cause:
        raise UsageError(f"training.optimizer: {cause}") from cause
    return made


def _run(fabric: Fabric, parts: Parts, quiet: bool, tell: Tell) -> dict[str, Any]:
    config, loop = parts.config, parts.loop
    folder, training = Path(config.output), config.training
    store = ProposalStore(folder / "proposals")
    training_set = TrainingSet(parts.cache, parts.ids, config.data, config.seed, store)
    order = EpochOrder(len(parts.ids), training.batch_size, config.seed, fabric.global_rank, fabric.world_size)
    total_steps = training.epochs * order.steps
    if fabric.world_size > 1:
        loop.all_reduce = lambda value: fabric.all_reduce(value, reduce_op="sum")  # type: ignore[assignment, return-value]
        loop.world_size = fabric.world_size

    optimizer = build_optimizer(config, parts.segmenter)
    rates = [group["lr"] for group in optimizer.param_groups]
    epoch, step, generation, generation_epoch = 0, 0, -1, -1
    resumed = checkpoints.complete(folder / "checkpoints")
    if resumed:
        checkpoint = checkpoints.load(resumed[-1])
        checkpoints.restore(checkpoint, parts.segmenter.network, optimizer, str(resumed[-1]))
        state = checkpoint.state
        step, generation, generation_epoch = state["step"], state["generation"], state["generation-epoch"]
        epoch = step // order.steps
        tell(f"Going on from step {step} of {total_steps}.")
    model, optimizer = fabric.setup(parts.segmenter, optimizer)
    segmenter = parts.segmenter  # the same weights, outside of the wrapper, for inference

    main = fabric.is_global_zero
    if main:
        steps_log, epochs_log = CsvLog(folder / "log" / "steps.csv"), CsvLog(folder / "log" / "epochs.csv")
        steps_log.keep(lambda row: row["step"] <= step)
        epochs_log.keep(lambda row: row["epoch"] < epoch)
        store.discard_after(generation)
    hooks = manager().hook

    def save() -> None:
        if main:
            state = {"generation": generation, "generation-epoch": generation_epoch}
            checkpoints.save(folder / "checkpoints", step, segmenter.network, optimizer, state)
            store.keep_from(generation)

    with _progress(total_steps, step, quiet or not main) as advance:
        while epoch < training.epochs:
            numbers: dict[str, float] = {"epoch": epoch}
            epoch_began = time.perf_counter()
            loop.set_progress(step / total_steps)

            # Stage A: proposals for all training images, un-augmented, every few epochs.
            if _due(loop, epoch, generation, generation_epoch):
                fabric.barrier()
                update = propose_all(fabric, parts, store, generation + 1, generation)
                generation, generation_epoch = generation + 1, epoch
                numbers |= update
                if main:
                    store.finish(generation, len(parts.ids))
                fabric.barrier()

            # Stage B: optimizer steps.
            train_began, solver_seconds = time.perf_counter(), 0.0
            first_step = step - epoch * order.steps
            use_generation = generation if isinstance(loop.update_every, int) else -1
            for batch, stored in training_batches(
                training_set, order, epoch, use_generation, first_step, config.data.workers
            ):
                batch = _to_device(batch, fabric.device)
                progress = step / total_steps
                loop.set_progress(progress)
                factor = learning_rate_factor(training.schedule, progress)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                # All randomness of a step (dropout) follows from the step's number, so a resumed run repeats it.
                torch.manual_seed(_step_seed(config.seed, fabric.global_rank, step))
                model.train()
                logits = model(batch.image, batch.roi)
                proposal = None
                if stored is not None:
                    proposal = Proposal(stored.to(fabric.device))
                elif loop.update_every == "step":
                    solver_began = time.perf_counter()
                    proposal = loop.propose(logits.detach(), batch)
                    solver_seconds += time.perf_counter() - solver_began
                    _note_energies(numbers, proposal, batch)
                loss = loop.objective(logits, batch, proposal)
                optimizer.zero_grad()
                fabric.backward(loss)
                if training.clip_gradient is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=training.clip_gradient)
                optimizer.step()
                step += 1

                if step % training.log_every == 0 or step == total_steps:
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise ReglossError(
                            f"The loss became {value} at step {step}: {loop.parts}. Lower the learning rate, or look "
                            "at the images of this step's batch: " + ", ".join(batch.ids or ())
                        )
                    if main:
                        row = {"learning-rate": optimizer.param_groups[0]["lr"], "loss": value, **loop.parts}
                        steps_log.add({"step": step, "epoch": epoch, **row})
                        hooks.regloss_step(step=step, epoch=epoch, values=row, folder=folder)
                    advance(step, {"loss": value, **loop.parts})
                if training.checkpoint_every and step % training.checkpoint_every == 0 and step % order.steps:
                    save()
            numbers["train-seconds"] = time.perf_counter() - train_began
            if loop.update_every == "step":
                numbers["solver-seconds"] = solver_seconds

            # Scores on the validation subset, and the epoch's numbers.
            if config.data.val is not None and ((epoch + 1) % training.evaluate_every == 0):
                scores = evaluate_samples(fabric, segmenter, parts.cache, config, config.data.val)
                numbers["val-mean-iou"] = scores["mean-iou"]
                numbers["val-mean-foreground-dice"] = scores["mean-foreground-dice"]
            numbers["seconds"] = time.perf_counter() - epoch_began
            if main:
                of_epoch = [row for row in steps_log.rows if row["epoch"] == epoch]
                for name in ("loss", *loop.parts):
                    values = [row[name] for row in of_epoch if name in row]
                    if values:
                        numbers[name] = sum(values) / len(values)
                numbers.pop("proposal-images", None)
                epochs_log.add(numbers)
                hooks.regloss_epoch(epoch=epoch, values=numbers, folder=folder)
            epoch += 1
            save()
            fabric.barrier()

    if main:
        save_model(folder, segmenter, config, parts.dataset)
    return _finish(fabric, parts, store if generation >= 0 else None, generation, tell)


def _finish(fabric: Fabric, parts: Parts, store: ProposalStore | None, generation: int, tell: Tell) -> dict[str, Any]:
    """Scores and report."""
    from regloss.training.report import write_report  # matplotlib is needed only now

    config, folder = parts.config, Path(parts.config.output)
    scores = {
        subset: evaluate_samples(fabric, parts.segmenter, parts.cache, config, subset)
        for subset in (config.data.val, config.data.test)
        if subset is not None
    }
    if not fabric.is_global_zero:
        return scores
    temporary = folder / f".scores.json.{os.getpid()}"
    temporary.write_text(json.dumps(scores, indent=1))
    temporary.replace(folder / "scores.json")
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
        examples=examples_of(fabric, parts.segmenter, parts.cache, config, read),
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


def propose_all(fabric: Fabric, parts: Parts, store: ProposalStore, generation: int, previous: int) -> dict[str, float]:
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
        proposal = loop.propose(logits, batch, warm)
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
        "proposal-energy-before": before / count,
        "proposal-energy-after": after / count,
        "solver-seconds": totals["solver"],
        "network-seconds": network_seconds,
        "update-seconds": time.perf_counter() - began,
    }


def _note_energies(numbers: dict[str, float], proposal: Proposal | None, batch: Batch) -> None:
    """Running means over an epoch of the energies per pixel of proposals made in every step."""
    if proposal is None or proposal.solution is None:
        return
    pixels = batch.pixels.to(proposal.solution.energy)
    count = numbers.get("proposal-images", 0.0)
    new = count + len(pixels)
    for name, energies in (("before", proposal.solution.start_energy), ("after", proposal.solution.energy)):
        key = f"proposal-energy-{name}"
        numbers[key] = (numbers.get(key, 0.0) * count + float((energies / pixels).sum())) / new
    numbers["proposal-images"] = new


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
