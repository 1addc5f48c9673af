"""The negative evidence lower bound (NELBO) of FLDD and its terms (eq. 5).

Latents c are drawn first, and both networks may see them:

    -log p(x) <= sum_latents KL(q(c|x) || p(c)) + sum_{t=1..T} E_{q(z_t|x)} KL(q(z_s|z_t, x) || p(z_s|z_t)),  s = t-1.

A model that serves several numbers of steps has a bound for each: the sum over N times t of its grid, each with the one
before it as s.

With u(x, 0) = onehot(x) and u(x, T) = prior exactly, z_0 is x and z_T is the prior. The reconstruction and the prior
term are therefore exactly zero; tests compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .forward import DenseStep, ForwardProcess, MaskedStep, Step
from .forward.step import Timesteps
from .latents.base import Latent, LatentPosterior, weighed
from .latents.condition import ConditionLatent
from .latents.given import GivenLatent
from .reverse import MaskedReverse, Reverse
from .spec import Spec

__all__ = [
    "Bound",
    "Drawn",
    "DrawnNoise",
    "Noise",
    "SharedGenerator",
    "StepTerms",
    "draw_latents",
    "is_free",
    "mixed_seed",
    "nelbo",
    "noise_of",
    "num_uniforms",
    "permutation",
    "states_drawn",
    "step_terms",
    "stratified_steps",
    "summed_over_processes",
    "uniform",
    "uniform_of",
]


class StepTerms(NamedTuple):
    """What n draws of z_t give for a step.

    Attributes:
        kl: KL(q(z_s|z_t, x) || p(z_s|z_t)) in nats per example, ``(n, B)``; their mean is the step's term of eq. 5.
        auxiliary: -log p(x^i|z_t, revealed) summed over masked coordinates, each times what its probability of being
            revealed now lacks of masked diffusion's, (t - s)/t; nats per example, ``(n, B)``, with gradients to the
            denoiser and latents alone. 0 for masked diffusion; None for processes that do more than mask.
    """

    kl: Tensor
    auxiliary: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """A draw of all latents of B examples; see :func:`draw_latents`.

    Attributes:
        latents: All of them.
        posteriors: q(c|x) of each.
        values: c of each, ``(B, m)``.
    """

    latents: Sequence[Latent]
    posteriors: Sequence[LatentPosterior]
    values: Sequence[Tensor]

    @property
    def condition(self) -> tuple[Tensor, ...]:
        """What networks see, one tensor for every entry of ``spec.seen``."""
        pairs = zip(self.latents, self.values, strict=True)
        return tuple(c for latent, c in pairs if latent.seen is not None)

    def with_given(self, given: Tensor) -> Drawn:
        """The same where networks are told what is given, ``(B, *shape)`` of bool."""
        pairs = zip(self.latents, self.values, strict=True)
        return replace(self, values=[each.said(given) if isinstance(each, GivenLatent) else c for each, c in pairs])

    def with_dropped(self, uniform: Tensor) -> Drawn:
        """The same where networks do not see what is dropped; see :class:`ConditionLatent`.

        Args:
            uniform: Float64 numbers in [0, 1), ``(B, 2 + n)`` for n latents: the first says whether all are dropped by
                the second, or each by its own.
        """
        values, together = [], uniform[:, 0] < 0.5
        for i, (latent, c) in enumerate(zip(self.latents, self.values, strict=True)):
            if isinstance(latent, ConditionLatent) and latent.dropped and latent.seen is not None:
                number = torch.where(together, uniform[:, 1], uniform[:, 2 + i])
                is_dropped = (number < latent.dropped).to(c.device)[:, None]
                c = torch.where(is_dropped, latent.seen.absent(c), c)
            values.append(c)
        return replace(self, values=values)

    def kl(self) -> dict[str, Tensor]:
        """KL(q(c|x) || p(c)) by name, ``kl_{name}``, in nats per example, ``(B,)`` each."""
        each = zip(self.latents, self.posteriors, self.values, strict=True)
        return {f"kl_{latent.name}": posterior.kl(c) for latent, posterior, c in each}

    def loss(self, kl: dict[str, Tensor]) -> Tensor:
        """What latents add to the loss, mean over examples: their weighted KL, and bounds of their own.

        Args:
            kl: What :meth:`kl` gave.
        """
        each = zip(self.latents, self.posteriors, self.values, kl.values(), strict=True)
        parts = [
            latent.weight * term.mean()
            + (latent.weight_alone * q.alone(c).mean() if _counts(latent.weight_alone) else 0.0)
            for latent, q, c, term in each
        ]
        return sum(parts, torch.zeros(()))

    def log_q(self) -> Tensor:
        """Log q(c|x) of the draws that have no gradient of their own, ``(B,)``; their gradient is times the weight."""
        each = zip(self.latents, self.posteriors, self.values, strict=True)
        return torch.stack([weighed(q.log_prob(c), latent.weight) for latent, q, c in each if latent.has_score]).sum(0)

    def said(self, weights: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What those latents say of the values, see :meth:`LatentPosterior.said`; None if one of them cannot say it.

        Args:
            weights: Of the coordinates, ``(B, *shape)``, the same whatever the draws are; None where there are none.
        """
        if weights is None:
            return None
        at_draws, means = [], []
        for latent, q, c in zip(self.latents, self.posteriors, self.values, strict=True):
            if latent.has_score:
                said = q.said(c, weights)
                if said is None:
                    return None
                at_draws.append(said[0])
                means.append(weighed(said[1], latent.weight))
        return torch.stack(at_draws).sum(0), torch.stack(means).sum(0)

    def nll(self, kl: dict[str, Tensor]) -> Tensor | None:
        """The bound of the latents alone, T = 1, ``(B,)``; None where none of them says anything of the values.

        Of several that do, it is the bound of their equal mixture: the best one of each example would be that of no
        model. The KL of those that do not is added.

        Args:
            kl: What :meth:`kl` gave.
        """
        each = list(zip(self.latents, self.posteriors, self.values, strict=True))
        alone = [posterior.nll(c) for latent, posterior, c in each if latent.says_values]
        if not alone:
            return None
        others = [kl[f"kl_{latent.name}"] for latent in self.latents if not latent.says_values]
        mixed = log(len(alone)) - torch.stack([-nll for nll in alone]).logsumexp(0)
        return sum(others, mixed)


