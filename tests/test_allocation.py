"""A model that is larger than memory is refused before the memory is taken."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fldd_lightning import FLDD, AbsorbingProcess, FLDDError
from fldd_lightning.allocation import CheckedMemory
from fldd_lightning.networks import MLP
from fldd_lightning.spec import Spec


@pytest.mark.parametrize(
    ("num_classes", "shape", "width", "size"),
    [
        (10**12, (4,), 256, r"\(1000000000001, 16\) needs 64 TB"),
        (4, (10**12,), 256, r"\(256, 16000000000000\) needs 16.4 PB"),
        (4, (4,), 10**6, r"\(1000000, 1000000\) needs 4 TB"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(num_classes: int, shape: tuple[int], width: int, size: str) -> None:
    with pytest.raises(FLDDError, match=rf"^MLP: a tensor of {size} of memory, but .* Make the model smaller"):
        FLDD(num_classes, shape, AbsorbingProcess, partial(MLP, width=width))


def test_what_is_left_of_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fldd_lightning.memory.available_memory", lambda: 2**27)
    with CheckedMemory("it"):
        assert torch.zeros(2**25).numel() == 2**25  # 128 MiB
        with pytest.raises(FLDDError, match=r"^it: a tensor of \(33554433,\) needs 134 MB"):
            torch.zeros(2**25 + 1)
        with pytest.raises(FLDDError, match=r"^it: a tensor of"):
            torch.arange(2**40)
        assert torch.empty(2**40, device="meta").numel() == 2**40  # takes none
    assert torch.zeros(2**25 + 1).numel() == 2**25 + 1


def test_a_made_network_is_the_same() -> None:
    spec = Spec(3, (4,), 2)
    torch.manual_seed(0)
    plain = MLP(spec, 8, 8).state_dict()
    torch.manual_seed(0)
    with CheckedMemory("MLP"):
        checked = MLP(spec, 8, 8).state_dict()
    assert all(torch.equal(plain[name], checked[name]) for name in plain)
