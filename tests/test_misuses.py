"""A table of mistakes that users make: each is answered by one paragraph, in-process, and by no traceback.

Words that start with ``@`` are files of ``misused.py``. Commands that make a trainer are behind ``pytest -m slow``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import small_mlp
from fldd_lightning import (
    FLDD,
    MLP,
    AbsorbingProcess,
    ArrayDataModule,
    DigitsDataModule,
    FLDDError,
    ImageFLDD,
    LabelLatent,
    Spec,
    TableDataModule,
    TextDataModule,
    load_model,
)
from fldd_lightning.cli import main
from misused import write_files

FIT = (
    "fit --config configs/digits.yaml --trainer.accelerator cpu --trainer.logger false --trainer.max_steps 1 "
    "--trainer.enable_progress_bar false --trainer.default_root_dir @root "
)
OF_DIGITS = "--pretrained digits --output @out --num_samples 1 "
OF_TEXT = "--pretrained text --output @out --num_samples 1 "
SCORED = "score --pretrained digits --data DigitsDataModule "
EVALUATED = "evaluate --pretrained digits --data DigitsDataModule --output @evaluation "
EARLY, LATER = "--trainer.callbacks EarlyStopping ", "--trainer.callbacks ModelCheckpoint "

SUBCOMMANDS = [
    ("nonsense", "there is no subcommand 'nonsense'"),
    ("--nope", "there is no subcommand '--nope'"),
    ("''", "there is no subcommand ''"),
    ("fit --trust", "--trust takes the name of a module or a class"),
    ("fit --trust 1/2", "--trust takes the name of a module or a class"),
]
CHECKPOINTS = [
    ("@nowhere.ckpt", "no checkpoint at"),
    ("@folder", "no checkpoint at"),
    ("''", "no checkpoint at"),
    ("@text.ckpt", "it is no checkpoint, a damaged one, or holds objects"),
    ("@pickle.ckpt", "it is no checkpoint, a damaged one, or holds objects"),
    ("@keras.ckpt", "it is no checkpoint, a damaged one, or holds objects"),
    ("@module.pt", "it is no checkpoint, a damaged one, or holds objects"),
    ("@bomb.npz", "it is no checkpoint, a damaged one, or holds objects"),
    ("@cut.ckpt", "is damaged: bytes are missing or have changed"),
    ("@flipped.ckpt", "is damaged: bytes are missing or have changed"),
    ("@list.ckpt", "is not a checkpoint written by fldd-lightning"),
    ("@tensor.ckpt", "is not a checkpoint written by fldd-lightning"),
    ("@state_dict.ckpt", "is not a checkpoint written by fldd-lightning"),
    ("@lightning.ckpt", "is not a checkpoint written by fldd-lightning"),
    ("@other.safetensors", "checkpoint"),  # newer versions of torch read it
    ("@future.ckpt", "is of another version of fldd-lightning"),
    ("@bare.ckpt", "does not say what its model needs: missing a required argument: 'num_classes'"),
    ("@nameless.ckpt", "does not say which model it is"),
    ("@weightless.ckpt", "the checkpoint has no weights: it is damaged"),
    ("@few_weights.ckpt", "the checkpoint is of other networks"),
    ("@strange.ckpt", "which is no part of a model"),
    ("@of_someone.ckpt", "--trust their_file.Net"),
]
SAMPLE = [
    ("sample", "give a model: --ckpt_path FILE"),
    ("sample --pretrained digits --ckpt_path @run.ckpt", "one of both"),
    ("sample --pretrained nowhere", "there is no folder 'nowhere'"),
    ("sample --pretrained a/b/c", "there is no folder 'a/b/c'"),
    ("sample --pretrained owner/nothing", "cannot load 'owner/nothing' from the hub"),
    ("sample --pretrained @folder", "has no config.json"),
    ("sample --pretrained @afile", "is a file, no folder of a model"),
    (f"sample {OF_DIGITS} --num_samples 0", "num_samples of ImageFLDD is 0"),
    (f"sample {OF_DIGITS} --num_samples -1", "num_samples of ImageFLDD is -1"),
    (f"sample {OF_DIGITS} --num_samples 1.5", "--num_samples: expected a whole number"),
    (f"sample {OF_DIGITS} --num_samples many", "--num_samples: expected a whole number"),
    (f"sample {OF_DIGITS} --num_samples 10000000000000", "10,000,000,000,000 samples needs 5.12 PB of memory"),
    (f"sample {OF_DIGITS} --num_steps 0", "a whole number, 1 or more"),
    (f"sample {OF_DIGITS} --batch_size 0", "batch_size of ImageFLDD is 0"),
    (f"sample {OF_DIGITS} --seed -1", "seed of ImageFLDD is -1"),
    (f"sample {OF_DIGITS} --seed 99999999999999999999", "seed of ImageFLDD is 99999999999999999999"),
    (f"sample {OF_DIGITS} --best_of 0", "best_of of ImageFLDD is 0"),
    (f"sample {OF_DIGITS} --device cuda", "there is no CUDA device here"),
    (f"sample {OF_DIGITS} --device cuda:7", "there is no CUDA device here"),
    (f"sample {OF_DIGITS} --device gpu", "device is 'gpu', which cannot be used here"),
    (f"sample {OF_DIGITS} --device meta", "device is 'meta', which cannot be used here"),
    (f"sample {OF_DIGITS} --device xpu", "device is 'xpu', which cannot be used here"),
    (f"sample {OF_DIGITS} --device ''", "device is '', which cannot be used here"),
    (f"sample {OF_DIGITS} --decoding Nope", "--decoding"),
    (f"sample {OF_DIGITS} --decoding ExactlyN", "ExactlyN needs masked diffusion"),
    (f"sample {OF_DIGITS} --decoding Ancestral --decoding.temperature -1", "temperature of Ancestral is -1"),
    (f"sample {OF_DIGITS} --decoding Ancestral --decoding.top_p 0", "top_p of Ancestral is 0"),
    (
        f"sample {OF_DIGITS} --decoding.top_p 1.5",
        "top_p of Ancestral is 1.5, but it must be a number above 0, 1 at most",
    ),
    (f"sample {OF_DIGITS} --given @nowhere.npy", "cannot read"),
    (f"sample {OF_DIGITS} --given @text.npy", "--given takes a .npy file of integers"),
    (f"sample {OF_DIGITS} --given @zero.npy", "it is empty or cut off"),
    (f"sample {OF_DIGITS} --given @objects.npy", "--given takes a .npy file of integers"),
    (f"sample {OF_DIGITS} --given @tera.npy", "needs 80 TB of memory"),
    (f"sample {OF_DIGITS} --given @float.npy", "holds no array of integers"),
    (f"sample {OF_DIGITS} --given @nameless.npz", "is no .npy file with one array"),
    (f"sample {OF_DIGITS} --given @given_beyond.npy", "but values must lie in"),
    (f"sample {OF_DIGITS} --given @given_shape.npy", "(3,)"),
    (f"sample {OF_DIGITS} --prompt hello", "--prompt is for models of text"),
    (f"sample {OF_DIGITS} --condition 3", "this model has no LabelLatent and no VectorLatent: leave it out.\n"),
    (f"sample {OF_TEXT} --infill hello", "the blanks of --infill are runs of three underscores"),
    (f"sample {OF_TEXT} --prompt a --given @given.npy", "say the same thing: use one of them"),
    (f"sample {OF_TEXT} --prompt 中", "is not among the"),
    ("sample --pretrained digits --output @afile/s", "cannot write into"),
    ("sample --pretrained digits --output /proc/s", "cannot write into '/proc'"),
    ("sample --pretrained digits --output /dev/full/s", "cannot write into '/dev/full'"),
    ("sample --pretrained digits --output ''", "'.' is no name of a file"),
    ("sample --pretrained digits --output /", "'/' is no name of a file"),
    ("sample --pretrained digits --nope 1", "unrecognized arguments: --nope 1"),
    ("sample --pretrained digits stray", "unrecognized arguments: stray"),
]
OTHERS = [
    ("score --pretrained digits", "does not name its data: add --data CLASS"),
    ("score --pretrained digits --data Nope", "--data"),
    ("score --ckpt_path @run.ckpt --data DigitsDataModule --device nope", "device is 'nope'"),
    (f"{SCORED} --output @afile", "is there already"),
    (f"{SCORED} --output @afile/x.csv", "cannot write into"),
    (f"{SCORED} --output /proc/x.csv", "cannot write into '/proc'"),
    (f"{SCORED} --output /dev/full", "is there already"),
    (f"{SCORED} --output @s.csv --draws 0", "draws is 0"),
    (f"{SCORED} --output @s.csv --seed -1", "seed is -1"),
    ("score --pretrained digits --data ArrayDataModule --data.path @ok.npy --output @s.csv", "the data"),
    ("evaluate --pretrained digits --output @e", "does not name its data: add --data CLASS"),
    (f"{EVALUATED} --num_steps 4", "--num_steps: expected a list, not 4: write [4]"),
    (f"{EVALUATED} --num_steps [0]", "a whole number, 1 or more"),
    (f"{EVALUATED} --num_samples 0", "num_samples is 0"),
    (f"{EVALUATED} --callbacks Nope", "--callbacks"),
    (f"{EVALUATED} --device nope", "device is 'nope'"),
    ("tokenizer", "the following arguments are required: output"),
    ("tokenizer --output @t.json --vocab_size 3", "256 are bytes alone. Use 257 or more"),
    ("tokenizer --output @t.json --vocab_size 99999999999", "more than 16,777,216 tokens"),
    ("tokenizer --output @t.json --path @nowhere.txt", "does not exist"),
    ("tokenizer --output @t.json --path @ok.npy", "is of no known kind"),
    ("tokenizer --output @afile/t.json --path @corpus.txt", "cannot write into"),
    ("tokenizer --output /proc/t.json --path @corpus.txt", "cannot write into '/proc'"),
    ("tokenizer --output @folder --path @corpus.txt", "is a folder. Give the name of a file"),
    ("tokenizer --output '' --path @corpus.txt", "'.' is no name of a file"),
]
CONFIGS = [
    ("@bin.yaml", "is no text in UTF-8, but a config is YAML"),
    ("@ok.npy", "is no text in UTF-8, but a config is YAML"),
    ("@run.ckpt", "is no text in UTF-8, but a config is YAML"),
    ("@utf16.yaml", "is no text in UTF-8, but a config is YAML"),
    ("@list.yaml", "Unexpected config"),
    ("@word.yaml", "Unexpected config"),
    ("@tab.yaml", "cannot start any token"),
    ("@alias.yaml", "found undefined alias"),
    ("@code.yaml", "could not determine a constructor"),
    ("@deep.yaml", "exceeded maximum nesting depth"),
    ("@null.yaml", "the following arguments are required"),
    ("@folder", "--config: Path is not a file"),
    ("/dev/null", "--config: Path is not a file"),
    ("configs/nope.yaml", "--config: File does not exist"),
]
OF_TRAINER = [  # what makes a trainer takes long
    ("--trainer.logger WandbLogger", "wandb"),
    ("--trainer.logger MLFlowLogger", "mlflow"),
    ("--trainer.logger CometLogger", "comet"),
    ("--trainer.logger NeptuneLogger", "NeptuneLogger"),
    ("--trainer.strategy nonsense", "invalid strategy name: `strategy='nonsense'`"),
    ("--trainer.strategy dp", "invalid strategy name: `strategy='dp'`"),
    ("--trainer.strategy deepspeed", "the strategy deepspeed cannot be used"),
    ("--trainer.strategy fsdp", "the strategy fsdp cannot be used"),
    ("--trainer.strategy xla", "torch_xla"),
    ("--trainer.accelerator gpu", "No supported gpu backend found"),
    ("--trainer.accelerator cuda", "the accelerator is not available"),
    ("--trainer.accelerator tpu", "torch_xla"),
    ("--trainer.accelerator quantum", "invalid accelerator name: `accelerator='quantum'`"),
    ("--trainer.devices 0", "devices='0'"),
    ("--trainer.devices -3", "should be an int > 0"),
    ("--trainer.devices [7]", "should be an int > 0"),
    ("--trainer.devices two", "should be an int > 0"),
    ("--trainer.num_nodes 0", "num_nodes is 0, but it must be a whole number, 1 or more"),
    ("--trainer.precision 16-true", "keeps weights in 16 bits"),
    ("--trainer.precision transformer-engine", "transformer_engine"),
    ("--trainer.precision 8-bit", "--trainer.precision"),
    ("--trainer.devices 4096", "devices is 4096: each would be a process"),
    ("--trainer.limit_train_batches 0", "limit_train_batches is 0"),
    ("--trainer.val_check_interval 0", "val_check_interval is 0"),
    ("--trainer.val_check_interval -1", "val_check_interval is -1"),
    ("--trainer.val_check_interval 2.5", "invalid value 2.5 for val_check_interval"),
    ("--trainer.val_check_interval 1h", "Invalid time format for `val_check_interval`"),
    ("--trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch is 0"),
    ("--trainer.max_steps -5", "max_steps"),
    ("--trainer.max_epochs -5", "max_epochs"),
    ("--trainer.max_time tomorrow", "tomorrow"),
    ("--trainer.min_steps -5", "min_steps is -5"),
    ("--trainer.min_steps 5", "min_steps is 5, which is more than max_steps, 1"),
    ("--trainer.min_epochs 5 --trainer.max_epochs 2", "min_epochs is 5, which is more than max_epochs, 2"),
    ("--trainer.max_steps 0", "max_steps is 0, which leaves nothing to train"),
    ("--trainer.max_epochs 0", "max_epochs is 0, which leaves nothing to train"),
    ("--trainer.limit_train_batches -1", "limit_train_batches"),
    ("--trainer.limit_val_batches 1.5", "limit_val_batches"),
    ("--trainer.overfit_batches -1", "overfit_batches"),
    ("--trainer.num_sanity_val_steps -7", "num_sanity_val_steps is -7"),
    ("--trainer.log_every_n_steps -1", "log_every_n_steps is -1"),
    ("--trainer.accumulate_grad_batches 0", "accumulate_grad_batches is 0"),
    ("--trainer.gradient_clip_val -1", "gradient_clip_val is -1"),
    ("--trainer.gradient_clip_algorithm nonsense", "`gradient_clip_algorithm` nonsense is invalid"),
    ("--trainer.reload_dataloaders_every_n_epochs -1", "should be an int >= 0, got -1"),
    ("--trainer.fast_dev_run -1", "fast_dev_run=-1"),
    ("--trainer.profiler nonsense", "profiler"),
    ("--trainer.plugins nonsense", "--trainer.plugins"),
    ("--trainer.benchmark 3", "--trainer.benchmark: expected true or false"),
    (EARLY, "--trainer.callbacks: the following arguments are required: monitor"),
    (
        f"{EARLY} --trainer.callbacks.monitor val/loss",
        "EarlyStopping watches val/loss, which this run does not log; did",
    ),
    (f"{LATER} --trainer.callbacks.monitor val/nelb", "which this run does not log; did you mean val/nelbo?"),
    (f"{LATER} --trainer.callbacks.monitor accuracy", "which this run does not log; most often val/nelbo is meant"),
    (f"{EARLY} --trainer.callbacks.monitor val/nelbo --trainer.callbacks.mode up", "`mode` can be min, max"),
    (f"{LATER} --trainer.callbacks.save_top_k -3", "Invalid value for save_top_k=-3"),
    (f"{LATER} --trainer.enable_checkpointing false", "enable_checkpointing=False"),
    ("--trainer.callbacks LearningRateMonitor", "Cannot use `LearningRateMonitor`"),
    ("--trainer.callbacks DeviceStatsMonitor", "Cannot use `DeviceStatsMonitor`"),
    ("--trainer.callbacks Timer", "lightning.pytorch.callbacks.Timer"),
    ("--trainer.callbacks MLP", "(MLP is a class of another kind)"),
    ("--seed_everything -1", "seed_everything is -1, but it must be a whole number from 0 to 4294967295"),
    ("--seed_everything 99999999999", "seed_everything is 99999999999"),
    ("--data.seed -1", "seed of DigitsDataModule is -1"),
    ("--data.batch_size 0", "batch_size of DigitsDataModule is 0"),
    ("--data.batch_size 99999999999999999999", "must be a whole number from 1 to 2147483647"),
    ("--ckpt_path nothing", "no checkpoint at 'nothing'"),
    ("--ckpt_path best", "not configured to save the best model"),
    ("--ckpt_path hpc", "no HPC checkpoint was found"),
    ("--trainer.default_root_dir @afile", "cannot write into"),
    ("--trainer.default_root_dir @afile/below", "cannot write into"),
    ("--trainer.default_root_dir /proc/nothing", "cannot write into '/proc/nothing'"),
    ("--trainer.default_root_dir /dev/full", "cannot write into '/dev/full'"),
    ("--model.denoiser.width 100000000", "LearnedMaskProcess with its weights needs"),
    ("--model.denoiser raises.Net", "division by zero"),
    ("--model.denoiser syntax.Net", "invalid syntax"),
    ("--model.estimator MLP", "(MLP is a class of another kind)"),
    ("--model.latents LabelLatent --model.latents.num_labels 3", "label"),
    ("--data TextDataModule", "ImageFLDD needs image shapes"),
]
ARRAYS = [
    ("nowhere.npy", "no file at"),
    ("folder", "holds no file that can be used"),
    ("lonely", "holds no file that can be used"),
    ("ok.csv", "has an unknown ending"),
    ("float.npy", "has dtype float64, but discrete diffusion needs integers"),
    ("complex.npy", "has dtype complex128"),
    ("words.npy", "has dtype <U1"),
    ("dates.npy", "has dtype datetime64"),
    ("fields.npy", "has dtype [("),
    ("negative.npy", "integers start at 0"),
    ("none.npy", "has shape (0, 3)"),
    ("two.npy", "give at least 3 examples"),
    ("scalar.npy", "has shape ()"),
    ("no_coordinate.npy", "has shape (40, 0)"),
    ("constant.npy", "has no value but 0, which is one class"),
    ("large.npy", "classes are more than networks can take"),
    ("unsigned.npy", "classes are more than networks can take"),
    ("objects.npy", "holds objects, which are not unpickled"),
    ("text.npy", "it is of another kind"),
    ("zero.npy", "it is empty or cut off"),
    ("cut.npy", "Save it again as a plain integer array"),
    ("minus.npy", "cannot read"),
    ("tera.npy", "unpacked, needs 80 TB of memory"),
    ("bomb.npz", "unpacked, needs 1.1 TB of memory"),
    ("text.npz", "it is of another kind"),
    ("other.npz", "holds a bytes, not a tensor of integers"),
    ("nameless.npz", "name the one to use 'x'"),
    ("empty.npz", "holds 0 arrays"),
    ("twice.npz", "of which one is too many"),
    ("labels.npz", "but there are 40 examples"),
    ("shapes.npz", "differ in the shape of an example"),
    ("list.pt", "holds a list, not a tensor of integers"),
    ("number.pt", "holds a int, not a tensor"),
    ("nothing.pt", "holds a NoneType, not a tensor"),
    ("dictionary.pt", "holds a list, not a tensor"),
    ("numbers.pt", "name the one to use 'x'"),
    ("sparse.pt", "nested, sparse, quantised or without data"),
    ("csr.pt", "nested, sparse, quantised or without data"),
    ("quantised.pt", "nested, sparse, quantised or without data"),
    ("meta.pt", "nested, sparse, quantised or without data"),
    ("nested.pt", "nested, sparse, quantised or without data"),
    ("bf16.pt", "has dtype torch.bfloat16"),
    ("float8.pt", "has dtype torch.float8_e4m3fn"),
    ("complex.pt", "has dtype complex"),
    ("view.pt", "the order of the 1,000,000,000,000 examples"),
    ("module.pt", "holds objects, which are not unpickled"),
    ("text.pt", "it is cut off, not of torch.save"),
    ("zero.pt", "it is cut off, not of torch.save"),
]
TABLES = [
    ("nowhere.csv", "does not exist"),
    ("ok.npy", "is of no known kind"),
    ("folder", "holds no file that can be used"),
    ("empty.csv", "its first line must name the columns"),
    ("header.csv", "give more data"),
    ("ragged.csv", "has 3 fields, but the header names 2"),
    ("semicolons.csv", "separate the columns by commas"),
    ("constant.csv", "no column with two different entries"),
    ("twice.csv", "give each column a name of its own"),
    ("quote.csv", "ends within double quotes"),
    ("bin.csv", "Convert it to UTF-8"),
    ("latin.csv", "Convert it to UTF-8"),
    ("text.parquet", "cannot read"),
    ("nested.parquet", "not texts or numbers"),
    ("bytes.parquet", "not texts or numbers"),
]
TEXTS = [
    ("nowhere.txt", "does not exist"),
    ("ok.npy", "is of no known kind"),
    ("empty.txt", "give more data"),
    ("short.txt", "fewer than one block"),
    ("bad.json", "cannot read"),
    ("no.fasta", "a FASTA file starts with a header"),
]
SPEC = Spec(3, (4,), 2)
CALLS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda _: FLDD(1, (4,), AbsorbingProcess, small_mlp), "num_classes"),
    (lambda _: FLDD(3, (), AbsorbingProcess, small_mlp), "shape"),
    (lambda _: FLDD(3, (0,), AbsorbingProcess, small_mlp), "shape"),
    (lambda _: FLDD(3, (4,), MLP, small_mlp), "a ForwardProcess is needed here"),
    (lambda _: FLDD(3, (4,), AbsorbingProcess(SPEC), small_mlp), "cannot be imported by its name"),
    (lambda _: FLDD(3, (4,), AbsorbingProcess, "MLP"), "is made from its class"),
    (lambda _: FLDD(3, (4,), AbsorbingProcess, small_mlp, num_steps=0), "num_steps"),
    (lambda _: FLDD(3, (4,), AbsorbingProcess, small_mlp, lr=0), "lr of FLDD is 0"),
    (lambda _: FLDD(3, (4,), AbsorbingProcess, small_mlp, latents=partial(LabelLatent, num_labels=0)), "num_labels"),
    (lambda _: FLDD(3, (4,), AbsorbingProcess, small_mlp, latents=[3]), "is made from its class"),
    (lambda _: digits().nelbo(torch.zeros(2, 3).long()), "x has shape (2, 3)"),
    (lambda _: digits().nelbo(torch.full((2, 8, 8), 5)), "so values must lie in 0..1"),
    (lambda _: digits().nelbo(torch.zeros(0, 8, 8).long()), "x is empty"),
    (lambda _: digits().sample(2, given=torch.zeros(3).long()), "(3,)"),
    (lambda _: digits().with_num_steps(0), "a whole number, 1 or more"),
    (lambda _: digits().save_pretrained(Path("/proc/nothing")), "cannot write into"),
    (lambda at: digits().save_pretrained(at / "afile"), "is a file"),
    (lambda at: load_model(at / "list.ckpt"), "is not a checkpoint written by"),
    (lambda at: ImageFLDD.load_from_checkpoint(at / "run.ckpt", weights_only=False), "weights_only=True"),
    (lambda at: DigitsDataModule.load_from_checkpoint(at / "run.ckpt"), "does not say which data"),
    (lambda at: TextDataModule(str(at / "corpus.txt"), alphabet="xyz").splits, "is not among the 3 characters"),
    (lambda at: TextDataModule(str(at / "corpus.txt"), column="nope").splits, "Set --data.column"),
    (lambda at: TextDataModule(str(at / "corpus.txt"), tokenizer="x", alphabet="y"), "not both"),
    (lambda at: TextDataModule(str(at / "corpus.txt"), cache_dir="/proc/nothing").splits, "cannot read"),
    (lambda at: TextDataModule(str(at / "corpus.txt"), tokenizer=str(at / "empty_tokenizer.json")).splits, "tokenizer"),
    (lambda at: TextDataModule(str(at / "corpus.txt"), tokenizer=str(at / "tokenizer_bin.json")).splits, "tokenizer"),
    (lambda at: TableDataModule(str(at / "ok.csv"), leave_out=["c"]).splits, "has no column 'c' for data.leave_out"),
    (lambda at: TableDataModule(str(at / "ok.csv"), leave_out=["a", "b"]).splits, "no column with two different"),
    (lambda at: TableDataModule(str(at / "ok.csv"), columns="word").splits, "these are no columns of a table"),
    (lambda at: ArrayDataModule(str(at / "ok.npy"), num_classes=2).splits, "Set --data.num_classes 3"),
    (lambda at: ArrayDataModule(str(at / "ok.npy"), val_fraction=2), "val_fraction is 2"),
]


def digits() -> FLDD:
    """A trained model."""
    return FLDD.from_pretrained("digits")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files that are misused."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("misused")
    write_files(folder)
    return folder


def check(line: str, said: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The command fails with a status that says so, and one paragraph that says what is wrong."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    args = [str(place / word[1:]) if word.startswith("@") else word for word in shlex.split(line)]
    capsys.readouterr()
    try:
        status: Any = main(args)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert said in error
    assert status in (1, 2)
    assert error.startswith("error: ")
    assert error.count("\n") == 1


Printed = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize(("line", "said"), SUBCOMMANDS + SAMPLE + OTHERS)
def test_commands(line: str, said: str, place: Path, capsys: Printed, monkeypatch: Patch) -> None:
    check(line, said, place, capsys, monkeypatch)


@pytest.mark.parametrize(("file", "said"), CHECKPOINTS)
def test_checkpoints(file: str, said: str, place: Path, capsys: Printed, monkeypatch: Patch) -> None:
    check(f"sample --ckpt_path {file} --output @out --num_samples 1", said, place, capsys, monkeypatch)


@pytest.mark.parametrize(("file", "said"), CHECKPOINTS[:1] + CHECKPOINTS[3:4] + CHECKPOINTS[8:11])
def test_checkpoints_of_a_run(file: str, said: str, place: Path, capsys: Printed, monkeypatch: Patch) -> None:
    check(f"test --ckpt_path {file} --data DigitsDataModule --trainer.logger false", said, place, capsys, monkeypatch)


@pytest.mark.parametrize(("file", "said"), CONFIGS)
def test_configs(file: str, said: str, place: Path, capsys: Printed, monkeypatch: Patch) -> None:
    check(f"fit --config {file}", said, place, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "said"), OF_TRAINER)
def test_options_of_a_run(options: str, said: str, place: Path, capsys: Printed, monkeypatch: Patch) -> None:
    check(FIT + options, said, place, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        *((ArrayDataModule, *each) for each in ARRAYS),
        *((TableDataModule, *each) for each in TABLES),
        *((TextDataModule, *each) for each in TEXTS),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch warns of the tensors
def test_files_of_data(kind: Any, file: str, said: str, place: Path) -> None:
    with pytest.raises(FLDDError) as error:
        _ = kind(str(place / file)).splits
    assert said in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(("call", "said"), CALLS)
def test_calls(call: Callable[[Path], Any], said: str, place: Path) -> None:
    with pytest.raises(FLDDError) as error:
        call(place)
    assert said in str(error.value)


def test_the_table_is_long() -> None:
    every = (SUBCOMMANDS, CHECKPOINTS, SAMPLE, OTHERS, CONFIGS, OF_TRAINER, ARRAYS, TABLES, TEXTS, CALLS)
    assert sum(len(part) for part in every) >= 150
