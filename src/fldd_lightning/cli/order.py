"""Which order options are read in: files first, so that no file undoes an option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import FLDDError

__all__ = ["files_first"]

_CONFIG = ("--config", "-c")
_SECTIONS = ("--model", "--data", "--trainer")  # each takes a file with its section, too


def files_first(args: Sequence[str]) -> list[str]:
    """The options of a subcommand, with configs in front, then files of sections, then all others as they stand.

    The parser reads from left to right, and a config replaces what was given before it. Here an option wins over every
    config, wherever it stands; of two configs the later one wins.

    Args:
        args: Options, without the subcommand. ``-c`` becomes ``--config``.

    Raises:
        FLDDError: If a config is no text.
    """
    configs: list[str] = []
    sections: list[str] = []
    others: list[str] = []
    i = 0
    while i < len(args):
        name, equals, value = args[i].partition("=")
        if name.startswith("-c") and not equals and len(name) > 2:  # -cFILE
            name, equals, value = "-c", "=", name[2:]
        used = 1
        if not equals and name in (*_CONFIG, *_SECTIONS) and i + 1 < len(args):
            value, used = args[i + 1], 2
        if name in _CONFIG and (equals or used == 2):
            _check_text(value)
            configs += ["--config", value]
        elif name in _SECTIONS and _is_file(value):
            _check_text(value)
            sections += [name, value]
        else:
            others += args[i : i + used]
        i += used
    return [*configs, *sections, *others]


def _check_text(value: str) -> None:
    """Raise FLDDError for a file that is not UTF-8; whatever is no file is left to the parser."""
    try:
        if Path(value).is_file():
            Path(value).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FLDDError(f"'{value}' is no text in UTF-8, but a config is YAML: give such a file.") from error
    except (OSError, ValueError) as error:
        raise FLDDError(f"cannot read the config '{value}': {error}.") from error


def _is_file(value: str) -> bool:
    return Path(value).suffix in (".yaml", ".yml") and Path(value).is_file()
