"""Every subcommand once on tiny data, in-process, and every kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from PIL import Image
from torch.utils.data import DataLoader

import fldd_lightning
from fldd_lightning import FLDD, MLP, AbsorbingProcess, DigitsDataModule, ImageFLDD, Texts
from fldd_lightning.cli import main
from fldd_lightning.cli.defaults import default_callbacks
from fldd_lightning.cli.train import FLDDCLI, packaged_config, with_save_dir

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = [
    *("--trainer.max_steps", "6", "--trainer.val_check_interval", "3"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny digits run: its folder, which holds checkpoints and pictures, and what it said and warned of."""
    folder = tmp_path_factory.mktemp("run")
    args = ["fit", "--config", str(CONFIGS / "digits.yaml"), "--trainer.default_root_dir", str(folder)]
    args += [*QUICK, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)]
    with redirect_stdout(StringIO()) as said, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        assert main(args) == 0
    return SimpleNamespace(folder=folder, said=said.getvalue(), warned=[str(one.message) for one in warned])


@pytest.fixture(scope="module")
def trained(run: SimpleNamespace) -> Path:
    folder: Path = run.folder
    return folder


def checkpoint(folder: Path, name: str = "final") -> str:
    return str(next(folder.rglob(f"{name}*.ckpt")))


def error_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one paragraph printed for a mistake."""
    capsys.readouterr()
    assert main(args) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_help_is_light() -> None:
    start = time.perf_counter()
    code = "import sys; from fldd_lightning.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sample" in done.stdout
    assert time.perf_counter() - start < 3


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fldd-lightning 0.")


def test_fit_leaves_checkpoints_and_pictures(trained: Path) -> None:
    for name in ("best", "final", "last"):
        saved = torch.load(checkpoint(trained, name), weights_only=True)["fldd"]
        assert saved["class"].endswith(".ImageFLDD")
        assert saved["settings"]["num_steps"] == 4
    assert next(trained.rglob("report.html")).stat().st_size > 1_000
    for name in ("samples", "trajectory", "marginals"):
        picture = Image.open(next(trained.rglob(f"{name}.png")))
        assert len(set(picture.convert("L").tobytes())) > 1
    assert "val/nelbo" in next(trained.rglob("metrics.csv")).read_text()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_needs_the_checkpoint_alone(
    command: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [command, "--ckpt_path", checkpoint(trained), "--trainer.default_root_dir", str(tmp_path)]
    assert main([*args, "--trainer.logger", "false", "--trainer.accelerator", "cpu"]) == 0
    out = capsys.readouterr().out
    if command == "predict":
        saved = torch.load(tmp_path / "nelbo.pt", weights_only=True)
        assert len(saved["nelbo"]) == 270
    else:
        assert "nelbo" in out


def test_sample_writes_integers_and_a_grid(trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        args = ["sample", "--ckpt_path", checkpoint(trained), "--num_samples", "7", "--trajectory", "true"]
        assert main([*args, "--output", str(tmp_path / name)]) == 0
    x = np.load(tmp_path / "a.npy")
    assert x.shape == (7, 8, 8)
    assert set(np.unique(x)) <= {0, 1}
    assert np.array_equal(x, np.load(tmp_path / "b.npy"))
    assert np.load(tmp_path / "a_trajectory.npy").shape == (5, 7, 8, 8)
    assert Image.open(tmp_path / "a.png").size[0] > 8
    assert Image.open(tmp_path / "a_trajectory.png").size[0] > 8


def test_array_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four dimensions an example, and a logger that is given no folder."""
    x = np.random.default_rng(0).integers(0, 5, (40, 3, 2, 1, 2))
    np.save(tmp_path / "my.npy", x)
    args = ["fit", "--config", str(CONFIGS / "array.yaml"), "--data.path", str(tmp_path / "my.npy")]
    args += ["--model.num_steps", "2", "--seed_everything", "3", "--trainer.logger", "CSVLogger"]
    args += ["--trainer.default_root_dir", str(tmp_path)]
    assert main([*args, *QUICK, "--trainer.val_check_interval", "1", "--data.batch_size", "8"]) == 0
    saved = torch.load(checkpoint(tmp_path), weights_only=True)["fldd"]["settings"]
    assert (saved["num_classes"], list(saved["shape"]), saved["num_steps"]) == (5, [3, 2, 1, 2], 2)
    assert main(["sample", "--ckpt_path", checkpoint(tmp_path), "--output", str(tmp_path / "s")]) == 0
    assert np.load(tmp_path / "s.npy").shape == (64, 3, 2, 1, 2)
    mine = (tmp_path / "my.npy").read_bytes()
    for name in ("my.npy", "my", "s"):  # nothing is written over
        args = ["sample", "--ckpt_path", checkpoint(tmp_path), "--output", str(tmp_path / name)]
        assert "is there already. Give another --output, or move it away" in error_of(args, capsys)
    assert (tmp_path / "my.npy").read_bytes() == mine


