"""A code of the whole example, drawn before the first step: a mixture of products, fitted by expectation maximisation.

The forward process leaves one number c of an example in the state z_T, beside the noise, and the reverse
process draws it from a prior,

    -log p(x) <= KL(q(c|x) || p(c)) + E_q(c|x)[NELBO(x|c)],

the prior term of a hierarchical VAE (eq. 5 with u_T that depends on x). With T = 1 and a denoiser that knows c alone
the model is the mixture sum_c p(c) prod_i p(x_i|c), the best q(c|x) is its posterior, and expectation
maximisation is ascent on the bound itself. The code is learned there, without the noise of a score function.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import FLDDError
from .problem import Problem

__all__ = ["MixtureCode"]

_ITERATIONS = 25
_BLEND = 0.3  # of an example in the component that starts from it; the rest are the marginals
_MOST_NUMBERS = 2**26  # of the table: it goes with every checkpoint
_CHUNK, _NUMBERS = 1_024, 2**24  # examples, and numbers of their one-hot vectors, worked on at once
_FEWEST_EXAMPLES = 20  # for more than one component
_FEW_CLASSES = 8  # up to which a product with one-hot vectors is faster than adding up rows


class MixtureCode(nn.Module):
    """c ~ q(c|x) with a prior p(c); both networks see it as they see a label.

    :meth:`fit` tries mixtures of 1, 4, 16, ... components up to ``size`` and keeps the one that is most likely to have
    made examples held out of its training. Where no mixture is better than a product of marginals all examples
    have the same code, which costs nothing. So it is before fitting. Coordinates at PAD do not count.

    Args:
        problem: K and shape.
        size: C, the most codes there may be.
        smoothing: Examples' worth of the data's marginals that every component is blended with.

    Attributes:
        log_prior: log p(c), ``(C,)``; ``-inf`` for codes not in use.
        log_conditional: log p(x_i|c), ``(*shape, K, C)``; 0 at PAD.
        is_fitted: Whether :meth:`fit` has been called, ``()`` of bool.

    Raises:
        FLDDError: If the size is below 2, the smoothing is not positive, or the table would be larger than 256 MiB.
    """

    log_prior: Tensor
    log_conditional: Tensor
    is_fitted: Tensor

    def __init__(self, problem: Problem, size: int = 256, smoothing: float = 1.0) -> None:
        super().__init__()
        if size < 2 or smoothing <= 0:
            raise FLDDError(f"a code needs a size of at least 2 and positive smoothing, not {size} and {smoothing}.")
        if size * problem.num_dims * problem.num_classes > _MOST_NUMBERS:
            raise FLDDError(
                f"a code of size {size} for {problem.num_dims} coordinates of {problem.num_classes} classes would need "
                "a table of more than 256 MiB. Lower model.code.size, or set model.code to null."
            )
        self.problem, self.size, self.smoothing = problem, size, smoothing
        log_prior = torch.full((size,), float("-inf"))
        log_prior[0] = 0.0
        self.register_buffer("log_prior", log_prior)
        self.register_buffer("log_conditional", torch.zeros(*problem.shape, problem.num_classes, size))
        self.register_buffer("is_fitted", torch.tensor(False))

    def configuration(self) -> str:
        """What a checkpoint has to agree on."""
        return f"{type(self).__name__}(size={self.size})"

    def log_posterior(self, x: Tensor) -> Tensor:
        """Log q(c|x), ``(B, C)``, for data ``(B, *shape)``."""
        return _log_joint(x, self.log_prior, self.log_conditional).log_softmax(-1)

    def kl(self, x: Tensor) -> Tensor:
        """KL(q(c|x) || p(c)) in nats per example, ``(B,)``: E_q[log p(x|c)] - log p(x) of the mixture."""
        log_likelihood = _log_likelihood(x, self.log_conditional)
        log_joint = log_likelihood + self.log_prior
        expected = (log_joint.softmax(-1) * log_likelihood).sum(-1)
        return (expected - log_joint.logsumexp(-1)).clamp_min(0)

    def nll(self, x: Tensor) -> Tensor:
        """Minus the log-likelihood of the mixture, the bound at T = 1, in nats per example, ``(B,)``."""
        return -_log_joint(x, self.log_prior, self.log_conditional).logsumexp(-1)

    def log_conditional_of(self, code: Tensor) -> Tensor:
        """Log p(x_i|c), ``(B, *shape, K)``, for codes ``(B,)``."""
        return self.log_conditional.index_select(-1, code).movedim(-1, 0)

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Codes from the prior, integers ``(N,)`` on the generator's device."""
        p = self.log_prior.exp().to(generator.device)
        return torch.multinomial(p, num_samples, True, generator=generator)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        """Fit the mixture.

        Args:
            x: Examples ``(N, *shape)``; a tenth of them, 5,000 at most, are held out to choose the number of codes
                by. With fewer than 20 there is one code.
            seed: Of which these are, and of where the components start.

        Returns:
            ``codes``, how many are in use, and in nats per held-out example ``nll``, minus the log-likelihood of the
            mixture, and ``nll_marginals``, that of a product of marginals.

        Raises:
            FLDDError: If there are fewer than two examples.
        """
        if len(x) < 2:
            raise FLDDError(
                f"{len(x)} training examples are too few to fit a code to. Give more, or set model.code to null."
            )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        num_held = min(max(1, len(x) // 10), 5_000)
        held, kept = x[order[:num_held].to(x.device)], x[order[num_held:].to(x.device)]
        most = min(self.size, len(kept)) if len(x) >= _FEWEST_EXAMPLES else 1
        sizes = [*(4**k for k in range(most.bit_length()) if 4**k < most), most]
        marginals = self._marginals(kept)
        fits = [self._maximise(kept, size, marginals) for size in sizes]
        nll = [-float(_log_joint(held, *each).logsumexp(-1).cpu().double().mean()) for each in fits]
        chosen = nll.index(min(nll))
        log_prior, log_conditional = fits[chosen]
        self.log_prior.fill_(float("-inf"))[: len(log_prior)] = log_prior
        self.log_conditional.zero_()[..., : len(log_prior)] = log_conditional
        self.is_fitted.fill_(True)
        return {"codes": int(log_prior.isfinite().sum()), "nll": nll[chosen], "nll_marginals": nll[0]}

    def _marginals(self, x: Tensor) -> Tensor:
        """p(x_i) with one example's worth of equal shares, ``(*shape, K, 1)``; 0 at PAD."""
        num_classes, pad = self.problem.num_classes, self.problem.pad
        counts = _counts(x, torch.ones(len(x), 1, device=x.device), num_classes, pad) + 1 / num_classes
        if pad is not None:
            counts[..., pad, :] = 0
        return counts / counts.sum(-2, keepdim=True)

    def _maximise(self, x: Tensor, size: int, marginals: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(c) and log p(x_i|c) after some rounds; components start from the first examples of x."""
        num_classes, pad = self.problem.num_classes, self.problem.pad
        if size == 1:
            return torch.zeros(1, device=x.device), _log(marginals, pad)
        starts = _counts(x[:size], torch.eye(size, device=x.device), num_classes, pad)  # one-hot
        log_conditional = _log(marginals + _BLEND * (starts - marginals), pad)
        log_prior = torch.full((size,), -log(size), device=x.device)
        for _ in range(_ITERATIONS):
            r = torch.cat([_log_joint(part, log_prior, log_conditional).softmax(-1) for part in torch.split(x, _CHUNK)])
            log_conditional = _log(_counts(x, r, num_classes, pad) + self.smoothing * marginals, pad)
            log_prior = r.mean(0).log()
        return log_prior, log_conditional


def _log_joint(x: Tensor, log_prior: Tensor, log_conditional: Tensor) -> Tensor:
    """Log p(x, c), ``(B, C)``."""
    return log_prior + _log_likelihood(x, log_conditional)


def _log_likelihood(x: Tensor, log_conditional: Tensor) -> Tensor:
    """Log p(x|c), ``(B, C)``, of ``(B, *shape)`` under ``(*shape, K, C)``; PAD has 0 there."""
    device = torch.device("cpu") if x.device.type == "mps" else x.device  # which has no embedding_bag
    flat = x.flatten(1).to(device)  # (B, D)
    first = log_conditional.shape[-2] * torch.arange(flat.shape[1], device=device)
    table = log_conditional.flatten(0, -2).to(device)  # (D * K, C)
    return F.embedding_bag(flat + first, table, mode="sum").to(x.device)


def _counts(x: Tensor, weights: Tensor, num_classes: int, pad: int | None) -> Tensor:
    """How often every coordinate takes every value, of examples with weights ``(B, C)``: ``(*shape, K, C)``."""
    num_dims = x[0].numel()
    counts = torch.zeros(num_dims, num_classes, weights.shape[1], device=x.device)
    size = max(1, min(_CHUNK, _NUMBERS // (num_dims * num_classes)))
    for part, weight in zip(torch.split(x.flatten(1), size), torch.split(weights, size), strict=True):
        if num_classes <= _FEW_CLASSES:
            one_hot = F.one_hot(part, num_classes).to(weight)  # (b, D, K)
            counts += torch.einsum("bdk,bc->dkc", one_hot, weight)
        else:
            for d in range(num_dims):
                counts[d].index_add_(0, part[:, d], weight)
    if pad is not None:
        counts[:, pad] = 0
    return counts.view(*x.shape[1:], num_classes, -1)


def _log(counts: Tensor, pad: int | None) -> Tensor:
    """Logarithm of probabilities proportional to counts ``(*shape, K, C)``: finite, and 0 at PAD."""
    log_p = (counts / counts.sum(-2, keepdim=True)).clamp_min(1e-9).log()
    if pad is not None:
        log_p[..., pad, :] = 0.0
    return log_p
