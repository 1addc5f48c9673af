from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fldd_lightning import ImageFLDD
from fldd_lightning.categorical import entropy, sum_dims, xlogy
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.estimators import Reinforce
from fldd_lightning.forward import (
    AbsorbingProcess,
    D3PMProcess,
    ForwardProcess,
    LearnedMaskProcess,
    MaskProcess,
    ResidualAbsorbingProcess,
    ResidualUniformProcess,
    StaggeredProcess,
    UniformProcess,
)
from fldd_lightning.latents import Latent
from fldd_lightning.networks import MLP
from fldd_lightning.reverse import DirectReverse, MaskedReverse, PredictingReverse, Reverse
from fldd_lightning.spec import Spec

small_mlp = partial(MLP, width=8, depth=1, embedding=4)

# The tests of the base class run on every process registered here.
PROCESSES = {
    "absorbing": AbsorbingProcess,
    "staggered": partial(StaggeredProcess, slack=0.9),
    "uniform": UniformProcess,
    "d3pm": D3PMProcess,
    "residual_absorbing": partial(ResidualAbsorbingProcess, network=small_mlp),
    "residual_uniform": partial(ResidualUniformProcess, network=small_mlp),
    "learned_mask": partial(LearnedMaskProcess, network=small_mlp, base=AbsorbingProcess),
}
LEARNED = [name for name, process in PROCESSES.items() if getattr(process, "func", process).learned]


@pytest.fixture(autouse=True)
def _own_unfinished(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of benchmarks keep what they leave unfinished to themselves."""
    if request.path.parent.name == "benchmarks":
        monkeypatch.setattr("common.UNFINISHED", tmp_path / "unfinished")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)  # benchmarks set it
    torch.manual_seed(0)


def randomise(module: torch.nn.Module, scale: float = 0.5) -> None:
    """Random parameters everywhere, the zero last layers included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator))


def make(name: str, spec: Spec, kind: Any = None, latents: Sequence[Latent] = ()) -> tuple[ForwardProcess, Reverse]:
    """A process and its reverse process, with random weights."""
    process = PROCESSES[name](spec)
    kind = kind or (MaskedReverse if isinstance(process, MaskProcess) else DirectReverse)
    reverse = kind(spec, process, small_mlp, latents)
    randomise(process)
    if isinstance(process, LearnedMaskProcess):  # counts ten times
        process.order.data /= 10
    randomise(reverse)
    return process, reverse


# Every pair of a process and a reverse process that fits it.
PAIRS = [(name, None) for name in PROCESSES] + [(name, PredictingReverse) for name in ("uniform", "d3pm")]
PAIRS += [
    (name, partial(kind, time_independent=True))
    for name, kind in (("absorbing", MaskedReverse), ("uniform", PredictingReverse), ("uniform", DirectReverse))
]


def all_states(num_states: int, dims: int) -> torch.Tensor:
    return torch.tensor(list(product(range(num_states), repeat=dims)))


def exact_step_kl(
    process: ForwardProcess, reverse: Reverse, x: torch.Tensor, t: int, condition: tuple[torch.Tensor, ...] = ()
) -> torch.Tensor:
    """E_{q(z_t|x)} KL(q(z_s|z_t,x) || p(z_s|z_t)) by summing over all z_t and z_s; differentiable.

    Written from the definition alone: joint states, probabilities, no closed forms. ``condition`` is of each example.
    """
    states = all_states(process.num_states, x.shape[1])  # (N, D)
    n = len(states)
    batch, z_t, steps = x.repeat_interleave(n, 0), states.repeat(len(x), 1), torch.full((len(x) * n,), t)
    given = tuple(c.repeat_interleave(n, 0) for c in condition)
    step = process.dense_step(batch, steps, given)
    weight = step.log_u_t.double().exp().gather(-1, z_t.unsqueeze(-1)).squeeze(-1).prod(1, keepdim=True)  # (B N, 1)
    q_joint = of_all(step.posterior.posterior(z_t).double(), states).prod(0)  # (B N, N)
    v_joint = of_all(reverse.log_prob(z_t, steps, given).double(), states).sum(0)
    live = (q_joint > 0) & (weight > 0)
    q_safe = torch.where(live, q_joint, 1.0)
    v_safe = torch.where(live, v_joint, 0.0)
    return torch.where(live, weight * q_safe * (q_safe.log() - v_safe), 0.0).view(len(x), -1).sum(1)


