"""What every forward process must fulfil; runs on every process registered in conftest."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from conftest import LEARNED, PROCESSES, all_states, exact_step_kl, make, randomise, small_mlp
from fldd_lightning.bound import step_terms
from fldd_lightning.categorical import one_hot
from fldd_lightning.errors import FLDDError
from fldd_lightning.forward import (
    AbsorbingProcess,
    ForwardProcess,
    LearnedMaskProcess,
    ResidualProcess,
    ResidualUniformProcess,
    StaggeredProcess,
    UniformProcess,
)
from fldd_lightning.forward.masked import bayer_order
from fldd_lightning.networks import Transformer
from fldd_lightning.reverse import MaskedReverse, PredictingReverse
from fldd_lightning.spec import Spec

every_process = pytest.mark.parametrize("name", PROCESSES)


@every_process
@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_boundaries_are_exact(name: str, num_steps: int) -> None:
    process, _ = make(name, Spec(3, (2,), num_steps))
    x = all_states(3, 2)
    t = torch.tensor([[0, num_steps]]).expand(len(x), -1)
    u = process.log_marginals(x, t).exp()
    assert torch.equal(u[:, 0], one_hot(x, process.num_states))
    assert torch.equal(u[:, 1], process.log_prior().exp().expand_as(u[:, 1]))


@every_process
def test_marginals_are_distributions(name: str) -> None:
    process, _ = make(name, Spec(3, (2, 2), 4))
    x = torch.randint(3, (6, 2, 2))
    u = process.log_marginals(x, torch.arange(5).expand(6, -1)).exp()
    assert u.shape == (6, 5, 2, 2, process.num_states)
    torch.testing.assert_close(u.sum(-1), torch.ones(6, 5, 2, 2))


@every_process
def test_kept_is_the_marginal_at_the_data(name: str) -> None:
    for padded in (False, True):
        process, _ = make(name, Spec(3, (2,), 4, padded=padded))
        x, t = all_states(3, 2), torch.arange(5).expand(9, -1)
        index = x[:, None, :, None].expand(-1, 5, -1, 1)
        expected = process.log_marginals(x, t).exp().gather(-1, index).squeeze(-1)
        torch.testing.assert_close(process.kept(x, t), expected)


@every_process
def test_posterior_is_consistent_with_the_marginals(name: str) -> None:
    process, _ = make(name, Spec(3, (2,), 4))
    x = all_states(3, 2)
    for t in range(1, 5):
        step = process.dense_step(x, torch.full((len(x),), t))
        mixed = torch.zeros_like(step.log_u_s)
        for k in range(process.num_states):
            q = step.posterior.posterior(torch.full_like(x, k))
            weights = one_hot(torch.full_like(x, k), process.num_states)
            torch.testing.assert_close(step.posterior.relaxed_posterior(weights), q)
            u_k = step.log_u_t[..., k].exp()
            mixed += u_k.unsqueeze(-1) * q
            entropy = -torch.xlogy(q, q).sum(-1)
            torch.testing.assert_close(
                step.posterior.entropy()[..., k][u_k > 0], entropy[u_k > 0], atol=1e-5, rtol=1e-5
            )
        torch.testing.assert_close(mixed, step.log_u_s.exp(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_zero_output_equals_the_base(name: str) -> None:
    process = PROCESSES[name](Spec(3, (2,), 4))  # as built: the last layer is zero
    x = all_states(3, 2)
    t = torch.arange(1, 4).expand(len(x), -1)
    base = process.log_base(x, t) if isinstance(process, ResidualProcess) else process.base.log_marginals(x, t)
    torch.testing.assert_close(process.log_marginals(x, t).exp(), base.exp(), atol=1e-6, rtol=0)


def test_floored_base_is_the_base_mixed_with_uniform() -> None:
    process = ResidualUniformProcess(Spec(4, (2,), 3), small_mlp, floor=0.1)
    x, t = torch.zeros(1, 2, dtype=torch.long), torch.tensor([[1]])
    base = process.base.log_marginals(x, t).exp()
    torch.testing.assert_close(process.log_base(x, t).exp(), 0.9 * base + 0.1 / 4)


@pytest.mark.parametrize("name", LEARNED)
def test_marginals_depend_on_the_whole_example(name: str) -> None:
    process, _ = make(name, Spec(3, (2,), 3))
    log_u = process.log_marginals(torch.tensor([[0, 0], [0, 1]]), torch.tensor([[1], [1]]))
    assert not torch.allclose(log_u[0, 0, 0], log_u[1, 0, 0], atol=1e-3)


def test_learned_mask_schedule_is_monotone() -> None:
    process, _ = make("learned_mask", Spec(3, (4,), 6))
    x = torch.randint(3, (20, 4))
    masked = process.log_marginals(x, torch.arange(7).expand(20, -1))[..., -1].exp()
    assert (masked.diff(dim=1) >= 0).all()
    assert masked.diff(dim=1).std() > 1e-3  # the schedule did move


def test_the_order_tells_places_apart_that_the_network_cannot() -> None:
    process = LearnedMaskProcess(Spec(3, (4,), 3), partial(Transformer, width=8, depth=1, heads=2), AbsorbingProcess)
    randomise(process.network, 0.1)
    x, t = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[1, 2]])
    equal = process.kept(x, t)
    torch.testing.assert_close(equal, equal[..., :1].expand_as(equal))
    with torch.no_grad():
        process.order[2:, 0] = 0.1
    told_apart = process.kept(x, t)
    assert (told_apart[..., 0] < equal[..., 0] - 0.01).all()
    torch.testing.assert_close(told_apart[..., 1:], equal[..., 1:])


def test_the_reverse_process_follows_an_order_exactly() -> None:
    """Whatever the denoiser says of what a coordinate is, as long as its logit for MASK is zero."""
    spec = Spec(3, (2, 2), 4)
    process = LearnedMaskProcess(spec, small_mlp)
    reverse = MaskedReverse(spec, process, small_mlp)
    randomise(reverse)
    with torch.no_grad():
        process.order.copy_(0.2 * torch.randn_like(process.order))
        reverse.network.mix_out.weight.view(4, 4, -1)[:, 3] = 0
        reverse.network.mix_out.bias.view(4, 4)[:, 3] = 0
        reverse.network.skip[..., 3] = 0
    x = torch.randint(3, (5, 2, 2))
    masked = torch.full_like(x, 3)
    for t in range(1, 5):
        step = torch.full((5,), t)
        expected = process.dense_step(x, step).posterior.posterior(masked)[..., 3]
        actual = reverse.log_prob(masked, step)[..., 3].exp()
        torch.testing.assert_close(actual, expected)
        _, log_odds = reverse.log_prob_at(x, masked, step)
        torch.testing.assert_close(log_odds.sigmoid(), expected)


def test_the_order_is_that_of_ordered_dithering() -> None:
    assert bayer_order((8,)).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    bayer = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]
    assert bayer_order((4, 4)).T.tolist() == bayer
    early = (bayer_order((3, 9, 10)) < 135).float()
    for dim in range(3):  # of two neighbours one is early, whatever the shape
        first, second = early.narrow(dim, 1, early.shape[dim] - 1), early.narrow(dim, 0, early.shape[dim] - 1)
        assert torch.equal(first + second, torch.ones_like(first))


@pytest.mark.parametrize("shape", [(1,), (9,), (1, 64), (8, 1), (3, 32, 32), (5, 7, 11)])
@pytest.mark.parametrize("num_steps", [2, 4, 10])
def test_staggered_groups_are_of_equal_size(shape: tuple[int, ...], num_steps: int) -> None:
    process = StaggeredProcess(Spec(2, shape, num_steps))
    masked = (process.log_stay_odds()[2:] > 0).flatten(1).sum(1)  # at the next step, by turn
    numbers = torch.cat([torch.tensor([0]), masked, torch.tensor([process.spec.num_dims])]).diff()
    assert numbers.max() - numbers.min() <= 1


def test_staggered_reveals_a_group_at_a_step() -> None:
    spec = Spec(3, (16,), 4)
    x, t = torch.zeros(1, 16, dtype=torch.long), torch.tensor([[1, 2, 3]])
    kept = StaggeredProcess(spec, slack=1e-3).kept(x, t)[0]  # (3, 16)
    position = torch.arange(16)
    expected = torch.stack([position % 4 != 3, position % 2 == 0, position % 4 == 0])  # at t = 1, 2, 3
    torch.testing.assert_close(kept, expected.float(), atol=1e-3, rtol=0)
    early = StaggeredProcess(spec, slack=0.1).kept(x, t)[0, :, 3]
    assert 0 < float(early[0]) < 0.1  # the last group, out of turn
    for slack in (0.0, 1.0):
        with pytest.raises(FLDDError, match="slack"):
            StaggeredProcess(spec, slack)


def test_the_base_is_a_fixed_mask_schedule() -> None:
    for base in (UniformProcess, partial(LearnedMaskProcess, network=small_mlp)):
        with pytest.raises(FLDDError, match=r"the base is|a MaskProcess is needed"):
            LearnedMaskProcess(Spec(3, (2,), 2), small_mlp, base)


def test_d3pm_posterior_is_bayes_rule() -> None:
    num_steps, k = 4, 3
    process, _ = make("d3pm", Spec(k, (1,), num_steps))
    for t in range(1, num_steps + 1):
        beta = (num_steps - t) / (num_steps - t + 1)
        kernel = beta * torch.eye(k) + (1 - beta) / k  # q(z_t|z_s)
        for x in range(k):
            step = process.step(torch.tensor([[x]]), torch.tensor([t]))
            joint = step.log_u_s[0, 0].exp().unsqueeze(1) * kernel  # (s, t)
            for z in range(k):
                if joint[:, z].sum() > 0:
                    actual = step.posterior.posterior(torch.tensor([[z]]))[0, 0]
                    torch.testing.assert_close(actual.float(), (joint[:, z] / joint[:, z].sum()).float())


def test_learned_process_needs_two_steps() -> None:
    with pytest.raises(FLDDError, match="num_steps of 2"):
        make("learned_mask", Spec(3, (2,), 1))


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_floor_out_of_range(floor: float) -> None:
    with pytest.raises(FLDDError, match="floor"):
        ResidualUniformProcess(Spec(3, (2,), 2), small_mlp, floor)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0, 3]]), "values must lie in 0..2"),
        (torch.tensor([[0, -1]]), "values must lie in 0..2"),
        (torch.tensor([[0, 1, 2]]), "has shape"),
        (torch.tensor([[0.0, 1.0]]), "needs integers"),
    ],
)
def test_bad_data_is_refused(x: torch.Tensor, message: str) -> None:
    process, _ = make("uniform", Spec(3, (2,), 2))
    with pytest.raises(FLDDError, match=message):
        process.log_marginals(x, torch.ones(1, 1, dtype=torch.long))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["uniform", "d3pm"])
def test_a_prediction_put_through_the_process_is_the_sum_over_x(name: str, padded: bool) -> None:
    """The closed forms against p(z_s|z_t) = sum_x p(x|z_t) q(z_s|z_t, x), for every z_t and t, values and gradients."""
    process, _ = make(name, Spec(4, (2,), 4, padded=padded))
    live = 3 if padded else 4
    z = all_states(live, 2)
    logits = torch.randn(len(z), 2, 4, dtype=torch.float64, requires_grad=True)
    log_p = logits.masked_fill(torch.arange(4) >= live, float("-inf")).log_softmax(-1)
    for t in range(1, 5):
        steps = torch.full((len(z),), t)
        actual = process.posterior_under(log_p, z, steps).exp()
        expected = torch.zeros_like(actual)
        for value in range(live):
            q = process.dense_step(torch.full_like(z, value), steps).posterior.posterior(z)
            expected = expected + log_p[..., value, None].exp() * q
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(actual.sum(-1), torch.ones(len(z), 2, dtype=torch.float64), atol=1e-6, rtol=0)
        weight = torch.randn(actual.shape, dtype=torch.float64)
        one, other = (torch.autograd.grad((p * weight).sum(), logits, retain_graph=True)[0] for p in (actual, expected))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        assert bool(one.isfinite().all())
        torch.testing.assert_close(
            ForwardProcess.posterior_under(process, log_p, z, steps).exp(), expected, atol=1e-6, rtol=1e-5
        )


def test_a_prediction_of_x_is_no_way_through_a_learned_process() -> None:
    process, _ = make("residual_uniform", Spec(3, (2,), 3))
    z = all_states(3, 2)
    with pytest.raises(FLDDError, match="Use DirectReverse"):
        process.posterior_under(torch.zeros(9, 2, 3).log_softmax(-1), z, torch.full((9,), 2))


class OneAway(ForwardProcess):
    """Levels that move by one at most before the last step: most states cannot be reached from most others."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, spec.num_classes)

    def interior_log_marginals(
        self, x: torch.Tensor, t: torch.Tensor, condition: tuple[torch.Tensor, ...] = ()
    ) -> torch.Tensor:
        distance = (torch.arange(self.num_states) - x.unsqueeze(-1)).abs().unsqueeze(1)
        log_u = torch.where(distance > 1, -torch.inf, -distance.float()).log_softmax(-1)
        return log_u.expand(-1, t.shape[1], *[-1] * (x.dim()))

    def log_prior(self) -> torch.Tensor:
        return torch.zeros(self.num_states).log_softmax(-1)

    def posterior_logits(self, state: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return 2.0 * state


@pytest.mark.parametrize("t", [1, 2, 3])
def test_states_that_cannot_be_reached_leave_gradients_finite(t: int) -> None:
    """Through the sum over x, which a process need not override: against the enumeration."""
    spec = Spec(5, (2,), 3)
    process = OneAway(spec)
    reverse = PredictingReverse(spec, process, small_mlp)
    randomise(reverse)
    x = torch.tensor([[0, 4]])
    z_t = all_states(5, 2)
    step = process.dense_step(x.expand(len(z_t), -1), torch.full((len(z_t),), t))
    weight = step.log_prob(z_t).exp()
    loss = (step_terms(step, reverse, z_t.unsqueeze(0)).kl[0].where(weight > 0, 0.0) * weight).sum()
    exact = exact_step_kl(process, reverse, x, t).sum()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-4)
    parameters = list(reverse.parameters())
    for got, wanted in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(exact, parameters, allow_unused=True),
        strict=True,
    ):
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
