"""Alpha-expansion against enumeration, stored optima, and PyMaxflow."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from regloss_plugins.kernels import expansion_grid, push_relabel
from regloss_plugins.kernels.expansion import Expansion, expand_graph, expand_grid

EIGHT = [[0, 1], [1, -1], [1, 0], [1, 1]]
TWENTY_SIX = [list(o) for o in itertools.product([-1, 0, 1], repeat=3) if o > (0, 0, 0)]
GRIDS = {
    "row": ((9,), [[1], [2]]),
    "3x3": ((3, 3), EIGHT),
    "3x4": ((3, 4), EIGHT),
    "2x2x2": ((2, 2, 2), TWENTY_SIX),
}


def problem(
    rng: np.random.Generator, shape: tuple[int, ...], offsets: Any, classes: int, masked: bool
) -> dict[str, Any]:
    """Random arguments of expand_grid; ``masked``: with fixed pixels, a region of interest and disallowed labels."""
    free = np.full(shape, -1)
    return {
        "unary": rng.normal(size=(classes, *shape)) * rng.choice([0.2, 1.0, 3.0]),
        "offsets": np.array(offsets),
        "weights": rng.random((len(offsets), *shape)) * (rng.random((len(offsets), *shape)) < 0.9),
        "labels": rng.integers(0, classes, shape),
        "fixed": np.where(rng.random(shape) < 0.2, rng.integers(0, classes, shape), -1) if masked else free,
        "roi": rng.random(shape) < 0.85 if masked else np.ones(shape, bool),
        "allowed": np.ones(classes, bool),
        "max_cycles": 20,
    }


def edge_list(offsets: Any, weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges (E, 2) between flat indices and their weights, by plain loops."""
    shape = weights.shape[1:]
    pairs, values = [], []
    for n, offset in enumerate(offsets):
        for index in np.ndindex(shape):
            partner = tuple(np.add(index, offset))
            if all(0 <= i < size for i, size in zip(partner, shape, strict=True)):
                pairs.append((np.ravel_multi_index(index, shape), np.ravel_multi_index(partner, shape)))
                values.append(weights[(n, *index)])
    return np.array(pairs).reshape(-1, 2), np.array(values)


def energies(labelings: NDArray[np.int64], p: dict[str, Any]) -> NDArray[np.float64]:
    """Energy of each row of (M, N) flat labellings, from the definition."""
    pairs, weights = edge_list(p["offsets"], p["weights"])
    roi = p["roi"].ravel()
    unary = p["unary"].reshape(len(p["unary"]), -1)
    inside = np.flatnonzero(roi)
    total = unary[labelings[:, inside], inside].sum(1)
    for (a, b), weight in zip(pairs, weights, strict=True):
        if roi[a] and roi[b]:
            total = total + weight * (labelings[:, a] != labelings[:, b])
    return total


def minimum(p: dict[str, Any]) -> float:
    """The least energy by enumeration of all labellings that the masks admit."""
    choices = []
    for label, fixed, inside in zip(p["labels"].ravel(), p["fixed"].ravel(), p["roi"].ravel(), strict=True):
        choices.append([label] if not inside else [fixed] if fixed >= 0 else np.flatnonzero(p["allowed"]))
    return float(energies(np.array(list(itertools.product(*choices))), p).min())


