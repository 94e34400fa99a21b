"""Registry: lookup without importing, suggestions, collisions, broken and foreign plugins."""

import subprocess
import sys
from typing import ClassVar

import pytest
import torch

import regloss
from regloss import (
    AmbiguousName,
    BrokenPlugin,
    DataTerm,
    GridCRF,
    MissingForm,
    TotalVariation,
    UnknownComponent,
    UsageError,
    registry,
)
from regloss.errors import MissingDependency
from regloss.registry import KINDS, check_settings, components, create, find, get, load, name_of, names, resolve

OWN = [component for kind in KINDS for component in components(kind) if component.distribution == "regloss"]

A_PRIOR = """
from dataclasses import dataclass
from regloss import TotalVariation

@dataclass(frozen=True)
class Prior(TotalVariation):
    pass

class Outer:
    Inner = Prior
"""


# --------------------------------------------------------------------------------------------------------------------
# Without importing


def modules_after(code):
    """Modules that a fresh interpreter has imported after running ``code``."""
    program = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(finished.stdout.split())


def test_names_import_nothing_heavy():
    found = modules_after("import regloss; regloss.names('solver'); regloss.names('network'); dir(regloss)")
    assert "regloss.registry" in found
    for heavy in ("torch", "numpy", "regloss_plugins", "numba", "pydantic"):
        assert heavy not in found, f"import regloss and names() import {heavy}"


def test_a_component_is_imported_alone():
    found = modules_after("import regloss; regloss.TotalVariation")
    assert "regloss_plugins.regularizers.tv" in found
    for other in ("regloss_plugins.regularizers.grid_crf", "regloss_plugins.solvers.alpha_expansion", "numba"):
        assert other not in found


def test_every_public_name_exists():
    for name in regloss.__all__:
        assert getattr(regloss, name) is not None
    assert set(regloss.__all__) <= set(dir(regloss))
    with pytest.raises(AttributeError, match="GridCFR"):
        regloss.GridCFR  # noqa: B018 - the lookup is what is tested


# --------------------------------------------------------------------------------------------------------------------
# Built-in components


@pytest.mark.parametrize("component", OWN, ids=lambda component: component.qualified)
def test_built_in_components_load(component):
    """Each comes through its entry point and is of its kind; its module says what it does."""
    try:
        cls = load(component)
    except MissingDependency as missing:
        pytest.skip(str(missing))
    assert cls.__doc__
    assert name_of(cls) == component.name
    assert get(component.kind, component.qualified) is cls


def test_contract_names_are_there():
    assert {"grid-crf", "tv"} <= set(names("regularizer"))
    assert {"alpha-expansion", "mean-field", "pymaxflow", "gco"} <= set(names("solver"))
    assert {"kl", "robust-kl", "euclidean"} <= set(names("divergence"))
    assert {"cross-entropy", "partial-cross-entropy"} <= set(names("data-term"))
    assert {"gradient-descent", "adm", "trust-region"} <= set(names("outer-loop"))
    assert {"unet", "deeplabv3plus"} <= set(names("network"))
    assert {"folder", "voc", "sample"} <= set(names("dataset"))
    assert names("solver") == sorted(names("solver"))


# --------------------------------------------------------------------------------------------------------------------
# What users mistype


@pytest.mark.parametrize(("given", "meant"), [("grid_crf", "grid-crf"), ("gridcrf", "grid-crf"), ("tvv", "tv")])
def test_near_names_are_suggested(given, meant):
    with pytest.raises(UnknownComponent, match=rf"no regularizer called '{given}'\. Did you mean '{meant}'"):
        get("regularizer", given)


def test_far_names_list_what_is_known():
    with pytest.raises(UnknownComponent) as caught:
        get("divergence", "zzzzzz")
    assert "Did you mean" not in str(caught.value)
    assert ", ".join(names("divergence")) in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("use", [names, components, lambda kind: get(kind, "tv"), lambda kind: create(kind, "tv")])
def test_unknown_kinds_are_listed(use):
    with pytest.raises(UsageError, match=r"kind of component called 'regulariser'.*regularizer, solver"):
        use("regulariser")


def test_settings_are_checked_by_name():
    with pytest.raises(UsageError, match=r"no setting 'wieght'\. Did you mean 'weight'\?.*weight, connectivity, sigma"):
        create("regularizer", "grid-crf", wieght=2.0)
    with pytest.raises(UsageError, match=r"no setting 'colour'\. Its settings are: weight, isotropic"):
        create("regularizer", "tv", colour=1)
    with pytest.raises(UsageError, match=r"no setting 'epsilon'.*none"):
        create("divergence", "kl", epsilon=0.1)


