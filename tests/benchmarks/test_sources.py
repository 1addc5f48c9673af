"""The stated log-probabilities, marginals and entropies are those of what is drawn."""

from __future__ import annotations

import pytest
import torch
from sources import GaussianMixture, HiddenClusters, KnownSource, MarkovChain, RandomWalk, XORBlocks

from fldd_lightning import FLDDError

# Small enough that every x can be enumerated.
SMALL = [
    lambda **kw: GaussianMixture(components=3, num_classes=12, **kw),
    lambda **kw: RandomWalk(length=4, num_classes=5, **kw),
    lambda **kw: XORBlocks(**kw),
    lambda **kw: HiddenClusters(clusters=3, length=4, num_classes=3, **kw),
    lambda **kw: MarkovChain(length=4, num_classes=4, **kw),
]
NAMES = ["mixture", "walk", "xor", "clusters", "markov"]


def everything(source: KnownSource) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(source.num_classes)] * source.length)


@pytest.mark.parametrize("make", SMALL, ids=NAMES)
def test_probabilities_are_exact(make) -> None:  # type: ignore[no-untyped-def]
    source = make(num_train=10, num_held=10)
    x = everything(source)
    p = source.log_prob(x).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-10)
    one_hot = torch.nn.functional.one_hot(x, source.num_classes).double()
    torch.testing.assert_close(torch.einsum("n,ndk->dk", p, one_hot), source.marginals())
    exact = -torch.xlogy(p, p).sum().item()
    sampled = isinstance(source, HiddenClusters)  # its H is a mean over draws
    assert source.entropy == pytest.approx(exact, abs=0.02 if sampled else 1e-9)
    assert source.marginal_entropy > exact


@pytest.mark.parametrize("make", SMALL, ids=NAMES)
def test_draws_follow_the_probabilities(make) -> None:  # type: ignore[no-untyped-def]
    """Pearson's chi-squared over all x, at five standard deviations; rare x are pooled."""
    source = make(num_train=10, num_held=10)
    x, num = everything(source), 200_000
    drawn = source.draw(num, torch.Generator().manual_seed(1))
    base = source.num_classes ** torch.arange(source.length - 1, -1, -1)
    counts = torch.bincount((drawn * base).sum(1), minlength=len(x)).double()
    expected = num * source.log_prob(x).exp()
    assert counts[expected == 0].sum() == 0
    common = expected >= 10
    statistic = ((counts - expected) ** 2 / expected)[common].sum()
    degrees = int(common.sum())
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_seeds_give_other_sources_and_the_same_again() -> None:
    a, b, c = (MarkovChain(length=4, num_classes=4, num_train=20, num_held=5, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.splits["train"].x, b.splits["train"].x)
    assert not torch.equal(a.log_p, c.log_p)
    assert not torch.equal(a.splits["train"].x[:5], a.splits["test"].x)


def test_bad_options() -> None:
    with pytest.raises(FLDDError, match="num_train"):
        RandomWalk(num_train=0)
    with pytest.raises(FLDDError, match="noise is 1"):
        XORBlocks(noise=1.0)
    with pytest.raises(FLDDError, match="second-order"):
        MarkovChain(length=1)
