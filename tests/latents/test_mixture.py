"""How a mixture is fitted."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import torch

from fldd_lightning.latents import MixtureLatent
from fldd_lightning.latents.mixture import MixturePosterior
from fldd_lightning.latents.tables import count_all
from fldd_lightning.spec import Spec
from some_latents import clustered

SIZE = 4


def test_fit_finds_clusters_and_no_more_of_them() -> None:
    x = clustered(4_000)
    latent = MixtureLatent(Spec(4, (12,), 2), size=64)
    fit_ = latent.fit(x)
    # log 4 for the cluster; in it, 0.85 for the typical value and 0.05 for each of the three others
    entropy = torch.tensor([0.85, 0.05, 0.05, 0.05])
    optimum = float(torch.tensor(4.0).log() - 12 * (entropy * entropy.log()).sum())
    assert fit_["nll"] < optimum + 0.3 < fit_["nll_marginals"] - 2
    assert fit_["values"] in (4, 16)
    torch.testing.assert_close(latent.log_prior.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(latent.log_conditional[..., :4].exp().sum(1), torch.ones(12, 4))


def test_fit_of_independent_coordinates_has_one_latent() -> None:
    x = torch.randint(4, (2_000, 12), generator=torch.Generator().manual_seed(0))
    latent = MixtureLatent(Spec(4, (12,), 2), size=16)
    assert latent.fit(x)["values"] == 1
    assert float(latent.posterior(x).kl().max()) == 0
    assert int(latent.posterior(x).likely().max()) == 0


def test_more_rounds_are_never_less_likely() -> None:
    """Expectation maximisation ascends what it maximises; smoothing is a prior that hardly counts here."""
    x = clustered(2_000)
    values = []
    for rounds in (1, 2, 4, 8, 16):
        latent = MixtureLatent(Spec(4, (12,), 2), size=SIZE, smoothing=1e-6)
        values.append(_nll_after(latent, x, rounds))
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(values))
    assert values[-1] < values[0] - 0.5


def _nll_after(latent: MixtureLatent, x: torch.Tensor, rounds: int) -> float:
    with patch("fldd_lightning.latents.mixture._ITERATIONS", rounds):
        counts = count_all(x, latent.spec)
        log_prior, log_conditional = latent._maximise(x, SIZE, counts / counts.sum(-2, keepdim=True))
    return float(MixturePosterior(x, log_prior, log_conditional).nll().mean())


def test_padding_says_nothing_of_the_latent() -> None:
    x = clustered(2_000, num_classes=4)
    pad = 4
    x[torch.arange(len(x)) % 2 == 0, 8:] = pad
    latent = MixtureLatent(Spec(5, (12,), 2, padded=True), size=16)
    latent.fit(x)
    assert (latent.log_conditional[:, pad] == 0).all()
    torch.testing.assert_close(latent.log_conditional[:, :pad, :4].exp().sum(1), torch.ones(12, 4))
    only_pad = torch.full((1, 12), pad)
    torch.testing.assert_close(latent.posterior(only_pad).log_q[0], latent.log_prior)
    assert float(latent.posterior(only_pad).kl()) == 0
