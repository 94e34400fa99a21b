"""The conformance suites find faults: each is run on components with one fault, and must fail in the right check.

That sound components pass is shown wherever the suites are inherited.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from regloss import (
    ADM,
    KL,
    AlphaExpansion,
    ChanVese,
    CrossEntropy,
    Dataset,
    DeepChanVeseSegmenter,
    GraphCut,
    GridCRF,
    Proposal,
    RegularizedLayer,
    Regularizer,
    Sample,
    Status,
    Term,
    TotalVariation,
    UsageError,
    testing,
)
from regloss.checks import at_least_float32, check_finite, check_image, check_scores
from regloss.dispatch import fast, find
from regloss.dual_sets import Box, DualSet, Tangent
from regloss.forms import Concave, ConcaveFunction, GridGraph, Saddle, SaddlePart
from regloss.numerics import one_hot
from regloss.operators import LinearOperator, Scaled
from regloss.testing.suite import gradient_of_sum

pytest_plugins = ["pytester"]

BOX = {"ndim": 2}


def expect_failure(suite, check, arguments, error=AssertionError):
    """``check`` of a suite must fail on its component."""
    with pytest.raises(error):
        getattr(suite(), check)(**arguments)


def suite_for(base, component, **facts):
    """A test class as a plugin author writes it."""
    return type("Suite", (base,), {"make": lambda self: component, **facts})


# --------------------------------------------------------------------------------------------------------------------
# Regularizers


@dataclass(frozen=True)
class FaultyPrior(Regularizer):
    """Total variation with a fault."""

    weight: float = 1.0
    fault: str = ""

    @property
    def forms(self):
        offered = {Saddle: FaultyTerm.saddle, GridGraph: FaultyTerm.grid_graph}
        if self.fault == "convex":
            offered[Concave] = lambda term: Concave(ConvexFunction(term))
        if self.fault == "builds another form":
            offered[Saddle] = FaultyTerm.grid_graph
        return offered

    @property
    def needs_image(self):
        return self.fault != "hides the image"

    def build(self, image, roi, spacing):
        weight = self.weight**2 if self.fault == "squares weight" else self.weight
        if self.fault == "reduces precision":
            image = image.float()
        if self.fault == "drops region":
            roi = None
        edge_scale = 5.0 if self.fault == "hides the image" else 0.0
        return FaultyTerm(self, TotalVariation(weight, edge_scale=edge_scale).build(image, roi, spacing))


class FaultyTerm(Term):
    def __init__(self, regularizer, sound):
        super().__init__(regularizer, sound.shape, sound.roi)
        self.sound = sound
        self.fault = regularizer.fault

    def energy(self, probabilities):
        match self.fault:
            case "modifies":
                probabilities.mul_(0.5)
            case "prefers a class":
                return self.sound.energy(probabilities) + probabilities[:, 0].flatten(1).sum(1)
            case "couples images":
                return self.sound.energy(probabilities).mean().expand(probabilities.shape[0])
            case "reduces precision":
                return self.sound.energy(probabilities.bfloat16()).bfloat16()
            case "miscounts":
                return 1.01 * self.sound.energy(probabilities)
            case "loses gradient":
                return self.sound.energy((probabilities + probabilities.detach()) / 2)
            case "undefined at 0":
                spread = (probabilities - probabilities.mean(1, keepdim=True)).square().sum(1).sqrt()
                return self.sound.energy(probabilities) + 0.1 * spread.flatten(1).sum(1)
            case "random":
                return self.sound.energy(probabilities) * (1 + 1e-6 * torch.rand((), dtype=torch.float64))
            case "negative":
                return -self.sound.energy(probabilities)
            case "unchecked":
                return probabilities.flatten(1).sum(1)
        return self.sound.energy(probabilities)

    def saddle(self):
        (part,) = self.sound.form(Saddle).parts
        return Saddle((SaddlePart(FaultyOperator(part.operator, self.fault), FaultySet(part.dual_set, self.fault)),))

    def grid_graph(self):
        graph = self.sound.form(GridGraph)
        return replace(graph, weights=torch.ones_like(graph.weights)) if self.fault == "wraps around" else graph


@dataclass(frozen=True)
class FaultyOperator(LinearOperator):
    """Another operator with a fault."""

    sound: LinearOperator
    fault: str

    def apply(self, s):
        return self.sound.apply(s) + (self.fault == "affine")

    def adjoint(self, y):
        return self.sound.adjoint(y) * (-1 if self.fault == "wrong sign" else 1)

    @property
    def norm(self):
        return 2.0 if self.fault in ("small norm", "long common step") else self.sound.norm

    def absolute(self):
        if self.fault == "long common step":
            return None
        absolute = self.sound.absolute()
        return LongSteps(absolute) if self.fault == "long steps" else absolute

    def squared(self):
        return self.sound.squared()

    def __getitem__(self, images):
        return FaultyOperator(self.sound[1 - images if self.fault == "mixes up images" else images], self.fault)


class LongSteps(Scaled):
    """An absolute operator that is too small, and whose column sums are not."""

    def __init__(self, operator):
        super().__init__(operator, 0.4)

    def adjoint(self, y):
        return self.operator.adjoint(y)


@dataclass(frozen=True)
class FaultySet(DualSet):
    """Another set with a fault."""

    sound: DualSet
    fault: str

    def project(self, y):
        match self.fault:
            case "large set":
                return 2 * self.sound.project(y / 2)
            case "small set":
                return 0.5 * self.sound.project(2 * y)
            case "shrinks":
                return 0.9 * self.sound.project(y)
        return self.sound.project(y)

    def support(self, z):
        return self.sound.support(z) * (1.1 if self.fault == "other support" else 1)

    def fenchel_gap(self, z, y):
        return self.sound.fenchel_gap(z, y) * (1.1 if self.fault == "other gap" else 1)

    def tangent(self, z, y):
        if self.fault == "slanted tangent":
            return Tangent(lambda v: 0.5 * v)
        if self.fault == "negative curvature":
            return Tangent(lambda v: v, -1.0)
        return self.sound.tangent(z, y)

    def joint_bound(self, bound):
        return self.sound.joint_bound(bound)


@fast("dual-ascent", FaultyOperator, FaultySet, device="cpu")
def faulty_ascent(problem):
    """The sound parts' fast code, with the fault."""
    fault, operator, dual_set = problem.operator.fault, problem.operator.sound, problem.dual_set.sound
    if fault == "other set in fast code":
        dual_set = Box(0.9 * dual_set.radius)
    if fault == "ignores the factor":
        problem = replace(problem, factor=1.0)
    if fault == "ignores the start":
        problem = replace(problem, start=None)
    ascent = find("dual-ascent", type(operator), type(dual_set), device=problem.cost.device)
    return ascent(replace(problem, operator=operator, dual_set=dual_set))


