"""``fit``, ``validate``, ``test`` and ``predict`` on LightningCLI."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import Strategy

from ..checkpoint import OF_DATA, read_checkpoint
from ..checkpoint_file import check_folder
from ..errors import FLDDError
from ..interrupted import Interrupted
from ..module import FLDD
from ..strategy import refuse_split_weights
from .checkpoint_data import checkpoint_sections, know_classes, option
from .defaults import check_trainer, default_callbacks, listed, validation_interval
from .farewell import farewell
from .foreign import mistakes_first
from .mistakes import TrainerOptionParser
from .quiet import quiet

__all__ = ["FLDDCLI", "packaged_config", "run_trainer"]


class FLDDCLI(LightningCLI):
    """LightningCLI with what the data say linked from them to the model, and with default callbacks.

    Args:
        args: Subcommand and options. The subcommand is run at once.
    """

    model: FLDD
    _has_ended = False

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            FLDD,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_class=TrainerOptionParser,
            parser_kwargs={"prog": "fldd-lightning"},
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in ("num_classes", "shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.link_arguments("data", "model.init_args.padded", _is_padded, apply_on="instantiate")
        parser.link_arguments("data", "model.init_args.num_values", _num_values, apply_on="instantiate")
        parser.link_arguments("data", "model.init_args.condition_sizes", _condition_sizes, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses without Lightning's warning about arguments beside ``sys.argv``."""
        self.config = parser.parse_args(cast(list[str], args))
        check_trainer(self.config[self.config.subcommand])

    def before_instantiate_classes(self) -> None:
        options = self.config[str(self.subcommand)]
        strategy = options.trainer.strategy
        refuse_split_weights(strategy if isinstance(strategy, (str, Strategy)) else strategy.class_path)
        validation_interval(options.trainer)
        self._check_options(options)
        if options.get("ckpt_path") not in (None, "best", "last", "hpc"):
            read_checkpoint(options.ckpt_path)  # a mistake in it is told before anything else

    def _check_options(self, options: Any) -> None:
        """Raise FLDDError for what would be overruled by the data, and for nothing to be judged."""
        given = [name for name in OF_DATA if options.model.init_args.get(name) not in (None, False)]
        if given:
            raise FLDDError(
                f"model.{given[0]} is given, but the data say it: leave it out. If the data are not what you expect, "
                "change the options of --data."
            )
        if self.subcommand != "fit" and options.get("ckpt_path") is None:
            raise FLDDError(
                f"there is no model to {self.subcommand}: it would be an untrained one. Give --ckpt_path FILE, of a "
                "'fit'."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand].trainer.as_dict()
        added = default_callbacks(str(self.subcommand), options, self.model)
        return super().instantiate_trainer(**{"callbacks": [*listed(options["callbacks"]), *added], **kwargs})

    def before_fit(self) -> None:
        """See that the run's folder takes files: a logger writes there before anything is set up."""
        folder = str(self.trainer.default_root_dir)
        if "://" not in folder:
            check_folder(Path(folder))

    def _run_subcommand(self, subcommand: str) -> None:
        """If something fails after the last step, such as a report, the run still ends as it should. Then it fails."""
        try:
            super()._run_subcommand(subcommand)
        except Interrupted as stop:
            if subcommand == "fit" and not stop.is_told:  # between the trainer's own work
                for callback in listed(self.trainer.callbacks):  # type: ignore[attr-defined]
                    callback.on_exception(self.trainer, self.model, stop)
            raise
        except Exception:
            has_trained = subcommand == "fit" and self.trainer.global_step > 0 and self.trainer.fit_loop.done
            if has_trained and not self._has_ended:
                with suppress(Exception):  # the first error is the one to tell
                    self.after_fit()
            raise

    def after_fit(self) -> None:
        """Ends with ``final.ckpt``, a validation of the averaged weights and the names of what was written.

        ``final.ckpt`` holds averaged weights alone: go on training from ``last.ckpt``.
        """
        self._has_ended = True
        checkpoints, final = self.trainer.checkpoint_callback, None
        is_try = bool(getattr(self.trainer, "fast_dev_run", False))
        if isinstance(checkpoints, ModelCheckpoint) and checkpoints.dirpath and not is_try:
            final = Path(checkpoints.dirpath) / "final.ckpt"
            self.trainer.save_checkpoint(final, weights_only=False)
            resumed = Path(str(self.trainer.ckpt_path or ""))
            if resumed.name.startswith("hpc_ckpt_") and self.trainer.is_global_zero:  # of SLURM's requeue: it is done
                resumed.replace(final.with_name(resumed.name))  # else the next run here would start from it
        # late: no mistake in it can lose the run; from the file, as under SLURM Lightning would take its own
        self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=final, weights_only=True)
        if not is_try:
            last_words = farewell(self.trainer)  # all processes, as they agree on the run's folder
            if self.trainer.is_global_zero:
                print(last_words)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Checkpoints, wherever their path was given, are read with ``weights_only`` unless the user says otherwise."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "weights_only": True} if kwargs.get("weights_only") is None else kwargs

    def _parse_ckpt_path(self) -> None:
        """Left out: it takes over a checkpoint's classes unchecked. :func:`run_trainer` does it."""


