"""Processes that turn coordinates to MASK and do nothing else: absorbing, by an order set by hand, and learned.

A coordinate that is masked at t is masked at s = t-1 with probability stay_t, so that with gamma_T = 1

    gamma_s = gamma_t stay_t,   u_t = (1 - gamma_t) onehot(x) + gamma_t onehot(MASK).

One number for each time and coordinate says all: the log odds of staying. The maximum coupling of two such marginals
(eq. 10, 11) is just this: a masked coordinate stays with probability stay_t = gamma_s / gamma_t, or turns to x. A step
over several times multiplies what they stay with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad

from ..categorical import log_one_hot, one_hot
from ..errors import FLDDError
from ..factory import build
from ..networks.base import Backbone
from ..ranges import BETWEEN, check_numbers
from ..spec import Spec
from .base import ForwardProcess, floored, kept_logits
from .step import Step, even_times

__all__ = ["NEVER", "AbsorbingProcess", "LearnedMaskProcess", "MaskProcess", "MaskedStep", "StaggeredProcess"]

NEVER = -1e4  # log odds of what never happens: sigmoid(NEVER) is exactly 0, and all sums and gradients stay finite


@dataclass(frozen=True)
class MaskedStep(Step):
    """A step of a process that only masks: three numbers a coordinate, whatever K is.

    Attributes:
        mask: The state MASK, K.
        log_gamma: Log q(z_t = MASK|x), ``(B, *shape)``; ``-inf`` at PAD.
        log_kept: Log q(z_t = x|x), ``(B, *shape)``.
        log_odds: Log odds that a coordinate masked at t is masked at s, ``(B, *shape)``; ``NEVER`` at s = 0.
        usual: Probability that masked diffusion reveals a masked coordinate in this step, (t - s) / t, ``(B,)``.
    """

    mask: int
    log_gamma: Tensor
    log_kept: Tensor
    log_odds: Tensor
    usual: Tensor

    @property
    def learns(self) -> bool:
        return self.log_odds.requires_grad

    def with_given(self, given: Tensor) -> MaskedStep:
        log_kept, log_gamma = self.log_kept.masked_fill(given, 0.0), self.log_gamma.masked_fill(given, float("-inf"))
        return replace(self, log_kept=log_kept, log_gamma=log_gamma, given=given)

    def draw_from_uniform(self, uniform: Tensor) -> Tensor:
        is_masked = uniform >= self.log_kept.detach().to(uniform).exp()
        return torch.where(is_masked.to(self.x.device), self.mask, self.x)

    @property
    def noise_shape(self) -> torch.Size:
        return self.x.shape

    def draw_relaxed(self, uniform: Tensor, temperature: float) -> Tensor:
        noise = uniform.logit(1e-16).to(self.log_gamma)  # the difference of two Gumbel draws
        masked = ((self.log_gamma - self.log_kept + noise) / temperature).sigmoid().unsqueeze(-1)
        at_data, at_mask = (
            one_hot(z, self.mask + 1, masked.dtype) for z in (self.x, torch.full_like(self.x, self.mask))
        )
        return (1 - masked) * at_data + masked * at_mask

    def log_prob(self, z_t: Tensor) -> Tensor:
        return torch.where(z_t == self.mask, self.log_gamma, self.log_kept).flatten(1).sum(1)


class MaskProcess(ForwardProcess):
    """Base class: a subclass gives :meth:`log_stay_odds`, and :meth:`log_stay_odds_of` if they depend on x.

    Attributes:
        odds_are_of_steps: Whether, of several numbers of steps, each has odds of its own, which stand at the times that
            its steps leave. Otherwise a step has those of all times that it passes.
    """

    odds_are_of_steps = False

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, spec.num_classes + 1)

    @abstractmethod
    def log_stay_odds(self) -> Tensor:
        """Log odds that a coordinate masked at time t is masked at t-1, of the schedule that all examples share.

        The reverse process starts from them: gamma_s / (gamma_t - gamma_s) of eq. 10.

        Returns:
            ``(T + 1, *shape)``, for t = 0..T; ``NEVER`` at 0 and 1. Dimensions of ``shape`` may be 1.
        """

    def log_stay_odds_of(self, x: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """The same of every example, for t = 2..T: ``(B or 1, *shape, T - 1)``; dimensions of ``shape`` may be 1."""
        return self._shared()

    def shared_odds(self) -> Tensor:
        """Log odds that a masked coordinate stays masked in a step, of the schedule that all examples share.

        Returns:
            ``(n + 1, *shape)``, for all steps; ``NEVER`` at those to s = 0. Dimensions of ``shape`` may be 1.
        """
        return self._odds_of_steps(self._shared()[0], len(self.timesteps.numbers)).movedim(-1, 0)

    def _shared(self) -> Tensor:
        return self.log_stay_odds()[2:].movedim(0, -1).unsqueeze(0)  # (1, *shape or 1.., T - 1)

    def _shared_of_steps(self) -> tuple[Tensor, Tensor]:
        """:meth:`_shared` of m schedules ``(m, *shape or 1.., T - 1)``, and which of them a step has ``(n + 1,)``."""
        return self._shared(), torch.zeros_like(self.timesteps.t)

    def _odds_of_steps(self, log_odds: Tensor, numbers: int) -> Tensor:
        """Log odds of staying in the steps of the first ``numbers`` numbers of steps, which are n, and in step 0.

        Args:
            log_odds: Of the times 2..T, ``(..., T - 1)``.
            numbers: One, or all there are.

        Returns:
            ``(..., n + 1)``.
        """
        steps = self.timesteps
        if steps.are_times:
            return pad(log_odds, (2, 0), value=NEVER)
        at_times = logsigmoid(log_odds).repeat(*[1] * (log_odds.dim() - 1), numbers)
        passing, last = steps.passing[: at_times.shape[-1]], 1 + sum(steps.numbers[:numbers])
        log_stay = at_times.new_zeros(*at_times.shape[:-1], last).index_add(-1, passing, at_times)
        return (log_stay - _log_not(log_stay)).masked_fill(steps.s[:last] == 0, NEVER)

    @torch.no_grad()
    def leaving(self, t: Tensor) -> Tensor:
        tables, which = self._shared_of_steps()
        log_gamma = log_kept_gamma(tables)[1].movedim(-1, 1)[which, self.timesteps.t]  # (n + 1, *shape or 1..)
        at_each = (log_gamma + logsigmoid(-self.shared_odds())).exp()
        return at_each[t].expand(len(t), *self.spec.shape)

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        both = log_kept_gamma(self.log_stay_odds_of(x, condition))
        log_kept, log_gamma = (_at(each, t, x.shape) for each in both)
        kept = log_one_hot(x, self.spec.num_classes, self.dtype).unsqueeze(1) + log_kept.unsqueeze(-1)
        return torch.cat([kept, log_gamma.unsqueeze(-1)], -1)  # (B, M, *shape, K + 1)

    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        num_states = self.num_states
        log_stay = _between(logsigmoid(self._shared()), t, s)  # (B, *shape or 1..)
        stay = _odds(log_stay, s).sigmoid().unsqueeze(-1).to(state)  # (B, *shape or 1.., 1)
        mask = one_hot(torch.full((), num_states - 1, device=state.device), num_states, state.dtype)
        masked = floored(stay * mask + (1 - stay) * (1 - mask) / self.spec.num_classes, num_states).log()
        kept, other = kept_logits(torch.ones_like(stay), num_states)
        is_masked = state[..., -1:]
        return is_masked * masked + (1 - is_masked) * other + state * (1 - mask) * (kept - other)

    def log_prior(self) -> Tensor:
        mask = torch.full((), self.num_states - 1, device=self._one.device)
        return log_one_hot(mask, self.num_states, self.dtype)

    def kept(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return self._kept_under(self.log_stay_odds_of(x, condition), x, t)

    def _kept_under(self, odds: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """:meth:`kept` under log odds ``(B or 1, *shape or 1.., T - 1)``."""
        kept = _at(log_kept_gamma(odds)[0], t, x.shape).exp()
        return kept if self.spec.pad is None else kept.masked_fill((x == self.spec.pad).unsqueeze(1), 1.0)

    def step(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> MaskedStep:
        return self._step_of(x, t, condition, self._odds_at(x, t, condition))

    def steps(self, x: Tensor, condition: tuple[Tensor, ...] = ()) -> Iterator[Step]:
        if type(self).step is not MaskProcess.step:  # a subclass's own
            yield from super().steps(x, condition)
            return
        odds = self.log_stay_odds_of(x, condition)  # the network runs once
        log_odds = self._odds_of_steps(odds, 1)  # (B or 1, *shape or 1.., N + 1)
        log_gamma = _log_gammas(odds).index_select(-1, self.timesteps.t[1 : self.num_steps + 1] - 1)  # N in the last
        for t in range(1, self.num_steps + 1):
            at_t = torch.full((len(x),), t, device=x.device)
            yield self._made(x, at_t, condition, log_gamma[..., t - 1], log_odds[..., t])

    def _odds_at(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """:meth:`log_stay_odds_of` for the number of steps that each of the steps ``t``, ``(B,)``, is one of."""
        return self.log_stay_odds_of(x, condition)

    def _step_of(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...], odds: Tensor) -> MaskedStep:
        """The steps ``t``, ``(B,)``, from log odds of staying ``(B or 1, *shape or 1.., T - 1)``."""
        time, before = self.timesteps.t[t], self.timesteps.s[t]
        if len(odds) == 1:  # all examples share the schedule, and so all steps of one kind
            log_gamma = _at(_log_gammas(odds), time[:, None] - 1, x.shape).squeeze(1)
            log_odds = self._odds_of_steps(odds[0], len(self.timesteps.numbers)).movedim(-1, 0)[t]
        else:
            log_stay, end = logsigmoid(odds), torch.full_like(time, self.spec.num_steps)
            log_gamma = _between(log_stay, end, time)
            if self.timesteps.are_times or self.odds_are_of_steps:
                log_odds = _at(odds, (time - 2).clamp_min(0)[:, None], x.shape).squeeze(1)  # (B, *shape)
                log_odds = log_odds.masked_fill(per_example(before == 0, log_odds), NEVER)
            else:
                log_odds = _odds(_between(log_stay, time, before), before)
        return self._made(x, t, condition, log_gamma, log_odds)

    def _made(
        self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...], log_gamma: Tensor, log_odds: Tensor
    ) -> MaskedStep:
        """The steps of given log gamma_t and log odds of staying, ``(B or 1, *shape or 1..)``."""
        time, before = self.timesteps.t[t], self.timesteps.s[t]
        log_gamma, log_odds = log_gamma.expand(x.shape), log_odds.expand(x.shape)
        log_kept = _log_not(log_gamma).masked_fill(per_example(time == self.spec.num_steps, log_gamma), float("-inf"))
        if self.spec.pad is not None:  # never masked
            is_pad = x == self.spec.pad
            log_kept, log_gamma = log_kept.masked_fill(is_pad, 0.0), log_gamma.masked_fill(is_pad, float("-inf"))
        usual = (time - before).to(log_odds.dtype) / time
        return MaskedStep(x, t, condition, self.spec.pad, self.num_states - 1, log_gamma, log_kept, log_odds, usual)


class AbsorbingProcess(MaskProcess):
    """Masked diffusion: a coordinate turns to MASK and stays there (Austin et al., 2021).

    u_t = (1 - t/T) onehot(x) + t/T onehot(MASK): a masked coordinate stays masked with probability s/t.
    """

    odds: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        s = torch.arange(-1, spec.num_steps).reshape(-1, *[1] * len(spec.shape))  # (T + 1, 1..)
        self.register_buffer("odds", torch.where(s > 0, s.log(), NEVER), persistent=False)

    def log_stay_odds(self) -> Tensor:
        return self.odds


class StaggeredProcess(MaskProcess):
    """Masked diffusion by an order set by hand: coordinates that are revealed together lie far apart.

    Neighbours in a text or an image depend on each other, and a factorised step cannot draw them together.
    Coordinates are sorted by :func:`bayer_order`, cut into T groups of equal size, and revealed a group
    at a step: for T = 4 in one dimension every fourth coordinate, those halfway between, then the rest in two
    parts.

    Args:
        spec: K, shape and T.
        slack: In (0, 1). At every step each coordinate does the opposite of what is its turn with a probability of
            about ``slack / T``. A learned process needs some, to see what another order would have brought.

    Raises:
        FLDDError: If the slack is out of range.
    """

    odds: Tensor

    def __init__(self, spec: Spec, slack: float = 0.05) -> None:
        check_numbers(locals(), slack=BETWEEN)
        super().__init__(spec)
        num_steps = spec.num_steps
        turn = num_steps - bayer_order(spec.shape) * num_steps // spec.num_dims  # (*shape): the t of their step
        t = torch.arange(num_steps + 1).reshape(-1, *[1] * turn.dim())
        odds = torch.where(t > turn, 1.0, -1.0) * log(num_steps / slack)  # (T + 1, *shape)
        self.slack = slack
        self.register_buffer("odds", odds.masked_fill(t < 2, NEVER), persistent=False)

    def configuration(self) -> str:
        return f"{super().configuration()}(slack={self.slack})"

    def log_stay_odds(self) -> Tensor:
        return self.odds


class LearnedMaskProcess(MaskProcess):
    """A mask schedule that is learned, over a fixed one.

    The log odds that a coordinate masked at t is masked at s = t - 1 are base + pace (order + network(x)). So gamma is
    monotone in t, gamma_T is exactly 1, and a masked coordinate never returns. With ``order`` and the network's last
    layer at zero the process is its base.

    ``pace`` is 1 up to T = 8 and 8 / T above. Adam moves what it learns at one rate, however little a gradient says.
    With more steps each of them says less, and gamma, a product over them, would drift away on noise.

    The network sees x, so that examples may have schedules of their own. On all data tried they hardly do:
    ``collapse/spread`` says how far their schedules are apart.

    ``order`` is a table per step and coordinate that all examples share. Networks that are equivariant to
    shifts, such as a Transformer with rotary positions, cannot tell a coordinate by its place, and every
    network learns an order more slowly than a table does. The reverse process starts from base + order, so that
    it follows a change of the order at once.

    With ``budgets`` each of them has a base and a table of its own, and all share the network, which has an output for
    each time of the grid. Were the odds of a long step those of the many times that it passes, next to nothing would be
    masked past its turn, and the step could not learn; and what is best for few steps is not so for many. A number of
    steps that is none of the budgets has the base as it is on the grid, and no table.

    Args:
        spec: K, shape and T.
        network: Makes the backbone from ``(spec, num_inputs, num_outputs)``; its outputs are
            log odds of each coordinate for t = 2..T.
        base: Makes the schedule to start from: :class:`StaggeredProcess`, or for data without neighbours
            :class:`AbsorbingProcess`.

    Raises:
        FLDDError: If the base is learned or does more than mask.
    """

    learned = True
    odds_are_of_steps = True
    _order_scale = 10.0  # of the table, which Adam thereby moves ten times as fast as a weight
    _full_pace = 8  # the T up to which pace is 1
    base_odds: Tensor
    paces: Tensor
    rows: Tensor
    tables: Tensor
    places: Tensor

    def __init__(
        self,
        spec: Spec,
        network: Callable[[Spec, int, int], Backbone],
        base: Callable[[Spec], MaskProcess] = StaggeredProcess,
    ) -> None:
        super().__init__(spec)
        self.base = build(base, MaskProcess, spec)
        if self.base.learned:
            raise FLDDError(
                f"the base is {type(self.base).__name__}, but it must be a fixed process that only masks: "
                "StaggeredProcess or AbsorbingProcess."
            )
        self.network = build(network, Backbone, spec, spec.num_classes, spec.num_steps - 1)
        self._numbers = spec.budgets or (spec.num_steps,)
        self.order = nn.Parameter(torch.zeros(sum(n + 1 for n in self._numbers), *spec.shape))
        bases = [
            self.base if n == spec.num_steps else build(base, MaskProcess, replace(spec, num_steps=n, budgets=()))
            for n in self._numbers
        ]
        placed = [_on_grid(each.log_stay_odds(), spec) for each in bases]
        steps = torch.cat([torch.arange(n + 1) for n in self._numbers])
        times = torch.cat([even_times(spec.num_steps, n) for n in self._numbers])
        which = torch.arange(len(placed)).repeat_interleave(torch.tensor([n + 1 for n in self._numbers]))
        buffers = {
            "base_odds": torch.stack(placed),  # (m, T + 1, *shape)
            "rows": (steps > 1).nonzero().squeeze(1),  # of the table, those that are used: the others' odds are NEVER
            "tables": (which * (spec.num_steps + 1) + times)[steps > 1],  # where in base_odds these belong
            "places": torch.zeros(1, dtype=torch.long),
            "paces": torch.ones(1),  # of each schedule
        }
        for name, buffer in buffers.items():  # no part of a checkpoint
            self.register_buffer(name, buffer, persistent=False)
        self.walk(self.num_steps)

    def walk(self, num_steps: int, further: Sequence[int] = ()) -> None:
        super().walk(num_steps, further)
        known = list(self._numbers)
        self.base_odds = self.base_odds[: len(known)]
        if num_steps not in known:
            as_it_is = _on_grid(self.base.shared_odds()[: num_steps + 1], self.spec)
            self.base_odds = torch.cat([self.base_odds, as_it_is.unsqueeze(0)])
            known.append(num_steps)
        self._place = known.index(num_steps)
        paces = [min(1.0, self._full_pace / n) for n in known]
        self._pace, self.paces = paces[self._place], torch.tensor(paces, device=self._one.device)  # (m,)
        self.places = torch.tensor([known.index(n) for n in self.timesteps.numbers], device=self._one.device)

    def _schedules(self) -> Tensor:
        """Log odds of all schedules that examples share, one for each number of steps, ``(m, T + 1, *shape)``."""
        if len(self.base_odds) == 1:
            return self.base_odds + self._order_scale * self._pace * self.order
        moved = torch.zeros_like(self.base_odds).flatten(0, 1).index_add(0, self.tables, self.order[self.rows])
        scale = self._order_scale * self.paces.reshape(-1, *[1] * (self.base_odds.dim() - 1))
        return self.base_odds + scale * moved.view(self.base_odds.shape)

    def log_stay_odds(self) -> Tensor:
        return self._schedules()[self._place]

    def configuration(self) -> str:
        return f"{super().configuration()} over {self.base.configuration()}"

    def log_stay_odds_of(self, x: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return self._pace * self._residual(x, condition) + super().log_stay_odds_of(x)  # (B, *shape, T - 1)

    def shared_odds(self) -> Tensor:
        if self.timesteps.are_times:
            return self.log_stay_odds()
        return self._schedules()[self.places[self.timesteps.which], self.timesteps.t]

    def kept_at_start(self, x: Tensor, t: Tensor) -> Tensor:
        """:meth:`kept` before anything is learned; for t in 1..T-1."""
        return self._kept_under(self.base_odds[self._place, 2:].movedim(0, -1).unsqueeze(0), x, t)

    def _shared_of_steps(self) -> tuple[Tensor, Tensor]:
        return self._schedules()[:, 2:].movedim(1, -1), self.places[self.timesteps.which]

    def _odds_at(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        if len(self.timesteps.numbers) == 1:
            return self.log_stay_odds_of(x, condition)
        shared, which = self._shared_of_steps()
        schedule = which[t]
        residual = self._residual(x, condition)
        pace = per_example(self.paces[schedule], residual)
        return pace * residual + shared.contiguous().index_select(0, schedule)

    def _residual(self, x: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """What the network adds at full pace, ``(B, *shape, T - 1)``."""
        residual: Tensor = self.network(x, torch.zeros(len(x), dtype=torch.long, device=x.device), condition)
        return residual.to(torch.promote_types(residual.dtype, torch.float32))


def _on_grid(odds: Tensor, spec: Spec) -> Tensor:
    """Odds of the steps 0..N of a schedule ``(N + 1, *shape or 1..)`` at the times they leave, ``(T + 1, *shape)``.

    At the other times of the grid nothing changes: what is masked there stays so.
    """
    grid = torch.full((spec.num_steps + 1, *spec.shape), -NEVER, dtype=odds.dtype, device=odds.device)
    times = even_times(spec.num_steps, len(odds) - 1).to(odds.device)
    return grid.index_copy(0, times, odds.expand(-1, *spec.shape))


def log_kept_gamma(log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Log of 1 - gamma_t and of gamma_t for t = 0..T, from gamma_s = gamma_t stay_t and gamma_T = 1.

    Args:
        log_odds: Of staying masked at the steps from t = 2..T, ``(B or 1, *shape, T - 1)``.

    Returns:
        Two tensors ``(B or 1, *shape, T + 1)``; ``-inf`` at the boundaries alone.
    """
    log_gamma = _log_gammas(log_odds)  # of t = 1..T
    zero = torch.zeros_like(log_gamma[..., -1:])
    nothing = torch.full_like(zero, float("-inf"))
    return torch.cat([zero, _log_not(log_gamma[..., :-1]), nothing], -1), torch.cat([nothing, log_gamma], -1)


