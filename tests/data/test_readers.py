"""What files of text say is what is trained on: nothing more, nothing less, or one clear error."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from conftest import small_mlp
from fldd_lightning import AbsorbingProcess, ArrayDataModule, FLDDError, ImageDataModule, MNISTDataModule, TextFLDD
from fldd_lightning.cli import main
from fldd_lightning.data import HuggingFaceTokenizer, TextDataModule

ALPHABET = "".join(chr(i) for i in range(32, 127)) + "\n\té日"


def data_of(path: Path, **options: Any) -> TextDataModule:
    defaults: dict[str, Any] = {"padded": True, "length": 40, "cache_dir": f"{path}-cache", "batch_size": 4}
    return TextDataModule(str(path), **{**defaults, **options})


def read(path: Path, **options: Any) -> list[str]:
    """All texts of all splits, sorted."""
    data = data_of(path, **options)
    return sorted(text for name in ("train", "val", "test") for text in data.texts(name))


def streamed(path: Path, **options: Any) -> TextDataModule:
    return data_of(path, streaming=True, alphabet=ALPHABET, held_out=1, **options)


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nfine\nwell, well\n", r"a\.csv', row 3 \('well, well'\) has 2 fields, .* names 1\. .*double quotes"),
        ("id,text\n1,a\n2,b, c\n", r"row 3 \('2,b, c'\) has 3 fields, .* names 2\. Put a field .* in double quotes"),
        ("id,text\n1,a\n2\n", r"row 3 \('2'\) has 1 fields, .* names 2\. Add what is missing"),
        ("", r"a\.csv' is empty: its first line must name the columns"),
        ("text,text\na,b\n", r"names \['text'\] twice"),
        ("text;label\na;1\n", r"header of .*a\.csv' is 'text;label': separate the columns by commas"),
        ('text\nfine\n"not closed\nlost\n', r"ends within double quotes, in the text that starts with 'not closed"),
    ],
)
def test_rows_that_are_no_rows_of_the_header_are_named(
    tmp_path: Path, content: str, message: str, streaming: bool
) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(FLDDError, match=message):
        _ = (streamed(path) if streaming else data_of(path)).splits


def test_csv_is_text_as_it_stands_there(tmp_path: Path) -> None:
    lines = ["NA", "None", "null", "nan", "0012", "1e3", "True", '5" pipe', '"a, b"', '"say ""x"""', '"two\nlines"']
    path = write(tmp_path / "a.csv", "text\r\n" + "\r\n".join(lines) + "\r\n")
    wanted = [*lines[:8], "a, b", 'say "x"', "two\nlines"]
    assert read(path) == sorted(wanted)
    data = streamed(path)  # the first row is for validation and the test each
    batches = islice(iter(data.train_dataloader()), 12)
    texts = {data.tokenizer.decode([i for i in row if i < len(ALPHABET)]) for b in batches for row in b["x"].tolist()}
    assert texts | set(data.texts("val")) | set(data.texts("test")) == set(wanted)


