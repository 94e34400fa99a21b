"""Denoising: closed forms, an independent method, certificates, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regloss import (
    PDHG,
    GridCRF,
    MissingForm,
    NonlocalTV,
    Status,
    Sum,
    TotalVariation,
    UsageError,
    denoise,
)
from regloss.solver import Progress, Solution

TIGHT: dict[str, Any] = {"tolerance": 1e-13, "max_steps": 20000}
REGULARIZERS = [
    TotalVariation(0.2),
    TotalVariation(0.2, isotropic=True),
    TotalVariation(0.2, edge_scale=30.0),
    NonlocalTV(0.1, neighbors=4, sigma_rgb=0.3),
    Sum([TotalVariation(0.1), NonlocalTV(0.1, neighbors=4, sigma_rgb=0.3)]),
]


def noisy(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    clean = torch.zeros(shape, dtype=torch.float64)
    clean[..., : shape[-1] // 2] = 1.0
    return clean + 0.2 * torch.randn(shape, generator=random, dtype=torch.float64)


def test_two_pixels_approach_each_other() -> None:
    """Each moves by the weight, until they meet."""
    image = torch.tensor([[[[0.2, 1.0]]]], dtype=torch.float64)
    for weight, expected in ((0.1, [0.3, 0.9]), (0.4, [0.6, 0.6]), (2.0, [0.6, 0.6])):
        found = denoise(image, TotalVariation(weight), **TIGHT)
        assert found.image.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_a_line_against_its_exact_solution() -> None:
    """In 1D the running sums of u are the taut string through a tube around those of f."""
    f = noisy(1, 1, 30)
    weight = 0.35
    found = denoise(f, TotalVariation(weight), **TIGHT).image.flatten()
    sums = torch.cumsum(found - f.flatten(), 0)
    assert float(sums.abs().max()) <= weight + 1e-6  # within the tube
    assert float(sums[-1]) == pytest.approx(0, abs=1e-9)
    for place, jump in enumerate(found.diff().tolist()):
        if abs(jump) > 1e-4:  # the string bends only where it touches the tube
            assert float(sums[place]) == pytest.approx(weight if jump > 0 else -weight, abs=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_certificates(regularizer: Any, compiled: bool) -> None:
    """Energy by the definition, and nothing below the bound."""
    f = noisy(2, 3, 8, 7)
    term = regularizer.bind(f.clamp(0, 1))

    def energy(u: Tensor) -> Tensor:
        return (u - f).square().flatten(1).sum(1) / 2 + term.energy(u)

    best = denoise(f, regularizer, solver=PDHG(compiled=compiled), **TIGHT)
    assert best.status == (Status.CONVERGED,) * 2
    for steps in (1, 10, 60):
        found = denoise(f, term, solver=PDHG(compiled=compiled), tolerance=0.0, max_steps=steps)
        assert found.steps.tolist() == [steps] * 2
        assert found.violation.tolist() == [0, 0]
        torch.testing.assert_close(found.energy, energy(found.image), rtol=1e-12, atol=1e-12)
        assert bool((found.bound <= best.energy + 1e-12).all())
        error = (found.image - best.image).square().flatten(1).sum(1) / 2
        assert bool((error <= found.gap + 1e-9).all())
    random = torch.Generator().manual_seed(3)
    for scale in (1e-3, 0.03, 0.3):
        other = best.image + scale * torch.randn(f.shape, generator=random, dtype=torch.float64)
        assert bool((energy(other) > best.energy).all())


def test_against_another_method() -> None:
    """Chambolle's iteration in scikit-image minimises the isotropic energy with the same differences."""
    restoration = pytest.importorskip("skimage.restoration")
    f = noisy(1, 1, 24, 20)
    found = denoise(f, TotalVariation(0.15, isotropic=True), **TIGHT).image
    theirs = restoration.denoise_tv_chambolle(f[0, 0].numpy(), weight=0.15, eps=1e-14, max_num_iter=20000)
    np.testing.assert_allclose(found[0, 0].numpy(), theirs, rtol=0, atol=2e-3)


