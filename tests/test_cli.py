"""Every subcommand once on tiny data, in-process, and every kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fldd_lightning.cli import main
from fldd_lightning.cli.train import packaged_config, with_save_dir

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = [
    *("--trainer.max_steps", "6", "--trainer.val_check_interval", "3"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny digits run; its folder holds checkpoints and pictures."""
    folder = tmp_path_factory.mktemp("run")
    args = ["fit", "--config", str(CONFIGS / "digits.yaml"), "--trainer.default_root_dir", str(folder)]
    assert main([*args, *QUICK, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)]) == 0
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
    for name in ("best", "final"):
        assert torch.load(checkpoint(trained, name), weights_only=True)["fldd_problem"]["num_steps"] == 4
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
        saved = torch.load(tmp_path / "nelbo_rank0.pt", weights_only=True)
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


def test_array_run(tmp_path: Path) -> None:
    """Four dimensions an example, and a logger that is given no folder."""
    x = np.random.default_rng(0).integers(0, 5, (40, 3, 2, 1, 2))
    np.save(tmp_path / "my.npy", x)
    args = ["fit", "--config", str(CONFIGS / "array.yaml"), "--data.path", str(tmp_path / "my.npy")]
    args += ["--model.num_steps", "2", "--seed_everything", "3", "--trainer.logger", "CSVLogger"]
    args += ["--trainer.default_root_dir", str(tmp_path)]
    assert main([*args, *QUICK, "--trainer.val_check_interval", "1", "--data.batch_size", "8"]) == 0
    saved = torch.load(checkpoint(tmp_path), weights_only=True)["fldd_problem"]
    assert (saved["num_classes"], saved["shape"], saved["num_steps"]) == (5, [3, 2, 1, 2], 2)
    assert main(["sample", "--ckpt_path", checkpoint(tmp_path), "--output", str(tmp_path / "s")]) == 0
    assert np.load(tmp_path / "s.npy").shape == (64, 3, 2, 1, 2)


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
    args += ["--trainer.callbacks+=fldd_lightning.callbacks.FIDCallback", "--trainer.callbacks.num_samples", "70"]
    args += ["--trainer.callbacks.extractor", "fldd_lightning.metrics.PixelFeatures"]
    assert main(args) == 0
    facts = json.loads((tmp_path / "sample_quality.jsonl").read_text().splitlines()[-1])
    assert (facts["global_step"], facts["num_steps"], facts["num_samples"]) == (6, 4, 70)


def test_unknown_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no subcommand 'nonsense'" in error_of(["nonsense"], capsys)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--config", str(path), "--print_config"]
    if path.stem == "array":
        args += ["--data.path", "somewhere"]
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code in (0, None)
    config = yaml.safe_load(capsys.readouterr().out)
    assert "num_classes" not in path.read_text()
    assert config["model"]["init_args"]["num_steps"] == 4


@pytest.mark.parametrize(
    ("config", "size", "options"),
    [
        ("mnist28", 28, ["--model.code.fit_steps", "2"]),
        ("mnist28", 28, ["--model.code.fit_steps", "2", "--model.denoiser", "DiT"]),
        ("cifar10", 32, []),
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
        ("base", "fldd_lightning.forward.AbsorbingProcess", {}),
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
