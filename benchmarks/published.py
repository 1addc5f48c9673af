"""The set-ups of published figures, in pieces that a GPU finishes in 25 minutes or less.

    python benchmarks/published.py --setup mnist28 --method ours --path FOLDER --checkpoints FOLDER
    python benchmarks/published.py --setup qm9 --method masked --path train_smile.txt --checkpoints FOLDER --smoke

A piece trains for ``--minutes``, then keeps its averaged weights and measures. The same command goes on from there,
until all steps are done. Parameters are kept in float32 if all fits into one file below 14 MB, else in bfloat16 and in
several such files. What is measured is what was kept. Adam's moments and the average of the weights start anew in a
piece, after 100 steps of warm-up; the learning rate and the weight of the auxiliary loss go on. A row says how many
steps it is of.

Methods: ``ours`` is the default recipe (``LearnedMaskProcess`` from an order by hand, with a latent). ``masked`` and
``uniform`` predict x; masked diffusion is trained with ``ExactMasks``, once for every T. Samples are drawn twice, with
the last step sampled and greedy. The bound is that of validation data until all steps are done, and of the test set
then. Learning rates are those of the set-ups, not tuned. ``--smoke`` runs a few steps on a CPU, keeps nothing, and
proves that a set-up works.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import MASKED, UNIFORM, Recipe, append_row, joined, made_with, measured, one_thread, rows_of
from kinds import Source, molecules, of_molecules, of_pictures, of_texts, smiles_of_length
from lightning.pytorch import Trainer, seed_everything
from work import TrainingWork, sampling_work, trained_numbers

from fldd_lightning import (
    FLDD,
    Ancestral,
    AnyOrderBound,
    AutoencoderLatent,
    ConvAutoencoder,
    DiscreteDataModule,
    GreedyEnd,
    ImageFLDD,
    LearnedMaskProcess,
    MixtureLatent,
    MNISTDataModule,
    TextDataModule,
    TextFLDD,
    Transformer,
    UNet,
)
from fldd_lightning.training import two_time_scales

__all__ = ["METHODS", "SETUPS", "load_parts", "main", "save_parts"]

MOST_BYTES = 13_500_000  # of one file


@dataclass(frozen=True)
class Setup(Source):
    """A published set-up.

    Attributes:
        lr: Peak learning rate.
        num_steps: The T that are compared; the first by default.
        dims: Dimensions that bits are counted for.
        published: Figures of others, to stand beside ours.
        beside_latent: The denoiser of ours, where the latent's decoder brings many parameters to a sample, too.
    """

    lr: float
    num_steps: tuple[int, ...]
    dims: int
    published: str
    beside_latent: Any = None


SETUPS = {
    "mnist28": Setup(
        partial(MNISTDataModule, size=28), ImageFLDD, partial(UNet, widths=(40, 80, 160), dropout=0.1),
        partial(UNet, widths=(16, 32, 64)), partial(AutoencoderLatent, autoencoder=ConvAutoencoder), batch=512,
        steps=25_000, lr=1e-3, num_steps=(4, 64), samples=5_000, measure=of_pictures, dims=1_024,
        published="bits a dimension of 1,024: masked diffusion 0.077, VADD 0.064, E-MoE 0.062",
        beside_latent=partial(UNet, widths=(32, 64, 136), dropout=0.1),
    ),
    "qm9": Setup(
        partial(smiles_of_length, length=32), molecules, partial(Transformer, width=256, depth=6, heads=4),
        partial(Transformer, width=128, depth=2, heads=4), MixtureLatent, batch=1_024, steps=50_000, lr=5e-4,
        num_steps=(4, 8), samples=1_024, measure=of_molecules, dims=32,
        published="valid of 1,024 at T = 4 and 8: masked 15, 34 %; uniform 48, 81; PairFlow 72, 90",
    ),
    "zinc": Setup(
        partial(smiles_of_length, length=64), molecules,
        partial(Transformer, width=512, depth=10, heads=8, time_width=32),
        partial(Transformer, width=128, depth=2, heads=4), MixtureLatent, batch=512, steps=22_000, lr=1e-4,
        num_steps=(50, 10, 4), samples=1_024, measure=of_molecules, dims=64,
        published="valid at T = 50: FLDD 3.0 %, masked 58.7, VSDD 84.3",
    ),
    "text8": Setup(
        partial(TextDataModule, length=256), TextFLDD, partial(Transformer, width=256, depth=8, heads=4),
        partial(Transformer, width=128, depth=2, heads=4), (), batch=512, steps=20_000, lr=1e-3, num_steps=(4, 20),
        samples=512, measure=of_texts, dims=256,
        published="bits a character of the whole text8: D3PM absorbing with 20 steps 1.56",
    ),
}  # fmt: skip
METHODS = {"ours": Recipe(LearnedMaskProcess), "masked": MASKED, "uniform": UNIFORM}


class Piece(FLDD):
    """A part of a longer training: rates and the auxiliary loss know what was done before.

    Attributes:
        done: Steps before this piece.
        total: Steps of the whole training.
    """

    done, total = 0, 1

    def configure_optimizers(self) -> Any:
        self._run_progress = progress = lambda step: (self.done + step) / self.total
        rates = (self.lr, self.lr * self.forward_lr_ratio)
        self.held_steps = self.freeze_steps
        return two_time_scales(progress, self, self.forward_process, rates, self.held_steps, self.weight_decay, False)

    def on_train_start(self) -> None:
        if self.done == 0:  # else its latents came with the weights
            super().on_train_start()


def build(name: str, method: str, num_steps: int, data: DiscreteDataModule) -> Any:
    """The model of a set-up."""
    setup, recipe = SETUPS[name], METHODS[method]
    if method == "ours":
        recipe = replace(recipe, latents=setup.latent)
        setup = replace(setup, denoiser=setup.beside_latent or setup.denoiser)
    model = setup.build(recipe, num_steps, setup.lr, data)
    model.__class__ = type("Piece", (Piece, type(model)), {})
    return model


def save_parts(
    state: dict[str, torch.Tensor], parameters: Collection[str], done: int, work: TrainingWork, folder: Path, name: str
) -> list[Path]:
    """Keep weights in files below 14 MB; earlier ones of the name are replaced.

    Args:
        state: Parameters and tables.
        parameters: Names of those that may be rounded to bfloat16.
        done: Steps they are of.
        work: Operations of the training.
        folder: Where.
        name: How the files begin.

    Returns:
        The files.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    dtype = torch.float32 if size < MOST_BYTES else torch.bfloat16
    parts: list[dict[str, torch.Tensor]] = [{}]
    room = MOST_BYTES
    for key, tensor in state.items():
        kept = tensor.detach().cpu().to(dtype if key in parameters else tensor.dtype)
        size = kept.numel() * kept.element_size()
        if size > room:
            parts.append({})
            room = MOST_BYTES
        parts[-1][key] = kept.clone()
        room -= size
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{i}.pt" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        new = path.with_suffix(".new")
        torch.save({"done": done, "work": work.state_dict(), "parts": len(parts), "state": part}, new)
        new.replace(path)
    return paths


