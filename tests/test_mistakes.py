"""Mistakes in options and configs are one paragraph that says what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from fldd_lightning import MLP, AbsorbingProcess, DigitsDataModule, FLDDError, ImageFLDD
from fldd_lightning.cli import main

QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
CONFIGS = Path(__file__).parents[1] / "configs"
DIGITS = ["fit", "--config", str(CONFIGS / "digits.yaml")]
TABLE = ["fit", "--config", str(CONFIGS / "table.yaml")]


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
        (["fit", "--config", str(CONFIGS / "array.yaml")], "--data: the following arguments are required: path"),
        (["fit", "--data.path", "x.npy"], "--data: 'path' is an option of a class, and none is named. Name it first"),
        (
            [*DIGITS, "--model", "ImageFLD"],
            "--model: there is no class ImageFLD (did you mean ImageFLDD?)",
        ),
        ([*DIGITS, "--model.denoiser", "MLPP"], "--model.denoiser: "),
        ([*DIGITS, "--model.denoiser", "MLPP"], "MLPP (did you mean MLP?)"),
        ([*DIGITS, "--model.latents", "16"], "--model.latents: "),
        ([*DIGITS, "--model.num_step", "8"], "--model: Option 'num_step' is not accepted (did you mean num_steps?)"),
        (
            [*DIGITS, "--model.denoiser.widht", "8"],
            "--model.denoiser: Option 'widht' is not accepted (did you mean width?)",
        ),
        ([*DIGITS, "--trainer.mx_steps", "8"], "arguments: --trainer.mx_steps 8 (did you mean --trainer.max_steps?)"),
        ([*DIGITS, "--trainer.max_steps", "ten"], "--trainer.max_steps: expected a whole number, not ten"),
        ([*DIGITS, "--model.budgets", "8"], "--model.budgets: expected a list, not 8: write [8]"),
        (
            [*DIGITS, "--model.condition_sizes", "8"],
            "--model.condition_sizes: expected a mapping, such as {name: 1}",
        ),
        ([*DIGITS, "--model.lr", "fast"], "--model.lr: expected a number, not fast"),
        ([*DIGITS, "--trainer.callbacks", "FIDCallbak"], "there is no class FIDCallbak (did you mean FIDCallback?)"),
        ([*TABLE, "--data.leave_out", "id"], "--data.leave_out: expected a list, not id: write [id]"),
        (
            [*DIGITS, "--model.latents", "MixtureLatnt"],
            "--model.latents: there is no class MixtureLatnt (did you mean",
        ),
        ([*DIGITS, "--model.latents", "5"], "--model.latents: expected a class, not 5"),
        ([*DIGITS, "--model.denoiser", "12"], "--model.denoiser: expected a class, not 12"),
        ([*DIGITS, "--trainer.callbacks", "MLP"], "--trainer.callbacks: MLP is a class of another kind"),
        ([*DIGITS, "--model.latents", "[MixtureLatent,7]"], "--model.latents: expected a class, not 7"),
        ([*DIGITS, "--trainer.max_step=8"], "--trainer.max_step=8 (did you mean --trainer.max_steps?)"),
        ([*DIGITS, "--trainer.precision", "8"], "--trainer.precision: "),
        ([*DIGITS, "stray"], "stray"),
        ([*DIGITS, "--model", "nofile.Net"], "--model: No module named 'nofile'"),
        ([*DIGITS, "--model", "null"], "fit.model"),
        (
            [*DIGITS, "--model.forward_process.network.widht", "8"],
            "--model.forward_process.network: Option 'widht' is not",
        ),
        ([*DIGITS, "--model.forward_process.network", "MLPP"], "MLPP (did you mean MLP?)"),
        ([*DIGITS, "--trainer.logger", "CSVLoger"], "(did you mean CSVLogger?)"),
        ([*DIGITS, "--model.denoiser", "RLOO"], "--model.denoiser: RLOO is a class of another kind."),
        (["fit", "--model.help", "MLPP"], "MLPP (did you mean MLP?)"),
        (["sample", "--temperature", "0.8"], "(did you mean --decoding Ancestral --decoding.temperature?)"),
        ([*DIGITS, "--num_steps", "8"], "--num_steps 8 (did you mean --model.num_steps?)"),
        ([*DIGITS, "--max_steps", "8"], "--max_steps 8 (did you mean --trainer.max_steps?)"),
        ([*DIGITS, "--model.denoiser", "nofile.Net"], "No module named 'nofile'. "),
        (["tokenizer", "--vocab_sise", "3"], "--vocab_sise 3 (did you mean --vocab_size?)"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[-30:],
)
def test_options_are_one_line(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(args, capsys)
    assert expected in message
    assert len(message.strip().splitlines()) == 1
    assert message.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "config"),
        ("modell: {lr: 1}", "(did you mean model?)"),
        ("trainer: {mx_steps: 3}", "(did you mean trainer.max_steps?)"),
        ("trainer: {max_steps: ten}", "--trainer.max_steps: expected a whole number, not ten"),
        ("model: [1", "config"),
    ],
)
def test_configs_are_one_line(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(text)
    message = mistake(["fit", "--config", str(tmp_path / "config.yaml")], capsys)
    assert message.startswith("error: ")
    assert expected in message
    assert len(message.strip().splitlines()) == 1


def test_what_a_class_of_ones_own_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from fldd_lightning import MLP\n\nclass Net(MLP):\n"
    code += "    def __init__(self, spec, num_inputs, num_outputs, must: int): ...\n"
    (tmp_path / "lacking.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert "--model.denoiser: the following arguments are required: must" in mistake(
        [*DIGITS, "--model.denoiser", "lacking.Net"], capsys
    )


def test_examples_are_found_from_the_root_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not Path(each, "examples").is_dir()])
    for name in [each for each in sys.modules if each.partition(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    message = mistake(["fit", "--config", str(CONFIGS.parent / "examples" / "molecules" / "qm9.yaml")], capsys)
    assert "No module named 'examples'. Start in the root of the repository" in message
    assert "did you mean" not in message


def test_the_whole_report_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLDD_TRACEBACK", "1")
    assert "Does not validate against" in mistake([*DIGITS, "--model.denoiser", "MLPP"], capsys)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([*DIGITS, "--model.num_classes", "7"], "model.num_classes is given, but the data say it: leave it out."),
        ([*DIGITS, "--model.shape", "[4, 4]"], "model.shape is given, but the data say it: leave it out."),
        ([*DIGITS, "--model.padded", "true"], "model.padded is given, but the data say it: leave it out."),
        ([*DIGITS, "--model.lr", "-0.01"], "lr of ImageFLDD is -0.01, but it must be a number above 0."),
        ([*DIGITS, "--model.denoiser.width", "0"], "width of MLP is 0, but it must be a whole number, 1 or more."),
        (["test", *DIGITS[1:]], "there is no model to test: it would be an untrained one. Give --ckpt_path FILE"),
        (["predict", *DIGITS[1:]], "there is no model to predict"),
        (["validate", *DIGITS[1:]], "there is no model to validate"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:30],
)
def test_what_cannot_be_right_is_refused(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_why_a_single_callback_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own reason, and not that a list would do, too."""
    assert main([*DIGITS, "--trainer.callbacks", "FIDCallback", "--trainer.logger", "false"]) == 1
    assert "error: the Inception weights are not here" in capsys.readouterr().err


def test_several_training_loaders_are_refused(tmp_path: Path) -> None:
    data = DigitsDataModule()
    loader, held_out = data.train_dataloader(), data.val_dataloader()
    model = ImageFLDD(2, (8, 8), AbsorbingProcess, MLP)
    for loaders in ([loader, loader], {"a": loader, "b": loader}):
        trainer = Trainer(max_steps=1, default_root_dir=tmp_path, **QUIET)
        with pytest.raises(FLDDError, match="several training loaders, and a model trains on one: join their data"):
            trainer.fit(model, loaders, held_out)