def _log_gammas(log_odds: Tensor) -> Tensor:
    """Log of gamma_t for t = 1..T, ``(..., T)``, of the log odds of :func:`log_kept_gamma`."""
    log_gamma = logsigmoid(log_odds).flip(-1).cumsum(-1).flip(-1)  # of t = 1..T-1
    return torch.cat([log_gamma, log_gamma.new_zeros(*log_gamma.shape[:-1], 1)], -1)


def _between(log_stay: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Log probability that a coordinate masked at time t is masked at s: the sum over the times s + 1..t.

    Args:
        log_stay: Log probability of staying masked at the times 2..T, ``(B or 1, *shape or 1.., T - 1)``.
        t: Times ``(B,)``.
        s: Earlier times ``(B,)``. At time 1 nothing stays, which is left out: the result is for s above 0.

    Returns:
        ``(B, *shape or 1..)``; 0 where s = t.
    """
    time = torch.arange(2, log_stay.shape[-1] + 2, device=t.device)
    passed = (time > s.unsqueeze(-1)) & (time <= t.unsqueeze(-1))  # (B, T - 1)
    return torch.where(passed.reshape(len(t), *[1] * (log_stay.dim() - 2), -1), log_stay, 0.0).sum(-1)


def _odds(log_stay: Tensor, s: Tensor) -> Tensor:
    """Log odds from log-probabilities ``(B, *shape)`` of staying masked in steps to the times s ``(B,)``."""
    return (log_stay - _log_not(log_stay)).masked_fill(per_example(s == 0, log_stay), NEVER)


def _log_not(log_p: Tensor) -> Tensor:
    """Log(1 - p), finite where p is 1, too."""
    return (-torch.expm1(log_p.clamp_max(-torch.finfo(log_p.dtype).tiny))).log()


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """One value an example ``(B,)``, shaped to broadcast against ``(B, *shape)``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _at(table: Tensor, t: Tensor, shape: torch.Size) -> Tensor:
    """Entries of ``(B or 1, *shape or 1.., n)`` at places ``(B, M)``: ``(B, M, *shape)``."""
    index = t.reshape(*t.shape, *[1] * len(shape[1:]), 1).expand(*t.shape, *shape[1:], 1)
    expanded = table.expand(*shape, -1).unsqueeze(1).expand(-1, t.shape[1], *[-1] * len(shape))
    return expanded.gather(-1, index).squeeze(-1)


def bayer_order(shape: tuple[int, ...]) -> Tensor:
    """The place of every coordinate in an order in which consecutive ones lie far apart.

    In one dimension that of the van der Corput sequence: positions sorted by their bits read backwards. In two
    that of Bayer's matrix of ordered dithering (1973). In d dimensions the last bits of the d positions count
    most, and of these their parity, then the parity of all but the first, and so on.

    Returns:
        Integers 0..D-1, ``shape``, each once.
    """
    key = torch.zeros(shape, dtype=torch.float64)
    positions = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    weight = 1.0
    for bit in range(max(shape).bit_length()):
        bits = [(position >> bit) & 1 for position in positions]
        for k in range(len(shape)):
            key += weight * (sum(bits[k:]) % 2)
            weight /= 2
    return key.flatten().argsort(stable=True).argsort().view(shape)