def check_invariants(result: Expansion, p: dict[str, Any]) -> None:
    labels = result.labels
    assert labels.dtype == np.int64
    assert labels.shape == p["labels"].shape
    np.testing.assert_array_equal(labels[~p["roi"]], p["labels"][~p["roi"]])
    held = p["roi"] & (p["fixed"] >= 0)
    np.testing.assert_array_equal(labels[held], p["fixed"][held])
    assert p["allowed"][labels[p["roi"] & (p["fixed"] < 0)]].all()
    assert result.energy == pytest.approx(energies(labels.reshape(1, -1), p)[0], rel=1e-12, abs=1e-12)
    assert result.bound <= result.energy <= result.start_energy


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_two_labels_are_exact(grid: str, masked: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(15):
        p = problem(rng, *GRIDS[grid], 2, masked)
        result = expand_grid(**p)
        check_invariants(result, p)
        assert result.energy == pytest.approx(minimum(p), abs=1e-12)
        assert result.converged
        assert result.bound == result.energy
        other = expand_grid(**{**p, "labels": np.where(p["roi"], 1 - p["labels"], p["labels"])})
        np.testing.assert_array_equal(other.labels, result.labels)


def test_two_allowed_labels_of_three_are_exact() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = problem(rng, *GRIDS["3x3"], 3, masked=True)
        p["allowed"] = rng.permutation([True, True, False])
        result = expand_grid(**p)
        check_invariants(result, p)
        assert result.energy == pytest.approx(minimum(p), abs=1e-12)
        assert result.bound == result.energy


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", ["row", "3x3", "2x2x2"])
def test_three_labels_stay_within_the_bound(grid: str, masked: bool) -> None:
    rng = np.random.default_rng(2)
    exact = 0
    for _ in range(10):
        p = problem(rng, *GRIDS[grid], 3, masked)
        p["unary"] = p["unary"] - p["unary"].min()  # the factor is of energies with unaries >= 0
        result = expand_grid(**p)
        check_invariants(result, p)
        best = minimum(p)
        assert best - 1e-12 <= result.energy <= 2 * best
        exact += result.energy <= best + 1e-12
        assert result.converged
        assert expand_grid(**{**p, "labels": result.labels}).energy == result.energy
    assert exact >= 8  # in practice it is nearly always the minimum


def test_converged_means_that_no_expansion_helps() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        p = problem(rng, (3, 3), EIGHT, 4, masked=False)
        result = expand_grid(**p)
        assert result.converged
        takes = np.array(list(itertools.product([False, True], repeat=9)))
        for alpha in range(4):
            moved = np.where(takes, alpha, result.labels.reshape(1, -1))
            assert energies(moved, p).min() >= result.energy - 1e-12


def test_stored_optima(oracles: Path) -> None:
    data = np.load(oracles / "potts.npz")
    pairs = data["pairs"]
    ones, free = np.ones(12, bool), np.full(12, -1)
    for unary, weights, best, labels in zip(data["unary"], data["w"], data["E_min"], data["labels"], strict=True):
        start = np.argmin(unary, axis=1)
        result = expand_graph(unary.T, pairs, weights, start, free, ones, np.ones(3, bool), max_cycles=20)
        assert result.energy == pytest.approx(best, abs=1e-9)
        np.testing.assert_array_equal(result.labels, labels.ravel())

    seeds, scores = data["adm_seeds"], data["adm_S"]
    unary = np.where(seeds < 0, -data["adm_gamma"] * np.log(scores).T, 0.0)
    result = expand_graph(
        unary, pairs, data["adm_lambda"] * data["w"][0], scores.argmax(1), seeds, ones, np.ones(3, bool), max_cycles=20
    )
    assert result.energy == pytest.approx(float(data["adm_E"]), abs=1e-9)
    np.testing.assert_array_equal(result.labels, data["adm_X"].ravel())


def image_problem(shape: tuple[int, int], classes: int, strength: float) -> dict[str, Any]:
    """Regions of different brightness with noise, contrast weights, noisy unaries, and a few fixed pixels."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = ((x // 13 + y // 11) % classes).astype(np.int64)
    image = truth / classes + 0.1 * rng.normal(size=shape)
    weights = np.empty((4, *shape))
    for n, (dy, dx) in enumerate(EIGHT):
        difference = image - np.roll(image, (-dy, -dx), (0, 1))
        weights[n] = np.exp(-(difference**2) / (2 * 0.1**2)) / np.hypot(dy, dx)
    noise = rng.normal(size=(classes, *shape))
    unary = strength * (noise + (np.arange(classes)[:, None, None] != truth))
    fixed = np.where(rng.random(shape) < 0.01, truth, -1)
    return {
        "unary": unary,
        "offsets": np.array(EIGHT),
        "weights": weights,
        "labels": unary.argmin(0),
        "fixed": fixed,
        "roi": np.ones(shape, bool),
        "allowed": np.ones(classes, bool),
        "max_cycles": 10,
    }


@pytest.mark.parametrize("strength", [0.05, 1.0])
def test_two_labels_on_an_image_agree_with_pymaxflow(strength: float) -> None:
    maxflow = pytest.importorskip("maxflow")
    p = image_problem((40, 50), 2, strength)
    result = expand_grid(**p)
    graph = maxflow.Graph[float]()
    nodes = graph.add_nodes(2000)
    pairs, weights = edge_list(p["offsets"], p["weights"])
    for (a, b), weight in zip(pairs, weights, strict=True):
        graph.add_edge(nodes[a], nodes[b], weight, weight)
    unary = p["unary"].reshape(2, -1)
    for node, fixed, costs in zip(nodes, p["fixed"].ravel(), unary.T, strict=True):
        held = np.where((fixed >= 0) & (np.arange(2) != fixed), 1e6, 0.0)
        graph.add_tedge(node, *(costs + held - costs.min()))
    reference = graph.maxflow() + unary.min(0).sum()
    assert result.energy == pytest.approx(reference, rel=1e-9)
    check_invariants(result, p)


@pytest.mark.parametrize("grid", ["row", "3x4", "2x2x2"])
def test_graph_equals_grid(grid: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(5):
        p = problem(rng, *GRIDS[grid], 3, masked=True)
        on_grid = expand_grid(**p)
        pairs, weights = edge_list(p["offsets"], p["weights"])
        flat = {name: p[name].ravel() for name in ("labels", "fixed", "roi")}
        on_graph = expand_graph(p["unary"].reshape(3, -1), pairs, weights, **flat, allowed=p["allowed"], max_cycles=20)
        np.testing.assert_array_equal(on_graph.labels, on_grid.labels.ravel())
        assert on_graph.energy == pytest.approx(on_grid.energy, abs=1e-12)
        assert on_graph.cycles == on_grid.cycles


def test_a_fixed_label_need_not_be_allowed() -> None:
    result = expand_grid(
        np.zeros((3, 4)), [[1]], np.ones((1, 4)), [0, 0, 0, 0], [2, -1, -1, -1], np.ones(4, bool), [1, 1, 0], 5
    )
    assert result.labels[0] == 2
    assert (result.labels[1:] < 2).all()
    assert result.energy == 1.0


def test_one_allowed_label() -> None:
    p = problem(np.random.default_rng(6), (3, 3), EIGHT, 3, masked=True)
    p["allowed"] = np.array([False, False, True])
    result = expand_grid(**p)
    check_invariants(result, p)
    assert result.converged
    assert result.cycles == 0
    assert result.bound == result.energy == result.start_energy


def test_start_labels_that_are_not_allowed_become_the_cheapest_allowed() -> None:
    p = problem(np.random.default_rng(7), (3, 4), EIGHT, 4, masked=False)
    p |= {"allowed": np.array([True, False, True, True]), "labels": np.full((3, 4), 1), "max_cycles": 0}
    result = expand_grid(**p)
    np.testing.assert_array_equal(result.labels, np.array([0, 2, 3])[p["unary"][[0, 2, 3]].argmin(0)])
    assert not result.converged
    assert result.bound == -np.inf
    assert result.energy == result.start_energy


def test_cycles_are_limited_and_never_raise_the_energy() -> None:
    p = image_problem((40, 50), 6, 0.3)
    energy = np.inf
    for max_cycles in range(6):
        result = expand_grid(**{**p, "max_cycles": max_cycles})
        check_invariants(result, p)
        assert result.cycles <= max_cycles
        assert result.energy <= energy
        energy = result.energy
    assert result.converged


def test_a_large_offset_in_the_unaries_does_not_raise_the_energy() -> None:
    p = image_problem((40, 50), 5, 0.1)
    p["unary"] = p["unary"] + 1e9
    result = expand_grid(**p)
    again = expand_grid(**{**p, "labels": result.labels})
    assert result.energy <= result.start_energy
    assert again.energy <= result.energy


def test_threads_give_the_same_as_one_after_the_other() -> None:
    problems = [image_problem((40, 50), classes, 0.2) for classes in (2, 3, 4, 5)]
    serial = [expand_grid(**p) for p in problems]
    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda p: expand_grid(**p), problems))
    for one, other in zip(serial, threaded, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.energy == other.energy


def test_layout_dtype_and_writability_do_not_matter_and_nothing_is_modified() -> None:
    p = problem(np.random.default_rng(8), (3, 4), EIGHT, 3, masked=True)
    p["unary"] = p["unary"].astype(np.float32).astype(np.float64)
    expected = expand_grid(**p)
    arrays = {name: np.asfortranarray(value) for name, value in p.items() if name != "max_cycles"}
    arrays["unary"] = np.asfortranarray(p["unary"].astype(np.float32))
    arrays["labels"] = np.asfortranarray(p["labels"].astype(np.uint8))
    for array in arrays.values():
        array.flags.writeable = False  # writing would raise
    result = expand_grid(**arrays, max_cycles=20)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.energy == expected.energy

    copies = {name: np.copy(value) for name, value in p.items()}
    expand_grid(**p)
    for name, copy in copies.items():
        np.testing.assert_array_equal(p[name], copy)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_weights_are_refused_only_where_they_count(bad: float) -> None:
    p = problem(np.random.default_rng(9), (3, 3), EIGHT, 3, masked=False)
    p["weights"][0, :, -1] = bad  # there is no partner
    expand_grid(**p)
    p["weights"][2, 1, 1] = bad
    with pytest.raises(ValueError, match="finite weights >= 0"):
        expand_grid(**p)
    flat = {"labels": [0, 0], "fixed": [-1, -1], "roi": [True, True], "allowed": [True, True], "max_cycles": 1}
    with pytest.raises(ValueError, match="finite weights >= 0"):
        expand_graph(np.zeros((2, 2)), [[0, 1]], [bad], **flat)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("unary", np.full((3, 3, 3), np.nan), "finite unaries"),
        ("fixed", np.full((3, 3), 3), "fixed labels 0 .. 2"),
        ("allowed", np.zeros(3, bool), "at least one allowed label"),
        ("roi", np.ones((3, 4), bool), r"roi of shape \(3, 3\), got \(3, 4\)"),
        ("offsets", np.ones((4, 3), int), r"offsets \(n, 2\)"),
    ],
)
def test_bad_arguments_are_refused(name: str, value: Any, message: str) -> None:
    p = problem(np.random.default_rng(10), (3, 3), EIGHT, 3, masked=False)
    with pytest.raises(ValueError, match=message):
        expand_grid(**{**p, name: value})


def test_edges_out_of_range_are_refused() -> None:
    flat = {"labels": [0, 0], "fixed": [-1, -1], "roi": [True, True], "allowed": [True, True], "max_cycles": 1}
    with pytest.raises(ValueError, match=r"nodes 0 \.\. 1"):
        expand_graph(np.zeros((2, 2)), [[0, 2]], [1.0], **flat)


def test_no_edges_and_no_free_pixels() -> None:
    flat = {"fixed": [-1, -1], "roi": [True, True], "allowed": [True] * 3, "max_cycles": 5}
    unary = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    result = expand_graph(unary, np.zeros((0, 2)), [], [0, 1], **flat)
    assert result.labels.tolist() == [1, 0]
    held = expand_graph(unary, [[0, 1]], [2.0], [0, 1], **{**flat, "fixed": [2, 0]})
    assert held.labels.tolist() == [2, 0]
    assert held.energy == held.bound == 2.5


def test_importing_compiles_nothing_and_the_cache_folder_is_respected(tmp_path: Path) -> None:
    code = (
        "from regloss_plugins.kernels import expansion_graph, expansion_grid, maxflow\n"
        "moves = expansion_grid._move, expansion_grid._cut, expansion_graph._move, expansion_graph._connect\n"
        "for function in (*moves, maxflow._solve):\n"
        "    assert not function.signatures, function\n"
        "print(expansion_graph._move.stats.cache_path)\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).is_relative_to(tmp_path)


def test_weights_of_very_different_size() -> None:
    """Sums of neighbours are made anew where labels change: 1e12 that came and went leaves nothing of 1e-30 behind."""
    weights = np.array([[1e12, 1e-30, 1e12, 1e-30, 0.0]])
    unary = np.array([[0.0, 5.0, 0.0, 2e-30, 0.0], [9.0, 0.0, 2e-30, 0.0, 3e-30], [9.0, 9.0, 9.0, 9.0, 0.0]])
    for classes in (2, 3):
        p = {
            "unary": unary[:classes],
            "offsets": np.array([[1]]),
            "weights": weights,
            "labels": np.zeros(5, np.int64),
            "fixed": np.full(5, -1),
            "roi": np.ones(5, bool),
            "allowed": np.ones(classes, bool),
            "max_cycles": 20,
        }
        result = expand_grid(**p)
        assert result.labels[0] == result.labels[1] == 0
        assert result.energy == pytest.approx(minimum(p), rel=1e-12)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 7), (7, 1), (1, 1, 4)])
def test_degenerate_grids(shape: tuple[int, ...]) -> None:
    offsets = {1: [[1]], 2: EIGHT, 3: TWENTY_SIX}[len(shape)]
    rng = np.random.default_rng(11)
    for classes in (1, 2, 3):
        p = problem(rng, shape, offsets, classes, masked=False)
        result = expand_grid(**p)
        check_invariants(result, p)
        assert result.energy == pytest.approx(minimum(p), abs=1e-12)
        nothing = expand_grid(**{**p, "roi": np.zeros(shape, bool)})
        assert nothing.energy == 0.0
        np.testing.assert_array_equal(nothing.labels, p["labels"])


def test_many_offsets_are_solved_as_a_graph() -> None:
    """More than 16 offsets are more arcs than a mask has bits."""
    offsets = [[0, d] for d in range(1, 4)] + [[dy, dx] for dy in (1, 2) for dx in range(-3, 4)]
    assert len(offsets) == 17
    p = problem(np.random.default_rng(12), (3, 4), offsets, 2, masked=True)
    result = expand_grid(**p)
    check_invariants(result, p)
    assert result.energy == pytest.approx(minimum(p), abs=1e-12)


def test_single_precision_is_not_rounded_further() -> None:
    p = image_problem((30, 40), 5, 0.3)
    p |= {"unary": p["unary"].astype(np.float32), "weights": p["weights"].astype(np.float32)}
    single = expand_grid(**p)
    double = expand_grid(**{**p, "unary": p["unary"].astype(np.float64), "weights": p["weights"].astype(np.float64)})
    np.testing.assert_array_equal(single.labels, double.labels)
    assert single.energy == double.energy


@pytest.mark.parametrize("strength", [0.05, 0.3, 3.0])
def test_moves_on_a_grid_are_those_on_its_graph(strength: float) -> None:
    """Two codes: sums kept up to date and local searches here, everything anew and search trees there."""
    p = image_problem((40, 50), 5, strength)
    on_grid = expand_grid(**p)
    pairs, weights = edge_list(p["offsets"], p["weights"])
    flat = {name: p[name].ravel() for name in ("labels", "fixed", "roi", "allowed")}
    on_graph = expand_graph(p["unary"].reshape(5, -1), pairs, weights, **flat, max_cycles=p["max_cycles"])
    np.testing.assert_array_equal(on_grid.labels.ravel(), on_graph.labels)
    assert on_grid.energy == pytest.approx(on_graph.energy, rel=1e-12)


@pytest.mark.parametrize("strength", [0.1, 0.5, 2.0])
def test_a_start_near_the_end_gives_the_moves_of_a_general_graph(strength: float) -> None:
    """After few pixels changed, a move looks about them only; it must find what a look at all pixels finds."""
    rng = np.random.default_rng(13)
    p = image_problem((70, 80), 5, strength)
    pairs, weights = edge_list(p["offsets"], p["weights"])
    p["labels"] = expand_grid(**p).labels
    cycles = 0
    for _ in range(4):
        p["unary"] = p["unary"] + 3 * strength * rng.normal(size=p["unary"].shape) * (rng.random((70, 80)) < 0.05)
        flat = {name: p[name].ravel() for name in ("labels", "fixed", "roi", "allowed")}
        on_graph = expand_graph(p["unary"].reshape(5, -1), pairs, weights, **flat, max_cycles=p["max_cycles"])
        on_grid = expand_grid(**p)
        np.testing.assert_array_equal(on_grid.labels.ravel(), on_graph.labels)
        assert on_grid.cycles == on_graph.cycles
        assert on_grid.converged
        cycles += on_grid.cycles
    assert cycles > 4


def moves(p: dict[str, Any]) -> Any:
    """Labels, cells and memory of a grid problem as the moves use them, before the first one."""
    shape = (1, *p["roi"].shape)
    steps = np.concatenate([np.zeros((len(p["offsets"]), 1), np.int64), p["offsets"]], axis=1)
    free = (p["fixed"] < 0).reshape(shape)
    cells, _ = expansion_grid.grid_cells(steps, p["weights"].reshape(-1, *shape), p["roi"].reshape(shape), free)
    labels = np.where(cells.free, p["labels"].ravel(), p["fixed"].ravel()).astype(np.int32)
    memory = np.empty(cells.weight.shape)
    network = push_relabel.new_network(cells.step, cells.bit, cells.weight, labels, cells.arcs, memory)
    return cells, network, push_relabel.new_scratch(len(labels))


# Helpers of compiled code, for tests to call.
@njit
def take(alpha, unary, cells, keeping, border, network, scratch, size, history):  # type: ignore[no-untyped-def]
    expansion_grid._take(alpha, unary, cells, keeping, border, network, scratch, size, history)


@njit
def cut_window(alpha, unary, cells, keeping, border, network, scratch, history):  # type: ignore[no-untyped-def]
    """Number of pixels that take ``alpha``, found near the pixels touched; -1 if a look at all is needed."""
    size, count = expansion_grid._begin_window(alpha, 0, unary, cells, keeping, border, network, scratch, history)
    if size < 0:
        return size
    found = push_relabel.push_all(network, scratch, count, 4 * len(keeping))
    return expansion_grid._end_window(alpha, cells, network, scratch, history, size, found)


def test_moves_near_what_changed_are_taken_and_are_those_of_all_pixels() -> None:
    """The local search answers most questions here, and never otherwise than the search of everything."""
    rng = np.random.default_rng(14)
    answered = moved = 0
    for trial in range(10):
        p = image_problem((60, 70), 4, [1.0, 2.0][trial % 2])
        p["labels"] = expand_grid(**p).labels
        cells, network, scratch = moves(p)
        unary, size = p["unary"].reshape(4, -1), network.labels.size
        keeping, border = np.empty(size), np.zeros(size)
        expansion_grid._energy(unary, tuple(cells), network.labels, p["roi"].ravel(), keeping, border, True)
        history = expansion_grid.new_history(size, 4)
        # Another label is given to a small square, as a move would have done.
        square = (rng.integers(5, 50) + np.arange(3))[:, None] * 70 + rng.integers(5, 60) + np.arange(3)
        square = square.ravel()[cells.free[square.ravel()]]
        other = int(network.labels[square[0]] + 1) % 4
        scratch.seen[:], scratch.seen[square] = 0, push_relabel.REACHED
        scratch.region[: len(square)] = square
        take(other, unary, cells, keeping, border, network, scratch, len(square), history)
        for alpha in range(4):
            if alpha == other:
                continue
            local = cut_window(alpha, unary, cells, keeping, border, network, scratch, history)
            found = sorted(scratch.region[: max(local, 0)].tolist())
            assert not history.member.any()
            everything = expansion_grid._cut(
                alpha, unary, tuple(cells), keeping, border, tuple(network), tuple(scratch)
            )
            if local >= 0:
                answered += 1
                moved += local > 0
                assert found == sorted(scratch.region[:everything].tolist())
    assert answered >= 15
    assert moved >= 3