def run_trainer(args: Sequence[str]) -> None:
    """Run one of Lightning's subcommands.

    Args:
        args: Subcommand and options. With ``--ckpt_path`` and no ``--config``, model and data are
            those of the checkpoint; options given beside it override them.

    Raises:
        FLDDError: For mistakes in data, checkpoint or configuration.
        SystemExit: For options that cannot be parsed, and without any.
    """
    if len(args) == 1:
        source = "--config FILE, such as configs/digits.yaml" if args[0] == "fit" else "--ckpt_path FILE, of a 'fit'"
        print(f"error: there is nothing to {args[0]}. Give {source}.", file=sys.stderr)
        raise SystemExit(2)
    args = with_save_dir([packaged_config(arg) for arg in args])
    path = option(args, "--ckpt_path")
    know_classes()
    with tempfile.TemporaryDirectory() as folder, quiet():
        if path is not None and option(args, "--config") is None:
            sections = checkpoint_sections(path, args)
            config = Path(folder) / "checkpoint.yaml"
            config.write_text(yaml.safe_dump(sections))
            args[1:1] = ["--config", str(config)]
        with mistakes_first():
            FLDDCLI(args)


def _is_padded(data: LightningDataModule) -> bool:
    return bool(getattr(data, "padded", False))


def _num_values(data: LightningDataModule) -> list[int] | None:
    number = getattr(data, "num_values", None)
    return None if number is None else list(number)


def _condition_sizes(data: LightningDataModule) -> dict[str, int]:
    return dict(getattr(data, "condition_sizes", {}))


def packaged_config(arg: str) -> str:
    """``configs/NAME.yaml`` as the package carries it, where the working folder has no such file."""
    option, equals, name = arg.rpartition("=")
    path = Path(name)
    if path.parent.name != "configs" or path.suffix != ".yaml" or path.exists():
        return arg
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):  # of a wheel; of an editable install
        if (folder / path.name).exists():
            return f"{option}{equals}{folder / path.name}"
    return arg


def with_save_dir(args: list[str]) -> list[str]:
    """Gives a logger that demands a ``save_dir`` the trainer's root, where none was given."""
    value = option(args, "--trainer.logger")
    if value is None or value.rpartition(".")[2] not in ("CSVLogger", "TensorBoardLogger"):
        return args
    if any(arg.startswith("--trainer.logger.") and "save_dir" in arg for arg in args):
        return args
    i = next(i for i, arg in enumerate(args) if arg.split("=")[0] == "--trainer.logger")
    after = i + (1 if "=" in args[i] else 2)
    root = option(args, "--trainer.default_root_dir") or "."
    return [*args[:after], "--trainer.logger.init_args.save_dir", root, *args[after:]]
