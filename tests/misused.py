"""Files that no command takes as they are, for the table of misuses."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from conftest import Stripes, image_model
from tiny import fit

TEXTS = {
    "afile": "x",
    "alias.yaml": "a: *b",
    "code.yaml": "a: !!python/object/apply:os.system ['true']",
    "deep.yaml": "[" * 3000,
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "null.yaml": "model: null\ndata: null",
    "tab.yaml": "model:\n\t lr: 1",
    "word.yaml": "hello",
    "text.npy": "hello",
    "text.npz": "hello",
    "text.pt": "hello",
    "text.ckpt": "hello",
    "text.parquet": "hello",
    "ok.csv": "a,b\n" + "\n".join(f"{i % 3},{'xyz'[i % 3]}" for i in range(40)),
    "empty.csv": "",
    "header.csv": "a,b\n",
    "ragged.csv": "a,b\n1,2\n1,2,3\n",
    "semicolons.csv": "a;b\n1;2\n1;3\n",
    "constant.csv": "a,b\n" + "1,2\n" * 30,
    "twice.csv": "a,a\n1,2\n1,3\n",
    "quote.csv": 'a,b\n1,"x\n2,y\n3,z\n',
    "corpus.txt": "hello world\n" * 40,
    "short.txt": "hi",
    "empty.txt": "",
    "bad.json": "{",
    "no.fasta": "ACGT\n",
    "empty_tokenizer.json": "{}",
    "lonely/a.doc": "x",
    "raises.py": "x = 1 / 0\n",
    "syntax.py": "def (\n",
}


def write_files(folder: Path) -> None:
    """Write all of them, and a checkpoint, ``run.ckpt``, that is as it should be."""
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for name in ("bin.yaml", "bin.csv", "tokenizer_bin.json"):
        (folder / name).write_bytes(bytes(range(256)) * 4)
    (folder / "utf16.yaml").write_text("model: {lr: 1}", encoding="utf-16")
    (folder / "latin.csv").write_bytes(b"a,b\n" + b"1,\xe9\n" * 30)
    (folder / "folder").mkdir()
    _arrays(folder)
    _archives(folder)
    _tensors(folder)
    pq.write_table(pa.table({"a": [[1, 2], [3]] * 20}), folder / "nested.parquet")
    pq.write_table(pa.table({"a": pa.array([b"\xff", b"a"] * 20)}), folder / "bytes.parquet")
    _checkpoints(folder)


def of_size(shape: tuple[int, ...], dtype: str = "<i8") -> bytes:
    """The start of a ``.npy`` file that speaks of many numbers, and a few of them."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def _arrays(folder: Path) -> None:
    x = np.random.default_rng(0).integers(0, 3, (40, 3))
    arrays: dict[str, Any] = {
        "ok": x,
        "float": x / 2,
        "negative": x - 2,
        "none": x[:0],
        "two": x[:2],
        "scalar": np.array(3),
        "constant": 0 * x,
        "complex": x * 1j,
        "words": np.array([["a", "b"]] * 40),
        "large": x + 2**40,
        "unsigned": np.full((40, 3), 2**64 - 1, np.uint64),
        "dates": np.array(["2020-01-01"] * 40, "datetime64[D]"),
        "fields": np.zeros(40, [("a", int), ("b", int)]),
        "no_coordinate": np.zeros((40, 0), int),
        "objects": np.array([1, None], object),
        "given": np.full((8, 8), -1),
        "given_beyond": np.full((8, 8), 7),
        "given_shape": np.zeros(3, int),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    (folder / "zero.npy").write_bytes(b"")
    (folder / "cut.npy").write_bytes((folder / "ok.npy").read_bytes()[:200])
    (folder / "tera.npy").write_bytes(of_size((10**12, 10)))
    (folder / "minus.npy").write_bytes(of_size((-1, 3)))


def _archives(folder: Path) -> None:
    x = np.load(folder / "ok.npy")
    np.savez(folder / "nameless.npz", a=x, b=x)
    np.savez(folder / "empty.npz")
    np.savez(folder / "labels.npz", x=x, y=x[:-1, 0])
    np.savez(folder / "shapes.npz", x_train=x, x_val=x[:, :2])
    np.savez(folder / "twice.npz", x=x, data=x)
    with ZipFile(folder / "bomb.npz", "w", ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", of_size((2**20, 2**20), "|u1"))
    with ZipFile(folder / "other.npz", "w") as archive:
        archive.writestr("a.txt", "hello")


def _tensors(folder: Path) -> None:
    x = torch.from_numpy(np.load(folder / "ok.npy"))
    made: dict[str, Any] = {
        "list": [1, 2, 3],
        "number": 3,
        "nothing": None,
        "sparse": x.to_sparse(),
        "csr": x.to_sparse_csr(),
        "bf16": x.bfloat16(),
        "float8": x.to(torch.float8_e4m3fn),
        "complex": x + 1j,
        "quantised": torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
        "meta": x.to("meta"),
        "nested": torch.nested.nested_tensor([x[0], x[0, :2]]),
        "view": torch.ones(1, dtype=torch.long).expand(10**12),
        "dictionary": {"x": [1, 2]},
        "numbers": {3: x, 4: x},
        "module": torch.nn.Linear(2, 2),
    }
    for name, value in made.items():
        torch.save(value, folder / f"{name}.pt")
    (folder / "zero.pt").write_bytes(b"")


def _checkpoints(folder: Path) -> None:
    fit(folder, image_model(2, 8), Stripes(8), max_steps=1, limit_val_batches=0).save_checkpoint(folder / "run.ckpt")
    whole = (folder / "run.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (folder / "flipped.ckpt").write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    saved = torch.load(folder / "run.ckpt", weights_only=True)
    about = saved["fldd"]
    named: dict[str, Any] = {
        "list": [1],
        "tensor": torch.ones(3),
        "state_dict": torch.nn.Linear(2, 2).state_dict(),
        "lightning": {"state_dict": {}, "epoch": 3, "pytorch-lightning_version": "2.0.0"},
        "future": {**saved, "fldd": {**about, "version": 99}},
        "bare": {**saved, "fldd": {**about, "settings": {}}},
        "nameless": {**saved, "fldd": {**about, "class": 3}},
        "weightless": {key: value for key, value in saved.items() if key != "state_dict"},
        "few_weights": {**saved, "state_dict": dict(list(saved["state_dict"].items())[:3])},
        "strange": {**saved, "fldd": {**about, "class": "os.system"}},
        "of_someone": {**saved, "fldd": {**about, "class": "their_file.Net"}},
    }
    for name, value in named.items():
        torch.save(value, folder / f"{name}.ckpt")
    (folder / "pickle.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "keras.ckpt").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    save_file({"a": torch.ones(3)}, folder / "other.safetensors")