@dataclass(frozen=True)
class ConvexFunction(ConcaveFunction):
    """What a faulty term takes for concave."""

    term: FaultyTerm

    def value(self, s):
        return self.term.energy(s)

    def supergradient(self, s):
        return gradient_of_sum(self.term.energy, s)

    def __getitem__(self, images):
        return self


@pytest.mark.parametrize(
    ("fault", "check", "arguments", "error"),
    [
        ("squares weight", "test_weight_scales_the_energy", BOX, AssertionError),
        ("drops region", "test_region_of_interest_is_a_crop", BOX, AssertionError),
        ("modifies", "test_arguments_are_not_modified", BOX, AssertionError),
        ("prefers a class", "test_classes_may_be_renamed", BOX, AssertionError),
        ("prefers a class", "test_energy_of_labels_follows_the_definition", BOX, AssertionError),
        ("couples images", "test_batch_is_one_by_one", BOX, AssertionError),
        ("reduces precision", "test_energy_is_computed_in_float32_at_least", {"dtype": torch.float64}, AssertionError),
        ("reduces precision", "test_energy_is_computed_in_float32_at_least", {"dtype": torch.float32}, AssertionError),
        ("miscounts", "check_grid_graph", BOX, AssertionError),
        ("miscounts", "check_saddle_support", BOX, AssertionError),
        ("loses gradient", "test_penalty_gradient_matches_finite_differences", BOX, AssertionError),
        ("undefined at 0", "test_penalty_gradient_is_finite_at_flat_and_hard_probabilities", BOX, AssertionError),
        ("random", "test_binding_twice_gives_the_same", BOX, AssertionError),
        ("unchecked", "test_probabilities_that_do_not_fit_are_refused", BOX, pytest.fail.Exception),
        ("hides the image", "test_image_matters_where_it_says_so", BOX, AssertionError),
        ("wrong sign", "check_saddle_adjoint", BOX, AssertionError),
        ("affine", "check_saddle_adjoint", BOX, AssertionError),
        ("small norm", "check_saddle_norm", BOX, AssertionError),
        ("large set", "check_saddle_support", BOX, AssertionError),
        ("small set", "check_saddle_support", BOX, AssertionError),
        ("shrinks", "check_saddle_projection", BOX, AssertionError),
        ("other support", "check_saddle_support", BOX, AssertionError),
        ("other gap", "check_saddle_gap", BOX, AssertionError),
        ("long steps", "check_saddle_steps", BOX, AssertionError),
        ("long common step", "check_saddle_steps", BOX, AssertionError),
        ("slanted tangent", "check_saddle_tangent", BOX, AssertionError),
        ("negative curvature", "check_saddle_tangent", BOX, AssertionError),
        ("mixes up images", "check_saddle_images", BOX, AssertionError),
        ("other set in fast code", "check_saddle_fast", BOX, AssertionError),
        ("ignores the factor", "check_saddle_fast", BOX, AssertionError),
        ("ignores the start", "check_saddle_fast", BOX, AssertionError),
        ("wraps around", "check_grid_graph", BOX, AssertionError),
        ("convex", "check_concave", BOX, AssertionError),
        ("builds another form", "test_forms_are_those_that_terms_build", BOX, AssertionError),
    ],
)
def test_faulty_regularizers_are_found(fault, check, arguments, error):
    expect_failure(suite_for(testing.RegularizerConformance, FaultyPrior(1.5, fault)), check, arguments, error)


