"""Two processes learn what one does with a batch of twice the size, and go on from each other's checkpoints."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fldd_lightning.bound import SharedGenerator, permutation, uniform
from several_processes import MODELS, SaveAt, trained, weights


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        said = partial("{}: {}".format, name)
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, equal_nan=True, msg=said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """DDP on the CPU (gloo), eight steps of 16 examples; every kind of estimator and of latents that learn."""
    trained(tmp_path, "mixture", 16, callbacks=[SaveAt(tmp_path / "of_one.ckpt")])
    script = Path(__file__).with_name("several_processes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = {name: weights(trained(tmp_path, name, 16)) for name in MODELS}
    for rank in range(2):
        for name, values in alone.items():
            assert_equal(values, torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True))
        assert_equal(alone["mixture"], torch.load(tmp_path / f"resumed{rank}.pt", weights_only=True))
    assert_equal(alone["mixture"], weights(trained(tmp_path, "mixture", 16, start=tmp_path / "of_two.ckpt")))


@pytest.mark.parametrize("world", [2, 3])
def test_rows_are_those_of_the_whole_batch(world: int) -> None:
    def generator(rank: int, of: int) -> SharedGenerator:
        made = SharedGenerator("cpu")
        made.manual_seed(5)
        made.world, made.rank = of, rank
        return made

    whole = generator(0, 1)
    one, rows, (places, size) = uniform((), whole), uniform((6, 2), whole), permutation(6, whole)
    assert sorted(places.tolist()) == list(range(6)) == list(range(size))
    for rank in range(world):
        part = generator(rank, world)
        assert uniform((), part) == one
        assert torch.equal(uniform((6 // world, 2), part), rows[rank::world])
        its_places, its_size = permutation(6 // world, part)
        assert torch.equal(its_places, places[rank::world])
        assert its_size == 6
