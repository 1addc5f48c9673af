"""No checkpoint is destroyed by writing its successor, and a damaged one is refused with the name of a good one."""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from fldd_lightning import FLDDError, LastCheckpoint, load_model
from fldd_lightning.checkpoint_file import WholeCheckpointIO, is_damaged
from fldd_lightning.cli import main
from fldd_lightning.files import replacing
from tiny import Pairs, build, fit, trainer


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, name: str = "model.ckpt", **options: Any) -> Path:
    """A checkpoint of a run of one step."""
    run = fit(folder, build(), Pairs(batch_size=64), max_steps=1, limit_val_batches=0, **options)
    run.save_checkpoint(folder / name, weights_only=False)
    return folder / name


def limited(monkeypatch: pytest.MonkeyPatch, after: int, then: Callable[[], object]) -> None:
    """Let something happen when so many bytes of a file have been written."""

    class Limited(io.FileIO):
        def write(self, data: Any) -> int:
            left = after - self.tell()
            if left < len(data):
                super().write(data[: max(0, left)])
                then()
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda self, mode="r", *_: Limited(self, mode.replace("b", "")))


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("how", [None, signal.SIGKILL])
@pytest.mark.parametrize("after", [0, 3_000, None])
def test_a_process_that_is_killed_while_it_writes(
    how: int | None, after: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.ckpt"
    WholeCheckpointIO().save_checkpoint({"n": torch.zeros(10_000)}, path)
    child = os.fork()
    if child == 0:
        end = partial(os._exit, 3) if how is None else partial(os.kill, os.getpid(), how)
        try:
            if after is None:  # all is written, and not yet on the disk
                monkeypatch.setattr(os, "fsync", lambda _: end())
            else:
                limited(monkeypatch, after, end)
            WholeCheckpointIO().save_checkpoint({"n": torch.ones(10_000)}, path)
        finally:
            os._exit(0)  # not reached
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (3 if how is None else -how)
    assert len(files(tmp_path)) == 2  # what it had begun is left over
    assert bool((torch.load(path, weights_only=True)["n"] == 0).all())
    WholeCheckpointIO().save_checkpoint({"n": torch.ones(3)}, tmp_path / "other.ckpt")
    assert files(tmp_path) == ["model.ckpt", "other.ckpt"]


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first:
        first.write(b"a")
        with replacing(tmp_path / "b") as second:
            second.write(b"b")
        assert files(tmp_path)[1:] == ["b"]
    assert files(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("after", [0, 100, 5_000])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    assert len(before) > 5_000
    checkpoint = torch.load(path, weights_only=True)
    with monkeypatch.context() as patch:
        limited(patch, after, full)
        with pytest.raises(FLDDError, match=r"model.ckpt': No space left on device\. Those"):
            WholeCheckpointIO().save_checkpoint(checkpoint, path)
    assert files(tmp_path) == ["model.ckpt"]
    assert path.read_bytes() == before


def test_a_full_disk_in_a_run_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(__file__).parents[1] / "configs" / "digits.yaml"
    args = ["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path), "--model.latents", "[]"]
    args += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1"]

    monkeypatch.setattr(torch, "save", lambda *_: full())
    assert main([*args, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "cannot write the checkpoint" in message
    assert "No space left on device" in message
    (folder,) = tmp_path.rglob("checkpoints")
    assert files(folder) == []


def test_who_writes_checkpoints(tmp_path: Path) -> None:
    """All trainers of a model, but for those that were given a plugin."""
    run = trainer(tmp_path)
    run.test(build(), Pairs(), verbose=False)
    assert type(run.strategy.checkpoint_io) is WholeCheckpointIO

    class Own(TorchCheckpointIO):
        pass

    for plugin in (Own(), AsyncCheckpointIO()):
        other = trainer(tmp_path, plugins=[plugin])
        other.test(build(), Pairs(), verbose=False)
        assert other.strategy.checkpoint_io is plugin


def test_a_run_writes_and_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"enable_checkpointing": True, "limit_val_batches": 0}
    folder = tmp_path / "checkpoints"
    callbacks = [LastCheckpoint(str(folder), 1), ModelCheckpoint(folder, "{step}", every_n_train_steps=1)]
    fit(tmp_path, build(), Pairs(batch_size=16), max_steps=3, callbacks=callbacks, **options)
    assert files(folder) == ["last.ckpt", "step=3.ckpt"]
    assert (folder / "last.ckpt").stat().st_mode & 0o777 == 0o666 & ~_umask()
    (folder / ".last.ckpt.0123abcd.fldd-part").write_bytes(b"of a process that was killed")
    run = fit(tmp_path, build(), Pairs(batch_size=16), str(folder / "last.ckpt"), max_steps=4)
    assert run.global_step == 4
    assert files(folder) == ["last.ckpt", "step=3.ckpt"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_resuming_from_a_damaged_file_names_a_good_one(tmp_path: Path) -> None:
    good, newer, bad = (saved(tmp_path, name) for name in ("good.ckpt", "newer.ckpt", "bad.ckpt"))
    whole = bad.read_bytes()
    for path, seconds in ((good, 100), (newer, 200)):
        os.utime(path, (seconds, seconds))
    weights = max(torch.load(bad, weights_only=True)["state_dict"].values(), key=torch.numel)
    middle = whole.index(weights.numpy().tobytes()) + 10  # within a tensor: between two there are bytes of no meaning
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    newer.write_bytes(whole[:5_000])  # not to be named
    os.utime(newer, (200, 200))
    for content in (whole[:-100], whole[:3_000], flipped, b""):
        bad.write_bytes(content)
        assert is_damaged(bad) == bool(content)
        with pytest.raises(FLDDError, match=rf"bad.ckpt' is damaged.*newest good one in its folder is '{good}'"):
            fit(tmp_path, build(), Pairs(), str(bad), max_steps=2)
    for size in (10, 3_000, 5_000, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        with pytest.raises(FLDDError, match=rf"bad.ckpt' is damaged.*'{good}'"):
            load_model(bad)
    good.unlink()
    with pytest.raises(FLDDError, match="There is no good one in its folder"):
        load_model(bad)


def test_on_the_command_line_it_is_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = saved(tmp_path, "good.ckpt"), saved(tmp_path, "last.ckpt")
    bad.write_bytes(bad.read_bytes()[:4_000])
    config = str(Path(__file__).parents[1] / "configs" / "digits.yaml")
    for args in (["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path)], ["sample"]):
        capsys.readouterr()
        assert main([*args, "--ckpt_path", str(bad)]) == 1
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith(f"error: '{bad}' is damaged")
        assert str(good) in message


def test_a_trainer_without_our_model_is_left_alone(tmp_path: Path) -> None:
    assert type(Trainer(accelerator="cpu", logger=False).strategy.checkpoint_io) is TorchCheckpointIO
