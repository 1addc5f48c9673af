"""What evaluation and sampling need once, they compute once: networks are counted as they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from conftest import randomise, small_mlp
from fldd_lightning import FLDD, AutoencoderLatent, LearnedMaskProcess, MixtureLatent
from fldd_lightning.bound import draw_latents, noise_of, step_terms
from fldd_lightning.forward import MaskedStep, MaskProcess
from fldd_lightning.forward.masked import log_kept_gamma
from fldd_lightning.networks import MLPAutoencoder
from fldd_lightning.spec import Spec

T = 6
LATENTS = {
    "autoencoder": partial(AutoencoderLatent, size=2, autoencoder=partial(MLPAutoencoder, width=8), fit_steps=0),
    "mixture": partial(MixtureLatent, size=4),
}


def model(latent: str) -> FLDD:
    """With a learned schedule and a latent that both networks see."""
    process = partial(LearnedMaskProcess, network=small_mlp)
    made = FLDD(3, (5,), process, small_mlp, num_steps=T, latents=LATENTS[latent])
    randomise(made, 0.2)
    if latent == "mixture":
        made.latents[0].log_prior.fill_(-torch.tensor(4.0).log())
        made.latents[0].log_conditional.copy_(torch.randn(5, 3, 4).log_softmax(1))
    return made.eval()


@contextmanager
def counted(**parts: nn.Module) -> Iterator[Counter[str]]:
    """How often each network runs."""
    calls: Counter[str] = Counter()
    hooks = [part.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, part in parts.items()]
    yield calls
    for hook in hooks:
        hook.remove()


def networks(made: FLDD) -> dict[str, nn.Module]:
    coder = made.latents[0].autoencoder
    parts = {"denoiser": made.reverse.network, "schedule": made.forward_process.network}
    return {**parts, "encoder": coder.encode, "decoder": coder.decode}


def test_the_bound_runs_the_schedule_and_the_encoder_once() -> None:
    made, x = model("autoencoder"), torch.randint(3, (7, 5))
    with counted(**networks(made)) as calls:
        made.nelbo(x)
    # the decoder once for the denoiser at all steps, once for the bound of the latent alone
    assert calls == {"denoiser": T, "schedule": 1, "encoder": 1, "decoder": 2}


def test_samples_run_the_decoder_once() -> None:
    made = model("autoencoder")
    with counted(**networks(made)) as calls:
        made.sample(7)
    assert calls == {"denoiser": T, "decoder": 1}
    assert made.reverse._told is None  # nothing is kept


@pytest.mark.parametrize("latent", LATENTS)
def test_the_bound_is_that_of_steps_made_one_by_one(latent: str) -> None:
    made, x = model(latent), torch.randint(3, (7, 5))
    noise = noise_of(torch.arange(7), made.spec, made.latents, 0)
    found = made.nelbo_terms(x, noise)
    drawn = draw_latents(made.latents, [made.latents[0].posterior(x)], noise[:, -1, 5:])
    with torch.no_grad():
        for t in range(1, T + 1):
            step = made.forward_process.step(x, torch.full((7,), t), drawn.condition)
            z_t = step.draw_from_uniform(noise[:, t - 1, :5])
            terms = step_terms(step, made.reverse, z_t.unsqueeze(0)).kl[0]
            torch.testing.assert_close(found.kl[:, t - 1], terms)
    torch.testing.assert_close(found.further[f"kl_{latent}"], drawn.kl()[f"kl_{latent}"])


class Late(MaskProcess):
    """Has a step of its own, which is that of no other."""

    def log_stay_odds(self) -> Tensor:
        return torch.tensor([-1e4, -1e4, 0.0, 0.0]).view(-1, 1)

    def step(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> MaskedStep:
        return super().step(1 - x, t, condition)


def test_a_step_of_ones_own_is_the_one_that_is_evaluated() -> None:
    process, x = Late(Spec(2, (4,), 3)), torch.zeros(2, 4, dtype=torch.long)
    assert [int(step.t[0]) for step in process.steps(x)] == [1, 2, 3]
    assert all(bool(step.x.all()) for step in process.steps(x))


def test_marginals_are_those_of_the_sum_over_steps() -> None:
    """gamma_t is a product, 1 - gamma_t the sum over the steps above t of what is revealed there."""
    odds = torch.randn(50, 9, dtype=torch.float64) * 6
    log_kept, log_gamma = log_kept_gamma(odds)
    gamma = log_gamma.exp()
    for t in range(1, 10):
        stays, leaves = odds.sigmoid(), (-odds).sigmoid()  # of t = 2..10
        torch.testing.assert_close(gamma[:, t], stays[:, t - 1 :].prod(1))
        kept = sum(gamma[:, above] * leaves[:, above - 2] for above in range(t + 1, 11))
        torch.testing.assert_close(log_kept[:, t].exp(), kept, rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1e4, -1e4, 100.0, -100.0])
def test_marginals_and_their_gradients_are_finite_whatever_the_odds(size: float) -> None:
    odds = torch.full((1, 3), size, requires_grad=True)
    log_kept, log_gamma = log_kept_gamma(odds)
    inner = log_kept[:, 1:-1] + log_gamma[:, 1:-1]
    inner.sum().backward()
    assert inner.isfinite().all()
    assert odds.grad is not None
    assert odds.grad.isfinite().all()


def test_the_cost_of_staying_is_a_divergence() -> None:
    """Of two decisions with log odds a and b, written from its definition."""
    step = MaskedStep(
        x=torch.zeros(1, 4, dtype=torch.long), t=torch.tensor([2]), condition=(), pad=None, mask=2,
        log_gamma=torch.zeros(1, 4), log_kept=torch.zeros(1, 4), usual=torch.ones(1),
        log_odds=torch.tensor([[-3.0, 0.0, 2.0, 9.0]]).requires_grad_(),
    )  # fmt: skip
    made = model("mixture")
    b, log_p = torch.tensor([[1.0, 0.5, -2.0, 8.0]]), torch.tensor([[-0.1, -2.0, -1.0, -3.0]])
    made.reverse.log_prob_at = lambda *_: (log_p, b)  # type: ignore[method-assign]
    kl = step_terms(step, made.reverse, torch.full((1, 1, 4), 2)).kl
    a = step.log_odds.detach().double().requires_grad_()
    stay, leave = a.sigmoid(), (-a).sigmoid()
    expected = stay * (logsigmoid(a) - logsigmoid(b)) + leave * (logsigmoid(-a) - logsigmoid(-b) - log_p)
    torch.testing.assert_close(kl.double(), expected.sum().view(1, 1), rtol=1e-6, atol=0)
    kl.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(step.log_odds.grad.double(), a.grad, rtol=1e-5, atol=1e-6)
