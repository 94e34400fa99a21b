"""Configurations: what they mean, and what is said of invalid ones."""

import json
import math
from pathlib import Path

import pytest
import torch

import regloss
from regloss.errors import UnknownComponent, UsageError
from regloss.io.toml import tomllib
from regloss.training.config import apply_change, build_loop, parse, read
from regloss.training.optimization import optimizer_of

TEXT = """
output = "runs/a"

[data]
dataset = "folder"
root = "images"
split = {train = ["a"], test = ["b"]}
crop = [24, 28]
scribble-length = 0.5

[data.augment]
flip-vertical = true

[network]
name = "unet"
max-channels = 64

[[loss.regularizer]]
name = "grid-crf"
weight = 2.0

[[loss.regularizer]]
name = "tv"

[loss.outer-loop]
name = "trust-region"
update-every = 3
divergence = {name = "robust-kl", epsilon = 0.5}

[training]
epochs = 5
batch-size = 4
optimizer = {name = "sgd", lr = 0.1, weight-decay = 1e-4}
"""


def table(*changes):
    content = tomllib.loads(TEXT)
    for change in changes:
        apply_change(content, change)
    return content


def test_a_file_is_read(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    config = read(path, ["training.epochs=7", "output=runs/b"])
    assert (config.output, config.training.epochs, config.training.batch_size) == ("runs/b", 7, 4)
    assert (config.data.crop, config.data.scribble_length, config.data.augment.flip_vertical) == ((24, 28), 0.5, True)
    assert config.data.component_settings() == {"root": "images", "split": {"train": ["a"], "test": ["b"]}}
    assert config.network.component_settings() == {"max_channels": 64}


def test_defaults():
    config = parse(table())
    assert (config.seed, config.data.val, config.data.test, config.data.supervision) == (0, None, "test", "scribbles")
    assert config.evaluation.energy == "grid-crf"


def test_the_dump_is_complete_and_reads_back():
    """What a run writes into its folder is the same configuration, in hyphens, with every default."""
    config = parse(table())
    dumped = config.dump()
    assert parse(dumped) == config
    assert {"batch-size", "checkpoint-every", "head-lr", "log-every"} <= set(dumped["training"])
    assert not any("_" in key for section in ("data", "training", "evaluation", "loss") for key in dumped[section])


def test_an_infinite_bandwidth_is_dumped_as_such():
    """As a bandwidth None would be something else, and models are read back from dumped configurations."""
    changes = ["loss.regularizer={name = 'dense-crf', sigma-rgb = inf}", "layer.kind=dense-crf"]
    table = tomllib.loads(TEXT)
    for change in changes:
        apply_change(table, change)
    config = parse(table)
    dumped = json.loads(json.dumps(config.dump()))
    assert dumped["loss"]["regularizer"][0]["sigma-rgb"] == dumped["layer"]["sigma-rgb"][1] == math.inf
    assert parse(dumped) == config


def test_hyphens_and_underscores_mean_the_same():
    underscored = table()
    underscored["training"]["batch_size"] = underscored["training"].pop("batch-size")
    underscored["network"]["max_channels"] = underscored["network"].pop("max-channels")
    underscored["loss"]["outer_loop"] = underscored["loss"].pop("outer-loop")
    config = parse(underscored)
    assert config.training == parse(table()).training
    assert config.network.component_settings() == {"max_channels": 64}
    assert build_loop(config.loss, "scribbles").update_every == 3


def test_an_outer_loop_may_be_named_alone():
    named = parse(table("loss={outer-loop = 'adm', regularizer = 'grid-crf'}"))
    assert named == parse(table("loss={outer-loop = {name = 'adm'}, regularizer = 'grid-crf'}"))
    assert isinstance(build_loop(named.loss, "scribbles"), regloss.ADM)


def test_an_empty_name_does_without_a_subset():
    """TOML has no null."""
    config = parse(table('data.test=""', 'data.val=""', 'evaluation.energy=""'))
    assert (config.data.test, config.data.val, config.evaluation.energy) == (None, None, None)


@pytest.mark.parametrize("given", ['{name = "grid-crf", weight = 2.0}', "grid-crf"])
def test_one_regularizer_needs_no_array(given):
    config = parse(table(f"loss.regularizer={given}"))
    assert [entry["name"] for entry in config.loss.regularizer] == ["grid-crf"]


# -- Invalid configurations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("sed=1", r"unknown key 'sed'. Did you mean 'seed'\? Allowed here: output, seed, data, network, layer"),
        ("training.epoch=3", r"'training.epoch'. Did you mean 'epochs'\? Allowed here: epochs, batch-size, optimizer"),
        ("data.augment.flp=true", r"'data.augment.flp'. Did you mean 'flip'\? Allowed here: flip, flip-vertical"),
        (
            "evaluation.widths=[2]",
            r"'evaluation.widths'. Allowed here: trimap, hausdorff, surface-tolerance, energy, energy-images, examples",
        ),
        ("loss.outer-lop=1", r"'loss.outer-lop'. Did you mean 'outer-loop'\? Allowed here: data-term, regularizer"),
        ("data.rot=3", r"unknown key 'rot' for the dataset 'folder'. Did you mean 'root'\? Allowed here: .*\bcrop\b.*"),
        ("network.chanels=3", r"'chanels' for the network 'unet'. Did you mean 'channels'\? Allowed here: .*\blevels"),
        ("network.classes=3", r"unknown key 'classes' for the network 'unet'"),
        ("loss.regularizer.1.wieght=3", r"'tv' has no setting 'wieght'. Did you mean 'weight'\? Its settings are"),
        ("loss.outer-loop.coupling-=3", r"'trust-region' has no setting 'coupling-'. Did you mean 'coupling'\?"),
        (
            "loss.outer-loop.proposal-wieght=3",
            r"no setting 'proposal-wieght'. Did you mean 'proposal-weight'\? .*, proposal-divergence, entropy\.",
        ),
        ("data.dataset=foldr", r"no dataset called 'foldr'. Did you mean 'folder'\? Known: folder, "),
        ("network.name=unett", r"no network called 'unett'. Did you mean 'unet'"),
        ("loss.regularizer.0.name=grid-crv", r"no regularizer called 'grid-crv'. Did you mean 'grid-crf'"),
        ("loss.outer-loop.name=trust", r"no outer-loop called 'trust'. Did you mean 'trust-region'\?"),
        ("loss.outer-loop.regularizer=tv", r"'regularizer' belongs to \[loss\], not to \[loss.outer-loop\]"),
        ("loss.outer-loop.data-term=tv", r"'data-term' belongs to \[loss\], not to \[loss.outer-loop\]"),
        ("loss.regularizer.0.name=3", r"number 0 needs a name"),
        ("training.epochs=0", r"training.epochs: .*greater than or equal to 1; got 0"),
        ("training.epochs=many", r"training.epochs: .*integer.*; got 'many'"),
        ("training=3", r"training: .*; got 3"),
        ("data.augment.scale=[2, 1]", r"data.augment.scale: .*0.01 <= smallest <= largest <= 100"),
        ("data.augment.noise=2", r"data.augment.noise.gaussian: .*0 <= smallest <= largest <= 1"),
        ("data.augment.noise={salt = [0.2, 0.1]}", r"data.augment.noise.salt: .*0 <= smallest <= largest <= 1"),
        ("data.augment.noise={slt = 0.1}", r"'data.augment.noise.slt'. Did you mean 'salt'\? Allowed here: gaussian"),
        ("data.supervision=boxes", r"data.supervision: .*'scribbles', 'labels' or 'none'"),
        ('training.optimizer={name = "adam"}', r"training.optimizer: .*learning rate lr > 0"),
        ('training.optimizer={name = "lion", lr = 1}', r"'?adam'?.*sgd"),
        ('training.schedule={name = "step"}', r"constant.*poly.*cosine"),
        ('training.schedule={name = "poly", pwer = 2}', r"does not know pwer; its keys are name, power, warmup"),
        ('training.schedule={name = "poly", warmup = 1.5}', r"0 <= warmup < 1"),
        ('training.schedule={name = "poly", warmup = "x"}', r"warmup as a finite number of at least 0; got 'x'"),
        ('training.schedule={name = "poly", power = nan}', r"power as a finite number of at least 0; got nan"),
        *[
            (f"{key}=true", rf"{key}: .*needs a number, which true and false are not; got (True|\(0.0, True\))")
            for key in ("seed", "training.epochs", "training.head-lr", "data.crop", "data.augment.noise.salt")
        ],
        ("evaluation.trimap=[2, true]", r"evaluation.trimap: .*needs a number"),
        ("layer={regularizer = 'tv', max-steps = true}", r"layer.max-steps: .*needs a number.*; got True"),
        ("data.augment.gamma=[1, inf]", r"data.augment.gamma: .*largest <= 100"),
        ("data.proposals={entropy = inf}", r"data.proposals.entropy: .*less than"),
        ("inference.window=0", r"inference.window.*greater than or equal to 1"),
        ("data.scribble-length=1.5", r"data.scribble-length: .*less than or equal to 1; got 1.5"),
    ],
)
def test_what_is_invalid_is_named(change, expected):
    with pytest.raises(UsageError, match=r"here\.toml: .*" + expected):
        parse(table(change), "here.toml")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('{name = "adam", lr = true}', r"^training.optimizer: lr of Adam must be a number.*; got True"),
        ('{name = "sgd", lr = 0.1, weight-decay = true}', r"weight-decay of SGD must be a number.*; got True"),
        ('{name = "adam", lr = 0.1, beta = 0.9}', r"Adam has no setting 'beta'. Did you mean 'betas'"),
        ('{name = "sgd", lr = -0.1}', r"learning rate lr > 0"),
    ],
)
def test_invalid_settings_of_the_optimizer(settings, expected):
    weights = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(UsageError, match=expected):
        optimizer_of(parse(table(f"training.optimizer={settings}")), weights)
    optimizer_of(parse(table('training.optimizer={name = "sgd", lr = 1, momentum = 0.9, nesterov = true}')), weights)


