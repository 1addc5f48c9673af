"""What a process or an estimator of one's own must do about PAD is checked, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import PROCESSES
from fldd_lightning import AbsorbingProcess, FLDDError, ForwardProcess, Reinforce, Spec, StepLoss
from fldd_lightning.bound import StepTerms
from fldd_lightning.categorical import without_state
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.estimators import Concrete
from fldd_lightning.forward import MaskedStep, Posterior, Step
from tiny import build, fit

PAD = 3


class Padded(DiscreteDataModule):
    """Sequences of two to four tokens."""

    padded = True

    def load(self) -> dict[str, Split]:
        x = torch.randint(3, (60, 4), generator=torch.Generator().manual_seed(0))
        x[::2, 2:] = PAD
        return {name: Split(part) for name, part in zip(("train", "val", "test"), x.split(20))}


class Ordinal(ForwardProcess):
    """Blurs levels, PAD like all others: its author has not thought of it."""

    learned = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, spec.num_classes)
        self.width = nn.Parameter(torch.zeros(()))

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        distance = (torch.arange(self.num_states) - x.unsqueeze(-1)).abs().unsqueeze(1)
        return (-distance / (self.width.exp() * t.reshape(*t.shape, *[1] * x.dim()))).log_softmax(-1)

    def log_prior(self) -> Tensor:
        return torch.zeros(self.num_states).log_softmax(-1)

    def posterior_logits(self, state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return 2.0 * state


class PriorMended(Ordinal):
    def log_prior(self) -> Tensor:
        return without_state(super().log_prior(), PAD)


class Mended(PriorMended):
    """Does what the documentation says."""

    def interior_log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return without_state(super().interior_log_marginals(x, t, condition), PAD)


class Marginals(Mended):
    """Writes the boundaries itself, and loses PAD."""

    def log_marginals(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        return super().log_marginals(x, t, condition).logsumexp(0, keepdim=True).expand(len(x), -1, -1, -1)


class Couples(Mended):
    """Its posterior forgets where z_t is."""

    def couple(self, x: Tensor, t: Tensor, s: Tensor, log_u_s: Tensor, log_u_t: Tensor) -> Posterior:
        coupled = super().couple(x, t, s, log_u_s, log_u_t)

        class Flat:
            def posterior(self, z_t: Tensor) -> Tensor:
                return torch.full_like(log_u_s, 1 / log_u_s.shape[-1])

            relaxed_posterior, entropy = coupled.relaxed_posterior, coupled.entropy

        return Flat()


class MasksPad(AbsorbingProcess):
    """Masks PAD as well."""

    def step(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> MaskedStep:
        return super().step(torch.where(x == PAD, 0, x), t, condition)


class Shuffles(Reinforce):
    """Hands on the coordinates of z_t in another order."""

    def loss(
        self, step: Step, terms: Callable[[Tensor], StepTerms], generator: torch.Generator, global_step: int
    ) -> StepLoss:
        return super().loss(step, lambda z: terms(z.flip(-1)), generator, global_step)


def run(folder: Path, process: Any, **options: Any) -> None:
    model = build(num_classes=4, shape=(4,), padded=True, num_steps=3, forward_process=process, **options)
    fit(folder, model, Padded(batch_size=10), max_steps=1, limit_val_batches=0)


def test_a_prior_that_draws_pad_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(FLDDError, match=r"Ordinal.log_prior gives PAD, class 3, a probability of 0.25.*Give it none"):
        build(num_classes=4, shape=(4,), padded=True, forward_process=Ordinal)
    build(num_classes=4, shape=(4,), forward_process=Ordinal)  # a class as any other


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (PriorMended, "PriorMended.interior_log_marginals gives PAD, class 3, a probability of up to 0.* Give it none"),
        (Marginals, "Marginals.log_marginals moves coordinates to PAD, class 3, or away from it"),
        (Couples, "Couples.couple moves coordinates to PAD"),
        (MasksPad, "MasksPad or RLOO moved coordinates of z_t to PAD, class 3, or away from it"),
    ],
)
def test_what_gives_pad_away_is_refused_in_the_first_step(process: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match=message):
        run(tmp_path, process)


@pytest.mark.parametrize("process", [AbsorbingProcess, Mended])
def test_an_estimator_that_moves_pad_is_refused(process: Any, tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match=f"{process.__name__} or Shuffles moved coordinates of z_t to PAD"):
        run(tmp_path, process, estimator=Shuffles)


@pytest.mark.parametrize("estimator", [Reinforce, Concrete])
@pytest.mark.parametrize("process", [Mended, *PROCESSES.values()], ids=["own", *PROCESSES])
def test_what_leaves_pad_alone_trains(process: Any, estimator: Any, tmp_path: Path) -> None:
    run(tmp_path, process, estimator=partial(estimator))


def test_samples_of_a_mended_process_are_padded_at_their_end(tmp_path: Path) -> None:
    model = build(num_classes=4, shape=(4,), padded=True, num_steps=3, forward_process=Mended)
    fit(tmp_path, model, Padded(batch_size=10), max_steps=2, limit_val_batches=0)
    is_pad = model.sample(50) == PAD
    assert bool((is_pad[:, 1:] >= is_pad[:, :-1]).all())
