"""Ancestral sampling: z_T from the prior, then z_{t-1} from p(.|z_t) for t = T..1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bound import mixed_seed
from .categorical import check_integers, check_states, check_values, float64_device, sample_categorical
from .data.loaders import whole_batches
from .decoding import Ancestral, Decoding
from .errors import FLDDError
from .forward.base import ForwardProcess
from .latents.base import Latent
from .latents.condition import ConditionLatent, VectorLatent
from .reverse import Reverse
from .spec import Spec

__all__ = [
    "BOUND_DRAWS",
    "Batch",
    "ancestral_sample",
    "as_batch",
    "batches_of",
    "best_of",
    "chosen_latents",
    "draw_samples",
    "given_rows",
    "num_passes",
    "rows_of_share",
    "with_conditions",
]


BOUND_DRAWS = 4  # of the bound of each sample of which the best is kept


class Batch(NamedTuple):
    """Samples that are drawn at once.

    Attributes:
        rows: Which of all samples these are.
        seed: Of their noise. No batch depends on those before it, so that any process can draw it.
    """

    rows: slice
    seed: int


def rows_of_share(num_samples: int, batch_size: int, share: tuple[int, int]) -> slice:
    """Which samples one of several processes draws; see :func:`~fldd_lightning.data.loaders.whole_batches`.

    Args:
        num_samples: N, of all processes.
        batch_size: Samples of a batch; the last one may have fewer.
        share: Rank r and number W of the processes.

    Raises:
        FLDDError: Unless r is in 0..W-1 and there is a batch for every process.
    """
    whole = isinstance(share, tuple) and len(share) == 2 and all(type(each) is int for each in share)
    if not whole or not 0 <= share[0] < share[1]:
        raise FLDDError(f"share is {share}, but (r, W) stands for process r of W, which are counted from 0.")
    rank, world = share
    if num_samples < world:
        raise FLDDError(f"{world} processes cannot share {num_samples} samples: draw more, or start fewer processes.")
    if num_samples <= (world - 1) * batch_size:
        raise FLDDError(
            f"{num_samples} samples in batches of {batch_size} are too few for {world} processes, which share whole "
            f"batches: set batch_size to {num_samples // world} or less, draw more samples, or start fewer processes."
        )
    rows = whole_batches(num_samples, batch_size, rank, world)
    return slice(rows.start, rows.stop)


def batches_of(rows: slice, batch_size: int, seed: int) -> list[Batch]:
    """The batches of some samples; the first of all samples has the seed itself.

    Args:
        rows: Which samples, as :func:`rows_of_share` gives them.
        batch_size: Samples of a batch.
        seed: Of all samples.
    """
    return [
        Batch(
            slice(first, min(first + batch_size, rows.stop)),
            mixed_seed(seed, 1, 0, first // batch_size) if first else seed,  # far from the small seeds that users take
        )
        for first in range(rows.start, rows.stop, batch_size)
    ]


@torch.no_grad()
def ancestral_sample(
    process: ForwardProcess,
    reverse: Reverse,
    num_samples: int,
    generator: torch.Generator,
    condition: tuple[Tensor, ...] = (),
    padding: Tensor | None = None,
    num_steps: int | None = None,
    trajectory: bool = False,
    on_step: Callable[[], object] = lambda: None,
    decoding: Decoding | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """Draw samples; the forward network is not needed.

    Args:
        process: The forward process, for its prior.
        reverse: The reverse process.
        num_samples: N, drawn in one batch.
        generator: Source of the noise, on the device of the networks (on the CPU for MPS).
        condition: What networks see beside the state, one tensor for every entry of ``spec.seen``.
        padding: Where the samples are to be PAD, ``(N, *shape)`` of bool; None in a model without PAD.
        num_steps: If given, must be the number of steps of the process (NFE).
        trajectory: Return all states z_T..z_0 instead of z_0.
        on_step: Called after every step, for progress bars.
        decoding: How a step is drawn; None for :class:`Ancestral`, which the bound is of.
        given: Values that are held in every state, ``(N, *shape)``, -1 where there is none; see :func:`given_rows`.

    Returns:
        z_0, integers ``(N, *shape)``; with ``trajectory`` z_T..z_0, ``(T + 1, N, *shape)``.

    Raises:
        FLDDError: If ``num_steps`` is not the trained T, there is padding without PAD or the reverse, or the model
            cannot be decoded this way.
    """
    spec, decoding = process.spec, decoding or Ancestral()
    decoding.check(process, reverse)
    if num_steps is not None and num_steps != process.num_steps:
        raise FLDDError(
            f"asked for {num_steps} steps, but this model was trained with T={process.num_steps} alone: train one "
            f"with num_steps={num_steps}, or for several with budgets=[{process.num_steps},{num_steps}]."
        )
    if (padding is None) == spec.padded:
        raise FLDDError(
            "a model with PAD samples given where the padding is, and only such a model does. Add a latent that says "
            "it, such as LengthLatent."
        )
    device = next(reverse.parameters()).device
    log_priors = process.log_priors().to(device)
    z = sample_categorical(log_priors.expand(num_samples, *spec.shape, -1), generator)
    if padding is not None:
        z = z.masked_fill(padding.to(device), spec.num_classes - 1)
    held = None if given is None else given.to(device)
    z = z if held is None else torch.where(held < 0, z, held)
    states = [z]
    with reverse.told(condition):
        for step in range(process.num_steps, 0, -1):
            z = decoding.draw(reverse, z, step, generator, condition)
            z = z if held is None else torch.where(held < 0, z, held)
            if trajectory:
                states.append(z)
            on_step()
    return torch.stack(states) if trajectory else z


def draw_samples(
    process: ForwardProcess,
    reverse: Reverse,
    latents: Sequence[Latent],
    batches: Sequence[Batch],
    num_steps: int | None = None,
    trajectory: bool = False,
    progress: bool = False,
    decoding: Decoding | None = None,
    given: Tensor | None = None,
    chosen: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Draw latents, then samples, batch after batch.

    Latents that are not chosen come from their priors, or where something is given, from :meth:`Latent.sample_given`.

    Args:
        process: The forward process, for its prior.
        reverse: The reverse process.
        latents: All latents; those that networks see make the condition, and one may say where PAD is.
        batches: Which samples to draw at once, with which seed; see :func:`batches_of`.
        num_steps: As for :func:`ancestral_sample`.
        trajectory: As for :func:`ancestral_sample`.
        progress: Show a progress bar.
        decoding: As for :func:`ancestral_sample`.
        given: As for :func:`ancestral_sample`, of all samples.
        chosen: Latents of all samples by name, ``(N, m)``; see :func:`chosen_latents`.

    Returns:
        Integers ``(n, *shape)`` of the n samples of these batches, or ``(T + 1, n, *shape)`` with ``trajectory``, on
        the CPU.
    """
    from rich.progress import Progress

    decoding = decoding or Ancestral()
    decoding.check(process, reverse)  # before a progress bar is shown
    device = next(reverse.parameters()).device
    chosen = chosen or {}
    generator = torch.Generator(float64_device(device))
    parts: list[Tensor] = []
    with Progress(disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(batches) * process.num_steps)
        for rows, seed in batches:
            generator.manual_seed(seed)
            size, held = rows.stop - rows.start, None if given is None else given[rows].to(device)
            drawn = [
                chosen[latent.name][rows].to(device)
                if latent.name in chosen
                else _drawn(latent, size, held, generator).to(device)
                for latent in latents
            ]
            pairs = list(zip(latents, drawn, strict=True))
            condition = tuple(c for latent, c in pairs if latent.seen is not None)
            padding = next((pad for latent, c in pairs if (pad := latent.padding(c)) is not None), None)
            part = ancestral_sample(
                process, reverse, size, generator, condition, padding, num_steps, trajectory,
                lambda: bar.advance(task), decoding, held,
            )  # fmt: skip
            parts.append(part.cpu())
    return torch.cat(parts, 1 if trajectory else 0)


