from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image

from conftest import Stripes, image_model, randomise, small_mlp
from fldd_lightning import FLDD, FLDDError, ImageFLDD
from fldd_lightning.callbacks import Pictures
from fldd_lightning.callbacks import pictures as pictures_module
from fldd_lightning.callbacks.drawing import MASK_COLOUR, shown_steps
from fldd_lightning.callbacks.run import on_training_device
from fldd_lightning.estimators import Reinforce
from fldd_lightning.forward import AbsorbingProcess, LearnedMaskProcess


def fit(folder: Path, model: Any, callback: Pictures, **options: Any) -> None:
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, **options}
    Trainer(
        accelerator="cpu", default_root_dir=str(folder), callbacks=[callback], enable_checkpointing=False, **settings
    ).fit(model, Stripes())


class Seeing(Logger):
    """Remembers the names and steps of pictures."""

    name = version = "seeing"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class TakesFiles(Seeing):
    """Has W&B's method."""

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        assert Path(images[0]).is_file()
        self.seen.append((key, step))


class TakesArrays(Seeing):
    """Has TensorBoard's method on its experiment."""

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, tag: str, img_tensor: Any, global_step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        assert img_tensor.shape[-1] == 3
        self.seen.append((tag, global_step))


def test_over_training_with_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, torch.Tensor] = {}
    save_grid = pictures_module.save_grid

    def remember(module: Any, x: torch.Tensor, path: Path) -> None:
        shown[path.stem] = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
        save_grid(module, x, path)

    monkeypatch.setattr(pictures_module, "save_grid", remember)
    model = image_model(2)
    loggers = [TakesFiles(), TakesArrays()]
    callback = Pictures(9, 2)
    fit(tmp_path, model, callback, max_epochs=3, logger=loggers)
    folder = tmp_path / "pictures"
    names = ["marginals", "samples", "samples_step12", "samples_step4", "samples_step8", "schedule"]
    assert sorted(path.stem for path in folder.iterdir()) == [*names, "trajectory"]
    # the last validation and the end of the run show the same weights: the averaged ones
    assert torch.equal(shown["samples_step12"], shown["samples"])
    assert not torch.equal(shown["samples_step4"], shown["samples"])
    for logger in loggers:
        assert [step for name, step in logger.seen if name == "samples"] == [4, 8, 12, 12]
        assert {"trajectory", "marginals", "schedule"} <= {name for name, _ in logger.seen}
    inspect.signature(WandbLogger.log_image).bind(None, "samples", ["path"], 4)


@pytest.mark.parametrize("learned", [False, True])
def test_the_schedule_is_the_step_that_reveals(learned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, dict[str, torch.Tensor]] = {}

    def keep(columns: list[Any], path: Path) -> None:
        drawn[path.stem] = {column.title: column.pictures for column in columns}

    monkeypatch.setattr(pictures_module, "_save_panels", keep)
    process = partial(LearnedMaskProcess, network=small_mlp) if learned else AbsorbingProcess
    model = ImageFLDD(2, (4, 4), process, small_mlp, Reinforce, num_steps=4)
    randomise(model.forward_process)
    batch = {"x": Stripes().splits["val"].x}
    with torch.no_grad():
        Pictures(num_rows=3)._save_schedule(model, batch, tmp_path)
    revealed = drawn["marginals"]["revealed in step"]
    assert revealed.shape == (3, 1, 4, 4)
    if learned:  # masked at t and no longer at t - 1 is revealed in step T - t + 1 of sampling
        x = batch["x"]
        one_hot = torch.nn.functional.one_hot(x, 2).float()
        process = model.forward_process
        residual = process.network(one_hot, torch.zeros(len(x), dtype=torch.long))  # (N, 4, 4, T - 1)
        masked, expected = torch.ones(len(x), 4, 4), torch.zeros(len(x), 4, 4)
        for t in (4, 3, 2):
            stays = masked * (process.log_stay_odds()[t] + residual[..., t - 2]).sigmoid()
            expected, masked = expected + (masked - stays) * (5 - t), stays
        expected = expected + 4 * masked
        assert expected.std() > 0.1
    else:
        expected = torch.full((40, 4, 4), 2.5)
    torch.testing.assert_close(revealed[:, 0], expected[:3])
    torch.testing.assert_close(drawn["schedule"]["revealed in step"][0, 0], expected.mean(0))
    assert list(drawn["schedule"]) == [f"$q(z_{{{t}}} = x)$" for t in (3, 2, 1)] + ["revealed in step"]


