"""Entry point: answers ``--help`` and ``--version`` at once, hands the rest to the subcommands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

__all__ = ["TRAINER_COMMANDS", "main"]

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
_OWN_COMMANDS = ("score", "evaluate", "sample", "tokenizer")  # NAME is NAME_command in NAME.py

_HELP = """usage: fldd-lightning [-h] [--version] {fit,validate,test,predict,score,evaluate,sample,tokenizer} ...

Forward-Learned Discrete Diffusion: train, evaluate and sample.

subcommands:
  fit       train a model:            fldd-lightning fit --config configs/digits.yaml
  validate  NELBO on validation data: fldd-lightning validate --ckpt_path run.ckpt
  test      NELBO on test data:       fldd-lightning test --ckpt_path run.ckpt
  predict   NELBO of test examples:   fldd-lightning predict --ckpt_path run.ckpt
  score     NELBO of a file's rows:   fldd-lightning score --ckpt_path run.ckpt --data.path new.npy --output scores.csv
  evaluate  bound and sample quality: fldd-lightning evaluate --ckpt_path run.ckpt --output evaluation
  sample    draw samples:             fldd-lightning sample --ckpt_path run.ckpt --output samples
            of a trained model:       fldd-lightning sample --pretrained digits --output samples
  tokenizer train a tokenizer:        fldd-lightning tokenizer --path TEXT --vocab_size 2048 --output tokenizer.json

A checkpoint holds its own configuration; options given beside it go first. Options also win over a --config, wherever
they stand.
Classes of your own are found from the folder you are in: write class_path: my_file.MyClass in a config. A checkpoint
may name them only if you say so, with --trust my_file or --trust my_file.MyClass, as often as you need it.
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
        paragraph, or 130 after Ctrl-C on Windows.

    Raises:
        SystemExit: For options that cannot be parsed (status 2), for help, after SIGTERM (status 143) and Ctrl-C (130).
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
    from ..interrupted import BEFORE, NAMES, NOTHING, Interrupted, interrupted_by_signals

    rest = BEFORE + NOTHING if args[0] == "fit" else "."

    def tell(signum: int) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"\nStopped by {NAMES[signum]}{rest}", file=sys.stderr)

    try:
        with interrupted_by_signals(tell):
            args, trusted = _split_trust(args)
            if _names_own_classes(args, trusted) and os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())  # as 'python -m' does; last, so that no installed package is hidden
            _run(args, trusted)
    except Interrupted as stop:
        if not stop.is_told:
            tell(stop.signum)
        raise
    except FLDDError as error:
        if os.environ.get("FLDD_TRACEBACK"):
            raise
        message = str(error)
        if "Original Traceback" in message:  # of a loader's worker
            message = message.rpartition("FLDDError: ")[2]
        print("error: " + " ".join(message.split()), file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print("\nStopped by Ctrl-C.", file=sys.stderr)  # Lightning ends with status 1
        return 128 + signal.SIGINT
    return 0


def _run(args: list[str], trusted: list[str]) -> None:
    from ..errors import FLDDError

    if args[0] not in (*TRAINER_COMMANDS, *_OWN_COMMANDS):
        raise FLDDError(f"there is no subcommand '{args[0]}'; 'fldd-lightning --help' lists them.")
    from ..factory import trusting
    from .order import files_first

    args = [args[0], *files_first(args[1:])]
    with trusting(trusted):
        if args[0] in _OWN_COMMANDS:  # its module is imported now, so that --help need not wait
            getattr(import_module(f".{args[0]}", __package__), f"{args[0]}_command")(args[1:])
        else:
            from .train import run_trainer

            run_trainer(args)


def _split_trust(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without ``--trust NAME``, and the names."""
    from ..errors import FLDDError

    rest, trusted = [], []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--trust":
            rest.append(word)
            continue
        name = value if equals else next(words, "")
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise FLDDError("--trust takes the name of a module or a class of yours: my_file or my_file.MyClass.")
        trusted.append(name)
    return rest, trusted


def _names_own_classes(args: list[str], trusted: list[str]) -> bool:
    """Whether the user names, or a config of theirs may name, classes in the working folder.

    Else nothing in it can be imported: a checkpoint may lie in a folder of somebody else's files.
    """
    values = [word.partition("=")[2] if word.startswith("-") else word for word in args[1:]]
    homes = {value.partition(".")[0] for value in values if "." in value}
    with_config = any(word.startswith("-c") or word.partition("=")[0] == "--config" for word in args)
    return (
        bool(trusted)
        or with_config
        or any(Path(f"{home}.py").is_file() or Path(home).is_dir() for home in homes if home)
    )


if __name__ == "__main__":
    sys.exit(main())
