"""Peak memory and time of a training step at large vocabularies, as multiples of the two networks alone.

    python benchmarks/vocabulary.py
    python benchmarks/vocabulary.py --device cuda --repeats 20

The networks alone: the forward network on x and the denoiser on as many states as the estimator
draws, forward and backward, given the gradient of their outputs. A step: the whole loss and its
backward pass. Neither has an optimiser. Both take turns in one process, a fresh one a case. Memory is
what the process (Linux with glibc) or the allocator (CUDA) held at its peak beyond parameters, data
and gradients. Time is the processor's on a CPU, the clock's on a GPU. "All states" is the same process
without the two-state form.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import append_row, machine, one_thread

from fldd_lightning import (
    RLOO,
    AbsorbingProcess,
    ForwardProcess,
    LearnedMaskProcess,
    MaskedReverse,
    Reinforce,
    Spec,
    Transformer,
)
from fldd_lightning.bound import step_terms, stratified_steps

NETWORK = partial(Transformer, width=256, depth=6, heads=4)
SIZES = {27: (256, 4), 2048: (256, 4), 50_257: (1024, 1)}  # K: length, batch
CASES: dict[str, tuple[Any, Any, int]] = {
    "absorbing, Reinforce": (AbsorbingProcess, Reinforce, 1),
    "learned mask, Reinforce": (partial(LearnedMaskProcess, network=NETWORK), Reinforce, 1),
    "learned mask, RLOO 2": (partial(LearnedMaskProcess, network=NETWORK), RLOO, 2),
}


def make_steps(case: str, num_classes: int, device: str) -> dict[str, Callable[[], None]]:
    """What is measured, by kind: ``networks``, ``step`` and ``all states``."""
    length, batch = SIZES[num_classes]
    make_process, make_estimator, draws = CASES[case]
    spec = Spec(num_classes, (length,), 8)
    torch.manual_seed(0)
    process: ForwardProcess = make_process(spec).to(device)
    reverse, estimator = MaskedReverse(spec, process, NETWORK).to(device), make_estimator(spec).to(device)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randint(num_classes, (batch, length), device=device)
    t = stratified_steps(batch, process.timesteps, generator)

    def networks() -> None:
        outputs = [reverse.network(x.repeat(draws, 1), t.repeat(draws))]
        if process.learned:
            outputs.append(process.network(x, t))  # type: ignore[operator]
        torch.autograd.backward(outputs, [torch.full_like(out, 1e-3) for out in outputs])

    def step(dense: bool) -> None:
        made = (process.dense_step if dense else process.step)(x, t)
        out = estimator.loss(made, partial(step_terms, made, reverse), generator, 0)
        loss = out.surrogate if out.auxiliary is None else out.surrogate + out.auxiliary
        torch.autograd.backward(loss.mean())

    return {"networks": networks, "step": partial(step, False), "all states": partial(step, True)}


def measure(
    case: str, num_classes: int, kinds: Sequence[str], device: str, repeats: int
) -> dict[str, tuple[float, float]]:
    """Peak MiB beyond what is held between steps and median seconds of a step, by kind; the kinds take turns."""
    one_thread()
    steps = make_steps(case, num_classes, device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    memory, seconds = defaultdict(list), defaultdict(list)
    for i in range(repeats + 1):
        for kind in kinds:
            gc.collect()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated() / 2**20
            else:
                ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
                held = resident("VmRSS")
            start = clock()
            steps[kind]()
            if device == "cuda":
                torch.cuda.synchronize()
            elapsed = clock() - start
            peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM")
            if i > 0:  # the first makes the gradients
                memory[kind].append(peak - held)
                seconds[kind].append(elapsed)
    return {kind: (median(memory[kind]), median(seconds[kind])) for kind in kinds}


def resident(name: str) -> float:
    """Memory of this process in MiB, now (``VmRSS``) or at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--kinds", nargs="+", default=["step"], choices=["step", "all states"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/vocabulary.csv"))
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    where = torch.cuda.get_device_name() if device == "cuda" else machine()
    context = multiprocessing.get_context("spawn")
    for num_classes in arguments.classes:
        for case in arguments.cases:
            with ProcessPoolExecutor(1, context) as pool:
                kinds = ["networks", *arguments.kinds]
                results = pool.submit(measure, case, num_classes, kinds, device, repeats).result()
            length, batch = SIZES[num_classes]
            for kind in arguments.kinds:
                row = {"classes": num_classes, "length": length, "batch": batch, "case": case, "kind": kind}
                for name, values in (("networks_", results["networks"]), ("", results[kind])):
                    row |= {f"{name}mib": round(values[0], 1), f"{name}seconds": round(values[1], 4)}
                row |= {"torch": torch.__version__, "machine": where}
                append_row(arguments.output, row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