def test_what_does_not_change() -> None:
    """The mean stays, a constant comes out as it went in, shifts and scales pass through."""
    f = noisy(1, 2, 9, 8)
    plain = denoise(f, TotalVariation(0.2), **TIGHT).image
    torch.testing.assert_close(plain.mean((2, 3)), f.mean((2, 3)), rtol=0, atol=1e-12)
    moved = denoise(5 * f + 3, TotalVariation(5 * 0.2), **TIGHT).image
    torch.testing.assert_close(moved, 5 * plain + 3, rtol=0, atol=1e-5)
    flat = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(denoise(flat, "tv").image, flat)
    torch.testing.assert_close(denoise(f, TotalVariation(0.0)).image, f)


def test_regions_guides_and_warm_starts() -> None:
    f = noisy(1, 1, 10, 12)
    roi = torch.ones(1, 10, 12, dtype=torch.bool)
    roi[:, :, 6:] = False
    found = denoise(f, TotalVariation(0.2), roi=roi, **TIGHT)
    assert torch.equal(found.image[..., 6:], f[..., 6:])
    alone = denoise(f[..., :6], TotalVariation(0.2), **TIGHT)
    torch.testing.assert_close(found.image[..., :6], alone.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.energy, alone.energy, rtol=1e-9, atol=0)
    # Edges of the guide, not of the noise: across the jump hardly anything is smoothed.
    guide = torch.zeros(1, 1, 10, 12)
    guide[..., :6] = 1
    kept = denoise(f, TotalVariation(0.2, edge_scale=1e4), guide=guide, **TIGHT).image
    assert float((kept[..., 5] - kept[..., 6]).mean()) > float((found.image[..., 4] - found.image[..., 5]).mean()) + 0.8
    again = denoise(f, TotalVariation(0.2), roi=roi, warm=found, tolerance=1e-10)
    assert again.steps.tolist() == [0]


def test_types_observers_and_arguments() -> None:
    f = noisy(2, 1, 8, 8).to(torch.float16)
    kept = f.clone()
    looks: list[Progress] = []
    found = denoise(f, {"name": "tv", "weight": 0.1}, callback=looks.append, tolerance=1e-8)
    assert isinstance(found, Solution)
    assert found.image.dtype == torch.float16
    assert torch.equal(f, kept)
    assert looks[0].steps == 0
    assert bool((looks[-1].energy - looks[-1].bound <= 1e-8 * 64).all())
    assert not denoise(f.float().requires_grad_(), "tv").image.requires_grad


def test_bad_input() -> None:
    f = torch.rand(1, 1, 5, 5)
    with pytest.raises(UsageError, match="NaN"):
        denoise(f * torch.nan, "tv")
    with pytest.raises(UsageError, match=r"\(B, C, \*S\)"):
        denoise(f[0, 0], "tv")
    with pytest.raises(UsageError, match="floating point"):
        denoise((f > 0.5), "tv")
    with pytest.raises(MissingForm, match="saddle form"):
        denoise(f, GridCRF())
    with pytest.raises(UsageError, match="alpha-expansion"):
        denoise(f, "tv", solver="alpha-expansion")
    with pytest.raises(UsageError, match="bound"):
        denoise(f, TotalVariation().bind(f), guide=f)
    with pytest.raises(UsageError, match="fit the bound"):
        denoise(f, TotalVariation().bind(torch.rand(1, 1, 6, 5)))
    with pytest.raises(UsageError, match="tolerance"):
        denoise(f, "tv", tolerance=-1.0)
    with pytest.raises(UsageError, match="needs a regularizer"):
        denoise(f, None)
    with pytest.raises(UsageError, match="warm"):
        denoise(f, "tv", warm=f)
