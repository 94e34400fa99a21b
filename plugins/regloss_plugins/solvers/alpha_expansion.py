"""Alpha-expansion: discrete minimisation of unaries plus a Potts model, by minimum cuts.

    min over labels of   sum over pixels of unary[l_p, p] + sum over edges of w_pq [l_p != l_q],     w >= 0

One cycle lets each allowed label alpha in turn grow into whatever pixels want it, optimally, by one minimum cut; the
solver ends when a whole cycle changes nothing. With two allowed labels one cut gives the exact minimum; with more the
result is at most twice the minimum and never above the start. Seeds are contracted into their neighbours' unaries: no
large numbers are involved.

Source: Boykov, Veksler, Zabih, "Fast approximate energy minimization via graph cuts", PAMI 2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from regloss.checks import check_at_least_one
from regloss.errors import UsageError
from regloss.forms import Form, Graph, GridGraph
from regloss.numerics import widest_float
from regloss.solver import Problem, Solution, Solver, Status, usable_cores
from regloss_plugins.kernels.chains import bound_grid
from regloss_plugins.kernels.expansion import Expansion, expand_graph, expand_grid
from regloss_plugins.kernels.expansion_slabs import expand_slabs
from regloss_plugins.kernels.potts import FreeProblem, free_problem

# With 26 neighbours and four classes 260 bytes a voxel stay, and what is cut takes some 280 more: volumes of
# 512 x 512 x 200 voxels are to fit into 16 GB.
_LARGE, _AT_A_TIME = 2**24, 2**22


@dataclass(frozen=True)
class AlphaExpansion(Solver):
    """Expansion moves, each solved by a minimum cut of our own; on the CPU, images of a batch in threads.

    Args:
        max_cycles: largest number of passes over the labels, >= 1.
        workers: threads over the images of a batch; None = as many as the process may use cores.
        bound_steps: steps of dual ascent (`regloss_plugins.solvers.dual_chains`) that compute a lower bound where more
            than two labels leave none; 0 = the bound is -inf there. Each costs about as much as some moves do.
        slab: slices of a volume whose pixels move at a time, while the others keep their labels, which bounds memory
            and leaves no lower bound (`regloss_plugins.kernels.expansion_slabs`); None = all of them, and of volumes
            beyond 2^24 voxels as many as have 2^22.

    Raises:
        UsageError: an entropy weight other than 0; ``bound_steps`` for a graph that is no regular grid.
    """

    max_cycles: int = 5
    workers: int | None = None
    bound_steps: int = 0
    slab: int | None = None
    accepts: ClassVar[tuple[type[Form], ...]] = (GridGraph, Graph)

    def __post_init__(self) -> None:
        check_at_least_one(max_cycles=self.max_cycles)
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, or None for one a core; got {self.workers}.")
        if self.slab is not None:
            check_at_least_one(slab=self.slab)
        if self.bound_steps < 0:
            raise UsageError(f"bound_steps must not be negative; got {self.bound_steps}.")

    def entropies(self, form: type[Form]) -> Literal["zero"]:
        """0 alone: it minimises over labels."""
        return "zero"

    def minimise(self, problem: Problem) -> Solution:
        """Solve every image of the batch; see the module's text for the guarantees."""
        refuse_entropy(problem, "alpha-expansion")
        return solve_discrete(problem, self._solve_one, self.workers)

    def _solve_one(self, image: ImageProblem) -> Expansion:
        if isinstance(image.form, GridGraph):
            offsets = image.offsets
            limits = (image.fixed, image.roi, image.allowed)
            slab = self._slab(image.labels.shape)
            if slab is None:
                found = expand_grid(image.unary, offsets, image.weights, image.labels, *limits, self.max_cycles)
            else:
                found = expand_slabs(image.unary, offsets, image.weights, image.labels, *limits, self.max_cycles, slab)
            if self.bound_steps == 0 or np.isfinite(found.bound):
                return found
            dual = bound_grid(image.unary, offsets, image.weights, found.labels, *limits, self.bound_steps)
            # Both are sums of rounded numbers; what is found cannot lie below the minimum.
            return replace(found, bound=min(dual.bound, found.energy))
        assert isinstance(image.form, Graph)
        if self.bound_steps > 0:
            raise UsageError(
                "bound_steps needs a regular grid (the form GridGraph); this regularizer offers a general graph. Use "
                "bound_steps=0."
            )
        edges = image.form.edges.cpu().numpy()
        flat = image.unary.reshape(image.unary.shape[0], -1)
        return expand_graph(
            flat,
            edges,
            image.weights,
            image.labels.ravel(),
            image.fixed.ravel(),
            image.roi.ravel(),
            image.allowed,
            self.max_cycles,
        )

    def _slab(self, shape: tuple[int, ...]) -> int | None:
        """How many slices are expanded at a time; None = all."""
        if len(shape) != 3:
            return None
        voxels = math.prod(shape)
        slab = self.slab
        if slab is None and voxels > _LARGE:
            slab = max(1, _AT_A_TIME * shape[0] // voxels)
        return None if slab is None or slab >= shape[0] else slab


@dataclass(frozen=True)
class ImageProblem:
    """One image of a `Problem` as arrays, C-ordered; costs and weights as they were given, float32 or float64.

    Attributes:
        index: place in the batch, for messages.
        form: the batch's form, for its topology.
        unary: (K, *S). weights: (offsets, *S) or (E,). labels: (*S) int64 start. fixed: (*S) int64, -1 where free.
        roi: (*S) bool. allowed: (K,) bool.
    """

    index: int
    form: Form
    unary: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    fixed: np.ndarray
    roi: np.ndarray
    allowed: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """(n, D) int64 of a grid's form, n = 0 where no pair fits into the image."""
        assert isinstance(self.form, GridGraph)
        return np.array(self.form.offsets, dtype=np.int64).reshape(-1, self.labels.ndim)


def refuse_entropy(problem: Problem, name: str) -> None:
    """Discrete solvers have no entropy term."""
    if problem.entropy != 0:
        raise UsageError(
            f"{name} minimises over labels, where the entropy term does not exist; got entropy = {problem.entropy}. "
            "Use entropy=0, or a solver over probabilities (mean-field)."
        )


def solve_free(problem: Problem, solve_one: Callable[[FreeProblem, int], Expansion], workers: int | None) -> Solution:
    """As `solve_discrete`, on general graphs, for solvers that take what is free alone and the image's place."""
    if isinstance(problem.form, GridGraph):
        problem = replace(problem, form=problem.form.graph())

    def solve_image(image: ImageProblem) -> Expansion:
        assert isinstance(image.form, Graph)
        unary, edges = image.unary.reshape(len(image.unary), -1), image.form.edges.cpu().numpy()
        labels, fixed, roi = image.labels.ravel(), image.fixed.ravel(), image.roi.ravel()
        return solve_one(free_problem(unary, edges, image.weights, labels, fixed, roi, image.allowed), image.index)

    return solve_discrete(problem, solve_image, workers)


def solve_discrete(problem: Problem, solve_one: Callable[[ImageProblem], Expansion], workers: int | None) -> Solution:
    """Run a discrete solver on every image of ``problem``, in threads, and collect the `Solution`."""
    form, unary = problem.form, problem.unary
    assert isinstance(form, Graph | GridGraph)
    batch, classes = unary.shape[:2]
    shape = (batch, *unary.shape[2:])

    def array(values: Tensor, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(values.detach().cpu().numpy(), dtype=dtype)

    # Copies in higher precision would be most of the memory; single precision is kept where all is of it.
    single = unary.dtype == form.weights.dtype == torch.float32
    precision = np.float32 if single else np.float64

    if not (problem.warm is None or isinstance(problem.warm, Tensor)):
        raise UsageError(
            "Discrete solvers start from labels (B, *S); got the state of another solver, "
            f"{type(problem.warm).__name__}. Pass its solution.labels as warm."
        )
    fixed = torch.full(shape, -1) if problem.fixed is None else problem.fixed
    roi = torch.ones(shape, dtype=torch.bool) if problem.roi is None else problem.roi
    allowed = torch.ones(batch, classes, dtype=torch.bool) if problem.allowed is None else problem.allowed

    def solve_image(i: int) -> Expansion:
        # All that an image needs is done in its thread. Without a start, the cheapest label at every pixel is one; with
        # seeds alone it is label 0 everywhere. (min finds the place as argmin does, in a tenth of the time.)
        start = unary[i].min(0).indices if problem.warm is None else problem.warm[i]
        return solve_one(
            ImageProblem(
                i,
                form,
                array(unary[i], precision),
                array(form.weights[i], precision),
                array(start.masked_fill(~roi[i].to(start.device), 0), np.int64),
                array(fixed[i], np.int64),
                array(roi[i], np.bool_),
                array(allowed[i], np.bool_),
            )
        )

    inference = torch.is_inference_mode_enabled()

    def collect_image(i: int) -> None:
        with torch.inference_mode(inference):  # each thread has a mode of its own
            labels[i] = torch.from_numpy(found[i].labels.reshape(shape[1:]))
            # In place: by way of integers, as torch makes one-hot codes, this would be the largest array of all.
            probabilities[i].zero_().scatter_(0, labels[i].unsqueeze(0), 1)

    threads = min(batch, workers or usable_cores())
    # torch keeps the number of its threads per thread, and a new one starts with all cores.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) if threads > 1 else None
    with pool or nullcontext():
        each = map if pool is None else pool.map
        found = list(each(solve_image, range(batch)))
        # Only now, when the memory that solving takes is free.
        labels = torch.empty(shape, dtype=torch.int64, device=unary.device)
        probabilities = torch.empty_like(unary)
        list(each(collect_image, range(batch)))

    def numbers(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=widest_float(unary.device), device=unary.device)

    bounds = [result.bound for result in found]
    return Solution(
        probabilities=probabilities,
        labels=labels,
        energy=numbers([result.energy for result in found]),
        bound=numbers(bounds),
        steps=torch.tensor([result.cycles for result in found], device=unary.device),
        status=tuple(
            Status.OPTIMAL
            if result.bound == result.energy
            else Status.CONVERGED
            if result.converged
            else Status.MAX_STEPS
            for result in found
        ),
        start_energy=numbers([result.start_energy for result in found]),
        state=labels,
    )