def _counts(weight: float | Tensor) -> bool:
    """Whether a weight is not 0; while a step is compiled those that are not are tensors."""
    return isinstance(weight, Tensor) or weight != 0


class Bound(NamedTuple):
    """The terms of the bound of B examples, in nats per example.

    Attributes:
        kl: KL of every step, ``(B, T)``.
        further: KL of the latents by name, ``(B,)`` each.
        nll_latent: The bound of the latents alone, ``(B,)``; None where none of them says anything of the values.
    """

    kl: Tensor
    further: dict[str, Tensor]
    nll_latent: Tensor | None

    @property
    def nelbo(self) -> Tensor:
        """The bound, ``(B,)``."""
        return self.kl.sum(1) + sum(self.further.values(), torch.zeros_like(self.kl[:, 0]))


def step_terms(step: Step, reverse: Reverse, z_t: Tensor) -> StepTerms:
    """The KL of one step at draws of z_t (eq. 5), and what else may be had of the same pass of the denoiser.

    At relaxed weights it is the cross-entropy of the relaxed posterior minus the mean entropy (eq. 14), which is no KL.
    Coordinates at PAD and those that are given cost nothing.

    Args:
        step: The forward process's.
        reverse: The reverse process; its network runs once, on all n B states.
        z_t: n draws of z_t, integers ``(n, B, *shape)`` or weights ``(n, B, *shape, S)``.
    """
    if isinstance(step, MaskedStep) and isinstance(reverse, MaskedReverse):
        return _masked_terms(step, reverse, z_t)
    assert isinstance(step, DenseStep)
    return _dense_terms(step, reverse, z_t)


def _masked_terms(step: MaskedStep, reverse: MaskedReverse, z_t: Tensor) -> StepTerms:
    """KL = [z_t = MASK] (stay log(stay / p(stay)) + leave log(leave / p(leave)) - leave log p(x|z_t, revealed)).

    A coordinate that is not masked carries over in both processes, at no cost.
    """
    x, (t, condition) = step.x.expand(z_t.shape[: 1 + step.x.dim()]), repeated(step, len(z_t))
    log_p, odds = reverse.log_prob_at(x.flatten(0, 1), z_t.flatten(0, 1), t, condition)
    log_p, odds = log_p.view(x.shape), odds.view(x.shape)  # (n, B, *shape)
    masked = z_t[..., -1] if z_t.is_floating_point() else (z_t == step.mask).to(log_p.dtype)
    if step.pad is not None or step.given is not None:
        is_live = is_free(step)  # (B, *shape)
        log_p, masked = log_p.where(is_live, 0.0), masked.where(is_live, 0.0)

    stay, leave = step.log_odds.sigmoid(), (-step.log_odds).sigmoid()  # (B, *shape)
    # of two decisions with log odds a and b: stay log(stay / p(stay)) = stay (a - b) + stay log(leave / p(leave))
    kl_of_staying = stay * (step.log_odds - odds) + logsigmoid(-step.log_odds) - logsigmoid(-odds)
    kl = masked * (kl_of_staying - leave * log_p)

    usual = step.usual.reshape(-1, *[1] * (leave.dim() - 1))
    lacking = masked.detach() * (usual - leave.detach()).clamp_min(0)
    return StepTerms(kl.flatten(2).sum(2), -(lacking * log_p).flatten(2).sum(2))


