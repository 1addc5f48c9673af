"""Masked diffusion without time: the bound of any order, its gradient and its samples, against all orders."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.utils.data import DataLoader

from conftest import all_states, make, randomise, small_mlp
from fldd_lightning import (
    AbsorbingProcess,
    AnyOrderBound,
    ConfidentFirst,
    ExactlyN,
    ExactMasks,
    FLDDError,
    GreedyEnd,
    LearnedMaskProcess,
    MaskedReverse,
    MixtureLatent,
    Reinforce,
    Spec,
    StaggeredProcess,
    WarmUp,
)
from fldd_lightning.any_order import any_order_nelbo, exactly_masked
from fldd_lightning.bound import step_terms, uniform_of
from fldd_lightning.cli import main
from fldd_lightning.sampling import ancestral_sample
from tiny import Pairs, build, fit, trainer

TIMELESS: Any = partial(MaskedReverse, time_independent=True)


def masked(spec: Spec) -> tuple[AbsorbingProcess, MaskedReverse]:
    process = AbsorbingProcess(spec)
    reverse = MaskedReverse(spec, process, small_mlp, time_independent=True)
    randomise(reverse)
    return process, reverse


def order_by_order(reverse: Any, x: Tensor, live: list[int], condition: tuple[Tensor, ...] = ()) -> Tensor:
    """-log p of ``(N, D)`` in every order of the live coordinates, by definition: ``(orders, N)``."""
    sums = []
    for order in permutations(live):
        z = x.clone()
        z[:, live] = reverse.num_classes
        total = torch.zeros(len(x))
        for i in order:
            log_p = reverse.log_prob(z, torch.ones(len(x), dtype=torch.long), condition)
            total = total - log_p[torch.arange(len(x)), i, x[:, i]]
            z = z.clone()
            z[:, i] = x[:, i]
        sums.append(total)
    return torch.stack(sums)


def assert_mean(draws: Tensor, exact: Tensor) -> None:
    draws = draws.detach()
    assert float(draws.mean()) == pytest.approx(float(exact.detach()), abs=4 * float(draws.std()) / len(draws) ** 0.5)


@pytest.mark.parametrize("padded", [False, True])
def test_bound_and_gradient_are_the_mean_over_all_orders(padded: bool) -> None:
    spec = Spec(3, (3,), 4, padded)
    process, reverse = masked(spec)
    x = torch.tensor([[0, 1, 2 if padded else 0]])
    exact = order_by_order(reverse, x, [0, 1] if padded else [0, 1, 2]).mean()
    exact_gradient = torch.autograd.grad(exact, list(reverse.parameters()), allow_unused=True)
    n = 20_000
    many = x.expand(n, -1)
    uniform = torch.rand(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = any_order_nelbo(process, reverse, (), many, None, uniform)
    assert_mean(draws, exact)

    step = process.step(many, torch.randint(1, 5, (n,)))
    out = ExactMasks(spec).loss(step, partial(step_terms, step, reverse), torch.Generator().manual_seed(1), 0)
    loss = spec.num_steps * out.surrogate.mean()  # as training_step does
    assert_mean(spec.num_steps * out.surrogate, exact)
    gradient = torch.autograd.grad(loss, list(reverse.parameters()), allow_unused=True)
    flat = [torch.cat([g.flatten() for g in each if g is not None]) for each in (gradient, exact_gradient)]
    assert (flat[0] - flat[1]).norm() < 0.05 * flat[1].norm()


@pytest.mark.parametrize("padded", [False, True])
def test_numbers_of_masks_are_uniform_and_pad_is_never_masked(padded: bool) -> None:
    spec = Spec(3, (4,), 2, padded)
    x = torch.tensor([[0, 1, 0, 2 if padded else 1]]).expand(9_000, -1)
    step = AbsorbingProcess(spec).step(x, torch.ones(len(x), dtype=torch.long))
    z, weight = exactly_masked(step, torch.rand(len(x), 5, dtype=torch.float64))
    dims = 3 if padded else 4
    number = (z == 3).sum(1)
    assert chisquare(torch.bincount(number, minlength=dims + 1)[1:]).pvalue > 1e-3
    assert torch.allclose(weight, dims / number)
    assert chisquare((z == 3)[number == 2][:, :dims].sum(0)).pvalue > 1e-3
    if padded:
        assert (z[:, 3] == 2).all()


@pytest.mark.parametrize("latents", [(), MixtureLatent], ids=["no latent", "latent"])
def test_training_with_exact_masks(tmp_path: Path, latents: Any) -> None:
    model = build(forward_process=AbsorbingProcess, reverse=TIMELESS, estimator=ExactMasks, latents=latents)
    run = fit(tmp_path, model, Pairs(batch_size=16), max_epochs=80, callbacks=[AnyOrderBound()])
    final = float(run.callback_metrics["val/nelbo_any_order"])
    assert final < 1.8  # two equal values of three: log 3 = 1.1; as if independent, log 9 = 2.2
    two_steps = float(run.callback_metrics["val/nelbo"])
    assert final < two_steps + 0.01  # they lose more than infinitely many, unless the latent says all
    assert latents or final < two_steps
    assert float(run.callback_metrics["val/nelbo_any_order_se"]) > 0
    logged = run.callback_metrics
    assert 0.2 * final < float(logged["train/nelbo"]) < 2.5 * final  # of one batch of 16


@pytest.mark.parametrize("num_steps", [2, 3])
def test_a_fixed_number_is_revealed(num_steps: int) -> None:
    process, reverse = masked(Spec(2, (6,), num_steps))
    states = ancestral_sample(
        process, reverse, 50, torch.Generator().manual_seed(0), trajectory=True, decoding=ExactlyN()
    )
    left = (states == 2).sum(2)
    assert (left == torch.arange(num_steps, -1, -1)[:, None] * 6 // num_steps).all()


def test_samples_one_by_one_are_those_of_all_orders() -> None:
    """Three coordinates in three steps: a uniformly random order, whose likelihood is known."""
    process, reverse = masked(Spec(2, (3,), 3))
    n = 20_000
    x = ancestral_sample(process, reverse, n, torch.Generator().manual_seed(0), decoding=ExactlyN())
    states = all_states(2, 3)
    p = (-order_by_order(reverse, states, [0, 1, 2])).exp().mean(0).detach().double()
    counts = torch.bincount(x @ torch.tensor([4, 2, 1]), minlength=8)
    assert chisquare(counts, p / p.sum() * n).pvalue > 1e-3


def test_the_most_confident_comes_first() -> None:
    _, reverse = masked(Spec(3, (4,), 4))
    z_t = torch.tensor([[3, 0, 3, 3]]).expand(500, -1)
    p = torch.tensor([[0.3, 0.4, 0.3], [1.0, 0.0, 0.0], [0.0, 0.02, 0.98], [0.5, 0.25, 0.25]])
    log_v = torch.cat([p, torch.full((4, 1), 0.5)], 1).log().expand(500, -1, -1)  # the last: stays masked
    with patch.object(reverse, "log_prob", return_value=log_v):
        sure = ConfidentFirst(noise=0.0).draw(reverse, z_t, 3, torch.Generator().manual_seed(0), ())
        noisy = ConfidentFirst(noise=1e3).draw(reverse, z_t, 3, torch.Generator().manual_seed(0), ())
    assert ((sure != 3).sum(1) == 2).all()  # one more, of three
    assert 0.94 < float((sure[:, 2] == 2).float().mean()) <= 1  # but where it drew its unlikely value
    assert chisquare((noisy != 3)[:, [0, 2, 3]].sum(0)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["uniform", "learned_mask"])
def test_the_last_step_may_take_the_likeliest_value(name: str) -> None:
    process, reverse = make(name, Spec(3, (2,), 2))
    states = ancestral_sample(
        process, reverse, 200, torch.Generator().manual_seed(0), trajectory=True, decoding=GreedyEnd()
    )
    ones = torch.ones(200, dtype=torch.long)
    assert torch.equal(states[2], reverse.log_prob(states[1], ones).argmax(-1))
    drawn = ancestral_sample(process, reverse, 200, torch.Generator().manual_seed(0), trajectory=True)
    assert torch.equal(states[:2], drawn[:2])  # the steps before are drawn
    assert len(states[1].unique(dim=0)) > 1


@pytest.mark.parametrize("process", [StaggeredProcess, partial(LearnedMaskProcess, network=small_mlp)])
def test_other_processes_are_refused(process: Any) -> None:
    with pytest.raises(FLDDError, match="ExactMasks needs AbsorbingProcess"):
        build(forward_process=process, reverse=TIMELESS, estimator=ExactMasks)
    with pytest.raises(FLDDError, match="ExactlyN needs masked diffusion"):
        build(forward_process=process).sample(2, decoding=ExactlyN())
    with pytest.raises(FLDDError, match="AnyOrderBound needs"):
        trainer(Path("."), callbacks=[AnyOrderBound()]).test(build(forward_process=process), Pairs(), verbose=False)


def test_the_bound_of_any_order_has_the_latents_cost() -> None:
    """Against the enumeration of the latent's values and of all orders, for a latent that networks see."""
    spec_model = build(
        forward_process=AbsorbingProcess, reverse=TIMELESS, latents=partial(MixtureLatent, size=4), num_steps=2
    )
    randomise(spec_model.reverse)
    latent: Any = spec_model.latents[0]
    latent.fit(Pairs().splits["train"].x.long())
    x = torch.tensor([[0, 0]]).expand(8_000, -1)
    uniform = torch.rand(len(x), 3 + latent.num_uniforms, dtype=torch.float64)
    parts = (spec_model.forward_process, spec_model.reverse, [latent])
    draws = any_order_nelbo(*parts, x, None, uniform)
    posterior = latent.posterior(x[:1])
    exact = posterior.kl()
    for c, weight in enumerate(posterior.log_q.exp()[0]):
        if weight > 1e-6:
            exact = exact + weight * order_by_order(spec_model.reverse, x[:1], [0, 1], (torch.tensor([[c]]),)).mean()
    assert_mean(draws, exact.squeeze())