def test_energies_of_training_images_need_an_energy():
    with pytest.raises(UsageError, match=r"evaluation.energy-images: .*needs an energy.*; got 3"):
        parse(table('evaluation.energy=""', "evaluation.energy-images=3"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('solver="pdhg"', r"Cannot use pdhg with Sum: it offers"),
        ("proposal-weight=-1", r"proposal-weight must be finite"),
        ("update-every=-1", r"update-every must be"),
        ("entropy=0.5", r"alpha-expansion proposes labellings.*Leave entropy out"),
        ('solver={name="mean-field", max-steps=0}', r"max-steps must be at least 1"),
        ('solver={name="alpha-expansion", bound-steps=-1}', r"bound-steps must not be negative"),
        ('solver={name="alpha-expansion", max-cycle=1}', r"no setting 'max-cycle'. Did you mean 'max-cycles'"),
        ('divergence={name="robust-kl", noise-matrix=3}', r"noise-matrix"),
        ('proposal-divergence="kll"', r"no divergence called 'kll'"),
    ],
)
def test_settings_of_the_outer_loop_are_named_as_they_are_written(change, expected):
    """With hyphens, whatever the component itself calls them."""
    config = parse(table(f"loss.outer-loop.{change}"))
    with pytest.raises(UsageError, match=r"\[loss\]: .*" + expected) as found:
        build_loop(config.loss, "scribbles")
    assert "_" not in str(found.value)


