"""What the benchmarks share: training and testing one model, appending rows to a CSV."""

from __future__ import annotations

import argparse
import csv
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from fits import FittedOnce
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    DiscreteDataModule,
    ExactMasks,
    MaskedReverse,
    PredictingReverse,
    Reinforce,
    UniformProcess,
    __version__,
)

__all__ = [
    "MASKED",
    "UNFINISHED",
    "UNIFORM",
    "Recipe",
    "append_row",
    "comparison_keys",
    "comparison_parser",
    "joined",
    "kl_shares",
    "machine",
    "made_with",
    "measured",
    "one_thread",
    "read_rows",
    "rows_of",
    "run_missing",
    "split_model",
    "train",
    "train_and_test",
    "tuned_rate",
]

UNFINISHED = Path(__file__).parent / "results" / "unfinished"  # trainings that were interrupted
_KEPT_EVERY = timedelta(minutes=10)
_WORTH_COMPILING = 300  # optimiser steps; on a CPU a graph takes a minute or two
_QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def one_thread() -> None:
    """What every run of a benchmark starts with; on a GPU, matrix products in TF32."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # on a CPU they take ten times as long, and change nothing
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    warnings.filterwarnings("ignore")


def comparison_parser(
    description: str | None, name: str, processes: Sequence[str], models: Sequence[str], steps: int, samples: int
) -> argparse.ArgumentParser:
    """The options of every benchmark that compares processes at several T.

    Args:
        description: The script's docstring.
        name: Of the CSV in ``benchmarks/results``.
        processes: All there are.
        models: What is run by default, each ``process:T``; see :func:`split_model`.
        steps: Optimiser steps by default.
        samples: Samples by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=models, help=f"process:T, of {', '.join(processes)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=steps, help="optimiser steps")
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--output", type=Path, default=Path(f"benchmarks/results/{name}.csv"))
    return parser


def comparison_keys(arguments: argparse.Namespace, **further: Sequence[object]) -> Iterable[dict[str, object]]:
    """The runs that the options of :func:`comparison_parser` ask for, as :func:`run_missing` takes them.

    Args:
        arguments: Of the command line.
        further: Columns before the others, and the values of each.
    """
    for seed in arguments.seeds:
        for values in product(*further.values()):
            for name in arguments.models:
                key = {**dict(zip(further, values, strict=True)), **split_model(name), "seed": seed}
                yield {**key, "steps": arguments.steps, "samples": arguments.samples}


@dataclass(frozen=True)
class Recipe:
    """A row of a comparison: what a model is made of, but for its networks.

    Attributes:
        process: Makes the forward process.
        latents: Make what is drawn before the first step.
        estimator: Makes the gradient estimator.
        draws: Of z_t for each example; a training step has as many fewer examples.
        options: Further ones of the model.
    """

    process: Any
    latents: Any = ()
    estimator: Any = Reinforce
    draws: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_timeless(self) -> bool:
        """Whether one training serves every T."""
        return self.estimator is ExactMasks

    def arguments(self, network: Any) -> dict[str, Any]:
        """Those of :class:`FLDD`; a process that learns gets this network."""
        learned = getattr(self.process, "func", self.process).learned
        process = partial(self.process, network=network) if learned else self.process
        made = {"forward_process": process, "latents": self.latents, "estimator": self.estimator}
        return {**made, **self.options}


MASKED = Recipe(  # masked diffusion, as strong as we know it
    AbsorbingProcess, estimator=ExactMasks, options={"reverse": partial(MaskedReverse, time_independent=True)}
)
UNIFORM = Recipe(UniformProcess, options={"reverse": PredictingReverse})


def split_model(name: str) -> dict[str, object]:
    """``process:T`` as ``process`` and ``num_steps``."""
    process, _, num_steps = name.rpartition(":")
    return {"process": process, "num_steps": int(num_steps)}


