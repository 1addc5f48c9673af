"""Notebooks: their cells run from top to bottom, and nothing that they printed is kept in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    assert cells(path)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.filterwarnings("ignore")
def test_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()) or plt.close("all"))
    space: dict[str, Any] = {}
    for number, cell in enumerate(cells(EXAMPLES / "digits.ipynb")):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
    assert len(shown) == 4
    assert torch.equal(space["completed"][:, :4], space["digits"][:4, :4].repeat(2, 1, 1))
    assert not torch.equal(space["completed"][:4, 4:], space["completed"][4:, 4:])  # two ways to go on
    assert space["states"].shape == (5, 8, 8, 8)
    assert len(space["bounds"]) == space["NUM_STEPS"]
    assert space["scores"].nelbo.mean() < 0.7 * space["noise"].nelbo.mean()
    assert space["trained"].nelbo(space["digits"]).nelbo.mean() < space["scores"].nelbo.mean()
    assert "digits " in capsys.readouterr().out