def test_a_regularizer_that_takes_any_weight_is_found():
    """The base class checks the weight, so one has to take that out."""

    class Unchecked(FaultyPrior):
        pass

    Unchecked.__post_init__ = lambda self: None
    suite = suite_for(testing.RegularizerConformance, Unchecked(1.5))
    expect_failure(suite, "test_negative_weight_is_refused", {}, pytest.fail.Exception)


def test_the_fault_makes_the_difference():
    """The same class without a fault passes all the checks above but the one on negative weights."""
    suite = suite_for(testing.RegularizerConformance, FaultyPrior(1.5))()
    for name in dir(suite):
        if name.startswith(("test_", "check_saddle", "check_grid")) and name not in (
            "test_forms_keep_their_contracts",
            "test_negative_weight_is_refused",
        ):
            check = getattr(suite, name)
            wanted = check.__code__.co_varnames[1 : check.__code__.co_argcount]
            check(**{key: {"ndim": 2, "dtype": torch.float32, "device": "cpu"}[key] for key in wanted})


def test_a_false_statement_about_a_regularizer_is_found():
    isotropic = suite_for(testing.RegularizerConformance, TotalVariation(isotropic=True))
    expect_failure(isotropic, "test_energy_of_labels_follows_the_definition", BOX)
    negative = suite_for(testing.RegularizerConformance, FaultyPrior(fault="negative"), nonnegative=True)
    expect_failure(negative, "test_energy_is_one_number_per_image", BOX)


def test_only_checks_of_offered_forms_are_made():
    suite = suite_for(testing.RegularizerConformance, GridCRF())
    assert suite().form_checks == ["check_graph", "check_grid_graph"]
    suite = suite_for(testing.RegularizerConformance, TotalVariation(isotropic=True))
    assert all(name.startswith("check_saddle") for name in suite().form_checks)
    assert len(suite().form_checks) == 9


# --------------------------------------------------------------------------------------------------------------------
# Solvers


@dataclass(frozen=True)
class FaultySolver(AlphaExpansion):
    fault: str = ""

    def minimise(self, problem):
        match self.fault:
            case "drops seeds":
                problem = replace(problem, fixed=None)
            case "drops allowed":
                problem = replace(problem, allowed=None)
            case "drops region":
                problem = replace(problem, roi=None)
            case "modifies":
                problem.unary.mul_(0.5)
            case "half regularized":
                problem = replace(problem, form=replace(problem.form, weights=problem.form.weights / 2))
            case "starts elsewhere" if problem.roi is None:
                problem = replace(problem, unary=problem.unary.flip(-1))
            case "one image for all":
                problem = replace(problem, unary=problem.unary[:1].expand_as(problem.unary))
        solution = super().minimise(problem)
        match self.fault:
            case "misstates energy":
                return replace(solution, energy=solution.energy - 0.01)
            case "overstates bound":
                return replace(solution, bound=solution.energy + 0.01)
            case "one status":
                return replace(solution, status=(Status.OPTIMAL,))
            case "argmax of another":
                return replace(solution, labels=(solution.labels + 1) % problem.unary.shape[1])
            case "lazy":
                labels = torch.zeros_like(solution.labels)
                return replace(solution, labels=labels, probabilities=one_hot(labels, 3, torch.float64))
            case "half precision":
                return replace(solution, energy=solution.energy.half())
        return solution


MIXED = {"ndim": 2, "weight": 0.3}


@pytest.mark.parametrize(
    ("fault", "check", "arguments"),
    [
        ("drops seeds", "test_fixed_labels_are_kept", MIXED),
        ("drops allowed", "test_allowed_labels_are_respected", MIXED),
        ("drops region", "test_region_of_interest_is_a_crop", MIXED),
        ("starts elsewhere", "test_region_of_interest_is_a_crop", MIXED),
        ("modifies", "test_arguments_are_not_modified", {"ndim": 2}),
        ("half regularized", "test_energy_is_that_of_the_solution", {"ndim": 2, "weight": 2.0}),
        ("half regularized", "test_no_labelling_is_better_than_claimed", {"classes": 2, "weight": 2.0}),
        ("one image for all", "test_batch_is_one_by_one", MIXED),
        ("misstates energy", "test_energy_is_that_of_the_solution", MIXED),
        ("misstates energy", "test_no_labelling_is_better_than_claimed", {"classes": 2, "weight": 0.3}),
        ("overstates bound", "test_no_labelling_is_better_than_claimed", {"classes": 3, "weight": 0.3}),
        ("overstates bound", "test_energy_is_that_of_the_solution", MIXED),
        ("one status", "test_solution_is_complete", {"ndim": 2}),
        ("argmax of another", "test_solution_lies_in_the_simplex", MIXED),
        ("lazy", "test_energy_is_that_of_the_solution", MIXED),
        ("half precision", "test_unaries_of_any_precision", {"dtype": torch.float64}),
    ],
)
def test_faulty_solvers_are_found(fault, check, arguments):
    suite = suite_for(testing.SolverConformance, FaultySolver(workers=1, fault=fault), exact_for_two=True)
    getattr(suite_for(testing.SolverConformance, FaultySolver(workers=1), exact_for_two=True)(), check)(**arguments)
    expect_failure(suite, check, arguments)


