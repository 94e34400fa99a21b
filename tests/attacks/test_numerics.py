from __future__ import annotations

import collections

import pytest
from attacks.numerics import KINDS, attack


def check(seeds: range) -> collections.Counter[tuple[str, str]]:
    kinds: collections.Counter[tuple[str, str]] = collections.Counter()
    for seed in seeds:
        outcome = attack(seed)
        assert not outcome.fault, outcome.fault
        kinds[outcome.kind, outcome.name] += 1
    return kinds


def test_random_numbers() -> None:
    kinds = check(range(80))
    assert {kind for kind, _ in kinds} == {*KINDS}
    assert sum(count for (_, name), count in kinds.items() if name != "refused") > 70  # or the attack attacks nothing


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_random_numbers(part: int) -> None:
    check(range(1000 * part + 80, 1000 * (part + 1) + 80))
