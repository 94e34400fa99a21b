"""Losses as modules: the energies of outer loops, when values are checked, compilers, names and signatures."""

import copy
import dataclasses
import doctest
import inspect
import io
import pickle
import shutil

import pytest
import torch
from losses_stub import STUB, losses_stub
from torch.utils._python_dispatch import TorchDispatchMode

import regloss
from regloss import Batch, GradientDescent, GridCRF, Regularizer, Term, TotalVariation, UsageError
from regloss.checks import without_value_checks
from regloss.losses import DataLoss, RegularizerLoss, loss_of
from regloss.regularizer import combine

# Settings that matter, where the defaults leave something out or do not fit small images; several where they differ.
SETTINGS = {
    "dense-crf": [{"sigma_xy": 3.0}, {"sigma_xy": 3.0, "backend": "lattice"}, {"relaxation": "normalized-quadratic"}],
    "normalized-cut": [{"sigma_xy": 3.0}, {"sigma_xy": 3.0, "backend": "lattice", "scale": 1.0}],
    "kernel-cut": [{"sigma_xy": 3.0, "crf_weight": 2.0}],
    "gated-crf": [{"radius": 2}, {"radius": 2, "relaxation": "collision-divergence"}],
    "grid-crf": [{}, {"relaxation": "quadratic", "sigma": 0.2}],
    "nltv": [{"neighbors": 4}],
    "tv": [{}, {"edge_scale": 5.0, "isotropic": True}],
    "threshold-dynamics": [{}, {"edge": "sqrt", "perimeter": True}, {"kernel": "disk"}],
    "volume": [{"volumes": (0.2, 0.5, 0.3), "unit": "fraction"}, {"lower": (0.4, 0.0, 0.0), "unit": "fraction"}],
    "star": [{}, {"center": "middle"}],
    "convex": [{"radii": (1.5, 3)}],
    "size-bounds": [{"lower": (0.0, 0.4, 0.0), "upper": (0.2, 1.0, 1.0)}, {"lower": (0.5, 0.5, 0.5), "present": True}],
    "elbo": [{"samples": 0, "encoder": "plain-cnn", "decoder": "plain-cnn", "means": [[3.0], [0.0], [-3.0]]}],
    "cross-entropy": [{"class_weights": (1.0, 2.0, 3.0), "label_smoothing": 0.1}],
    "collision-cross-entropy": [{"label_smoothing": 0.1}],
    "partial-dice": [{}, {"smooth": 1.0, "squared": True}],
}
SIZES = {2: (8, 9), 3: (4, 5, 6)}
REGULARIZERS = [(name, settings) for name in regloss.names("regularizer") for settings in SETTINGS.get(name, [{}])]
DATA_TERMS = [(name, settings) for name in regloss.names("data-term") for settings in SETTINGS.get(name, [{}])]


def table(entries):
    return pytest.mark.parametrize(
        ("name", "settings"), entries, ids=["-".join([n, *(f"{v}" for v in s.values())]) for n, s in entries]
    )