def test_several_problems_are_reported_at_once():
    with pytest.raises(UsageError, match=r"training\.epochs: .*; unknown key 'sed'"):
        parse(table("sed=1", "training.epochs=0"))


def test_missing_keys_are_named():
    content = table()
    del content["output"], content["training"]["epochs"]
    with pytest.raises(UsageError, match=r"(?s)the key 'output' is missing.*the key 'training.epochs' is missing"):
        parse(content)


def test_unknown_components_keep_their_class():
    with pytest.raises(UnknownComponent):
        parse(table("network.name=unett"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"no configuration file .*absent\.toml"):
        read(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path)
    path = tmp_path / "broken.toml"
    path.write_text('output = "a\n[data')
    with pytest.raises(UsageError, match=r"broken\.toml is not valid TOML"):
        read(path)
    for data in (b"\xff\xff", b"\xff\xfeo"):  # no UTF-8; half a letter of UTF-16
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"broken\.toml cannot be read"):
            read(path)


# -- Changes -----------------------------------------------------------------------------------------------------------


def test_changes():
    content = table(
        "training.precision=bf16-mixed",
        "data.crop=[8, 9]",
        "loss.regularizer.0.weight=7",
        "training.optimizer.lr=1e-2",
        "evaluation.trimap = [2, 4]",
        'data.val="val set"',
    )
    assert content["training"]["precision"] == "bf16-mixed"
    assert content["data"]["crop"] == [8, 9]
    assert [entry.get("weight") for entry in content["loss"]["regularizer"]] == [7, None]
    assert content["training"]["optimizer"] == {"name": "sgd", "lr": 0.01, "weight-decay": 1e-4}
    assert content["evaluation"] == {"trimap": [2, 4]}  # the section did not exist
    assert content["data"]["val"] == "val set"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.epochs", "section.key=value"),
        ("=3", "section.key=value"),
        ("training..epochs=3", "section.key=value"),
        ("output.name=3", "'output' is a value, not a section"),
        ("loss.regularizer.2.weight=3", r"'2' is not the number of an entry \(0 to 1\)"),
        ("loss.regularizer.first.weight=3", "'first' is not the number of an entry"),
        ("loss.regularizer.0=3", r"by its number, for example loss\.regularizer\.0\.weight=2"),
        ("data.split.train.0=3", "by its number"),
    ],
)
def test_changes_that_cannot_be_made(change, expected):
    with pytest.raises(UsageError, match=expected):
        table(change)


