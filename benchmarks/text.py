"""Process x T x length x seeds on text: the bound, and samples in the eyes of a 5-gram judge, at equal denoiser passes.

    python benchmarks/text.py --path FOLDER --lengths 64 --models learned:4 absorbing:4 uniform:4 D3PM:4
    python benchmarks/text.py --report benchmarks/results/text.csv

The folder holds train.txt[.gz], valid.txt[.gz] and test.txt[.gz]; characters are tokens. The judge is fitted on the
training text. Denoiser and forward network are Transformers, of 128 features in 3 layers and 64 in 2, or with
``--network large``, which is for a GPU, of 384 in 8 and 128 in 3. One thread a run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    comparison_keys,
    comparison_parser,
    machine,
    mean_and_range,
    one_thread,
    read_rows,
    run_missing,
    table_head,
    train_and_test,
    with_network,
    write_report,
)
from lightning.pytorch import seed_everything

from fldd_lightning import ChainCode, TextFLDD
from fldd_lightning.callbacks import PerplexityCallback
from fldd_lightning.data import TextDataModule
from fldd_lightning.estimators import Reinforce
from fldd_lightning.forward import (
    AbsorbingProcess,
    D3PMProcess,
    LearnedMaskProcess,
    ResidualAbsorbingProcess,
    StaggeredProcess,
    UniformProcess,
)
from fldd_lightning.networks import Transformer


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
PROCESSES: dict[str, tuple[Any, Any]] = {  # and the code
    "learned": (LearnedMaskProcess, None),
    "learned, chain": (LearnedMaskProcess, ChainCode),
    "learned, chain of parts of 4": (LearnedMaskProcess, partial(ChainCode, part=4)),
    "learned general": (ResidualAbsorbingProcess, None),
    "staggered": (StaggeredProcess, None),
    "absorbing": (AbsorbingProcess, None),
    "uniform": (UniformProcess, None),
    "D3PM": (D3PMProcess, None),
}
MEASURES = {"bits_per_char": 3, "gen_bits_5gram": 3, "entropy": 3, "distinct_4": 3}  # and their digits


def run(
    path: str, network: str, length: int, process: str, num_steps: int, seed: int, steps: int, samples: int
) -> dict[str, object]:
    """Train and test one model; returns a row of the table."""
    seed_everything(seed, verbose=False)
    chosen, (factory, code) = NETWORKS[network], PROCESSES[process]
    data = TextDataModule(path, length=length, batch_size=chosen.tokens // length, cache_dir=None, seed=seed)
    model = TextFLDD(
        data.num_classes, data.shape, with_network(factory, chosen.forward), chosen.denoiser, Reinforce, num_steps,
        code=code, lr=chosen.lr,
    )  # fmt: skip
    logged, seconds = train_and_test(model, data, steps, [PerplexityCallback(num_samples=samples)])
    row: dict[str, object] = {"network": network, "length": length, "process": process, "num_steps": num_steps}
    row |= {"seed": seed, "steps": steps, "samples": samples}
    for name in MEASURES:
        row[name] = f"{logged[f'test/{name}_T{num_steps}']:.4f}"
        if name != "bits_per_char":
            row[f"{name}_data"] = f"{logged[f'test/{name}_data']:.4f}"
    return {**row, "seconds": round(seconds), "torch": torch.__version__, "machine": machine()}


def table(path: Path) -> str:
    """Markdown: one row per length, network, training steps, T and process, and one for the data of each length."""
    groups: dict[tuple[int, str, int, int, str], list[dict[str, str]]] = defaultdict(list)
    for row in read_rows(path):
        length, network, steps = int(row["length"]), row["network"], int(row["steps"])
        groups[length, network, steps, int(row["num_steps"]), row["process"]].append(row)
    columns = ["length", "network", "steps", "T", "process", "seeds", "bits per character (range)"]
    columns += ["bits of the 5-gram judge (range)", "entropy, nats (range)", "distinct 4-grams (range)"]
    lines = table_head(columns)
    for length in sorted({key[0] for key in groups}):
        ours = {key: rows for key, rows in sorted(groups.items()) if key[0] == length}
        first = next(iter(ours.values()))[0]
        real = " | ".join(f"{float(first[f'{name}_data']):.3f}" for name in MEASURES if name != "bits_per_char")
        lines.append(f"| {length} |  |  |  | test text |  |  | {real} |")
        for (_, *names), rows in ours.items():
            cells = [mean_and_range([float(row[name]) for row in rows], digits) for name, digits in MEASURES.items()]
            lines.append(f"| {length} | {' | '.join(map(str, names))} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    models = [f"{process}:{num_steps}" for num_steps in (4, 10, 32) for process in PROCESSES]
    parser = comparison_parser(__doc__, "text", list(PROCESSES), models, steps=3_000, samples=500)
    parser.add_argument("--path", help="folder with the splits")
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256])
    arguments = parser.parse_args()
    if arguments.report is not None:
        write_report(arguments.report, table(arguments.report))
        return
    one_thread()
    keys = comparison_keys(arguments, network=[arguments.network], length=arguments.lengths)
    run_missing(arguments.output, keys, partial(run, arguments.path))


if __name__ == "__main__":
    main()