def settings_for(settings, ndim):
    return {k: tuple(n // 2 for n in SIZES[ndim]) if v == "middle" else v for k, v in settings.items()}


class Given:
    """A batch of two images with three classes, half of the pixels unlabelled."""

    def __init__(self, ndim=2, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        size = SIZES[ndim]
        self.logits = torch.randn(2, 3, *size, generator=generator, dtype=dtype)
        self.logits[:, 1] += 1  # so that its region has dents
        self.image = torch.rand(2, 3, *size, generator=generator, dtype=dtype)
        self.roi = torch.rand(2, *size, generator=generator) < 0.8
        self.target = torch.randint(0, 3, (2, *size), generator=generator)
        self.target[torch.rand(2, *size, generator=generator) < 0.5] = 255


def value_and_gradient(function, logits):
    logits = logits.detach().clone().requires_grad_()
    value = function(logits)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))
        assert float(other.abs().max()) > 0


# --------------------------------------------------------------------------------------------------------------------
# One energy


@pytest.mark.parametrize("in_region", [False, True], ids=["everywhere", "in a region"])
@pytest.mark.parametrize("ndim", [2, 3])
@table(REGULARIZERS)
def test_regularizer_losses_are_the_energies_of_outer_loops(name, settings, ndim, in_region):
    given, settings = Given(ndim), settings_for(settings, ndim)
    roi = given.roi if in_region else None
    regularizer = regloss.create("regularizer", name, weight=3.0, **settings)
    term = regularizer.bind(given.image, roi)

    def energies(logits):
        return term.penalty(logits.sigmoid() if regularizer.channels == "sets" else logits.softmax(1))

    pixels = Batch(given.image, None, roi).pixels.sum()
    expected = {
        "none": value_and_gradient(energies, given.logits),
        "sum": value_and_gradient(lambda logits: energies(logits).sum(), given.logits),
        "mean": value_and_gradient(lambda logits: energies(logits).sum() / pixels, given.logits),
    }
    for reduction, result in expected.items():
        loss = loss_of(name)(weight=3.0, **settings, reduction=reduction)
        found = value_and_gradient(lambda logits, loss=loss: loss(logits, image=given.image, roi=roi), given.logits)
        assert_same(found, result)
    assert expected["none"][0].shape == (2,)
    if regularizer.channels == "classes":
        loop, batch = GradientDescent(regularizer), Batch(given.image, torch.full_like(given.target, 255), roi)
        assert_same(value_and_gradient(lambda logits: loop.objective(logits, batch), given.logits), expected["mean"])


@pytest.mark.parametrize("in_region", [False, True], ids=["everywhere", "in a region"])
@table(DATA_TERMS)
def test_data_losses_are_the_means_of_outer_loops(name, settings, in_region):
    given = Given()
    roi = given.roi if in_region else None
    loss = loss_of(name)(**settings)
    term = loss.data_term
    if term.modules():
        loss.double()
    batch = Batch(given.image, given.target, roi)
    loop = GradientDescent(data_term=term)
    expected = value_and_gradient(lambda logits: loop.objective(logits, batch), given.logits)

    def call(logits):
        return loss(logits, given.target, given.image, roi)

    assert_same(value_and_gradient(call, given.logits), expected)
    sums, _ = term(given.logits, batch)
    for reduction, total in (("none", sums), ("sum", sums.sum())):
        loss.reduction = reduction
        torch.testing.assert_close(call(given.logits), total)


def test_networks_of_a_data_term_are_submodules():
    loss = loss_of("elbo")("plain-cnn", "plain-cnn", channels=1, means=[[3.0], [-3.0]])
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"networks"}
    assert {name.split(".")[1] for name, _ in loss.named_parameters()} == {"encoder", "decoder"}
    loss(torch.randn(1, 2, 8, 8), image=torch.rand(1, 1, 8, 8)).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    again = copy.deepcopy(loss)
    assert again.networks["encoder"] is again.data_term.modules()["encoder"]
    assert again.networks["encoder"] is not loss.networks["encoder"]


def test_sums_and_objects():
    given = Given()
    total = RegularizerLoss([GridCRF(weight=2.0), {"name": "tv", "weight": 0.5}])
    assert_same(
        value_and_gradient(lambda logits: total(logits, image=given.image), given.logits),
        value_and_gradient(
            lambda logits: (
                loss_of("grid-crf")(2.0)(logits, image=given.image) + loss_of(TotalVariation)(weight=0.5)(logits)
            ),
            given.logits,
        ),
    )


def test_weighted_data_terms():
    given = Given()
    total = DataLoss(["partial-dice", {"name": "entropy", "weight": 0.3}])
    with pytest.raises(UsageError, match="compares with labels"):
        total(given.logits)
    assert_same(
        value_and_gradient(lambda logits: total(logits, given.target), given.logits),
        value_and_gradient(
            lambda logits: loss_of("partial-dice")()(logits, given.target) + 0.3 * loss_of("entropy")()(logits),
            given.logits,
        ),
    )