def test_examples_without_an_index_have_noise_of_their_own(tmp_path: Path) -> None:
    model = build(forward_process=AbsorbingProcess, reverse=TIMELESS)
    randomise(model.reverse)
    seen: list[Tensor] = []

    def remember(index: Tensor, *rest: Any) -> Tensor:
        seen.append(index)
        return uniform_of(index, *rest)

    with patch("fldd_lightning.callbacks.any_order.uniform_of", remember):
        trainer(tmp_path, callbacks=[AnyOrderBound()]).test(
            model,
            DataLoader(Pairs().splits["test"].x, 5),
            verbose=False,  # type: ignore[arg-type]
        )
    assert len(torch.cat(seen).unique()) == 16


def test_one_training_serves_every_number_of_steps() -> None:
    model = build(forward_process=AbsorbingProcess, reverse=TIMELESS, estimator=ExactMasks, num_steps=2)
    randomise(model.reverse)
    data = DataLoader(Pairs().splits["test"].x, 16)
    bounds = []
    for num_steps in (2, 5):
        torch.manual_seed(0)
        same = build(forward_process=AbsorbingProcess, reverse=TIMELESS, estimator=ExactMasks, num_steps=num_steps)
        same.load_state_dict(model.state_dict())
        other = model.with_num_steps(num_steps)
        bounds.append(other.evaluate(data)["nelbo"])  # type: ignore[arg-type]
        assert bounds[-1] == same.evaluate(data)["nelbo"]  # type: ignore[arg-type]
        assert torch.equal(model.sample(20, num_steps=num_steps), same.sample(20))
        assert other.hparams["num_steps"] == other.reverse.num_steps == num_steps
    assert bounds[0] != bounds[1]
    assert model.spec.num_steps == model.reverse.num_steps == 2  # the model itself is as it was
    with pytest.raises(FLDDError, match="trained with T=2"):
        build().with_num_steps(3)
    with pytest.raises(FLDDError, match="time_independent: true"):
        build(forward_process=AbsorbingProcess).with_num_steps(3)


