"""The prior of an autoencoder's latent against the definition of its density, integration and its own samples."""

from __future__ import annotations

import pytest
import torch

from fldd_lightning.latents.autoencoder import FlowPrior, log_normal


def random_prior(size: int, couplings: int, scale: float = 0.15) -> FlowPrior:
    torch.manual_seed(size)
    prior = FlowPrior(size, 3, couplings)
    for p in prior.parameters():
        p.data.copy_(scale * torch.randn(p.shape))
    return prior


@pytest.mark.parametrize("couplings", [0, 1, 4])
def test_density_integrates_to_one_and_samples_follow_it(couplings: int) -> None:
    prior, n = random_prior(2, couplings), 301
    axis = torch.linspace(-12, 12, n)
    grid = torch.cartesian_prod(axis, axis)
    density = prior.log_prob(grid).double().exp().detach() * float(axis[1] - axis[0]) ** 2
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-3)
    drawn = prior.sample(200_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, prior.sample(200_000, torch.Generator().manual_seed(0)))
    for low, high in ((-1.0, 0.0), (0.0, 1.0), (1.0, 3.0)):  # boxes: the two numbers depend on each other
        for other in ((-3.0, 0.0), (0.0, 3.0)):
            ours = [
                (c[:, 0] > low) & (c[:, 0] < high) & (c[:, 1] > other[0]) & (c[:, 1] < other[1]) for c in (grid, drawn)
            ]
            assert float(density[ours[0]].sum()) == pytest.approx(float(ours[1].float().mean()), abs=0.02)


def test_density_is_that_of_the_mixture_times_the_volume() -> None:
    """p(c) = p(u) |det du/dc| by automatic differentiation; and every number depends on every other."""
    prior = random_prior(5, 6).double()

    def bent(c: torch.Tensor) -> torch.Tensor:
        for coupling in prior.couplings:
            shift, log_scale = coupling(c)
            c = (c - shift) / log_scale.exp()
        return c

    latent = prior.sample(8, torch.Generator().manual_seed(0))
    for c in latent:
        jacobian = torch.autograd.functional.jacobian(bent, c)
        assert (jacobian.abs() > 1e-9).all()
        weights = prior.logits.softmax(0)
        mixture = (log_normal(bent(c).unsqueeze(0), prior.mean, prior.log_variance).exp() * weights).sum().log()
        torch.testing.assert_close(prior.log_prob(c.unsqueeze(0))[0], mixture + jacobian.det().abs().log())


def test_flow_starts_as_the_identity_and_one_number_has_none() -> None:
    latent = torch.randn(4, 3)
    normal = log_normal(latent, torch.zeros(3), torch.zeros(3))
    torch.testing.assert_close(FlowPrior(3, 2, 6).log_prob(latent), normal)
    assert len(FlowPrior(1, 2, 6).couplings) == 0