def test_mask_is_a_colour_and_long_trajectories_are_thinned(tmp_path: Path) -> None:
    model = ImageFLDD(3, (4, 4), AbsorbingProcess, small_mlp, Reinforce, num_steps=40)
    states = model.sample(2, trajectory=True)
    assert bool((states[0] == 3).all())
    pictures_module.save_trajectory(model, states, tmp_path / "long.png")
    image = Image.open(tmp_path / "long.png").convert("RGB")
    assert image.width < 2000
    colours = {colour for _, colour in image.getcolors(100_000)}
    assert tuple(round(255 * value) for value in MASK_COLOUR) in colours
    assert shown_steps(40, 9) == [40, 35, 30, 25, 20, 15, 10, 5, 0]
    assert shown_steps(2, 9) == [2, 1, 0]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_is_drawn(tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures_module, "_save_panels", lambda panels, path: drawn.extend(panels))
    model = ImageFLDD(3, (channels, 4, 5), AbsorbingProcess, small_mlp, Reinforce, num_steps=2)
    states = torch.zeros(3, 1, channels, 4, 5, dtype=torch.long)
    states[:, 0, -1, 1, 2] = torch.tensor([3, 2, 0])  # z_2 has MASK there
    pictures_module.save_trajectory(model, states, tmp_path / "steps.png")
    column = 2 if channels in (1, 3) else 5 * (channels - 1) + 2
    masked, revealed = drawn[0].pictures[0, :, 1, column], drawn[1].pictures[0, :, 1, column]
    assert masked.tolist() == list(torch.tensor(MASK_COLOUR).tolist())
    assert revealed.tolist() == ([0.0, 0.0, 1.0] if channels == 3 else [1.0, 1.0, 1.0])
    assert model.render(states[0]).shape == (1, channels, 4, 5)  # what the metrics see
    monkeypatch.undo()
    pictures_module.save_grid(model, states[:, 0], tmp_path / "grid.png")
    pictures_module.save_trajectory(model, states, tmp_path / "steps.png")
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "steps.png"}


def test_mask_is_blue_where_the_coordinate_is_drawn_in_plain_arrays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures_module, "_save_panels", lambda panels, path: drawn.extend(panels))
    model = FLDD(3, (2, 2, 5), AbsorbingProcess, small_mlp, Reinforce, num_steps=2)
    states = torch.zeros(3, 1, 2, 2, 5, dtype=torch.long)
    states[:, 0, 1, 0, 2] = torch.tensor([3, 2, 0])
    pictures_module.save_trajectory(model, states, Path("unused.png"))
    shown = drawn[0].pictures[0]  # (3, 2, 10): a row for each of the first dimension
    mask = torch.tensor(MASK_COLOUR)
    assert (shown == mask.view(3, 1, 1)).all(0).nonzero().tolist() == [[1, 2]]


def test_wrong_numbers() -> None:
    with pytest.raises(FLDDError, match="num_rows of Pictures"):
        Pictures(num_rows=0)


def test_last_pictures_are_drawn_where_the_module_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning has it on the CPU by then."""
    places: list[str] = []
    draw = ImageFLDD.sample

    @contextmanager
    def there(trainer: Any, module: Any) -> Iterator[None]:
        places.append("there")
        yield
        places.append("back")

    monkeypatch.setattr(pictures_module, "on_training_device", there)
    monkeypatch.setattr(ImageFLDD, "sample", lambda *args, **kwargs: places.append("drawn") or draw(*args, **kwargs))
    fit(tmp_path, image_model(2), Pictures(num_samples=4, num_rows=2), max_steps=1, limit_val_batches=0)
    assert places == ["there", "drawn", "drawn", "back"]


def test_the_module_goes_there_and_comes_back() -> None:
    module, moves = Mock(device=torch.device("cpu")), []
    module.to = moves.append
    trainer: Any = Mock()
    trainer.strategy.root_device = torch.device("cuda", 0)
    with on_training_device(trainer, module):
        assert moves == [torch.device("cuda", 0)]
    assert moves == [torch.device("cuda", 0), torch.device("cpu")]