def test_an_empty_field_is_missing_and_empty_quotes_are_text(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.csv", 'id,text\n1,ab\n2,\n3,""\n4,cd\n5,\n6,abba\n')
    with caplog.at_level("INFO"):
        assert read(path) == ["ab", "abba", "cd"]
    assert [w for w in recwarn if "2 of 6 rows have no text in column 'text' and were left out" in str(w.message)]
    assert "train: 1 of 4 texts are empty and were left out" in caplog.text
    blocks = data_of(path, padded=False, length=1)
    assert sum(len(split) for split in blocks.splits.values()) == len("ab\n\ncd\nabba")
    with pytest.raises(FLDDError, match=r"row 1 \(from 0\) has no text in column 'text'.*--data\.skip_missing"):
        _ = data_of(path, skip_missing=False).splits


def test_missing_texts_of_tables_and_streams_are_counted_or_refused(tmp_path: Path) -> None:
    rows = '{"text": null}\n{"text": "hello there"}\n' + '{"text": "good day"}\n' * 8
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.warns(UserWarning, match="train: 1 of 10 rows have no text"):
        assert read(path) == ["good day"] * 8 + ["hello there"]
    for options in ({"streaming": True, "alphabet": ALPHABET, "held_out": 4}, {}):
        with pytest.raises(FLDDError, match=r"row 0 .* has no text"):
            _ = data_of(path, skip_missing=False, **options).splits
        if options:
            with pytest.warns(UserWarning, match="train: 1 of 4 rows have no text"):
                assert list(data_of(path, **options).texts("val")) == ["hello there", "good day", "good day"]
    nothing = write(tmp_path / "b.csv", "a,text\n" + "b,\n" * 9)
    with pytest.raises(FLDDError, match="no row has text in column 'text'"):
        _ = data_of(nothing).splits


def test_digits_and_truth_values_are_read_from_a_column_that_is_named(tmp_path: Path) -> None:
    board = write(tmp_path / "a.csv", "Puzzle,Solution\n" + "".join(f"00{i}0,{i:04}\n" for i in range(1, 9)))
    assert read(board, column="Puzzle") == [f"00{i}0" for i in range(1, 9)]
    assert read(board, column="Solution") == [f"{i:04}" for i in range(1, 9)]
    with pytest.raises(FLDDError, match=r"text: none; all columns: \['Puzzle', 'Solution'\]\. Set --data\.column"):
        _ = data_of(board).splits
    one = write(tmp_path / "b.csv", "code\n" + "0450\n0012\n" * 4)
    assert read(one) == ["0012"] * 4 + ["0450"] * 4  # there is no other
    flags = write(tmp_path / "c.jsonl", '{"flag": true, "n": 7}\n{"flag": false, "n": 12}\n' * 4)
    assert read(flags, column="flag") == ["false"] * 4 + ["true"] * 4
    assert read(flags, column="n") == ["12"] * 4 + ["7"] * 4
    lists = write(tmp_path / "d.jsonl", '{"tags": ["a"], "n": 1}\n' * 4)
    with pytest.raises(FLDDError, match=r"column is 'tags'.*all columns: \['tags', 'n'\]"):
        _ = data_of(lists, column="tags").splits


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_byte_order_marks_are_no_characters(tmp_path: Path, encoding: str) -> None:
    words = ["some", "café", "日", "more"]
    contents = {"a.txt": "\n".join(words), "b.csv": "text\n" + "\n".join(words)}
    contents["c.fasta"] = "".join(f">{word}\n{word}\n" for word in words)
    if encoding in ("utf-8-sig", "utf-16"):
        contents["d.jsonl"] = "".join(f'{{"text": "{word}"}}\n' for word in words)
    for name, content in contents.items():
        for ending in ("", ".gz") if name == "a.txt" else ("",):
            path = write(tmp_path / f"{name}{ending}", content.encode(encoding))
            assert read(path) == sorted(words), path
    path = write(tmp_path / "e.txt.gz", "\n".join(words).encode(encoding))
    assert list(streamed(path).texts("val")) == ["some"]


def test_files_of_one_folder_may_differ_in_encoding_but_those_of_json(tmp_path: Path) -> None:
    for folder, name in (("texts", "{}.txt"), ("tables", "{}.jsonl")):
        (tmp_path / folder).mkdir()
        for i, encoding in enumerate(("utf-8", "utf-16")):
            content = "good day\nsir\n" if folder == "texts" else '{"text": "good day"}\n'
            write(tmp_path / folder / name.format(i), content.encode(encoding))
    write(tmp_path / "texts" / "state.txt", "of affairs")  # as a file of the library is called but for its ending
    assert read(tmp_path / "texts") == ["good day"] * 2 + ["of affairs"] + ["sir"] * 2
    with pytest.raises(FLDDError, match=r"written in utf-16, utf-8-sig: convert"):
        _ = data_of(tmp_path / "tables").splits


@pytest.mark.parametrize("name", ["a.fasta", "a.fa.gz", "a.FAA"])
def test_records_of_fasta_are_documents(tmp_path: Path, name: str) -> None:
    records = [
        ">one human\nMKV\nLA A*\n\n",
        ">two\r\nMKT\r\n",
        ">none\n",
        ";a comment\n",
        ">three\nmkx",
        "\n>four\nM\n",
    ]
    path = write(tmp_path / name, "".join(records))
    with pytest.warns(UserWarning, match="train: 1 of 5 rows have no text"):
        assert read(path) == ["M", "MKT", "MKVLAA*", "mkx"]
    write(path, "MKV\n>one\nMKV\n")
    with pytest.raises(FLDDError, match=r"line 1 is 'MKV', but a FASTA file starts with a header: '>name'"):
        _ = data_of(path).splits


def test_words_are_tokens_and_text_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'the cat, "Tom", sat on  the mat.\nthe dog\tsat, too.\n' * 3
    corpus = write(tmp_path / "corpus.txt", text)
    made = ["tokenizer", "--path", str(corpus), "--output", str(tmp_path / "words.json"), "--words", "true"]
    assert main(made) == 0
    words = HuggingFaceTokenizer.load(str(tmp_path / "words.json"))
    ids = words.encode([text])[0].tolist()
    assert words.decode(ids) == text
    assert len(ids) < len(text) / 2
    assert words.unknown not in ids
    other = words.encode(["the cow sat\n\nthe cat"])[0].tolist()
    assert words.decode(other) == "the[UNK] sat\n\nthe cat"
    data = data_of(corpus, tokenizer=str(tmp_path / "words.json"), padded=False, length=5)
    assert "\nthe dog" in "".join(data.texts("train"))  # lines are joined by a token, not by something unknown
    model = TextFLDD(data.num_classes, data.shape, AbsorbingProcess, small_mlp)
    model.adopt(data)
    assert model.given_text("the cat").tolist() == [*words.encode(["the cat"])[0].tolist(), -1, -1, -1]
    with pytest.raises(FLDDError, match=r"'the zebra' has a word that .* does not know"):
        model.given_text("the zebra")
    capsys.readouterr()
    assert main(made) == 1
    assert "words.json' is there already" in capsys.readouterr().err
    made[made.index("--output") + 1] = str(tmp_path / "few.json")
    for size, status in (("2", 1), ("3", 0)):
        assert main([*made, "--vocab_size", size]) == status
    assert "Use 3 or more" in capsys.readouterr().err
    assert HuggingFaceTokenizer.load(str(tmp_path / "few.json")).vocab_size == 3


def test_folders_with_nothing_to_read_say_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("notes.pdf", "sub/more.pdf", "sub/run.log"):
        write(tmp_path / name, "x")
    found = r"Found: 2 \.pdf \(such as 'notes\.pdf'\), 1 \.log \(such as 'run\.log'\)\. Set --data\.path"
    pictures = r"Looked for: pictures such as .*idx3-ubyte\.gz, or files .*\.parquet.*"
    for made, wanted in (
        (TextDataModule, r"Looked for: files .*\.csv, .*\.txt, gzipped or not\. "),
        (ImageDataModule, pictures),
        (MNISTDataModule, pictures),
        (ArrayDataModule, r"Looked for: files \.npy, \.npz, \.pt\. "),
    ):
        with pytest.raises(FLDDError, match=wanted + found):
            _ = made(str(tmp_path)).splits  # type: ignore[operator]
    write(tmp_path / "x.npy", "x")
    with pytest.raises(FLDDError, match=r"is a folder\. Set --data\.path to one of its files: .*x\.npy"):
        _ = ArrayDataModule(str(tmp_path)).splits
