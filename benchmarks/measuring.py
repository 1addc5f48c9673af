"""Time, memory and operations of a call; two calls that take turns."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vocabulary import resident

__all__ = ["compared", "kernels", "operations", "peak_mib", "seconds"]


def seconds(function: Callable[[], object], device: str) -> float:
    """What one call takes."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.process_time()
    function()
    return time.process_time() - begun


def compared(first: Callable[[], object], second: Callable[[], object], turns: int, device: str) -> dict[str, float]:
    """The median ratio of two calls that take turns, and the median seconds of each."""
    first(), second()
    pairs = [(seconds(first, device), seconds(second, device)) for _ in range(turns)]
    ratio = median(a / b for a, b in pairs)
    return {"ratio": round(ratio, 3), "seconds": median(a for a, _ in pairs), "of": median(b for _, b in pairs)}


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], object]) -> int:
    """ATen operations of a call, views among them."""
    with Operations() as counted:
        function()
    return counted.number


def kernels(function: Callable[[], object]) -> int:
    """Kernels that a call launches on a GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        function()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in found.events())


def peak_mib(function: Callable[[], object], device: str) -> float:
    """Memory at the peak of a call beyond what was held before, in MiB."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before
