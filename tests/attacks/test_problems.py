from __future__ import annotations

import collections

import pytest
from attacks.problems import attack


def check(seeds: range) -> collections.Counter[str]:
    kinds: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        outcome = attack(seed)
        assert not outcome.fault, outcome.fault
        kinds[outcome.kind] += 1
    return kinds


def test_random_problems() -> None:
    kinds = check(range(200))
    assert kinds["solved"] > 120  # or the attack attacks nothing


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_many_random_problems(part: int) -> None:
    check(range(1000 * part + 200, 1000 * (part + 1) + 200))
