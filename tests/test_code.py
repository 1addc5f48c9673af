"""The code of an example: its mixture, the bound it enters, and its way through training."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler

from conftest import PROCESSES, all_states, exact_log_likelihood, exact_step_kl, randomise
from fldd_lightning import FLDD, FLDDError, LabelledImageFLDD, MixtureCode
from fldd_lightning.callbacks import CollapseMonitor
from fldd_lightning.categorical import sample_from_uniform
from fldd_lightning.code import _log_joint
from fldd_lightning.data import DiscreteDataModule, Split
from fldd_lightning.forward import AbsorbingProcess
from fldd_lightning.problem import Problem
from test_module import Pairs, build, coded, fit, trainer

SIZE = 4


def some_code(problem: Problem) -> MixtureCode:
    """A code of any old mixture, one of its components out of use."""
    code = MixtureCode(problem, size=SIZE)
    code.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2, 0.0]).log())
    code.log_conditional.copy_((2 * torch.randn(code.log_conditional.shape)).log_softmax(-2))
    return code


def mixture_log_p(code: MixtureCode, x: torch.Tensor) -> torch.Tensor:
    """log sum_c p(c) prod_i p(x_i|c), written out."""
    p = torch.zeros(len(x))
    for c in range(SIZE):
        factors = [code.log_conditional[i, :, c][x[:, i]].exp() for i in range(x.shape[1])]
        p += code.log_prior[c].exp() * torch.stack(factors).prod(0)
    return p.log()


def mixture_nll(code: MixtureCode, x: torch.Tensor) -> torch.Tensor:
    return -mixture_log_p(code, x).mean()


@pytest.mark.parametrize("name", PROCESSES)
def test_bound_with_a_code_is_one(name: str) -> None:
    """-log sum_c p(c) p(x|c) <= KL(q(c|x) || p(c)) + sum_c q(c|x) NELBO(x|c), all of it enumerated."""
    num_steps = 2
    model = build(num_steps=num_steps, forward_process=PROCESSES[name], code=partial(MixtureCode, size=SIZE))
    randomise(model, 0.3)
    code = model.code = some_code(model.problem)
    model.reverse._log_data = code.log_conditional_of
    x = all_states(3, 2)
    states = all_states(model.forward_process.num_states, 2)
    p = torch.zeros(len(states), dtype=torch.float64)
    bound = code.kl(x).double()
    q = code.log_posterior(x).exp().double()
    torch.testing.assert_close(q.sum(1), torch.ones(len(x)).double(), atol=1e-5, rtol=0)
    assert (q[:, -1] == 0).all()
    for c in range(SIZE - 1):
        process, reverse = _given(model, c)
        p += code.log_prior[c].exp().double() * exact_log_likelihood(process, reverse, num_steps).detach().exp()
        bound += q[:, c] * sum(exact_step_kl(process, reverse, x, t) for t in range(1, num_steps + 1))
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-5)
    is_data = (states < 3).all(1)
    assert (bound >= -p[is_data].log() - 1e-5).all()


def _given(model: FLDD, c: int) -> tuple[Any, Any]:
    """Forward and reverse process with the code held at c."""

    class Given:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.inner, name)
            if name in ("dense_transition", "log_prob"):
                return lambda z, t: value(z, t, condition=torch.full((len(z),), c))
            return value

    return Given(model.forward_process), Given(model.reverse)


def test_one_step_and_an_untrained_denoiser_are_the_mixture_itself() -> None:
    """T = 1: the bound is an equality, as q(c|x) is the posterior of the very model."""
    model = build(num_steps=1, forward_process=AbsorbingProcess, code=partial(MixtureCode, size=SIZE))
    code = model.code = some_code(model.problem)
    model.reverse._log_data = code.log_conditional_of
    x = all_states(3, 2)
    q = code.log_posterior(x).exp().double()
    bound = code.kl(x).double()
    for c in range(SIZE):
        bound += q[:, c] * exact_step_kl(*_given(model, c), x, 1).detach()
    torch.testing.assert_close(bound.float(), -mixture_log_p(code, x), atol=1e-5, rtol=1e-5)


def test_kl_and_draws_are_those_of_the_posterior() -> None:
    code = some_code(Problem(3, (2,), 2))
    x = all_states(3, 2)
    q = code.log_posterior(x).exp()
    log_ratio = torch.where(q > 0, (q / code.log_prior.exp()).log(), 0.0)
    torch.testing.assert_close(code.kl(x), (q * log_ratio).sum(1), atol=1e-5, rtol=1e-4)
    n = 1_000
    uniform = ((torch.arange(n) + 0.5) / n).double()  # of every quantile one
    for i, x_i in enumerate(x):
        counts = sample_from_uniform(code.log_posterior(x_i.expand(n, -1)), uniform).bincount(minlength=SIZE)
        torch.testing.assert_close(counts / n, q[i], atol=2 / n, rtol=0)
    counts = code.sample(20_000, torch.Generator().manual_seed(0)).bincount(minlength=SIZE)
    torch.testing.assert_close(counts / 20_000, code.log_prior.exp(), atol=0.02, rtol=0)


def clustered(n: int, dims: int = 12, num_classes: int = 4, clusters: int = 4) -> torch.Tensor:
    """Examples of some clusters, coordinates independent within; one that has a typical value a coordinate."""
    generator = torch.Generator().manual_seed(0)
    typical = torch.randint(num_classes, (clusters, dims), generator=generator)
    x = typical[torch.randint(clusters, (n,), generator=generator)]
    noise = torch.randint(num_classes, x.shape, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.2, noise, x)


def test_fit_finds_clusters_and_no_more_of_them() -> None:
    x = clustered(4_000)
    code = MixtureCode(Problem(4, (12,), 2), size=64)
    fit_ = code.fit(x)
    # log 4 for the cluster; in it, 0.85 for the typical value and 0.05 for each of the three others
    entropy = torch.tensor([0.85, 0.05, 0.05, 0.05])
    optimum = float(torch.tensor(4.0).log() - 12 * (entropy * entropy.log()).sum())
    assert fit_["nll"] < optimum + 0.3 < fit_["nll_marginals"] - 2
    assert fit_["codes"] in (4, 16)
    torch.testing.assert_close(code.log_prior.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(code.log_conditional[..., :4].exp().sum(1), torch.ones(12, 4))


def test_fit_of_independent_coordinates_has_one_code() -> None:
    x = torch.randint(4, (2_000, 12), generator=torch.Generator().manual_seed(0))
    code = MixtureCode(Problem(4, (12,), 2), size=16)
    assert code.fit(x)["codes"] == 1
    assert float(code.kl(x).max()) == 0
    assert int(code.log_posterior(x).argmax(-1).max()) == 0


def test_more_rounds_are_never_less_likely() -> None:
    """Expectation maximisation ascends what it maximises; smoothing is a prior that hardly counts here."""
    x = clustered(2_000)
    values = []
    for rounds in (1, 2, 4, 8, 16):
        code = MixtureCode(Problem(4, (12,), 2), size=SIZE, smoothing=1e-6)
        values.append(_nll_after(code, x, rounds))
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(values))
    assert values[-1] < values[0] - 0.5


def _nll_after(code: MixtureCode, x: torch.Tensor, rounds: int) -> float:
    with patch("fldd_lightning.code._ITERATIONS", rounds):
        log_prior, log_conditional = code._maximise(x, SIZE, code._marginals(x))
    return -float(_log_joint(x, log_prior, log_conditional).logsumexp(-1).mean())


def test_padding_says_nothing_of_the_code() -> None:
    x = clustered(2_000, num_classes=4)
    pad = 4
    x[torch.arange(len(x)) % 2 == 0, 8:] = pad
    code = MixtureCode(Problem(5, (12,), 2, padded=True), size=16)
    code.fit(x)
    assert (code.log_conditional[:, pad] == 0).all()
    torch.testing.assert_close(code.log_conditional[:, :pad, :4].exp().sum(1), torch.ones(12, 4))
    only_pad = torch.full((1, 12), pad)
    torch.testing.assert_close(code.log_posterior(only_pad)[0], code.log_prior)
    assert float(code.kl(only_pad)) == 0


class Clusters(DiscreteDataModule):
    def load(self) -> dict[str, Split]:
        x = clustered(800)
        return {"train": Split(x[:600]), "val": Split(x[600:700]), "test": Split(x[700:])}


def clusters_model(**options: Any) -> FLDD:
    return coded(num_classes=4, shape=(12,), **options)


def test_training_fits_logs_and_keeps_the_code(tmp_path: Path) -> None:
    model = clusters_model(freeze_steps=2)
    run = fit(tmp_path, model, Clusters(batch_size=50), max_steps=12)
    assert model.code is not None
    assert bool(model.code.is_fitted)
    logged = run.callback_metrics
    assert 0.5 < float(logged["val/kl_code"]) < 1.5  # of four clusters log 4, 1.39
    assert {"train/kl_code", "val/nll_code"} <= logged.keys()
    alone = mixture_nll(model.code, Clusters().splits["val"].x)
    torch.testing.assert_close(logged["val/nll_code"], alone, atol=1e-4, rtol=1e-4)
    steps = logged["val/kl_t1"] + logged["val/kl_t2"]
    torch.testing.assert_close(logged["val/nelbo"], steps + logged["val/kl_code"])
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = FLDD.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    torch.testing.assert_close(loaded.code.log_conditional, model.code.log_conditional)  # type: ignore[union-attr]
    assert torch.equal(loaded.sample(20, seed=1), model.sample(20, seed=1))
    tested = [trainer(tmp_path).test(each, Clusters(batch_size=7), verbose=False)[0] for each in (model, loaded)]
    assert tested[0] == tested[1]
    for other in (clusters_model(code=None), clusters_model(code=partial(MixtureCode, size=8))):
        with pytest.raises(FLDDError, match=r"\(code: MixtureCode\(size=4\) there, .* here\)"):
            trainer(tmp_path).test(other, Clusters(), ckpt_path=str(tmp_path / "model.ckpt"))


def test_resuming_does_not_fit_again(tmp_path: Path) -> None:
    fit(tmp_path, clusters_model(), Clusters(batch_size=50), max_steps=4).save_checkpoint(tmp_path / "half.ckpt")
    model = clusters_model()
    assert model.code is not None
    with patch.object(model.code, "fit") as fitting:
        fit(tmp_path, model, Clusters(batch_size=50), str(tmp_path / "half.ckpt"), max_steps=6)
    assert not fitting.called
    assert bool(model.code.is_fitted)


def test_a_code_is_worth_its_bits_at_once(tmp_path: Path) -> None:
    """The denoiser starts from the mixture: after two steps the bound is below that of a product of marginals."""
    values = {}
    for code in (None, partial(MixtureCode, size=SIZE)):
        model, data = clusters_model(code=code), Clusters(batch_size=50)
        fit(tmp_path, model, data, max_steps=2)
        values[code is None] = trainer(tmp_path).test(model, data, verbose=False)[0]["test/nelbo"]
    assert values[False] < values[True] - 2


def test_monitor_says_when_the_steps_add_nothing(tmp_path: Path) -> None:
    """A denoiser of random weights, which never move, spoils the mixture."""
    model = clusters_model(freeze_steps=2, lr=0.0)
    randomise(model.reverse)
    with pytest.warns(UserWarning, match="The steps add nothing to the code"):
        fit(tmp_path, model, Clusters(batch_size=50), max_epochs=1, callbacks=[CollapseMonitor()])


def test_what_cannot_be() -> None:
    with pytest.raises(FLDDError, match="size of at least 2"):
        MixtureCode(Problem(3, (2,), 2), size=1)
    with pytest.raises(FLDDError, match="more than 256 MiB"):
        MixtureCode(Problem(50_257, (1_024,), 2))
    with pytest.raises(FLDDError, match="too few to fit a code"):
        MixtureCode(Problem(3, (2,), 2)).fit(all_states(3, 2)[:1])
    assert MixtureCode(Problem(3, (2,), 2)).fit(all_states(3, 2))["codes"] == 1  # nine examples
    with pytest.raises(FLDDError, match="labels stand where a code would"):
        coded(num_labels=3)
    with pytest.raises(FLDDError, match="labels stand where a code would"):
        coded(cls=LabelledImageFLDD)


def test_the_code_is_fitted_to_what_is_trained_on_and_no_more(tmp_path: Path) -> None:
    """A sampler of the user's own is kept; values that do not exist and data that can be read once are refused."""
    x = torch.cat([torch.zeros(60, 12, dtype=torch.long), torch.ones(60, 12, dtype=torch.long)])
    for options in ({"sampler": SubsetRandomSampler(range(60))}, {"batch_sampler": BatchSampler(range(60), 20, False)}):
        size = {} if "batch_sampler" in options else {"batch_size": 20}
        model = clusters_model()
        trainer(tmp_path, max_steps=2).fit(model, DataLoader(x, **options, **size))  # type: ignore[arg-type]
        assert model.code is not None
        assert float(model.code.kl(x[:60]).max()) < 1e-4
        first = model.code.log_conditional[..., 0].exp()  # (12, K): half of the examples were never seen
        assert float(first[:, 0].min()) > 0.95
    with pytest.raises(FLDDError, match=r"must lie in 0\.\.3"):
        trainer(tmp_path, max_steps=2).fit(clusters_model(), DataLoader(x + 4, batch_size=20))  # type: ignore[arg-type]
    with pytest.raises(FLDDError, match="Train on one DataLoader"):
        trainer(tmp_path, max_steps=2).fit(clusters_model(), iter(DataLoader(x, batch_size=20)))  # type: ignore[arg-type]


def test_validation_before_the_first_update_has_the_code(tmp_path: Path) -> None:
    """The averaged weights are a copy from before the fit."""
    seen: list[bool] = []

    class Look(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(bool(pl_module.code.is_fitted) and int((pl_module.code.log_prior > -torch.inf).sum()) > 1)

    options = {"accumulate_grad_batches": 8, "val_check_interval": 1, "max_steps": 1, "callbacks": [Look()]}
    fit(tmp_path, clusters_model(), Clusters(batch_size=50), **options)
    assert seen
    assert all(seen)


def test_evaluation_with_a_code_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    model = coded()
    model.code.fit(Pairs().splits["train"].x)  # type: ignore[union-attr]
    values = [trainer(tmp_path).test(model, Pairs(batch_size=size), verbose=False)[0]["test/nelbo"] for size in (3, 16)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
