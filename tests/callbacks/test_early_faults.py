"""What a judge, an extractor or a way to sample would fail at in a validation ends ``fit`` before its first step."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from fldd_lightning import FLDDError
from fldd_lightning.callbacks import perplexity
from fldd_lightning.cli import main
from fldd_lightning.metrics import FeatureExtractor, Judge, Judgement
from test_late_failures import digits
from test_text import CONFIG, WORDS

PERPLEXITY = ["--trainer.callbacks+=PerplexityCallback", "--trainer.callbacks.num_samples", "4"]
FID = ["--trainer.callbacks+=FIDCallback", "--trainer.callbacks.num_samples", "4"]
INCEPTION = [*FID, "--trainer.callbacks.extractor", "InceptionFeatures", "--trainer.callbacks.extractor.weights_path"]


class Steps(Callback):
    taken = 0

    def on_train_batch_start(self, *_: Any) -> None:
        type(self).taken += 1


class Unread(Judge):
    """Learns from a file that is not there."""

    name = "unread"

    def prepare(self, texts: Any, alphabet: str | None) -> None:
        raise FLDDError("there is no table of counts")

    def forward(self, texts: Any) -> Judgement:
        raise AssertionError


class French(Judge):
    """Knows none of the characters."""

    name = "french"

    def forward(self, texts: Any) -> Judgement:
        tokens = torch.tensor([len(text) for text in texts])
        return Judgement(tokens.double(), tokens, tokens, tokens)


class Three(FeatureExtractor):
    name = "three"

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        raise FLDDError(f"3 channels, not {pictures.shape[1]}")


def texts(folder: Path, *args: str) -> list[str]:
    """The command that trains a small model of texts."""
    (folder / "words.txt").write_text("\n".join(WORDS * 30))
    small = ["--data.path", str(folder / "words.txt"), "--data.padded", "true", "--data.length", "9"]
    small += ["--data.cache_dir", str(folder / "cache"), "--trainer.default_root_dir", str(folder)]
    small += ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.max_steps", "2"]
    small += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    return ["fit", "--config", str(CONFIG), *small, "--trainer.callbacks+=test_early_faults.Steps", *args]


def ends_early(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Steps.taken = 0
    status: Any
    try:
        status = main(args)
    except SystemExit as ended:
        status = ended.code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status in (1, 2)
    assert len(errors) == 1, errors
    assert said in errors[0]
    assert Steps.taken == 0


def test_without_a_fault_steps_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Steps.taken = 0
    assert main(texts(tmp_path, *PERPLEXITY)) == 0, capsys.readouterr().err
    assert Steps.taken == 2


def judged_by(folder: Path) -> list[str]:
    return [*PERPLEXITY, "--trainer.callbacks.judge", "CausalLMJudge", "--trainer.callbacks.judge.source", str(folder)]


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "cannot load the judge"),
        (without_weights, "cannot load the judge"),
        (cut, "cannot load the judge"),
        (without_tokenizer, "makes no tokens of real texts"),
    ],
)
def test_language_models_that_cannot_be_read(
    tmp_path: Path, lm: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], said: str
) -> None:
    copy = tmp_path / "lm"
    shutil.copytree(lm, copy)
    spoil(copy)
    ends_early(texts(tmp_path, *judged_by(copy)), said, capsys)


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("test_early_faults.Unread", "there is no table of counts"),
        ("test_early_faults.French", "is of another vocabulary: 100 % of the tokens of real texts"),
    ],
)
def test_judges_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], judge: str, said: str) -> None:
    ends_early(texts(tmp_path, *PERPLEXITY, "--trainer.callbacks.judge", judge), said, capsys)


def test_judges_without_features_for_mauve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mauve", type(sys)("mauve"))
    args = texts(tmp_path, *PERPLEXITY, "--trainer.callbacks.mauve", "true")
    ends_early(args, "NGramJudge has no features for MAUVE", capsys)


def test_libraries_that_are_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    args = texts(tmp_path, *PERPLEXITY, "--trainer.callbacks.mauve", "true")
    ends_early(args, 'pip install "fldd-lightning[mauve]"', capsys)
    monkeypatch.setattr(perplexity, "find_spec", lambda name: None)
    ends_early(texts(tmp_path, *PERPLEXITY), 'pip install "fldd-lightning[text]"', capsys)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*FID, "--trainer.callbacks.extractor", "test_early_faults.Three"], "3 channels, not 1"),
        ([*INCEPTION, "nowhere.pth"], "no Inception weights at 'nowhere.pth'"),
        ([*INCEPTION, __file__], "cannot load the Inception weights"),
        (
            [*FID, "--trainer.callbacks.extractor", "PixelFeatures", "--trainer.callbacks.decoding", "ConfidentFirst"],
            "ConfidentFirst needs masked diffusion",
        ),
    ],
)
def test_extractors_and_ways_to_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    steps = "--trainer.callbacks+=test_early_faults.Steps"
    ends_early(digits(tmp_path, "--trainer.max_steps", "2", steps, *args), said, capsys)
