"""Process x T x length x seeds on text: the bound, and samples in the eyes of a 5-gram judge, at equal denoiser passes.

    python benchmarks/text.py --path FOLDER --lengths 64 --models learned:4 absorbing:4 uniform:4 D3PM:4

The folder holds train.txt[.gz], valid.txt[.gz] and test.txt[.gz]; characters are tokens. The judge is fitted on the
training text. Denoiser and forward network are Transformers: of 128 features in 3 layers, and of 64 in 2.
``--network large`` is for a GPU. It has 384 features in 8 layers, and 128 in 3. One thread a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import (
    Recipe,
    comparison_keys,
    comparison_parser,
    machine,
    one_thread,
    run_missing,
    train_and_test,
)
from lightning.pytorch import seed_everything
from work import TrainingWork, costs

from fldd_lightning import (
    AbsorbingProcess,
    ChainLatent,
    D3PMProcess,
    LearnedMaskProcess,
    PerplexityCallback,
    ResidualAbsorbingProcess,
    StaggeredProcess,
    TextDataModule,
    TextFLDD,
    Transformer,
    UniformProcess,
)


@dataclass(frozen=True)
class Network:
    """A denoiser and a forward network for text, the tokens of a training step and the learning rate that suit them."""

    denoiser: Any
    forward: Any
    tokens: int
    lr: float


NETWORKS = {
    "small": Network(
        partial(Transformer, width=128, depth=3, heads=4), partial(Transformer, width=64, depth=2, heads=4), 4_096, 1e-3
    ),
    "large": Network(
        partial(Transformer, width=384, depth=8, heads=6),
        partial(Transformer, width=128, depth=3, heads=4),
        32_768,
        5e-4,
    ),
}
WITHOUT = {"auxiliary_weight": 0.0}
PROCESSES = {
    "learned": Recipe(LearnedMaskProcess),
    "learned, chain": Recipe(LearnedMaskProcess, ChainLatent),
    "learned, chain of parts of 4": Recipe(LearnedMaskProcess, partial(ChainLatent, part=4)),
    "learned, no auxiliary loss": Recipe(LearnedMaskProcess, options=WITHOUT),
    "learned general": Recipe(ResidualAbsorbingProcess),
    "staggered": Recipe(StaggeredProcess),
    "staggered, no auxiliary loss": Recipe(StaggeredProcess, options=WITHOUT),
    "absorbing": Recipe(AbsorbingProcess),
    "uniform": Recipe(UniformProcess),
    "D3PM": Recipe(D3PMProcess),
}
MEASURES = ("bits_per_char", "gen_bits_5gram", "entropy", "distinct_4")


def made(
    path: str, network: str, length: int, process: str, num_steps: int, seed: int
) -> tuple[TextFLDD, TextDataModule]:
    """The model of a row, and its data."""
    seed_everything(seed, verbose=False)
    chosen = NETWORKS[network]
    data = TextDataModule(path, length=length, batch_size=chosen.tokens // length, seed=seed)
    model = TextFLDD(
        data.num_classes, data.shape, denoiser=chosen.denoiser, num_steps=num_steps, lr=chosen.lr,
        **PROCESSES[process].arguments(chosen.forward),
    )  # fmt: skip
    return model, data


def run(
    path: str, network: str, length: int, process: str, num_steps: int, seed: int, steps: int, samples: int
) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    (model, data), work = made(path, network, length, process, num_steps, seed), TrainingWork()
    logged, seconds = train_and_test(model, data, steps, [PerplexityCallback(num_samples=samples)], [work])
    row: dict[str, object] = {"network": network, "length": length, "process": process, "num_steps": num_steps}
    row |= {"seed": seed, "steps": steps, "samples": samples}
    for name in MEASURES:
        row[name] = f"{logged[f'test/{name}_T{num_steps}']:.4f}"
        if name != "bits_per_char":
            row[f"{name}_data"] = f"{logged[f'test/{name}_data']:.4f}"
    row |= {"seconds": round(seconds), "torch": torch.__version__, "machine": machine()}
    return {**row, **costs(model, work.total(steps))}


def main() -> None:
    """The command line."""
    models = [f"{process}:{num_steps}" for num_steps in (4, 10, 32) for process in PROCESSES]
    parser = comparison_parser(__doc__, "text", list(PROCESSES), models, steps=3_000, samples=500)
    parser.add_argument("--path", help="folder with the splits")
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256])
    arguments = parser.parse_args()
    one_thread()
    keys = comparison_keys(arguments, network=[arguments.network], length=arguments.lengths)
    run_missing(arguments.output, keys, partial(run, arguments.path))


if __name__ == "__main__":
    main()