def machine() -> str:
    """Where a row was measured."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, 1 thread"


def kl_shares(logged: Mapping[str, float], num_steps: int) -> str:
    """Shares of t = 1..T in the KL of a test and, at the place of T + 1, of the latent, if there is one."""
    kl = [max(0.0, logged[f"test/kl_t{t}"]) for t in range(1, num_steps + 1)]
    kl += [value for name, value in logged.items() if name.startswith("test/kl_") and not name.startswith("test/kl_t")]
    return " ".join(f"{value / sum(kl):.2f}" for value in kl)


def train_and_test(
    model: FLDD,
    data: DiscreteDataModule,
    steps: int,
    measures: Sequence[Callback] = (),
    callbacks: Sequence[Callback] = (),
) -> tuple[dict[str, float], float]:
    """Train, then test the checkpoint of the lowest ``val/nelbo`` out of four validations.

    Args:
        model: What to train.
        data: Its data.
        steps: Optimiser steps.
        measures: Callbacks that log more while testing.
        callbacks: Of the training.

    Returns:
        What testing logged, and the seconds of training. The model ends with the tested weights.
    """
    _, seconds = train(model, data, steps, callbacks)
    return measured(model, data, measures), seconds


def train(
    model: FLDD, data: DiscreteDataModule, steps: int, callbacks: Sequence[Callback] = (), precision: str = "32-true",
    validations: int = 4,
) -> tuple[float, float]:  # fmt: skip
    """Train; the model ends with the weights of the lowest ``val/nelbo`` out of some validations.

    Steps of a long training are compiled, but for the first, whose operations are counted. A training that is
    interrupted loses ten minutes at most. Its checkpoints stay in ``results/unfinished`` until it ends, and the same
    call goes on from them. Latents that were fitted beforehand stay there for other trainings. Delete that folder to
    start anew, as after a change of the code.

    Args:
        model: What to train, just made.
        data: Its data.
        steps: Optimiser steps.
        callbacks: Of the training.
        precision: Of the networks in training, as Lightning's ``Trainer`` takes it.
        validations: How many there are.

    Returns:
        That ``val/nelbo``, and the seconds of training.
    """
    key = _key_of(model, data, steps, precision)
    with FileLock(Path(tempfile.gettempdir()) / f"fldd-training-{key}.lock"):  # two benchmarks may need the same one
        return _trained(model, data, steps, callbacks, precision, validations, UNFINISHED / key)


def _key_of(model: FLDD, data: DiscreteDataModule, steps: int, precision: str) -> str:
    """What tells a training from all others: its settings, and the weights that it starts from."""
    learns = [(name, p.requires_grad) for name, p in model.named_parameters()]
    rates = [getattr(model, name, None) for name in ("lr", "freeze_steps")]
    settings = (type(model), model.hparams, data.hparams, data.batch_size, steps, precision, learns, rates, __version__)
    key = sha256(repr((*settings, torch.initial_seed())).encode())
    for p in model.parameters():
        key.update(p.detach().cpu().numpy().tobytes())
    return key.hexdigest()[:16]


def _trained(
    model: FLDD, data: DiscreteDataModule, steps: int, callbacks: Sequence[Callback], precision: Any, validations: int,
    folder: Path,
) -> tuple[float, float]:  # fmt: skip
    """:func:`train`, with its checkpoints in a folder."""
    best, clock = ModelCheckpoint(folder, "best", monitor="val/nelbo"), _Clock()
    further: list[Callback] = [FittedOnce(model, data, callbacks, folder.parent)] if isinstance(model, FLDD) else []
    if further and steps >= _WORTH_COMPILING and shutil.which("g++"):
        further.append(_Compiled())
    last = ModelCheckpoint(folder, "last", train_time_interval=_KEPT_EVERY, enable_version_counter=False)
    trainer = Trainer(
        max_steps=steps, val_check_interval=max(1, steps // validations), check_val_every_n_epoch=None,
        limit_val_batches=max(1, 2_000 // data.batch_size),
        callbacks=[clock, best, *callbacks, *further, last], precision=precision, **_QUIET,
    )  # fmt: skip
    kept = folder / "last.ckpt"
    trainer.fit(model, data, ckpt_path=kept if kept.exists() else None, weights_only=True)
    model.load_state_dict(torch.load(best.best_model_path, weights_only=True, map_location="cpu")["state_dict"])
    shutil.rmtree(folder)
    assert best.best_model_score is not None
    return float(best.best_model_score), clock.seconds


class _Compiled(Callback):
    """Compiles the steps of a training from its second on."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FLDD)
        pl_module.compiled = True


