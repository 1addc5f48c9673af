"""How far a reader has to go: the files that a training step enters, and which file imports which."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fldd_lightning
from fldd_lightning import FLDD

PACKAGE = Path(fldd_lightning.__file__).parent
CONFIGS = Path(__file__).parents[1] / "configs"


def made(recipe: Any) -> Any:
    """What a config says, with classes in place of their names."""
    if isinstance(recipe, list):
        return [made(each) for each in recipe]
    if not isinstance(recipe, dict):
        return recipe
    options = {name: made(value) for name, value in recipe.get("init_args", {}).items()}
    return partial(getattr(fldd_lightning, recipe["class_path"].rpartition(".")[2]), **options)


def model_of(config: str, num_classes: int, shape: tuple[int, ...]) -> FLDD:
    """The model of a config, as the command line makes it."""
    model: FLDD = made(yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["model"])(
        num_classes=num_classes, shape=shape
    )
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return model


def entered(model: FLDD, batch: dict[str, torch.Tensor]) -> list[str]:
    """The files of the package in which a function runs during a training step."""
    model.training_step(batch, 0)  # what is imported late is imported now
    files = set()

    def note(frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        model.training_step(batch, 1)
    finally:
        sys.setprofile(before)
    return sorted(files)


@pytest.mark.parametrize(
    ("config", "num_classes", "shape", "most"),
    [("digits", 2, (8, 8), 8), ("text", 27, (64,), 8), ("mnist28", 2, (28, 28), 8)],
)
def test_a_training_step_is_read_in_few_files(config: str, num_classes: int, shape: tuple[int, ...], most: int) -> None:
    batch = {"x": torch.randint(num_classes, (8, *shape))}
    files = entered(model_of(config, num_classes, shape), batch)
    print(config, files)
    assert "module.py" in files
    assert len(files) <= most, files


def names_in(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported: none in functions, none for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (found for each in child.orelse for found in names_in(ast.Module([each], [])))
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from names_in(child)


def imports(source: str, module: str, modules: set[str], is_package: bool = False) -> set[str]:
    """The modules of ``modules`` that the source of one of them imports when it is imported itself."""
    found: set[str] = set()
    for node in names_in(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            continue
        home = module.split(".")[: None if is_package else -1]
        base = ".".join(home[: len(home) - (node.level - 1)]) if node.level else ""
        path = ".".join(part for part in (base, node.module or "") if part)
        # ``from .package import module`` is the module, ``from .package import name`` the package
        found.update(name if (name := f"{path}.{alias.name}") in modules else path for alias in node.names)
    return found & modules


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself; empty if there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        done.add(module)
        return next((way for each in sorted(graph[module]) if (way := search(each, [*path, module]))), [])

    return next((way for module in sorted(graph) if (way := search(module, []))), [])


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """What every module of the package imports of it."""
    paths = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        name: imports(path.read_text(encoding="utf-8"), name, set(paths), path.stem == "__init__")
        for name, path in paths.items()
    }


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    assert circle(graph) == []


def test_forward_processes_know_neither_the_reverse_nor_the_bound(graph: dict[str, set[str]]) -> None:
    above = {f"fldd_lightning.{name}" for name in ("reverse", "bound", "module")}
    assert above <= graph.keys()
    forward = {name for name in graph if name.startswith("fldd_lightning.forward")}
    assert len(forward) >= 4
    reached: set[str] = set()
    left = forward
    while left:  # by way of others, too
        left = {each for name in left for each in graph[name]} - reached
        reached |= left
    assert not reached & above


def test_imports_are_read_as_python_does() -> None:
    source = """
from __future__ import annotations
import torch, a.errors
from typing import TYPE_CHECKING
from . import near
from .near import name
from ..bound import Bound, other
from .. import spec
if TYPE_CHECKING:
    from ..module import FLDD
else:
    import a.late
try:
    from a.tried import this
except ImportError:
    pass
def f():
    from ..lazy import never
class C:
    from ..inner import thing
"""
    expected = {"a.errors", "a.b.near", "a.bound", "a.bound.other", "a.spec", "a.late", "a.tried", "a.inner"}
    modules = {*expected, "a", "a.b", "a.b.c", "a.module", "a.lazy"}
    assert imports(source, "a.b.c", modules) == expected
    assert imports("from .c import x\nfrom ..late import y", "a.b", modules, is_package=True) == {"a.b.c", "a.late"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
