"""Tensors that do not fit into memory are refused before they are made: the system would end the program for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .memory import check_memory

__all__ = ["CheckedMemory"]

_MAKERS = frozenset(
    (torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randn, torch.zeros)
)
_LARGE = 2**26  # bytes, from which the system is asked what is left


class CheckedMemory(TorchFunctionMode):
    """A context in which every tensor to be made is sized first.

    Weights are filled when they are made. So what is left is asked for again before each, and a sum that is too large
    is refused like one tensor.

    Args:
        what: What is made here, for the error.

    Raises:
        FLDDError: At a tensor of the CPU that is larger than what is left of its memory.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _MAKERS and torch.device(given.get("device") or torch.get_default_device()).type == "cpu":
            sized = func(*args, **{**given, "device": "meta"})
            needed = sized.numel() * sized.element_size()
            if needed >= _LARGE:
                advice = "Make the model smaller, or the number of classes or of coordinates."
                check_memory(needed, f"{self.what}: a tensor of {tuple(sized.shape)}", advice)
        return func(*args, **given)
