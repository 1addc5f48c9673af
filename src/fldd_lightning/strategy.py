"""Which of Lightning's strategies a model cannot be run with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import strategies
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)

from .errors import FLDDError

__all__ = ["refuse_split_weights"]

_WHOLE = "keeps the average of the weights in a whole copy of the model, which parts of weights cannot be swapped with"
_REASONS = {
    FSDPStrategy: _WHOLE,
    ModelParallelStrategy: _WHOLE,
    DeepSpeedStrategy: "clips forward process and denoiser apart, while DeepSpeed clips all gradients together",
}


def refuse_split_weights(strategy: Strategy | str) -> None:
    """Raise FLDDError for a strategy that splits a model over processes: FSDP, FSDP2 (ModelParallel) or DeepSpeed.

    Lightning swaps the weights of training with their average. With FSDP2, PyTorch refuses to copy one to the other.
    With DeepSpeed, Lightning does not call ``configure_gradient_clipping``.

    Args:
        strategy: A strategy, the path of its class, or a name that the trainer takes, such as ``fsdp``.
    """
    kind: Any = type(strategy)
    if isinstance(strategy, str):
        name = strategy.rpartition(".")[2]
        registered: Any = dict(StrategyRegistry).get(name.lower(), {})
        kind = registered.get("strategy", getattr(strategies, name, None))
    shown = strategy if isinstance(strategy, str) else kind.__name__
    for refused, reason in _REASONS.items():
        if isinstance(kind, type) and issubclass(kind, refused):
            raise FLDDError(f"the strategy {shown} cannot be used, as FLDD {reason}: use --trainer.strategy ddp.")
