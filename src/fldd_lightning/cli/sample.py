"""``sample``: a checkpoint in, integers, a picture and, of models that write it, text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from ..callbacks.pictures import save_grid, save_trajectory
from ..callbacks.texts import trajectory_lines, write_lines
from ..decoding import Decoding
from ..module import FLDD
from .checkpoint_data import check_device, chosen_model
from .mistakes import OptionParser

__all__ = ["sample_command"]


def sample(
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    output: str = "samples",
    num_samples: int = 64,
    num_steps: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "cpu",
    trajectory: bool = False,
    decoding: Decoding | None = None,
) -> None:
    """Draw samples from a trained model.

    Args:
        ckpt_path: The checkpoint. If it names classes of your own, add --trust my_file.
        pretrained: In place of a checkpoint: digits or text, which come with this package; a folder of a trained
            model; or OWNER/NAME on the Hugging Face hub.
        output: Where to write; endings of .npy, .png, .txt and .csv are left out. OUTPUT.npy holds integers
            (N, *shape), OUTPUT.png a grid of pictures and, if the model writes text, OUTPUT.txt one line per
            sample; of tables OUTPUT.csv, with the names of the columns. There are no pictures of text that the
            model does not render.
        num_samples: How many.
        num_steps: T. That of the training; another one for masked diffusion that is not told the step.
        batch_size: How many at once.
        seed: Seed; equal seeds give equal samples.
        device: Where to run, such as cpu or cuda.
        trajectory: Also write OUTPUT_trajectory.npy, all states (T + 1, N, *shape), and picture and text of
            the first 8 samples.
        decoding: Ancestral or GreedyEnd; for masked diffusion also ExactlyN or ConfidentFirst.
    """
    check_device(device)
    model = chosen_model(ckpt_path, pretrained, device)
    states = model.sample(num_samples, seed, num_steps, trajectory, batch_size, progress=True, decoding=decoding)
    samples = states[-1] if trajectory else states
    lines = model.to_text(samples)
    has_picture = lines is None or type(model).render is not FLDD.render
    path = Path(output)
    if path.suffix in (".npy", ".png", ".txt", ".csv"):
        path = path.with_suffix("")
    path.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def file(ending: str) -> Path:
        written.append(path.with_name(path.name + ending))
        return written[-1]

    np.save(file(".npy"), samples.numpy())
    if trajectory:
        np.save(file("_trajectory.npy"), states.numpy())
    if has_picture:
        save_grid(model, samples, file(".png"))
        if trajectory:
            save_trajectory(model, states[:, :8], file("_trajectory.png"))
    if lines is not None:
        write_lines([*model.text_head(), *lines], file(model.text_ending))
        if trajectory:
            write_lines(trajectory_lines(model, states[:, :8]), file("_trajectory.txt"))
    print("wrote " + ", ".join(str(p) for p in written))


def sample_command(args: Sequence[str]) -> None:
    """Parse the options of ``sample`` and run it."""
    auto_cli(sample, args=list(args), as_positional=False, prog="fldd-lightning sample", parser_class=OptionParser)
