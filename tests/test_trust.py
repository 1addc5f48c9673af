"""A checkpoint runs no code: every place in it that could name a class, by every way of opening it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fldd_lightning
from fldd_lightning import FLDD, DigitsDataModule, DiscreteDataModule, FLDDError, ImageFLDD, load_model
from fldd_lightning.cli import main
from fldd_lightning.cli.main import TRAINER_COMMANDS
from fldd_lightning.factory import import_class

CONFIGS = Path(__file__).parents[1] / "configs"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1"]
SMALL = ["--model.denoiser.width", "8", "--model.forward_process.network.width", "8", "--model.latents.size", "2"]

FRIEND = """
from pathlib import Path
from fldd_lightning import MLP, Backbone, DigitsDataModule, ImageFLDD, Spec

Path(__file__).with_name("imported").touch()

class Net(MLP): ...
class Digits(DigitsDataModule): ...
class Model(ImageFLDD): ...

def make(spec: Spec, num_inputs: int, num_outputs: int) -> Backbone:
    return MLP(spec, num_inputs, num_outputs, width=8)

def run(*args, **kwargs):
    Path(__file__).with_name("ran").touch()
"""

# each leaves a file named "ran" or "imported" in the working folder if it is called or imported
PAYLOADS = {
    "a shell": {"class_path": "pydoc.pipepager", "init_args": {"cmd": "touch ran"}},
    "a file of the working folder": {"class_path": "friend.Net"},
}
MORE_PAYLOADS = {
    "a class that starts a program": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}},
    "a function of the working folder": {"class_path": "friend.run"},
    "a function of the package": {
        "class_path": "fldd_lightning.factory.import_class",
        "init_args": {"path": "friend.Net"},
    },
    "a function of the top": {"class_path": "fldd_lightning.load_model", "init_args": {"path": "friend.ckpt"}},
    "a class of another role": {"class_path": "fldd_lightning.DigitsDataModule"},
    "no class of its module": {"class_path": "fldd_lightning.friend.Net"},
    "options for the parser": {"class_path": "fldd_lightning.MLP", "dict_kwargs": {"network": "friend.Net"}},
}


class Pickled:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["fldd"]["settings"]


def options(checkpoint: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options of a recipe among the settings."""
    found = settings(checkpoint)
    for name in names:
        found = found[name].setdefault("init_args", {})
    return found


def put_model(checkpoint: dict[str, Any], payload: dict[str, Any]) -> None:
    checkpoint["fldd"]["class"] = payload["class_path"]
    settings(checkpoint).update(payload.get("init_args", {}))


def put_data(checkpoint: dict[str, Any], payload: dict[str, Any]) -> None:
    checkpoint["datamodule_hyper_parameters"] = {"_class_path": payload["class_path"], **payload.get("init_args", {})}