def test_denoisers_that_know_the_step_are_refused() -> None:
    with pytest.raises(FLDDError, match="ExactMasks needs"):
        build(
            forward_process=StaggeredProcess,
            reverse=TIMELESS,
            estimator=partial(WarmUp, first=ExactMasks, then=Reinforce),
        )
    with pytest.raises(FLDDError, match="time_independent: true"):
        build(forward_process=AbsorbingProcess, estimator=ExactMasks)
    build(forward_process=AbsorbingProcess, estimator=Reinforce)
    for wrong in (partial(AnyOrderBound, draws=0), partial(ConfidentFirst, noise=-1.0)):
        with pytest.raises(FLDDError, match="must be"):
            wrong()


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(Path(__file__).parents[1] / "configs" / "digits_masked.yaml")
    monkeypatch.chdir(tmp_path)
    quick = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", config, *quick, "--model.denoiser.width", "8"]) == 0
    assert "val/nelbo_any_order" in capsys.readouterr().out
    (path,) = tmp_path.rglob("best-*.ckpt")
    drawn = []
    for options in ([], ["ExactlyN"], ["ConfidentFirst", "--decoding.noise", "0.5"], ["GreedyEnd"]):
        decoding = ["--decoding", *options] if options else []
        args = ["sample", "--ckpt_path", str(path), "--num_samples", "4", "--output", f"drawn{len(drawn)}"]
        assert main([*args, *decoding]) in (0, None)
        drawn.append(np.load(f"drawn{len(drawn)}.npy"))
    assert not any((x == drawn[0]).all() for x in drawn[1:])
    assert main(["sample", "--ckpt_path", str(path), "--num_samples", "4", "--num_steps", "9"]) in (0, None)
    with pytest.raises(SystemExit):
        main(["sample", "--ckpt_path", str(path), "--decoding", "MLP"])
    assert "--decoding" in capsys.readouterr().err
