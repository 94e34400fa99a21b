"""Compiled mixtures of normals, against the tensor version and plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from regloss_plugins.kernels.mixtures import fit_mixture, mixture_costs
from regloss_plugins.region_forces.gaussian_mixture import mixture_costs_by_tensors


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize(("channels", "pixels"), [(1, 5), (3, 64), (4, 200)])
def test_costs(dtype: Any, error: float, channels: int, pixels: int) -> None:
    """Of blocks that are full and others; of components that do not count, near ones and far ones."""
    rng = np.random.default_rng(0)
    features = rng.random((channels, pixels)).astype(dtype)
    whiten = np.tril(10 * rng.standard_normal((2, 3, channels, channels))).astype(dtype)
    shift, scale = rng.standard_normal((2, 3, channels)).astype(dtype), rng.standard_normal((2, 3)).astype(dtype)
    scale[1, 0] = -np.inf
    costs = np.empty((2, pixels), dtype)
    mixture_costs(features, whiten, shift, scale, costs)
    rows = np.einsum("kmij,jp->kmip", whiten.astype(float), features.astype(float)) + shift[..., None]
    logs = scale[..., None] - (rows**2).sum(2) / 2
    expected = -logsumexp(logs, axis=1)
    np.testing.assert_allclose(costs, expected, atol=error, rtol=error)
    tensors = [torch.from_numpy(values).unsqueeze(0) for values in (features, whiten, shift, scale)]
    np.testing.assert_allclose(mixture_costs_by_tensors(*tensors)[0], expected, atol=error, rtol=error)


def test_a_step_is_that_of_expectation_maximisation() -> None:
    """One more step, written out in numpy."""
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0.3, 0.1, (80, 2)), rng.normal(0.6, 0.1, (50, 2))])
    weights = rng.random(130) + 0.1
    share, mean, covariance = fit_mixture(values, weights, 3, 10.0, 1e-4, 4)
    logs = np.stack(
        [
            np.log(share[m])
            - np.linalg.slogdet(covariance[m])[1] / 2
            - np.einsum("pi,ij,pj->p", values - mean[m], np.linalg.inv(covariance[m]), values - mean[m]) / 2
            for m in range(3)
        ]
    )
    members = weights * np.exp(logs - logsumexp(logs, axis=0))
    mass = members.sum(1)
    means = members @ values / mass[:, None]
    found = fit_mixture(values, weights, 3, 10.0, 1e-4, 5)
    np.testing.assert_allclose(found[0], mass / mass.sum(), rtol=1e-9)
    np.testing.assert_allclose(found[1], means, rtol=1e-9)
    for m in range(3):
        centred = values - means[m]
        np.testing.assert_allclose(found[2][m], (members[m, :, None] * centred).T @ centred / mass[m], rtol=1e-7)


def test_what_is_given_stays_as_it_is() -> None:
    values, weights = np.random.default_rng(2).random((40, 3)), np.ones(40)
    before = values.copy()
    fit_mixture(values, weights, 2, 10.0, 1e-4, 3)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(weights, 1)
