"""Categorical distributions in log space: safe logarithms, sampling, checks of integer data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import FLDDError

__all__ = [
    "check_integers",
    "check_states",
    "check_values",
    "entropy",
    "float32_or_better",
    "float64_device",
    "grey_levels",
    "gumbel_of",
    "log_one_hot",
    "no_integers",
    "one_hot",
    "only_states",
    "sample_categorical",
    "sample_from_uniform",
    "sum_dims",
    "without_state",
    "xlogy",
]


_CHUNK = 2**22  # probabilities drawn from at once: 32 MiB in float64


def xlogy(x: Tensor, log_y: Tensor) -> Tensor:
    """``x * log_y`` with 0 · (-inf) = 0, and zero (not NaN) gradients there.

    Args:
        x: Probabilities, any shape.
        log_y: Log-probabilities, may be ``-inf``; broadcastable with ``x``.

    Returns:
        The product, 0 where ``x`` is 0.
    """
    live = x > 0
    return torch.where(live, x, 0.0) * torch.where(live, log_y, 0.0)


def entropy(log_p: Tensor) -> Tensor:
    """Shannon entropy in nats over the last dimension.

    Args:
        log_p: Log-probabilities ``(..., S)``; ``-inf`` stands for zero.

    Returns:
        Entropy ``(...)`` in nats.
    """
    p = log_p.exp()
    return -xlogy(p, log_p).sum(-1)


def one_hot(states: Tensor, num_states: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot weights ``(..., S)`` of integer states ``(...)``."""
    return F.one_hot(states.long(), num_states).to(dtype)


