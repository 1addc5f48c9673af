"""Which of several processes this one is, of those that torchrun or srun started together."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from ..errors import FLDDError

__all__ = ["Process", "one_process", "this_process"]

# Rank, number of processes, rank on the machine. SLURM_NTASKS will not do: a job's script has it without srun, too.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


class Process(NamedTuple):
    """One of several processes that share a command's work. They do not talk to each other.

    Attributes:
        rank: Number of this one, from 0.
        world: How many there are; 1 without torchrun and srun.
        local: Number of this one on its machine, from 0.
    """

    rank: int
    world: int
    local: int

    def device(self, asked: str) -> str:
        """The device that this process takes: of plain ``cuda`` on a machine of several GPUs, one of its own."""
        if asked != "cuda" or self.world == 1 or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local % torch.cuda.device_count()}"  # srun may show each process its own GPU alone


def this_process() -> Process:
    """Where this process stands, by what torchrun says or, without it, srun.

    Torchrun goes first, as srun may start it. In a job of SLURM without srun there is one process, whatever number of
    tasks the job has.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        names = _TORCHRUN
    elif all(name in os.environ for name in _SRUN):
        names = _SRUN
    else:
        return Process(0, 1, 0)
    return Process(*(int(os.environ[name]) for name in names))


def one_process(command: str) -> None:
    """Refuse to run a command that does not share its work in one of several processes.

    Raises:
        FLDDError: If torchrun or srun started several.
    """
    world = this_process().world
    if world > 1:
        raise FLDDError(
            f"{command} works in one process, but {world} were started, which would write to the same "
            "file. Start it without torchrun or srun."
        )
