"""The model card: what a model was trained on, how well it does, what it costs and who may use it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from inspect import signature
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..errors import FLDDError
from ..factory import class_paths, describe, public_path
from ..ranges import check_kinds

if TYPE_CHECKING:
    from ..module import FLDD

__all__ = ["check_options", "model_card"]

_UNKNOWN = "not stated"
_HUB_OPTIONS = ("config", "repo_id", "push_to_hub", "model_card_kwargs")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of ``FLDD.save_pretrained`` before anything is written; what is not known would be ignored.

    Raises:
        FLDDError: If there is no such option, or one is of another kind.
    """
    unknown = [] if options.get("push_to_hub") else [name for name in options if name not in _HUB_OPTIONS]
    if unknown:
        hint = " It belongs into model_card_kwargs." if unknown[0] in _TOLD else ""
        raise FLDDError(f"save_pretrained has no option '{unknown[0]}'.{hint}")
    told = options.get("model_card_kwargs")
    check_kinds({"push_to_hub": False, **options, "model_card_kwargs": told}, push_to_hub=bool,
                model_card_kwargs=Mapping | None)  # fmt: skip
    for name, value in (told or {}).items():
        if name not in _TOLD:
            raise FLDDError(f"model_card_kwargs has '{name}', but a model card says {', '.join(_TOLD)}.")
        check_kinds({name: value}, **{name: str | None})


def model_card(
    module: FLDD,
    data: str | None = None,
    bound: str | None = None,
    budget: str | None = None,
    license: str | None = None,
    notes: str = "",
) -> ModelCard:
    """The page that goes with a model.

    Args:
        module: The model. If its trainer is there, it says data, bound and steps that are not given.
        data: What it was trained on.
        bound: On -log p(x), of which split, with its standard error.
        budget: Of training: steps, time, machine, seed and command.
        license: The short name of a licence, such as ``apache-2.0``: of the weights, and of the data as far as it binds
            them.
        notes: Further paragraphs in Markdown.
    """
    spec = module.spec
    shape = "×".join(map(str, spec.shape))
    steps = module.global_step or module.trained_steps
    others = f"; trained for {', '.join(map(str, spec.budgets))}" if spec.budgets else ""
    rows = {
        "data": data or _data_of(module) or _UNKNOWN,
        "bound on -log p(x)": bound or _bound_of(module) or _UNKNOWN,
        "budget of training": budget or (f"{steps:,} optimiser steps" if steps else _UNKNOWN),
        "licence": license or _UNKNOWN,
        "NFE": f"{spec.num_steps} passes of the denoiser for a sample{others}",
        "parameters": f"{sum(p.numel() for p in module.parameters()):,}",
        "an example": f"{shape} integers from 0 to {spec.num_classes - 1}",
        "made by": f"{type(module).__name__} of fldd-lightning {version('fldd-lightning')}",
    }
    own = _own_classes(module)
    trusted = f", trusted={own!r}" if own else ""
    options = "".join(f" --trust {name}" for name in own)
    facts = ModelCardData(license=license, library_name="fldd-lightning", tags=["discrete-diffusion", "pytorch"])
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return ModelCard(f"""---
{facts.to_yaml()}
---

# {type(module).__name__}, {shape}, {spec.num_steps} steps

A forward-learned discrete diffusion model. It draws a sample in {spec.num_steps} steps.

| | |
| --- | --- |
{table}

## Use it

Put the name of this repository, or of the folder with these files, in place of `MODEL`:

```python
from fldd_lightning import FLDD

model = FLDD.from_pretrained("MODEL"{trusted})
x = model.sample(16)  # integers (16, {", ".join(map(str, spec.shape))})
```

```
fldd-lightning sample --pretrained MODEL{options} --output samples
```
{notes and chr(10) + notes.strip() + chr(10)}""")


# ---- internals ----------------------------------------------------------------------------


_TOLD = tuple(signature(model_card).parameters)[1:]


def _data_of(module: FLDD) -> str | None:
    data = None if module._trainer is None else getattr(module.trainer, "datamodule", None)
    return None if data is None else public_path(type(data))


def _bound_of(module: FLDD) -> str | None:
    logged = {} if module._trainer is None else module.trainer.callback_metrics
    for name in ("test", "val"):
        if f"{name}/nelbo" in logged:
            return f"{float(logged[f'{name}/nelbo']):.3f} nats per example ({name})"
    return None


def _own_classes(module: FLDD) -> list[str]:
    """What the configuration names and this package does not have."""
    about = [public_path(type(module)), *class_paths(describe(dict(module.hparams)))]
    return sorted({path for path in about if not path.startswith("fldd_lightning.")})


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
