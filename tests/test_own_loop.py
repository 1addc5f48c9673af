"""Training in a loop of one's own: what it does is what a Trainer does."""

from __future__ import annotations

import warnings
from copy import deepcopy
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything

from conftest import small_mlp
from fldd_lightning import FLDDError, OwnLoop, TextDataModule, TextFLDD
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.training import averages_of
from tiny import Pairs, build, trainer, with_latent

STEPS = 12


def batches(data: Any, number: int = STEPS) -> Any:
    return islice(cycle(data.train_dataloader()), number)


def trained(model: Any, data: Any, number: int = STEPS) -> OwnLoop:
    loop = OwnLoop(model, data, num_steps=STEPS)
    for batch in batches(data, number):
        loop.loss(batch).backward()
        loop.step()
    return loop


def test_several_batches_of_a_step_have_noise_of_their_own() -> None:
    model, data = with_latent(freeze_steps=0), Pairs(batch_size=8)
    loop, batch, bounds = OwnLoop(model, data, num_steps=STEPS), next(iter(data.train_dataloader())), []
    for _ in range(3):
        loop.loss(batch)
        bounds.append(model.logged["nelbo"].item())
    assert len(set(bounds)) == 3


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_step_is_that_of_a_trainer(tmp_path: Path) -> None:
    """One epoch of the same batches, with the same noise: the same weights, averages and running means."""
    seed_everything(1)
    theirs = with_latent()
    mine = with_latent()
    mine.load_state_dict(theirs.state_dict())
    data = Pairs()
    data.batch_size = 8  # 8 batches an epoch
    run = trainer(tmp_path, max_steps=8)
    torch.manual_seed(1)
    run.fit(theirs, data)
    torch.manual_seed(1)
    loop = OwnLoop(mine, data, num_steps=8)
    order = Pairs()
    order.batch_size = 8
    for batch in order.train_dataloader():
        loop.loss(batch).backward()
        loop.step()
    loop.finish()
    assert mine.trained_steps == 8
    assert bool(mine.latents[0].is_fitted)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name, equal_nan=True)


def test_it_learns_and_the_freeze_is_kept() -> None:
    torch.manual_seed(0)
    model, data = with_latent(freeze_steps=5, latents=[]), Pairs()
    loop = OwnLoop(model, data, num_steps=STEPS)
    assert [group["name"] for group in loop.optimizer.param_groups] == ["reverse", "forward"]
    before = [p.detach().clone() for p in model.forward_process.parameters()]
    moved = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing asks for a trainer
        for batch in batches(data):
            loop.loss(batch).backward()
            loop.step()
            pairs = zip(before, model.forward_process.parameters())
            moved.append(not all(torch.equal(old, new) for old, new in pairs))
    assert moved == [False] * 5 + [True] * 7
    assert {"nelbo", "bpd", "kl_t1", "kl_t2"} <= model.logged.keys()
    assert not model.logged["nelbo"].requires_grad
    x, start = data.splits["val"].x, with_latent(latents=[])
    assert loop.averaged.nelbo(x).nelbo.mean() < start.nelbo(x).nelbo.mean()


def test_finish_gives_the_average() -> None:
    model, data = build(), Pairs()
    loop = trained(model, data)
    current, average = state_of(model), state_of(loop.averaged)
    assert any(not torch.equal(current[name], average[name]) for name, _ in model.named_parameters())
    assert loop.finish() is model
    assert not model.training
    assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
    assert (model.trained_steps, model.sample(3).shape) == (STEPS, (3, 2))


def test_noise_differs_from_step_to_step() -> None:
    model, data = build(), Pairs()
    loop = OwnLoop(model, data, num_steps=STEPS)
    batch = next(iter(data.train_dataloader()))
    bounds = []
    for model.own_steps in (0, 0, 1):
        loop._batches = 0
        loop.loss(batch)
        bounds.append(model.logged["nelbo"].item())
    assert bounds[0] == bounds[1] != bounds[2]


def test_a_model_that_a_trainer_had(tmp_path: Path) -> None:
    model, data = build(), Pairs()
    run = trainer(tmp_path, max_steps=3)
    run.fit(model, data)
    assert averages_of(run)
    trained(model, data).finish()
    assert (model.global_step, model.trained_steps) == (STEPS, STEPS)


def test_the_data_say_what_integers_stand_for(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("abcab" * 60)
    data = TextDataModule(str(tmp_path / "corpus.txt"), length=4, cache_dir=str(tmp_path / "cache"))
    model = TextFLDD(data.num_classes, data.shape, AbsorbingProcess, small_mlp)
    trained(model, data, 1)
    assert model.texts(torch.tensor([[0, 1, 2, 0]])) == ["abca"]


def test_mistakes() -> None:
    model, data = with_latent(), Pairs()
    with pytest.raises(FLDDError, match="num_steps of OwnLoop"):
        OwnLoop(model, data, num_steps=0)
    with pytest.raises(FLDDError, match="can be gone through once only"):
        OwnLoop(model, iter(data.train_dataloader()), num_steps=3)
    loop = OwnLoop(model, data.train_dataloader(), num_steps=1)
    with pytest.raises(FLDDError, match="must lie in"):
        loop.loss(torch.full((4, 2), 7))
    with pytest.raises(FLDDError, match=r"call loss\(batch\).backward\(\) before step"):
        loop.step()
    loop.loss(torch.zeros(4, 2, dtype=torch.long)).backward()
    loop.step()
    loop.loss(torch.zeros(4, 2, dtype=torch.long)).backward()
    with pytest.warns(UserWarning, match="the training of 1 steps is over"):
        loop.step()


def test_a_training_goes_on_from_its_states() -> None:
    torch.manual_seed(0)
    whole, data = with_latent(), Pairs()
    cut, later = deepcopy(whole), deepcopy(whole)
    given = list(batches(data))

    def train(loop: OwnLoop, some: list[Any]) -> OwnLoop:
        for batch in some:
            loop.loss(batch).backward()
            loop.step()
        return loop

    train(OwnLoop(whole, data, num_steps=STEPS), given).finish()
    first = train(OwnLoop(cut, data, num_steps=STEPS), given[:7])
    later.load_state_dict(cut.state_dict())
    second = OwnLoop(later, data, num_steps=STEPS)
    for part in ("optimizer", "schedule", "averages"):
        getattr(second, part).load_state_dict(deepcopy(getattr(first, part).state_dict()))
    later.own_steps = 7
    train(second, given[7:]).finish()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(later.state_dict()[name], value, msg=name, equal_nan=True)