def given_rows(given: Tensor, spec: Spec, num_samples: int) -> Tensor:
    """What is given of every sample, ``(N, *shape)``, -1 where nothing is.

    Args:
        given: Integers of one example ``shape``, or of n ``(n, *shape)``; sample i gets example i modulo n.
        spec: K and shape.
        num_samples: N, a multiple of n.

    Raises:
        FLDDError: If shape, type, number or a value does not fit.
    """
    if not isinstance(given, Tensor):
        raise FLDDError(f"given is a {type(given).__name__}, not a tensor of integers.")
    rows = given.unsqueeze(0) if given.shape == torch.Size(spec.shape) else given
    check_integers(rows, "given")
    wrong = rows[(rows < -1) | (rows >= spec.num_classes)]
    if len(wrong):
        raise FLDDError(
            f"given has the value {int(wrong[0])}, but values must lie in 0..{spec.num_classes - 1}, or be -1 where "
            "nothing is known. Unsigned integers have no -1."
        )
    check_states(rows.clamp_min(0), spec.num_classes, spec.shape, "given")
    if spec.num_values is not None:
        check_values(rows, spec.num_values)
    if num_samples % len(rows):
        raise FLDDError(
            f"{len(rows)} examples are given, and {num_samples} samples asked for. Ask for {len(rows)}, or a multiple."
        )
    return rows.long().repeat(num_samples // len(rows), *[1] * len(spec.shape))


def chosen_latents(condition: Mapping[str, Any], latents: Sequence[Latent], num_samples: int) -> dict[str, Tensor]:
    """The latents that a user chose for samples, by name, ``(N, m)`` each.

    Args:
        condition: One value of a latent or n of them, by its name; sample i gets value i modulo n.
        latents: All of the model's.
        num_samples: N, a multiple of each n.

    Raises:
        FLDDError: If a name is no latent's that can be chosen, or a value or a number of values does not fit.
    """
    possible = {latent.name: latent for latent in latents if isinstance(latent, ConditionLatent)}
    chosen = {}
    for name, values in condition.items():
        if name not in possible:
            named = f"can be asked for {', '.join(possible)}" if possible else "has no labels and no vectors"
            raise FLDDError(f"samples cannot be asked for '{name}': this model {named}.")
        rows = possible[name].choose(values)
        if num_samples % len(rows):
            raise FLDDError(
                f"{len(rows)} values of '{name}' are given, and {num_samples} samples asked for. Ask for {len(rows)}, "
                "or a multiple."
            )
        chosen[name] = rows.repeat(num_samples // len(rows), 1)
    return chosen


def with_conditions(
    chosen: Mapping[str, Tensor], latents: Sequence[Latent], num_samples: int, seed: int
) -> dict[str, Tensor]:
    """Chosen latents, and draws of those that could be chosen and are not: a bound of samples is then known.

    Raises:
        FLDDError: If a vector is not chosen: it has no prior.
    """
    whole = dict(chosen)
    generator = torch.Generator().manual_seed(seed)
    for latent in latents:
        if isinstance(latent, VectorLatent) and latent.name not in whole:
            raise FLDDError(
                f"best_of needs the bound of a sample, which is that of x given its '{latent.name}': choose it by "
                "condition (--condition), or set best_of to 1."
            )
        if isinstance(latent, ConditionLatent) and latent.name not in whole:
            whole[latent.name] = latent.sample(num_samples, generator)
    return whole


def as_batch(chosen: Mapping[str, Tensor], latents: Sequence[Latent]) -> dict[str, Tensor]:
    """Chosen latents as a batch has them."""
    return {
        latent.name: latent.as_data(chosen[latent.name])
        for latent in latents
        if isinstance(latent, ConditionLatent) and latent.name in chosen
    }


def num_passes(num_steps: int, decoding: Decoding, best_of: int) -> int:
    """NFE: passes of the denoiser that a sample takes, with those of the bounds by which the best is chosen.

    Args:
        num_steps: T.
        decoding: How a step is drawn.
        best_of: How many are drawn for each sample.
    """
    return best_of * num_steps * (decoding.passes + (BOUND_DRAWS if best_of > 1 else 0))


def best_of(n: int, draw: Callable[[int], Tensor], nelbo: Callable[[Tensor], Tensor]) -> Tensor:
    """Of n samples each the one with the lowest bound.

    Args:
        n: How many are drawn for each.
        draw: Draws number 0..n-1 of all of them, states ``(T + 1, N, *shape)``.
        nelbo: The bound ``(N,)`` of integers ``(N, *shape)``.

    Returns:
        States ``(T + 1, N, *shape)``.
    """
    best = draw(0)
    lowest = nelbo(best[-1])
    for i in range(1, n):
        states = draw(i)
        bound = nelbo(states[-1])
        is_better = bound < lowest
        lowest = torch.where(is_better, bound, lowest)
        best = torch.where(is_better.view(1, -1, *[1] * (best.dim() - 2)), states, best)
    return best


def _drawn(latent: Latent, size: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
    """A latent of every sample of a batch, ``(N, m)``."""
    if given is None:
        return latent.sample(size, generator)
    return latent.sample_given(given.clamp_min(0), given >= 0, generator)