def put_hyper_parameters(**extra: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def put(checkpoint: dict[str, Any], payload: dict[str, Any]) -> None:
        evil = dict.fromkeys(("forward_process", "denoiser", "estimator", "latents", "code"), payload)
        checkpoint["hyper_parameters"] = {**settings(checkpoint), **evil, **extra}
        checkpoint["hparams_name"] = "kwargs"

    return put


def set_option(*names: str, wrap: Callable[[Any], Any] = lambda payload: payload) -> Any:
    """Put a payload in place of the setting that the last name calls, in the recipes that the others call."""

    def put(checkpoint: dict[str, Any], payload: dict[str, Any]) -> None:
        options(checkpoint, *names[:-1])[names[-1]] = wrap(deepcopy(payload))

    return put


def data_option(name: str) -> Any:
    def put(checkpoint: dict[str, Any], payload: dict[str, Any]) -> None:
        checkpoint["datamodule_hyper_parameters"][name] = payload

    return put


REFUSED: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "model": put_model,
    "forward process": set_option("forward_process"),
    "denoiser": set_option("denoiser"),
    "estimator": set_option("estimator"),
    "latents": set_option("latents"),
    "one of several latents": set_option("latents", wrap=lambda payload: [payload]),
    "reverse": set_option("reverse"),
    "nested network": set_option("forward_process", "network"),
    "nested base": set_option("forward_process", "base"),
    "a number": set_option("lr"),
    "a number in a recipe": set_option("denoiser", "width"),
    "inside a list": set_option("shape", wrap=lambda payload: [payload, 8]),
    "inside a dictionary": set_option("lr", wrap=lambda payload: {"a": payload}),
    "a name alone": set_option("denoiser", wrap=lambda payload: payload["class_path"]),
    "an unknown option": set_option("evil"),
    "a dotted option": set_option("denoiser.class_path", wrap=lambda payload: payload["class_path"]),
}
IN_DATA = {
    "data": put_data,
    "data option": data_option("batch_size"),
    "unknown data option": data_option("evil"),
    "dotted data option": data_option("batch_size.class_path"),
}
IGNORED = {
    "hyper_parameters": put_hyper_parameters(),
    "hyper_parameters with a class": put_hyper_parameters(_class_path="friend.Model"),
    "hyper_parameters with an instantiator": put_hyper_parameters(_instantiator="friend.run"),
    "hyper_parameters as the command line's": put_hyper_parameters(
        _instantiator="lightning.pytorch.cli.instantiate_module", _class_path="friend.Model"
    ),
    "earlier keys": lambda checkpoint, payload: checkpoint.update(
        fldd_class="friend.Model", hparams={"denoiser": payload}, module_arguments={"denoiser": payload}
    ),
}


def by_python(load: Callable[[str], Any]) -> Callable[[str], str]:
    def route(path: str) -> str:
        try:
            load(path)
        except FLDDError as error:
            return str(error)
        return ""

    return route


def by_command(*args: str) -> Callable[[str], str]:
    def route(path: str) -> str:
        options = QUIET if args[0] in TRAINER_COMMANDS else []
        assert main([*args, "--ckpt_path", path, *options]) in (0, 1)
        return ""

    return route


RUNS = {
    "test": by_command("test", "--trainer.limit_test_batches", "1"),
    "validate": by_command("validate", "--trainer.limit_val_batches", "1"),
    "predict": by_command("predict", "--trainer.limit_predict_batches", "1"),
    "fit": by_command("fit", *SHORT),
    "score": by_command("score", "--output", "scores.csv"),
    "evaluate": by_command("evaluate", "--callbacks", "[]"),
}
LOADS = {
    "load_model": by_python(load_model),
    "load_from_checkpoint": by_python(FLDD.load_from_checkpoint),
    "load_from_checkpoint of a subclass": by_python(
        lambda path: ImageFLDD.load_from_checkpoint(path, weights_only=True)
    ),
    "sample": by_command("sample", "--num_samples", "2", "--output", "drawn"),
}
ROUTES = {**LOADS, **RUNS}


def as_folder(path: str) -> str:
    """What a checkpoint says, as a model's folder says it."""
    checkpoint = torch.load(path, weights_only=True)
    Path("evil").mkdir(exist_ok=True)
    save_file(checkpoint.pop("state_dict"), "evil/model.safetensors")
    told = {key: value for key, value in checkpoint.items() if key.startswith(("fldd", "h", "module_"))}
    Path("evil/config.json").write_text(json.dumps(told))
    return "evil"


def by_folder(path: str) -> str:
    assert main(["sample", "--pretrained", as_folder(path), "--num_samples", "2", "--output", "drawn"]) in (0, 1)
    return ""


