"""Benchmarks are run by hand and rarely: here they are at least imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = [file.stem for file in FOLDER.glob("*.py")]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_benchmark_uses_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    module = importlib.import_module(name)
    if hasattr(module, "main"):
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 0


def test_runs_that_have_a_row_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    run_missing = importlib.import_module("common").run_missing
    path, calls = tmp_path / "rows.csv", []

    def run(seed: int, steps: int) -> dict[str, object]:
        calls.append((seed, steps))
        if calls == [(0, 5), (1, 5)]:
            raise KeyboardInterrupt
        return {"seed": seed, "steps": steps, "gap": 0.5}

    keys = [{"seed": seed, "steps": 5} for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run_missing(path, keys, run)
    run_missing(path, [*keys, {"seed": 0, "steps": 6}], run)
    assert calls == [(0, 5), (1, 5), (1, 5), (2, 5), (0, 6)]
    assert path.read_text().splitlines() == ["seed,steps,gap", "0,5,0.5", "1,5,0.5", "2,5,0.5", "0,6,0.5"]
