"""``evaluate``: a checkpoint and its data in, one table of the bound and of sample quality out."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from ..callbacks import FIDCallback, PerplexityCallback
from ..callbacks.report_facts import num_parameters, versions
from ..data import DiscreteDataModule
from ..errors import FLDDError
from ..factory import describe, public_path
from ..image import ImageFLDD
from ..metrics import PixelFeatures
from ..module import FLDD
from ..pretrained import WEIGHTS, find_folder
from ..ranges import COUNT, check_numbers
from ..text import TextFLDD
from .checkpoint_data import check_device, check_new, chosen_model, run_with_data, write_whole
from .defaults import listed
from .processes import one_process
from .quiet import quiet

__all__ = ["evaluate", "evaluate_command"]

_LONGEST = 200  # characters of a fact in the table


def evaluate(
    data: LightningDataModule,
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    output: str = "evaluation",
    num_steps: list[int] | None = None,
    callbacks: Callback | list[Callback] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Measure the bound on the test data and the quality of samples, and write all of it down.

    OUTPUT/evaluation.json holds every number, how it was made, and versions. OUTPUT/evaluation.md is a table of them,
    which is also printed.

    Args:
        data: Left out, the data that the checkpoint was trained on, of which the test split is taken. Options change
            it.
        ckpt_path: The checkpoint. If it names classes of your own, add --trust my_file.
        pretrained: In place of a checkpoint: digits or text, which come with this package; a folder of a trained
            model; or OWNER/NAME on the Hugging Face hub.
        output: The folder to write into. Files of an evaluation that are there already are left alone.
        num_steps: Numbers of steps T, such as [4,16,64]; each has its column. Left out, that of the training. Others
            are for models that were trained with budgets, and for masked diffusion whose denoiser does not see the
            step (time_independent).
        callbacks: One or several that judge samples in testing. If left out: FIDCallback in PixelFeatures for images,
            PerplexityCallback with an NGramJudge for text, and none for other data.
        num_samples: How many samples are judged, 1,000 if left out. Callbacks that you name have their own
            --callbacks.num_samples.
        seed: Seed of the bound's noise. Callbacks have seeds of their own.
        device: Where to run, such as cpu or cuda.
    """
    folder = Path(output)
    files = [folder / "evaluation.json", folder / "evaluation.md"]
    for file in files:
        check_new(file)
    check_numbers(locals(), num_samples=COUNT.or_none)
    check_device(device)
    model = chosen_model(ckpt_path, pretrained, device)
    weights = find_folder(str(pretrained), local_files_only=True) / WEIGHTS if ckpt_path is None else Path(ckpt_path)
    judges = _judges(model, num_samples or 1_000) if callbacks is None else listed(callbacks)
    if num_samples is not None and (callbacks is not None or not judges):
        instead = "set --callbacks.num_samples" if judges else "leave it out"
        raise FLDDError(f"--num_samples is for the callbacks that are chosen for you, and there is none: {instead}.")
    trained = model.spec.num_steps
    models = [model if steps == trained else model.with_num_steps(steps) for steps in num_steps or [trained]]
    results = []
    for each in models:
        steps, tested = each.spec.num_steps, _tested(each, data, judges, device, seed)
        passes = max((said["nfe"] for said in tested["samples"] if "nfe" in said), default=steps)
        results.append({"num_steps": steps, "nfe": passes, **tested})
    facts = {
        "checkpoint": ckpt_path or pretrained,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "optimiser_steps": model.trained_steps,
        "model": public_path(type(model)),
        "parameters": num_parameters([model]),
        "data": {"class": public_path(type(data)), **describe(dict(data.hparams)), "split": "test"},
        "examples": len(data.splits["test"]) if isinstance(data, DiscreteDataModule) else None,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "seed": seed,
        "versions": versions(),
    }
    page = table(facts, results)
    write_whole(files[0], json.dumps({**facts, "results": results}, indent=2, default=str) + "\n")
    write_whole(files[1], page)
    print(f"{page}\nwrote {files[0]}, {files[1]}")


def table(facts: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Markdown: what was evaluated, and a column of numbers for each T."""
    lines = [f"# Evaluation of {facts['checkpoint']}", ""]
    for key, value in facts.items():
        lines.append(f"- {key}: {_listed(value) if isinstance(value, dict) else value}")
    for result in results:
        lines += [f"- samples, T = {result['num_steps']}: {_listed(each)}" for each in result["samples"]]
    columns = [_column(result) for result in results]
    heads = [f"T = {result['num_steps']}" for result in results]
    lines += ["", f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    longest = sorted(columns, key=len, reverse=True)  # that of the largest T, with the parts of all its steps
    for name in dict.fromkeys(name for column in longest for name in column):
        lines.append(f"| {name} | {' | '.join(column.get(name, '') for column in columns)} |")
    return "\n".join(lines) + "\n"


def evaluate_command(args: Sequence[str]) -> None:
    """Parse the options of ``evaluate`` and run it."""
    one_process("evaluate")
    run_with_data(evaluate, "evaluate", args)


# ---- internals ----------------------------------------------------------------------------


def _judges(model: FLDD, num_samples: int) -> list[Callback]:
    """What judges samples of this kind of data without further weights."""
    if isinstance(model, TextFLDD):
        try:
            return [PerplexityCallback(num_samples=num_samples)]
        except FLDDError as error:
            raise FLDDError(f"{error} --callbacks [] measures the bound alone.") from error
    return [FIDCallback(PixelFeatures(), num_samples)] if isinstance(model, ImageFLDD) else []


def _tested(model: FLDD, data: LightningDataModule, judges: list[Callback], device: str, seed: int) -> dict[str, Any]:
    """What a test logs, what callbacks say beside their numbers, and how long it took."""
    index = torch.device(device).index
    with tempfile.TemporaryDirectory() as folder, quiet():
        seed_everything(seed)
        trainer = Trainer(
            accelerator=torch.device(device).type,
            devices=1 if index is None else [index],
            callbacks=[*judges],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = perf_counter()
        (logged,) = trainer.test(model, datamodule=data, verbose=False)
        seconds = perf_counter() - start
        reports = Path(folder) / "sample_quality.jsonl"
        lines = reports.read_text().splitlines() if reports.exists() else []
    values = {name.removeprefix("test/"): value if isfinite(value) else None for name, value in logged.items()}
    samples = [{key: value for key, value in json.loads(line).items() if key not in logged} for line in lines]
    return {"seconds": round(seconds, 2), "values": values, "samples": samples}


def _column(result: dict[str, Any]) -> dict[str, str]:
    """The numbers of one T by name, as they are shown."""
    suffix = f"_T{result['num_steps']}"
    order = sorted(result["values"].items(), key=lambda item: item[0].endswith((suffix, "_data")))  # of samples, last
    values = {name.removesuffix(suffix): value for name, value in order}
    shown = {name: "" if value is None else f"{value:.4f}" for name, value in values.items()}
    return {**shown, "passes of the denoiser a sample": str(result["nfe"]), "seconds": f"{result['seconds']:.1f}"}


def _listed(facts: dict[str, Any]) -> str:
    """Facts in a line; those that are not given are left out, and long ones cut: the JSON has all of them."""
    shown = {name: str(value) for name, value in facts.items() if value is not None}
    shown = {name: text if text.isprintable() else repr(text) for name, text in shown.items()}
    cut = {name: text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..." for name, text in shown.items()}
    return ", ".join(f"{name} {text}" for name, text in cut.items())