def load_parts(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], int, TrainingWork]:
    """The weights that :func:`save_parts` kept, the steps they are of and their operations; no weights at first."""
    work = TrainingWork()
    if not (folder / f"{name}-0.pt").exists():
        return {}, 0, work
    first = torch.load(folder / f"{name}-0.pt", weights_only=True)
    parts = [first, *(torch.load(folder / f"{name}-{i}.pt", weights_only=True) for i in range(1, first["parts"]))]
    if len({part["done"] for part in parts}) > 1:
        raise SystemExit(f"the files {name}-*.pt in {folder} are of different pieces: delete them and start again.")
    work.load_state_dict(first["work"])
    return {key: tensor for part in parts for key, tensor in part["state"].items()}, int(first["done"]), work


def run(arguments: argparse.Namespace) -> None:
    """Train one piece, keep it, measure it."""
    name, method, seed, smoke = arguments.setup, arguments.method, arguments.seed, arguments.smoke
    setup, is_timeless = SETUPS[name], METHODS[method].is_timeless
    num_steps = arguments.num_steps or setup.num_steps[0]
    label = f"{name}-{method}-seed{seed}" if is_timeless else f"{name}-{method}-T{num_steps}-seed{seed}"
    state, done, work = load_parts(arguments.checkpoints, label)
    total = 4 if smoke else setup.steps
    key = {"setup": name, "method": method, "num_steps": num_steps, "seed": seed, "done": total}
    if rows_of(arguments.output, key):
        print(f"{arguments.output} has a row of {key}", flush=True)
        return
    seed_everything(seed + 1_000 * done, verbose=False)  # other noise in each piece
    data = setup.data(arguments.path, batch_size=8 if smoke else setup.batch, seed=0)
    _ = data.splits  # of seed 0; from now on it is that of the training order alone
    data.seed = done
    model = build(name, method, setup.num_steps[0] if is_timeless else num_steps, data)
    model.done, model.total = done, total
    model.freeze_steps = max(0, model.freeze_steps - done)
    for latent in model.latents:
        if smoke and isinstance(latent, AutoencoderLatent):
            latent.fit_steps = 2
    if done < total:
        if state:
            model.load_state_dict(state)
        trainer = Trainer(
            max_steps=total - done, max_time={"minutes": arguments.minutes}, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[work],
            precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        )  # fmt: skip
        trainer.fit(model, data)
        done += trainer.global_step
        parameters = {k for k, _ in model.named_parameters()}
        paths = save_parts(model.state_dict(), parameters, done, work, arguments.checkpoints, label)
        print(f"{label}: {done} of {total} steps; kept {', '.join(each.name for each in paths)}", flush=True)
        state, done, work = load_parts(arguments.checkpoints, label)
    model.load_state_dict(state)
    row = {**key, "done": done, "of": setup.steps, "training_gflop": round(work.total(done) / 1e9)}
    model = model.with_num_steps(num_steps) if is_timeless else model
    row |= measures(setup, model, data, done == total, arguments)
    print(row, flush=True)
    if not smoke:
        append_row(arguments.output, row)


