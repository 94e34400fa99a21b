"""Splitting: conformance, the closed form of its w-step, and that alternation lowers the energy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regloss
from regloss import ELBO, Batch, MissingForm, NonlocalTV, Splitting, StarShape, TotalVariation, UsageError
from regloss.grid import forward_differences
from regloss.testing import OuterLoopConformance


class TestIsotropic(OuterLoopConformance):
    def make(self):
        return Splitting(TotalVariation(0.3, isotropic=True), coupling=2.0)


class TestAnisotropic(OuterLoopConformance):
    def make(self):
        return Splitting(TotalVariation(0.3), coupling={"start": 1.0, "end": 4.0})


class TestSeveral(OuterLoopConformance):
    """Nearest neighbours differ between an image and its crop, so that comparison needs a local regularizer."""

    def make(self):
        return Splitting([TotalVariation(0.2), TotalVariation(0.1, isotropic=True, edge_scale=3.0)], coupling=2.0)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_w_step_is_that_of_the_oracle(oracles):
    """An interior point method's, at gradients of which one is exactly 0; 1e-9."""
    data = np.load(oracles / "deepcv.npz")
    gradients, nu, coupling = torch.from_numpy(data["gradS"]), float(data["nu"]), float(data["lam"])
    assert bool((gradients.norm(dim=0) == 0).any())
    loop = Splitting(TotalVariation(nu, isotropic=True), coupling=coupling)
    # The oracle's gradients are those of no image, so the projection is called as `split` calls it, on a grid with one
    # row and column more, where every one of them is that of two pixels.
    (part,) = loop.regularizer.bind(images(1, 1, 7, 6)).form(regloss.Saddle).parts
    z = torch.zeros(1, 1, 2, 7, 6, dtype=torch.float64)
    z[0, 0, :, :6, :5] = gradients
    w = z - part.dual_set.project(coupling * z) / coupling
    torch.testing.assert_close(w[0, 0, :, :6, :5], torch.from_numpy(data["w"]), rtol=0, atol=1e-9)
    assert bool(w.isfinite().all())


@pytest.mark.parametrize("isotropic", [True, False])
def test_w_step_is_shrinkage_and_leaves_the_huber_function(isotropic):
    """|g| <= nu / lambda: w = 0 and lambda |g|^2 / 2; else nu |g| - nu^2 / (2 lambda)."""
    nu, coupling = 0.4, 2.5
    batch = Batch(images(2, 1, 7, 6), None)
    u = (3 * images(2, 2, 7, 6, seed=1)).softmax(1)
    u[0, :, :3] = 0.5  # gradients that are exactly 0
    loop = Splitting(TotalVariation(nu, isotropic=isotropic), coupling=coupling)
    (w,) = loop.split(u, batch)
    g = forward_differences(u, 2)
    size = g.norm(dim=2, keepdim=True) if isotropic else g.abs()
    assert float(size.max()) > nu / coupling > float(size[size > 0].min())
    expected = torch.where(size > 0, (size - nu / coupling).clamp(min=0) * g / size, 0)
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-14)
    huber = torch.where(size <= nu / coupling, coupling * size**2 / 2, nu * size - nu**2 / (2 * coupling))
    torch.testing.assert_close(loop.split_energy(u, (w,), batch), huber.flatten(1).sum(1), rtol=1e-12, atol=0)


def test_no_other_w_is_better():
    """Of random neighbours, near and far; the energy is convex in w."""
    batch, u = Batch(images(1, 3, 4, 5), None), images(1, 2, 4, 5, seed=1).softmax(1)
    loop = Splitting([TotalVariation(0.02, isotropic=True), NonlocalTV(0.01, neighbors=3)], coupling=1.5)
    split = loop.split(u, batch)
    best = float(loop.split_energy(u, split, batch))
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        moved = tuple(
            w + 10.0 ** -(seed % 4 + 1) * torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in split
        )
        assert float(loop.split_energy(u, moved, batch)) > best


def test_large_coupling_is_the_regularizer():
    logits, batch = images(2, 3, 8, 9, seed=2), Batch(images(2, 1, 8, 9), torch.full((2, 8, 9), 255))
    regularizer = TotalVariation(0.7, isotropic=True)
    Splitting(regularizer, coupling=1e9).objective(logits, batch)
    exact = float(regularizer.bind(batch.image).energy(logits.softmax(1)).mean()) / 72
    loop = Splitting(regularizer, coupling=1e9)
    loop.objective(logits, batch)
    assert loop.parts["regularizer"] == pytest.approx(exact, rel=1e-6)