def test_a_solver_without_a_regularizer_is_told_so():
    class Odd(FaultySolver):
        accepts = (Concave,)

    class Foreign(Odd):
        accepts = (type("NoSuchForm", (Concave,), {}),)

    with pytest.raises(UsageError, match=r"Override regularizer\(\)"):
        suite_for(testing.SolverConformance, Foreign())().regularizer(1.0)


# --------------------------------------------------------------------------------------------------------------------
# Divergences and data terms


@dataclass(frozen=True)
class FaultyKL(KL):
    fault: str = ""

    def of_labels(self, labels, log_probabilities, seeds):
        values = super().of_labels(labels, log_probabilities, seeds)
        if self.fault == "couples images":
            values = values + values.detach().mean(0, keepdim=True)
        return values

    def of_probabilities(self, target, log_probabilities, seeds):
        if self.fault == "reversed":
            return (log_probabilities.exp() * (log_probabilities - target.clamp(min=1e-30).log())).sum(1)
        return super().of_probabilities(target, log_probabilities, seeds)

    def unary(self, logits):
        return -logits if self.fault == "unnormalised" else super().unary(logits)

    def __call__(self, target, logits, weight=None, seeds=None):
        match self.fault:
            case "modifies":
                logits.sub_(logits.amax(1, keepdim=True))
            case "drops weight":
                weight = None
            case "counts ignored" if not target.is_floating_point():
                target = target.masked_fill(target == 255, 0)
            case "mean":
                return super().__call__(target, logits, weight, seeds) / logits[0, 0].numel()
            case "overflows":
                shifted = logits.exp() / logits.exp().sum(1, keepdim=True)
                return super().__call__(target, shifted.log(), weight, seeds)
            case "half":
                return super().__call__(target, logits.bfloat16(), weight, seeds)
            case "drops gradient":
                logits = (logits + logits.detach()) / 2
            case "accepts anything":
                return logits.flatten(1).sum(1)
        return super().__call__(target, logits, weight, seeds)


GRID = {"spatial": (5, 6)}


@pytest.mark.parametrize(
    ("fault", "check", "arguments", "error"),
    [
        ("couples images", "test_batch_is_one_by_one", GRID, AssertionError),
        ("reversed", "test_one_hot_probabilities_are_labels", GRID, AssertionError),
        ("unnormalised", "test_unary_is_the_cost_of_each_label", GRID, AssertionError),
        ("modifies", "test_arguments_are_not_modified", {}, AssertionError),
        ("drops weight", "test_weights_multiply_pixels", {}, AssertionError),
        ("counts ignored", "test_ignored_pixels_do_not_count", {}, AssertionError),
        ("mean", "test_value_is_one_number_per_image", GRID, AssertionError),
        ("overflows", "test_extreme_logits_stay_finite", {}, AssertionError),
        ("half", "test_logits_of_any_precision", {"dtype": torch.float64}, AssertionError),
        ("drops gradient", "test_gradient_matches_finite_differences", GRID, AssertionError),
        ("accepts anything", "test_bad_input_is_refused", {}, pytest.fail.Exception),
    ],
)
def test_faulty_divergences_are_found(fault, check, arguments, error):
    getattr(suite_for(testing.DivergenceConformance, FaultyKL())(), check)(**arguments)
    expect_failure(suite_for(testing.DivergenceConformance, FaultyKL(fault)), check, arguments, error)


@dataclass(frozen=True)
class FaultyDataTerm(CrossEntropy):
    fault: str = ""

    def __call__(self, logits, batch):
        if self.fault == "drops region":
            batch = replace(batch, roi=None)
        if self.fault == "modifies":
            batch.labels[batch.labels == 255] = 0
        sums, counts = super().__call__(logits, batch)
        match self.fault:
            case "mean":
                return sums / counts, torch.ones_like(counts)
            case "one sum":
                return sums.sum().expand_as(sums), counts
            case "learns unlabelled pixels":
                return sums + 0.01 * logits.square().flatten(1).sum(1), counts
            case "drops gradient":
                return sums.detach(), counts
        return sums, counts


