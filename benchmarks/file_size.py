"""Whether training on a file takes more memory, or begins later, where the file is larger.

    python benchmarks/file_size.py --megabytes 1 200 2000

For each size a file is written, and a small model takes 500 steps of 128 examples from it, in a process of its own:
an array of 1,024 integers an example (``array``, K given, or ``array, K found``), and text that is streamed by line
(``text``). A row has the largest memory of the process, that of all files it has mapped with it, and the seconds from
the data module to the first step. The smallest file shows what the model and the libraries take. One thread.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import append_row, made_with, one_thread, rows_of
from lightning.pytorch import Callback, Trainer

from fldd_lightning import FLDD, MLP, AbsorbingProcess, ArrayDataModule, DiscreteDataModule, TextDataModule

_LENGTH, _PIECE = 1_024, 2**24
_ALPHABET = "abcdefghijklmnopqrstuvwxyz "
KINDS = ("array", "array, K found", "text")


class _FirstStep(Callback):
    """Notes when training takes its first step."""

    seconds = 0.0

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.seconds = self.seconds or time.perf_counter() - self._began


def write(kind: str, path: Path, megabytes: int) -> None:
    """Write a file of random letters, piece by piece."""
    generator = np.random.default_rng(0)
    rows = megabytes * 10**6 // (_LENGTH + int(kind == "text"))
    with path.open("wb") as file:
        if kind != "text":
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, _LENGTH)}
            np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, rows, _PIECE // _LENGTH):
            x = generator.integers(27, size=(min(_PIECE // _LENGTH, rows - first), _LENGTH), dtype=np.uint8)
            if kind == "text":
                letters = np.frombuffer(_ALPHABET.encode(), np.uint8)[x]
                x = np.concatenate([letters, np.full((len(x), 1), ord("\n"), np.uint8)], 1)
            file.write(x.tobytes())


def read(kind: str, path: Path) -> DiscreteDataModule:
    """The data module for a file."""
    if kind == "text":
        return TextDataModule(
            str(path), length=_LENGTH, alphabet=_ALPHABET, streaming=True, separator=" ", held_out=100
        )
    return ArrayDataModule(str(path), num_classes=27 if kind == "array" else None)


def trained(kind: str, path: Path) -> dict[str, Any]:
    """What training on a file takes, in the process that this is called in."""
    one_thread()
    first = _FirstStep()
    data = read(kind, path)
    model = FLDD(
        27, (_LENGTH,), num_steps=2, forward_process=AbsorbingProcess, denoiser=partial(MLP, width=16), latents=[]
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_steps=500, limit_val_batches=0, enable_checkpointing=False, callbacks=first, **quiet).fit(model, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"peak_mib": peak, "seconds_to_first_step": f"{first.seconds:.2f}"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--megabytes", nargs="+", type=int, default=[1, 200, 2_000], help="sizes of the files")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/file_size.csv"))
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        for megabytes in arguments.megabytes:
            key = {"kind": kind, "megabytes": megabytes}
            if rows_of(arguments.output, key):
                continue
            with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
                path = Path(folder) / ("x.txt" if kind == "text" else "x.npy")
                write(kind, path, megabytes)
                row = {**key, **pool.submit(trained, kind, path).result(), **made_with()}
            append_row(arguments.output, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
