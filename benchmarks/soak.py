"""A thousand random small models: each is trained, resumed, tested and sampled, and nothing may go wrong.

    nice -n 10 python benchmarks/soak.py --count 1000

A seed chooses process, estimator, latent, network, data, precision and T, among those that go together. Each model
takes two steps, is saved, goes on from its checkpoint for two more, is tested and draws samples. A run is wrong if it
raises anything, if a bound is not finite, or if a sample is out of range. Where there is no latent and all states can
be enumerated, -log p(x) of every x is also written out from the reverse process alone. The run is wrong if the bound
is below it in the mean over all x, by more than four standard errors.

A seed that is in the file is not run again. Give ``--seconds`` to stop after a while and go on another time.
"""

from __future__ import annotations

import argparse
import csv
import logging
import random
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import append_row, one_thread
from lightning.pytorch import Trainer

from fldd_lightning import (
    FLDD,
    MLP,
    RLOO,
    AbsorbingProcess,
    AutoencoderLatent,
    ChainLatent,
    Concrete,
    D3PMProcess,
    DiscreteDataModule,
    DiT,
    EitherLatent,
    ExactMasks,
    FLDDError,
    LabelLatent,
    LearnedMaskProcess,
    LengthLatent,
    MixtureLatent,
    Reinforce,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    StaggeredProcess,
    TrainedChainLatent,
    TrainedMixtureLatent,
    Transformer,
    UNet,
    UniformProcess,
    WarmUp,
)
from fldd_lightning.data import Split

SMALL = partial(MLP, width=8, depth=1, embedding=4)
NETWORKS = {
    "MLP": SMALL,
    "MLP with dropout": partial(SMALL, dropout=0.1),
    "Transformer": partial(Transformer, width=8, depth=1, heads=2),
    "UNet": partial(UNet, widths=[8, 8]),
    "DiT": partial(DiT, width=8, depth=1, heads=2, patch=2),
}
PROCESSES = {
    "absorbing": AbsorbingProcess,
    "staggered": partial(StaggeredProcess, slack=0.9),
    "uniform": UniformProcess,
    "d3pm": D3PMProcess,
    "residual absorbing": partial(ResidualAbsorbingProcess, network=SMALL),
    "residual uniform": partial(ResidualUniformProcess, network=SMALL),
    "learned mask": partial(LearnedMaskProcess, network=SMALL),
}
ESTIMATORS = {
    "Reinforce": Reinforce,
    "RLOO": RLOO,
    "Concrete": Concrete,
    "ExactMasks": ExactMasks,
    "WarmUp": partial(WarmUp, first=Concrete, then=Reinforce, steps=2),
}
LATENTS: dict[str, Any] = {
    "none": (),
    "mixture": partial(MixtureLatent, size=3),
    "trained mixture": partial(TrainedMixtureLatent, size=3),
    "chain": partial(ChainLatent, size=3),
    "trained chain": partial(TrainedChainLatent, size=3),
    "either": EitherLatent,
    "autoencoder": partial(AutoencoderLatent, size=2, components=2, couplings=1, fit_steps=2),
    "label": partial(LabelLatent, num_labels=2),
    "label and mixture": [partial(LabelLatent, num_labels=2), partial(MixtureLatent, size=3)],
}
KINDS = {"pair": (2,), "row": (4,), "image": (4, 4), "colour": (3, 4, 4), "padded": (4,), "table": (3,)}
PRECISIONS = ("32-true", "64-true", "bf16-mixed")
MOST_STATES = 100  # that are enumerated


class RandomData(DiscreteDataModule):
    """Random integers with labels; PAD at the end of rows, or columns of different numbers of values."""

    def __init__(self, num_classes: int, kind: str, seed: int) -> None:
        super().__init__(batch_size=8, seed=seed)
        self.classes, self.kind = num_classes, kind

    def load(self) -> dict[str, Split]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = KINDS[self.kind]
        values = torch.tensor(self.num_values or self.num_classes - int(self.padded))
        x = (torch.rand(48, *shape, generator=generator) * values).long()
        if self.padded:
            lengths = torch.randint(1, shape[0] + 1, (48, 1), generator=generator)
            x = x.masked_fill(torch.arange(shape[0]) >= lengths, self.num_classes - 1)
        labels = torch.randint(2, (48,), generator=generator)
        return {name: Split(x[i : i + 16], labels[i : i + 16]) for name, i in (("train", 0), ("val", 16), ("test", 32))}

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def padded(self) -> bool:
        return self.kind == "padded"

    @property
    def num_values(self) -> list[int] | None:
        return [2, self.classes, self.classes] if self.kind == "table" else None


def draw_parts(draw: random.Random) -> dict[str, Any]:
    """The parts of a model, by their names; they may not go together."""
    kind = draw.choice(["pair", *KINDS])
    is_image = len(KINDS[kind]) > 1
    return {
        "process": draw.choice(list(PROCESSES)),
        "estimator": draw.choice(list(ESTIMATORS)),
        "latent": draw.choice(["none", "none", *LATENTS]),
        "network": draw.choice([name for name in NETWORKS if is_image or name not in ("UNet", "DiT")]),
        "data": kind,
        "precision": draw.choice(PRECISIONS),
        "num_classes": draw.randint(3, 4) if kind == "padded" else draw.randint(2, 4),
        "num_steps": draw.randint(1, 4),
        "observed": draw.choice([0.0, 0.0, 0.5]),
    }


