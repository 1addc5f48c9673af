"""Private names of torch and Lightning that the package cannot do without: each is still there, and means the same.

``pyproject.toml`` bounds Lightning from above; a new version is let in after these tests have passed with it.
"""

from __future__ import annotations

import inspect

import torch
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from conftest import Stripes, image_model
from fldd_lightning.training import Averaging, averages_of
from tiny import trainer


def test_the_average_of_the_weights_can_be_reached(tmp_path: object) -> None:
    assert WeightAveraging()._average_model is None
    run = trainer(tmp_path, max_steps=2)
    run.fit(image_model(2), Stripes())
    (average,) = averages_of(run)
    assert isinstance(average, type(run.lightning_module))
    assert Averaging(0.9).averaged is None


def test_a_module_without_a_trainer_says_so() -> None:
    assert LightningModule()._trainer is None


def test_ddp_can_be_told_to_leave_buffers_alone() -> None:
    module = nn.BatchNorm1d(2)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ["running_mean"])
    assert module._ddp_params_and_buffers_to_ignore == ["running_mean"]
    source = inspect.getsource(DistributedDataParallel.__init__)
    assert "_ddp_params_and_buffers_to_ignore" in source  # it is looked at


def test_the_command_line_has_its_hooks() -> None:
    assert list(inspect.signature(LightningCLI._prepare_subcommand_kwargs).parameters) == ["self", "subcommand"]
    assert list(inspect.signature(LightningCLI._parse_ckpt_path).parameters) == ["self"]
    assert "_parse_ckpt_path" in inspect.getsource(LightningCLI.__init__)
    assert list(inspect.signature(LightningCLI._run_subcommand).parameters) == ["self", "subcommand"]


def test_a_trainer_knows_where_it_runs(tmp_path: object) -> None:
    assert isinstance(trainer(tmp_path)._accelerator_connector.cluster_environment, LightningEnvironment)


def test_a_parser_knows_its_options() -> None:
    parser = ArgumentParser()
    parser.add_argument("--width", type=int)
    assert "--width" in parser._option_string_actions


def test_one_call_works_on_lists_of_tensors() -> None:
    to, weights, buffers = torch.ones(2), [torch.zeros(2), torch.zeros(3)], [torch.tensor(True), torch.zeros(2)]
    torch._foreach_lerp_(weights, [to, torch.ones(3)], 0.25)
    torch._foreach_copy_(buffers, [torch.tensor(False), to])
    assert [each.tolist() for each in weights] == [[0.25] * 2, [0.25] * 3]
    assert [each.tolist() for each in buffers] == [False, [1.0, 1.0]]


def test_a_checkpoint_can_be_written_at_the_end_of_a_run() -> None:
    assert list(inspect.signature(ModelCheckpoint._should_skip_saving_checkpoint).parameters) == ["self", "trainer"]
    names = list(inspect.signature(ModelCheckpoint._save_topk_checkpoint).parameters)
    assert names == ["self", "trainer", "monitor_candidates"]
    assert "_last_global_step_saved" in inspect.getsource(ModelCheckpoint._should_skip_saving_checkpoint)
