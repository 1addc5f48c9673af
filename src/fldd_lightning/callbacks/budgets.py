"""Models of several step budgets side by side: T is fixed at training, so each is a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..errors import FLDDError
from ..module import FLDD

__all__ = ["load_budgets"]

M = TypeVar("M", bound=FLDD)


def load_budgets(paths: Sequence[str], module: FLDD, kind: type[M]) -> list[M]:
    """Load the models to be compared with one, onto its device and in the precision of its parameters.

    Args:
        paths: Their checkpoints.
        module: The one.
        kind: What they must be.

    Raises:
        FLDDError: If a checkpoint cannot be read, is of another kind or of other examples than the
            module's, or has the number of steps of another.
    """
    from ..checkpoint import load_model

    models: list[M] = []
    for path in paths:
        model = load_model(path, str(module.device)).to(next(module.parameters()).dtype)
        there, here = model.problem, module.problem
        same = (there.num_classes, there.shape, there.padded) == (here.num_classes, here.shape, here.padded)
        if not isinstance(model, kind) or not same:
            raise FLDDError(
                f"'{path}' makes other examples than this model: {type(model).__name__}, {there} there, "
                f"{type(module).__name__}, {here} here."
            )
        models.append(model)
    steps = [module.problem.num_steps, *(model.problem.num_steps for model in models)]
    if len(set(steps)) < len(steps):
        raise FLDDError(f"the models have {steps} steps, this one first, but each must have a number of its own.")
    return models