def test_former_names_of_settings_are_read(registered):
    """By `create`, in tables and by `check_settings`; not both names at once."""

    class Renamed(regloss.Divergence):
        renamed_settings: ClassVar = {"old_name": "new_name"}

        def __init__(self, new_name=1.0):
            self.new_name = new_name

        def of_labels(self, labels, log_probabilities, seeds): ...
        def of_probabilities(self, target, log_probabilities, seeds): ...
        def unary(self, logits): ...

    registered("divergence", "renamed", Renamed)
    assert create("divergence", "renamed", old_name=2.0).new_name == 2.0
    assert resolve("divergence", {"name": "renamed", "old-name": 3.0}).new_name == 3.0
    check_settings("divergence", "renamed", {"old_name": 2.0})
    with pytest.raises(UsageError, match="'old_name' is the former name of the setting 'new_name'"):
        create("divergence", "renamed", old_name=2.0, new_name=1.0)
    with pytest.raises(UsageError, match="Its settings are: new_name"):
        create("divergence", "renamed", older_name=2.0)


def test_settings_of_the_wrong_type_are_shown():
    """As a configuration with quotes around a number gives them."""
    with pytest.raises(UsageError, match=r"damping of mean-field must be a number; got '0'") as caught:
        resolve("solver", {"name": "mean-field", "damping": "0"})
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(MissingForm):  # which is a TypeError too, and keeps its own message
        create("outer-loop", "adm", regularizer={"name": "tv", "isotropic": True})


def test_settings_that_are_needed_are_named():
    with pytest.raises(UsageError, match="'trust-region' cannot be made without: regularizer"):
        create("outer-loop", "trust-region")
    with pytest.raises(UsageError, match="'unet' cannot be made without: in_channels, classes"):
        create("network", "unet", levels=2)


# --------------------------------------------------------------------------------------------------------------------
# resolve: an object, a name or a table


def test_resolve_takes_objects_names_and_tables():
    given = GridCRF(weight=3.0)
    assert resolve("regularizer", given) is given
    assert resolve("regularizer", "tv") == TotalVariation()
    assert resolve("regularizer", {"name": "tv", "weight": 2.0}) == TotalVariation(weight=2.0)
    assert resolve("regularizer", {"name": "regloss:tv", "isotropic": True}) == TotalVariation(isotropic=True)
    assert resolve("solver", {"name": "alpha-expansion", "max-cycles": 7}).max_cycles == 7


def test_resolve_leaves_the_table_alone():
    table = {"name": "alpha-expansion", "max-cycles": 7}
    resolve("solver", table)
    assert table == {"name": "alpha-expansion", "max-cycles": 7}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weight": 2.0}, "needs a name"),
        ({"name": 3}, "needs a name"),
        ({"name": "tv", "isotrop": True}, "Did you mean 'isotropic'"),
        (3, "Expected a regularizer.*grid-crf.*tv.*got int"),
        (TotalVariation, "Expected a regularizer"),
        (None, "got NoneType"),
    ],
)
def test_resolve_refuses_the_rest(given, words):
    with pytest.raises(UsageError, match=words):
        resolve("regularizer", given)


# --------------------------------------------------------------------------------------------------------------------
# register


class Mine(TotalVariation):
    pass


class Other(TotalVariation):
    pass


def test_register_and_unregister():
    regloss.register("regularizer", "mine")(Mine)
    try:
        assert get("regularizer", "mine") is Mine
        assert "mine" in names("regularizer")
        assert name_of(Mine()) == "mine"
        assert find("regularizer", "mine").distribution == ""
    finally:
        regloss.unregister("regularizer", "mine")
    assert "mine" not in names("regularizer")
    with pytest.raises(UnknownComponent, match="registered by hand"):
        regloss.unregister("regularizer", "mine")


def test_a_second_class_of_one_name_is_refused(registered):
    registered("regularizer", "mine", Mine)
    with pytest.raises(UsageError, match=r"registered already.*unregister"):
        regloss.register("regularizer", "mine")(Other)
    assert get("regularizer", "mine") is Mine


def test_a_cell_run_twice_replaces_its_class(registered):
    registered("regularizer", "mine", Mine)
    again = type("Mine", (TotalVariation,), {"__module__": Mine.__module__})
    regloss.register("regularizer", "mine")(again)
    assert get("regularizer", "mine") is again


def test_own_choice_wins_over_what_is_installed(registered):
    registered("regularizer", "grid-crf", Mine)
    assert get("regularizer", "grid-crf") is Mine
    assert get("regularizer", "regloss:grid-crf") is GridCRF


def test_classes_of_another_kind_are_refused():
    with pytest.raises(UsageError, match="GridCRF cannot be a solver: it does not derive from Solver"):
        regloss.register("solver", "mine")(GridCRF)
    with pytest.raises(UsageError, match="kind"):
        regloss.register("prior", "mine")
    assert "mine" not in names("solver")


# --------------------------------------------------------------------------------------------------------------------
# Other distributions


def test_an_installed_plugin_is_found_by_name(installed):
    installed(
        "Their_Priors",
        {"regloss.regularizers": {"theirs": "their_priors:Prior", "nested": "their_priors:Outer.Inner"}},
        {"their_priors": A_PRIOR},
    )
    assert "theirs" in names("regularizer")
    assert "their_priors" not in sys.modules, "looking names up imported the plugin"
    component = find("regularizer", "theirs")
    assert (component.distribution, component.version) == ("their-priors", "1.0")
    assert component.qualified == "their-priors:theirs"
    assert create("regularizer", "theirs", weight=2.0).weight == 2.0
    assert get("regularizer", "nested") is get("regularizer", "their-priors:theirs")
    assert not hasattr(regloss, "Prior"), "a stranger's class must not become an attribute of regloss"


