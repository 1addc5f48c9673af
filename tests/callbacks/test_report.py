"""The report in a browser, at the width of a desk and of a phone, and what it says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from conftest import Stripes, image_model, randomise, small_mlp
from fldd_lightning import FLDDError, ImageFLDD
from fldd_lightning.callbacks import CollapseMonitor, Report
from fldd_lightning.estimators import Reinforce
from fldd_lightning.forward import AbsorbingProcess, LearnedMaskProcess, UniformProcess
from test_text import WORDS, data_of, model_of

OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def fit(
    folder: Path, model: Any, data: Any = None, *callbacks: Any, ckpt_path: str | None = None, **options: Any
) -> str:
    """Train with a small report; what the page says."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    steps: dict[str, Any] = {"max_steps": 9, "val_check_interval": 3, "check_val_every_n_epoch": None}
    chosen = callbacks or (Report(9, 4), CollapseMonitor())
    keeping = {"enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in chosen)}
    run = Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        callbacks=list(chosen),
        **{**quiet, **keeping, **steps, **options},
    )
    run.fit(model, Stripes() if data is None else data, ckpt_path=ckpt_path, weights_only=True)
    return (folder / "report.html").read_text(encoding="utf-8")


def learned(num_steps: int = 3) -> ImageFLDD:
    process = partial(LearnedMaskProcess, network=small_mlp)
    return ImageFLDD(2, (4, 4), process, small_mlp, Reinforce, num_steps=num_steps, freeze_steps=0, lr=1e-2)


def said(page: str) -> str:
    """The text of a page, without plotly and its figures."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", bare)).split())


# ---- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("no Chromium to open the report in: install one (Debian and Ubuntu: apt-get install -y chromium).")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield opened
        opened.close()


class Opened:
    """A page in a browser, and what went wrong on it."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.wrong: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 844})
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type != "log" else None)
        self.page.on("request", self._request)
        self.page.goto(path.resolve().as_uri())
        for figure in self.page.query_selector_all(".plotly-graph-div"):
            figure.wait_for_selector("svg.main-svg", state="attached")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(f"asked for {request.url}")

    def figures(self) -> dict[str, int]:
        """How many lines, heat maps and pictures each figure has drawn, by its id."""
        drawn: dict[str, int] = self.page.evaluate(
            """Object.fromEntries([...document.querySelectorAll('.plotly-graph-div')].map(each => [each.id, [
                ...each.querySelectorAll('.scatterlayer path.js-line, .heatmaplayer image, .imagelayer image')
            ].filter(mark => mark.getBoundingClientRect().width > 5).length]))"""
        )
        return drawn

    def frame(self) -> str:
        """The label of the frame that is seen."""
        seen = [f.get_attribute("data-label") for f in self.page.query_selector_all(".frame") if f.is_visible()]
        assert len(seen) == 1
        assert self.page.inner_text(".player output") == seen[0]
        return str(seen[0])


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_model_of_images(browser: Any, tmp_path: Path, width: int) -> None:
    fit(tmp_path, learned())
    opened = Opened(browser, tmp_path / "report.html", width)
    page = opened.page
    # training, validation and baseline; three steps; the order and its change; four examples and their maps
    assert opened.figures() == {"bound": 3, "terms": 3, "order": 2, "examples": 8, "moved": 1}
    assert opened.frame() == "z₃"
    page.click(".player button")
    assert page.inner_text(".player button") == "Pause"
    page.wait_for_selector(".player output:text-is('z₀')", timeout=10_000)
    assert page.inner_text(".player button") == "Play"
    assert opened.frame() == "z₀"
    page.fill(".player input", "1")
    assert opened.frame() == "z₂"
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for each in page.query_selector_all(".plotly-graph-div, img, table, pre"):
        box = each.bounding_box()
        assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= width)
    assert opened.wrong == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_model_of_text(browser: Any, tmp_path: Path, width: int) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS * 30))
    data = data_of(tmp_path / "words.txt")
    fit(tmp_path, model_of(data), data)
    opened = Opened(browser, tmp_path / "report.html", width)
    assert opened.figures() == {"bound": 3, "terms": 2 + data.padded, "order": 2, "examples": 1, "moved": 1}
    assert set(opened.page.inner_text(".frame:first-child").replace(" ", "").split()) <= {"·" * n for n in range(1, 9)}
    assert opened.page.query_selector(".frame:first-child .mask") is not None
    opened.page.fill(".player input", "2")
    assert opened.frame() == "z₀"
    assert "·" not in opened.page.inner_text(".frame:last-child")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.wrong == []
    opened.page.close()


def test_what_models_write_is_text_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    class Hostile(ImageFLDD):
        def to_text(self, x: torch.Tensor) -> list[str]:
            return ["</script><script>throw 1</script><img src='https://nowhere.invalid/x'>\" & '"] * len(x)

    model = image_model(2)
    model.__class__ = Hostile
    fit(tmp_path, model)
    opened = Opened(browser, tmp_path / "report.html", 1280)
    assert opened.wrong == []
    assert "</script><script>throw 1</script>" in opened.page.inner_text(".frame:first-child")
    opened.page.close()


# ---- what it says -------------------------------------------------------------------------------


