"""An option of the command line wins over every config, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fldd_lightning.cli import main
from fldd_lightning.cli.order import files_first
from tiny import Pairs, build, fit

DIGITS = str(Path(__file__).parents[1] / "configs" / "digits.yaml")


def config_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a subcommand would run with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*args, "--print_config"])
    assert stop.value.code in (0, None)
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("config", [["--config", DIGITS], [f"--config={DIGITS}"], ["-c", DIGITS], [f"-c{DIGITS}"]])
def test_options_before_a_config_are_kept(command: str, config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.lr", "0.25", "--model.num_steps=3", "--trainer.max_steps", "7", "--model.latents", "[]"]
    before, after = (config_of([command, *args], capsys) for args in ([*options, *config], [*config, *options]))
    assert before == after
    model, trainer = before["model"]["init_args"], before["trainer"]
    assert (model["lr"], model["num_steps"], model["latents"], trainer["max_steps"]) == (0.25, 3, [], 7)


def test_of_several_configs_the_later_one_wins_and_options_over_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("trainer: {max_steps: 9, val_check_interval: 3}")
    args = ["fit", "--config", DIGITS, "--trainer.val_check_interval", "2", "--config", str(tmp_path / "own.yaml")]
    trainer = config_of(args, capsys)["trainer"]
    assert (trainer["max_steps"], trainer["val_check_interval"]) == (9, 2)


def test_options_before_a_file_of_a_section_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trainer.yaml").write_text("max_steps: 9")
    args = ["fit", "--trainer.max_steps", "7", "--trainer", str(tmp_path / "trainer.yaml"), "--config", DIGITS]
    assert config_of(args, capsys)["trainer"]["max_steps"] == 7


def test_options_before_the_config_of_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = tmp_path / "model.ckpt", tmp_path / "config.yaml"
    fit(tmp_path, build(), Pairs(batch_size=64), max_steps=1, limit_val_batches=0).save_checkpoint(path)
    config.write_text(yaml.safe_dump({"num_samples": 5, "output": str(tmp_path / "of_config")}))
    args = ["sample", "--ckpt_path", str(path), "--num_samples", "3", "--config", str(config)]
    assert main(args) == 0
    assert len(np.load(tmp_path / "of_config.npy")) == 3
    np.save(tmp_path / "x.npy", np.arange(80).reshape(40, 2) % 3)
    config.write_text(yaml.safe_dump({"draws": 2, "output": str(tmp_path / "of_config.csv")}))
    args = ["--data", "ArrayDataModule", "--data.path", str(tmp_path / "x.npy"), "--output", str(tmp_path / "own.csv")]
    assert main(["score", "--ckpt_path", str(path), *args, "--config", str(config)]) == 0
    first = (tmp_path / "own.csv").read_text().splitlines()[1]
    assert float(first.split(",")[2]) > 0  # a standard error, which takes two draws


def test_all_else_keeps_its_place() -> None:
    args = [
        "--a",
        "1",
        "--trainer.callbacks+=B",
        "--model",
        "MLP",
        "--config",
        "x.yaml",
        "stray",
        "--trainer.c=2",
        "-c",
    ]
    assert files_first(args) == [
        *("--config", "x.yaml", "--a", "1", "--trainer.callbacks+=B", "--model", "MLP"),
        *("stray", "--trainer.c=2", "-c"),
    ]
