"""Process x estimator x T x seeds on sources with a known optimum: does the forward process collapse?

    python benchmarks/collapse.py --problems mixture8 xor --recipes default fixed --seeds 0 1 2
    python benchmarks/collapse.py --report benchmarks/results/collapse.csv

Every recipe gets networks of the same kind and width, and the same number of denoiser passes in training (samples x
examples x steps). What else it takes, such as the network of a learned schedule, stands in the row: operations of
training are counted. The checkpoint of the lowest ``val/nelbo`` is tested. One row is appended to the CSV. One thread a
run.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sources
import torch
from common import Recipe, kl_shares, machine, one_thread, read_rows, run_missing, train_and_test
from handwritten import ClusterSummary, PairLatent, RankSummary, WalkSummary
from lightning.pytorch import seed_everything
from optimum import KnownOptimum
from other_estimators import FirstOrder, StraightThrough
from work import TrainingWork, costs

from fldd_lightning import (
    FLDD,
    MLP,
    RLOO,
    AbsorbingProcess,
    ChainLatent,
    Concrete,
    EitherLatent,
    LearnedMaskProcess,
    MixtureLatent,
    Reinforce,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    StaggeredProcess,
    UniformProcess,
    WarmUp,
)

BY_HAND = {"walk16": WalkSummary, "walk64": WalkSummary, "clusters": ClusterSummary, "markov": RankSummary}
PASSES = 4 * 128  # denoiser passes per training step, whatever the number of samples


@dataclass(frozen=True)
class Case:
    """A problem and the T at which the recipe is judged on it."""

    make: Callable[..., sources.KnownSource]
    num_steps: int

    @property
    def num_seeds(self) -> int:
        """10 for D <= 16, else 3."""
        return 10 if self.make(num_train=1, num_held=1).length <= 16 else 3


CASES = {
    "mixture2": Case(partial(sources.GaussianMixture, components=2), 2),
    "mixture4": Case(partial(sources.GaussianMixture, components=4), 2),
    "mixture8": Case(partial(sources.GaussianMixture, components=8), 2),
    "walk16": Case(partial(sources.RandomWalk, length=16), 2),
    "walk64": Case(partial(sources.RandomWalk, length=64), 2),
    "xor": Case(sources.XORBlocks, 4),
    "clusters": Case(sources.HiddenClusters, 4),
    "markov": Case(sources.MarkovChain, 4),
}


GENERAL = partial(ResidualAbsorbingProcess, network=MLP)
# as configs/array.yaml: nothing is known of how coordinates lie
MASK = partial(LearnedMaskProcess, base=AbsorbingProcess, network=MLP)


def changed(**options: Any) -> Recipe:
    """The default but for some options."""
    return Recipe(MASK, MixtureLatent, options=options)


RECIPES = {
    "fixed": Recipe(AbsorbingProcess),
    "fixed_staggered": Recipe(StaggeredProcess),
    "fixed_uniform": Recipe(UniformProcess),
    "fixed, latent": Recipe(AbsorbingProcess, MixtureLatent),
    # the default: one factor at a time is changed in the rows below it
    "default": changed(),
    "no_latent": Recipe(MASK),
    "latent_1024": Recipe(MASK, partial(MixtureLatent, size=1024)),
    **{f"rloo{n}": Recipe(MASK, MixtureLatent, partial(RLOO, samples=n), n) for n in (2, 4)},
    **{f"first_order{n}": Recipe(MASK, MixtureLatent, partial(FirstOrder, samples=n, alpha=1.0), n) for n in (2, 4)},
    "straight_through": Recipe(MASK, MixtureLatent, StraightThrough),
    "concrete": Recipe(MASK, MixtureLatent, Concrete),
    "no_freeze": changed(freeze_steps=0),
    "fast_forward": changed(forward_lr_ratio=3.0),
    "no_auxiliary": changed(auxiliary_weight=0.0),
    "from_staggered": Recipe(LearnedMaskProcess, MixtureLatent),
    "from_staggered, no_latent": Recipe(LearnedMaskProcess),
    # one recipe for all, and nothing fitted beforehand
    "either": Recipe(MASK, EitherLatent),
    # for what is close to a Markov chain
    "chain": Recipe(LearnedMaskProcess, ChainLatent),
    "fixed_staggered, chain": Recipe(StaggeredProcess, ChainLatent),
    "pairs": Recipe(LearnedMaskProcess, PairLatent),
    # tokens may move, too
    "general": Recipe(GENERAL, MixtureLatent),
    "uniform": Recipe(ResidualUniformProcess, MixtureLatent),
    "uniform, no_latent": Recipe(ResidualUniformProcess),
    "paper": Recipe(ResidualUniformProcess, (), partial(WarmUp, first=Concrete, then=Reinforce, steps=2_000)),
    "oracle": Recipe(AbsorbingProcess),  # its process is the problem's own; see BY_HAND
}


def made(problem: str, recipe: str, num_steps: int, seed: int) -> tuple[FLDD, sources.KnownSource]:
    """The model of a row and its data."""
    chosen, case = RECIPES[recipe], CASES[problem]
    seed_everything(seed, verbose=False)
    data = case.make(batch_size=PASSES // chosen.draws, seed=seed)
    arguments = chosen.arguments(MLP)
    if recipe == "oracle":
        arguments["forward_process"] = partial(BY_HAND[problem], seed=seed)
    return FLDD(data.num_classes, data.shape, denoiser=MLP, num_steps=num_steps, **arguments), data


def run(problem: str, recipe: str, num_steps: int, seed: int, steps: int) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    (model, data), work = made(problem, recipe, num_steps, seed), TrainingWork()
    logged, seconds = train_and_test(model, data, steps, [KnownOptimum()], [work])
    row = {
        "problem": problem,
        "recipe": recipe,
        "num_steps": num_steps,
        "seed": seed,
        "steps": steps,
        "nelbo": logged["test/nelbo"],
        "entropy": data.entropy,
        "marginal_entropy": data.marginal_entropy,
        "gap": logged["test/gap"],
        "energy_distance": logged["test/energy_distance"],
        "shares": kl_shares(logged, num_steps),
        "seconds": round(seconds),
        "torch": torch.__version__,
        "machine": machine(),
        **costs(model, work.total(steps)),
    }
    return {key: f"{value:.5f}" if isinstance(value, float) else value for key, value in row.items()}


def read(path: Path) -> dict[tuple[str, int, str], list[dict[str, str]]]:
    """Rows of the CSV by problem, T and recipe."""
    groups = defaultdict(list)
    for row in read_rows(path):
        groups[row["problem"], int(row["num_steps"]), row["recipe"]].append(row)
    return dict(sorted(groups.items()))


def figure(path: Path, output: Path) -> None:
    """Gap against operations of training, one panel per problem, one dot per run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = read(path)
    problems = sorted({(problem, steps) for problem, steps, _ in groups})
    recipes = sorted({recipe for _, _, recipe in groups})
    columns = min(4, len(problems))
    lines = -(-len(problems) // columns)
    fig = Figure(figsize=(2.6 * columns, 2.4 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(fig)
    panels = fig.subplots(lines, columns, squeeze=False).ravel()
    for panel, (problem, steps) in zip(panels, problems, strict=False):
        for i, recipe in enumerate(recipes):
            rows = groups.get((problem, steps, recipe), [])
            cost, gaps = [float(row["training_gflop"]) for row in rows], [float(row["gap"]) for row in rows]
            panel.scatter(cost, gaps, s=14, color=f"C{i % 10}", marker="ox^s"[i // 10], label=recipe)
        panel.set_yscale("symlog", linthresh=0.01)
        panel.set_title(f"{problem}, T = {steps}", fontsize=9)
        panel.tick_params(labelsize=7)
        if panel in panels[-columns:]:
            panel.set_xlabel("training, GFLOP", fontsize=8)
    fig.supylabel("NELBO - H, nats", fontsize=9)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    fig.savefig(output, dpi=130)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--recipes", nargs="+", default=["fixed", "default"], choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 10 for D <= 16, else 3")
    parser.add_argument("--steps", type=int, default=5_000, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/collapse.csv"))
    parser.add_argument("--report", type=Path, help="make the figure of this CSV and run nothing")
    arguments = parser.parse_args()
    if arguments.report is not None:
        figure(arguments.report, arguments.report.with_suffix(".png"))
        return
    without = [problem for problem in arguments.problems if problem not in BY_HAND]
    if "oracle" in arguments.recipes and without:
        parser.error(
            f"nobody has written a process by hand for {', '.join(without)}: choose among {', '.join(BY_HAND)}"
        )
    one_thread()
    keys = (
        {"problem": problem, "recipe": recipe, "num_steps": CASES[problem].num_steps, "seed": seed}
        | {"steps": arguments.steps}
        for problem in arguments.problems
        for seed in arguments.seeds or range(CASES[problem].num_seeds)
        for recipe in arguments.recipes
    )
    run_missing(arguments.output, keys, run)


if __name__ == "__main__":
    main()
