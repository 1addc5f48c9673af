"""``sample``: a checkpoint in, integers, a picture and, of models that write it, text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..callbacks.pictures import save_grid, save_trajectory
from ..callbacks.texts import trajectory_lines, write_lines
from ..decoding import Decoding
from ..files import shard_mark
from ..guidance import Guided
from ..latents import ConditionLatent
from ..module import FLDD
from ..ranges import NOT_NEGATIVE, check_numbers
from .checkpoint_data import check_device, check_free, check_output, chosen_model, option, run_options
from .condition import condition_words, read_condition
from .given import CLAMPED, read_given
from .processes import this_process

__all__ = ["sample_command"]

_ENDINGS = (".npy", ".png", ".txt", ".csv")


def sample(
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    output: str = "samples",
    num_samples: int | None = None,
    num_steps: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "cpu",
    trajectory: bool = False,
    decoding: Decoding | None = None,
    best_of: int = 1,
    given: str | None = None,
    prompt: str | None = None,
    infill: str | None = None,
    condition: list[int | float | str] | None = None,
    guidance: float | None = None,
) -> None:
    """Draw samples from a trained model.

    Started by torchrun or srun, every process draws its part of the samples and writes files of its own, such as
    OUTPUT-00000-of-00002.npy. One after the other they are what a single process writes.

    Args:
        ckpt_path: The checkpoint. If it names classes of your own, add --trust my_file.
        pretrained: In place of a checkpoint: digits or text, which come with this package; a folder of a trained
            model; or OWNER/NAME on the Hugging Face hub.
        output: Where to write; endings of .npy, .png, .txt and .csv are left out. A file with such a name must not
            be there yet. OUTPUT.npy holds integers (N, *shape), OUTPUT.png a grid of pictures and, if the model writes
            text, OUTPUT.txt one line per sample; of tables OUTPUT.csv, with the names of the columns. There are no
            pictures of text that the model does not render.
        num_samples: How many; 64 if left out, or one for each example of --given or value of --condition if there are
            several.
        num_steps: Number of steps T. Left out, that of the training. Another one is for models that were trained with
            budgets, and for masked diffusion whose denoiser does not see the step (time_independent).
        batch_size: How many at once.
        seed: Seed; equal seeds give equal samples.
        device: Where to run, such as cpu or cuda. With cuda, several processes on a machine take a GPU each.
        trajectory: true also writes OUTPUT_trajectory.npy, all states (T + 1, N, *shape), and picture and text of
            the first 8 samples.
        decoding: Ancestral, which is meant if left out, or GreedyEnd; for masked diffusion also ExactlyN or
            ConfidentFirst. Each takes --decoding.temperature and --decoding.top_p.
        best_of: How many to draw for each sample, of which the one with the lowest bound is kept.
        given: A .npy file of integers, of one example or of n (n, *shape), -1 where unknown, which samples complete.
            Of tables also a .csv file with the columns that are known; ___ stands for an entry that is not.
        prompt: How samples start, of models of text.
        infill: A text with blanks, such as "a ___ b", of models of text. A run of three underscores or more is a blank
            of as many tokens. What follows the text is not given.
        condition: What samples are asked for, of models with labels or vectors: 3, or label=3, or label=0 1 2 style=1,
            or NAME=FILE.npy. A name is needed where there are several.
        guidance: Weight of guidance towards the condition, 0 or more, of models that were trained with a share of
            their conditions dropped. It goes with every decoding.
    """
    path = Path(output)
    path = path.with_suffix("") if path.suffix in _ENDINGS else path
    process = this_process()
    is_first, share = process.rank == 0, (process.rank, process.world)
    check_output(path)

    def file(ending: str, kind: str = "") -> Path:
        return path.with_name(path.name + kind + shard_mark(*share) + ending)

    kinds = ("", "_trajectory") if trajectory else ("",)
    check_free(*(file(ending, kind) for kind in kinds for ending in _ENDINGS))
    device = process.device(device)
    check_device(device)
    check_numbers(locals(), guidance=NOT_NEGATIVE.or_none)
    model = chosen_model(ckpt_path, pretrained, device)
    known = read_given(model, given, prompt, infill)
    asked = {} if condition is None else read_condition(model, condition)
    if num_samples is None:
        several = [len(known)] if known is not None and known.dim() > len(model.spec.shape) else []
        chosen = [each for each in model.latents if isinstance(each, ConditionLatent) and each.name in asked]
        most = max([*several, *(len(each.choose(asked[each.name])) for each in chosen)], default=1)
        num_samples = most if most > 1 else 64
    if guidance is not None:
        decoding = Guided(guidance, decoding)
    states = model.sample(
        num_samples, seed, num_steps, trajectory, batch_size, is_first, decoding, known, best_of, asked, share
    )
    if known is not None and is_first and bool((known >= 0).any()):
        print("The model was trained to complete examples." if model.observed else CLAMPED)
    samples = states[-1] if trajectory else states
    lines = model.to_text(samples)
    has_picture = lines is None or type(model).render is not FLDD.render
    written: list[Path] = []

    def new(ending: str, kind: str = "") -> Path:
        written.append(file(ending, kind))
        return written[-1]

    np.save(new(".npy"), samples.numpy())
    if trajectory:
        np.save(new(".npy", "_trajectory"), states.numpy())
    if has_picture:
        save_grid(model, samples, new(".png"))
        if trajectory:
            save_trajectory(model, states[:, :8], new(".png", "_trajectory"))
    if lines is not None:
        write_lines([*model.text_head(), *lines], new(model.text_ending))
        if trajectory:
            write_lines(trajectory_lines(model, states[:, :8]), new(".txt", "_trajectory"))
    print("wrote " + ", ".join(str(p) for p in written))


def sample_command(args: Sequence[str]) -> None:
    """Parse the options of ``sample`` and run it."""
    run_options(sample, "sample", condition_words(_with_decoding(args)))


def _with_decoding(args: Sequence[str]) -> list[str]:
    """The options with the usual decoding named, where only options of it are given."""
    has_options = any(word.startswith("--decoding.") and not word.startswith("--decoding.help") for word in args)
    is_named = any(option(args, name) is not None for name in ("--decoding", "--config"))
    return ["--decoding", "Ancestral", *args] if has_options and not is_named else list(args)
