"""What a checkpoint says of its model, and which ones a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from .errors import FLDDError
from .evaluation import EvaluatedModule
from .factory import plain

__all__ = ["CheckpointedModule"]


class CheckpointedModule(EvaluatedModule):
    """The part of :class:`~fldd_lightning.FLDD` that writes and reads checkpoints.

    Attributes:
        vocabulary: What the K integers stand for, if the data says so. Taken from the data that the
            trainer brings, kept in checkpoints; data or checkpoints with another one are refused.
        trained_steps: Optimiser steps of the checkpoint that was loaded.
    """

    vocabulary: Sequence[str] | None = None
    trained_steps: int = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = checkpoint.get("datamodule_hyper_parameters")
        if data is not None:
            checkpoint["datamodule_hyper_parameters"] = plain(data)
        checkpoint["fldd_problem"] = plain(self._identity())
        checkpoint["fldd_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["fldd_vocabulary"] = self.vocabulary

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As always, but mistakes are told in a sentence."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            what = shorten(str(error).partition("\n")[2], 160, placeholder=" ...")
            raise FLDDError(
                f"the checkpoint is of other networks ({what}). Use the config it was trained with, and no options "
                "that change it."
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another configuration, naming what differs."""
        saved, own = checkpoint.get("fldd_problem"), self._identity()
        if saved is None:
            raise FLDDError("this checkpoint was not written by fldd-lightning; it has no 'fldd_problem'.")
        if "code" not in saved:
            raise FLDDError(
                "this checkpoint is of an earlier version, which had other networks. Train the model again."
            )
        differences = [
            f"{key}: {saved.get(key)} there, {own[key]} here" for key in own if saved.get(key, False) != own[key]
        ]
        if differences:
            raise FLDDError(
                "the checkpoint is of another configuration (" + "; ".join(differences) + "). Use the config "
                "and the data it was trained with, and no options that change them; without any it uses its own."
            )
        self._take_vocabulary(checkpoint.get("fldd_vocabulary"))
        self.trained_steps = int(checkpoint.get("global_step", 0))

    # ---- internals ------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "num_classes": self.problem.num_classes,
            "shape": list(self.problem.shape),
            "num_steps": self.problem.num_steps,
            "num_labels": self.problem.num_labels if self.code is None else 0,
            "padded": self.problem.padded,
            "forward_process": self.forward_process.configuration(),
            "denoiser": type(self.reverse.network).__name__,
            "code": "none" if self.code is None else self.code.configuration(),
        }

    def _take_vocabulary(self, vocabulary: Sequence[str] | None) -> None:
        """Remember what the integers stand for, or refuse a second meaning, naming what differs."""
        if vocabulary is None:
            return
        vocabulary = [str(name) for name in vocabulary]
        if self.vocabulary is not None and self.vocabulary != vocabulary:
            pairs = enumerate(zip(self.vocabulary, vocabulary))
            first = next((f"; {i} is '{a}' and '{b}'" for i, (a, b) in pairs if a != b), "")
            raise FLDDError(
                f"data and checkpoint have different vocabularies ({len(vocabulary)} and {len(self.vocabulary)} "
                f"entries{first}). Use the data the model was trained with, or a file of the same tokens."
            )
        self.vocabulary = vocabulary
