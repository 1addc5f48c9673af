"""Ancestral sampling: z_T from the prior, then z_{t-1} from p(.|z_t) for t = T..1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .categorical import sample_categorical
from .decoding import Ancestral, Decoding
from .errors import FLDDError
from .forward.base import ForwardProcess
from .latents.base import Latent
from .reverse import Reverse

__all__ = ["ancestral_sample", "draw_samples"]


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
) -> Tensor:
    """Draw samples; the forward network is not needed.

    Args:
        process: The forward process, for its prior.
        reverse: The reverse process.
        num_samples: N, drawn in one batch.
        generator: Source of the noise, on the device of the networks (on the CPU for MPS).
        condition: What networks see beside the state, one tensor for every entry of ``spec.seen``.
        padding: Where the samples are to be PAD, ``(N, *shape)`` of bool; None in a model without PAD.
        num_steps: If given, must equal the T the model was trained with (NFE = T).
        trajectory: Return all states z_T..z_0 instead of z_0.
        on_step: Called after every step, for progress bars.
        decoding: How a step is drawn; None for :class:`Ancestral`, which the bound is of.

    Returns:
        z_0, integers ``(N, *shape)``; with ``trajectory`` z_T..z_0, ``(T + 1, N, *shape)``.

    Raises:
        FLDDError: If ``num_steps`` is not the trained T, there is padding without PAD or the reverse, or the model
            cannot be decoded this way.
    """
    spec, decoding = process.spec, decoding or Ancestral()
    decoding.check(process, reverse)
    if num_steps is not None and num_steps != spec.num_steps:
        raise FLDDError(
            f"asked for {num_steps} steps, but this model was trained with T={spec.num_steps}, which fixes its steps. "
            f"Train a model with num_steps={num_steps}, or masked diffusion that is not told the step."
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
    states = [z]
    for step in range(spec.num_steps, 0, -1):
        t = torch.full((num_samples,), step, device=device)
        z = decoding.draw(reverse, z, t, generator, condition)
        if trajectory:
            states.append(z)
        on_step()
    return torch.stack(states) if trajectory else z


def draw_samples(
    process: ForwardProcess,
    reverse: Reverse,
    latents: Sequence[Latent],
    sizes: Sequence[int],
    generator: torch.Generator,
    num_steps: int | None = None,
    trajectory: bool = False,
    progress: bool = False,
    decoding: Decoding | None = None,
) -> Tensor:
    """Draw latents from their priors, then samples, batch after batch.

    Args:
        process: The forward process, for its prior.
        reverse: The reverse process.
        latents: All latents; those that networks see make the condition, and one may say where PAD is.
        sizes: Samples of each batch.
        generator: Source of the noise.
        num_steps: As for :func:`ancestral_sample`.
        trajectory: As for :func:`ancestral_sample`.
        progress: Show a progress bar.
        decoding: As for :func:`ancestral_sample`.

    Returns:
        Integers ``(N, *shape)``, or ``(T + 1, N, *shape)`` with ``trajectory``, on the CPU.
    """
    from rich.progress import Progress

    device = next(reverse.parameters()).device
    parts = []
    with Progress(disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(sizes) * process.spec.num_steps)
        for size in sizes:
            drawn = [latent.sample(size, generator).to(device) for latent in latents]
            pairs = list(zip(latents, drawn, strict=True))
            condition = tuple(c for latent, c in pairs if latent.seen is not None)
            padding = next((pad for latent, c in pairs if (pad := latent.padding(c)) is not None), None)
            part = ancestral_sample(
                process, reverse, size, generator, condition, padding, num_steps, trajectory,
                lambda: bar.advance(task), decoding,
            )  # fmt: skip
            parts.append(part.cpu())
    return torch.cat(parts, 1 if trajectory else 0)
