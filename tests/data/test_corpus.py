from __future__ import annotations

import gzip
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fldd_lightning import FLDDError
from fldd_lightning.data import CharacterTokenizer, TextDataModule
from fldd_lightning.data.corpus import embedded_corpus, read_corpus
from fldd_lightning.data.rows import Rows
from fldd_lightning.data.stream import TextStream

LINES = [f"line {i} says {'word ' * (i % 4)}end" for i in range(60)]
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train.txt.gz, valid.txt.gz and test.txt.gz."""
    home = tmp_path / "corpus"
    home.mkdir()
    for name, lines in (("train", LINES), ("valid", LINES[:9]), ("test", LINES[9:20])):
        with gzip.open(home / f"{name}.txt.gz", "wt") as file:
            file.write("\n".join(lines))
    return home


def made(folder: Path, **options: Any) -> TextDataModule:
    """Data whose cache is the folder's own."""
    home = folder if folder.is_dir() else folder.parent
    defaults: dict[str, Any] = {"length": 16, "cache_dir": f"{home}-cache", "batch_size": 4}
    return TextDataModule(**{"path": str(folder), **defaults, **options})


def whole(split: Any, data: TextDataModule) -> str:
    return "".join(data.tokenizer.decode(row.tolist()) for row in split.x)


def test_folder_of_gzipped_texts(folder: Path) -> None:
    data = made(folder)
    assert data.tokenizer.describe() == "23 characters '\\n 0123456789adeilnorswy'"
    assert (data.num_classes, data.shape, data.padded) == (23, (16,), False)
    for name, lines in (("train", LINES), ("val", LINES[:9]), ("test", LINES[9:20])):
        text = "\n".join(lines)
        assert whole(data.splits[name], data) == text[: len(text) // 16 * 16]
    assert next(data.texts("val")) == "\n".join(LINES)[:16]


def test_one_file_is_split_by_seed(folder: Path) -> None:
    file = folder / "train.txt.gz"
    data = made(file)
    rows = {name: [tuple(row) for row in split.x.tolist()] for name, split in data.splits.items()}
    total = len("\n".join(LINES)) // 16
    assert {name: len(r) for name, r in rows.items()} == {
        "train": total - 2 * round(0.05 * total),
        "val": round(0.05 * total),
        "test": round(0.05 * total),
    }
    everything = made(folder).splits["train"].x.tolist()
    assert sorted(r for part in rows.values() for r in part) == sorted(tuple(r) for r in everything)
    assert torch.equal(made(file).splits["val"].x, data.splits["val"].x)
    assert not torch.equal(made(file, seed=1).splits["val"].x, data.splits["val"].x)
    given_val = made(file, val_path=str(folder / "valid.txt.gz"))
    (folder.parent / "held").mkdir()
    shutil.copy(folder / "valid.txt.gz", folder.parent / "held" / "valid.txt.gz")
    as_folder = made(file, val_path=str(folder.parent / "held"))  # whatever its files are called
    assert torch.equal(as_folder.splits["val"].x, given_val.splits["val"].x)
    assert whole(given_val.splits["val"], given_val) == whole(made(folder).splits["val"], given_val)
    assert len(given_val.splits["test"].x) == round(0.05 * total)


@pytest.mark.parametrize("option", ["val_path", "test_path", "column", "subset"])
def test_options_of_a_source_need_one(option: str) -> None:
    """The corpus that Python carries would be read, and the option forgotten."""
    with pytest.raises(FLDDError, match=f"--data.{option} goes with --data.path or --data.name"):
        TextDataModule(**{option: "x"})


def test_padded_lines(folder: Path) -> None:
    data = made(folder, padded=True, length=18)
    assert (data.num_classes, data.padded) == (23, True)  # 22 characters without the line break, and PAD
    pad = data.num_classes - 1
    assert list(data.texts("train")) == [line[:18] for line in LINES]
    for row, line in zip(data.splits["train"].x, LINES, strict=True):
        assert (row != pad).sum() == min(18, len(line))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "jsonl.gz"])
