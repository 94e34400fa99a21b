"""Every device that there is, and the same work on it and, in double precision, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from places import Work, found_and_exact
from quick_training import _no_tensorboard, _quick_report  # noqa: F401 - fixtures
from training_runs import images, quick_processes  # noqa: F401 - fixtures

from regloss.testing.suite import assert_close, available_devices


@pytest.fixture(params=available_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one; `test_there_is_a_gpu` says where there is none."""
    return torch.device(request.param)


@pytest.fixture
def agrees(device: torch.device) -> Callable[[Work, float], None]:
    """``agrees(work, tolerance)``: what work gives in single precision on the device is what it gives in double."""

    def compare(work: Work, tolerance: float) -> None:
        pairs = found_and_exact(work, device)
        assert pairs
        for number, (found, exact) in enumerate(pairs):
            assert_close(found, exact, tolerance, f"result {number} on {device.type}")

    return compare
