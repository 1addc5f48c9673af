"""Gradient estimators that the library does not have, as none trains a better model than those it has.

``estimators.py`` measures all of them; ``collapse.py`` and ``molecules.py`` train with some.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fldd_lightning import GradientEstimator, Reinforce, Spec, StepLoss
from fldd_lightning.bound import StepTerms, states_drawn, uniform
from fldd_lightning.categorical import one_hot, sum_dims
from fldd_lightning.estimators.score import around, mean_of_draws, moved
from fldd_lightning.forward import DenseStep, MaskedStep, Step

Terms = Callable[[Tensor], StepTerms]


class NoBaseline(GradientEstimator):
    """REINFORCE without any baseline."""

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        z_t = states_drawn(step, generator)
        kl = terms(z_t.unsqueeze(0)).kl[0]
        return StepLoss(kl + kl.detach() * step.log_prob(z_t), kl.detach())


class IdealBaseline(GradientEstimator):
    """REINFORCE with E[KL|x, t] from 32 further samples that are not counted: the best a learned baseline can be."""

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        with torch.no_grad():
            others = [terms(states_drawn(step, generator).unsqueeze(0)).kl[0] for _ in range(32)]
        z_t = states_drawn(step, generator)
        kl = terms(z_t.unsqueeze(0)).kl[0]
        return StepLoss(kl + (kl.detach() - torch.stack(others).mean(0)) * step.log_prob(z_t), kl.detach())


class ExactEntropy(Reinforce):
    """REINFORCE on the cross-entropy alone, with the entropy half of the KL in closed form."""

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        z_t = states_drawn(step, generator)
        kl, entropy = terms(z_t.unsqueeze(0)).kl[0], entropies(step)
        cross_entropy = kl + sum_dims(weights(step, z_t) * entropy)
        advantage = around(cross_entropy.detach(), self.mean[step.t])
        self.mean.copy_(moved(self.mean, step.t, cross_entropy.detach(), self.baseline_decay))
        expected = sum_dims(mean_weights(step) * entropy)
        return StepLoss(cross_entropy - expected + advantage * step.log_prob(z_t), kl.detach())


class FirstOrder(GradientEstimator):
    """Leave-one-out, less a share alpha of what the other samples' slopes predict.

    c_a(w) = mean_{b != a} [KL(z_b) + alpha g_b · (w - w_b)] with g_b = dKL/dw at z_b, whose expectation is known;
    alpha = 1 joins in the straight-through gradient, as MuProp (Gu et al., 2016) does at the mean.
    """

    def __init__(self, spec: Spec, samples: int, alpha: float) -> None:
        super().__init__(spec)
        self.samples, self.alpha = samples, alpha

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        z = [states_drawn(step, generator) for _ in range(self.samples)]
        w = torch.stack([weights(step, z_a) for z_a in z]).requires_grad_()
        found = terms(w)
        kl = found.kl  # (n, B)
        g = torch.autograd.grad(kl.sum(), w, retain_graph=True)[0].flatten(2)  # (n, B, D * S)
        change = torch.einsum("bni,ani->ban", g, w.detach().flatten(2))  # g_b · w_a, (b, a, B)
        change = change - change.diagonal(dim1=0, dim2=1).T.unsqueeze(1)
        others = (kl.detach().sum(0) - kl.detach() + self.alpha * change.sum(0)) / (self.samples - 1)
        log_prob = torch.stack([step.log_prob(z_a) for z_a in z])
        control = self.alpha * (g.mean(0) * mean_weights(step).flatten(1)).sum(-1)
        mean = kl.mean(0)
        surrogate = mean + ((kl.detach() - others) * log_prob).mean(0) + control
        return StepLoss(surrogate, mean.detach(), mean_of_draws(found.auxiliary))


class StraightThrough(GradientEstimator):
    """Hard states forward, u_t backward (Bengio et al., 2013)."""

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        hard, soft = weights(step, states_drawn(step, generator)), mean_weights(step)
        found = terms((hard + soft - soft.detach()).unsqueeze(0))
        return StepLoss(found.kl[0], found.kl[0].detach(), mean_of_draws(found.auxiliary))


class StraightThroughGumbel(GradientEstimator):
    """Hard states forward, a Concrete sample of temperature 1 backward (Jang et al., 2017)."""

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        soft = step.draw_relaxed(uniform(step.noise_shape, generator), 1.0)
        hard = one_hot(soft.argmax(-1), soft.shape[-1])
        return StepLoss(terms((hard + soft - soft.detach()).unsqueeze(0)).kl[0], None)


class DisARM(GradientEstimator):
    """Antithetic pairs for binary states (Dong et al., 2020): data or MASK under a process that only masks."""

    def loss(self, step: Step, terms: Terms, generator: torch.Generator, global_step: int) -> StepLoss:
        assert isinstance(step, MaskedStep)
        log_kept = step.log_kept  # (B, D)
        # At t = T everything is masked and nothing is learned: a finite stand-in for the logit.
        logit = torch.where(log_kept > -30, log_kept - step.log_gamma.clamp_min(-30), -30.0)
        kept, uniform = logit.detach().sigmoid(), torch.rand(logit.shape, generator=generator)
        first, second = uniform < kept, 1 - uniform < kept
        pair = terms(torch.stack([torch.where(b, step.x, step.mask) for b in (first, second)])).kl
        difference = 0.5 * (pair[0] - pair[1]).detach().view(-1, *[1] * (logit.dim() - 1))
        sign = torch.where(first, 1.0, -1.0) * (first != second)
        score = sum_dims(difference * sign * logit.detach().abs().sigmoid() * logit)
        kl = 0.5 * (pair[0] + pair[1])
        return StepLoss(kl + score, kl.detach())


def weights(step: Step, z_t: Tensor) -> Tensor:
    """Weights over states ``(B, *shape, S)`` of integer states ``(B, *shape)``."""
    return one_hot(z_t, step.mask + 1 if isinstance(step, MaskedStep) else _dense(step).log_u_t.shape[-1])


def mean_weights(step: Step) -> Tensor:
    """E_{z_t} of the weights, with gradients: u_t, ``(B, *shape, S)``."""
    if not isinstance(step, MaskedStep):
        return _dense(step).log_u_t.exp()
    gamma = step.log_gamma.exp().unsqueeze(-1)
    return (1 - gamma) * weights(step, step.x) + gamma * weights(step, torch.full_like(step.x, step.mask))


def entropies(step: Step) -> Tensor:
    """Entropy of q(z_s|z_t, x) for every state of z_t, ``(B, *shape, S)``."""
    if not isinstance(step, MaskedStep):
        return _dense(step).posterior.entropy()
    log_stay, log_leave = logsigmoid(step.log_odds), logsigmoid(-step.log_odds)
    of_mask = -(log_stay.exp() * log_stay + log_leave.exp() * log_leave)
    return of_mask.unsqueeze(-1) * weights(step, torch.full_like(step.x, step.mask))


def _dense(step: Step) -> DenseStep:
    assert isinstance(step, DenseStep)
    return step