@pytest.mark.parametrize(
    ("fault", "check", "error"),
    [
        ("drops region", "test_region_of_interest_is_a_crop", AssertionError),
        ("drops region", "test_pixels_that_do_not_count_have_no_gradient", AssertionError),
        ("modifies", "test_arguments_are_not_modified", AssertionError),
        ("mean", "test_nothing_labelled_counts_nothing", AssertionError),
        ("one sum", "test_batch_is_one_by_one", AssertionError),
        ("learns unlabelled pixels", "test_pixels_that_do_not_count_have_no_gradient", AssertionError),
        ("drops gradient", "test_gives_sums_and_counts", AssertionError),
        ("drops gradient", "test_gradient_matches_finite_differences", RuntimeError),
    ],
)
def test_faulty_data_terms_are_found(fault, check, error):
    getattr(suite_for(testing.DataTermConformance, FaultyDataTerm())(), check)(ndim=2)
    expect_failure(suite_for(testing.DataTermConformance, FaultyDataTerm(fault=fault)), check, BOX, error)


# --------------------------------------------------------------------------------------------------------------------
# Outer loops


class FaultyLoop(ADM):
    def __init__(self, fault=""):
        super().__init__(GridCRF(0.4), {"name": "alpha-expansion", "workers": 1}, coupling=0.7)
        self.fault = fault
        if fault == "claims to be passive":
            self.update_every = "never"

    @property
    def parts(self):
        factor = 2 if self.fault == "weight apart" else 1
        return {name: factor * value for name, value in super().parts.items()}

    def mean(self, totals, counts):
        if self.fault == "mean of means":
            return (totals / counts.clamp(min=1)).mean()
        if self.fault == "local mean":
            return totals.sum() / counts.sum().clamp(min=1)
        return super().mean(totals, counts)

    def propose(self, logits, batch, warm=None):
        match self.fault:
            case "forgets seeds":
                proposal = super().propose(logits, replace(batch, labels=torch.full_like(batch.labels, 255)), warm)
            case "modifies":
                logits.sub_(logits.mean())
                proposal = super().propose(logits, batch, warm)
            case _:
                proposal = super().propose(logits, batch, warm)
        if self.fault == "labels outside":
            return Proposal(proposal.labels.masked_fill(proposal.labels == 255, 0))
        return proposal

    def propose_from(self, branches, batch):
        sign = -1 if self.fault == "turns decoders round" else 1
        return super().propose_from([sign * logits for logits in branches], batch)

    def objective(self, logits, batch, proposal=None):
        if self.fault == "drops region":
            batch = replace(batch, roi=None)
            proposal = replace(proposal, labels=proposal.labels.masked_fill(proposal.labels == 255, 0))
        loss = super().objective(logits, batch, proposal)
        return loss * 1.0 if self.fault != "unscaled gradient" else loss + (loss - loss.detach())


@pytest.mark.parametrize(
    ("fault", "check", "error"),
    [
        ("claims to be passive", "test_cadence_says_whether_it_proposes", AssertionError),
        ("mean of means", "test_two_processes_give_the_mean_of_one", AssertionError),
        ("local mean", "test_two_processes_give_the_mean_of_one", AssertionError),
        ("forgets seeds", "test_proposal_is_a_labelling_that_keeps_the_seeds", AssertionError),
        ("labels outside", "test_proposal_is_a_labelling_that_keeps_the_seeds", AssertionError),
        ("modifies", "test_arguments_are_not_modified", AssertionError),
        ("turns decoders round", "test_one_decoder_is_enough_to_propose", AssertionError),
        ("drops region", "test_region_of_interest_is_a_crop", AssertionError),
        ("weight apart", "test_parts_add_up_to_the_objective", AssertionError),
        ("unscaled gradient", "test_gradient_matches_finite_differences", AssertionError),
    ],
)
def test_faulty_loops_are_found(fault, check, error):
    sound = type("Suite", (testing.OuterLoopConformance,), {"make": lambda self: FaultyLoop()})
    faulty = type("Suite", (testing.OuterLoopConformance,), {"make": lambda self: FaultyLoop(fault)})
    getattr(sound(), check)()
    expect_failure(faulty, check, {}, error)


# --------------------------------------------------------------------------------------------------------------------
# Region forces


@dataclass(frozen=True)
class FaultyForce(ChanVese):
    """Means with a fault."""

    fault: str = ""

    def estimate(self, features, weights):
        match self.fault:
            case "unweighted":
                weights = torch.ones_like(weights)
            case "couples images":
                weights = weights.mean(0, keepdim=True).expand_as(weights)
            case "ordered":
                found = super().estimate(features, weights)
                return found._replace(mean=found.mean.sort(dim=1).values)
            case "plain tuple":
                return tuple(super().estimate(features, weights))
            case "modifies":
                features.mul_(0.5)
        return super().estimate(features, weights)

    def costs(self, features, statistics):
        match self.fault:
            case "other costs":
                return (features.unsqueeze(1) - statistics.mean.to(features).unsqueeze(3)).abs().sum(2)
            case "infinite":
                return super().costs(features, statistics).log()
            case "half":
                return super().costs(features.bfloat16(), statistics)
        return super().costs(features, statistics)


