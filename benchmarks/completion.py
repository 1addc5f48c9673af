"""Samples that complete partial examples, against the exact conditional distribution p(rest|given).

    python benchmarks/completion.py
    python benchmarks/completion.py --sources xor --processes "order by hand" --seeds 0 1 2

Sources are small enough to enumerate. Each model has as many steps as coordinates, so that hardly two are drawn at
once. "trained" models saw random subsets in training (``observed=0.5``); "clamped" ones are the same without. Of each
of some partial examples samples are counted: their total variation from p(rest|given), beside that of as many exact
draws, and the chi-square test of all counts together. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import MASKED, Recipe, made_with, one_thread, run_missing, train
from scipy.stats import chi2
from sources import GaussianMixture, KnownSource, MarkovChain, XORBlocks
from torch import Tensor
from work import TrainingWork, costs

from fldd_lightning import FLDD, MLP, Ancestral, Decoding, ExactlyN, LearnedMaskProcess, StaggeredProcess

SOURCES: dict[str, Any] = {
    "xor": partial(XORBlocks, batch_size=256),
    "chain": partial(MarkovChain, length=6, num_classes=4, batch_size=256),
    "mixture": partial(GaussianMixture, components=4, num_classes=16, batch_size=1024),
}
PROCESSES = {
    "any order": MASKED,
    "order by hand": Recipe(partial(StaggeredProcess, slack=0.05)),
    "learned": Recipe(LearnedMaskProcess),
}
WAYS = {"clamped": 0.0, "trained": 0.5}  # observed
FEWEST = 5  # counts that are expected of a cell; cells of fewer are counted together


@dataclass(frozen=True)
class Agreement:
    """How samples agree with the distribution that they should have.

    Attributes:
        variation: Total variation, the mean over partial examples.
        exact: The same of exact draws.
        statistic: Chi-square, summed over partial examples.
        degrees: Its degrees of freedom.
    """

    variation: float
    exact: float
    statistic: float
    degrees: int

    @property
    def p_value(self) -> float:
        """Of the chi-square test."""
        return float(chi2.sf(self.statistic, self.degrees))


def partial_examples(source: KnownSource, number: int) -> Tensor:
    """Examples of which 1 to D - 1 coordinates are given, ``(number, D)``, -1 elsewhere; the same for all models."""
    generator = torch.Generator().manual_seed(11)
    x = source.draw(number, generator)
    size = torch.randint(1, source.length, (number, 1), generator=generator)
    place = torch.rand(x.shape, generator=generator).argsort(1).argsort(1)
    return x.masked_fill(place >= size, -1)


def conditional(source: KnownSource, given: Tensor) -> tuple[Tensor, Tensor]:
    """All completions ``(N, D)`` of a partial example ``(D,)``, and their probabilities ``(N,)``."""
    values = [range(source.num_classes) if value < 0 else [value] for value in given.tolist()]
    x = torch.tensor(list(product(*values)))
    return x, source.log_prob(x).softmax(0)


def agreement(model: FLDD, source: KnownSource, decoding: Decoding, examples: int, samples: int) -> Agreement:
    """Count samples of partial examples.

    Args:
        model: Which completes them.
        source: Which says how.
        decoding: How a step is drawn.
        examples: How many.
        samples: Of each.
    """
    variations, exact, statistic, degrees = [], [], 0.0, 0
    for i, given in enumerate(partial_examples(source, examples)):
        x, p = conditional(source, given)
        base = source.num_classes ** torch.arange(source.length)
        places = (x @ base).sort()
        drawn = model.sample(samples, i, given=given, decoding=decoding, batch_size=samples)
        found = places.indices[torch.searchsorted(places.values, drawn @ base)]
        counts = found.bincount(minlength=len(p)).double()
        ideal = torch.multinomial(p, samples, True, generator=torch.Generator().manual_seed(i))
        variations.append(float((counts / samples - p).abs().sum() / 2))
        exact.append(float((ideal.bincount(minlength=len(p)) / samples - p).abs().sum() / 2))
        is_rare = p * samples < FEWEST
        cells = torch.stack([torch.cat([each[~is_rare], each[is_rare].sum()[None]]) for each in (counts, p * samples)])
        observed, expected = cells[:, cells[1] > 0]
        statistic += float(((observed - expected) ** 2 / expected).sum())
        degrees += len(expected) - 1
    n = len(variations)
    return Agreement(sum(variations) / n, sum(exact) / n, statistic, degrees)


def made(source: str, process: str, way: str, seed: int) -> tuple[FLDD, KnownSource]:
    """The model of a row before training, and its source."""
    torch.manual_seed(seed)
    data, network = SOURCES[source](), partial(MLP, width=128, depth=2)
    model = FLDD(
        data.num_classes, data.shape, denoiser=network, num_steps=data.length, observed=WAYS[way],
        **PROCESSES[process].arguments(network),
    )  # fmt: skip
    return model, data


def run(
    source: str, process: str, way: str, seed: int, steps: int, examples: int = 12, samples: int = 1_000
) -> dict[str, object]:
    """Train and measure one model; returns a row of the table."""
    (model, data), work = made(source, process, way, seed), TrainingWork()
    _, seconds = train(model, data, steps, [work])
    decoding = ExactlyN() if PROCESSES[process].is_timeless else Ancestral()
    found = agreement(model, data, decoding, examples, samples)
    return {
        "source": source, "process": process, "way": way, "seed": seed, "steps": steps,
        "variation": f"{found.variation:.4f}", "variation_exact": f"{found.exact:.4f}",
        "statistic": f"{found.statistic:.1f}", "degrees": found.degrees, "p_value": f"{found.p_value:.2g}",
        "decoding": decoding.configuration(), "seconds": round(seconds), **made_with(),
        **costs(model, work.total(steps)),
    }  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=2_000, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/completion.csv"))
    arguments = parser.parse_args(args)
    one_thread()
    each = product(arguments.sources, arguments.processes, arguments.ways, arguments.seeds)
    names = ("source", "process", "way", "seed")
    keys = [{**dict(zip(names, values, strict=True)), "steps": arguments.steps} for values in each]
    run_missing(arguments.output, keys, run)


if __name__ == "__main__":
    main()