def test_half_precision_gives_single():
    given = Given(dtype=torch.float32)
    loss = loss_of("grid-crf")()
    value = loss(given.logits.bfloat16(), image=given.image.bfloat16())
    assert value.dtype == torch.float32
    expected = loss(given.logits.bfloat16().double(), image=given.image.bfloat16().double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


@table([entry for entry in REGULARIZERS + DATA_TERMS if entry[0] != "elbo"])
def test_nan_stays_nan(name, settings):
    """Wherever it enters: here at one labelled pixel."""
    given = Given()
    given.target[0, 4, 4] = 1
    given.logits[0, :, 4, 4] = float("nan")
    loss = loss_of(name)(**settings_for(settings, 2), reduction="none")
    target = given.target if isinstance(loss, DataLoss) else None
    first, second = loss(given.logits, target, given.image).tolist()
    assert first != first
    assert second == second


# --------------------------------------------------------------------------------------------------------------------
# Target, image, region


def test_a_target_is_refused_unless_it_says_what_to_leave_out():
    given = Given()
    with pytest.raises(UsageError, match=r"GridCRFLoss regularises labelled and unlabelled pixels alike.*ignore_index"):
        loss_of("grid-crf")()(given.logits, given.target, given.image)
    loss = loss_of("grid-crf")(ignore_index=2)
    expected = loss(given.logits, image=given.image, roi=given.target != 2)
    assert loss(given.logits, given.target, given.image) == expected
    both = loss(given.logits, given.target, given.image, given.roi)
    assert both == loss(given.logits, image=given.image, roi=given.roi & (given.target != 2))
    assert both != expected
    with pytest.raises(UsageError, match="Labels must be integers"):
        loss(given.logits, given.target.float(), given.image)


def test_ignore_index_of_data_losses():
    given = Given()
    expected = loss_of("partial-cross-entropy")()(given.logits, given.target)
    elsewhere = torch.where(given.target == 255, -100, given.target)
    loss = loss_of("partial-cross-entropy")(ignore_index=-100)
    assert loss(given.logits, elsewhere) == expected
    torch_s = torch.nn.CrossEntropyLoss(ignore_index=-100)(given.logits, elsewhere)
    torch.testing.assert_close(expected, torch_s)
    loss.validate, loss._checked = True, set()
    with pytest.raises(UsageError, match="target holds the value 255, and PartialCrossEntropyLoss ignores -100"):
        loss(given.logits, given.target)
    with pytest.raises(UsageError, match="ignores None"):
        loss_of("partial-cross-entropy")(ignore_index=None)(given.logits, given.target)


def test_class_255_is_not_taken_for_unlabelled():
    target = torch.tensor([[[3, 255]]])
    with pytest.raises(UsageError, match="means unlabelled and, as K = 300, is a class too"):
        loss_of("cross-entropy")()(torch.zeros(1, 300, 1, 2), target)
    assert loss_of("cross-entropy")()(torch.zeros(1, 300, 1, 2), target.clamp(max=254)) > 0


def test_image_is_asked_for_where_it_matters():
    given = Given()
    with pytest.raises(UsageError, match=r"GridCRFLoss looks at the image, and none was given: loss\(logits, image"):
        loss_of("grid-crf")()(given.logits)
    with pytest.raises(UsageError, match="TVLoss looks at the image"):
        loss_of("tv")(edge_scale=1.0)(given.logits)
    for name, settings in REGULARIZERS:
        loss = loss_of(name)(**settings_for(settings, 2))
        if not loss.regularizer.needs_image:
            without = loss(given.logits)
            for image in (given.image, 1 - given.image[:, :1]):
                torch.testing.assert_close(loss(given.logits, image=image), without)
        else:
            values = [float(loss(given.logits, image=image)) for image in (given.image, given.image**2)]
            assert values[0] != values[1]


def test_labels_are_asked_for_where_they_matter():
    with pytest.raises(UsageError, match=r"PartialDiceLoss compares with labels.*loss\(logits, target\)"):
        loss_of("partial-dice")()(Given().logits)


def test_shapes_and_devices_must_agree():
    given = Given()
    loss = loss_of("grid-crf")(validate=False)
    with pytest.raises(UsageError, match=r"An image \(2, 3, 8, 8\) does not fit logits \(2, 3, 8, 9\)"):
        loss(given.logits, image=given.image[..., :-1])
    with pytest.raises(UsageError, match=r"roi is on meta.*Move it with .to\(logits.device\)"):
        loss(given.logits, image=given.image, roi=given.roi.to("meta"))
    with pytest.raises(UsageError, match="region of interest must have the image's shape"):
        loss(given.logits, image=given.image, roi=given.roi[..., 1:])
    with pytest.raises(UsageError, match="at least two"):
        loss(given.logits[:, :1], image=given.image)


def test_nothing_inside_is_zero_and_keeps_the_graph():
    given = Given()
    target = torch.full_like(given.target, 255)
    logits = given.logits.requires_grad_()
    loss = loss_of("partial-cross-entropy")()(logits, target)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().max()) == 0


