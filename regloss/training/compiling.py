"""The network compiled as its training will call it, before the training begins."""

from __future__ import annotations

import copy

import torch
from lightning_fabric import Fabric

from regloss.errors import UsageError
from regloss.training.loader import EpochOrder, TrainingSet, collate
from regloss.training.run_parts import Parts


def compile_network(fabric: Fabric, parts: Parts) -> None:
    """Compile the network for the first batch and its gradient, on the device and in the precision of the training.

    One process trains what is compiled here. Several compile the network each for itself, but find on disk what torch
    has made of it; here that is a copy, so that the network stays where it is.

    Raises:
        UsageError: torch cannot compile it on this machine.
    """
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    config, segmenter = parts.config, parts.segmenter
    if fabric.world_size > 1:
        training = config.training
        fabric = Fabric(accelerator=training.accelerator, devices=1, precision=training.precision)  # type: ignore[arg-type]
        segmenter = copy.deepcopy(segmenter)
    training_set = TrainingSet(parts.reader, parts.ids, config.data, config.seed)
    order = EpochOrder(len(training_set), config.training.batch_size, config.seed)
    batch, _ = collate([training_set[key] for key in next(order.batches(0, -1))])
    batch = batch.to(fabric.device)

    model = fabric.setup_module(segmenter).train()
    statistics = {name: values.clone() for name, values in segmenter.named_buffers()}  # of batches, which are learnt
    segmenter.network.compile()
    try:
        fabric.backward(model(batch.image, batch.roi, batch.spacing).sum())
    except TorchDynamoException as cause:
        what = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise UsageError(
            f"training.compile: torch cannot compile {type(segmenter.network).__name__} on this machine: {what} "
            "Install what it asks for, or set training.compile = false."
        ) from cause
    with torch.no_grad():
        for name, values in segmenter.named_buffers():
            values.copy_(statistics[name])
    model.zero_grad()
    if segmenter.layer is not None:
        segmenter.layer.solution = None