@pytest.mark.parametrize("option", ["", "--config="])
def test_configs_are_found_from_any_folder(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = packaged_config(f"{option}configs/digits.yaml")
    assert found.startswith(option)
    assert Path(found.removeprefix(option)).read_text() == (CONFIGS / "digits.yaml").read_text()
    assert packaged_config(f"{option}configs/nothing.yaml") == f"{option}configs/nothing.yaml"


def test_loggers_that_demand_a_folder_get_the_root() -> None:
    given = ["fit", "--trainer.logger", "CSVLogger", "--trainer.max_steps", "3"]
    added = ["--trainer.logger.init_args.save_dir", "."]
    assert with_save_dir(given) == [*given[:3], *added, *given[3:]]
    assert with_save_dir(["fit", "--trainer.logger=x.TensorBoardLogger"])[2:] == added
    for kept in ([*given, "--trainer.logger.save_dir", "here"], ["fit", "--trainer.logger", "false"]):
        assert with_save_dir(kept) == kept


def test_sample_quality_names_the_step_of_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    args = ["test", "--ckpt_path", checkpoint(trained), "--trainer.default_root_dir", str(tmp_path)]
    args += ["--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    args += ["--trainer.callbacks+=FIDCallback", "--trainer.callbacks.num_samples", "70"]
    args += ["--trainer.callbacks.extractor", "PixelFeatures"]
    assert main(args) == 0
    facts = json.loads((tmp_path / "sample_quality.jsonl").read_text().splitlines()[-1])
    assert (facts["global_step"], facts["num_steps"], facts["num_samples"]) == (6, 4, 70)


def test_unknown_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no subcommand 'nonsense'" in error_of(["nonsense"], capsys)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_is_short_and_makes_a_model(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On data that need no download: K, shape and padding of the real ones."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 20
    assert "num_classes" not in path.read_text()
    kind, (num_classes, shape) = DATA.get(path.stem, ("DigitsDataModule", (2, (8, 8))))
    monkeypatch.setattr(getattr(fldd_lightning, kind), "num_classes", num_classes)
    monkeypatch.setattr(getattr(fldd_lightning, kind), "shape", shape)
    monkeypatch.setattr(getattr(fldd_lightning, kind), "num_values", None)
    monkeypatch.setattr(getattr(fldd_lightning, kind), "condition_sizes", {"label": 10})
    monkeypatch.setattr(Trainer, "fit", lambda self, model, **_: made.append((self, model)))
    monkeypatch.setattr(FLDDCLI, "after_fit", lambda self: None)
    made: list[tuple[Trainer, FLDD]] = []
    args = ["fit", "--config", str(path), "--trainer.accelerator", "cpu", "--trainer.precision", "32"]
    assert main(args + (["--data.path", "somewhere"] if path.stem in ("array", "table") else [])) == 0
    ((trainer, model),) = made
    assert (model.spec.num_classes, tuple(model.spec.shape), model.spec.num_steps) == (num_classes, shape, 4)
    names = {type(callback).__name__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
    shown = "Texts" if kind in ("TextDataModule", "TableDataModule") else "Pictures"
    assert {"BestCheckpoint", "LastCheckpoint", "CollapseMonitor", "Report", "NELBOWriter", shown} <= names
    assert trainer.check_val_every_n_epoch is None


DATA = {
    "array": ("ArrayDataModule", (5, (3, 2))),
    "table": ("TableDataModule", (16, (9,))),
    "cifar10": ("CIFAR10DataModule", (32, (3, 32, 32))),
    "mnist": ("MNISTDataModule", (2, (16, 16))),
    "mnist_labels": ("MNISTDataModule", (2, (16, 16))),
    "mnist28": ("MNISTDataModule", (2, (28, 28))),
    "text": ("TextDataModule", (27, (64,))),
    "text8": ("TextDataModule", (27, (256,))),
}


def test_what_a_run_lists_itself_is_not_added(tmp_path: Path) -> None:
    model = ImageFLDD(2, (4, 4), AbsorbingProcess, MLP)
    own = [ModelCheckpoint(tmp_path), Texts(), RichProgressBar()]
    added = default_callbacks("fit", {"callbacks": own}, model)
    assert {type(one).__name__ for one in added} == {"NELBOWriter", "CollapseMonitor", "Report", "SaveOnSignal"}
    added = default_callbacks("fit", {"enable_checkpointing": False, "enable_progress_bar": False}, model)
    names = {"NELBOWriter", "CollapseMonitor", "Report", "Pictures", "SaveOnSignal"}
    assert {type(one).__name__ for one in added} == names
    added = default_callbacks("test", {"callbacks": None}, model)
    assert {type(one).__name__ for one in added} == {"NELBOWriter", "RunProgressBar"}


@pytest.mark.parametrize("name", ["digits_labels", "digits_masked"])
def test_the_config_of_a_run_runs_again(name: str, tmp_path: Path) -> None:
    args = ["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--trainer.max_steps", "1", *QUICK[2:]]
    assert main([*args, "--trainer.default_root_dir", str(tmp_path)]) == 0
    config = next(tmp_path.rglob("config.yaml"))
    assert "Unable" not in config.read_text()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config), "--print_config"])
    assert stop.value.code in (0, None)