def measures(
    setup: Setup, model: Any, data: DiscreteDataModule, is_final: bool, arguments: argparse.Namespace
) -> dict[str, object]:
    """The columns of a row that are measured: bounds, samples, size."""
    smoke, split = arguments.smoke, "test" if is_final else "val"
    further = [AnyOrderBound()] if METHODS[arguments.method].is_timeless else []
    if is_final:
        logged = measured(model, data, further, 16 if smoke else None)
    else:
        logged = {f"val/{k}": float(v) for k, v in model.evaluate(data.val_dataloader(), "val").items()}
    said = {}
    for last, decoding in (("sampled", Ancestral()), ("greedy", GreedyEnd())):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        x = model.sample(16 if smoke else setup.samples, arguments.seed, decoding=decoding)
        said[last] = joined(setup.measure(model.cpu(), data, x, arguments.output.parent))
    operations, numbers = sampling_work(model, 2 if smoke else 64)
    return {
        "split": split, **{k: f"{logged[f'{split}/{k}']:.4f}" for k in ("nelbo", "nelbo_se")},
        "nelbo_any_order": f"{logged['test/nelbo_any_order']:.4f}" if further and is_final else "",
        "bits": f"{logged[f'{split}/nelbo'] / setup.dims / log(2):.4f}", **said,
        "sample_mflop": round(operations / 1e6, 3), "numbers_sampling": numbers,
        "numbers_training": trained_numbers(model), "published": setup.published, **made_with(),
    }  # fmt: skip


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=SETUPS, required=True)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--path", required=True, help="the data: a folder or a file")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of the weights between pieces")
    parser.add_argument("--num_steps", type=int, help="T; by default the first of the set-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=int, default=20, help="training time of a piece")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/published.csv"))
    parser.add_argument("--smoke", action="store_true", help="a few steps, and no row")
    arguments = parser.parse_args(args)
    one_thread()
    with TemporaryDirectory() as folder:
        if arguments.smoke:
            arguments.checkpoints = Path(folder)
        run(arguments)


if __name__ == "__main__":
    main()
