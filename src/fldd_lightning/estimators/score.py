"""Unbiased score-function estimators: REINFORCE with a running mean, and leave-one-out over samples.

Both weigh the score of a draw by its KL. The entropy of the posterior has a closed form, and its
expectation could be taken exactly, with the score function for the cross-entropy alone. That is
unbiased too, but much noisier: how many coordinates are still noise moves cross-entropy and entropy
together, so that sampling one without the other multiplies the variance (by 4 to 6 on MNIST, see
``docs/what-did-not-work.md``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..bound import Noise, StepTerms, states_drawn, summed_over_processes
from ..errors import FLDDError
from ..forward import Step
from ..ranges import BETWEEN, COUNT, check_numbers
from ..spec import Spec
from .base import GradientEstimator, StepLoss, without_others

__all__ = ["RLOO", "LatentScore", "Reinforce"]


class Reinforce(GradientEstimator):
    """The score function with a running mean per step as baseline (default recipe; Williams, 1992; eq. 13).

    Unbiased from the second batch on; the first of a step sets the mean and has no score.

    Args:
        spec: K, shape and T.
        baseline_decay: Decay of the running mean.
    """

    mean: Tensor

    def __init__(self, spec: Spec, baseline_decay: float = 0.98) -> None:
        check_numbers(locals(), baseline_decay=BETWEEN)
        super().__init__(spec)
        self.baseline_decay = baseline_decay
        self.register_buffer("mean", torch.full((spec.num_steps + 1,), float("nan")))

    def loss(self, step: Step, terms: Callable[[Tensor], StepTerms], generator: Noise, global_step: int) -> StepLoss:
        z_t = states_drawn(step, generator)  # (B, *shape)
        at_draw = terms(z_t.unsqueeze(0))
        kl, auxiliary = at_draw.kl[0], mean_of_draws(at_draw.auxiliary)
        if not step.learns:
            return StepLoss(kl, kl.detach(), auxiliary)
        advantage = around(kl.detach(), self.mean[step.t])
        self.mean.copy_(moved(self.mean, step.t, kl.detach(), self.baseline_decay))
        return StepLoss(kl + advantage * step.log_prob(z_t), kl.detach(), auxiliary)


class RLOO(GradientEstimator):
    """Leave-one-out over n samples, with a fitted weight for the other samples.

    The baseline of sample a is made of the running mean m_t of the step's KL and of the other
    samples b of the same example,

        c_a = m_t + rho_t mean_{b != a} [KL(z_b) - m_t],

    so that mean_a [(KL(z_a) - c_a) grad log q(z_a|x)] is unbiased for every rho. rho = 1 is plain leave-one-out (Kool
    et al., 2019); rho = 0 is :class:`Reinforce`, better where the KL differs more between samples than
    between examples. rho_t is fitted by least squares on past batches, within [0, 1]: only past
    batches enter it, which keeps the estimate unbiased.

    Args:
        spec: K, shape and T.
        samples: n, draws of z_t per example.
        fit_decay: Decay of the running mean and of the moments behind the fit.

    Raises:
        FLDDError: If fewer than two samples are asked for.
    """

    mean: Tensor
    moments: Tensor

    def __init__(self, spec: Spec, samples: int = 2, fit_decay: float = 0.98) -> None:
        check_numbers(locals(), samples=COUNT, fit_decay=BETWEEN)
        super().__init__(spec)
        if samples < 2:
            raise FLDDError(
                f"RLOO leaves one sample out, so samples must be at least 2, not {samples}. "
                "For one sample use Reinforce."
            )
        self.samples = samples
        self.fit_decay = fit_decay
        self.register_buffer("mean", torch.full((spec.num_steps + 1,), float("nan")))
        # per step: <others²> and <own others>, around the mean
        self.register_buffer("moments", torch.full((2, spec.num_steps + 1), float("nan")))

    def rho(self, t: Tensor) -> Tensor:
        """The weight in use at steps ``(B,)``; 1 where nothing has been seen yet."""
        return regression(self.moments)[t]

    def loss(self, step: Step, terms: Callable[[Tensor], StepTerms], generator: Noise, global_step: int) -> StepLoss:
        z = [states_drawn(step, generator) for _ in range(self.samples)]
        at_draws = terms(torch.stack(z))  # (n, B)
        kl, auxiliary = at_draws.kl.mean(0), mean_of_draws(at_draws.auxiliary)
        if not step.learns:
            return StepLoss(kl, kl.detach(), auxiliary)
        own = around(at_draws.kl.detach(), self.mean[step.t])
        others = (own.sum(0) - own) / (self.samples - 1)
        advantage = own - self.rho(step.t) * others
        score = (advantage * torch.stack([step.log_prob(z_a) for z_a in z])).mean(0)
        unseen = self.mean[step.t].isnan()  # nothing to be measured from yet
        fit = torch.stack([others**2, own * others]).mean(1).masked_fill(unseen, float("nan"))  # (2, B)
        self.moments.copy_(moved(self.moments, step.t, fit, self.fit_decay))
        self.mean.copy_(moved(self.mean, step.t, kl.detach(), self.fit_decay))
        return StepLoss(kl + score, kl.detach(), auxiliary)


class LatentScore(nn.Module):
    """The gradient of E_{c ~ q(c|x)}[KL] through q, for latents whose draws hand none on (Williams, 1992).

    The KL of a step is much what the latent itself says of the coordinates that are revealed, -h with
    h = sum_i w_i log p(x_i|c). Its mean over q has a closed form. So the draw is weighed by what the KL differs from
    -rho h, and the gradient of -rho E_q[h] is added exactly (a control variate; Mohamed et al., 2020, section 7.4). rho
    is the regression coefficient of batches before, 1 at first.

    Unbiased from the second batch on; the first of a step sets the means and has no score.

    Args:
        spec: K, shape and T.
        decay: Of the running means of each step.
    """

    mean: Tensor
    mean_said: Tensor
    moments: Tensor

    def __init__(self, spec: Spec, decay: float = 0.98) -> None:
        super().__init__()
        self.decay = decay
        nothing = torch.full((spec.num_steps + 1,), float("nan"))
        self.register_buffer("mean", nothing.clone())
        self.register_buffer("mean_said", nothing.clone())
        self.register_buffer("moments", nothing.repeat(2, 1))  # per step: <h²> and <KL h>, around their means
        self.register_load_state_dict_pre_hook(without_others)  # type: ignore[no-untyped-call]

    def forward(self, log_q: Tensor, kl: Tensor, t: Tensor, said: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What to add to the loss of each example, ``(B,)``; its value means nothing.

        Args:
            log_q: Log q(c|x) at the draws, ``(B,)``.
            kl: Of the step, detached, ``(B,)``.
            t: Steps ``(B,)``.
            said: h at the draws, and its mean over q with a gradient to q, ``(B,)`` both. If None, the draw is weighed
                by the KL itself.
        """
        unseen = self.mean[t].isnan()
        advantage, exact = around(kl, self.mean[t]), torch.zeros_like(kl)
        if said is not None:
            rho, nats = regression(self.moments)[t], -said[0]
            other = around(nats, self.mean_said[t])
            both = torch.stack([other**2, advantage * other]).masked_fill(unseen, float("nan"))  # (2, B)
            self.moments.copy_(moved(self.moments, t, both, self.decay))
            self.mean_said.copy_(moved(self.mean_said, t, nats, self.decay))
            advantage, exact = advantage - rho * other, -rho * said[1]
        self.mean.copy_(moved(self.mean, t, kl, self.decay))
        return advantage * log_q + exact


