"""What evaluation collects: of a stage, the bound, its terms and a modality's metrics; of examples, their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from .bound import Bound
from .errors import FLDDError
from .latents.base import Latent
from .metrics import NELBOMetric
from .spec import Spec

__all__ = ["Evaluation", "Scores", "check_bound", "check_weights", "part_of"]


def check_weights(module: nn.Module) -> None:
    """Raise FLDDError if a weight is NaN or infinite, or a latent's table NaN; one wait for the device."""
    weights = [p.detach() for p in module.parameters() if p.numel()]
    tables = {name: table for name, table in module.named_buffers() if name.startswith("latents.")}
    right = [~table.isnan().any() for table in tables.values()]  # -inf is the logarithm of 0
    right += [nn.utils.get_total_norm(weights).isfinite()] if weights else []
    if not right or bool(torch.stack(right).all()):
        return
    wrong = (name for name, p in module.named_parameters() if not bool(p.isfinite().all()))
    name = next(wrong, None) or next((name for name, table in tables.items() if bool(table.isnan().any())), None)
    if name is not None:  # else they are large
        raise FLDDError(
            f"the weights of '{name}' are not finite, so that samples and bounds would mean nothing: training has "
            "diverged, or the file is damaged. Use an earlier checkpoint, or train again with a lower model.lr."
        )


def check_bound(terms: Mapping[str, Tensor]) -> None:
    """Raise FLDDError if the bound ``nelbo`` among these is NaN or infinite, naming the terms that are."""
    if not bool(terms["nelbo"].isfinite()):
        wrong = [name for name, value in terms.items() if name.startswith("kl_") and not bool(value.isfinite())]
        raise FLDDError(
            f"the bound is not finite, in {', '.join(wrong) or 'all terms'}. The weights are, so look at the data and "
            "at processes or latents of your own: something that happens has probability 0."
        )


def part_of(batch: Any, chosen: slice) -> Any:
    """Some of a batch's examples: of a tensor ``(N, ...)``, and of all those in dictionaries, lists and tuples."""
    if isinstance(batch, dict):
        return {key: part_of(value, chosen) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [part_of(value, chosen) for value in batch]
    return batch[chosen] if isinstance(batch, Tensor) else batch


@dataclass(frozen=True)
class Scores:
    """The bounds of N examples: means over draws of z_t and of the latents. Nats per example, float64, on the CPU.

    Attributes:
        nelbo: The bound, ``(N,)``.
        standard_error: Of each mean over its draws, ``(N,)``; NaN for a single draw. It says how far another seed
            may be off, and nothing of how examples differ.
        terms: What the bound is the sum of, ``(N,)`` each: ``kl_t1`` to ``kl_t{T}`` and ``kl_{name}`` of every latent.
            The reconstruction term is 0, see :mod:`fldd_lightning.bound`.
    """

    nelbo: Tensor
    standard_error: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def of(cls, draws: Sequence[Bound]) -> Scores:
        """The scores of examples, given one or more draws of their bounds."""
        steps = torch.stack([each.kl for each in draws]).cpu().double()  # (n, N, T)
        terms = {f"kl_t{t}": kl for t, kl in enumerate(steps.unbind(2), start=1)}
        for name in draws[0].further:
            terms[name] = torch.stack([each.further[name] for each in draws]).cpu().double()  # (n, N)
        nelbo = sum(terms.values(), torch.zeros(()))
        missing = torch.full_like(nelbo[0], torch.nan)
        error = nelbo.std(0) / len(draws) ** 0.5 if len(draws) > 1 else missing
        return cls(nelbo.mean(0), error, {name: each.mean(0) for name, each in terms.items()})

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of the examples of all parts, in their order."""
        terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
        nelbo, error = ([getattr(part, name) for part in parts] for name in ("nelbo", "standard_error"))
        return cls(torch.cat(nelbo), torch.cat(error), terms)


class Evaluation:
    """The metrics of one stage. No ``nn.Module``: they are no part of the model, its average or its checkpoints.

    Args:
        spec: T and D.
        latents: All of the model's.
        metrics: The metrics that a modality adds, by name.

    Attributes:
        bound: The metric of the bound and its terms.
        metrics: All others by name, ``nll_latent`` among them where a latent says something of the values.
    """

    def __init__(self, spec: Spec, latents: Sequence[Latent], metrics: Mapping[str, Metric]) -> None:
        names = tuple(f"kl_{each.name}" for each in latents)
        self.bound = NELBOMetric(spec.num_steps, spec.num_dims, names)
        self.metrics = dict(metrics)
        if any(each.says_values for each in latents):
            self.metrics["nll_latent"] = MeanMetric().set_dtype(torch.float64)

    def reset(self, device: torch.device) -> None:
        """Start anew on a device; an evaluation before may have been broken off."""
        for metric in (self.bound, *self.metrics.values()):
            metric.to(device).reset()

    def update(self, terms: Bound) -> None:
        """Add the bound of a batch."""
        self.bound.update(terms.kl, terms.further)
        if terms.nll_latent is not None:
            self.metrics["nll_latent"].update(terms.nll_latent)

    def compute(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Values of all metrics by name, over all processes, those of the bound in ``dtype``; resets them.

        Raises:
            FLDDError: If there was no example, or the bound is not finite, naming the terms that are not.
        """
        bound = self.bound.compute()
        if bool(bound["nelbo"].isnan()) and int(self.bound.count) == 0:
            raise FLDDError("there was no example to evaluate: the batches are empty, or were gone through before.")
        check_bound(bound)
        values = {name: value.to(dtype) for name, value in bound.items()}
        for name, metric in self.metrics.items():
            value = metric.compute()
            values.update(value if isinstance(value, dict) else {name: value})
        if "nll_latent" in values:
            values["nll_latent"] = values["nll_latent"].to(dtype)
        for metric in (self.bound, *self.metrics.values()):
            metric.reset()
        return values
