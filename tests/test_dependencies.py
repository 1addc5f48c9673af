"""Every package that the library imports is one that it declares."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
NOT_INSTALLED = {"mauve": ["mauve-text"]}  # what is imported under another name, and may not be here


def normal(name: str) -> str:
    """As package indices compare names."""
    return re.sub("[-_.]+", "-", name).lower()


def imported(source: str) -> set[str]:
    """Top-level packages that a file imports, wherever in it, but for Python's own and its neighbours."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"fldd_lightning"}


@lru_cache
def installed() -> Mapping[str, list[str]]:
    """Distributions by package; looking for them takes half a second."""
    return packages_distributions()


def undeclared(packages: set[str], declared: set[str]) -> set[str]:
    """Those of no declared distribution."""
    homes = {**NOT_INSTALLED, **installed()}
    return {name for name in packages if not declared & {normal(home) for home in homes.get(name, [name])}}


def declarations() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        yield normal(re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0])


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_what_is_imported_is_declared(path: Path) -> None:
    missing = undeclared(imported(path.read_text(encoding="utf-8")), set(declarations()))
    assert not missing, f"{path.name} imports {missing}: declare it in pyproject.toml, or do without."


def test_it_would_be_noticed() -> None:
    source = "import os\nfrom . import near\ndef f():\n    from yaml import safe_load\n    import PIL.Image, filelock\n"
    assert imported(source) == {"yaml", "PIL", "filelock"}
    assert undeclared(imported(source), set(declarations())) == {"filelock"}
    assert undeclared({"mauve", "torch"}, {"mauve-text"}) == {"torch"}
