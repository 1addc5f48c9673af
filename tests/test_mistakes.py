"""Mistakes in options and configs are one paragraph that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from conftest import image_model
from fldd_lightning.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
DIGITS = ["fit", "--config", str(CONFIGS / "digits.yaml")]


def mistake(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """All that is printed on the standard error."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fit"], "Give --config FILE, such as configs/digits.yaml"),
        (["test"], "Give --ckpt_path FILE"),
        (["fit", "--config", "no.yaml"], "--config: File does not exist"),
        (["fit", "--config", str(CONFIGS / "array.yaml")], "give --data.path"),
        ([*DIGITS, "--model", "ImageFLD"], "--model: there is no class 'ImageFLD' (did you mean ImageFLDD?)"),
        ([*DIGITS, "--model.denoiser", "MLPP"], "--model.denoiser: there is no class 'MLPP' (did you mean MLP?)"),
        ([*DIGITS, "--model.code", "16"], "--model.code: there is no class '16'. Give the name"),
        ([*DIGITS, "--model.num_step", "8"], "ImageFLDD has no option 'num_step' (did you mean num_steps?)"),
        ([*DIGITS, "--model.denoiser.widht", "8"], "MLP has no option 'widht' (did you mean width?)"),
        ([*DIGITS, "--trainer.mx_steps", "8"], "no option --trainer.mx_steps (did you mean --trainer.max_steps?)"),
        ([*DIGITS, "--trainer.max_steps", "ten"], "--trainer.max_steps: Expected a <class 'int'>. Got value: ten"),
        (["sample", "--num_samples", "3"], "give --ckpt_path"),
        (["features", "--data", "MNISTDataModul", "--output", "c.pt"], "(did you mean MNISTDataModule?)"),
        (["tokenizer", "--vocab_sise", "3"], "no option --vocab_sise (did you mean --vocab_size?)"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[-30:],
)
def test_options_are_one_line(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(args, capsys)
    assert expected in message
    assert len(message.strip().splitlines()) == 1
    assert message.startswith("error: ")


def test_a_checkpoint_without_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(
        max_steps=1, logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu"
    )
    trainer.fit(image_model(2), DataLoader([torch.zeros(4, 4, dtype=torch.long)]))
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    message = mistake(["test", "--ckpt_path", str(tmp_path / "model.ckpt")], capsys)
    assert "neither checkpoint nor config says which data to take. Give --data CLASS" in message
