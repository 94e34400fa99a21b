"""One run of the GCO library, as a program of its own: it patches numpy when imported, aborts on errors, and can hang.

    python -I gco_worker.py FOLDER PROBLEM.npz RESULT.npz

FOLDER is where the package ``gco`` lies. PROBLEM holds ``unary`` (n, k), ``edges`` (m, 2) with edges[:, 0] <
edges[:, 1], ``weights`` (m,) and ``start`` (n,), all int32 and n, m >= 1, k >= 2, and ``max_cycles``. RESULT holds
``labels`` (n,), ``cycles`` and ``converged``: whether the last cycle changed nothing.
"""

import sys

import numpy as np


def main(folder: str, problem: str, result: str) -> None:
    """Read PROBLEM, expand, write RESULT."""
    sys.path.append(folder)
    import gco

    with np.load(problem) as arrays:
        unary, edges, weights, start = (arrays[name] for name in ("unary", "edges", "weights", "start"))
        max_cycles = int(arrays["max_cycles"])
    sites, classes = unary.shape
    graph = gco.GCO()
    graph.create_general_graph(sites, classes, energy_is_float=False)
    graph.set_data_cost(np.ascontiguousarray(unary))  # it hands on the pointer, whatever the order of the axes
    graph.set_all_neighbors(edges[:, 0], edges[:, 1], weights)
    graph.set_smooth_cost(1 - np.eye(classes, dtype=np.int32))
    for site, label in enumerate(start.tolist()):
        graph.init_label_at_site(site, label)
    energy = graph.compute_energy()
    cycles, converged = 0, False
    while cycles < max_cycles and not converged:
        cycles += 1
        before, energy = energy, graph.expansion(1)
        converged = energy == before
    np.savez(result, labels=graph.get_labels(), cycles=cycles, converged=converged)


if __name__ == "__main__":
    main(*sys.argv[1:])