def test_tables(tmp_path: Path, kind: str) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"id": list(range(60)), "story": LINES})
    path = tmp_path / f"stories.{kind}"
    if kind == "csv":
        table.to_csv(str(path))
    elif kind == "parquet":
        table.to_parquet(str(path))
    else:
        table.to_json(str(path), compression="gzip" if kind.endswith("gz") else None)
    data = made(path, padded=True, length=40)
    read = [text for name in ("train", "val", "test") for text in data.texts(name)]
    assert sorted(read) == sorted(LINES)
    with pytest.raises(FLDDError, match=r"columns with text: \['story'\].*--data\.column"):
        _ = made(path, column="ids").splits
    numbers = made(path, column="id", padded=True, length=2)
    assert sorted(int(text) for name in ("train", "val", "test") for text in numbers.texts(name)) == list(range(60))


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"text": LINES})
    datasets.DatasetDict({"train": table, "test": table.select(range(9))}).save_to_disk(str(tmp_path / "saved"))
    data = made(tmp_path / "saved", padded=True, length=40)
    assert list(data.texts("test")) == LINES[:9]
    assert sorted([*data.texts("train"), *data.texts("val")]) == sorted(LINES)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text("abc", max_size=9), min_size=1, max_size=12).filter(lambda texts: any(texts)),
    st.integers(1, 7),
    st.booleans(),
)
def test_rows_lose_nothing_but_what_they_say(texts: list[str], length: int, padded: bool) -> None:
    tokenizer = CharacterTokenizer("\nabc")
    rows = Rows(tokenizer, length, padded, "\n")
    x = [row for part in rows.of(texts) for row in part.tolist()]
    assert all(len(row) == length for row in x)
    if padded:
        kept = [text for text in texts if text]
        assert [tokenizer.decode([i for i in row if i < 4]) for row in x] == [text[:length] for text in kept]
        assert rows.counts["cut"] == sum(len(text) > length for text in texts)
    else:
        joined = "\n".join(texts)
        assert "".join(tokenizer.decode(row) for row in x) == joined[: len(joined) // length * length]
    assert rows.counts["documents"] == len(texts)


def test_embedded_corpus_runs_without_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = embedded_corpus()
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in corpus.what
    assert "sha256" in corpus.what
    data = TextDataModule(length=64, cache_dir=str(tmp_path))
    assert data.tokenizer.describe() == "27 characters ' abcdefghijklmnopqrstuvwxyz'"
    assert len(data.splits["train"]) > 5_000
    assert "  " not in next(iter(corpus.splits["train"]))


def test_tokens_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(folder, alphabet=ALPHABET)
    x = data.splits["train"].x.clone()
    assert data.splits["train"].x.dtype == torch.uint8
    with monkeypatch.context() as patch:
        patch.setattr(CharacterTokenizer, "encode", None)  # a second look must not tokenise
        assert torch.equal(made(folder, alphabet=ALPHABET).splits["train"].x, x)
        shorter = made(folder, alphabet=ALPHABET, length=8).splits["train"].x
        assert torch.equal(shorter[: len(x)].flatten(), x.flatten()[: 8 * len(x)])
        for options in ({"separator": " "}, {"alphabet": ALPHABET + "_"}):
            with pytest.raises(TypeError):
                _ = made(folder, **{"alphabet": ALPHABET, **options}).splits
    path = folder / "train.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(LINES[1:]))
    stamp = path.stat().st_mtime + 10
    os.utime(path, (stamp, stamp))
    changed = made(folder, alphabet=ALPHABET)
    assert whole(changed.splits["train"], changed).startswith(LINES[1])
    assert changed.corpus.fingerprint != data.corpus.fingerprint


@pytest.mark.slow
def test_another_process_finds_the_tokens(folder: Path) -> None:
    """Whatever a tokenizer remembers of its use, and in whatever order Python's sets are there."""
    from tokenizers import Tokenizer, models

    path, kept = folder.parent / "letters.json", folder.parent / "kept"
    path.write_text(Tokenizer(models.BPE({c: i for i, c in enumerate(ALPHABET)}, [])).to_str())
    script = f"""
from fldd_lightning.data import HuggingFaceTokenizer, TextDataModule
encode = HuggingFaceTokenizer.encode
HuggingFaceTokenizer.encode = lambda self, texts: print(len(texts)) or encode(self, texts)
data = TextDataModule({str(folder)!r}, tokenizer={str(path)!r}, length=16, cache_dir={str(kept)!r})
print(int(data.splits["train"].x.sum()))
"""
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    first, second = (run.stdout.split() for run in runs)
    assert first[:-1] == ["60", "9", "11"]
    assert second == first[-1:]


def test_runs_that_are_killed_or_start_together_break_nothing(folder: Path) -> None:
    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CharacterTokenizer, "encode", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
            _ = made(folder).splits

    def whole_one() -> None:
        data = made(folder)
        assert whole(data.splits["train"], data) == "\n".join(LINES)[: len("\n".join(LINES)) // 16 * 16]

    assert exit_codes(killed) == [-signal.SIGKILL]
    assert exit_codes(whole_one, whole_one, whole_one) == [0, 0, 0]
    whole_one()


def exit_codes(*targets: Callable[[], None]) -> list[int | None]:
    """Of processes that run side by side."""
    processes = [multiprocessing.get_context("fork").Process(target=target) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


# ---- streaming -------------------------------------------------------------------------------


def stream(folder: Path, **options: Any) -> TextDataModule:
    return made(folder, streaming=True, alphabet=ALPHABET, held_out=5, **options)


def test_streaming_gives_every_document_to_one_worker_and_none_held_out(tmp_path: Path) -> None:
    """Of four files, two processes and two workers; the documents held out are all of the first file."""
    home = tmp_path / "corpus"
    home.mkdir()
    for i in range(4):
        (home / f"train-{i}.txt").write_text("\n".join(LINES[15 * i : 15 * i + 15]))
    data = stream(home, padded=True, length=40)
    assert [text for name in ("val", "test") for text in data.texts(name)] == LINES[:10]
    documents = data._streams()["train"]
    seen: list[list[str]] = []
    for rank in range(2):
        loader = DataLoader(_OnePass(documents, data._rows(data.tokenizer), 2, rank), batch_size=None, num_workers=2)
        seen.append([data.tokenizer.decode([i for i in item["x"].tolist() if i < len(ALPHABET)]) for item in loader])
    assert sorted(seen[0] + seen[1]) == sorted(LINES[10:])
    assert [len(part) for part in seen] == [26, 24]  # 13, 13, 12 and 12 documents


class _OnePass(TextStream):
    def __iter__(self) -> Any:
        for rows in self.rows.of(self.share(0)):
            for row in rows:
                yield {"x": torch.from_numpy(row)}


def test_streaming_is_endless_shuffled_and_keeps_held_out_text_apart(folder: Path) -> None:
    data = stream(folder / "train.txt.gz", padded=True, length=40)
    assert data.num_classes == len(ALPHABET) + 1
    held = {name: list(data.texts(name)) for name in ("val", "test")}
    assert held == {"val": LINES[:5], "test": LINES[5:10]}
    assert list(data.texts("train")) == LINES[10:15]  # what is counted beforehand
    batches = list(islice(iter(data.train_dataloader()), 30))  # 120 examples of 50
    texts = [data.tokenizer.decode([i for i in r.tolist() if i < len(ALPHABET)]) for b in batches for r in b["x"]]
    assert sorted(texts[:50]) == sorted(LINES[10:])
    assert sorted(texts[50:100]) == sorted(LINES[10:])
    assert texts[:50] != texts[50:100]
    assert texts[:50] != LINES[10:]


def test_streaming_uses_given_splits_whole(folder: Path) -> None:
    data = stream(folder, length=8)
    text = "\n".join(LINES[:9])
    assert whole(data.splits["val"], data) == text[: len(text) // 8 * 8]
    batch = next(iter(data.train_dataloader()))["x"]
    assert batch.shape == (4, 8)
    assert batch.max() < len(ALPHABET)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length of TextDataModule"),
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "val_fraction"),
        ({"tokenizer": "a", "alphabet": "ab"}, "not both"),
        ({"streaming": True}, r"streaming needs --data\.path"),
        ({"streaming": True, "path": "x"}, r"--data\.alphabet or --data\.tokenizer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FLDDError, match=message):
        TextDataModule(**options)


def test_a_character_outside_the_alphabet_is_named(folder: Path) -> None:
    with pytest.raises(FLDDError, match=r"the character '0' .*--data\.alphabet"):
        _ = made(folder, alphabet="\n abcdefghijklmnopqrstuvwxyz").splits
    data = made(folder, streaming=True, alphabet="\n abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(FLDDError, match=r"the character '0' "):
        _ = data.splits


def test_unknown_tokens_are_counted_aloud(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"?": 0, "line": 1, "says": 2, "end": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    unknown, total = (sum(f(line) for line in LINES) for f in (lambda s: s.count("word") + 1, lambda s: len(s.split())))
    for options in ({}, {"streaming": True, "held_out": 1_000}):
        data = made(folder, tokenizer=str(tmp_path / "words.json"), padded=True, **options)
        with pytest.warns(UserWarning, match=f"train: {unknown} of {total} tokens stand for text"):
            assert data.num_classes == 5


def test_short_and_empty_splits_are_named(folder: Path) -> None:
    with pytest.raises(FLDDError, match=r"fewer than one block of --data\.length 5000"):
        _ = made(folder, length=5000).splits
    with pytest.raises(FLDDError, match=r"train split .* fewer than one block .* Give a larger --data\.held_out"):
        _ = made(folder / "train.txt.gz", length=200, streaming=True, held_out=2, alphabet=ALPHABET).splits
    with pytest.raises(FLDDError, match=r"too few for the splits train, val and test.*smaller --data\.length"):
        _ = made(folder / "train.txt.gz", length=600).splits
    with gzip.open(folder / "valid.txt.gz", "wt") as file:
        file.write("")
    with pytest.raises(FLDDError, match=r"the split 'val.*' of .* is empty"):
        _ = made(folder).splits
    (folder / "valid.txt.gz").unlink()
    with gzip.open(folder / "valid.txt.gz", "wt") as file:
        file.write("\n\n\n")
    with pytest.raises(FLDDError, match="the val split is empty"):
        _ = made(folder, padded=True).splits
    with pytest.raises(FLDDError, match="the val split is empty"):
        _ = stream(folder, padded=True).splits


def test_a_stream_too_short_for_a_row_is_named(folder: Path) -> None:
    data = stream(folder)
    rows = Rows(data.tokenizer, 100_000, False, "\n")
    with pytest.raises(FLDDError, match="too few documents to fill one example"):
        next(iter(TextStream(data.corpus.splits["train"], rows)))


@pytest.mark.parametrize("streaming", [False, True])
def test_undecodable_bytes_are_named(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / f"latin{int(streaming)}.txt"
    path.write_bytes("\n".join(LINES).encode() + b" caf\xe9 ")
    options: dict[str, Any] = {"streaming": True, "alphabet": ALPHABET} if streaming else {}
    with pytest.raises(FLDDError, match=r"cannot read '.*latin.\.txt.*can't decode byte 0xe9.*UTF-8"):
        _ = made(path, **options).splits


def test_broken_archives_and_wrong_paths_are_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "train.txt.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FLDDError, match="cannot read"):
        _ = made(folder).splits
    with pytest.raises(FLDDError, match="does not exist"):
        _ = made(tmp_path / "nowhere").splits
    (tmp_path / "story.doc").write_text("hello")
    with pytest.raises(FLDDError, match=r"no known kind.*\.txt"):
        _ = made(tmp_path / "story.doc").splits
    (tmp_path / "empty").mkdir()
    with pytest.raises(FLDDError, match=r"Looked for: .*\.csv.*\.txt.* Found: no file at all\. Set --data\.path"):
        _ = made(tmp_path / "empty").splits
    (tmp_path / "empty" / "below").mkdir()
    for name in ("a.pdf", "below/b.PDF", "below/readme"):
        (tmp_path / "empty" / name).write_text("hello")
    with pytest.raises(FLDDError, match=r"Found: 2 \.pdf \(such as 'a\.pdf'\), 1 without ending \(such as 'readme'\)"):
        _ = made(tmp_path / "empty").splits
    (folder / "more.csv").write_text("text\nhello\n")
    with pytest.raises(FLDDError, match=r"files of several kinds, \.csv, \.txt: set --data\.path"):
        _ = made(folder).splits
    (folder / "more.csv").unlink()
    path.unlink()
    with pytest.raises(FLDDError, match="no split 'train'"):
        _ = made(folder).splits


def test_without_a_network_it_is_said_what_to_do() -> None:
    for options in ({}, {"streaming": True}):
        with pytest.raises(
            FLDDError, match=r"cannot load 'nobody/nothing' from the hub.*--data\.path.*HF_HUB_OFFLINE=1"
        ):
            read_corpus(None, "nobody/nothing", **options)  # type: ignore[arg-type]
