"""Cross-validation: how groups are dealt, what a fold trains on and is scored by, and the table of all."""

import json

import pytest
from small_data import settings, toml

from regloss.apps.cross_validation import read_table, table_of, train_folds
from regloss.apps.evaluate import evaluate_run
from regloss.dataset import Dataset
from regloss.errors import UsageError
from regloss.training.config import parse
from regloss.training.folds import FoldedDataset, deal, open_dataset
from regloss.training.run_parts import build

GROUPS = [f"patient{number:02d}" for number in range(11)]


@pytest.mark.parametrize("folds", [2, 3, 5, 11])
def test_every_group_is_left_out_once(folds):
    found = deal(GROUPS, folds)
    sizes = [list(found.values()).count(fold) for fold in range(folds)]
    assert sum(sizes) == 11
    assert max(sizes) - min(sizes) <= 1
    assert found == deal(GROUPS[::-1], folds)  # whatever their order
    assert list(found) != sorted(found)


def test_strata_are_spread_evenly():
    names = [f"{kind}{number}" for kind, count in (("healthy", 7), ("ill", 5)) for number in range(count)]
    found = deal(names, 3, r"^(\D+)")
    for kind, count in (("healthy", 7), ("ill", 5)):
        sizes = [sum(place == fold for name, place in found.items() if name.startswith(kind)) for fold in range(3)]
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
    for wrong, message in (("(", "no regular expression"), ("a", "0 capturing groups"), ("(x)", "does not match")):
        with pytest.raises(UsageError, match=message):
            deal(names, 3, wrong)


def folded(images, output, *changes):
    return settings(images, output, "data.split={}", 'data.group="(i[0-9])"', "data.folds=3", *changes)


def test_parts_of_a_data_set(images, tmp_path):
    parts = []
    for fold in range(3):
        data = open_dataset(parse(folded(images, tmp_path, f"data.fold={fold}", "data.train=all")).data)
        train, test = set(data.ids("all")), set(data.ids("test"))
        assert not train & test
        assert len(train | test) == 8
        data.check("all")
        data.check("test", need=("label",))
        assert data.load(min(test)).id == min(test)
        assert any(f"Fold {fold} of 0 to 2 is left out of 'all'" in note for note in data.notes)
        parts.append(test)
    assert set.union(*parts) == {f"i{number}" for number in range(8)}
    assert sum(map(len, parts)) == 8


def test_what_a_model_and_the_memory_of_samples_need_is_the_whole_sets(images, tmp_path):
    """A model whose card lacked the spacing would see images of other spacings as they are, without a word."""
    whole = open_dataset(parse(settings(images, tmp_path)).data)
    whole.spacing, whole.window = (3.0, 0.5), (0.0, 200.0)
    data = FoldedDataset(whole, "all", "test", 2, 0)
    for name in set(Dataset.__annotations__) - {"notes"}:
        assert getattr(data, name) == getattr(whole, name), name
    assert data.files_of("i0") == whole.files_of("i0") != []


def test_groups_stay_together(images, tmp_path):
    config = parse(folded(images, tmp_path, "data.fold=0", "data.folds=2", 'data.group="i([0-3]?)"', "data.train=all"))
    with pytest.raises(UsageError, match=r"does not match .* ids: i4"):
        open_dataset(config.data)
    config = parse(folded(images, tmp_path, "data.fold=1", "data.folds=9", "data.train=all"))
    with pytest.raises(UsageError, match="folds = 9 needs as many groups in the training subset; there are 8"):
        open_dataset(config.data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], r"data\.folds = 3: say which is left out, --fold 0 to 2, or train all: --fold all"),
        (["data.fold=3"], "There is no fold 3: folds = 3, so they are 0 to 2"),
        (["data.fold=1", "data.test="], r'is scored as data\.test, which is ""'),
        (["data.fold=1", "data.folds="], r"data\.fold and data\.stratify belong to data\.folds"),
    ],
)
def test_what_does_not_fit(images, tmp_path, changes, message):
    table = folded(images, tmp_path / "run", "data.train=all", *changes)
    table["data"] = {key: value for key, value in table["data"].items() if value != "" or key == "test"}
    with pytest.raises(UsageError, match=message):
        build(parse(table))


def test_all_folds_and_their_table(images, tmp_path):
    table = folded(images, tmp_path / "cv", "data.train=all", "training.epochs=1", "loss.outer-loop={name='adm'}")
    table["loss"] = {"outer-loop": {"name": "gradient-descent"}}
    file = tmp_path / "cv.toml"
    file.write_text(toml(table))
    said = []
    train_folds(file, "1", callback=said.append)
    assert any("is left out" in message for message in said)
    found = json.loads((tmp_path / "cv" / "folds.json").read_text())
    assert (list(found["folds"]), found["missing"]) == (["fold-1"], [0, 2])
    assert "Not trained yet: folds 0, 2." in read_table(tmp_path / "cv")
    with pytest.raises(UsageError, match="fold-1 exists already"):
        train_folds(file, "all", callback=said.append)
    assert not (tmp_path / "cv" / "fold-0").exists()  # nothing begins that does not end
    output = train_folds(file, "all", overwrite=True, callback=said.append)
    found = table_of(output, 3, "test")
    assert (list(found["folds"]), found["missing"]) == (["fold-0", "fold-1", "fold-2"], [])
    dice = [row["mean-foreground-dice"] for row in found["folds"].values()]
    assert found["mean"]["mean-foreground-dice"] == pytest.approx(sum(dice) / 3)
    lines = read_table(output).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["fold-0", "fold-1", "fold-2", "mean", "deviation"]
    assert f"{dice[2]:.4f}" in lines[3]
    # A trained fold is scored on what it was left out of.
    assert evaluate_run(output / "fold-2", "test")["mean-foreground-dice"] == pytest.approx(dice[2])
    for fold, message in (("3", "--fold takes 0 to 2"), ("x", "--fold takes 0 to 2"), ("-1", "--fold takes 0 to 2")):
        with pytest.raises(UsageError, match=message):
            train_folds(file, fold)
    with pytest.raises(UsageError, match=r"has no folds\. Set data.folds"):
        train_folds(file, "0", ["data.folds=''"])
