"""Optimizer and learning rate of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from regloss.errors import UsageError
from regloss.settings import complaint
from regloss.training.config import Config, as_written
from regloss.training.model import SegmentationModel


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


def build_optimizer(config: Config, segmenter: SegmentationModel) -> torch.optim.Optimizer:
    """The configured optimizer, with the learning rates of head and layer.

    Raises:
        UsageError: torch's optimizer has no such setting.
    """
    rate = config.training.optimizer["lr"]
    groups = [
        {"params": parameters, "lr": rate * (config.training.head_lr if name == "head" else 1.0)}
        for name, parameters in segmenter.groups().items()
    ]
    learnt = segmenter.learnable_parameters()
    if learnt:
        # Decay would pull the logarithms to 0, and so what is learnt to 1.
        groups.append({"params": learnt, "lr": rate * config.training.layer_lr, "weight_decay": 0.0})
    return optimizer_of(config, groups)


def optimizer_of(config: Config, groups: Any) -> torch.optim.Optimizer:
    """The configured optimizer of parameters or groups of them.

    Raises:
        UsageError: torch's optimizer has no such setting, or not with such a value.
    """
    table = {key.replace("-", "_"): value for key, value in config.training.optimizer.items()}
    optimizer: Any = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[table.pop("name")]
    wrong = complaint(optimizer, (groups,), table)  # torch takes true for a learning rate of 1
    if wrong is not None:
        raise UsageError(f"training.optimizer: {as_written(wrong)}")
    try:
        made: torch.optim.Optimizer = optimizer(groups, **table)
    except (TypeError, ValueError) as cause:
        raise UsageError(f"training.optimizer: {cause}") from cause
    return made