def build(chosen: dict[str, Any], data: RandomData) -> FLDD:
    """The model of the chosen parts."""
    latents = LATENTS[chosen["latent"]]
    if data.padded:
        latents = [LengthLatent, *(latents if isinstance(latents, (list, tuple)) else [latents])]
    return FLDD(
        data.num_classes,
        data.shape,
        PROCESSES[chosen["process"]],
        NETWORKS[chosen["network"]],
        ESTIMATORS[chosen["estimator"]],
        latents,
        num_steps=chosen["num_steps"],
        padded=data.padded,
        num_values=data.num_values,
        observed=chosen["observed"],
        freeze_steps=1,
    )


def choose(seed: int) -> tuple[dict[str, Any], RandomData]:
    """Parts that go together, and data: parts are drawn anew until no FLDDError refuses them."""
    draw = random.Random(seed)
    while True:
        chosen = draw_parts(draw)
        data = RandomData(chosen["num_classes"], chosen["data"], seed)
        with suppress(FLDDError):
            build(chosen, data)
            return chosen, data


def run(seed: int, chosen: dict[str, Any], data: RandomData) -> str:
    """Train, resume, test and sample a model: ``ok``, or ``ok, enumerated``.

    Raises:
        AssertionError: If a number is not as it must be.
        Exception: Whatever else goes wrong.
    """
    torch.manual_seed(seed)
    model = build(chosen, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two.ckpt"
        trainer = trainer_for(folder, chosen, 2)
        trainer.fit(model, data)
        trainer.save_checkpoint(path)
        model = build(chosen, data)
        trainer = trainer_for(folder, chosen, 4)
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        assert trainer.global_step == 4, f"{trainer.global_step} steps"
        (tested,) = trainer.test(model, data, verbose=False)
    bound = tested["test/nelbo"]
    assert all(value == value and abs(value) < 1e6 for value in tested.values()), f"tested {tested}"
    x = model.sample(4, seed=seed)
    assert x.shape == (4, *data.shape), f"samples {tuple(x.shape)}"
    assert 0 <= int(x.min()) <= int(x.max()) < data.num_classes, f"samples up to {int(x.max())}"
    assert bound > 0, f"bound {bound}"
    num_states = model.forward_process.num_states**model.spec.num_dims
    if len(model.latents) or data.num_values or num_states > MOST_STATES:
        return "ok"
    check_enumerated(model)
    return "ok, enumerated"


def trainer_for(folder: str, chosen: dict[str, Any], steps: int) -> Trainer:
    """A trainer that writes and shows nothing."""
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        precision=chosen["precision"],
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )


def check_enumerated(model: FLDD) -> None:
    """Raise AssertionError if the mean bound of all x is below the mean of -log p(x)."""
    process, reverse, spec = model.forward_process, model.reverse, model.spec
    model.eval().double()
    places = torch.arange(spec.num_dims)
    states = torch.tensor(list(product(range(process.num_states), repeat=spec.num_dims)))  # (N, D)
    with torch.no_grad():
        log_priors = process.log_priors().double().expand(spec.num_dims, process.num_states)
        p = log_priors[places, states].sum(-1).exp()
        for t in range(spec.num_steps, 0, -1):
            log_p = reverse.log_prob(states.view(-1, *spec.shape), torch.full((len(states),), t), ()).double()
            log_p = log_p.view(len(states), spec.num_dims, -1)  # (N, D, S)
            to = torch.stack([log_p[:, d, states[:, d]] for d in range(spec.num_dims)]).sum(0)  # (N, N)
            p = p @ to.exp()
        data = (states < spec.num_classes).all(-1)
        exact = -p[data].log()
        found = model.nelbo(states[data].view(-1, *spec.shape), draws=32)
    error = found.standard_error.double().square().sum().sqrt() / len(exact)
    mean, least = found.nelbo.double().mean(), exact.mean()
    assert mean > least - 4 * error - 1e-4, f"bound {mean:.4f} of {error:.4f}, below -log p, {least:.4f}"


def main() -> None:
    """Run what has not been run, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "soak.csv")
    args = parser.parse_args()
    one_thread()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    rows = list(csv.DictReader(args.output.open())) if args.output.exists() else []
    done = {int(row["seed"]) for row in rows}
    start = time.perf_counter()
    for seed in range(args.first, args.first + args.count):
        if seed in done or time.perf_counter() - start > args.seconds:
            continue
        chosen, data = choose(seed)
        try:
            outcome = run(seed, chosen, data)
        except Exception as error:  # whatever it is, it is told and the next seed follows
            outcome = f"wrong: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        row = {"seed": seed, **chosen, "outcome": outcome, "commit": commit}
        append_row(args.output, row)
        rows.append(row)
        print(seed, *chosen.values(), "->", outcome, flush=True)
    of_range = [row for row in rows if args.first <= int(row["seed"]) < args.first + args.count]
    counts = Counter(row["outcome"].partition(":")[0] for row in of_range)
    print(f"{len(of_range)} of {args.count}: {dict(counts)}; commits {sorted({row['commit'] for row in of_range})}")


if __name__ == "__main__":
    main()
