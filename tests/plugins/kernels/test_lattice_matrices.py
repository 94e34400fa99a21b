"""The lattice filter as sparse matrices: the compiled filter's numbers, symmetry, well-formed matrices, devices."""

import itertools
import math

import pytest
import torch
from scipy.sparse import csr_array
from torch.utils._python_dispatch import TorchDispatchMode

from regloss_plugins.filters import gaussian as filters
from regloss_plugins.filters.gaussian import ACCURACIES, gaussian_filter
from regloss_plugins.kernels import lattice_matrices
from regloss_plugins.kernels.lattice_matrices import LatticeMatrices, filters_on

CPU = torch.device("cpu")


def multiplies_on_the_cpu():
    matrix = lattice_matrices._csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), 1)
    try:
        matrix @ torch.ones(1, 1)
    except RuntimeError:
        return False
    return True


with_products = pytest.mark.skipif(
    not multiplies_on_the_cpu(), reason="this build of torch does not multiply CSR matrices on the CPU"
)
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bound_to(*shape, sigma_xy=3.0, sigma_rgb=0.2, accuracy="fine", region=None, dtype=torch.float64):
    image = random(*shape, dtype=dtype)
    return gaussian_filter(image, sigma_xy, sigma_rgb, region, backend="lattice", accuracy=accuracy)


def matrices_of(bound, dtype=torch.float64):
    return bound._images[0]._matrices(CPU, dtype)


