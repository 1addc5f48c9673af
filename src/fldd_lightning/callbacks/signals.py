"""SIGTERM, Ctrl-C and SLURM's requeue signal: no step that was done is lost by them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ..interrupted import BEFORE, NAMES, NOTHING, Interrupted, no_word_of_children, takes_signals
from .checkpoints import LastCheckpoint
from .run import in_training, shown

__all__ = ["SaveOnSignal"]

_PATIENCE = 2  # seconds
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class SaveOnSignal(Callback):
    """Ends a run on SIGTERM or Ctrl-C after the step at hand: writes ``last.ckpt``, and says how to go on from it.

    The exit status is 143 or 130. ``last.ckpt`` lies in the folder of :class:`LastCheckpoint`, else in that of the
    first other ModelCheckpoint; without one nothing is saved. A validation that has begun is waited for. A second
    Ctrl-C ends the run at once. So does the first one before the first step and after the last, when there is no new
    step to save.

    SIGTERM may be sent to all processes of a run. Workers of this package's loaders go on until the step is done. Those
    of another DataLoader end, and the step may need them: then the run goes on from the last checkpoint.

    Several processes stop after the same step, whichever of them was told to. Under SLURM the requeue signal is dealt
    with between two steps, too: Lightning would write its checkpoint in the middle of one. The command line adds this
    callback to every run.
    """

    def __init__(self) -> None:
        self._asked = 0  # the number of a signal that has come and was not dealt with
        self._step = 0  # optimiser steps before this batch
        self._is_between_steps = False  # so that a step can be waited for
        self._trainer: Trainer | None = None
        self._owner = os.getpid()
        self._requeue: Callable[..., Any] | None = None  # Lightning's handler
        self._config = Path()  # that of the command line, if it is there

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go last, so that nothing that others do after a step is missing in the checkpoint."""
        self._config = Path(trainer.log_dir or ".", "config.yaml")  # asked here by all processes, as they agree on it
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [*(each for each in callbacks if each is not self), self]  # type: ignore[attr-defined]

    # Lightning sets its handlers after setup and takes them back in the end; its own raise in the middle of a step.
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)

    def _take_over(self, trainer: Trainer) -> None:
        if not takes_signals():
            return
        self._trainer, self._owner = trainer, os.getpid()
        for signum in _STOPPING:
            signal.signal(signum, self._stop)
        environment = _environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and in_training(trainer):
            signum = environment.requeue_signal or signal.SIGUSR1
            handler = signal.getsignal(signum)
            if callable(handler) and handler != self._ask_to_requeue:
                self._requeue = handler
                signal.signal(signum, self._ask_to_requeue)

    def _stop(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._owner:
            return  # a worker of a loader, which its process ends
        if not self._is_between_steps or (signum == signal.SIGINT and self._asked == signum):
            self._leave(signum)
        self._asked = signum
        no_word_of_children()
        if self._trainer is not None and self._trainer.validating and self._trainer.is_global_zero:
            print("\nStopping after this validation. Press Ctrl-C again to stop at once.", file=sys.stderr)

    def _leave(self, signum: int) -> NoReturn:
        """At once; :meth:`on_exception` follows. If a library drops the error, the run ends after the next step."""
        self._asked = signum
        no_word_of_children()
        raise Interrupted(signum)

    def _ask_to_requeue(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._owner:
            return
        if self._is_between_steps:
            self._asked = self._asked or signum
        elif self._requeue is not None:
            self._requeue(signum, frame)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step, self._is_between_steps = trainer.global_step, True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if asked to, but not while gradients are being accumulated, which no checkpoint holds."""
        if trainer.global_step > self._step:
            self._obey(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._obey(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_between_steps = False
        if self._asked in _STOPPING:  # it came after the last step was saved
            self._leave(self._asked)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what there is to go on from, if the run was ended outside of training."""
        self._is_between_steps = False
        if isinstance(exception, Interrupted):
            self._asked = 0
            if takes_signals():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough; Lightning puts back that of before
            if not exception.is_told:
                self._end_others(trainer)
                self._tell(trainer, exception, self._place(trainer), is_saved=False)
        elif self._asked in _STOPPING and isinstance(exception, RuntimeError) and "DataLoader worker" in str(exception):
            # a worker of a loader that is not ours was sent the signal, too, and the step or the validation needed it
            stop = Interrupted(self._asked)
            self._tell(trainer, stop, self._place(trainer), is_saved=False)
            trainer._teardown()  # as Lightning would next
            raise stop from exception

    @staticmethod
    def _end_others(trainer: Trainer) -> None:
        """End the processes that this one started: with their loaders' workers, unless they wait for this one."""
        processes: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        ended = [*processes]
        processes.clear()  # else Lightning kills this one, too, when it sees that they have ended
        for process in ended:
            process.terminate()
        for process in ended:
            try:
                process.wait(_PATIENCE)
            except TimeoutExpired:
                process.kill()

    def _obey(self, trainer: Trainer) -> None:
        asked = torch.tensor(self._asked, device=trainer.strategy.root_device)
        signum = int(trainer.strategy.reduce(asked, reduce_op="max")) if trainer.world_size > 1 else self._asked
        if not signum:
            return
        if signum not in _STOPPING:
            self._asked = 0
            if self._requeue is not None:
                self._requeue(signum, None)
            return
        self._asked, path = 0, self._place(trainer)
        if path is not None:
            trainer.save_checkpoint(path, weights_only=False)
        # Lightning kills the first process, while it tidies up, if one that it started ends with another status than 0
        is_started = isinstance(_environment(trainer), LightningEnvironment) and not trainer.is_global_zero
        stop = Interrupted(signum, 0 if is_started else None)
        self._tell(trainer, stop, path, is_saved=True)
        raise stop

    @staticmethod
    def _place(trainer: Trainer) -> str | None:
        kept = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
        if not kept or getattr(trainer, "fast_dev_run", False):
            return None
        chosen = next((one for one in kept if isinstance(one, LastCheckpoint)), kept[0])
        return os.path.join(str(chosen.dirpath), "last.ckpt")

    def _tell(self, trainer: Trainer, stop: Interrupted, path: str | None, is_saved: bool) -> None:
        stop.is_told = True
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        said = f"Stopped by {NAMES[stop.signum]}"
        said += f" at step {step}" if step else BEFORE
        resumed = str(trainer.ckpt_path) if in_training(trainer) and trainer.ckpt_path else None  # nothing newer, maybe
        path = next((each for each in (path, resumed) if each and ("://" in each or Path(each).exists())), None)
        if path is not None:
            given = ["--config", shown(self._config)] if self._config.exists() else []
            command = shlex.join(["fldd-lightning", "fit", *given, "--ckpt_path", shown(path)])
            said += f"{'; saved in' if is_saved else '. The last checkpoint is'} '{shown(path)}'. Go on with: {command}"
        elif step:
            said += ". There is no checkpoint to go on from: start the run again."
        else:
            said += NOTHING
        print(f"\n{said}", file=sys.stderr)


def _environment(trainer: Trainer) -> Any:
    return trainer._accelerator_connector.cluster_environment
