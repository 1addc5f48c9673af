"""A code of real numbers: a variational autoencoder, whose latent the first step starts from."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..categorical import float64_device
from ..errors import FLDDError
from ..networks.base import zero_last_layer
from ..problem import Problem
from .base import MOST_EXAMPLES, Code, CodePosterior, hold_out
from .tables import MOST_NUMBERS, count_all, examples_at_once, normalised

__all__ = ["AutoencoderCode"]

_BATCH = 256
_LR, _LR_PRIOR = 2e-3, 1e-2
_APART = 0.5  # standard deviation of the prior's means at the start
_MOST_GRADIENT = 10.0
_WARM_UP = 0.2  # of the fit, while the weight of the KL grows
_CHECKS = 10  # of the bound of held-out examples, whose best is kept
_LOG_VARIANCE = (-8.0, 3.0)  # bounds


class AutoencoderPosterior(CodePosterior):
    """q(c|x) = N(mean, exp(log_variance)), numbers independent given x.

    Args:
        code: Whose it is.
        x: Examples ``(B, *shape)``.
        mean: ``(B, m)``.
        log_variance: ``(B, m)``.
    """

    def __init__(self, code: AutoencoderCode, x: Tensor, mean: Tensor, log_variance: Tensor) -> None:
        self.code, self.x, self.mean, self.log_variance = code, x, mean, log_variance

    def draw(self, uniform: Tensor) -> Tensor:
        """As for any code; with a gradient to the encoder (Kingma and Welling, 2014, section 2.4)."""
        noise: Tensor = torch.special.ndtri(uniform.clamp_min(2.0**-54)).to(self.mean.dtype).to(self.mean.device)
        return self.mean + (self.log_variance / 2).exp() * noise

    def likely(self) -> Tensor:
        return self.mean

    def kl(self, code: Tensor) -> Tensor:
        return _log_normal(code, self.mean, self.log_variance) - self.code.log_prior_of(code)

    def nll(self, code: Tensor) -> Tensor:
        return self.kl(code) - self.log_likelihood(code)

    def log_likelihood(self, code: Tensor) -> Tensor:
        """Log p(x|c), ``(B,)``, for codes ``(B, m)``."""
        log_p = self.code.log_conditional_of(code).gather(-1, self.x.unsqueeze(-1))  # (B, *shape, 1)
        return log_p.flatten(1).sum(1)


class AutoencoderCode(Code):
    """m real numbers of the whole example: q(c|x) by an encoder, p(x_i|c) by a decoder, both MLPs; p(c) a mixture.

    A number out of 256 says little of many coordinates; this code has no such bound. :meth:`fit` trains the
    autoencoder by itself. From then on it is trained with the denoiser, in its parameter group and by the same loss,
    through the draws of c; also where nothing was found that helps held-out examples at the weight of the KL, from a
    start that says nothing and a prior that stays one normal distribution.
    It takes a process that only masks, whose denoiser starts from log p(x_i|c).

    The prior is a mixture of normal distributions, learned too: under a single one many a code that is drawn is none
    that any example has, and its sample is like none (compare Tomczak and Welling, 2018, eq. 8).

    Args:
        problem: K and shape.
        size: m, how many numbers.
        width: Hidden units of each of the two layers of encoder and decoder.
        components: Of the prior.
        kl_weight: Weight of the KL in the loss of :meth:`fit`, and in its choice by held-out examples: the beta of a
            beta-VAE (Higgins et al., 2017, eq. 4). Training afterwards uses 1. The more, the less the code says: where
            coordinates know nothing of one another it is worth saying much that a denoiser, which sees those already
            revealed, finds by itself.
        fit_steps: Updates of 256 examples before training.

    Raises:
        FLDDError: If an option is not positive, or the first layer would be larger than 256 MiB.
    """

    def __init__(
        self,
        problem: Problem,
        size: int = 24,
        width: int = 512,
        components: int = 128,
        kl_weight: float = 2.5,
        fit_steps: int = 4_000,
    ) -> None:
        super().__init__(problem)
        if min(size, width, components, fit_steps) < 1 or not kl_weight > 0:
            raise FLDDError(
                "size, width, components and fit_steps of an AutoencoderCode must be at least 1, kl_weight above 0."
            )
        num_inputs = problem.num_dims * (problem.num_classes - 1)
        if num_inputs * width > MOST_NUMBERS:
            raise FLDDError(
                f"an encoder of width {width} for {problem.num_dims} coordinates of {problem.num_classes} classes "
                "would need a layer of more than 256 MiB. Lower model.code.width, or set model.code to null."
            )
        self.size, self.width, self.components = size, width, components
        self.kl_weight, self.fit_steps = kl_weight, fit_steps
        self.num_values = problem.num_classes - int(problem.padded)  # that the decoder chooses among
        self.encoder, self.encoded = _hidden(num_inputs, width), nn.Linear(width, 2 * size)
        self.decoder, self.decoded = _hidden(size, width), nn.Linear(width, problem.num_dims * (self.num_values - 1))
        self.prior_logits = nn.Parameter(torch.zeros(components))
        self.prior_mean = nn.Parameter(torch.zeros(components, size))
        self.prior_log_variance = nn.Parameter(torch.zeros(components, size))
        for layer in (self.encoded, self.decoded):  # so that it says nothing, which costs nothing
            zero_last_layer(layer)

    @property
    def num_examples(self) -> int:
        return MOST_EXAMPLES

    @property
    def says_nothing(self) -> bool:
        return not bool(self.decoded.weight.any())

    def seen_by_networks(self, problem: Problem) -> Problem:
        return replace(problem, num_latents=self.size)

    def posterior(self, x: Tensor) -> AutoencoderPosterior:
        # the last class has no input of its own: what is none of the others
        one_hot = F.one_hot(x, self.problem.num_classes)[..., :-1].flatten(1)  # (B, D * (K - 1))
        encoded = _full(self.encoded(self.encoder(one_hot.to(self.encoded.weight.dtype))))  # (B, 2 m)
        mean, log_variance = encoded.chunk(2, -1)
        return AutoencoderPosterior(self, x, mean, log_variance.clamp(*_LOG_VARIANCE))

    def log_conditional_of(self, code: Tensor) -> Tensor:
        logits = _full(self.decoded(self.decoder(code))).view(len(code), *self.problem.shape, self.num_values - 1)
        log_p = F.pad(logits, (0, 1)).log_softmax(-1)
        return F.pad(log_p, (0, 1)) if self.problem.padded else log_p

    def log_prior_of(self, code: Tensor) -> Tensor:
        """Log p(c), ``(B,)``, for codes ``(B, m)``."""
        each = _log_normal(code.unsqueeze(1), self.prior_mean, self.prior_log_variance.clamp(*_LOG_VARIANCE))
        return (each + self.prior_logits.log_softmax(0)).logsumexp(1)

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        p = self.prior_logits.softmax(0).to(device)
        which = torch.multinomial(p, num_samples, True, generator=generator)
        mean = self.prior_mean.to(device)[which]  # (N, m)
        deviation = (self.prior_log_variance.clamp(*_LOG_VARIANCE) / 2).exp().to(device)[which]
        return mean + deviation * torch.randn(mean.shape, device=device, generator=generator)

    @torch.enable_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        held, kept = hold_out(x, seed)
        marginals = normalised(count_all(kept, self.problem), self.problem.pad)[..., 0]  # (*shape, K)
        log_p = marginals.expand(len(held), *marginals.shape).gather(-1, held.unsqueeze(-1))
        nll_marginals = float(-log_p.sum().cpu().double() / len(held))
        generator = torch.Generator(float64_device(x.device)).manual_seed(seed)
        fitted = deepcopy(self)  # so that hooks on the parameters, such as DDP's, hear nothing of it
        free = marginals[..., : self.num_values - 1] - marginals[..., self.num_values - 1 : self.num_values]
        fitted.decoded.bias.data.copy_(free.flatten())
        self.load_state_dict(fitted.state_dict())
        scales = {
            fitted.prior_mean: _APART,
            fitted.encoded.weight: self.width**-0.5,
            fitted.decoded.weight: self.width**-0.5,
        }
        for p, scale in scales.items():  # both last layers: at zero, neither would ever have reason to move
            p.data.copy_(scale * torch.randn(p.shape, generator=generator, device=generator.device))
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
        return f"{type(self).__name__}(size={self.size}, width={self.width}, components={self.components})"

    def _updates(self, x: Tensor, generator: torch.Generator) -> Iterator[None]:
        """Train on the code's own bound, its KL weighted; stops now and then to have a look."""
        prior = [self.prior_logits, self.prior_mean, self.prior_log_variance]
        networks = [p for name, p in self.named_parameters() if not name.startswith("prior_")]
        optimizer = torch.optim.Adam([{"params": networks}, {"params": prior}])
        rates = [_LR, _LR_PRIOR]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, self.fit_steps + 1)
        every = -(-self.fit_steps // _CHECKS)
        for step in range(1, self.fit_steps + 1):
            index = torch.randint(len(x), (_BATCH,), generator=generator, device=generator.device)
            batch = x[index.to(x.device)]
            kl, nll = self._bound(batch, generator)
            weight = self.kl_weight * min(1.0, step / (_WARM_UP * self.fit_steps))
            optimizer.zero_grad()
            (nll + (weight - 1) * kl).mean().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(networks + prior, _MOST_GRADIENT)
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == self.fit_steps:
                yield

    @torch.no_grad()
    def _held_out_bound(self, held: Tensor, generator: torch.Generator) -> tuple[float, float]:
        """Means of KL and bound."""
        size = examples_at_once(self.problem.num_dims * self.problem.num_classes)
        terms = [torch.stack(self._bound(each, generator)) for each in torch.split(held, size)]  # (2, b) each
        kl, nll = torch.cat(terms, 1).cpu().double().mean(1)
        return float(kl), float(nll)

    def _bound(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """KL and bound ``(B,)`` from one draw."""
        size = (len(x), self.size)
        uniform = torch.rand(size, dtype=torch.float64, generator=generator, device=generator.device)
        posterior = self.posterior(x)
        code = posterior.draw(uniform)
        kl = posterior.kl(code)
        return kl, kl - posterior.log_likelihood(code)


def _hidden(num_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def _full(numbers: Tensor) -> Tensor:
    """At least in single precision, whatever the networks compute in."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _log_normal(code: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log N(c; mean, exp(log_variance)), summed over the last dimension."""
    terms: Tensor = (code - mean) ** 2 / log_variance.exp() + log_variance + log(2 * pi)
    return -0.5 * terms.sum(-1)
