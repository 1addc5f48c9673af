"""Sources whose log-probability is known exactly, so that the best possible NELBO, H, is too.

They are drawn at random here: no data set, no licence.
"""

from __future__ import annotations

from abc import abstractmethod
from math import log

import torch
from torch import Tensor

from fldd_lightning import FLDDError
from fldd_lightning.data import DiscreteDataModule, Split

__all__ = ["GaussianMixture", "HiddenClusters", "KnownSource", "MarkovChain", "RandomWalk", "XORBlocks"]


class KnownSource(DiscreteDataModule):
    """Base class of generated sources with a known log-probability.

    A subclass gives :meth:`draw`, :meth:`log_prob` and :meth:`marginals`. The splits are drawn
    from one generator, seeded apart from the parameters of the source.

    Args:
        num_classes: K.
        length: D; examples have shape ``(D,)``.
        num_train: Examples for training.
        num_held: Examples for testing; a quarter as many are drawn for validation.
        batch_size: Examples per batch and process.
        seed: Seed of the source's parameters, of the examples and of the training order.

    Raises:
        FLDDError: If a size is not positive.
    """

    def __init__(
        self, num_classes: int, length: int, num_train: int, num_held: int, batch_size: int, seed: int
    ) -> None:
        super().__init__(batch_size, 0, seed)
        if min(num_train, num_held, length) < 1 or num_classes < 2:
            raise FLDDError("num_train, num_held and length must be at least 1 and num_classes at least 2.")
        self._num_classes, self.length = num_classes, length
        self.num_train, self.num_held = num_train, num_held
        self.parameter_generator = torch.Generator().manual_seed(1_000 + seed)

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @abstractmethod
    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """``num`` examples ``(N, D)``."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x) in nats per example, ``(N,)`` float64, for examples ``(N, D)``."""

    @abstractmethod
    def marginals(self) -> Tensor:
        """Exact p(x_i), ``(D, K)`` float64."""

    @property
    def entropy(self) -> float:
        """H in nats per example: the mean of -log p over 200,000 draws, unless a subclass knows better."""
        return -float(self.log_prob(self.draw(200_000, torch.Generator().manual_seed(7))).mean())

    @property
    def marginal_entropy(self) -> float:
        """Hprod = sum_i H(x_i) in nats per example: what a collapsed process reaches."""
        p = self.marginals()
        return -float(torch.xlogy(p, p).sum())

    def load(self) -> dict[str, Split]:
        generator = torch.Generator().manual_seed(self.seed)
        sizes = {"train": self.num_train, "val": max(1, self.num_held // 4), "test": self.num_held}
        return {name: Split(self.draw(size, generator)) for name, size in sizes.items()}


class GaussianMixture(KnownSource):
    """Axis-parallel Gaussians on a K x K grid, D = 2, with equal weights.

    Means are uniform on [0.12 K, 0.88 K], standard deviations on [0.03 K, 0.08 K]; each density is
    normalised over the grid. H by enumeration. There are 2,500 cells, so that 100,000 training examples
    alone would cost about 2,500 / 200,000 = 0.0125 nats: hence half a million; and 100,000 held-out ones
    measure a gap to about 0.004 nats.
    """

    def __init__(
        self,
        components: int = 8,
        num_classes: int = 50,
        num_train: int = 500_000,
        num_held: int = 100_000,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, 2, num_train, num_held, batch_size, seed)
        self.save_hyperparameters(logger=False)
        uniform = torch.rand(2, components, 2, 1, dtype=torch.float64, generator=self.parameter_generator)
        mean = num_classes * (0.12 + 0.76 * uniform[0])
        deviation = num_classes * (0.03 + 0.05 * uniform[1])
        grid = torch.arange(num_classes, dtype=torch.float64)
        self.log_p = (-0.5 * ((grid - mean) / deviation) ** 2).log_softmax(-1)  # (C, 2, K)

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        component = torch.randint(len(self.log_p), (num,), generator=generator)
        return _draw_rows(self.log_p.exp()[component], generator)

    def log_prob(self, x: Tensor) -> Tensor:
        each = self.log_p[:, 0, x[:, 0]] + self.log_p[:, 1, x[:, 1]]  # (C, N)
        return each.logsumexp(0) - log(len(self.log_p))

    def marginals(self) -> Tensor:
        return self.log_p.exp().mean(0)

    @property
    def entropy(self) -> float:
        axis = torch.arange(self.num_classes)
        log_p = self.log_prob(torch.cartesian_prod(axis, axis))
        return -float((log_p.exp() * log_p).sum())


class RandomWalk(KnownSource):
    """x_1 uniform on 0..K-1, then steps -1, 0, +1 with probability 1/3 each, clipped to the range.

    Two steps suffice in theory: with z_1 = (x_1, the increments) both p(z_1) and p(x|z_1) factorise.
    The uniform distribution is stationary, so that H = log K + (D - 1)(log 3 - 4 log 2 / (3 K)).
    """

    def __init__(
        self,
        length: int = 16,
        num_classes: int = 20,
        num_train: int = 100_000,
        num_held: int = 5_000,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, length, num_train, num_held, batch_size, seed)
        self.save_hyperparameters(logger=False)

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        steps = torch.randint(-1, 2, (num, self.length), generator=generator)
        x = torch.randint(self.num_classes, (num,), generator=generator)
        columns = [x]
        for i in range(1, self.length):
            x = (x + steps[:, i]).clamp(0, self.num_classes - 1)
            columns.append(x)
        return torch.stack(columns, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        change = x.diff(dim=1)
        at_edge = (x[:, :-1] == 0) | (x[:, :-1] == self.num_classes - 1)
        log_p = torch.full(change.shape, log(1 / 3), dtype=torch.float64)
        log_p = log_p.masked_fill((change == 0) & at_edge, log(2 / 3))
        log_p = log_p.masked_fill(change.abs() > 1, -torch.inf)
        return log_p.sum(1) - log(self.num_classes)

    def marginals(self) -> Tensor:
        return torch.full((self.length, self.num_classes), 1 / self.num_classes, dtype=torch.float64)

    @property
    def entropy(self) -> float:
        return log(self.num_classes) + (self.length - 1) * (log(3) - 4 * log(2) / (3 * self.num_classes))


class XORBlocks(KnownSource):
    """Bits (a, b, a xor b xor n), twice, then two free bits; n is 1 with probability 0.05, D = 8."""

    def __init__(
        self,
        noise: float = 0.05,
        num_train: int = 100_000,
        num_held: int = 20_000,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(2, 8, num_train, num_held, batch_size, seed)
        self.save_hyperparameters(logger=False)
        if not 0 < noise < 1:
            raise FLDDError(f"noise is {noise}, but it must lie strictly between 0 and 1.")
        self.noise = noise

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        x = torch.randint(2, (num, 8), generator=generator)
        for start in (0, 3):
            flipped = (torch.rand(num, generator=generator) < self.noise).long()
            x[:, start + 2] = x[:, start] ^ x[:, start + 1] ^ flipped
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        log_p = torch.full((len(x),), 6 * log(0.5), dtype=torch.float64)
        for start in (0, 3):
            flipped = (x[:, start] ^ x[:, start + 1] ^ x[:, start + 2]).bool()
            log_p += log(1 - self.noise)
            log_p[flipped] += log(self.noise) - log(1 - self.noise)
        return log_p

    def marginals(self) -> Tensor:
        return torch.full((8, 2), 0.5, dtype=torch.float64)

    @property
    def entropy(self) -> float:
        return 6 * log(2) - 2 * (self.noise * log(self.noise) + (1 - self.noise) * log(1 - self.noise))


class HiddenClusters(KnownSource):
    """A hidden cluster of 32, all coordinates independent within it; D = 64, K = 8.

    Log-probabilities within a cluster are log-softmax(1.5 N(0, 1)). H is a mean over draws.
    """

    def __init__(
        self,
        clusters: int = 32,
        length: int = 64,
        num_classes: int = 8,
        num_train: int = 100_000,
        num_held: int = 5_000,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, length, num_train, num_held, batch_size, seed)
        self.save_hyperparameters(logger=False)
        normal = torch.randn(clusters, length, num_classes, dtype=torch.float64, generator=self.parameter_generator)
        self.log_p = (1.5 * normal).log_softmax(-1)  # (C, D, K)

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        cluster = torch.randint(len(self.log_p), (num,), generator=generator)
        p = self.log_p.exp()
        return torch.cat([_draw_rows(p[part], generator) for part in torch.split(cluster, 4096)])

    def log_prob(self, x: Tensor) -> Tensor:
        each = torch.stack([self.log_p[:, i, x[:, i]] for i in range(self.length)]).sum(0)  # (C, N)
        return each.logsumexp(0) - log(len(self.log_p))

    def marginals(self) -> Tensor:
        return self.log_p.exp().mean(0)


class MarkovChain(KnownSource):
    """A second-order chain: p(x_i|x_{i-1}, x_{i-2}) = softmax(A[x_{i-2}] + B[x_{i-1}]), entries 1.5 N(0, 1).

    The first two coordinates are uniform. H by propagating the distribution of neighbouring pairs.
    """

    def __init__(
        self,
        length: int = 32,
        num_classes: int = 27,
        num_train: int = 100_000,
        num_held: int = 5_000,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, length, num_train, num_held, batch_size, seed)
        self.save_hyperparameters(logger=False)
        if length < 2:
            raise FLDDError("a second-order chain needs a length of at least 2.")
        size = (2, num_classes, num_classes)
        a, b = 1.5 * torch.randn(size, dtype=torch.float64, generator=self.parameter_generator)
        self.log_p = (a[:, None] + b[None]).log_softmax(-1)  # (K, K, K): x_{i-2}, x_{i-1}, x_i

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        x = torch.randint(self.num_classes, (num, self.length), generator=generator)
        p = self.log_p.exp()
        for i in range(2, self.length):
            x[:, i] = _draw_rows(p[x[:, i - 2], x[:, i - 1]], generator)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        log_p: Tensor = self.log_p[x[:, :-2], x[:, 1:-1], x[:, 2:]]  # (N, D - 2)
        return log_p.sum(1) - 2 * log(self.num_classes)

    def _pairs(self) -> Tensor:
        """p(x_i, x_{i+1}), ``(D - 1, K, K)``."""
        pair = torch.full((self.num_classes, self.num_classes), self.num_classes**-2.0, dtype=torch.float64)
        pairs = [pair]
        for _ in range(self.length - 2):
            pairs.append(torch.einsum("ab,abc->bc", pairs[-1], self.log_p.exp()))
        return torch.stack(pairs)

    def marginals(self) -> Tensor:
        pairs = self._pairs()
        return torch.cat([pairs.sum(2), pairs[-1:].sum(1)])

    @property
    def entropy(self) -> float:
        conditional = -(self.log_p.exp() * self.log_p).sum(-1)  # (K, K)
        return 2 * log(self.num_classes) + float((self._pairs()[:-1] * conditional).sum())


def _draw_rows(p: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from every row of ``(..., K)`` float64 probabilities, by the inverse CDF."""
    total = p.cumsum(-1)
    uniform = torch.rand(p.shape[:-1], dtype=p.dtype, generator=generator) * total[..., -1]
    return (uniform.unsqueeze(-1) >= total).sum(-1).clamp_max(p.shape[-1] - 1)
