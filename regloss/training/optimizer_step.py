"""One step of the optimizers of a run: logits, proposal, objective, gradients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from regloss.batch import Batch
from regloss.checks import without_value_checks
from regloss.outer_loop import OuterLoop, Proposal
from regloss.training.finite import check_finite_logits, diverged
from regloss.training.further_logits import auxiliary_logits, further_loss
from regloss.training.model import NotFinite
from regloss.training.optimization import learning_rate_factor
from regloss.training.processes import average_gradients
from regloss.training.run_parts import Parts
from regloss.training.stage_a import add_energies, propose


class OptimizerStep:
    """Steps of a run's optimizers, each with the learning rates and the random numbers that follow from its number.

    Args:
        fabric: of this process.
        parts: of the run.
        model: the network with its layer, as ``fabric`` has wrapped it.
        modules: further networks that the loop trains, by name.
        optimizers: of the network ("network") and of these, with the rates that the configuration says.
        total_steps: of the training.
    """

    def __init__(
        self,
        fabric: Fabric,
        parts: Parts,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        total_steps: int,
    ) -> None:
        self.fabric = fabric
        self.network = parts.segmenter.network
        self.config = parts.config
        self.model = model
        self.modules = modules
        self.optimizers = optimizers
        self.total_steps = total_steps
        self._rates = {name: [group["lr"] for group in each.param_groups] for name, each in optimizers.items()}

    def __call__(
        self,
        loop: OuterLoop,
        batch: Batch,
        stored: Tensor | None,
        step: int,
        *,
        logged: bool,
        numbers: dict[str, float],
    ) -> Tensor:
        """Take a step.

        Args:
            loop: couples network and solver.
            batch: on the device.
            stored: (B, *S) labels of stored proposals, or None.
            step: its number, from 0.
            logged: whether its numbers are looked at, for which the device is waited for anyway.
            numbers: of the epoch; a solver's seconds and energies are added.

        Returns:
            () the loss, detached.

        Raises:
            ReglossError: the network's output is not finite.
        """
        progress = step / self.total_steps
        loop.set_progress(progress)
        factor = learning_rate_factor(self.config.training.schedule, progress)
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
        # All randomness of a step (dropout) follows from the step's number, so a resumed run repeats it.
        torch.manual_seed(_step_seed(self.config.seed, self.fabric.global_rank, step))
        with _value_checks(self.fabric.device, logged or loop.update_every == "step"):
            self.model.train()
            try:
                logits = self.model(batch.image, batch.roi, batch.spacing)
            except NotFinite as error:
                raise diverged("The network's output became NaN or infinite", step + 1, batch) from error
            proposal = None
            if stored is not None:
                proposal = Proposal(stored.to(self.fabric.device))
            elif loop.update_every == "step":
                check_finite_logits(logits, step + 1, batch)
                proposal = self._propose(loop, logits, batch, numbers)
            return self._update(loop, logits, batch, proposal)

    def _propose(self, loop: OuterLoop, logits: Tensor, batch: Batch, numbers: dict[str, float]) -> Proposal | None:
        began = time.perf_counter()
        branches = [each.detach() for each in (logits, *auxiliary_logits(self.network))]
        proposal = propose(loop, branches, batch)
        spent(numbers, began, "solver-seconds")
        add_energies(numbers, proposal, batch)
        return proposal

    def _update(self, loop: OuterLoop, logits: Tensor, batch: Batch, proposal: Proposal | None) -> Tensor:
        loss = None
        # Before the objective itself, whose terms are those that are logged.
        further = further_loss(self.network, loop, batch, proposal)
        for update in loop.updates(logits, batch, proposal, self.model):
            loss = update.loss.detach() if loss is None else loss
            for name in update.networks:
                self.optimizers[name].zero_grad()
            if further is not None and "network" in update.networks:
                self.fabric.backward(update.loss + further)
                further = None
            else:
                self.fabric.backward(update.loss)
            for name in update.networks:
                if name != "network":
                    average_gradients(self.fabric, self.modules[name])
                if self.config.training.clip_gradient is not None:
                    of = self.modules.get(name, self.model)
                    limit = self.config.training.clip_gradient
                    self.fabric.clip_gradients(of, self.optimizers[name], max_norm=limit)
                self.optimizers[name].step()
        assert loss is not None
        return loss


def _value_checks(device: torch.device, waits: bool) -> AbstractContextManager[None]:
    """Looking at values waits for the device, unless the step ``waits`` anyway; batches were checked before."""
    return nullcontext() if device.type == "cpu" or waits else without_value_checks()


def _step_seed(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])


def spent(numbers: dict[str, float], began: float, name: str) -> float:
    """Add the seconds since ``began`` to ``numbers[name]``; gives the time now."""
    now = time.perf_counter()
    numbers[name] = numbers.get(name, 0.0) + now - began
    return now
