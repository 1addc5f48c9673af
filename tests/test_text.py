"""The text module: lengths, bounds per token, decoding, checkpoints that know their tokenizer."""

from __future__ import annotations

import json
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from conftest import randomise, small_mlp
from fldd_lightning import FLDDError, TextFLDD
from fldd_lightning.bound import nelbo
from fldd_lightning.callbacks import Texts
from fldd_lightning.checkpoint import load_model
from fldd_lightning.cli import main
from fldd_lightning.data import CharacterTokenizer, TextDataModule
from fldd_lightning.data.corpus import embedded_corpus
from fldd_lightning.estimators import RLOO
from fldd_lightning.forward import LearnedMaskProcess, ResidualUniformProcess
from fldd_lightning.metrics import TokenBound
from fldd_lightning.networks import Transformer

CONFIG = Path(__file__).parents[1] / "configs" / "text.yaml"
WORDS = ["a bee", "bee", "ace", "a", "cab", "dab a bee", "bead", "face", "a fab cab", "deaf"]
tiny = partial(Transformer, width=16, depth=1, heads=2, time_width=8)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS * 30))
    return path


def data_of(path: Path, **options: Any) -> TextDataModule:
    return TextDataModule(str(path), **{"length": 8, "cache_dir": None, "batch_size": 16, "padded": True, **options})


def model_of(data: TextDataModule, process: Any = LearnedMaskProcess, network: Any = tiny, **options: Any) -> TextFLDD:
    torch.manual_seed(0)
    process = partial(process, network=network)
    options = {"num_steps": 2, "padded": data.padded, "freeze_steps": 0, **options}
    return TextFLDD(data.num_classes, data.shape, process, network, RLOO, **options)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_steps": 4}
    return Trainer(accelerator="cpu", default_root_dir=str(folder), callbacks=list(callbacks), **{**quiet, **options})


@pytest.mark.slow
@pytest.mark.parametrize("process", [LearnedMaskProcess, ResidualUniformProcess])
def test_padded_lines_are_learned(corpus: Path, tmp_path: Path, process: Any) -> None:
    data = data_of(corpus)
    model = model_of(data, process, lr=1e-2)
    torch.testing.assert_close(model.latents[0].log_prior[1:].exp(), torch.full((8,), 1 / 8))  # none counted yet
    start = trainer(tmp_path).validate(model, data, verbose=False)[0]["val/bits_per_token"]
    run = trainer(tmp_path, max_steps=200)
    run.fit(model, data)
    logged = run.validate(model, data, verbose=False)[0]
    x = data.splits["val"].x
    n = (x != model.spec.pad).sum(1)
    counts = (data.splits["train"].x != model.spec.pad).sum(1).bincount(minlength=9).double() + 1
    expected = -(counts / counts[1:].sum()).log()[n].mean()
    assert logged["val/kl_length"] == pytest.approx(float(expected), rel=1e-5)
    kl = sum(logged[f"val/kl_t{t}"] for t in (1, 2))
    assert logged["val/nelbo"] == pytest.approx(kl + float(expected), rel=1e-5)
    per_token = logged["val/nelbo"] * len(x) / float(n.sum())
    assert logged["val/bits_per_token"] == pytest.approx(per_token / log(2), rel=1e-5)
    assert logged["val/bits_per_char"] == pytest.approx(per_token / log(2), rel=1e-5)
    assert logged["val/ppl_bound"] == pytest.approx(np.exp(per_token), rel=1e-4)
    assert logged["val/bits_per_token"] < 0.95 * start
    samples = model.sample(400)
    lengths = model.lengths(samples)
    assert lengths.min() >= 1
    frequencies = lengths.bincount(minlength=9) / 400
    target = (counts / counts[1:].sum())[: len(frequencies)]
    target[0] = 0
    assert (frequencies - target).abs().max() < 4 * 0.5 / 400**0.5
    assert all(len(text) == length for text, length in zip(model.texts(samples), lengths, strict=True))


