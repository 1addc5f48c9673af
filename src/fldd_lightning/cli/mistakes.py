"""Mistakes in options and configs, in one paragraph instead of a parser's report."""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches
from inspect import isabstract
from itertools import groupby
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser

import fldd_lightning

from ..roles import options, role
from .foreign import causes
from .words import NO_CLASS, in_words, wants_list

__all__ = ["OptionParser", "TrainerOptionParser"]

_PROBLEM = re.compile(r"Problem with given class_path '[^']*':\s*([^\n]+)")
_OF_NO_DATA = re.compile(r"class_path 'lightning[\w.]*\.LightningDataModule':\s*Option '([^']*)' is not accepted")
_NO_MODULE = re.compile(r"No module named '(\w+)")
_IN_ROOT = ". Start in the root of the repository: its examples are found from there"


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
        said = " ".join(explain(message, ex, parser).split()).rstrip(".")
        print(f"error: {said}. '{prog} --help' says more.", file=sys.stderr)
        self.exit(2)


class TrainerOptionParser(OptionParser, LightningArgumentParser):
    """The same for Lightning's command line."""


def explain(message: str, error: BaseException | None, parser: ArgumentParser) -> str:
    """Where the mistake is, what the innermost error says of it, and which name may have been meant.

    jsonargparse nests one error for every option on the way to the wrong one. Those that say which
    option start alike; the innermost says what is wrong.
    """
    chain = [str(step) for step in causes(error)] or [message]
    keys = [step.split('"')[1] for step in chain if step.startswith('Parser key "')]
    where = ".".join(key for key, _ in groupby(keys))
    cause = chain[-1] if keys else chain[0]
    if wants_list(cause):  # one was given, which may stand for a list
        problem, unknown = (pattern.search("\n".join(chain)) for pattern in (_PROBLEM, NO_CLASS))
        if problem is not None and not problem[1].startswith("Parser key"):
            cause = problem[1]
        elif unknown is not None:
            cause = unknown[0]
    cause = cause.partition('":')[2] if cause.startswith('Parser key "') else cause
    said = in_words(cause)
    if option := _OF_NO_DATA.search("\n".join(chain)):
        said = f"'{option[1]}' is an option of a class, and none is named"
        advice = ". Name it first, such as --data ArrayDataModule, or give a config that does"
    elif module := _NO_MODULE.search(cause):
        advice = _IN_ROOT if module[1] == "examples" else ". Is it installed, or in the folder you start from?"
    elif (unknown := NO_CLASS.match(cause)) and unknown[1] in _classes():
        said, advice = f"{unknown[1]} is a class of another kind", ""
    else:
        advice = _meant(said, parser)
    return f"{f'--{where}: ' if where else ''}{said}{advice}"


def _meant(cause: str, parser: ArgumentParser) -> str:
    """The option or class nearest to a word of the message that is none itself."""
    flags = [name for name in parser._option_string_actions if name.startswith("--")]
    classes = _classes()
    names = {*flags, "--trust", *(flag.lstrip("-") for flag in flags), *classes, *_parameters()}
    names |= {name.partition(".")[0] for name in names}  # sections of a config
    for word in reversed(cause.split()):  # what was given stands at the end
        word = word.strip("'\",.:;()").partition("=")[0]
        if word in classes:
            return f" ({word} is a class of another kind)"
        if word.startswith("--") and word not in names and (place := _place(word.lstrip("-"), parser)):
            return f" (did you mean {place}?)"
        if word.lstrip("-") in names:
            continue
        for part in (word, word.partition(".")[0]):
            near = get_close_matches(part, sorted(names - {""}), 1, 0.8) if part not in names and len(part) > 3 else []
            if near:
                return f" (did you mean {near[0]}?)"
    return ""


def _place(name: str, parser: ArgumentParser) -> str | None:
    """Where an option stands that a class has, such as ``--model.num_steps`` for ``num_steps``.

    Model and data are always given. Other classes are named first.
    """
    for action in parser._actions:
        flag = next((each for each in action.option_strings if each.startswith("--")), "")
        base = role(getattr(action, "_typehint", None))
        owners = [each for each in _made() if base and issubclass(each, base) and name in options(each)]
        if flag.endswith(".help"):
            continue
        if flag.endswith(f".{name}"):
            return flag
        if owners and flag in ("--model", "--data"):
            return f"{flag}.{name}"
        if owners and not flag.startswith("--trainer."):
            first = next(each for each in owners if not isabstract(each))
            return f"{flag} {first.__name__} {flag}.{name}"
    return None


def _made() -> list[type]:
    """This package's public classes."""
    public = (getattr(fldd_lightning, name) for name in fldd_lightning.__all__)
    return [each for each in public if isinstance(each, type)]


def _classes() -> list[str]:
    """What is known by its short name."""
    names = [*fldd_lightning.__all__, *callbacks.__all__, *loggers.__all__]
    return [name for name in names if name[0].isupper()]


def _parameters() -> set[str]:
    """All options of this package's classes."""
    return {name for cls in _made() for name in options(cls)}