def test_nothing_is_warned_of(run: SimpleNamespace) -> None:
    """But that the forward process is freed earlier than the config says, in a run of six steps."""
    assert [message for message in run.warned if "more than half of this run" not in message] == []


def test_the_run_ends_with_what_to_do(run: SimpleNamespace, trained: Path) -> None:
    last = run.said.rstrip().splitlines()
    best = checkpoint(trained, "best")
    assert last[-2].strip() == f"fldd-lightning sample --ckpt_path {best} --output samples"
    assert last[-1].strip() == f"fldd-lightning test --ckpt_path {best}"
    report = next(trained.rglob("report.html"))
    config = report.with_name("config.yaml")  # which has the trainer's options
    assert (
        f"fldd-lightning fit --config {config} --ckpt_path {checkpoint(trained, 'last')} --trainer.max_steps"
        in report.read_text()
    )
    for written in (report, best, checkpoint(trained, "last"), checkpoint(trained)):
        assert any(str(written) in line for line in last[-12:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size", "options"),
    [
        ("mnist28", 28, ["--model.latents.fit_steps", "2"]),
        ("mnist28", 28, ["--model.latents.fit_steps", "2", "--model.denoiser", "DiT"]),
        ("cifar10", 32, ["--model.denoiser.widths", "[16,32]", "--model.forward_process.network.widths", "[16,32]"]),
    ],
)
def test_image_networks_train(config: str, size: int, options: list[str], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, size, size, 3), dtype=np.uint8)
    (tmp_path / "images" / "train").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / "train" / f"{i}.png")
    args = ["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--trainer.default_root_dir", str(tmp_path), *options]
    args += ["--data.path", str(tmp_path / "images"), "--data.num_val", "4", "--data.batch_size", "4"]
    args += ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    args += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.callbacks", "[]"]
    assert main(args) == 0
    (path,) = tmp_path.rglob("final.ckpt")
    assert main(["sample", "--ckpt_path", str(path), "--num_samples", "2", "--output", str(tmp_path / "s.png")]) == 0
    assert np.load(tmp_path / "s.npy").shape[-2:] == (size, size)


def test_a_schedule_to_start_from_is_chosen_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, expected in (
        ("base", "AbsorbingProcess", {}),
        ("base.slack", "0.2", {"slack": 0.2}),
    ):
        args = ["fit", "--config", str(CONFIGS / "text.yaml"), f"--model.forward_process.{option}", value]
        with pytest.raises(SystemExit):
            main([*args, "--print_config"])
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["init_args"]["forward_process"]["init_args"]["base"]["init_args"] == expected


def test_own_classes_are_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_module.py").write_text("from fldd_lightning import ImageFLDD\n\nclass Own(ImageFLDD): ...\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIGS / "digits.yaml"), "--model", "own_module.Own", "--print_config"])
    assert "class_path: own_module.Own" in capsys.readouterr().out


def test_missing_files_are_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--config", str(CONFIGS / "array.yaml"), "--data.path", str(tmp_path / "no.npy"), *QUICK]
    assert "no file at" in error_of(args, capsys)
    assert "no checkpoint at" in error_of(["test", "--ckpt_path", str(tmp_path / "no.ckpt")], capsys)
    assert "no checkpoint at" in error_of(["sample", "--ckpt_path", str(tmp_path / "no.ckpt")], capsys)
    for content in (b"not a checkpoint", b"hello", b""):
        (tmp_path / "bad.ckpt").write_bytes(content)
        assert "it is no checkpoint" in error_of(["sample", "--ckpt_path", str(tmp_path / "bad.ckpt")], capsys)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "not a checkpoint written by" in error_of(["test", "--ckpt_path", str(tmp_path / "other.ckpt")], capsys)


def test_other_step_counts_are_one_paragraph(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["sample", "--ckpt_path", checkpoint(trained), "--num_steps", "10"]
    assert "trained with T=4" in error_of(args, capsys)
    args = ["test", "--ckpt_path", checkpoint(trained), "--model.num_steps", "3", "--trainer.logger", "false"]
    assert "num_steps: 4 there, 3 here" in error_of(args, capsys)


def test_no_cuda_is_one_paragraph(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["sample", "--ckpt_path", checkpoint(trained), "--device", "cuda"]
    assert "no CUDA device" in error_of(args, capsys)


def test_a_checkpoint_made_in_python_is_asked_for_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DigitsDataModule()
    model = ImageFLDD(data.num_classes, data.shape, AbsorbingProcess, partial(MLP, width=8, depth=1))
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=1, limit_val_batches=1, enable_checkpointing=False, default_root_dir=tmp_path, **options
    )
    trainer.fit(model, DataLoader(data.splits["train"], batch_size=16))
    path = str(tmp_path / "made.ckpt")
    trainer.save_checkpoint(path)
    assert "does not name its data: add --data CLASS" in error_of(["test", "--ckpt_path", path], capsys)
    quiet = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.limit_test_batches", "1"]
    assert main(["test", "--ckpt_path", path, "--data", "DigitsDataModule", "--data.batch_size", "64", *quiet]) == 0
