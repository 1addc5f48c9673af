"""How a mixture is fitted."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import torch

from fldd_lightning.codes import MixtureCode
from fldd_lightning.codes.mixture import _posterior
from fldd_lightning.codes.tables import count_all
from fldd_lightning.problem import Problem
from some_codes import clustered

SIZE = 4


def test_fit_finds_clusters_and_no_more_of_them() -> None:
    x = clustered(4_000)
    code = MixtureCode(Problem(4, (12,), 2), size=64)
    fit_ = code.fit(x)
    # log 4 for the cluster; in it, 0.85 for the typical value and 0.05 for each of the three others
    entropy = torch.tensor([0.85, 0.05, 0.05, 0.05])
    optimum = float(torch.tensor(4.0).log() - 12 * (entropy * entropy.log()).sum())
    assert fit_["nll"] < optimum + 0.3 < fit_["nll_marginals"] - 2
    assert fit_["codes"] in (4, 16)
    torch.testing.assert_close(code.log_prior.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(code.log_conditional[..., :4].exp().sum(1), torch.ones(12, 4))


def test_fit_of_independent_coordinates_has_one_code() -> None:
    x = torch.randint(4, (2_000, 12), generator=torch.Generator().manual_seed(0))
    code = MixtureCode(Problem(4, (12,), 2), size=16)
    assert code.fit(x)["codes"] == 1
    assert float(code.posterior(x).kl().max()) == 0
    assert int(code.posterior(x).likely().max()) == 0


def test_more_rounds_are_never_less_likely() -> None:
    """Expectation maximisation ascends what it maximises; smoothing is a prior that hardly counts here."""
    x = clustered(2_000)
    values = []
    for rounds in (1, 2, 4, 8, 16):
        code = MixtureCode(Problem(4, (12,), 2), size=SIZE, smoothing=1e-6)
        values.append(_nll_after(code, x, rounds))
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(values))
    assert values[-1] < values[0] - 0.5


def _nll_after(code: MixtureCode, x: torch.Tensor, rounds: int) -> float:
    with patch("fldd_lightning.codes.mixture._ITERATIONS", rounds):
        counts = count_all(x, code.problem)
        log_prior, log_conditional = code._maximise(x, SIZE, counts / counts.sum(-2, keepdim=True))
    return float(_posterior(x, log_prior, log_conditional).nll().mean())


def test_padding_says_nothing_of_the_code() -> None:
    x = clustered(2_000, num_classes=4)
    pad = 4
    x[torch.arange(len(x)) % 2 == 0, 8:] = pad
    code = MixtureCode(Problem(5, (12,), 2, padded=True), size=16)
    code.fit(x)
    assert (code.log_conditional[:, pad] == 0).all()
    torch.testing.assert_close(code.log_conditional[:, :pad, :4].exp().sum(1), torch.ones(12, 4))
    only_pad = torch.full((1, 12), pad)
    torch.testing.assert_close(code.posterior(only_pad).log_q[0], code.log_prior)
    assert float(code.posterior(only_pad).kl()) == 0
