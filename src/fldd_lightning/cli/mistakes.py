"""Mistakes in options and configs, in one paragraph instead of a parser's report."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from ..errors import FLDDError
from ..factory import import_class
from .main import TRAINER_COMMANDS

__all__ = ["OptionParser", "TrainerOptionParser"]

_LIBRARY = ("", ".callbacks", ".data", ".estimators", ".forward", ".metrics", ".networks")
_HOMES = (*("fldd_lightning" + home for home in _LIBRARY), "lightning.pytorch.callbacks", "lightning.pytorch.loggers")

# what jsonargparse says
_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"(?:given class_path |class_path=)'([^']+)'")
_GIVEN = re.compile(r"Given value: (?!Namespace|NestedArg)(.+)")
_UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: ([\w.]*\w)")
_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'")
_REQUIRED = re.compile(r"the following arguments are required: ([\w.]*\w(?:, [\w.]*\w)*)")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: ([^\s=]+)")
_NOISE = re.compile(
    r"^(Subtypes:|Errors:|Given value|Does not validate|Problem with given class_path)"
    r"|Expected a <class 'NoneType'>|Expected a path but|expects a function or a callable class:$"
)


class OptionParser(ArgumentParser):
    """A parser whose mistakes are one paragraph, and which takes no abbreviations; the exit status stays 2.

    With ``FLDD_TRACEBACK`` or ``JSONARGPARSE_DEBUG`` set, mistakes are reported as jsonargparse does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # without exit_on_error: inside jsonargparse, which tries one type after the other
        if not self.exit_on_error or os.environ.get("FLDD_TRACEBACK") or os.environ.get("JSONARGPARSE_DEBUG"):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        print(f"error: {' '.join(_explain(message, parser).split())} '{prog} --help' says more.", file=sys.stderr)
        self.exit(2)


class TrainerOptionParser(OptionParser, LightningArgumentParser):
    """The same for Lightning's command line."""


def _explain(message: str, parser: ArgumentParser) -> str:
    """What is wrong and what to do, from what jsonargparse says; its own words where they are not known."""
    given = _GIVEN.search(message)
    message = message.partition("\n  Given value type:")[0]
    keys = ".".join(_KEY.findall(message))
    at = f"--{keys}: " if keys else ""
    if found := _UNRECOGNIZED.search(message):
        return f"there is no option {found[1]}{_suggest(found[1], _options(parser))}."
    if found := _UNKNOWN_KEY.search(message):
        return _unknown_key(found[1], parser)
    if found := _UNKNOWN_OPTION.search(message):
        owner = _owner(message, found)
        name = owner.rpartition(".")[2] or "the class"
        return f"{at}{name} has no option '{found[1]}'{_suggest(found[1], _parameters(owner))}."
    if found := _UNKNOWN_CLASS.search(message):
        if found[1] in _class_names():
            return f"{at}{found[1]} cannot stand here: it is a class of another kind."
        return (
            f"{at}there is no class '{found[1]}'{_suggest(found[1], _class_names())}. Give the name of a class of "
            "fldd-lightning or Lightning, or the path of your own, as my_file.MyClass."
        )
    if found := _REQUIRED.search(message):
        return _missing(found[1].split(", "), f"--{keys}." if keys else "--")
    if message.startswith("Unexpected config"):
        return "the file given as --config is empty or holds no settings by name; see configs/digits.yaml."
    if "No module named" in message:
        at, given = f"{at}a class of your own is found from the folder that holds its file: ", None
    lines = [_KEY.sub("", line.partition(" Got value: Namespace(")[0]).strip(" -") for line in message.splitlines()]
    said = "; ".join(line for line in lines if line and not _NOISE.search(line)) or message
    return f"{at}{said.rstrip(' .:')}{f'; got {given[1]}' if given else ''}."


def _unknown_key(key: str, parser: ArgumentParser) -> str:
    """Of a config: a section, or an option in it."""
    section = key.partition(".")[0]
    sections = {option.lstrip("-").partition(".")[0] for option in _options(parser)}
    wrong = key if section in sections else section
    names = [option.lstrip("-") for option in _options(parser)] if section in sections else sections
    return f"the config has '{wrong}', which is no option{_suggest(wrong, names)}."


def _missing(names: list[str], prefix: str) -> str:
    """What to do where arguments are missing: a model and its data, or single options."""
    subcommand = names[0].partition(".")[0]
    if prefix != "--" or subcommand not in TRAINER_COMMANDS:
        return "give " + " and ".join(prefix + name for name in names) + "."
    sections = [name.partition(".")[2] for name in names]
    if len(sections) > 1:
        source = "--config FILE, such as configs/digits.yaml" if subcommand == "fit" else "--ckpt_path FILE, of a 'fit'"
        return f"there is nothing to {subcommand}. Give {source}."
    return f"nothing says which {sections[0]} to take. Give --{sections[0]} CLASS, or a --config FILE that names it."


def _owner(message: str, found: re.Match[str]) -> str:
    """The class path whose option was not accepted: what follows on the line, or what was named last."""
    line = message[found.end() :].partition("\n")[0]
    after, before = _CLASS.findall(line), _CLASS.findall(message[: found.start()])
    return str((after[:1] or before[-1:] or [""])[0])


def _suggest(wrong: str, names: Iterable[str]) -> str:
    close = get_close_matches(wrong, list(names), 1, 0.8)
    return f" (did you mean {close[0]}?)" if close else ""


def _options(parser: ArgumentParser) -> list[str]:
    return [name for name in parser._option_string_actions if name.startswith("--")]


def _parameters(class_path: str) -> list[str]:
    """What a class and those it inherits from take."""
    try:
        cls = import_class(class_path)
    except FLDDError:
        return []
    makers = [vars(base)["__init__"] for base in inspect.getmro(cls)[:-1] if "__init__" in vars(base)]
    return [name for maker in makers for name in inspect.signature(maker).parameters if name != "self"]


def _class_names() -> list[str]:
    """All that the library exports, and Lightning's callbacks and loggers."""
    return [name for home in _HOMES for name in import_module(home).__all__ if name[0].isupper()]
