"""Entry point: answers ``--help`` and ``--version`` at once, hands the rest to the subcommands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["TRAINER_COMMANDS", "main"]

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")

_HELP = """usage: fldd-lightning [-h] [--version] {fit,validate,test,predict,sample,features,tokenizer} ...

Forward-Learned Discrete Diffusion: train, evaluate and sample.

subcommands:
  fit       train a model:            fldd-lightning fit --config configs/digits.yaml
  validate  NELBO on validation data: fldd-lightning validate --ckpt_path run.ckpt
  test      NELBO on test data:       fldd-lightning test --ckpt_path run.ckpt
  predict   NELBO of every example:   fldd-lightning predict --ckpt_path run.ckpt
  sample    draw samples:             fldd-lightning sample --ckpt_path run.ckpt --output samples
  features  train a classifier whose features compare samples:
                                      fldd-lightning features --data MNISTDataModule --data.path DIR --output c.pt
  tokenizer train a BPE tokenizer:    fldd-lightning tokenizer --path TEXT --vocab_size 2048 --output tokenizer.json

A checkpoint holds its own configuration; options given beside it go first. Classes of your own are
found from the folder you are in, as class_path: my_file.MyClass.
'fldd-lightning SUBCOMMAND --help' lists the options of a subcommand, 'fldd-lightning fit --model.help FLDD' those of
a class, --data.help and --trainer.callbacks.help likewise.
Set FLDD_TRACEBACK=1 to see where in the code an error was raised.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; ``sys.argv[1:]`` if None.

    Returns:
        Exit status: 0, or 1 after a mistake in data or configuration, which is printed as one
        paragraph.

    Raises:
        SystemExit: For options that cannot be parsed (status 2) and for help.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"fldd-lightning {version('fldd-lightning')}")
        return 0
    from ..errors import FLDDError

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as 'python -m' does; last, so that no installed package is hidden
    try:
        if args[0] == "sample":
            from .sample import sample_command

            sample_command(args[1:])
        elif args[0] == "features":
            from .features import features_command

            features_command(args[1:])
        elif args[0] == "tokenizer":
            from .tokenizer import tokenizer_command

            tokenizer_command(args[1:])
        elif args[0] not in TRAINER_COMMANDS:
            raise FLDDError(f"there is no subcommand '{args[0]}'; 'fldd-lightning --help' lists them.")
        else:
            from .train import run_trainer

            run_trainer(args)
    except FLDDError as error:
        if os.environ.get("FLDD_TRACEBACK"):
            raise
        message = str(error)
        if "Original Traceback" in message:  # of a loader's worker
            message = message.rpartition("FLDDError: ")[2]
        print("error: " + " ".join(message.split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
