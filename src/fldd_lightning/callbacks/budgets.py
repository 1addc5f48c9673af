"""Models of several step budgets side by side: T is fixed at training, so each is a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import FLDDError
from ..module import FLDD

__all__ = ["load_budgets"]


def load_budgets(paths: Sequence[str], module: FLDD) -> list[FLDD]:
    """Load the models to be compared with one.

    Args:
        paths: Their checkpoints.
        module: The one.

    Raises:
        FLDDError: If a checkpoint cannot be read, is of other examples than the module's, or has the
            number of steps of another.
    """
    from ..checkpoint import load_model

    models = [load_model(path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        there, here = model.problem, module.problem
        if (there.num_classes, there.shape) != (here.num_classes, here.shape):
            raise FLDDError(f"'{path}' makes other examples than this model: {there} there, {here} here.")
    steps = [model.problem.num_steps for model in (module, *models)]
    if len(set(steps)) < len(steps):
        raise FLDDError(f"the models have {steps} steps, this one first, but each must have a number of its own.")
    return models