def test_read_does_not_accept_a_change_of_a_wrong_key(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    with pytest.raises(UsageError, match=r"'training\.epoch'.*Did you mean 'epochs'"):
        read(path, ["training.epoch=3"])


# -- Presets and loops -------------------------------------------------------------------------------------------------


def with_loop(**loop):
    content = table()
    content["loss"] = {"outer-loop": loop}
    return content


def test_presets_carry_published_settings():
    config = parse(with_loop(name="trust-region", preset="voc-scribbles"))
    assert config.loss.regularizer == [{"name": "grid-crf", "weight": 25.0}]
    loop = build_loop(config.loss, "scribbles")
    assert (loop.divergence.epsilon, loop.update_every, loop.solver.max_cycles) == (0.944, 5, 5)
    assert parse(config.dump()) == config  # expanded, not repeated


def test_the_dense_preset():
    config = parse(with_loop(name="gradient-descent", preset="dense-crf-scribbles"))
    regularizer = build_loop(config.loss, "scribbles").regularizer
    assert (regularizer.weight, regularizer.sigma_xy, regularizer.scale) == (4.13, 100.0, 0.5)
    assert parse(config.dump()) == config


def test_what_the_file_says_wins_over_its_preset():
    content = with_loop(name="trust-region", preset="voc-scribbles", coupling=0.2, **{"update-every": 2})
    content["loss"]["regularizer"] = [{"name": "tv", "weight": 3.0}]
    loop = build_loop(parse(content).loss, "scribbles")
    assert (loop.coupling.start, loop.update_every, loop.divergence.epsilon) == (0.2, 2, 0.944)
    assert type(loop.regularizer).__name__ == "TotalVariation"


def test_unknown_presets():
    with pytest.raises(UsageError, match=r"'trust-region' has no preset 'voc'. It has: voc-scribbles"):
        parse(with_loop(name="trust-region", preset="voc"))
    with pytest.raises(UsageError, match=r"no outer-loop called 'trust'"):
        parse(with_loop(name="trust", preset="voc"))


def test_the_data_term_follows_the_supervision():
    loss = parse(with_loop(name="gradient-descent")).loss
    assert type(build_loop(loss, "scribbles").data_term).__name__ == "PartialCrossEntropy"
    assert type(build_loop(loss, "labels").data_term).__name__ == "CrossEntropy"
    named = parse(table("loss.data-term=cross-entropy")).loss
    assert type(build_loop(named, "scribbles").data_term).__name__ == "CrossEntropy"


def test_several_data_terms():
    terms = [{"name": "partial-cross-entropy"}, {"name": "size-bounds", "weight": 0.1, "upper": [1, 0.5]}]
    content = with_loop(name="gradient-descent")
    content["loss"]["data-term"] = ["partial-cross-entropy", terms[1]]
    config = parse(content)
    assert config.loss.data_term == terms
    data_term = build_loop(config.loss, "scribbles").data_term
    assert data_term.weights == {"partial-cross-entropy": 1.0, "size-bounds": 0.1}
    assert data_term.terms["size-bounds"].upper == (1.0, 0.5)
    assert parse(config.dump()) == config


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ({"name": "size-bound"}, "no data-term called 'size-bound'. Did you mean 'size-bounds'"),
        ({"name": "entropy", "lower": [0.1]}, "'entropy' has no setting 'lower'"),
        ({"weight": 2.0}, "data-term.* needs a name"),
    ],
)
def test_invalid_data_terms(term, words):
    content = with_loop(name="gradient-descent")
    content["loss"]["data-term"] = ["partial-cross-entropy", term]
    with pytest.raises(UsageError, match=words):
        parse(content)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), "much", True])
def test_weights_of_data_terms(weight):
    content = with_loop(name="gradient-descent")
    content["loss"]["data-term"] = [{"name": "partial-cross-entropy", "weight": weight}]
    with pytest.raises(UsageError, match="weight of a data term"):
        build_loop(parse(content).loss, "scribbles")


def test_every_experiment_file_is_valid():
    """The configurations that the documentation refers to."""
    files = sorted((Path(__file__).resolve().parents[2] / "docs" / "experiments").glob("*.toml"))
    assert files
    for path in files:
        read(path)
