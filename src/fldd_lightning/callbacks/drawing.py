"""How examples, states on the way to them, and numbers for their coordinates are laid out as pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..image import ImageFLDD
from ..module import FLDD

__all__ = ["MASK_COLOUR", "Schedule", "apart", "as_picture", "montage", "schedule_of", "shown_steps", "with_mask"]

MASK_COLOUR = (0.42, 0.55, 0.75)  # a colour no grey level has


class Schedule(NamedTuple):
    """When the reverse process reveals the coordinates of B examples.

    Attributes:
        x: The examples ``(B, *shape)``.
        kept: Probability q(z_t = x|x) that a coordinate still is its data value, for t = 1..T, ``(B, T, *shape)``.
    """

    x: Tensor
    kept: Tensor

    @property
    def revealed(self) -> Tensor:
        """The step of sampling, 1..T, that reveals a coordinate, in the mean, ``(B, *shape)``; 1 for PAD.

        It is T - sum_{t=1}^{T-1} q(z_t = x|x): exact where coordinates are only masked, as a coordinate is revealed
        in step T - t + 1 if z_t is MASK and z_{t-1} is x.
        """
        return self.kept.shape[1] - self.kept[:, :-1].sum(1)  # z_T is noise whatever x is


def schedule_of(module: FLDD, batch: Any, use_base: bool = False) -> Schedule:
    """The schedule of a batch, on the CPU.

    Args:
        module: The model.
        batch: What the data loader gives, on any device.
        use_base: Take the process that a learned one started from.
    """
    batch = module.transfer_batch_to_device(batch, module.device, 0)
    x = module.data(batch).long()
    steps = torch.arange(1, module.spec.num_steps + 1, device=x.device)
    t = module.forward_process.timesteps.t[steps].expand(len(x), -1)
    process: Any = module.forward_process.base if use_base else module.forward_process
    kept = process.kept(x, t) if use_base else process.kept(x, t, module.likely_condition(batch))
    return Schedule(x.cpu(), kept.detach().float().cpu())


def shown_steps(num_steps: int, most: int) -> list[int]:
    """T..0, or ``most`` of them, evenly spaced and with both ends."""
    return [round(float(i)) for i in torch.linspace(num_steps, 0, min(num_steps + 1, most))]


def with_mask(module: FLDD, z: Tensor) -> Tensor:
    """Pictures ``(N, C, H, W)`` of states ``(N, *shape)``, in which MASK is blue.

    That holds where pictures have a pixel for every coordinate; elsewhere MASK is what ``module.render`` makes of it.
    """
    shown = apart(module.render(z)).expand(-1, 3, -1, -1)
    is_mask = as_picture(module, (z == module.spec.num_classes).float()).amax(1, keepdim=True)
    if is_mask.shape[-2:] == shown.shape[-2:]:
        shown = torch.where(is_mask > 0, torch.tensor(MASK_COLOUR).view(3, 1, 1), shown)
    return shown


def as_picture(module: FLDD, values: Tensor) -> Tensor:
    """A number for every coordinate, ``(N, *shape)`` to ``(N, C, H, W)``, laid out as ``module.render`` does."""
    if values.dim() == 2:
        return values[:, None, None]
    if values.dim() == 4 and isinstance(module, ImageFLDD):
        return apart(values)
    return values.flatten(2).unsqueeze(1)


def apart(pictures: Tensor) -> Tensor:
    """``(N, C, H, W)`` as it is for grey (1) or colour (3); other channels side by side, ``(N, 1, H, C W)``."""
    return pictures if pictures.shape[1] in (1, 3) else rearrange(pictures, "n c h w -> n 1 h (c w)")


def montage(pictures: Tensor, size: int = 480) -> Tensor:
    """Pictures ``(N, C, H, W)`` as one, ``(3, height, width)``: a grid with grey lines, about as wide as it is high.

    Args:
        pictures: In [0, 1].
        size: About how many pixels the longer side is to have; small pictures are drawn larger.
    """
    from torchvision.utils import make_grid

    height, width = pictures.shape[-2:]
    nrow = max(1, round((len(pictures) * height / width) ** 0.5))
    rows = -(-len(pictures) // nrow)
    scale = max(1, size // max(nrow * width, rows * height))
    large = pictures.expand(-1, 3, -1, -1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    grid: Tensor = make_grid(large, nrow, 1 if scale < 4 else 2, pad_value=0.5)
    return grid
