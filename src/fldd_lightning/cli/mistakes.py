"""Mistakes in options and configs, in one paragraph instead of a parser's report."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from ..errors import FLDDError
from ..factory import import_class

__all__ = ["OptionParser", "TrainerOptionParser"]

_HOMES = ("", ".callbacks", ".data", ".estimators", ".forward", ".metrics", ".networks")
_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"(?:given class_path |class_path=)'([^']+)'")
_UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (--[^\s=]+)")
_NOISE = re.compile(
    r"^(Subtypes:|Errors:|Given value|Does not validate|Problem with given class_path)"
    r"|Expected a <class 'NoneType'>|Expected a path but"
)


class OptionParser(ArgumentParser):
    """A parser whose mistakes are one paragraph; the exit status stays 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # inside jsonargparse, which tries one type after the other
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        print(f"error: {_explain(message, parser)} '{prog} --help' says more.", file=sys.stderr)
        self.exit(2)


class TrainerOptionParser(OptionParser, LightningArgumentParser):
    """The same for Lightning's command line."""


def _explain(message: str, parser: ArgumentParser) -> str:
    """What is wrong and what to do, from what jsonargparse says; its own words where they are not known."""
    keys = ".".join(_KEY.findall(message))
    option = f"--{keys}" if keys else ""
    class_path = (_CLASS.findall(message) or [""])[-1]
    if found := _UNRECOGNIZED.search(message):
        options = [name for name in parser._option_string_actions if name.startswith("--")]
        return f"there is no option {found[1]}{_suggest(found[1], options)}."
    if found := _UNKNOWN_OPTION.search(message):
        owner = class_path.rpartition(".")[2]
        return f"{option}: {owner} has no option '{found[1]}'{_suggest(found[1], _parameters(class_path))}."
    if found := _UNKNOWN_CLASS.search(message):
        return (
            f"{option}: there is no class '{found[1]}'{_suggest(found[1], _class_names())}. Give the name of one of "
            "fldd-lightning's, or the path of your own, as my_file.MyClass."
        )
    if found := _REQUIRED.search(message):
        return _missing(found[1].split(", "), f"{option}." if class_path else "--")
    lines = [_KEY.sub("", line).strip(" -") for line in message.splitlines()]
    said = "; ".join(line for line in lines if line and not _NOISE.search(line)) or message
    return f"{option}: {said}." if option else f"{said}."


def _missing(names: list[str], prefix: str) -> str:
    """What to do where arguments are missing: a model and its data, or single options."""
    subcommand, _, section = names[0].partition(".")
    if section in ("model", "data"):
        if subcommand == "fit":
            return "there is no model and no data. Give --config FILE, such as configs/digits.yaml."
        if len(names) == 1:
            return (
                f"neither checkpoint nor config says which {section} to take. Give --{section} CLASS and its options."
            )
        return f"there is nothing to {subcommand}. Give --ckpt_path FILE, a checkpoint written by 'fit'."
    return "give " + " and ".join(f"{prefix}{name}" for name in names) + "."


def _suggest(wrong: str, names: Iterable[str]) -> str:
    close = get_close_matches(wrong, list(names), 1, 0.8)
    return f" (did you mean {close[0]}?)" if close else ""


def _parameters(class_path: str) -> list[str]:
    """What a class and those it inherits from take."""
    try:
        cls = import_class(class_path)
    except FLDDError:
        return []
    makers = [vars(base)["__init__"] for base in inspect.getmro(cls) if "__init__" in vars(base)]
    return [name for maker in makers[:-1] for name in inspect.signature(maker).parameters if name != "self"]


def _class_names() -> list[str]:
    """All that the library exports."""
    homes = [import_module("fldd_lightning" + home) for home in _HOMES]
    return [name for home in homes for name in home.__all__ if name[0].isupper()]
