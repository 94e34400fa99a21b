"""Grid operators: neighbourhoods against enumeration, adjointness, the norm of the gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regloss import UsageError, grid


@pytest.mark.parametrize(("ndim", "connectivity"), [(1, 2), (2, 4), (2, 8), (3, 6), (3, 18), (3, 26)])
def test_half_a_neighbourhood(ndim, connectivity):
    offsets = grid.neighbor_offsets(ndim, connectivity)
    both = {*offsets, *(tuple(-step for step in offset) for offset in offsets)}
    assert len(offsets) == connectivity // 2
    assert len(both) == connectivity
    assert (0,) * ndim not in both
    furthest = {2: 1, 4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[connectivity]
    expected = {o for o in itertools.product((-1, 0, 1), repeat=ndim) if 0 < sum(map(abs, o)) <= furthest}
    assert both == expected


@pytest.mark.parametrize(
    ("ndim", "connectivity", "way_out"), [(2, 6, "4 or 8"), (3, 8, "6 or 18 or 26"), (2, 5, "4 or 8")]
)
def test_other_connectivities_are_refused(ndim, connectivity, way_out):
    with pytest.raises(UsageError, match=rf"{ndim}D image has a connectivity of {way_out}; got {connectivity}"):
        grid.neighbor_offsets(ndim, connectivity)


@pytest.mark.parametrize("size", [(5,), (4, 3), (1, 6), (3, 2, 4), (2, 1, 1)])
def test_pairs_against_enumeration(size):
    """Slices pick p and p + d for exactly the pairs inside the grid; regions need both ends."""
    index = torch.arange(int(torch.tensor(size).prod())).reshape(size)
    roi = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) > 0.3
    reach = [range(-2, 3)] * len(size)
    for offset in itertools.product(*reach):
        if not any(offset):
            continue
        first, second = grid.pair_slices(offset)
        found = set(zip(index[first].flatten().tolist(), index[second].flatten().tolist(), strict=True))
        expected, inside = set(), torch.zeros_like(roi)
        for p in itertools.product(*map(range, size)):
            q = tuple(a + b for a, b in zip(p, offset, strict=True))
            if all(0 <= a < b for a, b in zip(q, size, strict=True)):
                expected.add((int(index[p]), int(index[q])))
                inside[(slice(None), *p)] = roi[(slice(None), *p)] & roi[(slice(None), *q)]
        assert found == expected
        assert torch.equal(grid.pairs_inside(roi, offset), inside)


def test_full_region():
    device = torch.device("cpu")
    given = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert grid.full_roi(given, (1, 2, 2), device) is given
    assert grid.full_roi(None, (1, 2, 2), device).all()


def test_forward_differences_by_hand():
    u = torch.tensor([[1.0, 2.0, 4.0], [0.0, 5.0, 5.0]])
    along_y, along_x = grid.forward_differences(u, 2)
    assert along_x.tolist() == [[1, 2, 0], [5, 0, 0]]
    assert along_y.tolist() == [[-1, 3, 1], [0, 0, 0]]


@given(
    size=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    seed=st.integers(0, 10**6),
    single=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_adjoint(size, batch, seed, single):
    """<D u, q> = <u, D^T q> for every size, also where an axis has one pixel."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if single else torch.float64
    ndim = len(size)
    u = torch.randn(*batch, *size, generator=generator, dtype=dtype)
    q = torch.randn(*batch, ndim, *size, generator=generator, dtype=dtype)
    difference, back = grid.forward_differences(u, ndim), grid.forward_differences_adjoint(q, ndim)
    assert difference.shape == q.shape
    assert back.shape == u.shape
    left, right = float((difference * q).sum()), float((u * back).sum())
    scale = float(difference.norm() * q.norm()) + 1e-30
    assert abs(left - right) <= (1e-5 if single else 1e-12) * scale


@pytest.mark.parametrize("size", [(30,), (24, 17), (7, 8, 9)])
def test_norm_of_the_gradient(size):
    """||D||^2 < 4 per axis, and close to it on large grids."""
    ndim = len(size)
    u = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = 0.0
    for _ in range(300):
        u = u / u.norm()
        u = grid.forward_differences_adjoint(grid.forward_differences(u, ndim), ndim)
        norm = float(u.norm())
    assert norm < 4 * ndim
    assert norm > 0.9 * 4 * ndim


def test_operators_do_not_modify_their_arguments():
    u, q = torch.rand(3, 4), torch.rand(2, 3, 4)
    kept = u.clone(), q.clone()
    grid.forward_differences(u, 2), grid.forward_differences_adjoint(q, 2)
    assert torch.equal(u, kept[0])
    assert torch.equal(q, kept[1])