def is_free(step: Step) -> Tensor:
    """Coordinates that are neither given nor PAD, ``(B, *shape)`` of bool: those that cost something."""
    free = torch.ones_like(step.x, dtype=torch.bool) if step.pad is None else torch.ne(step.x, step.pad)
    return free if step.given is None else free & ~step.given


def _dense_terms(step: DenseStep, reverse: Reverse, z_t: Tensor) -> StepTerms:
    """KL = -sum_j q(j|z_t, x) log p(j|z_t) - H(q(.|z_t, x)), over all S states."""
    t, condition = repeated(step, len(z_t))
    log_v = reverse.log_prob(z_t.flatten(0, 1), t, condition)
    log_v = log_v.view(*z_t.shape[: 1 + step.x.dim()], -1)  # (n, B, *shape, S)
    if step.pad is not None:
        log_v = log_v.masked_fill((step.x == step.pad).unsqueeze(-1), 0.0)
    entropy = step.posterior.entropy()  # (B, *shape, S)
    if z_t.is_floating_point():
        q = torch.stack([step.posterior.relaxed_posterior(w) for w in z_t])
        entropy = (z_t * entropy).sum(-1)
    else:
        q = torch.stack([step.posterior.posterior(z) for z in z_t])
        entropy = entropy.expand(q.shape).gather(-1, z_t.unsqueeze(-1)).squeeze(-1)
    live = q > 0  # 0 log 0 = 0, in gradients too
    cross_entropy = -(q.where(live, 0.0) * log_v.where(live, 0.0)).sum(-1)
    kl = cross_entropy - entropy
    return StepTerms((kl if step.given is None else kl.masked_fill(step.given, 0.0)).flatten(2).sum(2))


