"""A latent of real numbers: that of a variational autoencoder, which the first step starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from math import inf, log, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..categorical import float64_device
from ..factory import build
from ..networks.autoencoder import Autoencoder, MLPAutoencoder
from ..networks.base import zero_last_layer
from ..ranges import COUNT, NATURAL, POSITIVE, check_numbers
from ..spec import Seen, Spec
from .base import MOST_EXAMPLES, Latent, LatentPosterior, hold_out
from .tables import count_all, examples_at_once, normalised

__all__ = ["AutoencoderLatent", "FlowPrior", "log_normal"]

LOG_VARIANCE = (-8.0, 3.0)  # bounds, of posteriors too
_APART = 0.5  # standard deviation of the means of the prior at the start
_WIDTH = 128  # hidden units of the two layers of a coupling of the prior
_BATCH = 256
_LR, _LR_MIXTURE = 2e-3, 1e-2
_MOST_GRADIENT = 10.0
_WARM_UP = 0.2  # of the fit, while the weight of the KL grows
_ANNEALED = 0.8  # of a training without a fit, while it falls to 1
_CHECKS = 10  # of the bound of held-out examples, whose best is kept


class AutoencoderPosterior(LatentPosterior):
    """q(c|x) = N(mean, exp(log_variance)), numbers independent given x.

    Args:
        latent: Whose it is.
        x: Examples ``(B, *shape)``.
        mean: ``(B, m)``.
        log_variance: ``(B, m)``.
    """

    def __init__(self, latent: AutoencoderLatent, x: Tensor, mean: Tensor, log_variance: Tensor) -> None:
        self.latent, self.x, self.mean, self.log_variance = latent, x, mean, log_variance

    def draw(self, uniform: Tensor) -> Tensor:
        """As for any latent; with a gradient to the encoder (Kingma and Welling, 2014, section 2.4)."""
        noise: Tensor = torch.special.ndtri(uniform.clamp_min(2.0**-54)).to(self.mean.dtype).to(self.mean.device)
        return self.mean + (self.log_variance / 2).exp() * noise

    def likely(self) -> Tensor:
        return self.mean

    def kl(self, c: Tensor) -> Tensor:
        divergence: Tensor = log_normal(c, self.mean, self.log_variance) - self.latent.prior.log_prob(c)
        return divergence

    def nll(self, c: Tensor) -> Tensor:
        return self.kl(c) - self.log_likelihood(c)

    def log_likelihood(self, c: Tensor) -> Tensor:
        """Log p(x|c), ``(B,)``, for latents ``(B, m)``."""
        log_p = self.latent.log_conditional_of(c).gather(-1, self.x.unsqueeze(-1))  # (B, *shape, 1)
        return log_p.flatten(1).sum(1)


class AutoencoderLatent(Latent):
    """m real numbers of the whole example: q(c|x) by an encoder, p(x_i|c) by a decoder.

    A number out of 256 says little of many coordinates; this latent has no such bound. It is trained with the
    denoiser, in its parameter group and by the same loss, through the draws of c. Its process only masks, and the
    denoiser starts from log p(x_i|c).

    By default :meth:`fit` trains the autoencoder by itself before. Where that does not help held-out examples the
    latent starts by saying nothing. With ``fit_steps=0`` there is no fit: all is trained together from the first step.

    The prior is learned too, a mixture of normal distributions that a normalising flow bends
    (:class:`~fldd_lightning.latents.autoencoder.FlowPrior`). Under a single normal one many a draw is a latent that
    no example has, and its sample is like none (compare Tomczak and Welling, 2018, eq. 8).

    Args:
        spec: K and shape.
        size: m, how many numbers.
        autoencoder: Makes encoder and decoder from ``(spec, m, num_inputs, num_outputs)``; for images, better a
            :class:`~fldd_lightning.networks.ConvAutoencoder`.
        components: Of the prior's mixture.
        couplings: Of the prior's flow; with 0 it is the mixture.
        kl_weight: Weight of the KL in the loss of :meth:`fit`, and in its choice by held-out examples: the beta of a
            beta-VAE (Higgins et al., 2017, eq. 4). Training afterwards uses 1. Without a fit it is the weight at first
            in training, which falls to 1 along four fifths of the run (a run without an end keeps it). The more, the
            less the latent says. Without it a latent says much that a denoiser, which sees the coordinates already
            revealed, finds alone.
        fit_steps: Updates of 256 examples before training; 0 for none.

    Raises:
        FLDDError: If an option is not positive (couplings, fit_steps: negative), or the networks are no Autoencoder.
    """

    name = "autoencoder"
    says_values = True

    def __init__(
        self,
        spec: Spec,
        size: int = 24,
        autoencoder: Callable[[Spec, int, int, int], Autoencoder] = MLPAutoencoder,
        components: int = 128,
        couplings: int = 6,
        kl_weight: float = 2.5,
        fit_steps: int = 4_000,
    ) -> None:
        check_numbers(locals(), size=COUNT, components=COUNT, couplings=NATURAL, kl_weight=POSITIVE, fit_steps=NATURAL)
        super().__init__(spec)
        self.size, self.components, self.couplings = size, components, couplings
        self.seen, self.num_uniforms = Seen(self.name, num_reals=size), size
        self.kl_weight, self.fit_steps = kl_weight, fit_steps
        self.num_values = spec.num_classes - int(spec.padded)  # that the decoder chooses among
        self.autoencoder = build(autoencoder, Autoencoder, spec, size, spec.num_classes - 1, self.num_values - 1)
        self.bias = nn.Parameter(torch.zeros(*spec.shape, self.num_values - 1))  # of the decoder
        self.prior = FlowPrior(size, components, couplings)
        if fit_steps == 0:
            self._wake(torch.default_generator)
            self.is_fitted.fill_(True)  # as much as it will be: a resumed run does not fit it either

    @property
    def num_examples(self) -> int:
        return MOST_EXAMPLES if self.fit_steps else 0

    @property
    def says_nothing(self) -> bool:
        return self.autoencoder.says_nothing

    def posterior(self, x: Tensor, batch: Any = None) -> AutoencoderPosterior:
        # the last class has no input of its own: what is none of the others
        one_hot = F.one_hot(x, self.spec.num_classes)[..., :-1].to(self.bias.dtype)  # (B, *shape, K - 1)
        mean, log_variance = _full(self.autoencoder.encode(one_hot)).chunk(2, -1)
        return AutoencoderPosterior(self, x, mean, log_variance.clamp(*LOG_VARIANCE))

    def log_conditional_of(self, c: Tensor) -> Tensor:
        logits = _full(self.autoencoder.decode(c.to(self.bias.dtype))) + self.bias  # (B, *shape, values - 1)
        logits = F.pad(logits, (0, 1))
        log_p: Tensor = (logits if self.allowed is None else logits.masked_fill(~self.allowed, -inf)).log_softmax(-1)
        return F.pad(log_p, (0, 1)) if self.spec.padded else log_p

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return self.prior.sample(num_samples, generator)

    @torch.enable_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        held, kept = hold_out(x, seed)
        marginals = normalised(count_all(kept, self.spec), self.spec.pad)[..., 0]  # (*shape, K)
        log_p = marginals.expand(len(held), *marginals.shape).gather(-1, held.unsqueeze(-1))
        nll_marginals = float(-log_p.sum().cpu().double() / len(held))
        generator = torch.Generator(float64_device(x.device)).manual_seed(seed)
        fitted = deepcopy(self)  # so that hooks on the parameters, such as DDP's, hear nothing of it
        free = marginals[..., : self.num_values - 1] - marginals[..., self.num_values - 1 : self.num_values]
        fitted.bias.data.copy_(free)
        self.load_state_dict(fitted.state_dict())
        fitted._wake(generator)
        least = nll = nll_marginals
        for _ in fitted._updates(kept, generator):
            kl, bound = fitted._held_out_bound(held, generator)
            loss = bound + (self.kl_weight - 1) * kl
            if loss < least:
                least, nll = loss, bound
                self.load_state_dict(fitted.state_dict())
        self.is_fitted.fill_(True)
        return {"nll": nll, "nll_marginals": nll_marginals}

    def summary(self) -> str:
        return f"{self.size} numbers"

    def configuration(self) -> str:
        networks = self.autoencoder.configuration()
        prior = f"components={self.components}, couplings={self.couplings}"
        return f"{type(self).__name__}(size={self.size}, autoencoder={networks}, {prior})"

    def anneal(self, progress: float) -> None:
        if self.fit_steps == 0:
            self.weight = self.kl_weight + (1 - self.kl_weight) * min(1.0, progress / _ANNEALED)

    def _wake(self, generator: torch.Generator) -> None:
        """Leave the state in which nothing is said, and nothing would ever have reason to move."""
        self.prior.spread(generator)
        self.autoencoder.wake(generator)

    def _updates(self, x: Tensor, generator: torch.Generator) -> Iterator[None]:
        """Train on the latent's own bound, its KL weighted; stops now and then to have a look."""
        mixture = self.prior.mixture
        networks = [p for p in self.parameters() if all(p is not other for other in mixture)]
        optimizer = torch.optim.Adam([{"params": networks}, {"params": mixture}])
        rates = [_LR, _LR_MIXTURE]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, self.fit_steps + 1)
        every = -(-self.fit_steps // _CHECKS)
        for step in range(1, self.fit_steps + 1):
            index = torch.randint(len(x), (_BATCH,), generator=generator, device=generator.device)
            batch = x[index.to(x.device)]
            kl, nll = self._bound(batch, generator)
            weight = self.kl_weight * min(1.0, step / (_WARM_UP * self.fit_steps))
            optimizer.zero_grad()
            (nll + (weight - 1) * kl).mean().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(networks + mixture, _MOST_GRADIENT)
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == self.fit_steps:
                yield

    @torch.no_grad()
    def _held_out_bound(self, held: Tensor, generator: torch.Generator) -> tuple[float, float]:
        """Means of KL and bound."""
        size = examples_at_once(self.spec.num_dims * self.spec.num_classes)
        terms = [torch.stack(self._bound(each, generator)) for each in torch.split(held, size)]  # (2, b) each
        kl, nll = torch.cat(terms, 1).cpu().double().mean(1)
        return float(kl), float(nll)

    def _bound(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """KL and bound ``(B,)`` from one draw."""
        size = (len(x), self.size)
        uniform = torch.rand(size, dtype=torch.float64, generator=generator, device=generator.device)
        posterior = self.posterior(x)
        c = posterior.draw(uniform)
        kl = posterior.kl(c)
        return kl, kl - posterior.log_likelihood(c)


def _full(numbers: Tensor) -> Tensor:
    """At least in single precision, whatever the networks compute in."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


class FlowPrior(nn.Module):
    """p(c) of numbers c = (c_1, ..., c_m): u = f(c) is a mixture's, p(c) = p(u) |du/dc|.

    f is a chain of affine couplings (Dinh et al., 2017, eq. 7 and 9): each scales and shifts some of the numbers by
    what the others are. Two of them, one the other way round, split the numbers by the lowest bit of their places, the
    next two by the next bit, and so on; after the highest it starts anew. At first f is the identity, and the mixture
    one normal distribution.

    Args:
        size: m.
        components: Of the mixture.
        couplings: How many; a single number has none.
    """

    def __init__(self, size: int, components: int, couplings: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.zeros(components, size))
        self.log_variance = nn.Parameter(torch.zeros(components, size))
        self.couplings = nn.ModuleList(_Coupling(size, place) for place in range(couplings if size > 1 else 0))

    @property
    def mixture(self) -> list[nn.Parameter]:
        """The mixture's parameters; the others are networks'."""
        return [self.logits, self.mean, self.log_variance]

    def spread(self, generator: torch.Generator) -> None:
        """Draw the means, so that components differ."""
        self.mean.data.copy_(_APART * torch.randn(self.mean.shape, generator=generator, device=generator.device))

    def log_prob(self, c: Tensor) -> Tensor:
        """Log p(c) in nats, ``(B,)``, for latents ``(B, m)``."""
        log_volume = c.new_zeros(len(c))
        for coupling in self.couplings:
            shift, log_scale = coupling(c)
            c = (c - shift) * (-log_scale).exp()
            log_volume = log_volume - log_scale.sum(-1)
        each = log_normal(c.unsqueeze(1), self.mean, self.log_variance.clamp(*LOG_VARIANCE))  # (B, components)
        return (each + self.logits.log_softmax(0)).logsumexp(1) + log_volume

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Latents ``(N, m)``, on the generator's device."""
        device = generator.device
        which = torch.multinomial(self.logits.softmax(0).to(device), num_samples, True, generator=generator)
        mean = self.mean.to(device)[which]  # (N, m)
        deviation = (self.log_variance.clamp(*LOG_VARIANCE) / 2).exp().to(device)[which]
        c = mean + deviation * torch.randn(mean.shape, dtype=mean.dtype, device=device, generator=generator)
        c = c.to(self.mean.device)
        for coupling in reversed(self.couplings):
            shift, log_scale = coupling(c)
            c = c * log_scale.exp() + shift
        return c.to(device)


class _Coupling(nn.Module):
    """Shift and log scale of some numbers by the others; both 0 for those that stay."""

    moves: Tensor

    def __init__(self, size: int, place: int) -> None:
        super().__init__()
        bit = place // 2 % (size - 1).bit_length()
        moves = (torch.arange(size) >> bit) % 2 == place % 2
        self.register_buffer("moves", moves.float(), persistent=False)
        last = nn.Linear(_WIDTH, 2 * size)
        zero_last_layer(last)
        self.network = nn.Sequential(nn.Linear(size, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), last)

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(c.device.type, enabled=False):  # the flow that is scored is the one that is drawn from
            seen = (c * (1 - self.moves)).to(self.moves.dtype)
            shift, log_scale = self.network(seen).to(c.dtype).chunk(2, -1)
        return shift * self.moves, 2 * (log_scale / 2).tanh() * self.moves


def log_normal(c: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log N(c; mean, exp(log_variance)), summed over the last dimension."""
    terms: Tensor = (c - mean) ** 2 / log_variance.exp() + log_variance + log(2 * pi)
    return -0.5 * terms.sum(-1)
