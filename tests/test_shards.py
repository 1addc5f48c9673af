"""Several processes write what one does, each its part: samples, and the bounds of ``predict``."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from conftest import small_mlp
from fldd_lightning import (
    FLDD,
    AbsorbingProcess,
    Guided,
    LabelLatent,
    LearnedMaskProcess,
    MaskedReverse,
    MixtureLatent,
    Reinforce,
)
from fldd_lightning.cli import main
from fldd_lightning.cli.processes import Process, this_process
from fldd_lightning.data.base import _PartSampler
from fldd_lightning.errors import FLDDError
from tiny import Pairs, build, trainer

LABELLED: dict[str, Any] = {
    "latents": [partial(LabelLatent, num_labels=3, dropped=0.2), partial(MixtureLatent, size=4)],
    "forward_process": partial(LearnedMaskProcess, network=small_mlp),
    "estimator": Reinforce,
}
TIMELESS = {"forward_process": AbsorbingProcess, "reverse": partial(MaskedReverse, time_independent=True)}
GIVEN = torch.tensor([[-1, 0], [1, -1], [-1, -1]])


def environment(launcher: str, rank: int, world: int) -> dict[str, str]:
    """What a launcher tells a process."""
    if launcher == "torchrun":
        names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "a"}
    else:
        names = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": world, "SLURM_LOCALID": rank, "SLURM_NTASKS": world}
    return {name: str(value) for name, value in names.items()}


def join(file: str, folder: Path) -> None:
    """Join the files of two processes into one, by the line of the page on clusters."""
    page = Path(__file__).parents[1] / "docs" / "recipes" / "cluster.md"
    (line,) = (
        one for one in page.read_text().splitlines() if one.startswith(("python -c", "cat", "awk")) and file in one
    )
    line = line.replace("00008", "00002").replace("range(8)", "range(2)").replace("python", sys.executable, 1)
    subprocess.run(line, shell=True, cwd=folder, check=True, timeout=100)


def test_tables_are_joined_with_one_head(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"samples-{rank:05}-of-00002.csv").write_text(f"a,b\n{rank},x\n{rank},y\n")
    join("samples.csv", tmp_path)
    assert (tmp_path / "samples.csv").read_text() == "a,b\n0,x\n0,y\n1,x\n1,y\n"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {}),
        ({}, {"trajectory": True}),
        (LABELLED, {"condition": {"label": [0, 1, 2]}, "decoding": Guided(2.0)}),
        (LABELLED, {"condition": {"label": [0, 1, 2]}, "best_of": 3}),
        (LABELLED, {"best_of": 2, "trajectory": True}),
        (LABELLED, {"given": GIVEN}),
        (TIMELESS, {"num_steps": 5, "given": GIVEN}),
    ],
    ids=["plain", "states", "guided", "best of labels", "best of states", "given", "given in 5 steps"],
)
def test_shares_are_the_samples_of_one_process(options: dict[str, Any], asked: dict[str, Any]) -> None:
    model = build(**options)
    draw = partial(model.sample, 24, 3, batch_size=5, **asked)
    whole, dim = draw(), 1 if asked.get("trajectory") else 0
    for world in (2, 3, 5):
        parts = [draw(share=(rank, world)) for rank in range(world)]
        assert all(0 < part.shape[dim] < 24 for part in parts)
        assert torch.equal(torch.cat(parts, dim), whole)
    assert len(whole.unique(dim=dim)) > 1


def test_batches_have_noise_of_their_own() -> None:
    model = build(shape=(12,))
    x = model.sample(40, 0, batch_size=20)
    assert not torch.equal(x[:20], x[20:])
    assert torch.equal(x[:20], model.sample(20, 0))
    assert not any(torch.equal(x[20:], model.sample(20, seed)) for seed in range(6))


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_of_no_process_is_refused(share: tuple[int, int]) -> None:
    with pytest.raises(FLDDError, match="counted from 0"):
        build().sample(8, batch_size=2, share=share)


def test_too_few_batches_are_refused() -> None:
    with pytest.raises(FLDDError, match="set batch_size to 4 or less"):
        build().sample(8, share=(0, 2))
    with pytest.raises(FLDDError, match="3 processes cannot share 2 samples"):
        build().sample(2, share=(0, 3))


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_every_process_of_sample_writes_its_part(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["sample", "--pretrained", "text", "--num_samples", "5", "--batch_size", "2", "--prompt", "the "]
    args += ["--trajectory", "true", "--output"]
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "samples"
    assert main([*args, str(alone)]) == 0
    said = capsys.readouterr().out
    for rank in range(2):
        with monkeypatch.context() as patch:
            for name, value in environment(launcher, rank, 2).items():
                patch.setenv(name, value)
            assert main([*args, str(tmp_path / "samples.npy")]) == 0
        out = capsys.readouterr().out
        assert f"samples-{rank:05}-of-00002.npy" in out
        assert ("trained to complete" in out) == (rank == 0 and "trained to complete" in said)
    marks = [f"-{rank:05}-of-00002" for rank in range(2)]
    names = {f"samples{kind}{mark}{end}" for mark in marks for kind in ("", "_trajectory") for end in (".npy", ".txt")}
    assert {file.name for file in tmp_path.glob("samples*")} == names
    states = np.concatenate([np.load(tmp_path / f"samples_trajectory{mark}.npy") for mark in marks], 1)
    assert np.array_equal(states, np.load(f"{alone}_trajectory.npy"))
    join("samples.npy", tmp_path)
    join("samples.txt", tmp_path)
    for end in (".npy", ".txt"):
        assert (tmp_path / f"samples{end}").read_bytes() == alone.with_suffix(end).read_bytes()


def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_process() == Process(0, 1, 0)
    for name, value in environment("srun", 3, 4).items():
        monkeypatch.setenv(name, value)
    assert this_process() == Process(3, 4, 3)
    for name, value in environment("torchrun", 1, 2).items():
        monkeypatch.setenv(name, value)
    assert this_process() == Process(1, 2, 1)  # torchrun within srun
    assert this_process().device("cpu") == "cpu"


@pytest.mark.parametrize("command", ["score", "evaluate", "tokenizer"])
def test_other_commands_are_for_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment("torchrun", 1, 2).items():
        monkeypatch.setenv(name, value)
    assert main([command]) == 1
    assert capsys.readouterr().err.startswith(f"error: {command} works in one process, but 2 were started")


def test_a_job_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    assert this_process() == Process(0, 1, 0)


def test_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [Process(rank, 8, rank % 4).device("cuda") for rank in (0, 3, 6)] == ["cuda:0", "cuda:3", "cuda:2"]
    assert Process(1, 2, 1).device("cuda:0") == "cuda:0"
    assert Process(0, 1, 0).device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Process(3, 8, 3).device("cuda") == "cuda:0"  # srun shows each process its own


@pytest.mark.parametrize("length", [3, 7, 16, 20, 21])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_predict_has_whole_batches_in_order(length: int, world: int) -> None:
    parts = [list(_PartSampler(length, world, rank, 4)) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(length))
    assert all(parts)
    if length > 4 * (world - 1):
        assert all(part[0] % 4 == 0 for part in parts)


def test_predict_of_fewer_examples_than_processes_is_refused() -> None:
    with pytest.raises(FLDDError, match="3 processes cannot share 2 test examples"):
        _PartSampler(2, 3, 0, 4)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2", "ModelParallelStrategy"])
def test_strategies_that_split_weights_are_refused_first(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "--model", "FLDD", "--model.forward_process", "AbsorbingProcess", "--model.denoiser", "Transformer"]
    args += ["--data", "ArrayDataModule", "--data.path", str(tmp_path / "not_there.npy"), "--trainer.devices", "2"]
    assert main([*args, "--trainer.accelerator", "cpu", "--trainer.strategy", strategy]) == 1
    said = capsys.readouterr().err
    assert f"the strategy {strategy}" in said.replace("lightning.pytorch.strategies.", "")
    assert "use --trainer.strategy ddp" in said
    assert "not_there" not in said


class Unread(Pairs):
    def prepare_data(self) -> None:
        pytest.fail("data were read")


def test_the_trainer_refuses_them_before_data_are_read(tmp_path: Path) -> None:
    run = trainer(tmp_path, strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1), devices=1)
    with pytest.raises(FLDDError, match="the strategy ModelParallelStrategy cannot be used"):
        run.fit(build(), Unread())


def predicted(folder: Path, name: str) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = torch.load(folder / name, weights_only=True)
    return values


@pytest.mark.slow
def test_two_processes_predict_what_one_does(tmp_path: Path) -> None:
    """DDP on the CPU (gloo), from the command line: 270 digits in three batches, of which the last is not whole."""
    from fldd_lightning import DigitsDataModule, ImageFLDD

    model = FLDD.from_pretrained("digits")
    assert isinstance(model, ImageFLDD)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    data = DigitsDataModule(batch_size=100)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    args = ["predict", "--ckpt_path", str(tmp_path / "a.ckpt"), "--data", "DigitsDataModule", "--seed_everything", "3"]
    args += ["--data.batch_size", "100", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir"]
    for folder, more in (("one", []), ("two", ["--trainer.devices", "2", "--trainer.strategy", "ddp"])):
        command = [sys.executable, "-m", "fldd_lightning.cli.main", *args, str(tmp_path / folder), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    names = {"nelbo-00000-of-00002.pt", "nelbo-00001-of-00002.pt"}
    assert {file.name for file in (tmp_path / "two").glob("*.pt")} == names
    whole = predicted(tmp_path / "one", "nelbo.pt")
    join("nelbo.pt", tmp_path / "two")
    joined = predicted(tmp_path / "two", "nelbo.pt")
    assert whole["index"].tolist() == list(range(270))
    for key, values in whole.items():  # but for rounding: products of several threads may be summed in another order
        torch.testing.assert_close(
            joined[key], values, rtol=1e-5, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}"
        )
