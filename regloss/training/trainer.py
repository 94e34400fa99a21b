"""Training: the loop that couples data, network, solver and optimizer. Read `_run` from top to bottom.

What a run leaves in its output folder:

    config.json                       the configuration, every default spelt out
    .lock                             while it trains: which process does (`regloss.training.output_lock`)
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
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import distributed
from torch.multiprocessing.spawn import ProcessException

from regloss.errors import FailedWrite, ReglossError
from regloss.hooks import manager
from regloss.metrics.foreground import RULES
from regloss.report.advice import advice
from regloss.training import checkpoints
from regloss.training.compiling import compile_network
from regloss.training.config import Config, as_written
from regloss.training.evaluation import evaluate_samples, examples_of, measure_training, training_energy
from regloss.training.finite import diverged
from regloss.training.loader import EpochOrder, TrainingLoader, TrainingSet
from regloss.training.logs import CsvLog
from regloss.training.model import describe_layer, layer_report, save_model
from regloss.training.optimizer_step import OptimizerStep, spent
from regloss.training.output_folder import check_output, prepare_output
from regloss.training.output_lock import OutputLock
from regloss.training.processes import (
    CopiedParts,
    build_fabric,
    children_end_with_exceptions,
    end_with_parent,
    mean_over_processes,
)
from regloss.training.progress import progress_bar
from regloss.training.proposal_engine import ENERGIES, Proposals, finite_energies
from regloss.training.run_parts import Parts, build
from regloss.training.stage_a import propose_all

Callback = Callable[[str], None]


_LOG_EVERY = 20  # steps, on devices that compute while this process goes on


def _silent(message: str) -> None:
    """No one listens."""


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, quiet: bool = True, callback: Callback = _silent
) -> dict[str, Any]:
    """Train as ``config`` says.

    Args:
        config: from `regloss.training.config.read` or `parse`.
        resume: go on from the last checkpoint in the output folder, if it holds one.
        overwrite: replace an output folder that an earlier run left.
        quiet: no progress bars.
        callback: called with messages worth reading.

    Returns:
        Scores by subset, as in scores.json.

    Raises:
        UsageError: the output folder is in use or not writable, a plugin's hook refuses, or see
            `regloss.training.run_parts.build`.
        FailedWrite: a file could not be written, or read, while training; the run goes on with ``resume``.
    """
    folder = Path(config.output)
    # Processes that Fabric (or a cluster) starts by running the command again find the folder that the first one made.
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    first = all(int(rank) == 0 for rank in ranks)
    with ExitStack() as stack:
        if first:
            check_output(folder, config, resume=resume, overwrite=overwrite)
            manager().hook.regloss_start(folder=folder)
            lock = stack.enter_context(OutputLock(folder, callback))
            lock.acquire()
        else:
            end_with_parent()
        fabric = build_fabric(config)
        parts = build(config, resume=resume, quiet=quiet or not first)
        if first:
            if config.training.compile:
                compile_network(fabric, parts)
            for warning in parts.warnings:
                callback(warning)
            prepare_output(folder, config, parts.dataset, lock, overwrite=overwrite)
        try:
            with children_end_with_exceptions():
                scores: dict[str, Any] = fabric.launch(_launched, CopiedParts(parts), quiet, callback)  # type: ignore[arg-type]
        except ProcessException as error:
            raise ReglossError(f"A training process failed. {error}") from error
        except OSError as error:
            raise FailedWrite(
                f"The training stopped: {error}. What it had done until its last checkpoint is kept: remove the cause, "
                "and go on with --resume."
            ) from error
        return scores


def _launched(fabric: Fabric, copied: CopiedParts, quiet: bool, callback: Callback) -> dict[str, Any]:
    """Run, and leave the process group: a process that ends with its threads of communication alive is aborted."""
    if fabric.world_size > 1 and multiprocessing.parent_process() is not None:  # started by this one's launcher
        end_with_parent()
    try:
        return _run(fabric, copied.parts, quiet, callback)
    finally:
        if fabric.is_global_zero:
            manager().hook.regloss_end(folder=Path(copied.parts.config.output))
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _run(fabric: Fabric, parts: Parts, quiet: bool, callback: Callback) -> dict[str, Any]:
    config, coupled = parts.config, parts.loop
    folder, training = Path(config.output), config.training
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    proposals = None  # of loops that keep any
    if isinstance(coupled.update_every, int):
        proposals = Proposals(
            coupled, parts.ids, folder / "proposals", resume=True, spelled=as_written, slab=config.inference.slab
        )
    store = None if proposals is None else proposals.store
    training_set = TrainingSet(parts.reader, parts.ids, config.data, config.seed, store)
    order = EpochOrder(len(training_set), training.batch_size, config.seed, fabric.global_rank, fabric.world_size)
    loader = TrainingLoader(training_set, order, config.data.workers, pinned=fabric.device.type == "cuda")
    total_steps = training.epochs * order.steps
    # A row waits for the device.
    log_every = training.log_every or (1 if fabric.device.type == "cpu" else min(_LOG_EVERY, order.steps))
    if fabric.world_size > 1:
        for each in filter(None, (coupled, parts.warm_up)):
            each.all_reduce = lambda value: fabric.all_reduce(value, reduce_op="sum")  # type: ignore[assignment, return-value]
            each.world_size = fabric.world_size

    main = fabric.is_global_zero
    if training.compile:
        parts.segmenter.network.compile()  # again, where that was another process
    model, optimizer = fabric.setup(parts.segmenter, parts.optimizers["network"])
    # Networks that the loop trains beside this one.
    modules = {name: fabric.to_device(module) for name, module in coupled.modules().items()}
    optimizers = {"network": optimizer} | {name: fabric.setup_optimizers(parts.optimizers[name]) for name in modules}
    take_step = OptimizerStep(fabric, parts, model, modules, optimizers, total_steps)
    segmenter = parts.segmenter  # the same weights, outside of the wrapper, for inference
    epoch, step = 0, 0
    generation, generation_epoch = -1, -1  # what the checkpoint goes on from
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
            callback(f"Going on from step {step} of {total_steps}.")

    if main:
        steps_log, epochs_log = (
            CsvLog(folder / "log" / "steps.csv", "step"),
            CsvLog(folder / "log" / "epochs.csv", "epoch"),
        )
        steps_log.keep(lambda row: row["step"] <= step)
        epochs_log.keep(lambda row: row["epoch"] < epoch)
        of_epoch = [row for row in steps_log.rows if row["epoch"] == epoch]
    if proposals is not None:
        proposals.restore(generation, generation_epoch)
    hooks = manager().hook

    def save() -> None:
        if main:
            made = (-1, -1) if proposals is None else (proposals.generation, proposals.epoch)
            state = {"generation": made[0], "generation-epoch": made[1], "numbers": numbers}
            further = {name: (module, optimizers[name]) for name, module in modules.items()}
            checkpoints.save(folder / "checkpoints", step, segmenter.weights(), optimizer, state, further)
            if proposals is not None:
                proposals.store.keep_from(proposals.generation)

    with progress_bar("steps", total_steps, step, quiet or not main) as advance:
        while epoch < training.epochs:
            clock = time.perf_counter()
            numbers["epoch"] = epoch
            loop = coupled if parts.warm_up is None or epoch >= training.warm_up else parts.warm_up
            loop.set_progress(step / total_steps)

            # Stage A: proposals for all training images, un-augmented, every few epochs.
            if proposals is not None and loop is coupled:
                numbers |= propose_all(proposals, parts, epoch, step, fabric.device)

            # Stage B: optimizer steps.
            clock = spent(numbers, clock, "seconds")
            first_step = step - epoch * order.steps
            use_generation = -1 if proposals is None else proposals.generation
            for batch, stored in loader.batches(epoch, use_generation, first_step):
                batch = batch.to(fabric.device)
                logged = (step + 1) % log_every == 0 or step + 1 == total_steps
                loss = take_step(loop, batch, stored, step, logged=logged, numbers=numbers)
                step += 1

                saved = training.checkpoint_every is not None and step % training.checkpoint_every == 0
                last = step % order.steps == 0
                if logged or saved or last:  # what has diverged is never saved
                    of_layer = layer_report(segmenter.layer, batch.pixels)
                    numbers_of_step = {"loss": float(loss), **loop.parts, **loop.metrics, **of_layer}
                    values = mean_over_processes(fabric, numbers_of_step)
                    for name in ("loss", *loop.metrics):
                        if not math.isfinite(values[name]):
                            raise diverged(f"The {name} became {values[name]}", step, batch)
                    if segmenter.layer is not None:
                        segmenter.layer.check()
                if logged:
                    if main:
                        row = {"learning-rate": optimizer.param_groups[0]["lr"], **values}
                        of_epoch.append({"step": step, "epoch": epoch, **row})
                        steps_log.add(of_epoch[-1])
                        hooks.regloss_step(step=step, epoch=epoch, values=row, folder=folder)
                    advance(step, values)
                if saved and not last:
                    spent(numbers, clock, "seconds")
                    clock = spent(numbers, clock, "train-seconds")
                    save()
            spent(numbers, clock, "seconds")
            clock = spent(numbers, clock, "train-seconds")

            if (epoch + 1) % training.evaluate_every == 0:
                numbers |= _validated(fabric, parts)
            if numbers.pop("proposal-images", 0.0) > 0:
                means = mean_over_processes(fabric, {name: numbers.pop(name) for name in ENERGIES})
                numbers |= finite_energies(means)
            if main:
                spent(numbers, clock, "seconds")
                averaged = [name for row in of_epoch for name in row if name.startswith("layer-")]
                for name in ("loss", *loop.parts, *loop.metrics, *dict.fromkeys(averaged)):
                    values_of_epoch = [row[name] for row in of_epoch if name in row]
                    if values_of_epoch:
                        numbers[name] = sum(values_of_epoch) / len(values_of_epoch)
                epochs_log.add(numbers)
                hooks.regloss_epoch(epoch=epoch, values=numbers, folder=folder)
            epoch, numbers, of_epoch = epoch + 1, {}, []
            save()
            fabric.barrier()

    if main:
        save_model(folder, segmenter, config, parts.dataset)
        for name, module in modules.items():
            (folder / "modules").mkdir(exist_ok=True)
            checkpoints.save_network(folder / "modules" / f"{name}.safetensors", module.state_dict())
        if segmenter.layer is not None and segmenter.learnable_parameters():
            learnt = describe_layer(segmenter.layer)
            callback("Layer after training: " + ", ".join(f"{name[6:]} {value:.4g}" for name, value in learnt.items()))
    return _finish(fabric, parts, proposals, callback)


def _validated(fabric: Fabric, parts: Parts) -> dict[str, float]:
    """Energy of the training images and scores on the validation subset, as far as they are asked for."""
    config, numbers = parts.config, {}
    if config.evaluation.energy_images:
        numbers["train-energy"] = training_energy(fabric, parts.segmenter, parts.reader, config)
    if config.data.val is not None:
        scores = evaluate_samples(fabric, parts.segmenter, parts.reader, config, config.data.val)
        numbers["val-mean-iou"] = scores["mean-iou"]
        numbers["val-mean-foreground-dice"] = scores["mean-foreground-dice"]
        if "energy" in scores:
            numbers["val-energy"] = scores["energy"]
        for rule in RULES if "unsupervised" in scores else ():
            numbers[f"val-foreground-iou-{rule}"] = scores["unsupervised"][rule]["foreground-iou"]
    return numbers


def _finish(fabric: Fabric, parts: Parts, proposals: Proposals | None, callback: Callback) -> dict[str, Any]:
    """Scores, report, and what to try."""
    from regloss.report.page import write_report  # matplotlib is needed only now

    config, folder = parts.config, Path(parts.config.output)
    scores = {
        subset: evaluate_samples(fabric, parts.segmenter, parts.reader, config, subset)
        for subset in (config.data.val, config.data.test)
        if subset is not None
    }
    if not fabric.is_global_zero:
        return scores
    checkpoints.write_json(folder / "scores.json", scores)
    for module in parts.loop.modules().values():
        module.eval()
    read = None if proposals is None else proposals.labels
    sections = [
        section for found in manager().hook.regloss_report(folder=folder, scores=scores) if found for section in found
    ]
    epochs = CsvLog(folder / "log" / "epochs.csv").rows
    measures = measure_training(fabric, parts.segmenter, parts.reader, config, read)
    to_try = advice(parts.dataset.classes, scores, epochs, measures)
    path = write_report(
        folder,
        title=folder.name,
        config_text=json.dumps(config.dump(), indent=1),
        steps=CsvLog(folder / "log" / "steps.csv").rows,
        epochs=epochs,
        scores=scores,
        classes=parts.dataset.classes,
        colors=parts.dataset.colors,
        examples=examples_of(fabric, parts.segmenter, parts.reader, config, read, parts.loop.data_term),
        advice=to_try,
        sections=sections,
    )
    callback(f"Report: {path}")
    if to_try:
        callback("What to try:\n" + "\n".join(f"- {each}" for each in to_try))
    return scores
