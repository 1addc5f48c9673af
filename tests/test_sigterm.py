"""SIGTERM before there is a step to save, and to all processes of a run: 143, one line, and nothing is left running."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from subprocess import run as run_program
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from conftest import Stripes
from fldd_lightning import LastCheckpoint, MixtureLatent, SaveOnSignal
from fldd_lightning.cli import main
from fldd_lightning.interrupted import Interrupted
from test_interrupted import RUNS, masks, run, same
from test_late_failures import digits, wait_for
from tiny import Pairs, trainer, with_latent

NOTHING = "Stopped by SIGTERM before the first step. Nothing was trained yet: start the run again."


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class StopsInReading(Stripes):
    def load(self) -> Any:
        stop()
        return super().load()


class StopsInFit(MixtureLatent):
    def fit(self, x: torch.Tensor, seed: int = 0) -> dict[str, float]:
        stop()
        return super().fit(x, seed)


class StopsInSetup(Callback):
    def setup(self, *_: Any, **__: Any) -> None:
        stop()


class StopsInTheEnd(Callback):
    def teardown(self, *_: Any, **__: Any) -> None:
        stop()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data", "test_sigterm.StopsInReading"], NOTHING),
        (["--trainer.callbacks+=test_sigterm.StopsInSetup"], NOTHING),
        (["--trainer.callbacks+=test_sigterm.StopsInTheEnd"], "Stopped by SIGTERM at step 2. The last checkpoint is '"),
    ],
)
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(digits(tmp_path, "--trainer.max_steps", "2", *args))
    assert ended.value.code == 143
    told = [line for line in capsys.readouterr().err.splitlines() if "SIGTERM" in line]
    assert len(told) == 1
    assert said in told[0]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_commands_say_a_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fldd_lightning.cli.main"], "_run", lambda *_: stop())
    with pytest.raises(SystemExit) as ended:
        main(["sample"])
    assert ended.value.code == 143
    assert capsys.readouterr().err.strip() == "Stopped by SIGTERM."


def test_while_a_latent_is_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted) as ended:
        trainer(tmp_path, callbacks=[SaveOnSignal()], max_steps=2).fit(with_latent(latents=StopsInFit), Pairs())
    assert ended.value.code == 143
    assert capsys.readouterr().err.strip().splitlines()[-1] == NOTHING


class StopsInStart(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        stop()


def test_a_resumed_run_goes_on_from_where_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "latent")
    before = tmp_path / "kept" / "last.ckpt"
    callbacks = [LastCheckpoint(str(tmp_path / "new")), StopsInStart(), SaveOnSignal()]
    again = trainer(tmp_path, callbacks=callbacks, max_steps=20, enable_checkpointing=True)
    with pytest.raises(Interrupted):
        again.fit(RUNS["latent"](tmp_path)[0], Pairs(batch_size=8), ckpt_path=str(before))
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"Stopped by SIGTERM at step 13. The last checkpoint is '{before}'. Go on with: ")


class Dropping:
    """Python drops what is raised while an object is deleted, as in callbacks of weak references."""

    def __del__(self) -> None:
        stop()


class StopsUnheard(Callback):
    def on_train_start(self, *_: Any) -> None:
        Dropping()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_library_drops_ends_the_run_after_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted) as ended:
        run(tmp_path, "latent", None, StopsUnheard())
    assert ended.value.code == 143
    assert "Stopped by SIGTERM at step 1; saved in '" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_signal_can_be_sent_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*_: Any) -> None:
        Dropping()
        stop()

    monkeypatch.setattr(sys.modules["fldd_lightning.cli.main"], "_run", twice)
    with pytest.raises(SystemExit) as ended:
        main(["sample"])
    assert ended.value.code == 143
    assert capsys.readouterr().err.strip() == "Stopped by SIGTERM."


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open() -> None:
    counts = []
    for _ in range(10):
        assert main(["nonsense"]) == 1
        time.sleep(0.05)
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert counts[-1] <= counts[0]


class SignalsAll(Callback):
    """Sends SIGTERM to the workers of loaders, and to this process, in a step or in a validation."""

    def __init__(self, in_validation: bool) -> None:
        self.in_validation, self.seen = in_validation, 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == 10 and not self.in_validation:
            self.send()

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.in_validation and not trainer.sanity_checking:
            self.send()

    def send(self) -> None:
        self.in_validation, workers = False, active_children()
        assert len(workers) >= 2
        for pid in (os.getpid(), *(each.pid for each in workers)):
            os.kill(int(pid or 0), signal.SIGTERM)
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("in_validation", "options"),
    [
        (False, {"accumulate_grad_batches": 3}),  # two batches more are needed
        (True, {"limit_val_batches": 1.0, "val_check_interval": 5}),
    ],
)
def test_workers_outlive_it_and_the_run_goes_on_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_validation: bool, options: dict[str, Any]
) -> None:
    whole = run(tmp_path, "workers", **options)
    with pytest.raises(Interrupted) as ended:
        run(tmp_path, "workers", None, SignalsAll(in_validation), **options)
    assert ended.value.code == 143
    path = tmp_path / "kept" / "last.ckpt"
    assert f"; saved in '{path}'" in capsys.readouterr().err.splitlines()[-1]
    assert same(whole, run(tmp_path, "workers", path, **options))


def test_workers_of_other_loaders_may_die(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.arange(9).repeat(40).view(-1, 1).expand(-1, 2) % 3
    loader = DataLoader(list(x), batch_size=8, num_workers=2, prefetch_factor=2)
    callbacks = [LastCheckpoint(str(tmp_path), 5), SaveOnSignal(), SignalsAll(False)]
    options = {"max_steps": 40, "accumulate_grad_batches": 9, "enable_checkpointing": True}
    with pytest.raises(Interrupted) as ended:
        trainer(tmp_path, callbacks=callbacks, **options).fit(masks(), loader)
    assert ended.value.code == 143
    told = [line for line in capsys.readouterr().err.splitlines() if "Stopped by" in line]
    assert told == ["Stopped by SIGTERM at step 1. There is no checkpoint to go on from: start the run again."]


# ---- in processes of their own -----------------------------------------------------------------


def group(folder: Path, *args: str) -> tuple[Popen[bytes], Path]:
    """A run in a process group of its own, and the file that its words go to."""
    folder.mkdir()
    options = ["--trainer.max_steps", "100000", "--trainer.val_check_interval", "10", "--data.num_workers", "2", *args]
    command = [sys.executable, "-m", "fldd_lightning.cli.main", *digits(folder, *options)]
    with (folder / "said").open("wb") as file:
        return Popen(command, stdout=file, stderr=STDOUT, start_new_session=True), folder / "said"


def alive(pid: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def left(pid: int) -> list[int]:
    """Those that are still there when they have had ten seconds to end."""
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive(pid)


LATENT = (
    "[{class_path: AutoencoderLatent, init_args: {size: 4, autoencoder: {class_path: MLPAutoencoder, init_args: "
    "{width: 8}}, components: 2, fit_steps: 1000000}}]"
)
TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("processes", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize("in_fit_of_latent", [False, True])
def test_the_whole_group_ends(tmp_path: Path, processes: tuple[str, ...], in_fit_of_latent: bool) -> None:
    home = tmp_path / "run"
    process, words = group(home, *processes, *(["--model.latents", LATENT] if in_fit_of_latent else []))
    if in_fit_of_latent:
        while "Fitting the AutoencoderLatent" not in words.read_text():
            assert process.poll() is None, words.read_text()
            time.sleep(0.05)
    else:
        wait_for(home, "last.ckpt", process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    told = words.read_text()
    assert "Traceback" not in told
    assert told.count("Stopped by SIGTERM") == 1
    assert (NOTHING if in_fit_of_latent else "; saved in '") in told
    assert left(process.pid) == []


def test_a_program_that_still_holds_a_loader_ends() -> None:
    """Its workers outlive one SIGTERM, and Python sends no more."""
    ended = run_program([sys.executable, str(Path(__file__).with_name("keeping.py"))], timeout=60, capture_output=True)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr.strip()) == (0, b"done", b"")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_waits_inside_of_a_library_ends(signum: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("waiting.py"))]
    with Popen(command, stdout=PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "started"
        time.sleep(1)
        process.send_signal(signum)
        assert process.wait(20) == 128 + signum
        assert process.stdout.read().strip() == f"told {int(signum)}"
        assert left(process.pid) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("wait", [1.0, 3.0, 5.0, 7.0, 9.0])
def test_two_processes_end_at_any_time_of_their_start(tmp_path: Path, wait: float) -> None:
    process, words = group(tmp_path / "run", *TWO)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert words.read_text().count("Stopped by SIGTERM") == 1
    time.sleep(1)
    assert alive(process.pid) == []