def test_padding_has_no_part_in_the_training_loss(corpus: Path) -> None:
    """Whatever the forward network does to PAD: parameters of its embedding alone change no loss."""
    data = data_of(corpus)
    model = model_of(data, network=small_mlp)
    randomise(model, 0.3)
    full = torch.randint(data.num_classes - 1, (6, 8))
    short = full.clone()
    short[:, 4:] = data.num_classes - 1
    noise = torch.rand(6, 2, 8, dtype=torch.float64)
    kl_full, kl_short = (model.nelbo_terms(x, noise).kl for x in (full, short))
    assert (kl_short.sum(1) < kl_full.sum(1)).all()
    only_pad = torch.full_like(full, data.num_classes - 1)
    with pytest.raises(FLDDError, match="no token but PAD"):
        model.nelbo_terms(only_pad, noise)
    assert nelbo(model.forward_process, model.reverse, (), only_pad, only_pad, noise).kl.abs().max() < 1e-5


def test_token_bound_divides_sums() -> None:
    metric = TokenBound()
    metric.update(torch.tensor([2.0, 4.0]), torch.tensor([1, 3]), 8)
    metric.update(torch.tensor([6.0]), torch.tensor([8]), 10)
    values = metric.compute()
    assert float(values["bits_per_token"]) == pytest.approx(1 / log(2))
    assert float(values["bits_per_char"]) == pytest.approx(12 / 18 / log(2))
    assert float(values["ppl_bound"]) == pytest.approx(np.e)
    metric.reset()
    metric.update(torch.tensor([2.0]), torch.tensor([1]), 0)
    assert "bits_per_char" not in metric.compute()


def test_texts_show_masks_and_leave_padding_out(corpus: Path) -> None:
    model = model_of(data_of(corpus))
    model.tokenizer = CharacterTokenizer(" abcdef")
    pad, mask = 7, 8
    assert model.texts(torch.tensor([[1, mask, 2, mask, 0, 3, pad, pad]])) == ["a·b· c"]
    noise = torch.rand(1, 2, 8, dtype=torch.float64)
    assert model.nelbo_terms(torch.tensor([[1, 2, 3, 3, 3, 3, 3, pad]]), noise).nelbo.isfinite()
    with pytest.raises(FLDDError, match="PAD stands before"):
        model.nelbo_terms(torch.tensor([[1, pad, 2, 3, 3, 3, 3, 3]]), noise)
    model.tokenizer = None
    with pytest.raises(FLDDError, match="no tokenizer"):
        model.texts(torch.zeros(1, 8, dtype=torch.long))
    lengths = model.lengths(model.sample(400))  # all of them alike, as none was counted
    assert lengths.unique().tolist() == list(range(1, 9))
    assert (lengths.bincount()[1:] / 400 - 1 / 8).abs().max() < 4 * (1 / 8 * 7 / 8 / 400) ** 0.5
    with pytest.raises(FLDDError, match="needs sequences"):
        TextFLDD(3, (2, 2), partial(LearnedMaskProcess, network=small_mlp), small_mlp, RLOO)


def test_blocks_in_bfloat16_and_texts(corpus: Path, tmp_path: Path) -> None:
    data = data_of(corpus, padded=False)
    model = model_of(data)
    run = trainer(tmp_path, Texts(num_samples=5, num_rows=2), precision="bf16-mixed", val_check_interval=4)
    run.fit(model, data)
    assert torch.isfinite(run.callback_metrics["train/nelbo"])
    assert "val/kl_length" not in run.callback_metrics
    (path,) = (tmp_path / "texts").glob("samples_step*.txt")
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    assert [line.replace("\\n", "\n") for line in lines] == model.texts(model.sample(5))
    states = (tmp_path / "texts" / "trajectory.txt").read_text().splitlines()
    assert len(states) == 2 * 3
    assert states[0] == "·" * 8
    assert "·" not in states[2]