@pytest.mark.parametrize(
    ("fault", "check", "arguments"),
    [
        ("unweighted", "test_pixels_without_weight_do_not_count", BOX),
        ("couples images", "test_batch_is_one_by_one", BOX),
        ("ordered", "test_classes_may_be_renamed", BOX),
        ("plain tuple", "test_statistics_are_tensors_by_image_and_class", {"ndim": 2, "channels": 3}),
        ("modifies", "test_arguments_are_not_modified", BOX),
        ("other costs", "test_no_other_statistics_are_better", BOX),
        ("infinite", "test_an_image_of_one_colour_is_finite", BOX),
        ("half", "test_images_of_any_precision", {"dtype": torch.float32}),
    ],
)
def test_faulty_region_forces_are_found(fault, check, arguments):
    getattr(suite_for(testing.RegionForceConformance, FaultyForce())(), check)(**arguments)
    expect_failure(suite_for(testing.RegionForceConformance, FaultyForce(fault=fault)), check, arguments)


# --------------------------------------------------------------------------------------------------------------------
# Networks


class FaultyNetwork(nn.Module):
    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        self.layer = nn.Conv2d(3, 4, 3, stride=2 if fault == "half size" else 1, padding=1)
        if fault == "spare parameter":
            self.spare = nn.Parameter(torch.ones(3))
        if fault == "keeps a table":
            self.table = torch.randn(4)

    def forward(self, image):
        match self.fault:
            case "even sizes only":
                image = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
            case "batch statistics":
                image = image - image.mean((0, 2, 3), keepdim=True)
            case "random":
                image = image + 0.1 * torch.rand_like(image)
            case "modifies":
                image.sub_(0.5)
        logits = self.layer(image)
        if self.fault == "keeps a table":
            logits = logits + self.table[:, None, None]
        return logits


SIZE = {"size": (33, 47)}


@pytest.mark.parametrize(
    ("fault", "check", "arguments"),
    [
        ("half size", "test_logits_have_the_size_of_the_image", SIZE),
        ("even sizes only", "test_logits_have_the_size_of_the_image", SIZE),
        ("spare parameter", "test_gradient_reaches_every_parameter", {}),
        ("batch statistics", "test_evaluation_treats_images_one_by_one", SIZE),
        ("random", "test_evaluation_treats_images_one_by_one", SIZE),
        ("keeps a table", "test_state_can_be_loaded", {}),
        ("modifies", "test_images_are_not_modified", {}),
    ],
)
def test_faulty_networks_are_found(fault, check, arguments):
    sound = type("Suite", (testing.NetworkConformance,), {"make": lambda self: FaultyNetwork()})
    faulty = type("Suite", (testing.NetworkConformance,), {"make": lambda self: FaultyNetwork(fault)})
    getattr(sound(), check)(**arguments)
    expect_failure(faulty, check, arguments)


def test_a_network_made_from_the_clock_is_found():
    class Unseeded(testing.NetworkConformance):
        generator = torch.Generator().manual_seed(0)

        def make(self):
            layer = nn.Conv2d(3, 4, 1)
            nn.init.normal_(layer.weight, generator=self.generator)
            return layer

    expect_failure(Unseeded, "test_construction_is_reproducible", {})


# --------------------------------------------------------------------------------------------------------------------
# Data sets


class FaultyDataset(Dataset):
    classes = ("background", "thing")
    colors = ((0, 0, 0), (255, 0, 0))
    channels = 3

    def __init__(self, fault=""):
        self.fault = fault
        self.kept = {}
        if fault == "one colour":
            self.colors = ((0, 0, 0), (0, 0, 0))
        if fault == "holds a lambda":
            self.reader = lambda path: path

    def ids(self, subset):
        if subset not in ("train", "test"):
            if self.fault == "any subset":
                return ("a",)
            raise UsageError(f"no subset {subset!r}")
        if self.fault == "same id twice":
            return ("a", "a")
        if self.fault == "path as id":
            return ("folder/a", "folder/b")
        if self.fault == "shared":
            return ("a", "b")
        return ("a", "b") if subset == "train" else ("c",)

    def load(self, sample_id):
        if sample_id not in ("a", "b", "c"):
            raise UsageError(f"no sample {sample_id!r}")
        if sample_id in self.kept:
            return self.kept[sample_id]
        image = np.full((3, 4, 5), 0.5, dtype=np.float32)
        label = np.zeros((4, 5), dtype=np.uint8)
        label[0, 0] = 255
        match self.fault:
            case "bytes":
                image = image * 255
            case "double precision":
                image = image.astype(np.float64)
            case "grey":
                image = image[:1]
            case "NaN":
                image[0, 0, 0] = np.nan
            case "other size":
                label = label[:, 1:]
            case "third class":
                label[1, 1] = 2
            case "signed labels":
                label = label.astype(np.int64)
        scribble = None if self.fault == "no scribble" and sample_id == "b" else label
        name = "other" if self.fault == "other id" else sample_id
        sample = Sample(name, image, label.copy(), scribble, group=name)
        if self.fault == "shares arrays":
            self.kept[sample_id] = sample
        return sample

    def check(self, subset, need=("scribble",)):
        if self.fault != "no scribble":
            super().check(subset, need)
        if self.fault == "overcautious":
            raise UsageError(f"{need[0]} looks odd")


