"""Every backbone: one signature, zero at first, integers and weights, steps and latents matter, compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from conftest import randomise
from fldd_lightning import FLDDError
from fldd_lightning.networks import MLP, Backbone, DiT, Transformer, UNet
from fldd_lightning.networks.transformer import RotaryPositions
from fldd_lightning.spec import Seen, Spec

BACKBONES: dict[str, Callable[[Spec, int, int], Backbone]] = {
    "mlp": partial(MLP, width=16, depth=1),
    "unet": partial(UNet, widths=(8, 16, 16), heads=2),
    "dit": partial(DiT, patch=2, width=16, depth=2, heads=2),
}
SEQUENCES: dict[str, Callable[[Spec, int, int], Backbone]] = {
    "transformer": partial(Transformer, width=16, depth=2, heads=2, time_width=8),
    "tied": partial(Transformer, width=16, depth=2, heads=2, time_width=8, tied=True),
}
GREY, COLOUR, TEXT = (6, 4), (3, 6, 4), (10,)
CASES = [
    *((name, shape) for name in BACKBONES for shape in (GREY, COLOUR)),
    *((name, TEXT) for name in (*SEQUENCES, "mlp")),
]
BACKBONES.update(SEQUENCES)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """All networks share ``Backbone.__call__``, which is compiled so many times and no more."""
    torch.compiler.reset()


def states(shape: tuple[int, ...], batch: int = 3, num: int = 4) -> torch.Tensor:
    return torch.randint(num, (batch, *shape))


def seen_and_condition(shape: tuple[int, ...]) -> tuple[tuple[Seen, ...], tuple[torch.Tensor, ...]]:
    """A label, three real numbers and, of sequences, a number of each of two parts; with values of three examples."""
    seen = [Seen("label", num_values=2), Seen("numbers", num_reals=3)]
    condition = [torch.tensor([[0], [1], [1]]), torch.randn(3, 3)]
    if len(shape) == 1:
        seen.insert(1, Seen("parts", num_values=2, num_parts=2))
        condition.insert(1, torch.tensor([[0, 1], [1, 1], [1, 0]]))
    return tuple(seen), tuple(condition)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_starts_at_zero_and_uses_all_it_is_given(name: str, shape: tuple[int, ...]) -> None:
    seen, condition = seen_and_condition(shape)
    network = BACKBONES[name](Spec(3, shape, 5, seen=seen), 4, 7)
    state, t = states(shape), torch.tensor([1, 2, 5])
    for each in (state, F.one_hot(state, 4).float()):
        out = network(each, t, condition)
        assert out.shape == (3, *shape, 7)
        assert out.abs().max() == 0
    randomise(network, 0.2)
    out = network(state, t, condition)
    torch.testing.assert_close(out, network(F.one_hot(state, 4).float(), t, condition), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(out, network(state, t.flip(0), condition), atol=1e-4)
    for i, numbers in enumerate(condition):
        other = (*condition[:i], 1 - numbers, *condition[i + 1 :])
        assert not torch.allclose(out, network(state, t, other), atol=1e-4), seen[i].name
        with pytest.raises(FLDDError, match=f"given {len(seen) - 1} latents, but it sees {len(seen)}"):
            network(state, t, (*condition[:i], *condition[i + 1 :]))
    # every output depends on every pixel: the forward process must see the whole example (eq. 9)
    relaxed = (0.5 * F.one_hot(state, 4) + 0.125).requires_grad_()
    network(relaxed, t, condition)[(slice(None), *[0] * len(shape), 0)].sum().backward()
    assert relaxed.grad is not None
    assert bool((relaxed.grad.abs().sum(-1) > 0).all())
    assert torch.allclose(out[:1], network(state[:1], t[:1], tuple(c[:1] for c in condition)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("unet", GREY), ("dit", GREY), ("transformer", TEXT), ("tied", TEXT)])
def test_compiles_whole(name: str, shape: tuple[int, ...]) -> None:
    """Values and gradients of the compiled network, at integers and at weights."""
    seen, condition = seen_and_condition(shape)
    small = {"widths": (8, 16)} if name == "unet" else {"depth": 1}
    network = partial(BACKBONES[name], **small)(Spec(3, shape, 5, seen=seen), 4, 4)
    randomise(network, 0.2)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    t, hard = torch.tensor([1, 2, 5]), states(shape)
    relaxed = (0.5 * F.one_hot(hard, 4) + 0.125).requires_grad_()
    for state, wanted in ((hard, [*network.parameters()]), (relaxed, [*network.parameters(), relaxed])):
        out, expected = compiled(state, t, condition), network(state, t, condition)
        assert torch.allclose(out, expected, atol=1e-4)
        found, true = (torch.autograd.grad(each.square().mean(), wanted) for each in (out, expected))
        for a, b in zip(found, true, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_unet_takes_odd_sizes() -> None:
    network = UNet(Spec(2, (7, 5), 4), 2, 3, widths=(8, 16, 16), heads=2)
    assert network(states((7, 5), num=2), torch.tensor([1, 2, 3])).shape == (3, 7, 5, 3)


def test_stated_sizes_and_costs_of_image_networks() -> None:
    """Parameters in millions and GFLOP an image, as the docstrings and docs/images.md say."""
    binary, colour = Spec(2, (28, 28), 4), Spec(32, (3, 32, 32), 4)
    for network, spec, states_in, millions, cost in (
        (UNet(binary, 3, 2, widths=(16, 32, 64)), binary, 3, 0.41, 0.080),
        (UNet(binary, 3, 2), binary, 3, 1.6, 0.32),
        (UNet(colour, 33, 32, widths=(64, 128, 256)), colour, 33, 6.4, 1.8),
        (DiT(binary, 3, 2), binary, 3, 2.8, 0.18),
        (DiT(colour, 33, 32), colour, 33, 3.4, 0.31),
    ):
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
        state = torch.zeros(1, *spec.shape, states_in)  # weights
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(state, torch.ones(1, dtype=torch.long))
        assert counter.get_total_flops() / 1e9 == pytest.approx(cost, rel=0.03)


def test_stated_sizes_of_transformers() -> None:
    for size, states_, tied, stated in (
        ((128, 4, 4), 28, False, 1.23e6),
        ((256, 6, 4), 28, False, 6.0e6),
        ((512, 8, 8), 2_049, False, 30.6e6),
        ((768, 12, 12), 50_258, False, 170e6),
        ((768, 12, 12), 50_258, True, 132e6),
    ):
        with torch.device("meta"):
            network = Transformer(Spec(states_ - 1, (64,), 4), states_, states_, *size, tied=tied)
        parameters = sum(p.numel() for p in network.parameters())
        assert abs(parameters / stated - 1) < 0.02, (size, tied, parameters)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = RotaryPositions(12, 8)
    query, key = torch.randn(2, 8)
    turned = [rotary(v.expand(1, 1, 12, 8))[0, 0] for v in (query, key)]
    products = turned[0] @ turned[1].T  # (12, 12)
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-4)
    assert products[0].std() > 0.01
    assert torch.equal(turned[0][0], query)  # position 0 is not turned


@pytest.mark.parametrize("name", SEQUENCES)
def test_transformer_in_bfloat16(name: str) -> None:
    network = BACKBONES[name](Spec(3, TEXT, 5), 4, 4)
    randomise(network, 0.2)
    state, t = states(TEXT), torch.tensor([1, 2, 5])
    whole = network(state, t)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(state, t)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(state, t)
    assert half.dtype == torch.bfloat16
    for out in (half, compiled):
        assert (out.float() - whole).norm() < 0.05 * whole.norm()


def test_transformer_tells_orders_apart() -> None:
    """Positions come from the rotation alone."""
    network = BACKBONES["transformer"](Spec(3, TEXT, 5), 4, 4)
    randomise(network, 0.5)
    state, t = torch.arange(10)[None] % 4, torch.tensor([3])
    swapped = state[:, [1, 0, *range(2, 10)]]
    assert not torch.allclose(network(state, t)[:, 5], network(swapped, t)[:, 5], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(Spec(2, (8,), 4), 3, 3), "UNet needs images"),
        (lambda: UNet(Spec(2, (8, 8), 4), 3, 3, widths=(12,)), "multiples of 8"),
        (lambda: DiT(Spec(2, (8,), 4), 3, 3), "DiT needs images"),
        (lambda: Transformer(Spec(2, (8, 8), 4), 3, 3), "Transformer needs sequences"),
        (lambda: Transformer(Spec(2, (8,), 4), 3, 3, width=10, heads=2), "even number"),
        (lambda: Transformer(Spec(2, (8,), 4), 3, 2, tied=True), "as many outputs as inputs"),
        (lambda: DiT(Spec(2, (8, 8), 4), 3, 3, patch=3), "patch=3 must divide"),
        (lambda: DiT(Spec(2, (8, 8), 4), 3, 3, width=10, heads=4), "heads=4"),
    ],
)
def test_wrong_options_are_named(make: Callable[[], Backbone], message: str) -> None:
    with pytest.raises(FLDDError, match=message):
        make()
