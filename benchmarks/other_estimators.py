"""Gradient estimators that the library does not have, as none trains a better model than those it has.

``estimators.py`` measures all of them; ``collapse.py`` and ``molecules.py`` train with some.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fldd_lightning.categorical import one_hot, sum_dims
from fldd_lightning.estimators import GradientEstimator, Reinforce, StepLoss
from fldd_lightning.estimators.score import around, mean_of_draws, moved
from fldd_lightning.forward import Transition
from fldd_lightning.problem import Problem
from fldd_lightning.reverse import ReverseProcess


class NoBaseline(GradientEstimator):
    """REINFORCE without any baseline."""

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        z_t = step.draw(generator)
        kl = _kl(step, reverse, step.weights(z_t))
        return StepLoss(kl + kl.detach() * step.log_prob(z_t), kl.detach())


class IdealBaseline(GradientEstimator):
    """REINFORCE with E[KL|x, t] from 32 further samples that are not counted: the best a learned baseline can be."""

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        with torch.no_grad():
            others = [_kl(step, reverse, step.weights(step.draw(generator))) for _ in range(32)]
        z_t = step.draw(generator)
        kl = _kl(step, reverse, step.weights(z_t))
        return StepLoss(kl + (kl.detach() - torch.stack(others).mean(0)) * step.log_prob(z_t), kl.detach())


class ExactEntropy(Reinforce):
    """REINFORCE on the cross-entropy alone, with the entropy half of the KL in closed form."""

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        z_t = step.draw(generator)
        w = step.weights(z_t)
        kl, entropy = _kl(step, reverse, w), step.posterior.entropy()
        cross_entropy = kl + sum_dims(w * entropy)
        advantage = around(cross_entropy.detach(), self.mean[step.t])
        self.mean.copy_(moved(self.mean, step.t, cross_entropy.detach(), self.baseline_decay))
        expected = sum_dims(step.mean_weights() * entropy)
        return StepLoss(cross_entropy - expected + advantage * step.log_prob(z_t), kl.detach())


class FirstOrder(GradientEstimator):
    """Leave-one-out, less a share alpha of what the other samples' slopes predict.

    c_a(w) = mean_{b != a} [KL(z_b) + alpha g_b · (w - w_b)] with g_b = dKL/dw at z_b, whose expectation is known;
    alpha = 1 joins in the straight-through gradient, as MuProp (Gu et al., 2016) does at the mean.
    """

    def __init__(self, problem: Problem, samples: int, alpha: float) -> None:
        super().__init__(problem)
        self.samples, self.alpha = samples, alpha

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        z = [step.draw(generator) for _ in range(self.samples)]
        w = torch.stack([step.weights(z_a) for z_a in z]).requires_grad_()
        terms = step.terms(reverse, w)
        kl = terms.kl  # (n, B)
        g = torch.autograd.grad(kl.sum(), w, retain_graph=True)[0].flatten(2)  # (n, B, D * m)
        change = torch.einsum("bni,ani->ban", g, w.detach().flatten(2))  # g_b · w_a, (b, a, B)
        change = change - change.diagonal(dim1=0, dim2=1).T.unsqueeze(1)
        others = (kl.detach().sum(0) - kl.detach() + self.alpha * change.sum(0)) / (self.samples - 1)
        log_prob = torch.stack([step.log_prob(z_a) for z_a in z])
        control = self.alpha * (g.mean(0) * step.mean_weights().flatten(1)).sum(-1)
        mean = kl.mean(0)
        surrogate = mean + ((kl.detach() - others) * log_prob).mean(0) + control
        return StepLoss(surrogate, mean.detach(), mean_of_draws(terms.auxiliary))


class StraightThrough(GradientEstimator):
    """Hard states forward, u_t backward (Bengio et al., 2013)."""

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        hard, soft = step.weights(step.draw(generator)), step.mean_weights()
        terms = step.terms(reverse, (hard + soft - soft.detach()).unsqueeze(0))
        return StepLoss(terms.kl[0], terms.kl[0].detach(), mean_of_draws(terms.auxiliary))


class StraightThroughGumbel(GradientEstimator):
    """Hard states forward, a Concrete sample of temperature 1 backward (Jang et al., 2017)."""

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        soft = step.draw_relaxed(generator, 1.0)
        hard = one_hot(soft.argmax(-1), soft.shape[-1])
        return StepLoss(_kl(step, reverse, hard + soft - soft.detach()), None)


class DisARM(GradientEstimator):
    """Antithetic pairs for binary states (Dong et al., 2020): data or MASK under a mask-only process."""

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        log_kept = step.log_u_t[..., 0]  # (B, D); of the two states x and MASK
        # At t = T everything is masked and nothing is learned: a finite stand-in for the logit.
        logit = torch.where(log_kept > -30, log_kept - step.log_u_t[..., -1].clamp_min(-30), -30.0)
        kept, uniform = logit.detach().sigmoid(), torch.rand(logit.shape, generator=generator)
        first, second = uniform < kept, 1 - uniform < kept
        mask = torch.full_like(step.x, reverse.num_states - 1)
        pair = [_kl(step, reverse, step.weights(torch.where(b, step.x, mask))) for b in (first, second)]
        difference = 0.5 * (pair[0] - pair[1]).detach().view(-1, *[1] * (logit.dim() - 1))
        sign = torch.where(first, 1.0, -1.0) * (first != second)
        score = sum_dims(difference * sign * logit.detach().abs().sigmoid() * logit)
        kl = 0.5 * (pair[0] + pair[1])
        return StepLoss(kl + score, kl.detach())


def _kl(step: Transition, reverse: ReverseProcess, w: Tensor) -> Tensor:
    return step.kl(reverse, w.unsqueeze(0))[0]