def of_all(numbers: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What numbers ``(B, D, S)`` say of the coordinates of joint states ``(N, D)``: ``(D, B, N)``."""
    return torch.stack([numbers[:, d, states[:, d]] for d in range(states.shape[1])])


def exact_log_likelihood(
    process: ForwardProcess,
    reverse: Reverse,
    num_steps: int,
    condition: tuple[torch.Tensor, ...] = (),
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """log p(z_0) of every joint state by propagating the whole distribution from the prior.

    ``condition`` is one value ``(1, m)`` of every latent that networks see, ``padding`` says which coordinates are PAD.
    """
    num_states, dims = process.num_states, process.spec.num_dims
    states = all_states(num_states, dims)
    given = tuple(c.expand(len(states), -1) for c in condition)
    priors = process.log_priors().double().exp().expand(dims, num_states)
    p = priors[torch.arange(dims), states]  # (N, D)
    if padding is not None:
        p = torch.where(padding, (states == process.spec.pad).double(), p)
    p = p.prod(1)
    for t in range(num_steps, 0, -1):
        log_v = reverse.log_prob(states, torch.full((len(states),), t), given).double()  # (N, D, S)
        p = p @ of_all(log_v, states).sum(0).exp()
    return p.log()


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small GPT-2 of random weights and a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from test_text import WORDS

    folder = tmp_path_factory.mktemp("lm")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=262, initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_positions=12, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


class Stripes(DiscreteDataModule):
    """Binary images of random stripes, with noise."""

    def __init__(self, size: int = 4, seed: int = 0) -> None:
        super().__init__(batch_size=16, seed=seed)
        self.size = size

    def load(self) -> dict[str, Split]:
        generator = torch.Generator().manual_seed(self.seed)
        splits = {}
        for name, num in (("train", 64), ("val", 40), ("test", 40)):
            rows = torch.randint(2, (num, self.size, 1), generator=generator).expand(-1, -1, self.size)
            noise = (torch.rand(rows.shape, generator=generator) < 0.1).long()
            splits[name] = Split(rows ^ noise)
        return splits


def image_model(num_steps: int, size: int = 4, cls: Any = ImageFLDD) -> Any:
    """A tiny model of images."""
    torch.manual_seed(0)
    process = partial(ResidualAbsorbingProcess, network=small_mlp)
    return cls(2, (size, size), process, small_mlp, Reinforce, num_steps=num_steps, freeze_steps=0)


def prior_term(process: ForwardProcess, x: Tensor) -> Tensor:
    """KL(q(z_T|x) || prior) in nats per example, ``(B,)``; zero by construction."""
    t = torch.full((x.shape[0], 1), process.spec.num_steps, device=x.device)
    log_u = process.log_marginals(x, t).squeeze(1)  # (B, *shape, S)
    divergence = -xlogy(log_u.exp(), process.log_priors().to(log_u)).sum(-1) - entropy(log_u)
    if process.spec.pad is not None:
        divergence = divergence.masked_fill(x == process.spec.pad, 0.0)  # given, not drawn from the prior
    return sum_dims(divergence)


def reconstruction_term(process: ForwardProcess, x: Tensor) -> Tensor:
    """-log of the probability that z_0 is x, in nats per example, ``(B,)``; zero by construction."""
    t = torch.zeros((x.shape[0], 1), dtype=torch.long, device=x.device)
    log_u = process.log_marginals(x, t).squeeze(1)  # (B, *shape, S)
    return -sum_dims(log_u.gather(-1, x.unsqueeze(-1)).squeeze(-1))