class _Clock(Callback):
    """Seconds of a training, those before it was interrupted included."""

    def __init__(self) -> None:
        self._before, self._start = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = state_dict["seconds"]


def measured(
    model: FLDD, data: DiscreteDataModule, measures: Sequence[Callback] = (), most: int | None = None
) -> dict[str, float]:
    """What testing a model logs.

    Args:
        model: With the weights to be tested.
        data: Its data.
        measures: Callbacks that log more.
        most: Examples that are tested, whole batches; None for all.
    """
    limit = 1.0 if most is None else max(1, most // data.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        tester = Trainer(
            enable_checkpointing=False, callbacks=list(measures), default_root_dir=folder, limit_test_batches=limit,
            **_QUIET,
        )  # fmt: skip
        return dict(tester.test(model, data, verbose=False)[0])


def run_missing(path: Path, keys: Iterable[Mapping[str, object]], run: Callable[..., Mapping[str, object]]) -> None:
    """Run what has no row in the CSV, appending a row each: an interrupted command goes on where it stopped.

    Args:
        path: The CSV.
        keys: Of every run, the columns that tell it from others; they are the arguments of ``run``, too.
        run: Returns a row.
    """
    for key in keys:
        if rows_of(path, key):
            print(f"{path} has a row of {key}", flush=True)
            continue
        row = run(**key)
        append_row(path, row)
        print({name: value for name, value in row.items() if name not in ("torch", "machine")}, flush=True)


def tuned_rate(
    path: Path,
    key: Mapping[str, object],
    rates: Iterable[float],
    steps: int,
    train_at: Callable[[float, int], tuple[float, float]],
) -> float:
    """The learning rate that does best on validation data after a third of the steps; measures what has no row.

    Args:
        path: The CSV of what was tried.
        key: The columns that tell a model from others.
        rates: Learning rates.
        steps: Of a whole training.
        train_at: Trains at a rate for some steps; returns ``val/nelbo`` and seconds.
    """
    found, steps = {}, max(1, steps // 3)
    for rate in rates:
        tried = {**key, "lr": rate, "steps": steps}
        if not rows_of(path, tried):
            nelbo, seconds = train_at(rate, steps)
            append_row(path, {**tried, "val_nelbo": f"{nelbo:.4f}", "seconds": round(seconds)})
        found[rate] = float(rows_of(path, tried)[0]["val_nelbo"])
    return min(found, key=lambda rate: found[rate])


def rows_of(path: Path, key: Mapping[str, object]) -> list[dict[str, str]]:
    """The rows of a CSV that agree with some columns; none if there is no file."""
    rows = read_rows(path) if path.exists() else []
    return [row for row in rows if all(row[name] == str(value) for name, value in key.items())]


def joined(measures: Mapping[str, float]) -> str:
    """Several measures as one column."""
    return " ".join(f"{name}={value:.4f}" for name, value in measures.items())


def made_with(precision: str = "32-true") -> dict[str, str]:
    """The columns that say what a row was measured with, the precision of training with the machine."""
    where = machine() if precision == "32-true" else f"{machine()}, {precision}"
    return {"version": __version__, "torch": torch.__version__, "machine": where}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open() as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append a row to a CSV, whose first line names the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    if not is_new and path.read_text().partition("\n")[0].split(",") != [*row]:
        raise ValueError(f"{path} has other columns than {', '.join(row)}: give another --output.")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)