def repeated(step: Step, n: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Steps and conditions of n draws an example, ``(n B,)`` and ``(n B, ...)``, draw after draw."""
    if n == 1:
        return step.t, step.condition
    return step.t.repeat(n), tuple(c.repeat(n, *[1] * (c.dim() - 1)) for c in step.condition)


def draw_latents(latents: Sequence[Latent], posteriors: Sequence[LatentPosterior], uniform: Tensor) -> Drawn:
    """Draw c ~ q(c|x) of every latent.

    Args:
        latents: All of them.
        posteriors: q(c|x) of each, for B examples.
        uniform: Float64 numbers in [0, 1), ``(B, n)``, with n of :func:`num_uniforms`.
    """
    values, place = [], 0
    for latent, posterior in zip(latents, posteriors, strict=True):
        values.append(posterior.draw(uniform[:, place : place + latent.num_uniforms]))
        place += latent.num_uniforms
    return Drawn(latents, posteriors, values)


def num_uniforms(latents: Sequence[Latent]) -> int:
    """Uniform numbers that :func:`draw_latents` takes for an example."""
    return sum(latent.num_uniforms for latent in latents)


def nelbo(
    process: ForwardProcess,
    reverse: Reverse,
    latents: Sequence[Latent],
    x: Tensor,
    batch: Any,
    noise: Tensor,
) -> Bound:
    """All terms of the bound (eq. 5), unbiased: one draw of the latents, and for each step one of z_t.

    The steps share the latents, and with them the network of a learned schedule and what latents say of the values.

    Args:
        process: The forward process.
        reverse: The reverse process.
        latents: The latents.
        x: Data ``(B, *shape)``.
        batch: What the data loader gave, for latents that are observed.
        noise: Float64 numbers in [0, 1), ``(B, T, D + n)``: of every step D for z_t, and n of
            :func:`num_uniforms` for the latents, of which those of the last step are used.
    """
    spec: Spec = process.spec
    of_states, of_latents = noise[..., : spec.num_dims], noise[:, -1, spec.num_dims :]
    drawn = draw_latents(latents, [latent.posterior(x, batch) for latent in latents], of_latents)
    columns, condition = [], drawn.condition
    with reverse.told(condition):
        for place, step in enumerate(process.steps(x, condition)):
            z_t = step.draw_from_uniform(of_states[:, place].view(x.shape))
            columns.append(step_terms(step, reverse, z_t.unsqueeze(0)).kl[0])
    kl = drawn.kl()
    return Bound(torch.stack(columns, 1), kl, drawn.nll(kl))


def noise_of(index: Tensor, spec: Spec, latents: Sequence[Latent], seed: int) -> Tensor:
    """Uniform numbers ``(B, T, D + n)`` for :func:`nelbo`, on the CPU, by each example's index and the seed alone."""
    return uniform_of(index, (spec.num_steps, spec.num_dims + num_uniforms(latents)), seed)


def stratified_steps(batch: int, steps: Timesteps, generator: Noise) -> Tensor:
    """Draw one step for each example: a number of steps, all equally likely, and one of its steps.

    Example i falls into stratum (i + u) / B of [0, 1) with one uniform u for the batch, in random order. So numbers of
    steps, and the steps of each, are spread evenly.

    Args:
        batch: B, of this process.
        steps: Which there are; n of them.
        generator: Source of randomness; its device is that of the result. Processes share the strata of their batch.

    Returns:
        Integer steps ``(B,)``, in 1..n.
    """
    offset = uniform((), generator)
    drawn, whole = permutation(batch, generator)
    place = (drawn + offset) / whole * len(steps.numbers)  # (B,)
    which = place.long().clamp_max(len(steps.numbers) - 1)
    counts, first = steps.counts.to(place.device)[which], steps.first.to(place.device)[which]
    return first + ((place - which) * counts).long().minimum(counts - 1)


def summed_over_processes(values: Tensor) -> Tensor:
    """The sum of what all processes have; every process has to ask."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def uniform_of(index: Tensor, size: tuple[int, ...], seed: int) -> Tensor:
    """Float64 numbers in [0, 1), ``(B, *size)``, on the CPU, by each example's index and a seed alone."""
    generators = (torch.Generator().manual_seed(mixed_seed(seed, i)) for i in index.tolist())
    return torch.stack([torch.rand(size, dtype=torch.float64, generator=each) for each in generators])


def mixed_seed(seed: int, *numbers: int) -> int:
    """A seed that depends on all of several numbers, in their order."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**61 - 1)
    return seed


class SharedGenerator(torch.Generator):
    """A generator of the noise of one training step, with the same seed in every process.

    Example j of process r is example j W + r of the whole batch, as samplers deal them out to W processes.
    :func:`uniform` draws the noise of the whole batch and takes the rows of this process. So what W processes learn
    does not depend on W, as long as the whole batch has the same size.

    Attributes:
        world: W.
        rank: r, this process.
        requests: What was drawn so far, to be drawn again by another generator; None where nobody asks.
    """

    world: int = 1
    rank: int = 0
    requests: list[Callable[[torch.Generator], Tensor]] | None = None


class DrawnNoise:
    """Noise that was drawn beforehand, in place of a generator: torch.compile cannot draw from one.

    Args:
        drawn: What :func:`uniform` and :func:`permutation` are to return, in this order.
        world: Number of processes.
    """

    def __init__(self, drawn: list[Tensor], world: int) -> None:
        self._drawn, self._place, self.world = drawn, 0, world

    def next(self) -> Tensor:
        """What is to be returned next."""
        self._place += 1
        return self._drawn[self._place - 1]


Noise: TypeAlias = torch.Generator | DrawnNoise


def uniform(shape: Sequence[int], generator: Noise) -> Tensor:
    """Float64 numbers in [0, 1), on the device of the generator.

    Args:
        shape: Its first entry is the batch of this process. ``()`` is one number, the same in all processes.
        generator: Of a :class:`SharedGenerator` they are rows of the noise of the whole batch.
    """
    return _drawn(partial(_uniform, tuple(shape)), generator)


def permutation(batch: int, generator: Noise) -> tuple[Tensor, int]:
    """Places of this process's examples in a random order of the whole batch, ``(batch,)``, and its size."""
    world = generator.world if isinstance(generator, SharedGenerator | DrawnNoise) else 1
    return _drawn(partial(_permutation, batch), generator), batch * world


def states_drawn(step: Step, generator: Noise) -> Tensor:
    """States z_t ~ q(z_t|x) for the examples of this process, integers ``(B, *shape)``; what estimators draw with."""
    return step.draw_from_uniform(uniform(step.x.shape, generator))


def _drawn(request: Callable[[torch.Generator], Tensor], generator: Noise) -> Tensor:
    if isinstance(generator, DrawnNoise):
        return generator.next()
    if isinstance(generator, SharedGenerator) and generator.requests is not None:
        generator.requests.append(request)
    return request(generator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    world, rank = _share(generator)
    size = (shape[0] * world, *shape[1:]) if shape else ()
    drawn = torch.rand(size, dtype=torch.float64, device=generator.device, generator=generator)
    return drawn[rank::world] if shape else drawn


def _permutation(batch: int, generator: torch.Generator) -> Tensor:
    world, rank = _share(generator)
    return torch.randperm(batch * world, device=generator.device, generator=generator)[rank::world]


def _share(generator: torch.Generator) -> tuple[int, int]:
    return (generator.world, generator.rank) if isinstance(generator, SharedGenerator) else (1, 0)
