"""Bias and variance of gradient estimators for the forward process, at equal numbers of denoiser passes.

    python benchmarks/estimators.py --problems mixture8 xor walk16 clusters mnist8 --path FOLDER_WITH_IDX_FILES

A model is trained by the default recipe, a latent included, for ``--steps`` steps and held still. Every estimator
then makes ``--updates`` updates of 512 denoiser passes each from fresh examples: n samples an
example leave 512 / n examples. Per estimator: bias, as a share of the norm of the reference (an average of
unbiased updates ``--updates`` x 8 times as many passes, itself uncertain; the noise of both means
is taken off); the variance summed over parameters, as a multiple of the squared norm of the
reference; and seconds an update.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from collapse import CASES, MASK, PASSES, Case
from common import append_row, one_thread
from lightning.pytorch import Trainer, seed_everything
from other_estimators import (
    DisARM,
    ExactEntropy,
    FirstOrder,
    IdealBaseline,
    NoBaseline,
    StraightThrough,
    StraightThroughGumbel,
)
from torch import Tensor

from fldd_lightning import FLDD, MLP, RLOO, Concrete, GradientEstimator, MixtureLatent, MNISTDataModule, Reinforce, Spec
from fldd_lightning.bound import draw_latents, num_uniforms, step_terms, stratified_steps


def at(temperature: float) -> Callable[[Spec], GradientEstimator]:
    """Concrete at a fixed temperature."""
    return partial(Concrete, start=temperature, end=temperature)


ESTIMATORS: dict[str, tuple[Callable[[Spec], GradientEstimator], int]] = {
    "REINFORCE, no baseline": (NoBaseline, 1),
    "REINFORCE, mean per step": (Reinforce, 1),
    "REINFORCE, mean per step, cross-entropy only": (ExactEntropy, 1),
    "REINFORCE, ideal baseline (not counted)": (IdealBaseline, 1),
    **{f"RLOO {n}, plain": (partial(FirstOrder, samples=n, alpha=0.0), n) for n in (2, 4, 8, 16)},
    **{f"RLOO {n}, fitted": (partial(RLOO, samples=n), n) for n in (2, 4, 8, 16)},
    **{f"RLOO 4, first order, alpha {alpha}": (partial(FirstOrder, samples=4, alpha=alpha), 4) for alpha in (0.1, 1.0)},
    "straight-through": (StraightThrough, 1),
    "straight-through Gumbel": (StraightThroughGumbel, 1),
    **{f"Concrete, temperature {tau}": (at(tau), 1) for tau in (1.0, 0.5, 0.1)},
    "DisARM": (DisARM, 2),
}
SETTLING = 100  # updates before the measurement, in which running baselines and fits settle
FIELDS = ("problem", "process", "num_steps", "trained", "estimator", "samples", "bias", "variance", "seconds")


class Meter:
    """Gradients of one estimator on a model that is held still."""

    def __init__(self, model: FLDD, data: Tensor, make: Callable[[Spec], GradientEstimator], samples: int) -> None:
        self.model, self.data = model, data
        self.estimator, self.batch = make(model.spec), PASSES // samples
        self.parameters = [p for p in model.forward_process.parameters() if p.requires_grad]

    def gradient(self, seed: int) -> Tensor:
        """One update from fresh examples, as a flat vector."""
        generator = torch.Generator().manual_seed(seed)
        x = self.data[torch.randint(len(self.data), (self.batch,), generator=generator)]
        t = stratified_steps(len(x), self.model.forward_process.timesteps, generator)
        latents, process, reverse = self.model.latents, self.model.forward_process, self.model.reverse
        uniform = torch.rand(len(x), num_uniforms(latents), dtype=torch.float64, generator=generator)
        drawn = draw_latents(latents, [each.posterior(x) for each in latents], uniform)
        step = process.step(x, t, drawn.condition)
        out = self.estimator.loss(step, partial(step_terms, step, reverse), generator, 0)
        # the denoiser's share is part of the cost of an update
        wanted = [*self.parameters, *self.model.reverse.parameters()]
        grads = torch.autograd.grad(out.surrogate.mean(), wanted, allow_unused=True)
        own = zip(grads, self.parameters, strict=False)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in own])

    def moments(self, updates: int, first_seed: int) -> tuple[Tensor, float, float]:
        """Mean gradient, variance summed over parameters, and seconds an update."""
        for seed in range(SETTLING):
            self.gradient(10**6 + seed)
        start = time.monotonic()
        total: Tensor | float = 0.0
        square = 0.0
        for seed in range(first_seed, first_seed + updates):
            gradient = self.gradient(seed).double()
            total = total + gradient
            square += float(gradient.square().sum())
        seconds = (time.monotonic() - start) / updates
        assert isinstance(total, Tensor)
        mean = total / updates
        return mean, (square / updates - float(mean.square().sum())) * updates / (updates - 1), seconds


def compare(problem: str, case: Case, steps: int, updates: int) -> Iterator[dict[str, object]]:
    """All estimators on one problem; rows of the table."""
    seed_everything(0, verbose=False)
    data = case.make(batch_size=PASSES, seed=0)
    model = FLDD(data.num_classes, data.shape, MASK, MLP, num_steps=case.num_steps, latents=MixtureLatent)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, limit_val_batches=0, enable_checkpointing=False, **quiet  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.fit(model, data)
    x = data.splits["train"].x.long()
    reference, spread, _ = Meter(model, x, partial(RLOO, samples=8), 8).moments(8 * updates, 10**7)
    signal = float(reference.square().sum()) - spread / (8 * updates)
    if signal <= 0:
        raise SystemExit(f"{problem}: the mean gradient is lost in its noise. Ask for more --updates than {updates}.")
    for i, (name, (make, samples)) in enumerate(ESTIMATORS.items()):
        mean, variance, seconds = Meter(model, x, make, samples).moments(updates, 10**4 * (i + 1))
        noise = variance / updates + spread / (8 * updates)
        squared_bias = float((mean - reference).square().sum()) - noise
        relative = (max(squared_bias, 0.0) / signal) ** 0.5
        values = (problem, "mask", case.num_steps, steps, name, samples, relative, variance / signal, seconds)
        yield dict(zip(FIELDS, values, strict=True))
        print(f"{problem} {name}: bias {relative:.2f}, variance {variance / signal:.3g}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems = ["mixture8", "xor", "walk16", "clusters"]
    parser.add_argument("--problems", nargs="+", default=problems, choices=[*CASES, "mnist8"])
    parser.add_argument("--path", help="folder with MNIST's idx files, for mnist8")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps before the measurement")
    parser.add_argument("--updates", type=int, default=300, help="updates per estimator")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/estimators.csv"))
    arguments = parser.parse_args()
    if "mnist8" in arguments.problems and arguments.path is None:
        parser.error("mnist8 needs --path, a folder with MNIST's idx files")
    one_thread()
    cases = {**CASES, "mnist8": Case(partial(MNISTDataModule, arguments.path, size=8), 4)}
    for problem in arguments.problems:
        for row in compare(problem, cases[problem], arguments.steps, arguments.updates):
            append_row(arguments.output, row)


if __name__ == "__main__":
    main()