TRAIN = {"subset": "train"}


@pytest.mark.parametrize(
    ("fault", "check", "arguments", "error"),
    [
        ("one colour", "test_classes_and_colors", {}, AssertionError),
        ("same id twice", "test_ids_are_unique_and_stable", TRAIN, AssertionError),
        ("path as id", "test_ids_are_unique_and_stable", TRAIN, AssertionError),
        ("shared", "test_subsets_are_disjoint", {}, AssertionError),
        *(
            (fault, "test_samples_keep_their_contract", TRAIN, AssertionError)
            for fault in (
                "bytes",
                "double precision",
                "grey",
                "NaN",
                "other size",
                "third class",
                "signed labels",
                "other id",
            )
        ),
        ("shares arrays", "test_loading_twice_gives_the_same", TRAIN, AssertionError),
        ("no scribble", "test_check_finds_what_is_missing", TRAIN, AssertionError),
        ("overcautious", "test_check_finds_what_is_missing", TRAIN, AssertionError),
        ("any subset", "test_unknown_names_are_refused", {}, pytest.fail.Exception),
        ("holds a lambda", "test_survives_pickling", {}, Exception),
    ],
)
def test_faulty_data_sets_are_found(fault, check, arguments, error):
    facts = {"subsets": ("train", "test")}
    sound = type("Suite", (testing.DatasetConformance,), {"make": lambda self: FaultyDataset(), **facts})
    faulty = type("Suite", (testing.DatasetConformance,), {"make": lambda self: FaultyDataset(fault), **facts})
    getattr(sound(), check)(**arguments)
    expect_failure(faulty, check, arguments, error)


# --------------------------------------------------------------------------------------------------------------------
# Collection