def test_gradient_in_the_level_set_is_the_formula():
    """S (1 - S) (KL_1 - KL_2 + lambda div(w - grad S(phi))), div = -grad^T, times what the convention counts twice."""
    image = images(1, 1, 6, 7)
    torch.manual_seed(0)
    elbo = ELBO("plain-cnn", "plain-cnn", means=[[-2.0], [2.0]], samples=0, channels=1)
    # Both classes' gradients are as long: half the weight and half the coupling count each boundary once.
    nu, coupling = 0.05, 0.3
    loop = Splitting(TotalVariation(nu / 2, isotropic=True), elbo, coupling=coupling / 2)
    phi = (4 * images(1, 1, 6, 7, seed=1) - 2).requires_grad_()
    loss = loop.objective(torch.cat([torch.zeros_like(phi), phi], dim=1), Batch(image, None)) * 42
    (gradient,) = torch.autograd.grad(loss, phi)
    with torch.no_grad():
        s = phi.sigmoid()
        kl = elbo.divergences(image).double()
        g = forward_differences(s, 2)
        size = g.norm(dim=2, keepdim=True)
        w = torch.where(size > 0, (size - nu / coupling).clamp(min=0) * g / size, 0)
        expected = s * (1 - s) * (kl[:, 1:] - kl[:, :1] - coupling * regloss.grid.forward_differences_adjoint(w - g, 2))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_alternation_lowers_the_energy_of_all_three_variables():
    """E_LS(phi, w, theta) for fixed noise: each w-step, and each gradient step with backtracking, never raises it."""
    image = (images(1, 1, 12, 12) * 0.2 + 0.6 * (torch.arange(12) > 5)).clamp(0, 1)
    batch = Batch(image, None)
    torch.manual_seed(0)
    elbo = ELBO("plain-cnn", "plain-cnn", means=[[-2.0], [2.0]], channels=1, noise_seed=1, fidelity=10.0)
    for module in elbo.modules().values():
        module.double()
    loop = Splitting(TotalVariation(0.5, isotropic=True), elbo, coupling=5.0)
    phi = (0.1 * torch.randn(1, 1, 12, 12, dtype=torch.float64)).requires_grad_()
    theta = [p for module in elbo.modules().values() for p in module.parameters()]

    def energy(w):
        logits = torch.cat([torch.zeros_like(phi), phi], dim=1)
        return (elbo(logits, batch)[0] + loop.split_energy(logits.softmax(1), w, batch)).sum()

    def split():
        return loop.split(torch.cat([torch.zeros_like(phi), phi], dim=1).softmax(1).detach(), batch)

    w = tuple(torch.zeros_like(part) for part in split())
    history = [float(energy(w).detach())]
    rates = {"phi": 1.0, "theta": 1e-3}
    for _ in range(30):
        w = split()
        history.append(float(energy(w).detach()))
        for name, variables in (("phi", [phi]), ("theta", theta)):
            value = energy(w)
            gradients = torch.autograd.grad(value, variables)
            slope = sum(float(g.square().sum()) for g in gradients)
            before = [v.detach().clone() for v in variables]
            while True:
                with torch.no_grad():
                    for variable, start, g in zip(variables, before, gradients, strict=True):
                        variable.copy_(start - rates[name] * g)
                    reached = float(energy(w))
                if reached <= float(value.detach()) - 1e-4 * rates[name] * slope:
                    break
                rates[name] /= 2
                assert rates[name] > 1e-9, "no step lowers the energy: the gradient is wrong"
            rates[name] *= 1.5
            history.append(reached)
    assert max(np.diff(history)) <= 1e-12 * abs(history[0])
    assert history[-1] < 0.5 * history[0]


def test_what_has_no_saddle_form_is_refused():
    with pytest.raises(MissingForm, match="splitting with grid-crf"):
        Splitting("grid-crf")
    with pytest.raises(UsageError, match="needs a regularizer"):
        Splitting(None)
    with pytest.raises(UsageError, match="coupling"):
        Splitting("tv", coupling=0.0)
    with pytest.raises(UsageError, match="coupling"):
        Splitting("tv", coupling={"start": 1.0, "end": 0.0})
    assert isinstance(Splitting(StarShape(center=(3, 3))), regloss.OuterLoop)


def test_networks_of_the_data_term_are_trained_with_it():
    elbo = ELBO("plain-cnn", "plain-cnn")
    loop = Splitting(TotalVariation(0.5, isotropic=True), elbo)
    assert loop.modules() == {"encoder": elbo.encoder, "decoder": elbo.decoder}
    assert Splitting("tv").modules() == {}


def test_an_objective_binds_the_regularizer_once(monkeypatch):
    bound = []
    bind = TotalVariation.bind
    monkeypatch.setattr(TotalVariation, "bind", lambda self, *given: bound.append(self) or bind(self, *given))
    Splitting("tv").objective(images(1, 2, 5, 6), Batch(images(1, 1, 5, 6), torch.zeros(1, 5, 6, dtype=torch.int64)))
    assert len(bound) == 1