def test_texts_are_of_the_averaged_weights(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    to_text = TextFLDD.to_text

    def remember(module: TextFLDD, x: torch.Tensor) -> list[str] | None:
        shown.append(torch.cat([p.detach().flatten().clone() for p in module.parameters()]))
        return to_text(module, x)

    monkeypatch.setattr(TextFLDD, "to_text", remember)
    data = data_of(corpus)
    trainer(tmp_path, Texts(num_rows=1), val_check_interval=2, enable_checkpointing=False).fit(model_of(data), data)
    assert len(shown) == 3  # two validations and the end of the run, which has the averaged weights
    assert torch.equal(shown[1], shown[2])
    assert not torch.equal(shown[0], shown[2])


def test_checkpoints_know_their_tokenizer_and_lengths(corpus: Path, tmp_path: Path) -> None:
    data = data_of(corpus)
    model = model_of(data)
    run = trainer(tmp_path)
    run.fit(model, data)
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    again = load_model(str(path))
    assert isinstance(again, TextFLDD)
    assert torch.equal(again.sample(5), model.eval().sample(5))
    assert again.texts(again.sample(5)) == model.texts(model.sample(5))
    trainer(tmp_path).test(model_of(data), data, ckpt_path=str(path), verbose=False, weights_only=True)
    other = data_of(corpus, alphabet="abcdefg")
    (tmp_path / "g.txt").write_text("\n".join(["gag", "a", "bad", "feed", "cafe"] * 30))
    other = data_of(tmp_path / "g.txt")
    assert other.num_classes == data.num_classes
    with pytest.raises(FLDDError, match=r"does not match the checkpoint: 7 characters .* against 7 characters"):
        trainer(tmp_path).test(model_of(other), other, ckpt_path=str(path), verbose=False, weights_only=True)
    with pytest.raises(FLDDError, match=r"data\.padded is False"):
        trainer(tmp_path).test(model_of(data), data_of(corpus, padded=False), verbose=False)


@pytest.mark.slow
def test_the_config_runs_anywhere(tmp_path: Path) -> None:
    """As it stands, on the corpus that Python carries, but for the number of steps."""
    common = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    args = ["fit", "--config", str(CONFIG), "--data.cache_dir", str(tmp_path / "cache"), *common]
    args += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "2"]
    assert main([*args, "--trainer.enable_progress_bar", "false"]) == 0
    (path,) = tmp_path.rglob("final.ckpt")
    args = ["test", "--ckpt_path", str(path), *common, "--trainer.limit_test_batches", "2"]
    args += ["--trainer.callbacks+=fldd_lightning.callbacks.PerplexityCallback"]
    assert main([*args, "--trainer.callbacks.num_samples", "200"]) == 0
    facts = json.loads((tmp_path / "sample_quality.jsonl").read_text().splitlines()[-1])
    assert facts["corpus"] == embedded_corpus().what
    assert (facts["dtype"], facts["precision"], facts["num_steps"]) == ("float32", "32-true", 4)


def test_a_mistake_that_a_worker_finds_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(["abba"] * 50 + ["abc"]))
    args = ["fit", "--config", str(CONFIG), "--data.path", str(tmp_path / "corpus.txt"), "--data.streaming", "true"]
    args += ["--data.alphabet", "ab", "--data.padded", "true", "--data.held_out", "5", "--data.num_workers", "1"]
    args += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    args += ["--trainer.max_steps", "4", "--trainer.val_check_interval", "4", "--trainer.callbacks", "[]"]
    assert main(args) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: the character 'c' (in 'abc')")


def test_command_line(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--config", str(CONFIG), "--data.path", str(corpus), "--data.padded", "true", "--data.length", "9"]
    args += ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.default_root_dir", str(tmp_path)]
    args += ["--trainer.max_steps", "4", "--trainer.val_check_interval", "4", "--trainer.accelerator", "cpu"]
    args += ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert main([*args, "--trainer.callbacks", "[]"]) == 0
    path = str(next(tmp_path.rglob("*.ckpt")))
    args = ["sample", "--ckpt_path", path, "--num_samples", "6", "--trajectory", "true"]
    assert main([*args, "--output", str(tmp_path / "s")]) == 0
    lines = (tmp_path / "s.txt").read_text().splitlines()
    assert len(lines) == 6
    assert not list(tmp_path.glob("s*.png"))
    x = np.load(tmp_path / "s.npy")
    assert [len(line) for line in lines] == [(row != 7).sum() for row in x]
    assert len((tmp_path / "s_trajectory.txt").read_text().splitlines()) == 6 * 5
    args = ["test", "--ckpt_path", path, "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    capsys.readouterr()
    assert main([*args, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert "test/bits_per_char" in capsys.readouterr().out
    (tmp_path / "g.txt").write_text("\n".join(["gag", "a", "bad", "feed", "cafe"] * 30))
    assert main([*args, "--data.path", str(tmp_path / "g.txt")]) == 1
    assert "does not match the checkpoint" in capsys.readouterr().err