def test_suites_are_collected_by_their_subclasses_alone(pytester):
    """As a plugin author's test module sees it: the suites' names are imported, only the subclass runs."""
    pytester.makepyfile(
        """
        from regloss import TotalVariation
        from regloss.testing import *

        class TestMine(RegularizerConformance):
            spatial = (3,)

            def make(self):
                return TotalVariation()
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--collect-only", "-q")
    collected = [line for line in result.outlines if "::" in line]
    assert collected
    assert all("::TestMine::" in line for line in collected)
    assert any(line.endswith("test_forms_keep_their_contracts[ndim=3-check=check_saddle_norm]") for line in collected)
    assert not any("ndim=2" in line for line in collected)


def test_a_suite_without_make_says_so(pytester):
    pytester.makepyfile("from regloss.testing import NetworkConformance\nclass TestMine(NetworkConformance): pass")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--tb=line")
    result.stdout.fnmatch_lines(["*TestMine must define make(self)*"])
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] > 5
    assert "passed" not in outcomes


# --------------------------------------------------------------------------------------------------------------------
# Layers


class FaultyLayer(RegularizedLayer):
    """Softmax of logits that a pixel's neighbours along the last axis have a share in, with a fault."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        self.share = nn.Parameter(torch.tensor(0.3))
        self.calls = 0

    def log_probabilities(self, logits, image, roi=None, warm=None, spacing=None):
        if self.fault != "takes anything":
            check_image(image)
            check_scores(logits, "logits")
            check_finite(logits, "logits")
            if logits.shape[2:] != image.shape[2:]:
                raise UsageError("logits do not fit the image.")
        self.calls += 1
        scores = at_least_float32(logits)
        if self.fault == "modifies":
            logits.mul_(0.5)
        if self.fault == "couples images":
            scores = scores + scores.mean(0, keepdim=True)
        if self.fault == "random":
            scores = scores + 1e-3 * torch.randn_like(scores)
        if self.fault == "remembers":
            scores = scores * self.calls
        if self.fault == "ignores logits":
            scores = torch.zeros_like(scores)
        inside = torch.ones_like(scores[:, :1]) if roi is None or self.fault == "sees outside" else roi.unsqueeze(1)
        votes = torch.zeros_like(scores)
        votes[..., 1:] += (scores * inside)[..., :-1]
        share = self.share.detach() if self.fault == "loses gradient" else self.share
        if self.fault == "half gradient":
            share = (share + share.detach()) / 2
        found = (scores + share * votes).log_softmax(1)
        if self.fault == "no distribution":
            found = found - 0.1
        return found if self.fault == "of another type" else found.to(logits.dtype)

    def learnable_parameters(self):
        return {} if self.fault == "hides parameters" else super().learnable_parameters()


@pytest.mark.parametrize(
    ("fault", "check", "arguments", "error"),
    [
        ("no distribution", "test_it_gives_distributions", BOX, AssertionError),
        ("ignores logits", "test_it_depends_on_the_logits", BOX, AssertionError),
        ("half gradient", "test_gradient_in_what_is_learnt", BOX, AssertionError),
        ("loses gradient", "test_gradient_in_what_is_learnt", BOX, RuntimeError),
        ("sees outside", "test_region_of_interest_is_like_a_crop", BOX, AssertionError),
        ("couples images", "test_batch_is_one_by_one", BOX, AssertionError),
        ("random", "test_the_same_twice", BOX, AssertionError),
        ("remembers", "test_the_same_twice", BOX, AssertionError),
        ("modifies", "test_arguments_are_not_modified", BOX, AssertionError),
        ("of another type", "test_logits_of_any_precision", {"dtype": torch.bfloat16}, AssertionError),
        ("hides parameters", "test_what_is_learnt_is_named_and_told", {}, AssertionError),
        ("takes anything", "test_bad_input_is_refused", {}, pytest.fail.Exception),
    ],
)
def test_faulty_layers_are_found(fault, check, arguments, error):
    sound = type("Suite", (testing.LayerConformance,), {"make": lambda self: FaultyLayer()})
    faulty = type("Suite", (testing.LayerConformance,), {"make": lambda self: FaultyLayer(fault)})
    getattr(sound(), check)(**arguments)
    expect_failure(faulty, check, arguments, error)


# --------------------------------------------------------------------------------------------------------------------
# Segmenters


@dataclass(frozen=True)
class FaultySegmenter(GraphCut):
    """Graph cuts with a fault."""

    fault: str = ""

    def segment(self, task):
        given = replace(task, scribbles=None) if self.fault == "ignores scribbles" else task
        if self.fault == "modifies":
            task.image.mul_(0.5)
        if self.fault == "random":
            given = replace(given, seed=int(torch.randint(1000, ())))
        found = super().segment(given)
        match self.fault:
            case "overrules seeds":
                return replace(found, labels=found.labels.roll(3, -1))
            case "out of range":
                return replace(found, labels=found.labels + 1)
            case "infinite":
                return replace(found, energy=float("inf"))
            case "false bound":
                return replace(found, bound=found.energy + 1)
            case "undecided":
                return replace(found, labels=torch.zeros_like(found.labels))
            case "uses all classes" if task.scribbles is not None:
                return replace(found, labels=found.labels.masked_fill(found.labels == 4, 3))
            case "announces pictures":
                return found
            case "records":
                return replace(found, history=(*found.history, "the end"))
        return found


@pytest.mark.parametrize(
    ("fault", "check", "arguments"),
    [
        ("out of range", "test_phases_are_found", {"phases": 2, "channels": 3}),
        ("undecided", "test_phases_are_found", {"phases": 2, "channels": 3}),
        ("infinite", "test_phases_are_found", {"phases": 2, "channels": 3}),
        ("false bound", "test_phases_are_found", {"phases": 2, "channels": 3}),
        ("overrules seeds", "test_seeds_are_kept", {"channels": 3}),
        ("ignores scribbles", "test_seeds_are_kept", {"channels": 3}),
        ("uses all classes", "test_classes_without_seeds_are_not_used", {}),
        ("undecided", "test_a_start_is_taken", {}),
        ("random", "test_the_same_seed_gives_the_same", {}),
        ("records", "test_what_it_tells", {}),
        ("modifies", "test_arguments_are_not_modified", {}),
    ],
)
def test_faulty_segmenters_are_found(fault, check, arguments):
    getattr(suite_for(testing.SegmenterConformance, FaultySegmenter())(), check)(**arguments)
    expect_failure(suite_for(testing.SegmenterConformance, FaultySegmenter(fault=fault)), check, arguments)


def test_a_false_statement_about_a_segmenter_is_found():
    """One that announces a picture must draw it; one that takes scribbles must not refuse them."""

    class Announces(GraphCut):
        figures = ("convergence",)

    class TakesAll(DeepChanVeseSegmenter):
        takes_scribbles = True

    expect_failure(suite_for(testing.SegmenterConformance, Announces()), "test_what_it_tells", {})
    quick = TakesAll(max_steps=2, warm_up=1)
    expect_failure(suite_for(testing.SegmenterConformance, quick), "test_seeds_are_kept", {"channels": 3})
