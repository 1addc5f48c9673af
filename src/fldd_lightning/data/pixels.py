"""From files of images to bytes, or to classes: transparency, 16 bits, real numbers, label maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import FLDDError

__all__ = ["Pixels"]

_BYTE, _TWO_BYTES = 255, 65_535
_GREY = ("1", "L", "LA", "La")
_ONE_NUMBER = ("1", "L", "P")  # modes with one small number a pixel; those with I are larger, F is real


class Pixels:
    """Reads images one by one, and remembers the range of their values: only all of them show if it makes sense.

    Args:
        grey: Turn colours grey.
        background: Brightness in [0, 1] of what is behind transparent pixels.
        value_range: Values of black and white; those outside count as these. None for the whole range of 8 or 16 bits.
        label_maps: Values are classes, and stay as they are.

    Attributes:
        low: Least value of the images so far, before scaling.
        high: Largest value.
        has_alpha: Whether one of them was transparent anywhere.
    """

    def __init__(
        self,
        grey: bool = False,
        background: float = 1.0,
        value_range: Sequence[float] | None = None,
        label_maps: bool = False,
    ) -> None:
        self.grey, self.background, self.label_maps = grey, background, label_maps
        self.value_range = value_range
        self.low: float = float("inf")
        self.high: float = float("-inf")
        self.has_alpha = False
        self._full = _BYTE  # the largest value that the files can hold
        self._unknown: str | None = None  # an image whose numbers do not say what is white

    def read(self, item: Any, what: str) -> Tensor:
        """An undecoded image of a table, the way its camera held it.

        Args:
            item: Its ``bytes`` or ``path``.
            what: What to call it in a message.

        Returns:
            Bytes ``(C, H, W)`` with 1 or 3 channels, or classes ``(1, H, W)``, ``int32``.

        Raises:
            FLDDError: If it is missing or broken, or is no label map where they are wanted.
        """
        encoded, path = (item or {}).get("bytes"), (item or {}).get("path")
        source = path if encoded is None else BytesIO(encoded)
        if source is None:
            raise FLDDError(f"{what} is missing. Remove its row or give it an image.")
        what += "" if path is None else f" ('{path}')"
        try:
            with Image.open(source) as opened:
                values = self._values(ImageOps.exif_transpose(opened), what)
        except FLDDError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FLDDError(f"{what} cannot be read: {error}. Remove or replace it.") from error
        scaled = self.scaled(values, what)
        return torch.from_numpy(scaled).reshape(*scaled.shape[:2], -1).permute(2, 0, 1)

    def scaled(self, values: np.ndarray, what: str) -> np.ndarray:
        """Bytes, or classes as ``int32``, of raw values of any shape; their range is taken down.

        Raises:
            FLDDError: If there is none, one is not a number, or is no class where classes are wanted.
        """
        if not values.size:
            raise FLDDError(f"{what} has no pixels: give more data.")
        low, high = values.min().item(), values.max().item()
        is_real = values.dtype.kind == "f"
        if is_real and not np.isfinite([low, high]).all():
            raise FLDDError(f"{what} holds values that are no finite numbers. Remove or replace it.")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.label_maps:
            if is_real or low < 0 or high > _TWO_BYTES:
                raise FLDDError(
                    f"{what} holds values from {low} to {high}, but those of label maps are classes: whole numbers "
                    f"from 0 to at most {_TWO_BYTES}."
                )
            return values.astype(np.int32)
        if self.value_range is not None:
            black, white = self.value_range
            share = (values.astype(np.float32) - black) / (white - black)
            result: np.ndarray = (share.clip(0, 1) * _BYTE).round().astype(np.uint8)
            return result
        if values.dtype.itemsize == 1:
            return values.astype(np.uint8)
        self._full = _TWO_BYTES
        if is_real or low < 0 or high > _TWO_BYTES:
            self._unknown = self._unknown or what
        return (values // 257).astype(np.int64).clip(0, _BYTE).astype(np.uint8)

    def check_scale(self) -> None:
        """Raise FLDDError if it is not known which of the values that were read are black and white."""
        if self._unknown is not None:
            raise FLDDError(
                f"{self._unknown} does not say which values are black and white: it holds real numbers, or more than "
                f"16 bits. In all images {self._found()}: {self._scale()}."
            )

    def warn_if_narrow(self) -> None:
        """Warn if the values, which are not all equal, use little of what they could."""
        if self.low < self.high and self._is_narrow():
            rank_zero_warn(
                f"{self._found()}, and could go to {self._full}: most levels stay without use. If they are brightness, "
                f"{self._scale()}; if they are classes, set --data.label_maps true."
            )

    def check(self, images: Iterable[Tensor]) -> None:
        """Raise FLDDError if a model cannot learn from the images, and warn if it nearly cannot.

        Args:
            images: What was made of all that were read: levels or classes, of each split.
        """
        found, scale = self._found(), self._scale()
        ranges = [torch.stack(part.aminmax()).tolist() for part in images]
        if self.low < self.high and min(low for low, _ in ranges) < max(high for _, high in ranges):
            self.warn_if_narrow()
            return
        if self.low == self.high:
            other = 0 if self.background > 0.5 else 1
            cause = (
                f"the pictures may be in their transparency alone, before a background of the same colour: set "
                f"--data.background {other}"
                if self.has_alpha
                else "the files hold one colour: set --data.path to others"
            )
        elif self._is_narrow():
            cause = f"{found}, and could go to {self._full}. If they are brightness, {scale}; if they are classes, set "
            cause += "--data.label_maps true"
        else:
            cause = f"{found}, but become one level: {scale}, or set --data.levels or --data.threshold"
        raise FLDDError(f"every pixel of every image is equal, so there is nothing to learn: {cause}.")

    def _is_narrow(self) -> bool:
        return (self.high - self.low) * 16 < self._full and self.value_range is None and not self.label_maps

    def _found(self) -> str:
        return f"pixel values go from {self.low} to {self.high}"

    def _scale(self) -> str:
        return f'set --data.value_range "[{self.low}, {self.high}]" to scale them by their range'

    def _values(self, image: Image.Image, what: str) -> np.ndarray:
        """Values of an image, ``(H, W)`` or ``(H, W, 3)``: bytes, or larger or real numbers."""
        if image.mode[0] in "IF":
            return np.asarray(image)
        if self.label_maps:
            if image.mode not in _ONE_NUMBER:
                raise FLDDError(
                    f"{what} is of mode {image.mode}, but a label map has one number a pixel: modes "
                    f"{', '.join(_ONE_NUMBER)} or I. Save it so, or leave --data.label_maps out."
                )
            return np.asarray(image).astype(np.uint8)  # of a palette its numbers, not its colours
        mode = "L" if self.grey or image.mode in _GREY else "RGB"
        if "A" in image.mode.upper() or "transparency" in image.info:
            image = self._on_background(image)
        return np.array(image.convert(mode))

    def _on_background(self, image: Image.Image) -> Image.Image:
        """A picture without transparency; the same if nothing of it is transparent."""
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] == _BYTE:
            return image
        self.has_alpha = True
        shade = round(self.background * _BYTE)
        return Image.alpha_composite(Image.new("RGBA", image.size, (shade, shade, shade, _BYTE)), image)
