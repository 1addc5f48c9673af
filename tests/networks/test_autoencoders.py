"""Encoders and decoders of an autoencoder's latent: shapes, what they are at the start, and images that they learn."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fldd_lightning import AutoencoderLatent, FLDDError
from fldd_lightning.networks import Autoencoder, ConvAutoencoder, MLPAutoencoder
from fldd_lightning.spec import Spec


@pytest.mark.parametrize("make", [MLPAutoencoder, ConvAutoencoder])
@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (2, 3), (3, 9, 5), (1, 28, 28)])
def test_shapes(make: type[Autoencoder], shape: tuple[int, ...]) -> None:
    spec = Spec(4, shape, 2)
    autoencoder = make(spec, 5, 3, 2, width=8)  # type: ignore[call-arg]
    x, latent = torch.rand(6, *shape, 3), torch.randn(6, 5)
    assert autoencoder.says_nothing
    assert not autoencoder.encode(x).any()
    assert not autoencoder.decode(latent).any()
    autoencoder.wake(torch.Generator().manual_seed(0))
    assert not autoencoder.says_nothing
    encoded, decoded = autoencoder.encode(x), autoencoder.decode(latent)
    assert encoded.shape == (6, 10)
    assert decoded.shape == (6, *shape, 2)
    for i in range(6):  # an example at a time: nothing is mixed up
        torch.testing.assert_close(autoencoder.encode(x[i : i + 1])[0], encoded[i])
        torch.testing.assert_close(autoencoder.decode(latent[i : i + 1])[0], decoded[i])
    (encoded.sum() + decoded.sum()).backward()
    assert all(p.grad is not None for p in autoencoder.parameters())


@pytest.mark.parametrize(
    ("make", "size", "costs"),
    [
        (MLPAutoencoder, 1.4, (0.0014, 0.0014)),
        (ConvAutoencoder, 1.1, (0.0022, 0.0043)),
        (partial(ConvAutoencoder, features=32), 2.4, (0.0064, 0.0146)),
    ],
)
def test_sizes_are_those_of_the_documentation(make: Any, size: float, costs: tuple[float, float]) -> None:
    """Parameters in millions, and GFLOP of encoding and decoding an image, as docs/images.md says."""
    autoencoder = make(Spec(2, (28, 28), 4), 24, 1, 1)
    assert sum(p.numel() for p in autoencoder.parameters()) / 1e6 == pytest.approx(size, abs=0.05)
    for run, argument, cost in ((autoencoder.encode, (28, 28, 1), costs[0]), (autoencoder.decode, (24,), costs[1])):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(torch.zeros(1, *argument))
        assert counter.get_total_flops() / 1e9 == pytest.approx(cost, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [0, 2])
def test_convolutions_learn_images_of_several_channels(channels: int) -> None:
    """A latent that says where a stripe is, and of which channel's colour: each pixel of the bound is its own."""
    torch.manual_seed(0)
    rows, n = torch.randint(8, (2_000,)), 2_000
    x = torch.zeros(n, 8, 6, dtype=torch.long)
    x[torch.arange(n), rows, :4] = 1
    x[torch.arange(n), rows, 4] = 2
    if channels:
        x = torch.stack([x, 2 - x], 1)  # (N, 2, 8, 6)
    latent = AutoencoderLatent(
        Spec(3, tuple(x.shape[1:]), 2), 2, partial(ConvAutoencoder, features=8, width=32), 8, 2, 1.0, fit_steps=250
    )
    fit = latent.fit(x)
    assert fit["nll"] < 4.0  # log 8 = 2.1 is the best
    assert fit["nll_marginals"] > 10
    with torch.no_grad():
        drawn = latent.log_conditional_of(latent.posterior(x[:50]).likely()).argmax(-1)
    assert float((drawn == x[:50]).float().mean()) > 0.98


def test_what_cannot_be() -> None:
    with pytest.raises(FLDDError, match=r"ConvAutoencoder needs images.*MLPAutoencoder"):
        ConvAutoencoder(Spec(3, (8,), 2), 2, 2, 2)
    for options in ({"features": 0}, {"width": 0}):
        with pytest.raises(FLDDError, match="must be a whole number"):
            ConvAutoencoder(Spec(3, (8, 8), 2), 2, 2, 2, **options)
    with pytest.raises(FLDDError, match="more than 256 MiB"):
        ConvAutoencoder(Spec(2, (512, 512), 2), 2, 1, 1)
    with pytest.raises(FLDDError, match="width of MLPAutoencoder"):
        MLPAutoencoder(Spec(3, (8,), 2), 2, 2, 2, width=0)