def log_one_hot(states: Tensor, num_states: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log of the one-hot distribution: 0 at the state, ``-inf`` elsewhere, ``(..., S)``."""
    zeros = torch.zeros(*states.shape, num_states, dtype=dtype, device=states.device)
    hit = F.one_hot(states.long(), num_states).bool()
    return zeros.masked_fill(~hit, float("-inf"))


def grey_levels(states: Tensor, num_classes: int) -> Tensor:
    """States as brightness in [0, 1]: 0..K-1 from black to white, MASK (K) in the middle."""
    levels = states.float()  # bytes compare 256 as 0
    return torch.where(levels == num_classes, 0.5, levels / (num_classes - 1))


def without_state(log_p: Tensor, state: int) -> Tensor:
    """The distribution ``(..., S)`` given that it is not one ``state``: ``-inf`` there, the rest normalised.

    Where all mass is at that state, nothing is left and the result is uniform over the others.
    """
    return only_states(log_p, torch.arange(log_p.shape[-1], device=log_p.device) != state)


def only_states(log_p: Tensor, allowed: Tensor) -> Tensor:
    """The distribution ``(..., S)`` given that it is at a state that is allowed, ``(..., S)`` of bool.

    Where all mass is elsewhere, the result is uniform over those that are allowed.
    """
    kept = log_p.masked_fill(~allowed, float("-inf"))
    is_empty = (kept == float("-inf")).all(-1, keepdim=True)
    return torch.where(is_empty & allowed, 0.0, kept).log_softmax(-1)


def float32_or_better(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sum_dims(values: Tensor) -> Tensor:
    """Sum over everything but the batch: ``(B, *shape)`` to ``(B,)``."""
    return values.flatten(1).sum(1)


def gumbel_of(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of float64 numbers in [0, 1)."""
    return -torch.log(-torch.log(uniform.clamp_min(1e-300)))


def sample_categorical(log_p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw states by :func:`sample_from_uniform`, with one number of the generator for each.

    Devices without float64 (Apple MPS) draw on the CPU.

    Args:
        log_p: Log-probabilities ``(..., S)``, need not be normalised.
        generator: Source of the noise, on the device of ``log_p`` or on the CPU.

    Returns:
        Integer states ``(...)`` on the device of ``log_p``.
    """
    generator = generator or torch.default_generator
    uniform = torch.rand(log_p.shape[:-1], dtype=torch.float64, device=generator.device, generator=generator)
    return sample_from_uniform(log_p, uniform)


def sample_from_uniform(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw states by inversion of the cumulative distribution, which is summed in float64.

    Numbers in float32 would truncate the tails and lower the temperature of the samples (Zheng et al., 2024, arXiv
    2409.02908). Equal uniforms give equal states, whatever the batch an example stands in: evaluation uses
    it so that metrics do not depend on batch size or on the number of processes. Of many it is done a part at a time,
    as it takes four times the memory of what is drawn from.

    Args:
        log_p: Log-probabilities ``(..., S)``, need not be normalised.
        uniform: Float64 numbers in [0, 1), ``(...)``.

    Returns:
        Integer states ``(...)`` on the device of ``log_p``. Never a state of probability zero.
    """
    size = max(1, _CHUNK // log_p.shape[-1])
    if uniform.numel() <= size:
        return _sample_from_uniform(log_p, uniform)
    rows = log_p.reshape(-1, log_p.shape[-1])
    parts = zip(torch.split(rows, size), torch.split(uniform.reshape(-1), size), strict=True)
    return torch.cat([_sample_from_uniform(*part) for part in parts]).view(log_p.shape[:-1])


def _sample_from_uniform(log_p: Tensor, uniform: Tensor) -> Tensor:
    device = float64_device(log_p.device)
    log_p = float32_or_better(log_p.detach())
    p = (log_p - log_p.amax(-1, keepdim=True)).exp()
    cumulative = p.to(device).cumsum(-1, dtype=torch.float64)
    threshold = uniform.to(device, torch.float64).unsqueeze(-1) * cumulative[..., -1:]  # below the last, also rounded
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).to(log_p.device)


def check_integers(x: Tensor, name: str = "x") -> None:
    """Raise FLDDError unless ``x``, called ``name`` in the message, is of an integer type."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise no_integers(name, x.dtype)


def no_integers(what: str, dtype: object) -> FLDDError:
    """What to raise for data of another kind than integers."""
    return FLDDError(
        f"{what} has dtype {dtype}, but discrete diffusion needs integers from 0. Convert whole numbers "
        "(array.astype(int)), quantise or binarise the others."
    )


def check_states(x: Tensor, num_classes: int, shape: Sequence[int], name: str = "x", values: str = "classes") -> None:
    """Check a batch of integer data against what the model was built for.

    Args:
        x: The batch.
        num_classes: K; values must lie in ``0..K-1``.
        shape: Shape of one example.
        name: What to call the tensor in the message.
        values: What to call its values there.

    Raises:
        FLDDError: If the dtype, the shape or a value does not fit.
    """
    check_integers(x, name)
    if tuple(x.shape[1:]) != tuple(shape):
        raise FLDDError(
            f"{name} has shape {tuple(x.shape)}, but the model was built for (batch, "
            f"{', '.join(str(n) for n in shape)}). Check the data set or the checkpoint."
        )
    if x.numel() == 0:
        raise FLDDError(f"{name} is empty: there is no example to work on.")
    low, high = torch.stack(x.aminmax()).tolist()  # one transfer from the device
    if low < 0 or high >= num_classes:
        raise FLDDError(
            f"{name} has values from {low} to {high}, but the model has "
            f"{num_classes} {values}, so values must lie in 0..{num_classes - 1}."
        )


def check_values(x: Tensor, num_values: Sequence[int]) -> None:
    """Check that no coordinate has a value that it does not have.

    Args:
        x: The batch, integers ``(B, *shape)``.
        num_values: How many values each of the D coordinates has.

    Raises:
        FLDDError: If one is too large, naming the first.
    """
    wrong = x.flatten(1) >= torch.tensor(num_values, device=x.device)  # (B, D)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise FLDDError(
            f"coordinate {column} of x has the value {int(x.flatten(1)[row, column])}, but it has {num_values[column]} "
            f"values, so they must lie in 0..{num_values[column] - 1}."
        )


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU in place of Apple's MPS, which has no float64 and lacks some kernels."""
    return torch.device("cpu") if device.type == "mps" else device
