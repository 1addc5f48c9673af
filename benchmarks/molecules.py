"""Process x T x seeds on QM9's SMILES: bits and quality of samples at the same number of denoiser passes.

    python benchmarks/molecules.py --path train_smile.txt --models "learned:10" "absorbing:10"

With the MLP the model is that of ``examples/molecules``; FCD is against 10,000 training molecules. One thread a run;
``--network transformer`` is for a GPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from other_estimators import FirstOrder, StraightThrough
from work import TrainingWork, costs

from fldd_lightning import (
    MLP,
    RLOO,
    AbsorbingProcess,
    AutoencoderLatent,
    ChainLatent,
    D3PMProcess,
    LearnedMaskProcess,
    MixtureLatent,
    ResidualAbsorbingProcess,
    StaggeredProcess,
    Transformer,
    UniformProcess,
)

sys.path.append(str(Path(__file__).parents[1]))

from examples.molecules.smiles import MoleculeFLDD, SmilesDataModule


@dataclass(frozen=True)
class Network:
    """A network for SMILES, and the denoiser passes of a training step and the learning rate that suit it."""

    make: Any
    passes: int
    lr: float


NETWORKS = {
    "mlp": Network(partial(MLP, width=512), 4 * 64, 2e-3),
    "transformer": Network(partial(Transformer, width=256, depth=6, heads=4), 4 * 256, 1e-3),
}
OF_NUMBERS = partial(AutoencoderLatent, couplings=0, kl_weight=1.0)
FIRST_ORDER = partial(FirstOrder, samples=2, alpha=1.0)
WITHOUT, LITTLE = {"auxiliary_weight": 0.0}, {"auxiliary_weight": 1.0}
PROCESSES = {
    "learned": Recipe(LearnedMaskProcess, MixtureLatent),
    "learned, autoencoder": Recipe(LearnedMaskProcess, OF_NUMBERS),
    "learned, chain": Recipe(LearnedMaskProcess, ChainLatent),
    "learned, straight-through": Recipe(LearnedMaskProcess, MixtureLatent, StraightThrough),
    "learned, first order": Recipe(LearnedMaskProcess, MixtureLatent, FIRST_ORDER, draws=2),
    "learned, 2 draws": Recipe(LearnedMaskProcess, MixtureLatent, RLOO, draws=2),
    "learned, no latent": Recipe(LearnedMaskProcess),
    "learned, no latent, auxiliary_weight 1": Recipe(LearnedMaskProcess, options=LITTLE),
    "learned, no latent, no auxiliary loss": Recipe(LearnedMaskProcess, options=WITHOUT),
    "learned general": Recipe(ResidualAbsorbingProcess, MixtureLatent),
    "staggered, latent": Recipe(StaggeredProcess, MixtureLatent),
    "staggered": Recipe(StaggeredProcess),
    "staggered, no auxiliary loss": Recipe(StaggeredProcess, options=WITHOUT),
    "absorbing": Recipe(AbsorbingProcess),
    "uniform": Recipe(UniformProcess),
    "D3PM": Recipe(D3PMProcess),
}
MEASURES = ("nelbo", "bpd", "valid", "unique", "novel", "fcd")


def made(
    path: str, network: str, process: str, num_steps: int, seed: int, samples: int = 1_000
) -> tuple[MoleculeFLDD, SmilesDataModule]:
    """The model of a row, and its data."""
    seed_everything(seed, verbose=False)
    chosen, recipe = NETWORKS[network], PROCESSES[process]
    data = SmilesDataModule(path, batch_size=chosen.passes // recipe.draws, seed=seed)
    model = MoleculeFLDD(
        data.num_classes, data.shape, denoiser=chosen.make, num_steps=num_steps, padded=data.padded, lr=chosen.lr,
        num_samples=samples, **recipe.arguments(chosen.make),
    )  # fmt: skip
    return model, data


def run(
    path: str, network: str, process: str, num_steps: int, seed: int, steps: int, samples: int
) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    (model, data), work = made(path, network, process, num_steps, seed, samples), TrainingWork()
    logged, seconds = train_and_test(model, data, steps, callbacks=[work])
    measured = {name: round(logged[f"test/{name}"], 4) if f"test/{name}" in logged else "" for name in MEASURES}
    row = {"network": network, "process": process, "num_steps": num_steps, "seed": seed, "steps": steps}
    row |= {"samples": samples, **measured}
    row |= {"seconds": round(seconds), "torch": torch.__version__, "machine": machine()}
    return {**row, **costs(model, work.total(steps))}


def main() -> None:
    """The command line."""
    models = ["learned:10", "absorbing:10"]
    parser = comparison_parser(__doc__, "molecules", list(PROCESSES), models, steps=3_000, samples=1_000)
    parser.add_argument("--path", help="file with one SMILES a line")
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    arguments = parser.parse_args()
    one_thread()
    keys = comparison_keys(arguments, network=[arguments.network])
    run_missing(arguments.output, keys, partial(run, arguments.path))


if __name__ == "__main__":
    main()
