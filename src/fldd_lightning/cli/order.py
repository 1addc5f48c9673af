"""Which order options are read in: files first, so that no file undoes an option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["files_first"]

_CONFIG = ("--config", "-c")
_SECTIONS = ("--model", "--data", "--trainer")  # each takes a file with its section, too


def files_first(args: Sequence[str]) -> list[str]:
    """The options of a subcommand, with configs in front, then files of sections, then all others as they stand.

    The parser reads from left to right, and a config replaces what was given before it. Here an option wins over every
    config, wherever it stands; of two configs the later one wins.

    Args:
        args: Options, without the subcommand. ``-c`` becomes ``--config``.
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
            configs += ["--config", value]
        elif name in _SECTIONS and _is_file(value):
            sections += [name, value]
        else:
            others += args[i : i + used]
        i += used
    return [*configs, *sections, *others]


def _is_file(value: str) -> bool:
    return Path(value).suffix in (".yaml", ".yml") and Path(value).is_file()
