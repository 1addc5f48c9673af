"""Curves keep few points, whatever the length of a run, and come back from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from fldd_lightning.callbacks.history import Curve, History


def test_long_curves_are_means_over_equal_blocks() -> None:
    curve = Curve(num_points=4)
    for step in range(1, 31):
        curve.add(step, 10.0 * step)
        assert len(curve.points) < 8
    assert curve.length == 4
    assert curve.all_points == [(2.5 + 4 * i, 25.0 + 40 * i) for i in range(7)] + [(29.5, 295.0)]


def test_values_are_fetched_late_and_none_is_lost() -> None:
    history = History()
    for step in range(60):
        history.add(step, {"a": torch.tensor(float(step))} | ({"b": torch.tensor([2.0])} if step % 7 == 0 else {}))
    assert history.points("a") == [(step, float(step)) for step in range(60)]
    assert [step for step, _ in history.points("b")] == list(range(0, 60, 7))
    assert history.last("a") == 59.0
    assert history.last("c") is None
    assert history.names() == ["a", "b"]


@pytest.mark.parametrize("num_steps", [10, 5000])
def test_a_history_goes_through_a_checkpoint(num_steps: int) -> None:
    history = History()
    for step in range(num_steps):
        history.add(step, {"a": torch.tensor(float(step))})
    other = History()
    other.load(history.state())
    assert other.points("a") == history.points("a")
    assert other.curves["a"].length == history.curves["a"].length
    assert len(history.points("a")) <= 601
