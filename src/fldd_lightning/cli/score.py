"""``score``: the bound of every row of a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.progress import track
from torch.utils.data import DataLoader

from ..categorical import check_states
from ..checkpoint import same_vocabulary
from ..data import DiscreteDataModule, TableDataModule, TextDataModule
from ..errors import FLDDError
from ..evaluation import Scores
from ..ranges import ANY_SEED, COUNT, check_numbers
from ..table import TableFLDD
from ..text import TextFLDD
from .checkpoint_data import check_device, check_new, chosen_model, option, run_with_data, write_whole
from .processes import one_process

__all__ = ["score", "score_command"]

_TOLD = ("alphabet", "tokenizer", "length", "padded", "bins", "as_text", "leave_out", "columns")  # by the model


def score(
    data: DiscreteDataModule,
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    output: str = "scores.csv",
    num_steps: int | None = None,
    draws: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Write the bound on -log p(x) of every row of the data, in their order. No row is split off.

    A row that cannot be scored, as one without text, is an error: none is left out.

    Columns: row, from 0; nelbo, in nats; nelbo_se, its standard error over the draws, empty for one draw; kl_t1,
    kl_t2, ... and kl_NAME of every latent, which add up to nelbo.

    Args:
        data: What to score. Left out, the data that the checkpoint was trained on. --data.path FILE is another file of
            the same kind.
        ckpt_path: The checkpoint. If it names classes of your own, add --trust my_file.
        pretrained: In place of a checkpoint: digits or text, which come with this package; a folder of a trained
            model; or OWNER/NAME on the Hugging Face hub.
        output: The CSV file to write. One that is there already is left alone.
        num_steps: Number of steps T. Left out, that of the training. Another one is for models that were trained with
            budgets, and for masked diffusion whose denoiser does not see the step (time_independent).
        draws: Draws of the noise for each row; the bound is their mean.
        seed: Seed of the draws; equal seeds give equal numbers.
        device: Where to run, such as cpu or cuda.
    """
    file = Path(output)
    check_new(file)
    check_numbers(locals(), draws=COUNT, seed=ANY_SEED)
    check_device(device)
    model = chosen_model(ckpt_path, pretrained, device)
    if num_steps not in (None, model.spec.num_steps):
        model = model.with_num_steps(num_steps)
    if isinstance(model, TextFLDD) and isinstance(data, TextDataModule) and model.tokenizer is not None:
        data.write_in(model.tokenizer, model.spec.num_dims, model.spec.padded)
    if isinstance(model, TableFLDD) and isinstance(data, TableDataModule) and model.columns is not None:
        data.read_as(model.columns)
    rows = data.all_rows()
    same_vocabulary(model.vocabulary, data.vocabulary)
    check_states(rows.x, model.spec.num_classes, model.spec.shape, "the data")
    batches = DataLoader(rows, batch_size=data.batch_size)
    scores = Scores.joined([model.nelbo(batch, draws, seed) for batch in track(batches, "scoring")])
    write_whole(file, table(scores))
    print(f"wrote {file}: {len(rows)} rows, {scores.nelbo.mean():.3f} nats in the mean")


def table(scores: Scores) -> str:
    """Scores as CSV, a line for each example."""
    columns = {"nelbo": scores.nelbo, "nelbo_se": scores.standard_error, **scores.terms}
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *columns])
    for i, values in enumerate(zip(*(column.tolist() for column in columns.values()), strict=True)):
        writer.writerow([i, *("" if value != value else f"{value:.9g}" for value in values)])  # NaN differs from itself
    return text.getvalue()


def score_command(args: Sequence[str]) -> None:
    """Parse the options of ``score`` and run it."""
    one_process("score")
    for name in ("val_path", "test_path"):
        if option(args, f"--data.{name}") is not None:
            raise FLDDError(f"score reads one source, without splits: give the file as --data.path, not --data.{name}.")
    for name in _TOLD:
        if option(args, f"--data.{name}") is not None:
            raise FLDDError(f"--data.{name} is what the model was trained with: leave it out.")
    run_with_data(score, "score", args)