def regression(moments: Tensor) -> Tensor:
    """Coefficients in [0, 1], ``(T + 1,)``, from <other²> and <own other>, ``(2, T + 1)``; 1 where nothing was seen."""
    others, both = moments
    fitted = (both / others.clamp_min(torch.finfo(others.dtype).tiny)).clamp(0, 1)
    return torch.where(others > 0, fitted, 1.0)


def mean_of_draws(values: Tensor | None) -> Tensor | None:
    """The mean over draws ``(n, B)``, or None of None."""
    return None if values is None else values.mean(0)


def around(kl: Tensor, mean: Tensor) -> Tensor:
    """``kl``, ``(..., B)``, less the running mean of its step ``(B,)``; 0 where there is none yet."""
    return torch.where(mean.isnan(), 0.0, kl - mean)


def moved(old: Tensor, t: Tensor, values: Tensor, decay: float) -> Tensor:
    """Running means per step ``(..., T + 1)``, NaN where unseen, after ``values`` ``(..., B)`` at steps ``t`` ``(B,)``.

    Values that are not finite are left out, so that one of them spoils one update and no more. The means are those of
    the whole batch, where several processes share it.
    """
    values = values.to(old)
    finite = values.isfinite()
    zeros = torch.zeros_like(old)
    of_batch = [zeros.index_add(-1, t, finite.to(old)), zeros.index_add(-1, t, torch.where(finite, values, 0.0))]
    counts, sums = summed_over_processes(torch.stack(of_batch))
    now = sums / counts.clamp_min(1)
    decayed = torch.where(old.isnan(), now, decay * old + (1 - decay) * now)
    return torch.where(counts > 0, decayed, old)
