"""Scores of phases without names: by hand on tiny cases, the best match against all subsets, and merging."""

import itertools
import json

import pytest
import torch

from regloss.errors import UsageError
from regloss.metrics.foreground import RULES, ForegroundScores

TRUTH = torch.tensor(
    [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 255],
        [0, 0, 0, 0, 0],
    ]
)


def scored(prediction, truth=TRUTH, phases=2):
    scores = ForegroundScores(phases)
    scores.update(prediction, truth, "one")
    return scores.compute()


def by_definition(prediction, truth, foreground):
    """F, IoU and accuracy, pixel by pixel."""
    counted = truth != 255
    wanted, found = (truth > 0)[counted], torch.isin(prediction, torch.tensor(foreground))[counted]
    hits, union = int((wanted & found).sum()), int((wanted | found).sum())
    total = int(wanted.sum() + found.sum())
    agree = float((wanted == found).double().mean())
    return (2 * hits / total if total else 1.0, hits / union if union else 1.0, agree)


def values(result):
    return result["f-measure"], result["foreground-iou"], result["accuracy"]


def test_by_hand():
    # Two of the four pixels found, one beside them; the pixel without a label does not count.
    prediction = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    result = scored(prediction)
    for rule in RULES:
        assert values(result[rule]) == pytest.approx((4 / 7, 2 / 5, 16 / 19), rel=1e-14)
    assert result["images"] == {"one": {rule: result[rule] for rule in RULES}}
    json.dumps(result, allow_nan=False)


def test_numbering_matters_to_the_last_rule_alone():
    prediction = (TRUTH != 1).long()
    result = scored(prediction)
    assert values(result["best"]) == values(result["border"]) == (1.0, 1.0, 1.0)
    assert values(result["last"]) == (0.0, 0.0, 0.0)


def test_border_is_a_prior_that_can_be_wrong():
    truth = torch.zeros(4, 4, dtype=torch.long)
    truth[0] = truth[:, 0] = truth[3] = 1  # the object has most of the border
    result = scored(truth, truth)
    assert values(result["best"]) == values(result["last"]) == (1.0, 1.0, 1.0)
    assert values(result["border"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("phase", [0, 1])
def test_one_phase_scores_as_everything_at_best(phase):
    result = scored(torch.full_like(TRUTH, phase))
    assert values(result["best"]) == pytest.approx((8 / 23, 4 / 19, 4 / 19), rel=1e-14)
    assert values(result["border"]) == (0.0, 0.0, 15 / 19)


def test_nothing_to_find():
    truth = torch.zeros(3, 4, dtype=torch.long)
    assert values(scored(truth, truth)["last"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("seed", "phases"), list(itertools.product(range(5), (2, 3, 5))))
def test_best_is_that_of_all_subsets(seed, phases):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (7, 9), generator=generator)
    truth[torch.rand(7, 9, generator=generator) < 0.1] = 255
    prediction = torch.randint(phases, (7, 9), generator=generator)
    result = scored(prediction, truth, phases)
    proper = [s for size in range(1, phases) for s in itertools.combinations(range(phases), size)]
    assert result["best"]["foreground-iou"] == pytest.approx(
        max(by_definition(prediction, truth, subset)[1] for subset in proper), rel=1e-14
    )
    assert values(result["last"]) == pytest.approx(by_definition(prediction, truth, range(1, phases)), rel=1e-14)


@pytest.mark.parametrize(
    ("inside", "outside", "best"),
    [
        ((99, 1), (20, 0), 99 / 120),  # the purer phase is next to nothing
        ((0, 0), (0, 7), 1.0),  # nothing to find, and a phase that nobody has
        ((9, 1, 0), (0, 1, 0), 10 / 11),  # all but a phase that nobody has
        ((30, 60, 5), (1, 10, 0), 90 / 106),
    ],
)
def test_best_is_not_always_the_purest(inside, outside, best):
    sizes = [*inside, *outside]
    pixels = [place % len(inside) for place, size in enumerate(sizes) for _ in range(size)]
    truth = [int(place < len(inside)) for place, size in enumerate(sizes) for _ in range(size)]
    result = scored(torch.tensor([pixels]), torch.tensor([truth]), len(inside))
    assert result["best"]["foreground-iou"] == pytest.approx(best, rel=1e-14)


def test_volumes_and_more_classes_than_one_object():
    truth = torch.randint(3, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    result = scored((truth > 0).long(), truth)
    assert values(result["best"]) == values(result["last"]) == (1.0, 1.0, 1.0)


def test_merging_is_scoring_together():
    generator = torch.Generator().manual_seed(1)
    images = [(torch.randint(2, (4, 5), generator=generator), TRUTH, f"image {number}") for number in range(4)]
    together, halves = ForegroundScores(2), [ForegroundScores(2), ForegroundScores(2)]
    for number, image in enumerate(images):
        together.update(*image)
        halves[number % 2].update(*image)
    merged = ForegroundScores(2)
    for half in halves:
        merged.merge_state(half)
    assert merged.compute() == together.compute()
    with pytest.raises(UsageError, match=r"image 0, image 2 are in both"):
        merged.merge_state(halves[0])
    with pytest.raises(UsageError, match="as many phases"):
        merged.merge_state(ForegroundScores(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.update(TRUTH[:2], TRUTH, "a"), "same shape"),
        (lambda s: s.update(TRUTH + 1, TRUTH, "a"), r"phases 0 to 1; found \[2\]"),
        (lambda s: [s.update(TRUTH.clamp(max=1), TRUTH, "a") for _ in range(2)], "scored already"),
        (lambda s: s.compute(), "nothing to score"),
        (lambda s: ForegroundScores(1), "2 to 255 phases"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message):
        call(ForegroundScores(2))
