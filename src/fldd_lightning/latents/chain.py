"""Latents of the parts of a sequence, a Markov chain: a hidden Markov model, fitted by expectation maximisation."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..errors import FLDDError
from ..ranges import AT_LEAST_TWO, COUNT, check_numbers
from ..spec import MOST_NUMBERS, Spec
from .base import hold_out
from .hidden_markov import Chain, ChainPosterior, filtered, neighbours, parts_of, scores, smoothed
from .tables import count, count_all, examples_at_once, normalised
from .tabular import TableLatent, affordable, sizes_to_try, started_from

__all__ = ["ChainLatent"]

_ITERATIONS = 20
_PRODUCTS = 2**35  # in a round of fitting, at most


class ChainLatent(TableLatent):
    """One number c_j of every part of a sequence, with the prior p(c_1) prod_j p(c_{j+1}|c_j).

    A latent of the whole cannot say much of each part of a long sequence. Here a part is some neighbouring coordinates,
    and with T = 1 the model is a hidden Markov model with products for emissions: its posterior, its
    likelihood and expectation maximisation are exact (Baum et al., 1970). A sample costs m look-ups more and no network
    pass. Networks for sequences see c_j at the coordinates of part j.

    It suits what is close to a Markov chain: walks, series of measurements. What hangs together over long distances, as
    in text and molecules, a chain of first order does not know, and its KL is dearer than the steps it saves.

    :meth:`fit` tries 1, 16, 64, ... values up to ``size``, as long as that makes held-out examples more likely. Where
    all parts are equally long (the length is a multiple of ``part``), it does so again with tables that are the same
    for all of them, which suits series that are cut anywhere, and keeps the better; not where coordinates differ in
    how many values they have. Coordinates at PAD do not count.

    Args:
        spec: K and a shape of ``(length,)``.
        part: Coordinates of a part, at most.
        size: C, the most values c_j may take. Fitting and training cost some m C^2 operations an example and step.
        smoothing: Examples' worth of what they have in common that the tables of every value are blended with.

    Attributes:
        log_first: log p(c_1), ``(C,)``; ``-inf`` for values not in use.
        log_following: log p(c_{j+1}|c_j), ``(m - 1, C, C)``; ``-inf`` for values not in use.

    Raises:
        FLDDError: If the shape is not that of a sequence, ``part`` is not positive, or as for
            :class:`~fldd_lightning.latents.TableLatent`.
    """

    name = "chain"
    log_first: Tensor
    log_following: Tensor
    part_of: Tensor

    def __init__(self, spec: Spec, part: int = 2, size: int = 256, smoothing: float = 1.0) -> None:
        check_numbers(locals(), part=COUNT, size=AT_LEAST_TWO)
        lengths = parts_of(spec, part)
        num_parts = len(lengths)
        if (num_parts - 1) * size**2 > MOST_NUMBERS:
            raise FLDDError(
                f"{num_parts} parts of {size} values would need a table of more than 256 MiB. Lower "
                "model.latents.size or raise model.latents.part."
            )
        super().__init__(spec, size, num_parts, smoothing)
        log_first = torch.full((size,), float("-inf"))
        log_first[0] = 0.0
        self.register_buffer("log_first", log_first)
        self.register_buffer("log_following", log_first.repeat(num_parts - 1, size, 1))
        part_of = torch.tensor(spec.part_of(num_parts))  # (D,)
        self.register_buffer("part_of", part_of, persistent=False)
        self._lengths = lengths

    def configuration(self) -> str:
        return f"{type(self).__name__}(size={self.size}, parts={self.num_parts})"

    @property
    def num_examples(self) -> int:
        return affordable(self.num_parts * self.size**2, _PRODUCTS)

    @property
    def num_used(self) -> int:
        return int(self.log_first.isfinite().sum())

    def posterior(self, x: Tensor, batch: Any = None) -> ChainPosterior:
        return ChainPosterior(x, self._chain, self._lengths)

    def posterior_given(self, x: Tensor, is_given: Tensor) -> ChainPosterior:
        return ChainPosterior(x, self._chain, self._lengths, is_given)

    def log_conditional_of(self, c: Tensor) -> Tensor:
        at_coordinates = c[:, self.part_of]  # (B, D)
        coordinates = torch.arange(len(self.part_of), device=c.device)
        return self.log_conditional.transpose(1, 2)[coordinates, at_coordinates]

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        return Chain(self.log_first, self.log_following, self.log_conditional).sample(num_samples, generator)

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int = 0) -> dict[str, float]:
        held, kept = hold_out(x, seed)
        same_length = len(set(self._lengths)) == 1 and self.num_parts > 1 and self.allowed is None
        ties = [False, True] if same_length else [False]  # whether all parts share tables
        nll_marginals = self._held_out_nll(held, self._maximise(kept, 1, False, seed))
        # with few values tables of their own may win where with many values shared ones do: so each grows to its best
        nll, best = min((self._grown(kept, held, tied, seed) for tied in ties), key=lambda each: each[0])
        self._keep(best)
        return {"values": self.num_used, "nll": nll, "nll_marginals": nll_marginals}

    def _grown(self, kept: Tensor, held: Tensor, tied: bool, seed: int) -> tuple[float, Chain]:
        """The chain of as many values as make held-out examples more likely, and their nats."""
        best = self._maximise(kept, 1, tied, seed)
        nll = self._held_out_nll(held, best)
        for size in sizes_to_try(self.most_values(len(held) + len(kept), len(kept)), first=2):
            larger = self._maximise(kept, size, tied, seed)
            value = self._held_out_nll(held, larger)
            if value >= nll:
                break
            nll, best = value, larger
        return nll, best

    @property
    def _chain(self) -> Chain:
        """The tables of the values in use, which :meth:`fit` puts first."""
        n = self.num_used
        return Chain(self.log_first[:n], self.log_following[:, :n, :n], self.log_conditional[..., :n])

    def _keep(self, chain: Chain) -> None:
        """Take these tables for one's own."""
        size = len(chain.first)
        self.log_first.fill_(float("-inf"))[:size] = chain.first
        self.log_following.fill_(float("-inf"))[:, :size, :size] = chain.following
        self.log_conditional.zero_()[..., :size] = chain.conditional
        self.is_fitted.fill_(True)

    def _held_out_nll(self, held: Tensor, chain: Chain) -> float:
        batches = torch.split(held, self._chunk(len(chain.first)))
        nll = [ChainPosterior(batch, chain, self._lengths).nll() for batch in batches]
        return float(torch.cat(nll).cpu().double().mean())

    def _maximise(self, x: Tensor, size: int, tied: bool, seed: int) -> Chain:
        """The chain after some rounds; its values start from the parts of examples."""
        counts = count_all(x, self.spec)
        if tied:
            counts = self._tie(counts)
        marginals = counts / counts.sum(-2, keepdim=True)
        if size == 1:
            one = torch.ones(1, device=x.device)
            return self._normalised(one, one.expand(self.num_parts - 1, 1, 1), marginals)
        examples = x[:size]
        if tied:  # one part of every example, wherever it stands
            which = torch.randint(self.num_parts, (size,), generator=torch.Generator().manual_seed(seed))
            parts = rearrange(examples, "n (m p) -> n m p", m=self.num_parts)[torch.arange(size), which.to(x.device)]
            examples = repeat(parts, "n p -> n (m p)", m=self.num_parts)
        chain = Chain(
            torch.full((size,), -log(size), device=x.device),
            torch.full((self.num_parts - 1, size, size), -log(size), device=x.device),
            started_from(examples, marginals, self.spec),
        )
        for _ in range(_ITERATIONS):
            chain = self._round(x, chain, marginals, tied)
        return chain

    def _round(self, x: Tensor, chain: Chain, marginals: Tensor, tied: bool) -> Chain:
        """One round of expectation maximisation."""
        first, following, conditional = (
            torch.zeros_like(each) for each in (chain.first, chain.following, chain.conditional)
        )
        for batch in torch.split(x, self._chunk(len(chain.first))):
            forward = filtered(scores(batch, chain.conditional, self._lengths), chain)
            q, ahead = smoothed(forward, chain)
            first += q[:, 0].sum(0)
            following += neighbours(forward, ahead, chain)
            each = zip(self._parts(batch), q.unbind(1), strict=True)
            conditional += torch.cat([count(part, w, self.spec.num_classes, self.spec.pad) for part, w in each])
        if tied:
            following = following.sum(0, keepdim=True).expand_as(following)
            conditional = self._tie(conditional)
        common = following.sum(1, keepdim=True)
        following = following + self.smoothing * common / common.sum(-1, keepdim=True)
        first = first + self.smoothing / len(first)
        return self._normalised(first, following, conditional + self.smoothing * marginals)

    def _tie(self, table: Tensor) -> Tensor:
        """The same for all parts: their sum."""
        return rearrange(table, "(m p) k c -> m p k c", m=self.num_parts).sum(0).repeat(self.num_parts, 1, 1)

    def _chunk(self, size: int) -> int:
        """Examples worked on at once."""
        return examples_at_once(self.num_parts * size)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Values ``(B, D)`` by part."""
        parts: tuple[Tensor, ...] = torch.split(x, self._lengths, 1)
        return parts

    def _normalised(self, first: Tensor, following: Tensor, conditional: Tensor) -> Chain:
        following = following / following.sum(-1, keepdim=True)
        return Chain(
            (first / first.sum()).clamp_min(1e-12).log(),
            following.clamp_min(1e-12).log(),
            normalised(conditional, self.spec.pad),
        )