def test_one_file_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = fit(tmp_path, learned())
    out = capsys.readouterr().out
    pattern = (
        r"val/nelbo \d+\.\d nats an example; a product of marginals has \d+\.\d; [\d,]+ samples a second\. Report: "
    )
    assert re.search(pattern + re.escape(str(tmp_path / "report.html")), out)
    assert out.count("samples a second") == 1
    assert len(re.findall(r"plotly\.js v\d", page)) == 1
    bare = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:)", bare)
    assert 'name="viewport"' in page
    text = said(page)
    for words in (
        "max_steps: 9",
        "num_steps: 3",
        "batch_size: 16",
        "Stripes",
        torch.__version__,
        "training took",
        "seed",
    ):
        assert words in text


def test_the_bound_is_that_of_the_weights_at_the_end(tmp_path: Path) -> None:
    """The last validation was at step 6 of 8, and saw fewer examples than there are."""
    model, report = learned(), Report(9, 4)
    fit(tmp_path, model, None, report, max_steps=8, limit_val_batches=2)
    steps = [step for step, _ in report.history.points("val/nelbo")]
    assert steps == [3, 6, 8]
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=2)
    logged = run.validate(model, Stripes(), verbose=False)[0]
    assert report.history.last("val/nelbo") == pytest.approx(logged["val/nelbo"], rel=1e-5)
    assert [step for step, _ in report.history.points("train/nelbo")] == list(range(1, 9))


def test_the_baseline_is_that_of_the_collapse_monitor(tmp_path: Path) -> None:
    pages = [said(fit(tmp_path, learned(), None, *each)) for each in ([Report()], [CollapseMonitor(), Report()])]
    found = [re.search(r"on each other, has (\S+) nats", page) for page in pages]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("limit", [{"max_time": {"seconds": 1}, "max_steps": -1, "max_epochs": -1}, {"max_epochs": 1}])
def test_a_report_whatever_ends_the_run(tmp_path: Path, limit: Any) -> None:
    text = said(fit(tmp_path, learned(), **{"max_steps": -1, **limit}))
    assert "Go on from here" in text
    assert ("max_time: 1.0 s" if "max_time" in limit else "max_time: null") in text


def test_whether_the_forward_process_moved(tmp_path: Path) -> None:
    still = learned()
    still.freeze_steps = 100
    assert "(LearnedMaskProcess) has not moved" in said(fit(tmp_path, still))
    moved = learned()
    randomise(moved.forward_process)
    assert re.search(r"has moved: the total variation .* is 0\.\d+ in the mean", said(fit(tmp_path, moved)))
    for process in (AbsorbingProcess, UniformProcess):
        fixed = ImageFLDD(2, (4, 4), process, small_mlp, Reinforce, num_steps=3)
        page = fit(tmp_path, fixed)
        assert f"The forward process is fixed: {process.__name__}" in said(page)
        assert ('class="swatch"' in page) == (process is AbsorbingProcess)  # only one has MASK


def test_one_step_and_nothing_validated(tmp_path: Path) -> None:
    model = ImageFLDD(2, (4, 4), AbsorbingProcess, small_mlp, Reinforce, num_steps=1)
    page = fit(tmp_path, model, limit_val_batches=0)
    assert "train/nelbo" in said(page)
    assert 'id="order"' not in page


def test_commands_name_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "This run kept no checkpoint" in said(fit(tmp_path, learned()))
    monkeypatch.chdir(tmp_path)
    best = ModelCheckpoint(tmp_path / "my run", "best", "val/nelbo", save_last=True)
    text = said(fit(tmp_path, learned(), None, Report(), best))
    assert "fldd-lightning sample --ckpt_path 'my run/best.ckpt' --trust=conftest.Stripes --num_samples 64" in text
    assert "fldd-lightning test --ckpt_path 'my run/best.ckpt' --trust=conftest.Stripes" in text
    assert "fldd-lightning fit --ckpt_path 'my run/last.ckpt' --trust=conftest.Stripes --trainer.max_steps 18" in text


def test_a_resumed_run_shows_all_of_it(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, "last", every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, learned(), None, Report(), last, max_steps=6)
    report = Report()
    fit(tmp_path, learned(), None, report, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [step for step, _ in report.history.points("train/nelbo")] == list(range(1, 10))
    assert {3, 9} <= {step for step, _ in report.history.points("val/nelbo")}
    again = learned()  # the callback is of another run now
    fit(tmp_path, again, None, report, max_steps=3)
    assert [step for step, _ in report.history.points("train/nelbo")] == [1, 2, 3]


def test_many_steps_have_a_heat_map_and_few_frames(tmp_path: Path) -> None:
    page = fit(tmp_path, learned(num_steps=100), max_steps=3)
    assert page.count('class="frame') <= 1 + 65  # the box of all of them
    assert "t = %{y}" in page or "t = %{y" in page


def test_no_report_of_a_try_or_of_other_modules(tmp_path: Path) -> None:
    run = Trainer(accelerator="cpu", fast_dev_run=True, default_root_dir=str(tmp_path), callbacks=[Report()])
    run.fit(learned(), Stripes())
    assert not (tmp_path / "report.html").exists()

    class Other(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.zeros((), requires_grad=True)

        def configure_optimizers(self) -> None:
            return None

    with pytest.raises(FLDDError, match="FLDD modules only"):
        fit(tmp_path, Other(), Stripes(), Report())
    with pytest.raises(FLDDError, match="1 or more"):
        Report(num_samples=0)
