"""README and documentation: their Python runs, their commands parse, their links lead somewhere, the site builds.

Python blocks of a page run in order, in one namespace and an empty folder. A block with a title is written to that file
first, so that the page may import it. What runs is the page as it stands, but for a prelude (:func:`quick`): trainers
take two steps on the CPU, and validate and test two batches.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

import lightning
import pytest

import fldd_lightning
from fldd_lightning.cli import checkpoint_data as checkpoint_module
from fldd_lightning.cli import evaluate as evaluate_module
from fldd_lightning.cli import main
from fldd_lightning.cli import sample as sample_module
from fldd_lightning.cli import score as score_module
from fldd_lightning.cli import tokenizer as tokenizer_module
from fldd_lightning.cli import train as train_module

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

# What a page takes for granted, by its name: files that somebody else has sent.
PRELUDES = {
    "docs/security.md": """
from pathlib import Path
from lightning import Trainer
from fldd_lightning import MLP, AbsorbingProcess, DigitsDataModule, ImageFLDD

Path("net.py").write_text("from fldd_lightning import MLP\\n\\nclass FriendsNet(MLP):\\n    pass\\n")
from net import FriendsNet

trainer = Trainer(max_steps=2)
trainer.fit(ImageFLDD(2, (8, 8), AbsorbingProcess, FriendsNet), DigitsDataModule())
trainer.save_checkpoint("model.ckpt")
"""
}


class Block(NamedTuple):
    """A fenced block: its language, the file it stands for, and what is in it."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*groups) for groups in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[str]:
    """The lines of a page that are typed into a terminal, in blocks and within sentences."""
    found = []
    for block in blocks(page):
        if block.language in ("", "bash", "console", "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                found += [part.strip().removeprefix("$ ") for part in line.partition("  #")[0].split("&&")]
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [line for line in found if line] + re.findall(r"`(fldd-lightning [a-z]+ [^`]*)`", prose)


SLOW = ("docs/recipes/array.md",)  # its chain is fitted to 16,000 walks
WITH_PYTHON = [
    pytest.param(page, id=named(page), marks=pytest.mark.slow if named(page) in SLOW else ())
    for page in PAGES
    if any(block.language == "python" for block in blocks(page))
]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The prelude: an empty folder to work in, and trainers that stop after two steps."""
    import datasets.config

    trainer = lightning.Trainer
    limits = {"max_steps": 2, "limit_val_batches": 2, "limit_test_batches": 2, "accelerator": "cpu", "devices": 1}
    silence = {"enable_model_summary": False, "enable_checkpointing": False}
    monkeypatch.setattr(lightning, "Trainer", lambda **options: trainer(**{**options, **limits, **silence}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:  # net.py of one page is not that of another
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore", "error:a gradient of")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(PRELUDES.get(named(page), ""), module.__dict__)
    for block in blocks(page):
        if block.title:
            (quick / block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{named(page)}", "exec"), module.__dict__)


@pytest.fixture
def parsing(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are parsed to the end, and nothing is made or run. Checkpoints hold what the page trained last."""
    digits = {"class_path": "ImageFLDD", "init_args": {"forward_process": {"class_path": "AbsorbingProcess"}}}
    digits["init_args"]["denoiser"] = {"class_path": "MLP"}
    trained: dict[str, Any] = {"model": digits, "data": {"class_path": "DigitsDataModule"}}

    def run(cli: Any, subcommand: str) -> None:
        if subcommand == "fit":
            trained.update({key: cli.config.fit[key].as_dict() for key in ("model", "data")})

    for name in ("before_instantiate_classes", "instantiate_classes"):
        monkeypatch.setattr(train_module.FLDDCLI, name, lambda _: None)
    monkeypatch.setattr(train_module.FLDDCLI, "_run_subcommand", run)
    monkeypatch.setattr(checkpoint_module, "checkpoint_config", lambda _: trained)
    monkeypatch.setattr(score_module, "score", _idle(score_module.score))
    monkeypatch.setattr(evaluate_module, "evaluate", _idle(evaluate_module.evaluate))
    monkeypatch.setattr(sample_module, "sample", _idle(sample_module.sample))
    monkeypatch.setattr(tokenizer_module, "train_tokenizer", _idle(tokenizer_module.train_tokenizer))


def _idle(function: Callable[..., None]) -> Callable[..., None]:
    """Takes the same options, and does nothing."""

    @wraps(function)
    def idle(*args: Any, **kwargs: Any) -> None:
        pass

    return idle


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=named)
def test_commands_parse(page: Path, quick: Path, parsing: None, capsys: pytest.CaptureFixture[str]) -> None:
    (quick / "net.py").write_text("")  # of a friend
    for block in blocks(page):
        if block.title:
            (quick / block.title).write_text(block.text)
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if not words:  # a comment
            continue
        if words[0] == "srun":  # which starts the rest
            words = words[1:]
        if words[0] == "fldd-lightning":
            try:
                status = main(words[1:])
            except SystemExit as end:  # of --help
                status = end.code
            assert status in (0, None), f"{line}\n{capsys.readouterr().err[-800:]}"
        elif words[0] in ("python", "pytest"):
            files = [word for word in words[1:] if re.match(r"(benchmarks|docs|tests)/", word)]
            assert all((ROOT / word).exists() for word in files), line


def test_a_command_that_is_wrong_does_not_parse(parsing: None) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "configs/digits.yaml", "--model.num_stepz", "4"])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{named(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in [_slug(heading) for heading in headings], f"{named(page)} links to {target}"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines).partition("\n## ")[0]
    code = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert sum(bool(line.strip()) for line in code.text.splitlines()) <= 10
    assert first.count("![") == 1
    table = [line for line in first.splitlines() if line.startswith("|")]
    assert len(table) <= 2 + 4


def test_numbers_of_the_readme_are_measured() -> None:
    """The result table says what ``benchmarks/results/factorial.csv`` holds, in the mean of the seeds."""
    import csv

    rows = list(csv.DictReader((ROOT / "benchmarks" / "results" / "factorial.csv").open()))
    wanted = [
        ("masked", "no", "64", "ancestral"),
        ("masked", "yes", "4", "confident first"),
        ("order by hand", "yes", "4", "ancestral"),
        ("learned", "yes", "4", "ancestral"),
    ]
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")][2:6]
    for line, key in zip(table, wanted, strict=True):
        names = ("process", "latent", "num_steps", "decoding")
        here = [row for row in rows if row["kind"] == "mnist16" and tuple(row[name] for name in names) == key]
        assert len(here) == (1 if key[2] == "64" else 3)
        steps, nelbo, frechet = (cell.strip(" *") for cell in line.split("|")[2:5])
        assert steps == key[2]
        assert float(nelbo) == pytest.approx(fmean(float(row["nelbo"]) for row in here), abs=0.0051)
        assert float(frechet) == pytest.approx(fmean(float(row["quality"]) for row in here), abs=0.0051)


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: fldd_lightning\.(\w+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) - {"any_order", "bound", "compiled", "coupling", "evaluation", "sampling"} == set(
        fldd_lightning.__all__
    )


def test_site_builds(tmp_path: Path) -> None:
    """With no warning; and nothing in it is fetched from elsewhere when it is read."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    warnings = [line for line in built.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert built.returncode == 0, "\n".join(warnings) or built.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(DOCS)
    for page in pages:
        html = page.read_text(encoding="utf-8")
        remote = re.findall(r'<(?:script|img|source|iframe|link)\b[^>]*(?:src|href)="(https?:)?//[^"]*"', html)
        assert not remote, page
