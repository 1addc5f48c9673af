"""All that a user composes is found at the top of the package, without waiting for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fldd_lightning

COMPOSED = ("callbacks", "data", "estimators", "forward", "latents", "metrics", "networks", "reverse", "spec")
# what other classes of the package are made of, and users do not put together themselves
PARTS = {
    "data": {"split_rows"},
    "spec": {"MOST_NUMBERS"},
}


@pytest.mark.parametrize("name", fldd_lightning.__all__)
def test_every_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(fldd_lightning, name).__name__ == name
    assert name in dir(fldd_lightning)


@pytest.mark.parametrize("home", COMPOSED)
def test_every_public_class_is_at_the_top(home: str) -> None:
    public = set(import_module(f"fldd_lightning.{home}").__all__) - PARTS.get(home, set())
    assert public <= set(fldd_lightning.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(fldd_lightning.__file__).read_text())
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    homes = {alias.asname: node.module for node in imported for alias in node.names}
    assert sorted(homes) == fldd_lightning.__all__
    for name, home in homes.items():
        assert getattr(import_module(f"fldd_lightning.{home}"), name) is getattr(fldd_lightning, name)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = fldd_lightning.Nothing


def test_import_is_light() -> None:
    code = "import sys, fldd_lightning; dir(fldd_lightning); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
