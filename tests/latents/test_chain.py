"""How a latent that is a chain is fitted, and where networks see it."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from sources import RandomWalk

from fldd_lightning.errors import FLDDError
from fldd_lightning.latents import ChainLatent
from fldd_lightning.networks import MLP, Transformer
from fldd_lightning.networks.base import StateEmbedding
from fldd_lightning.spec import Seen, Spec
from some_latents import clustered, some_latent


def walks(num: int, length: int = 8, num_classes: int = 4) -> tuple[torch.Tensor, float]:
    """Random walks and their entropy: a Markov chain, whose ChainLatent of one state a coordinate is exact."""
    source = RandomWalk(length, num_classes, num_train=num, num_held=1)
    return source.splits["train"].x, source.entropy


def test_fit_finds_a_markov_chain_and_ties_its_parts() -> None:
    x, entropy = walks(1_000, length=16)
    latent = ChainLatent(Spec(4, (16,), 2), part=2, size=16)
    fit = latent.fit(x)
    assert entropy - 0.3 < fit["nll"] < entropy + 0.6 < fit["nll_marginals"] - 5
    assert torch.equal(latent.log_conditional[:2], latent.log_conditional[2:4])
    assert torch.equal(latent.log_following[0], latent.log_following[1])
    torch.testing.assert_close(latent.log_first.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(latent.log_following.exp().sum(-1), torch.ones(7, 16))
    torch.testing.assert_close(latent.log_conditional.exp().sum(1), torch.ones(16, 16))


def test_fit_keeps_parts_apart_where_they_differ() -> None:
    x = clustered(3_000)
    latent = ChainLatent(Spec(4, (12,), 2), part=3, size=16)
    fit = latent.fit(x)
    assert not torch.allclose(latent.log_conditional[:3], latent.log_conditional[3:6], atol=0.1)
    entropy = torch.tensor([0.85, 0.05, 0.05, 0.05])
    optimum = float(torch.tensor(4.0).log() - 12 * (entropy * entropy.log()).sum())
    assert fit["nll"] < optimum + 1 < fit["nll_marginals"] - 2


def test_shared_tables_win_with_many_values_where_with_few_they_lose() -> None:
    latent = ChainLatent(Spec(4, (8,), 2), size=64)
    apart, shared = {1: 9.0, 16: 7.0, 64: 6.5}, {1: 9.5, 16: 7.5, 64: 6.0}
    kept = []
    with (
        patch.object(latent, "_maximise", lambda x, size, tied, seed: (shared if tied else apart)[size]),
        patch.object(latent, "_held_out_nll", lambda held, nats: nats),
        patch.object(latent, "_keep", kept.append),
    ):
        fit = latent.fit(walks(1_000)[0])
    assert kept == [6.0]
    assert (fit["nll"], fit["nll_marginals"]) == (6.0, 9.0)


def test_independent_coordinates_have_one_value() -> None:
    x = torch.randint(4, (3_000, 6), generator=torch.Generator().manual_seed(0))
    latent = ChainLatent(Spec(4, (6,), 2), size=16)
    assert latent.fit(x)["values"] == 1
    assert float(latent.posterior(x).kl().max()) < 1e-5
    assert int(latent.posterior(x).likely().max()) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_more_rounds_are_never_less_likely(tied: bool) -> None:
    """Expectation maximisation ascends what it maximises; smoothing is a prior that hardly counts here."""
    x, _ = walks(500)
    values = []
    for rounds in (1, 2, 4, 8, 16):
        latent = ChainLatent(Spec(4, (8,), 2), size=6, smoothing=1e-6)
        with patch("fldd_lightning.latents.chain._ITERATIONS", rounds):
            values.append(latent._held_out_nll(x, latent._maximise(x, 6, tied, seed=0)))
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(values))
    assert values[-1] < values[0] - 0.5


def test_padding_says_nothing_of_the_latent() -> None:
    pad = 4
    x = clustered(2_000)
    x[torch.arange(len(x)) % 2 == 0, 8:] = pad
    latent = ChainLatent(Spec(5, (12,), 2, padded=True), part=4, size=16)
    latent.fit(x)
    assert latent.num_used > 1
    assert (latent.log_conditional[:, pad] == 0).all()
    sums = latent.log_conditional[:, :pad, : latent.num_used].exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    only_pad = torch.full((1, 12), pad)
    torch.testing.assert_close(latent.posterior(only_pad).kl(), torch.zeros(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.posterior(only_pad).nll(), torch.zeros(1), atol=1e-4, rtol=0)


def test_rounds_do_not_depend_on_how_examples_are_batched() -> None:
    x, _ = walks(100)
    latent = ChainLatent(Spec(4, (8,), 2), size=6)
    together = latent._maximise(x, 6, False, seed=0)
    with patch("fldd_lightning.latents.tables.CHUNK", 7):
        apart = latent._maximise(x, 6, False, seed=0)
    for name in ("first", "following", "conditional"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), atol=1e-3, rtol=1e-3)


def test_first_values_and_unseen_neighbours_follow_the_examples() -> None:
    """Examples are constant, so that no value is ever seen beside another."""
    x = torch.tensor([0, 1, 0, 0]).repeat(250).unsqueeze(1).expand(-1, 4)
    latent = ChainLatent(Spec(2, (4,), 2), part=1, size=2)
    chain = latent._maximise(x, 2, False, seed=0)
    which = chain.conditional[0, 0].argmax()  # the value that stands for 0
    assert float(chain.first.exp()[which]) == pytest.approx(0.75, abs=0.01)
    unseen = chain.following.exp()[0, which, 1 - which]  # 1 / 4 of one example's worth, of 751
    assert float(unseen) == pytest.approx(0.25 / 751, rel=0.1)


def test_a_long_chain_is_exact_to_rounding() -> None:
    """Against float64, as an error in q(c|x) multiplies the whole of log p(x|c)."""
    latent = some_latent("chain", Spec(3, (200,), 2))
    x = torch.randint(3, (16, 200), generator=torch.Generator().manual_seed(0))
    double = some_latent("chain", Spec(3, (200,), 2)).double()
    double.load_state_dict(latent.state_dict())
    torch.testing.assert_close(latent.posterior(x).kl().double(), double.posterior(x).kl(), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(latent.posterior(x).nll().double(), double.posterior(x).nll(), atol=1e-3, rtol=1e-5)


def test_networks_see_a_latent_at_the_coordinates_of_its_part() -> None:
    spec = Spec(3, (5,), 2, seen=(Seen("chain", num_values=4, num_parts=3),))  # parts of 2, 2 and 1
    embed = StateEmbedding(spec, 3, 6)
    state = torch.zeros(1, 5, dtype=torch.long)
    rest, other = (torch.tensor([[0, 1, 2]]),), (torch.tensor([[0, 3, 2]]),)
    differs = (embed(state, rest) != embed(state, other)).any(-1)[0]
    assert differs.tolist() == [False, False, True, True, False]
    for network in (MLP(spec, 3, 3, width=8), Transformer(spec, 3, 3, width=8, depth=1, heads=2)):
        for p in network.parameters():
            torch.nn.init.normal_(p)
        out = [network(state, torch.ones(1, dtype=torch.long), c) for c in (rest, other)]
        assert not torch.allclose(*out)
        with pytest.raises(FLDDError, match="given 0 latents, but it sees 1"):
            network(state, torch.ones(1, dtype=torch.long))


def test_what_cannot_be() -> None:
    with pytest.raises(FLDDError, match="needs sequences"):
        ChainLatent(Spec(2, (4, 4), 2))
    with pytest.raises(FLDDError, match="part of ChainLatent is 0"):
        ChainLatent(Spec(2, (4,), 2), part=0)
    with pytest.raises(FLDDError, match="2048 parts of 256 values"):
        ChainLatent(Spec(2, (4096,), 2))