def in_scipy(matrix):
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    return csr_array(parts, shape=tuple(matrix.shape))


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Values on the CPU are taken for those on a GPU."""
    monkeypatch.setattr(lattice_matrices, "_DEVICES", frozenset({"cpu"}))


FINITE = [(3.0, 0.2), (40.0, 0.1), (0.7, 0.5)]
INFINITE = [(math.inf, 0.2), (3.0, math.inf), (math.inf, math.inf)]
# The compiled filter is compiled for each of them, the finer the slower.
CASES = [
    *(((3, 17, 23), accuracy, FINITE + INFINITE) for accuracy in ("fast", "fine")),
    ((3, 9, 11), "finest", FINITE + INFINITE),
    *((shape, accuracy, FINITE) for shape in ((1, 40), (2, 4, 5, 6)) for accuracy in ACCURACIES),
    *((shape, "fast", FINITE) for shape in ((3, 40), (1, 17, 23), (1, 6, 9, 7), (3, 6, 9, 7), (5, 9, 8))),
]


@with_products
@pytest.mark.parametrize(("shape", "accuracy", "widths"), CASES)
def test_equals_the_compiled_filter(shape, accuracy, widths):
    """All widths, with and without a region of interest, in both precisions, one channel and many."""
    regions = None, random(1, *shape[1:], seed=3) > 0.4
    for (sigma_xy, sigma_rgb), region, (dtype, tolerance) in itertools.product(
        widths, regions, ((torch.float64, 1e-10), (torch.float32, 1e-5))
    ):
        bound = bound_to(
            1, *shape, sigma_xy=sigma_xy, sigma_rgb=sigma_rgb, accuracy=accuracy, region=region, dtype=dtype
        )
        values = random(1, 21, *shape[1:], seed=1) - 0.3
        expected = bound(values)[0].flatten(1)
        matrices = matrices_of(bound, dtype)
        for count in (1, 21):
            found = matrices(values[0, :count].flatten(1).to(dtype))
            assert found.dtype == dtype
            error = float((found - expected[:count]).abs().max() / expected[:count].abs().max())
            assert error < tolerance, (sigma_xy, sigma_rgb, region is None, dtype, count)
            if region is not None:
                assert float(found[:, ~region.flatten()].abs().max()) == 0


@with_products
def test_equals_the_compiled_filter_of_two_precisions(on_the_cpu, monkeypatch):
    """A lattice in float32 filters values in float64 in these, with the numbers that it has."""
    bound = bound_to(1, 3, 17, 23, dtype=torch.float32)
    values = random(1, 2, 17, 23, seed=1)
    found = bound(values)
    monkeypatch.setattr(lattice_matrices, "_DEVICES", frozenset())
    expected = bound(values)
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    monkeypatch.setattr(lattice_matrices, "_DEVICES", frozenset({"cpu"}))
    wide = bound_to(1, 3, 17, 23)
    assert wide(values.float()).dtype == torch.float32
    assert [list(image.matrices) for image in wide._images] == [[(CPU, torch.float64)]]


@with_products
@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("shape", [(3, 9, 8), (1, 4, 5, 6), (2, 30)])
def test_symmetric_with_unit_diagonal(shape, accuracy):
    region = random(1, *shape[1:], seed=3) > 0.2
    matrices = matrices_of(bound_to(1, *shape, accuracy=accuracy, region=region))
    whole = matrices(torch.eye(region.numel(), dtype=torch.float64))
    torch.testing.assert_close(whole, whole.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(whole.diagonal(), region.flatten().double(), rtol=0, atol=1e-13)
    assert float(whole.min()) >= 0


@with_products
def test_adjoint_of_itself():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        matrices = matrices_of(bound_to(1, 3, 31, 23, sigma_xy=9.0, dtype=dtype), dtype)
        x, y = random(37, 31 * 23, seed=1, dtype=dtype), random(37, 31 * 23, seed=2, dtype=dtype)
        assert float((matrices(x) * y).sum()) == pytest.approx(float((x * matrices(y)).sum()), rel=tolerance)


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("sigma_xy", [3.0, math.inf])
def test_matrices_are_well_formed_and_come_in_pairs(accuracy, sigma_xy):
    """Columns ascend within rows, as products may expect; the way up is the way down, transposed."""
    region = random(1, 9, 8, seed=3) > 0.2
    chain = matrices_of(bound_to(1, 3, 9, 8, sigma_xy=sigma_xy, accuracy=accuracy, region=region)).chain
    spatial = 0 if math.isinf(sigma_xy) else 2
    assert len(chain) == 2 * (2 + spatial) + spatial + 3
    for before, after in itertools.pairwise(chain):
        assert before.shape[0] == after.shape[1]
    for matrix in chain:
        torch.sparse_csr_tensor(
            matrix.crow_indices(), matrix.col_indices(), matrix.values(), matrix.shape, check_invariants=True
        )
        assert matrix.col_indices().dtype == torch.int32
    for down, up in zip(chain[: 2 + spatial], reversed(chain), strict=False):
        assert abs(in_scipy(down) - in_scipy(up).T).nnz == 0


def test_no_factor_grows_with_all_axes_at_once():
    """Numbers of a factor: those of splines of all colours, or of one spatial axis, or of the blur of one axis."""
    bound = bound_to(1, 3, 40, 50, sigma_xy=10.0, sigma_rgb=0.1)
    pixels, points, touched, between, seen = (matrix.shape[1] for matrix in matrices_of(bound).chain[:5])
    counts = [matrix._nnz() for matrix in matrices_of(bound).chain]
    assert pixels == 2000
    assert counts[:4] == [pixels, 27 * points, 3 * touched, 3 * between]
    assert counts[-4:] == counts[3::-1]
    assert touched == len(bound._images[0].lattice.touched_nodes)
    assert seen == len(bound._images[0].lattice.spots)
    between_touched = [matrix.shape[0] for matrix in matrices_of(bound).chain[4:9]]
    assert max(between_touched) < 2 * seen
    assert sum(counts[4:9]) < 27 * seen


@with_products
def test_many_channels_go_in_parts(monkeypatch):
    bound = bound_to(1, 3, 9, 8)
    values = random(7, 72, seed=1)
    expected = matrices_of(bound)(values)
    for most in (1, 5000):
        monkeypatch.setattr(lattice_matrices, "_MOST_NUMBERS", most)
        assert torch.equal(matrices_of(bound)(values), expected)


@with_products
def test_filtering_asks_the_device_for_nothing():
    """Products and copies only: no number is read back, which would make the host wait for a GPU."""
    matrices = matrices_of(bound_to(1, 3, 9, 8))
    values = random(2, 72, seed=1)
    called = set()

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function._schema.name)
            return function(*args, **(kwargs or {}))

    with Log():
        matrices(values)
    assert "aten::mm" in called
    assert called <= {"aten::mm", "aten::slice", "aten::permute", "aten::numpy_T", "aten::t", "aten::clone"}


def test_devices():
    """On the CPU compiled code is quicker; elsewhere torch has no products with CSR matrices."""
    assert filters_on(torch.device("cuda"))
    assert filters_on(torch.device("cuda", 1))
    for other in ("cpu", "mps", "xpu", "meta"):
        assert not filters_on(torch.device(other))


class TestLatticeFilter:
    """The choice and the cache, with the CPU in the part of a GPU."""

    def test_values_on_the_cpu_take_the_compiled_filter(self, monkeypatch):
        monkeypatch.setattr(filters, "LatticeMatrices", None)
        bound_to(1, 3, 9, 8)(random(1, 2, 9, 8))

    @with_products
    def test_values_elsewhere_take_the_matrices(self, on_the_cpu, monkeypatch):
        bound, values = bound_to(2, 3, 9, 8), random(2, 4, 9, 8, seed=1)
        found = bound(values)
        assert [list(image.matrices) for image in bound._images] == [[(CPU, torch.float64)]] * 2
        monkeypatch.setattr(lattice_matrices, "_DEVICES", frozenset())
        torch.testing.assert_close(found, bound(values), rtol=1e-10, atol=0)
        assert found.is_contiguous()

    @with_products
    def test_matrices_are_built_once_for_a_precision_and_shared(self, on_the_cpu, monkeypatch):
        built = []

        class Counted(LatticeMatrices):
            def __init__(self, *args):
                built.append(args[-1])
                super().__init__(*args)

        monkeypatch.setattr(filters, "LatticeMatrices", Counted)
        bound, values = bound_to(3, 3, 9, 8, dtype=torch.float32), random(3, 2, 9, 8, seed=1, dtype=torch.float32)
        whole = bound(values)
        some = bound.select(torch.tensor([2, 0]))
        assert torch.equal(some(values[[2, 0]]), whole[[2, 0]])
        bound(values)
        assert built == [torch.float32] * 3
        some(values[[2, 0]].double())
        bound(values.double())
        assert built == [torch.float32] * 3 + [torch.float64] * 3

    @with_products
    def test_gradient_is_the_filter(self, on_the_cpu):
        bound = bound_to(1, 3, 5, 4)
        values = random(1, 2, 5, 4, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(bound, values)
        assert torch.autograd.gradgradcheck(bound, values)

    @with_products
    def test_built_in_inference_mode_and_then_trained(self, on_the_cpu):
        bound = bound_to(1, 3, 5, 4)
        values = random(1, 2, 5, 4, seed=1)
        with torch.inference_mode():
            expected = bound(values)
        values.requires_grad_()
        bound(values).sum().backward()
        torch.testing.assert_close(values.grad, bound(torch.ones_like(values)))
        torch.testing.assert_close(bound(values), expected.clone())

    @with_products
    def test_half_precision_and_autocast_change_nothing(self, on_the_cpu):
        bound = bound_to(1, 3, 9, 8, dtype=torch.float32)
        values = random(1, 2, 9, 8, seed=1, dtype=torch.float32).half()
        expected = bound(values.float())
        assert torch.equal(bound(values), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(bound(values.float()), expected)


@with_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_on_a_gpu(accuracy, dtype, tolerance):
    """The CPU's numbers, on the GPU, which the host does not wait for."""
    region = random(2, 31, 23, seed=3) > 0.2
    bound = bound_to(2, 3, 31, 23, sigma_xy=9.0, accuracy=accuracy, region=region, dtype=dtype)
    values = random(2, 21, 31, 23, seed=1, dtype=dtype)
    expected, given = bound(values), values.cuda()
    bound(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = bound(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.device == given.device
    assert float((found.cpu() - expected).abs().max() / expected.abs().max()) < tolerance
