"""``fldd-lightning evaluate``: a checkpoint and data in, one JSON and one table out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    Ancestral,
    Decoding,
    DigitsDataModule,
    DiscreteDataModule,
    Guided,
    ImageFLDD,
    LabelLatent,
    MaskedReverse,
    TextDataModule,
    TextFLDD,
)
from fldd_lightning.cli import main
from fldd_lightning.sampling import num_passes
from tiny import build, fit, small_mlp, trainer


def saved(model: FLDD, data: DiscreteDataModule, folder: Path) -> str:
    """A checkpoint of one step, trained from Python."""
    fit(folder, model, data, max_steps=1, limit_val_batches=0).save_checkpoint(folder / "made.ckpt")
    return str(folder / "made.ckpt")


def test_images_are_judged_at_every_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ImageFLDD(
        2, (8, 8), AbsorbingProcess, small_mlp, reverse=partial(MaskedReverse, time_independent=True), num_steps=4
    )
    args = ["evaluate", "--ckpt_path", saved(model, DigitsDataModule(), tmp_path), "--data", "DigitsDataModule"]
    args += ["--output", str(tmp_path / "there"), "--num_steps", "[2,4]", "--seed", "3"]
    capsys.readouterr()
    assert main([*args, "--num_samples", "70"]) == 0
    page = (tmp_path / "there" / "evaluation.md").read_text()
    assert page in capsys.readouterr().out
    found = json.loads((tmp_path / "there" / "evaluation.json").read_text())
    assert (found["seed"], found["optimiser_steps"], found["examples"]) == (3, 1, 270)
    assert {"python", "torch", "lightning", "fldd-lightning"} <= found["versions"].keys()
    assert [result["nfe"] for result in found["results"]] == [2, 4]
    for result in found["results"]:
        values, steps = result["values"], result["num_steps"]
        assert values["nelbo"] == pytest.approx(sum(values[f"kl_t{t}"] for t in range(1, steps + 1)), rel=1e-4)
        assert values["nelbo_se"] > 0
        assert values[f"frechet_pixels_T{steps}"] > 0
        assert result["samples"][0]["num_samples"] == 70
        assert result["seconds"] > 0
    assert "| | T = 2 | T = 4 |" in page
    first = [line.split(" | ")[0] for line in page.splitlines()].index("| kl_t1")
    parts = page.splitlines()[first : first + 4]
    assert [line.split(" | ")[0] for line in parts] == [f"| kl_t{t}" for t in range(1, 5)]
    row = next(line for line in page.splitlines() if line.startswith("| nelbo |"))
    assert row.split("|")[3].strip() == f"{found['results'][1]['values']['nelbo']:.4f}"
    assert next(line for line in page.splitlines() if line.startswith("| kl_t3 |")).split("|")[2].strip() == ""

    tested = tmp_path / "again"
    callbacks = [
        "--callbacks",
        "FIDCallback",
        "--callbacks.extractor",
        "PixelFeatures",
        "--callbacks.num_samples",
        "65",
    ]
    assert main([*args, "--output", str(tested), "--num_steps", "[4]", *callbacks]) == 0
    again = json.loads((tested / "evaluation.json").read_text())["results"][0]
    assert [facts["num_samples"] for facts in again["samples"]] == [65]
    assert again["values"]["nelbo"] == found["results"][1]["values"]["nelbo"]

    assert main(args) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([*args, "--output", str(tmp_path / "none"), "--num_steps", "[4,0]"]) == 1
    assert not list((tmp_path / "none").glob("*"))
    bare = ["--output", str(tmp_path / "bare"), "--num_steps", "[4]", "--callbacks", "[]"]
    assert main([*args, *bare]) == 0
    assert json.loads((tmp_path / "bare" / "evaluation.json").read_text())["results"][0]["samples"] == []


def test_text_is_judged(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("".join("abcd"[: 1 + i % 4] + "\n" for i in range(60)))
    options = {"path": str(tmp_path / "my.txt"), "length": 6, "padded": True, "test_fraction": 0.3}
    data = TextDataModule(**options)
    model = TextFLDD(data.num_classes, data.shape, AbsorbingProcess, small_mlp, num_steps=2, padded=True)
    args = ["evaluate", "--ckpt_path", saved(model, data, tmp_path), "--data", "TextDataModule"]
    args += [word for name, value in options.items() for word in (f"--data.{name}", str(value).lower())]
    assert main([*args, "--output", str(tmp_path / "there"), "--num_samples", "20"]) == 0
    values = json.loads((tmp_path / "there" / "evaluation.json").read_text())["results"][0]["values"]
    assert {"nelbo", "bits_per_token", "gen_ppl_5gram_T2", "entropy_data"} <= values.keys()
    (tested,) = trainer(tmp_path).test(model, data, verbose=False)
    assert values["bits_per_token"] == pytest.approx(tested["test/bits_per_token"], rel=0.2)


def test_a_fixed_budget_and_missing_data_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ImageFLDD(2, (8, 8), AbsorbingProcess, small_mlp, num_steps=2)
    args = ["evaluate", "--ckpt_path", saved(model, DigitsDataModule(), tmp_path), "--output", str(tmp_path / "there")]
    assert main(args) == 1
    assert "does not name its data: add --data CLASS" in capsys.readouterr().err
    for judges in (["--callbacks", "[]"], ["--callbacks", "FIDCallback", "--callbacks.extractor", "PixelFeatures"]):
        assert main([*args, "--data", "DigitsDataModule", *judges, "--num_samples", "7"]) == 1
        assert "--num_samples is for the callbacks that are chosen for you" in capsys.readouterr().err
    assert main([*args, "--data", "DigitsDataModule", "--num_samples", "0"]) == 1
    assert "num_samples is 0" in capsys.readouterr().err
    assert main([*args, "--data", "DigitsDataModule", "--num_steps", "[2,8]"]) == 1
    assert "trained with T=2" in capsys.readouterr().err
    assert main([*args, "--data", "DigitsDataModule", "--data.binary", "false"]) == 1
    assert "must lie in 0..1" in capsys.readouterr().err
    assert not list((tmp_path / "there").glob("*"))


@pytest.mark.parametrize(
    ("decoding", "best_of", "passes"), [(None, 1, 4), (Guided(2.0), 1, 8), (None, 3, 60), (Guided(2.0), 3, 72)]
)
def test_passes_are_counted(decoding: Decoding | None, best_of: int, passes: int) -> None:
    """What is said of them is how often the denoiser is called, for samples in one batch."""
    label = partial(LabelLatent, num_labels=3, dropped=0.1)
    model = build(num_steps=4, latents=label)
    calls = []
    model.reverse.network.register_forward_hook(lambda *_: calls.append(1))
    model.sample(2, decoding=decoding, best_of=best_of)
    assert len(calls) == num_passes(4, decoding or Ancestral(), best_of) == passes
