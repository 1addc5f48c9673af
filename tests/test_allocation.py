"""A model that is larger than memory is refused before the memory is taken."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import pytest
import torch

from conftest import small_mlp
from fldd_lightning import FLDD, AbsorbingProcess, FLDDError, LearnedMaskProcess
from fldd_lightning.allocation import check_size
from fldd_lightning.memory import available_memory
from fldd_lightning.networks import MLP
from fldd_lightning.spec import Spec


@pytest.mark.parametrize(
    ("num_classes", "shape", "width", "size"),
    [(10**12, (4,), 256, "4.5 PB"), (4, (10**12,), 256, "20.5 PB"), (4, (4,), 10**6, "16 TB")],
)
def test_a_model_that_does_not_fit_is_refused(num_classes: int, shape: tuple[int], width: int, size: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FLDDError, match=rf"^MaskedReverse with its weights needs {size} of memory, but .* Make it"):
        FLDD(num_classes, shape, AbsorbingProcess, partial(MLP, width=width))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


@pytest.fixture
def all_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fldd_lightning.allocation._LARGE", 0)


@pytest.mark.usefixtures("all_are_tried")
def test_what_is_left_of_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MLP(Spec(3, (4,), 2), 8, 8)
    size = sum(each.numel() * each.element_size() for each in network.state_dict().values())
    monkeypatch.setattr("fldd_lightning.memory.available_memory", lambda: size)
    check_size(partial(MLP, Spec(3, (4,), 2), 8, 8), True)
    monkeypatch.setattr("fldd_lightning.memory.available_memory", lambda: size - 1)
    with pytest.raises(FLDDError, match=r"^MLP with its weights needs"):
        check_size(partial(MLP, Spec(3, (4,), 2), 8, 8), True)


@pytest.mark.usefixtures("all_are_tried")
def test_the_trial_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> FLDD:
        torch.manual_seed(0)
        return FLDD(3, (4,), partial(LearnedMaskProcess, network=small_mlp), small_mlp)

    tried = made().state_dict()
    monkeypatch.setattr("fldd_lightning.factory.check_size", lambda *_: None)
    plain = made().state_dict()
    assert plain.keys() == tried.keys()
    torch.testing.assert_close(tried, plain, rtol=0, atol=0, equal_nan=True)


calls: list[int] = []


class Counted(MLP):
    """A network of one's own."""

    def __init__(self, spec: Spec, num_inputs: int, num_outputs: int) -> None:
        calls.append(num_outputs)
        super().__init__(spec, num_inputs, num_outputs, 8)


@pytest.mark.usefixtures("all_are_tried")
def test_what_a_user_has_written_is_made_once() -> None:
    calls.clear()
    FLDD(3, (4,), AbsorbingProcess, Counted)
    assert calls == [3]


def test_files_that_are_kept_in_memory_count_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fldd_lightning.memory._GROUP", tmp_path)
    for name, text in (("max", "1000"), ("current", "990"), ("stat", "anon 290\ninactive_file 700\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory() == 710
