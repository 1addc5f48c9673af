"""The ceiling on text and molecules: an autoregressive Transformer of as many parameters, trained on as many examples.

    python benchmarks/autoregressive.py --kind text64 --path FOLDER
    python benchmarks/autoregressive.py --kind qm9 --path train_smile.txt

It needs as many passes for a sample as there are tokens, and its likelihood is exact. The learning rate is chosen as
for the other models (``factorial.py``). Rows go to ``autoregressive.csv``.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import joined, made_with, measured, one_thread, run_missing, train, tuned_rate
from kinds import KINDS
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from work import TrainingWork, counted

from fldd_lightning import DiscreteDataModule, NELBOMetric
from fldd_lightning.training import Averaging, run_progress, two_time_scales

__all__ = ["Autoregressive", "run"]

SIZES = {  # as many parameters as the kind's denoiser has
    "text64": {"width": 160, "depth": 3, "heads": 4},
    "qm9": {"width": 192, "depth": 4, "heads": 4},
}


class Autoregressive(LightningModule):
    """A causal Transformer; logs ``{val,test}/nelbo``, here the exact -log p in nats, and its standard error.

    Padded sequences end with PAD once, which is part of what is predicted.

    Args:
        num_classes: K.
        length: Tokens of an example.
        padded: Whether the last class is PAD.
        lr: Peak learning rate.
        width: Features a position.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(
        self, num_classes: int, length: int, padded: bool, lr: float, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.num_classes, self.length, self.pad, self.lr = num_classes, length, num_classes - 1 if padded else None, lr
        self.embed = nn.Embedding(num_classes + 1, width)  # the last is the start
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.last = nn.Linear(width, num_classes)
        self.bound = NELBOMetric(1, length)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_i|x_1..x_{i-1}), ``(B, length, K)``, for integers ``(B, length)``."""
        start = torch.full_like(x[:, :1], self.num_classes)
        hidden = self.embed(torch.cat([start, x[:, :-1]], 1)) + self.position
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        out: Tensor = self.last(self.blocks(hidden, mask, is_causal=True)).log_softmax(-1)
        return out

    def nats(self, x: Tensor) -> Tensor:
        """-log p(x), ``(B,)``."""
        nats = -self.log_prob(x).gather(-1, x.unsqueeze(-1)).squeeze(-1)
        if self.pad is not None:  # the first PAD ends the text, the others are given
            is_given = F.pad(x == self.pad, (1, 0))[:, :-1]
            nats = nats.masked_fill(is_given, 0.0)
        return nats.sum(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.nats(batch["x"].long()).mean() / self.length

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/nelbo", self.nats(batch["x"].long()).mean(), batch_size=len(batch["x"]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.bound.update(self.nats(batch["x"].long()).unsqueeze(1), {})

    def on_test_epoch_end(self) -> None:
        values = self.bound.compute()
        self.log_dict({f"test/{name}": values[name].float() for name in ("nelbo", "nelbo_se")})

    def configure_callbacks(self) -> list[Any]:
        return [Averaging(0.998)]

    def configure_optimizers(self) -> Any:
        nothing = torch.nn.Identity()  # in place of a forward process
        return two_time_scales(run_progress(self.trainer), self, nothing, (self.lr, self.lr), 0, 0.0, False)

    @torch.no_grad()
    def sample(self, num_samples: int, seed: int) -> Tensor:
        """Draw integers ``(N, length)``, token by token."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(num_samples, self.length, dtype=torch.long)
        ended = torch.zeros(num_samples, dtype=torch.bool)
        for i in range(self.length):
            drawn = torch.multinomial(self.log_prob(x)[:, i].exp(), 1, generator=generator).squeeze(1)
            if self.pad is not None:
                drawn = drawn.masked_fill(ended, self.pad)
                ended |= drawn == self.pad
            x[:, i] = drawn
        return x


def run(name: str, path: str, output: Path, seed: int, steps: int | None = None) -> None:
    """Choose the learning rate, train and measure; appends a row if there is none."""
    key = {"kind": name, "seed": seed, "steps": steps or KINDS[name].steps}
    run_missing(output, [key], partial(row, path, output))


def row(path: str, output: Path, kind: str, seed: int, steps: int) -> dict[str, object]:
    """A row of the table."""
    chosen = KINDS[kind]
    data = chosen.data(path, batch_size=chosen.batch, seed=0)
    make = partial(Autoregressive, data.num_classes, data.shape[0], data.padded, **SIZES[kind])

    def train_at(lr: float, steps: int) -> tuple[float, float]:
        seed_everything(0, verbose=False)
        return train(make(lr=lr), data, steps)

    tuned = {"kind": kind, "process": "autoregressive", "latent": "no"}
    rate = tuned_rate(output.with_name("tuning.csv"), tuned, chosen.rates, steps, train_at)
    seed_everything(seed, verbose=False)
    model, work = make(lr=rate), TrainingWork()
    _, seconds = train(model, data, steps, [work])
    logged = measured(model, data, (), chosen.tested)
    said = chosen.measure(_Decodes(model, data), data, model.eval().sample(chosen.samples, seed), output.parent)
    torch.backends.mha.set_fastpath_enabled(False)  # whose operations are not counted
    operations = counted(lambda: model.sample(16, 0)) // 16
    numbers = sum(p.numel() for p in model.parameters())
    return {
        "kind": kind, "process": "autoregressive", "num_steps": data.shape[0], "seed": seed, "steps": steps, "lr": rate,
        "nelbo": f"{logged['test/nelbo']:.4f}", "nelbo_se": f"{logged['test/nelbo_se']:.4f}",
        "quality": f"{said[chosen.quality[0]]:.4f}", "diversity": f"{said[chosen.diversity]:.4f}",
        "measures": joined(said), "samples": chosen.samples,
        "training_gflop": round(work.total(steps) / 1e9), "sample_mflop": round(operations / 1e6, 3),
        "numbers_sampling": numbers, "numbers_training": numbers, "seconds": round(seconds),
        **made_with(),
    }  # fmt: skip


class _Decodes:
    """What measures ask of a model: its texts and its PAD."""

    def __init__(self, model: Autoregressive, data: DiscreteDataModule) -> None:
        self.spec, self._data = model, data

    def texts(self, x: Tensor) -> list[str]:
        tokenizer: Any = self._data.tokenizer  # type: ignore[attr-defined]
        return [tokenizer.decode([token for token in row if token != self.spec.pad]) for row in x.tolist()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=SIZES, required=True)
    parser.add_argument("--path", required=True, help="the kind's data")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="optimiser steps, if not those of the kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/autoregressive.csv"))
    arguments = parser.parse_args()
    one_thread()
    for seed in arguments.seeds:
        run(arguments.kind, arguments.path, arguments.output, seed, arguments.steps)


if __name__ == "__main__":
    main()