def test_two_distributions_with_one_name(installed):
    """An error only when that name is used; it names the qualified forms, and those work."""
    installed("their-priors", {"regloss.regularizers": {"tv": "their_priors:Prior"}}, {"their_priors": A_PRIOR})
    assert names("regularizer").count("tv") == 1
    assert get("regularizer", "grid-crf") is GridCRF
    for use in (lambda: get("regularizer", "tv"), lambda: resolve("regularizer", {"name": "tv"})):
        with pytest.raises(AmbiguousName, match=r"more than once.*regloss:tv, their-priors:tv"):
            use()
    assert get("regularizer", "regloss:tv") is TotalVariation
    assert get("regularizer", "their-priors:tv").__module__ == "their_priors"


@pytest.mark.parametrize(
    ("source", "target", "cause"),
    [
        ("raise RuntimeError('no licence found')", "broken:Prior", "RuntimeError: no licence found"),
        ("import a_package_that_is_not_there", "broken:Prior", "ModuleNotFoundError: .*a_package_that_is_not_there"),
        ("raise SystemExit(3)", "broken:Prior", "SystemExit: 3"),
        ("def f(:", "broken:Prior", "SyntaxError"),
        ("", "broken:Prior", "AttributeError.*Prior"),
        ("", "not_there:Prior", "ModuleNotFoundError"),
        ("class Prior: pass", "broken:Prior", "not a class derived from regloss.regularizer.Regularizer"),
        ("Prior = 3", "broken:Prior", "not a class derived"),
    ],
)
def test_a_broken_plugin_names_itself_and_breaks_nothing_else(installed, source, target, cause):
    installed("bad-plugin", {"regloss.regularizers": {"bad": target}}, {"broken": source})
    with pytest.raises(BrokenPlugin, match=rf"regularizer 'bad' of distribution 'bad-plugin' \({target}\).*{cause}"):
        get("regularizer", "bad")
    assert "bad" in names("regularizer")
    assert get("regularizer", "tv") is TotalVariation
    assert name_of(TotalVariation()) == "tv"


def test_a_plugin_that_lacks_a_package_says_which_extra_brings_it(installed):
    source = "from regloss import MissingDependency\nraise MissingDependency('install theirs[fast]')"
    installed("their-priors", {"regloss.regularizers": {"fast": "lacking:Prior"}}, {"lacking": source})
    with pytest.raises(MissingDependency, match=r"theirs\[fast\]"):
        get("regularizer", "fast")


def test_a_broken_solver_is_no_suggestion(installed):
    """The message about forms lists solvers that fit, and passes over one that cannot be imported."""
    installed("bad-plugin", {"regloss.solvers": {"bad": "broken:S"}}, {"broken": "raise RuntimeError"})
    term = TotalVariation(isotropic=True).bind(torch.zeros(1, 1, 2, 2))
    with pytest.raises(MissingForm, match=r"alpha-expansion with tv: it offers Saddle") as caught:
        regloss.solve(term, torch.zeros(1, 2, 2, 2), "alpha-expansion")
    assert "bad" not in str(caught.value)


def test_regloss_plugins_limits_what_is_found(installed, monkeypatch):
    installed("first-plugin", {"regloss.regularizers": {"one": "first_plugin:Prior"}}, {"first_plugin": A_PRIOR})
    installed("Second.Plugin", {"regloss.regularizers": {"two": "second_plugin:Prior"}}, {"second_plugin": A_PRIOR})
    assert {"one", "two", "tv"} <= set(names("regularizer"))
    monkeypatch.setenv("REGLOSS_PLUGINS", " second_plugin , ")
    assert {"two", "tv"} <= set(names("regularizer"))
    assert "one" not in names("regularizer")
    with pytest.raises(UnknownComponent):
        get("regularizer", "one")
    monkeypatch.setenv("REGLOSS_PLUGINS", "")
    assert not {"one", "two"} & set(names("regularizer"))
    assert "tv" in names("regularizer")
    monkeypatch.delenv("REGLOSS_PLUGINS")
    assert {"one", "two"} <= set(names("regularizer"))


def test_what_is_installed_while_python_runs_is_seen_after_refresh(tmp_path, monkeypatch):
    before = names("regularizer")
    metadata = tmp_path / "late-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[regloss.regularizers]\nlate = late:Prior\n")
    try:
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            assert names("regularizer") == before
            registry.refresh()
            assert "late" in names("regularizer")
    finally:
        registry.refresh()
    assert names("regularizer") == before


def test_the_throw_away_fixtures_leave_nothing(registered):
    """What other tests registered and installed is gone."""
    assert not {"mine", "theirs", "one", "two", "bad", "late"} & set(names("regularizer"))
    registered("data-term", "throw-away", type("ThrowAway", (DataTerm,), {"__call__": lambda *_: None}))
    assert "throw-away" in names("data-term")
