"""Unbiased score-function estimators: REINFORCE and leave-one-out with a first-order control variate."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FLDDError
from ..problem import Problem
from ..reverse import ReverseProcess
from ..transition import Transition
from .base import GradientEstimator, StepLoss

__all__ = ["RLOO", "Reinforce"]


class Reinforce(GradientEstimator):
    """The score function with a running mean per step as baseline (Williams, 1992; eq. 13).

    Args:
        problem: K, shape and T.
        baseline_decay: Decay of the running mean.
    """

    baseline: Tensor

    def __init__(self, problem: Problem, baseline_decay: float = 0.99) -> None:
        super().__init__(problem)
        self.baseline_decay = baseline_decay
        self.register_buffer("baseline", torch.full((problem.num_steps + 1,), float("nan")))

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        z_t = step.draw(generator)  # (B, *shape)
        cost = step.cross_entropy(reverse, step.weights(z_t).unsqueeze(0))[0]
        baseline = self.baseline[step.t]
        advantage = cost.detach() - torch.where(baseline.isnan(), cost.detach(), baseline)
        entropy = step.expected_entropy()
        surrogate = cost - entropy + advantage * step.log_prob(z_t)
        self._update(step.t, cost.detach())
        return StepLoss(surrogate, (cost - entropy).detach())

    def _update(self, t: Tensor, cost: Tensor) -> None:
        for value in range(1, self.problem.num_steps + 1):
            if not bool((t == value).any()):
                continue
            mean = cost[t == value].mean()
            old = self.baseline[value]
            decayed = self.baseline_decay * old + (1 - self.baseline_decay) * mean
            self.baseline[value] = torch.where(old.isnan(), mean, decayed)


class RLOO(GradientEstimator):
    """Leave-one-out over n samples, with fitted baseline and first-order control variate (default recipe).

    Sample a is compared with a baseline made of the running mean m_t of the step's costs and of the
    other samples b of the same example, and with what these predict for it to first order:

        c_a(w) = m_t + rho mean_{b != a} [C(z_b) - m_t] + alpha mean_{b != a} [g_b · (w - w_b)],   g_b = dC/dw at z_b,

    with w the one-hot weights of z_t. c_a does not depend on z_a and is linear in w, so that its
    expectation is known and the estimate

        mean_a [(C(z_a) - c_a(z_a)) grad log q(z_a|x)] + alpha mean_b [g_b · grad u_t]

    is unbiased for every rho and alpha. rho = 1, alpha = 0 is plain RLOO (Kool et al., 2019); rho = 0 is
    REINFORCE with a mean as baseline, better where costs differ more between samples than between
    examples; alpha = 1 joins in the straight-through gradient, as MuProp (Gu et al., 2016) does at the mean.
    Which is better depends on how linear the denoiser is (parities: not at all), so both are
    fitted: for every t by least squares on past costs, within [0, 1]. Only past batches enter them,
    which keeps the estimate unbiased. The extra cost is one backward pass of the denoiser to its
    inputs; there is none with ``first_order=0``.

    Args:
        problem: K, shape and T.
        samples: n, draws of z_t per example.
        first_order: A fixed alpha, with rho = 1; or None to fit both.
        fit_decay: Decay of the running moments behind the fit.

    Raises:
        FLDDError: If fewer than two samples are asked for.
    """

    mean: Tensor
    moments: Tensor

    def __init__(
        self,
        problem: Problem,
        samples: int = 2,
        first_order: float | None = None,
        fit_decay: float = 0.98,
    ) -> None:
        super().__init__(problem)
        if samples < 2:
            raise FLDDError(
                f"RLOO leaves one sample out, so samples must be at least 2, not {samples}. "
                "For one sample use Reinforce."
            )
        self.samples = samples
        self.first_order = first_order
        self.fit_decay = fit_decay
        self.register_buffer("mean", torch.full((problem.num_steps + 1,), float("nan")))
        # per step: <others²>, <others change>, <change²>, <cost others>, <cost change>, all around the mean
        self.register_buffer("moments", torch.zeros(5, problem.num_steps + 1))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Rho and alpha in use at steps ``(B,)``; 1 and 0 where nothing has been seen yet."""
        if self.first_order is not None:
            return torch.ones(t.shape, device=t.device), torch.full(t.shape, self.first_order, device=t.device)
        others, both, change, cost_others, cost_change = self.moments
        tiny = torch.finfo(others.dtype).tiny
        determinant = others * change - both**2
        solvable = determinant > 1e-6 * others * change
        alpha = (others * cost_change - both * cost_others) / torch.where(solvable, determinant, 1.0)
        alpha = torch.where(solvable, alpha, 0.0).clamp(0, 1)
        rho = ((cost_others - alpha * both) / others.clamp_min(tiny)).clamp(0, 1)
        return torch.where(others > 0, rho, 1.0)[t], alpha[t]

    def loss(self, step: Transition, reverse: ReverseProcess, generator: torch.Generator, global_step: int) -> StepLoss:
        z = [step.draw(generator) for _ in range(self.samples)]
        w = torch.stack([step.weights(z_a) for z_a in z])  # (n, B, *shape, m)
        has_slopes = step.learns and self.first_order != 0
        w.requires_grad_(has_slopes)
        costs = step.cross_entropy(reverse, w)  # (n, B)
        kl = costs.mean(0) - step.expected_entropy()
        if not step.learns:
            return StepLoss(kl, kl.detach())

        slopes = torch.autograd.grad(costs.sum(), w, retain_graph=True)[0] if has_slopes else torch.zeros_like(w)
        g, weights = slopes.flatten(2), w.detach().flatten(2)  # (n, B, D * m)
        with torch.autocast(g.device.type, enabled=False):  # products of differences need all digits
            change = torch.einsum("bni,ani->ban", g, weights)  # g_b · w_a, (b, a, B)
        change = change - change.diagonal(dim1=0, dim2=1).T.unsqueeze(1)  # g_b · (w_a - w_b)
        # Means over b != a; the diagonal of change is zero.
        mean_change = change.sum(0) / (self.samples - 1)  # (n, B)
        mean = self.mean[step.t]
        cost = costs.detach() - torch.where(mean.isnan(), costs.detach().mean(), mean)
        others = (cost.sum(0) - cost) / (self.samples - 1)  # (n, B)
        rho, alpha = self.coefficients(step.t)
        advantage = cost - rho * others - alpha * mean_change
        control = alpha * (g.mean(0) * step.mean_weights().flatten(1)).sum(-1)
        if self.first_order is None:
            products = (others**2, others * mean_change, mean_change**2, cost * others, cost * mean_change)
            self._fit(step.t, costs.detach().mean(0), [product.mean(0) for product in products])
        log_prob = torch.stack([step.log_prob(z_a) for z_a in z])
        score = (advantage * log_prob).mean(0)
        return StepLoss(kl + score + control, kl.detach())

    def _fit(self, t: Tensor, cost: Tensor, products: list[Tensor]) -> None:
        """Add a batch ``(B,)`` to the running mean and moments of its steps."""
        counts = torch.zeros_like(self.mean).index_add(0, t, torch.ones_like(cost))
        seen = counts > 0

        def moved(old: Tensor, values: Tensor) -> Tensor:
            now = torch.zeros_like(old).index_add(0, t, values) / counts.clamp_min(1)
            decayed = self.fit_decay * old + (1 - self.fit_decay) * now
            return torch.where(seen, torch.where(old.isnan(), now, decayed), old)

        # the first batch has no mean of its past to be measured from
        known = ~self.mean.isnan()
        for i, values in enumerate(products):
            self.moments[i] = torch.where(known, moved(self.moments[i], values), self.moments[i])
        self.mean.copy_(moved(self.mean, cost))
