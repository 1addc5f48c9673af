"""Pictures of a run: samples over training, reverse trajectories, what the forward process hides when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ..errors import FLDDError
from ..image import ImageFLDD
from ..module import FLDD
from ..ranges import COUNT, SEED, check_numbers
from .drawing import apart, as_picture, montage, schedule_of, shown_steps, with_mask
from .run import in_training, on_training_device, run_folder

__all__ = ["Pictures", "save_grid", "save_trajectory"]

_MOST_COLUMNS = 9


class Pictures(Callback):
    """Writes pictures into the run's folder and to every logger that takes images (TensorBoard, W&B).

    - ``samples_step{n}.png``: at every validation, samples of the averaged weights, always with the same seed.
    - ``samples.png``: the same at the end.
    - ``trajectory.png``: states z_T..z_0 of a few samples; MASK is blue.
    - ``marginals.png``: for a few validation examples and every t, the probability q(z_t = x|x) that a
      coordinate still is its data value. Also the step of sampling that reveals it, 1 being the first.
      That step is T - sum_{t=1}^{T-1} q(z_t = x|x), exact in the mean where coordinates are only masked.
    - ``schedule.png``: the same in the mean over a validation batch: which coordinates are revealed first.

    Args:
        num_samples: Samples in a grid.
        num_rows: Trajectories and examples shown.
        seed: Seed of the samples.

    Raises:
        FLDDError: If a number is not positive or the module is no :class:`FLDD`.
    """

    def __init__(self, num_samples: int = 64, num_rows: int = 6, seed: int = 0) -> None:
        check_numbers(locals(), num_samples=COUNT, num_rows=COUNT, seed=SEED)
        self.num_samples, self.num_rows, self.seed = num_samples, num_rows, seed

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples over training; here, as the weights are no longer the averaged ones when validation ends."""
        if not in_training(trainer):
            return
        folder = run_folder(trainer, "pictures")
        if isinstance(pl_module, ImageFLDD) and trainer.is_global_zero:
            path = folder / f"samples_step{trainer.global_step}.png"
            save_grid(pl_module, pl_module.sample(self.num_samples, self.seed), path)
            _log_picture(trainer, "samples", path)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not in_training(trainer):
            return
        folder = run_folder(trainer, "pictures")
        if not trainer.is_global_zero:
            return
        if not isinstance(pl_module, FLDD):
            raise FLDDError("the Pictures callback shows FLDD modules only; remove it from the callbacks.")
        loaders: Any = trainer.val_dataloaders
        with on_training_device(trainer, pl_module):
            save_grid(pl_module, pl_module.sample(self.num_samples, self.seed), folder / "samples.png")
            states = pl_module.sample(self.num_rows, self.seed, trajectory=True)
            save_trajectory(pl_module, states, folder / "trajectory.png")
            written = ["samples", "trajectory"]
            if loaders is not None:
                self._save_schedule(pl_module, next(iter(loaders)), folder)
                written += ["marginals", "schedule"]
        for name in written:
            _log_picture(trainer, name, folder / f"{name}.png")

    def _save_schedule(self, module: FLDD, batch: Any, folder: Path) -> None:
        """``marginals.png`` and ``schedule.png`` of a validation batch."""
        schedule = schedule_of(module, batch)
        num_steps = module.spec.num_steps
        revealed = as_picture(module, schedule.revealed)
        # in the order of sampling, as the trajectories are
        columns = {
            i: as_picture(module, schedule.kept[:, i - 1]) for i in shown_steps(num_steps - 1, _MOST_COLUMNS) if i > 0
        }
        rows = slice(self.num_rows)
        panels = [_Panels("$x$", apart(module.render(schedule.x[rows])))]
        panels += [_Panels(f"$q(z_{{{i}}} = x\\,|\\,x)$", each[rows], (0, 1)) for i, each in columns.items()]
        panels.append(_Panels("revealed in step", revealed[rows], (1, max(2, num_steps)), "viridis_r"))
        _save_panels(panels, folder / "marginals.png")
        means = [_Panels(f"$q(z_{{{i}}} = x)$", each.mean(0, True), (0, 1)) for i, each in columns.items()]
        mean = revealed.mean((0, 1), keepdim=True)  # (1, 1, H, W)
        limits = (float(mean.min()), max(float(mean.max()), float(mean.min()) + 0.1))
        means.append(_Panels("revealed in step", mean, limits, "viridis_r"))
        _save_panels(means, folder / "schedule.png")


def save_grid(module: FLDD, x: Tensor, path: Path) -> None:
    """Write a square grid of examples ``(N, *shape)`` as PNG."""
    from torchvision.utils import save_image

    save_image(montage(apart(module.render(x))), path)


def save_trajectory(module: FLDD, states: Tensor, path: Path) -> None:
    """Write states z_T..z_0 ``(T + 1, N, *shape)`` as PNG, one row per sample.

    MASK is blue where pictures have a pixel for every coordinate, else as ``module.render`` shows it.
    """
    num_steps = len(states) - 1
    steps = shown_steps(num_steps, _MOST_COLUMNS)
    panels = [_Panels(f"$z_{{{i}}}$", with_mask(module, states[num_steps - i])) for i in steps]
    _save_panels(panels, path)


@dataclass(frozen=True)
class _Panels:
    """One column of pictures.

    Attributes:
        title: Above it.
        pictures: ``(N, C, H, W)``.
        limits: Of the values, if the pictures are heat maps, which are means over C and have a colour bar.
        colours: Of heat maps.
    """

    title: str
    pictures: Tensor
    limits: tuple[float, float] | None = None
    colours: str = "viridis"


def _save_panels(columns: list[_Panels], path: Path) -> None:
    """A table of pictures: one column for each of the panels, one row per example."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, _, height, width = columns[0].pictures.shape
    is_flat = height == 1  # examples without rows and columns: bars
    bars = 0.8 * any(column.limits is not None for column in columns)
    size = (1.2 * len(columns) + bars, (0.45 if is_flat else 1.2 * height / width) * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for j, column in enumerate(columns):
        axes[0][j].set_title(column.title, fontsize=8)
        low, high = column.limits or (0, 1)
        for i in range(rows):
            picture = column.pictures[i].permute(1, 2, 0)  # (H, W, C)
            shown = picture if picture.shape[-1] == 3 and column.limits is None else picture.mean(-1)
            drawn = axes[i][j].imshow(
                shown.numpy(), cmap=column.colours if column.limits else "gray", vmin=low, vmax=high,
                aspect="auto" if len(picture) == 1 else "equal", interpolation="nearest",
            )  # fmt: skip
            axes[i][j].set(xticks=[], yticks=[])
            axes[i][j].spines[:].set(color="0.6", linewidth=0.5)
        is_last = j + 1 == len(columns) or columns[j + 1].limits != column.limits
        if column.limits is not None and is_last:  # one bar for neighbours of one scale
            bar = figure.colorbar(drawn, ax=axes[:, j], fraction=0.08, pad=0.04, aspect=12 if rows == 1 else 30)
            bar.ax.tick_params(labelsize=6, length=2, width=0.5)
            bar.outline.set(linewidth=0.5)
    figure.savefig(path, dpi=150)


def _log_picture(trainer: Trainer, name: str, path: Path) -> None:
    """Hand a picture to every logger that takes images."""
    import numpy as np
    from PIL import Image

    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(path)], trainer.global_step)
        elif hasattr(logger.experiment, "add_image"):
            picture = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")