FOLDERS = {
    "from_pretrained": by_python(lambda path: FLDD.from_pretrained(as_folder(path))),
    "sample --pretrained": by_folder,
}
LOAD_DATA = by_python(DiscreteDataModule.load_from_checkpoint)
WITH_CONFIG = {
    "test": by_command("test", "--config", str(CONFIGS / "digits.yaml"), *SMALL, "--trainer.limit_test_batches", "1"),
    "fit": by_command("fit", "--config", str(CONFIGS / "digits.yaml"), *SMALL, *SHORT),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint that the command line wrote."""
    folder = tmp_path_factory.mktemp("good")
    args = ["fit", "--config", str(CONFIGS / "digits.yaml"), *SMALL, *SHORT, *QUIET]
    assert main([*args, "--trainer.default_root_dir", str(folder)]) == 0
    loaded: dict[str, Any] = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)
    return loaded


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a friend's file in it."""
    (tmp_path / "friend.py").write_text(FRIEND)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("friend", None)


def attacked(good: dict[str, Any], put: Callable[..., None], payload: dict[str, Any]) -> str:
    checkpoint = deepcopy(good)
    put(checkpoint, deepcopy(payload))
    torch.save(checkpoint, "evil.ckpt")
    return "evil.ckpt"


def harm(folder: Path) -> list[str]:
    return [name for name in ("ran", "imported") if (folder / name).exists()]


def error_of(route: Callable[[str], str], path: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    return route(path) or capsys.readouterr().err


def test_the_payloads_do_harm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    import_class("pydoc.pipepager")("", cmd="touch ran")
    assert harm(folder) == ["ran"]
    import_class("friend.Net")
    assert harm(folder) == ["ran", "imported"]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("place", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("route", [*ROUTES.values(), *FOLDERS.values()], ids=[*ROUTES, *FOLDERS])
def test_the_model_is_checked(
    route: Any, place: Any, payload: Any, good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(route, attacked(good, place, payload), capsys)
    assert "the checkpoint" in said
    assert not harm(folder)


OTHER_KINDS = [
    (name, kind)
    for name in ("model", "forward process", "nested base", "one of several latents", "data")
    for kind, payload in MORE_PAYLOADS.items()
    if not (name == "data" and "Data" in payload["class_path"])  # that is where it belongs
]


@pytest.mark.parametrize(("name", "kind"), OTHER_KINDS)
def test_names_of_other_kinds_are_refused(
    name: str, kind: str, good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = attacked(good, {**REFUSED, **IN_DATA}[name], MORE_PAYLOADS[kind])
    assert "the checkpoint" in error_of(RUNS["test"], path, capsys)
    assert not harm(folder)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("place", IN_DATA.values(), ids=IN_DATA)
@pytest.mark.parametrize("route", [*RUNS.values(), LOAD_DATA], ids=[*RUNS, "load_from_checkpoint"])
def test_the_data_are_checked(
    route: Any, place: Any, payload: Any, good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the checkpoint" in error_of(route, attacked(good, place, payload), capsys)
    assert not harm(folder)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("place", IGNORED.values(), ids=IGNORED)
@pytest.mark.parametrize("route", [*LOADS.values(), *FOLDERS.values(), RUNS["test"]], ids=[*LOADS, *FOLDERS, "test"])
def test_what_lightning_reads_is_not_read(
    route: Any, place: Any, payload: Any, good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "error:" not in error_of(route, attacked(good, place, payload), capsys)
    assert not harm(folder)


@pytest.mark.parametrize("name", ["model", "denoiser", "hyper_parameters as the command line's", "data"])
@pytest.mark.parametrize("route", WITH_CONFIG.values(), ids=WITH_CONFIG)
def test_beside_a_config_the_checkpoint_names_nothing(
    route: Any, name: str, good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {**REFUSED, **IGNORED, **IN_DATA}[name]
    assert "error:" not in error_of(route, attacked(good, place, PAYLOADS["a file of the working folder"]), capsys)
    assert not harm(folder)


@pytest.mark.parametrize("place", ["callbacks", "loops", "fldd", "state_dict", "own"])
@pytest.mark.parametrize("route", [*ROUTES.values(), *WITH_CONFIG.values()], ids=[*ROUTES, "config-test", "config-fit"])
def test_nothing_is_unpickled(
    route: Any, place: str, good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = {**good, place: {**good.get(place, {}), "evil": Pickled()}}
    torch.save(checkpoint, "evil.ckpt")
    assert "not unpickled" in error_of(route, "evil.ckpt", capsys)
    assert not harm(folder)


def test_nothing_is_unpickled_where_a_config_gives_the_path(
    good: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**good, "own": Pickled()}, "evil.ckpt")
    args = ["test", "--config", str(CONFIGS / "digits.yaml"), "--config", "own.yaml", *SMALL, *QUIET]
    for path, said in (("evil.ckpt", "not unpickled"), ("https://nowhere.invalid/evil.ckpt", "no checkpoint at")):
        (folder / "own.yaml").write_text(f"ckpt_path: {path}\n")
        assert main(args) == 1
        assert said in capsys.readouterr().err
        assert not harm(folder)


def test_a_tokenizer_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.denoiser.width", "8", "--model.forward_process.network.width", "8", "--data.length", "16"]
    assert main(["fit", "--config", str(CONFIGS / "text.yaml"), *small, *SHORT, *QUIET]) == 0
    checkpoint = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)
    where = next(key for key, value in checkpoint.items() if "tokenizer" in key and "class_path" in value)
    for payload in {**PAYLOADS, **MORE_PAYLOADS}.values():
        torch.save({**checkpoint, where: payload}, "evil.ckpt")
        assert "the checkpoint" in error_of(LOADS["load_model"], "evil.ckpt", capsys)
        assert not harm(folder)
    torch.save({**checkpoint, where: PAYLOADS["a file of the working folder"]}, "evil.ckpt")
    for route in (*ROUTES.values(), by_command("test", "--config", str(CONFIGS / "text.yaml"), *small)):
        assert "the checkpoint" in error_of(route, "evil.ckpt", capsys)
        assert not harm(folder)


def test_files_that_a_checkpoint_lists_are_not_deleted(good: dict[str, Any], folder: Path) -> None:
    (folder / "precious.txt").touch()
    checkpoint = deepcopy(good)
    ours = folder / "checkpoints"
    for path in (f"{ours}/../precious.txt", str(folder / "precious.txt")):
        for state in checkpoint["callbacks"].values():
            if "best_k_models" in state:
                state.update(dirpath=str(ours), best_model_path=path, kth_best_model_path=path, last_model_path=path)
                state["best_k_models"] = {path: torch.tensor(1e9)}
        torch.save(checkpoint, "evil.ckpt")
        args = ["fit", "--ckpt_path", "evil.ckpt", *QUIET, *SHORT, "--trainer.max_steps", "4"]
        assert main([*args, "--trainer.default_root_dir", str(folder)]) == 0
        assert (ours / "last.ckpt").exists()  # the folder is the one that was meant
        assert (folder / "precious.txt").exists()


# ---- classes that the user names ----------------------------------------------------------------


@pytest.fixture
def friends(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A checkpoint with a model, a network and data of a friend's file, which has not been imported since."""
    args = ["fit", "--config", str(CONFIGS / "digits.yaml"), *SMALL, *SHORT, *QUIET]
    args += ["--model", "friend.Model", "--data", "friend.Digits", "--model.denoiser", "friend.Net"]
    assert main(args) == 0
    (folder / "imported").unlink()
    sys.modules.pop("friend")
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    return str(next(folder.rglob("final.ckpt")))


def test_classes_are_used_once_they_are_trusted(
    friends: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = capsys.readouterr().out
    assert "--trust friend.Digits --trust friend.Model --trust friend.Net" in said
    refused = (["sample", "--num_samples", "2"], ["test", *QUIET], ["sample", "--trust", "friend.Nets"])
    for args in (*refused, ["sample", "--trust", "friend.Model"], ["test", *QUIET, "--trust=friend.Net"]):
        assert main([*args, "--ckpt_path", friends]) == 1
        message = capsys.readouterr().err
        assert "the checkpoint names 'friend." in message
        assert "--trust friend." in message
        assert "trusted=[" in message
    both = ["--trust", "friend.Net", "--trust=friend.Model"]
    assert main(["sample", "--num_samples", "2", "--ckpt_path", friends, *both]) == 0
    assert main(["test", "--ckpt_path", friends, *QUIET, "--trust", "friend"]) == 0
    with pytest.raises(FLDDError, match=r"trusted=\[Model\]"):
        load_model(friends)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    import friend  # type: ignore[import-not-found]

    for trusted in ("friend", ["friend.Net", "friend.Model"], [friend.Net, friend.Model]):
        assert type(load_model(friends, trusted=trusted).reverse.network).__name__ == "Net"
        assert type(FLDD.load_from_checkpoint(friends, trusted=trusted)).__name__ == "Model"
    assert type(friend.Model.load_from_checkpoint(friends, trusted=[friend.Net])).__name__ == "Model"


def test_functions_are_trusted_by_their_own_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their module is not enough: any function might stand in it."""
    args = ["fit", "--config", str(CONFIGS / "digits_fixed.yaml"), *SHORT, *QUIET, "--model.denoiser", "friend.make"]
    assert main(args) == 0
    path = str(next(folder.rglob("final.ckpt")))
    assert main(["sample", "--ckpt_path", path, "--trust", "friend"]) == 1
    assert "friend.make" in capsys.readouterr().err
    assert main(["sample", "--num_samples", "2", "--ckpt_path", path, "--trust", "friend.make"]) == 0
    assert main(["test", "--ckpt_path", path, *QUIET, "--trust", "friend.make"]) == 0


def test_trusted_classes_stay_where_they_belong(friends: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(friends, weights_only=True)
    for option, name in (("denoiser", "Digits"), ("estimator", "Net"), ("lr", "Net"), ("denoiser", "Path.unlink")):
        torch.save(attack := deepcopy(checkpoint), "evil.ckpt")
        attack["fldd"]["settings"][option] = {"class_path": f"friend.{name}"}
        torch.save(attack, "evil.ckpt")
        assert main(["sample", "--ckpt_path", "evil.ckpt", "--trust", "friend"]) == 1
        assert f"friend.{name}" in capsys.readouterr().err
    attack["fldd"]["settings"]["denoiser"] = {"class_path": "friend.run"}  # a function of a module that is trusted
    torch.save(attack, "evil.ckpt")
    assert main(["sample", "--ckpt_path", "evil.ckpt", "--trust", "friend"]) == 1
    assert not Path("ran").exists()


def test_the_data_of_a_checkpoint(good: dict[str, Any], folder: Path) -> None:
    torch.save(good, "good.ckpt")
    data = DiscreteDataModule.load_from_checkpoint("good.ckpt", batch_size=7)
    assert type(data) is DigitsDataModule
    assert data.batch_size == 7
    with pytest.raises(FLDDError, match="a DigitsDataModule, no TextDataModule"):
        fldd_lightning.TextDataModule.load_from_checkpoint("good.ckpt")
    torch.save({key: value for key, value in good.items() if "datamodule" not in key}, "python.ckpt")
    with pytest.raises(FLDDError, match="does not say which data"):
        DiscreteDataModule.load_from_checkpoint("python.ckpt")
    evil = {**good, "datamodule_hyper_parameters": {"_instantiator": "friend.run", "_class_path": "friend.Digits"}}
    torch.save(evil, "evil.ckpt")
    with pytest.raises(FLDDError, match="friend"):
        DigitsDataModule.load_from_checkpoint("evil.ckpt")
    assert not harm(folder)


def test_other_classes_than_the_callers(good: dict[str, Any], folder: Path) -> None:
    torch.save(good, "good.ckpt")
    with pytest.raises(FLDDError, match="holds a ImageFLDD, no TextFLDD"):
        fldd_lightning.TextFLDD.load_from_checkpoint("good.ckpt")
    with pytest.raises(FLDDError, match="weights_only"):
        FLDD.load_from_checkpoint("good.ckpt", weights_only=False)
    with pytest.raises(FLDDError, match="trusted takes"):
        load_model("good.ckpt", trusted=[3])  # type: ignore[list-item]
    assert FLDD.load_from_checkpoint("good.ckpt", lr=0.5).lr == 0.5
