"""Pictures at the end of ``fit``: samples, reverse trajectories, the learned marginals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ..errors import FLDDError
from ..image import ImageFLDD
from ..module import FLDD

__all__ = ["Pictures", "save_grid", "save_trajectory"]


class Pictures(Callback):
    """Writes ``samples.png``, ``trajectory.png``, ``marginals.png`` and ``schedule.png`` into the run's folder.

    ``marginals.png`` shows, for a few validation examples and every t, the probability under
    q(z_t|x) that a coordinate still is its data value: what is destroyed when. ``schedule.png``
    shows its mean over a validation batch, and the share of the T steps that a coordinate is kept
    for: bright ones are revealed first. A grid of samples with the same seed is written at every
    validation, ``samples_step{n}.png``, so that training can be watched. The pictures go to every
    logger that takes images, too.

    Args:
        num_samples: Samples in the grid.
        num_rows: Trajectories and examples shown.
        seed: Seed of the samples.
    """

    def __init__(self, num_samples: int = 64, num_rows: int = 6, seed: int = 0) -> None:
        self.num_samples, self.num_rows, self.seed = num_samples, num_rows, seed

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples with averaged weights, over training."""
        is_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not is_fit or getattr(trainer, "fast_dev_run", False):
            return
        folder = _folder(trainer)
        if isinstance(pl_module, ImageFLDD) and trainer.is_global_zero:
            path = folder / f"samples_step{trainer.global_step}.png"
            save_grid(pl_module, pl_module.sample(self.num_samples, self.seed), path)
            for logger in trainer.loggers:
                _log_picture(logger, "samples", path, trainer.global_step)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        folder = _folder(trainer)
        if not trainer.is_global_zero:
            return
        if not isinstance(pl_module, FLDD):
            raise FLDDError("the Pictures callback shows FLDD modules only; remove it from the callbacks.")
        save_grid(pl_module, pl_module.sample(self.num_samples, self.seed), folder / "samples.png")
        states = pl_module.sample(self.num_rows, self.seed, trajectory=True)
        save_trajectory(pl_module, states, folder / "trajectory.png")
        loaders: Any = trainer.val_dataloaders
        if loaders is not None:
            self._save_marginals(pl_module, next(iter(loaders)), folder)
        for logger in trainer.loggers:
            for name in ("samples", "trajectory", "marginals", "schedule"):
                if (folder / f"{name}.png").exists():
                    _log_picture(logger, name, folder / f"{name}.png", trainer.global_step)

    def _save_marginals(self, module: FLDD, batch: Any, folder: Path) -> None:
        if isinstance(batch, dict):
            batch = {key: value.to(module.device) for key, value in batch.items()}
        else:
            batch = batch.to(module.device)
        x = module.data(batch).long()
        num_steps = module.problem.num_steps
        t = torch.arange(num_steps + 1, device=x.device).expand(len(x), -1)
        kept = module.forward_process.kept(x, t, module.condition(batch)).cpu()  # (N, T+1, *shape)
        titles = [f"q(z_{i} = x|x)" for i in range(num_steps + 1)]
        columns = [_as_picture(kept[:, i]) for i in range(num_steps + 1)]
        rows = slice(self.num_rows)
        panels = [module.render(x.cpu())[rows], *(column[rows] for column in columns)]
        _save_panels(panels, ["x", *titles], folder / "marginals.png")
        means = [column.mean(0, keepdim=True) for column in columns]
        kept_for = torch.stack(means[1:]).sum(0) / max(num_steps - 1, 1)  # z_T is noise whatever x is
        titles = [title.replace("|x", "") for title in titles]
        _save_panels([*means, kept_for], [*titles, "revealed early"], folder / "schedule.png")


def _folder(trainer: Trainer) -> Path:
    """Where pictures go; all processes must ask, as they agree on it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_grid(module: FLDD, x: Tensor, path: Path) -> None:
    """Write a square grid of examples ``(N, *shape)`` as PNG."""
    from torchvision.utils import save_image

    pictures = module.render(x)
    nrow = max(1, int(len(pictures) ** 0.5))
    scale = max(1, 256 // (nrow * max(pictures.shape[-2:])) + 1)
    pictures = pictures.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    save_image(pictures, path, nrow=nrow, pad_value=0.5)


def save_trajectory(module: FLDD, states: Tensor, path: Path) -> None:
    """Write states z_T..z_0 ``(T + 1, N, *shape)`` as PNG, one row per sample."""
    num_steps = len(states) - 1
    panels = [module.render(z) for z in states]
    _save_panels(panels, [f"z_{num_steps - i}" for i in range(num_steps + 1)], path)


def _as_picture(values: Tensor) -> Tensor:
    """``(N, *shape)`` to ``(N, C, H, W)``, laid out as ``FLDD.render`` does."""
    if values.dim() == 2:
        return values[:, None, None]
    return values.unsqueeze(1) if values.dim() == 3 else values


def _save_panels(columns: list[Tensor], titles: list[str], path: Path) -> None:
    """A table of pictures: one column per title, one row per example."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(columns[0])
    figure = Figure(figsize=(1.2 * len(columns), 1.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for j, (column, title) in enumerate(zip(columns, titles, strict=True)):
        axes[0][j].set_title(title, fontsize=7)
        for i in range(rows):
            picture = column[i].permute(1, 2, 0)
            shown = picture if picture.shape[-1] == 3 else picture.mean(-1)
            axes[i][j].imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes[i][j].set_axis_off()
    figure.savefig(path, dpi=120)


def _log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    import numpy as np
    from PIL import Image

    if hasattr(logger, "log_image"):
        logger.log_image(name, [str(path)], step)
    elif hasattr(logger.experiment, "add_image"):
        logger.experiment.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