# --------------------------------------------------------------------------------------------------------------------
# When values are looked at


class Reads(TorchDispatchMode):
    """Counts what is read back from tensors as numbers."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return function(*args, **(kwargs or {}))


@table([entry for entry in REGULARIZERS + DATA_TERMS if entry[0] != "elbo"])
def test_values_are_read_once_a_shape(name, settings):
    """Beside the checks nothing is read either, but for what works on the CPU or asks for the size of a region."""
    given = Given()
    loss = loss_of(name)(**settings_for(settings, 2))
    target = given.target if isinstance(loss, DataLoss) else None
    counts = []
    for logits in (given.logits, given.logits.clone(), given.logits.float()):
        with Reads() as reads:
            loss(logits, target, given.image, given.roi)
        counts.append(reads.count)
    first, second, other_type = counts
    assert 0 <= second < first
    assert other_type == first
    never = loss_of(name)(**settings_for(settings, 2), validate=False)
    with Reads() as reads:
        never(given.logits, target, given.image, given.roi)
    assert reads.count == second
    if isinstance(loss, DataLoss) or not loss.regularizer.opaque:
        assert second == 0


def test_values_out_of_range_are_seen_once_a_shape():
    given = Given()
    loss = loss_of("grid-crf")()
    for _ in range(2):  # a call that fails is not counted as one that was checked
        with pytest.raises(UsageError, match=r"lie in \[0, 1\]"):
            loss(given.logits, image=255 * given.image)
    loss(given.logits, image=given.image)
    loss(given.logits, image=255 * given.image)
    with pytest.raises(UsageError, match=r"lie in \[0, 1\]"):
        loss(given.logits[:1], image=255 * given.image[:1])
    loss_of("grid-crf")(validate=False)(given.logits, image=255 * given.image)
    with pytest.raises(UsageError, match=r"lie in \[0, 1\]"):
        GridCRF().bind(255 * given.image)  # elsewhere, always
    with without_value_checks():
        GridCRF().bind(255 * given.image)


# --------------------------------------------------------------------------------------------------------------------
# Compilers


def compare_compiled(name, settings, ndim, backend, tolerance=1e-10):
    given = Given(ndim)
    loss = loss_of(name)(**settings_for(settings, ndim))
    target = given.target if isinstance(loss, DataLoss) else None
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)

    def both(logits, image, roi):
        return (value_and_gradient(lambda z, f=f: f(z, target, image, roi), logits) for f in (compiled, loss))

    assert_same(*both(given.logits, given.image, given.roi), tolerance)
    # What eager calls would refuse is not looked at.
    assert compiled(given.logits.requires_grad_(), target, 200 * given.image, given.roi).shape == ()
    return compiled, loss, target, given, both


FIRST = list({name: (name, settings) for name, settings in reversed(REGULARIZERS + DATA_TERMS)}.values())[::-1]


@table([entry for entry in FIRST if entry[0] != "elbo"])
def test_every_loss_compiles_without_a_graph_break(name, settings):
    compare_compiled(name, settings, 2, "aot_eager")


@pytest.mark.slow
@table([entry for entry in REGULARIZERS + DATA_TERMS if entry[0] != "elbo"])
def test_every_setting_compiles_everywhere_and_without_gradients(name, settings):
    compiled, loss, target, given, both = compare_compiled(name, settings, 2, "aot_eager")
    assert_same(*both(given.logits, given.image, None))
    with torch.no_grad():
        assert_same([compiled(given.logits, target, given.image)], [loss(given.logits, target, given.image)])


@pytest.mark.slow
@table([("grid-crf", {}), ("tv", {}), ("dense-crf", {"sigma_xy": 3.0}), ("star", {}), ("partial-dice", {})])
def test_losses_of_volumes_compile(name, settings):
    compare_compiled(name, settings, 3, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, where inductor is imported
@table(
    [
        ("grid-crf", {}),
        ("tv", {"edge_scale": 5.0}),
        ("dense-crf", {"sigma_xy": 3.0, "backend": "lattice"}),
        ("partial-dice", {}),
    ]
)
def test_losses_compile_to_machine_code(name, settings):
    compare_compiled(name, settings, 2, "inductor")


@table([("partial-dice", {}), ("normalized-cut", {"sigma_xy": 3.0})])
def test_a_compiled_loss_takes_other_sizes(name, settings):
    loss = loss_of(name)(**settings)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for size in ((8, 9), (7, 12), (10, 11)):
        logits, image = (torch.rand(1, 3, *size, dtype=torch.float64) for _ in range(2))
        target = torch.randint(0, 3, (1, *size)) if isinstance(loss, DataLoss) else None
        found, expected = (
            value_and_gradient(lambda z, f=f, rest=(target, image): f(z, *rest), logits) for f in (compiled, loss)
        )
        assert_same(found, expected)


def test_settings_to_be_learnt_are_not_lost_by_compiling():
    given = Given()
    loss = loss_of("dense-crf")(sigma_xy=torch.tensor(3.0, requires_grad=True))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(UsageError, match="dense-crf has settings that need a gradient"):
        compiled(given.logits, image=given.image)


# --------------------------------------------------------------------------------------------------------------------
# Names, signatures, docstrings


def test_names():
    losses = regloss.losses
    for name in ("GridCRFLoss", "DenseCRFLoss", "GatedCRFLoss", "TVLoss", "NonlocalTVLoss", "PartialDiceLoss"):
        assert name in dir(losses)
        assert getattr(losses, name).__name__ == name
    assert losses.TotalVariationLoss is losses.TVLoss is loss_of("tv") is loss_of(TotalVariation)
    assert losses.PartialCrossEntropyLoss is loss_of("regloss:partial-cross-entropy")
    known = regloss.names("regularizer") + regloss.names("data-term")
    assert {loss_of(name).__name__ for name in known} <= set(dir(losses))
    with pytest.raises(AttributeError, match=r"has no attribute 'GridLoss'. Its losses are: .*GridCRFLoss"):
        losses.GridLoss  # noqa: B018
    with pytest.raises(AttributeError):
        losses.gridcrfLoss  # noqa: B018
    with pytest.raises(regloss.UnknownComponent, match="no regularizer or data term called 'gird-crf'"):
        loss_of("gird-crf")
    with pytest.raises(UsageError, match="KL is neither"):
        loss_of(regloss.KL)


@pytest.mark.parametrize("name", regloss.names("regularizer") + regloss.names("data-term"))
def test_signature_and_docstring_are_those_of_the_component(name):
    made = loss_of(name)
    own = list(inspect.signature(made.component).parameters)
    parameters = inspect.signature(made).parameters
    assert list(parameters) == [*own, "ignore_index", "reduction", "validate"]
    for setting in own:
        assert parameters[setting].default == inspect.signature(made.component).parameters[setting].default
    text = inspect.getdoc(made)
    for title in ("Args:", "Shape:", "Raises:", "Examples:"):
        assert f"\n\n{title}\n" in text
    for setting in parameters:
        assert f"\n    {setting}: " in text
    test = doctest.DocTestParser().get_doctest(made.__doc__, {}, made.__name__, None, 0)
    output = io.StringIO()
    if name != "elbo":
        assert len(test.examples) >= 4
        runner = doctest.DocTestRunner()
        runner.run(test, out=output.write)
        assert runner.summarize(verbose=False).failed == 0, output.getvalue()


def test_the_stub_is_current():
    assert STUB.read_text() == losses_stub(), "settings of losses have changed: run `make stub`"


def test_settings_are_named_when_one_does_not_exist():
    with pytest.raises(UsageError, match=r"GridCRFLoss: .*'sigam'.*Its settings are: weight, .*reduction"):
        loss_of("grid-crf")(sigam=0.1)
    with pytest.raises(UsageError, match="reduction must be one of mean, sum, none; got 'avg'"):
        loss_of("grid-crf")(reduction="avg")
    with pytest.raises(UsageError, match="ignore_index must be an integer"):
        loss_of("grid-crf")(ignore_index="void")
    with pytest.raises(UsageError, match="validate must be True or False; got 'no'"):
        loss_of("grid-crf")(validate="no")
    with pytest.raises(UsageError, match="weight of grid-crf"):
        loss_of("grid-crf")(-1.0)
    with pytest.raises(UsageError, match="needs a regularizer"):
        RegularizerLoss([])


@table([("grid-crf", {"weight": 2.0}), ("dense-crf", {"sigma_xy": 3.0}), ("partial-dice", {"smooth": 1.0})])
def test_copies_and_pickles(name, settings):
    given, loss = Given(), loss_of(name)(**settings, reduction="sum")
    target = given.target if isinstance(loss, DataLoss) else None
    expected = loss(given.logits, target, given.image)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss)
        assert again(given.logits, target, given.image) == expected
        torch.compiler.reset()
        compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(given.logits, target, given.image), expected)
    assert "reduction='sum'" in repr(loss)


@dataclasses.dataclass(frozen=True)
class Roughness(Regularizer):
    """Squared differences along the last axis.

    Args:
        weight: factor of the whole energy, >= 0.
        power: of the differences.
    """

    weight: float = 1.0
    power: float = 2.0
    needs_image = False

    def __post_init__(self):
        if self.power < 1:
            raise UsageError("power must be at least 1.")

    @property
    def forms(self):
        return ()

    def build(self, image, roi, spacing):
        return RoughnessTerm(self, (image.shape[0], *image.shape[2:]), roi)


class RoughnessTerm(Term):
    def energy(self, probabilities):
        differences = self.check(probabilities).diff(dim=-1)
        return self.regularizer.weight * (differences.abs() ** self.regularizer.power).flatten(1).sum(1)


@dataclasses.dataclass(frozen=True)
class NumpyRoughness(Roughness):
    opaque = True

    def build(self, image, roi, spacing):
        return NumpyTerm(self, (image.shape[0], *image.shape[2:]), roi)


class NumpyTerm(RoughnessTerm):
    """By code that no compiler can look into."""

    def energy(self, probabilities):
        class Energy(torch.autograd.Function):
            @staticmethod
            def forward(ctx, s):
                ctx.save_for_backward(s)
                array = s.detach().numpy()
                return torch.from_numpy(((array[..., 1:] - array[..., :-1]) ** 2).reshape(len(array), -1).sum(1))

            @staticmethod
            def backward(ctx, gradient):
                (s,) = ctx.saved_tensors
                steps = 2 * s.diff(dim=-1)
                pad = torch.nn.functional.pad
                return (pad(steps, (1, 0)) - pad(steps, (0, 1))) * gradient.reshape(-1, *[1] * (s.ndim - 1))

        return self.regularizer.weight * Energy.apply(self.check(probabilities))


def test_a_strangers_regularizer_has_a_loss():
    regloss.register("regularizer", "roughness")(Roughness)
    regloss.register("regularizer", "numpy-roughness")(NumpyRoughness)
    try:
        given = Given()
        loss = regloss.losses.RoughnessLoss(0.5, power=2.0)
        assert type(loss) is loss_of("roughness")
        s = given.logits.softmax(1)
        torch.testing.assert_close(loss(given.logits), 0.5 * s.diff(dim=-1).square().sum() / given.target.numel())
        assert "    power: of the differences." in inspect.getdoc(type(loss))
        with pytest.raises(UsageError, match="weight of roughness must be finite"):
            type(loss)(weight=-1.0)
        opaque = loss_of("numpy-roughness")(0.5)
        torch.compiler.reset()
        compiled = torch.compile(opaque, fullgraph=True, backend="aot_eager")
        assert_same(value_and_gradient(compiled, given.logits), value_and_gradient(loss, given.logits))
    finally:
        regloss.unregister("regularizer", "roughness")
        regloss.unregister("regularizer", "numpy-roughness")


def test_a_setting_with_a_name_that_losses_have():
    @dataclasses.dataclass(frozen=True)
    class Reducing(Roughness):
        reduction: str = "none"

    with pytest.raises(UsageError, match="its setting 'reduction' has a name that every loss has"):
        loss_of(Reducing)
    assert combine(Reducing()).reduction == "none"
