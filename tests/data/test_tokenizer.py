from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fldd_lightning import FLDDError
from fldd_lightning.cli import main
from fldd_lightning.data import CharacterTokenizer, HuggingFaceTokenizer, tokenizer
from fldd_lightning.data.tokenizer import restore_tokenizer

TEXT = "the cat sat on the mat and the dog sat on the log while quick brown foxes jumped over lazy hens\n" * 40


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "corpus.txt").write_text(TEXT)
    path = folder / "tokenizer.json"
    args = ["tokenizer", "--path", str(folder / "corpus.txt"), "--vocab_size", "280", "--output", str(path)]
    assert main(args) == 0
    return path


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=4))
def test_characters_round_trip(texts: list[str]) -> None:
    made = CharacterTokenizer.of([*texts, "ab"])
    assert [made.decode(ids) for ids in made.encode(texts)] == texts
    assert list(made.alphabet) == sorted(made.alphabet)


@settings(deadline=None, max_examples=60)
@given(text=st.text())
def test_bytes_round_trip(bpe: Path, text: str) -> None:
    made = HuggingFaceTokenizer.load(str(bpe))
    assert made.decode(made.encode([text])[0].tolist()) == text


def test_trained_bpe(bpe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = HuggingFaceTokenizer.load(str(bpe.parent))  # a folder will do
    assert made.vocab_size == 280
    ids = made.encode([TEXT])[0]
    assert len(ids) < 0.6 * len(TEXT)
    assert made.decode(ids.tolist()) == TEXT
    args = ["tokenizer", "--path", str(bpe.parent / "corpus.txt"), "--output", str(bpe.parent / "b.json")]
    assert main([*args, "--vocab_size", "280"]) == 0
    assert HuggingFaceTokenizer.load(str(bpe.parent / "b.json")).fingerprint == made.fingerprint
    assert main([*args, "--vocab_size", "200"]) == 1
    assert "256 are bytes" in capsys.readouterr().err


def test_long_texts_are_encoded_in_pieces(bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = HuggingFaceTokenizer.load(str(bpe))
    whole = made.encode([TEXT, "", "cat"])
    monkeypatch.setattr(tokenizer, "_PIECE", 30)
    for ids, other in zip(made.encode([TEXT, "", "cat"]), whole, strict=True):
        assert ids.tolist() == other.tolist()
    assert made.decode(made.encode(["x" * 100])[0].tolist()) == "x" * 100


def test_state_restores_and_fingerprints_differ(bpe: Path) -> None:
    made = [CharacterTokenizer("abc"), CharacterTokenizer("acb"), HuggingFaceTokenizer.load(str(bpe))]
    assert len({each.fingerprint for each in made}) == 3
    for each in made:
        again = restore_tokenizer(each.state())
        assert type(again) is type(each)
        assert (again.fingerprint, again.vocab_size) == (each.fingerprint, each.vocab_size)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match=r"character 'é' \(in 'café au lait'\).*--data\.alphabet"):
        CharacterTokenizer("abcdefghijklmnopqrstuvwxyz ").encode(["fine", "café au lait"])
    for alphabet in ("", "a", "aba"):
        with pytest.raises(FLDDError, match="two characters or more"):
            CharacterTokenizer(alphabet)
    with pytest.raises(FLDDError, match="nothing to learn"):
        CharacterTokenizer.of(["aaa", ""])
    for source in ("./nowhere", str(tmp_path / "no.json"), "no.json"):
        with pytest.raises(FLDDError, match="there is no tokenizer at"):
            HuggingFaceTokenizer.load(source)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FLDDError, match=r"cannot read the tokenizer.*bad\.json"):
        HuggingFaceTokenizer.load(str(tmp_path / "bad.json"))
    with pytest.raises(FLDDError, match="cannot read the tokenizer"):
        HuggingFaceTokenizer.load(str(tmp_path))  # a folder without one
    with pytest.raises(FLDDError, match=r"'tokenizer\.json' of 'nobody/nothing'.*--data\.tokenizer.*HF_HUB_OFFLINE=1"):
        HuggingFaceTokenizer.load("nobody/nothing")


def test_a_tokenizer_without_the_characters_is_refused() -> None:
    from tokenizers import Tokenizer, models

    made = HuggingFaceTokenizer(Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str())
    assert made.encode(["abba"])[0].tolist() == [0, 1, 1, 0]
    assert made.encode(["ab a"])[0].tolist() == [0, 1, 0]  # spaces may go
    for text in ("xyz", "ab x ab"):
        with pytest.raises(FLDDError, match=r"no token for 'x' \(in '.*leaves it out"):
            made.encode([text])


def test_only_what_is_left_out_is_refused() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = HuggingFaceTokenizer(Tokenizer(models.WordLevel({"the": 0}, unk_token="?")).to_str())
    assert words.encode(["the"])[0].tolist() == [0]
    with pytest.raises(FLDDError, match="cannot write this text"):
        words.encode(["cat"])
    vocabulary = {"q": 0, "u": 1, "e</w>": 2, "qu": 3, "que</w>": 4}
    merges = [("q", "u"), ("qu", "e</w>")]
    suffixed = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    suffixed.pre_tokenizer = pre_tokenizers.Whitespace()
    assert HuggingFaceTokenizer(suffixed.to_str()).encode(["que que"])[0].tolist() == [4, 4]
    accents = Tokenizer(models.BPE({"e": 0}, []))
    accents.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    assert HuggingFaceTokenizer(accents.to_str()).encode(["\u00e9"])[0].tolist() == [0]
    spaced = Tokenizer(models.BPE({"\u2581": 0, "a": 1}, []))
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(FLDDError, match="no token for 'x'"):
        HuggingFaceTokenizer(spaced.to_str()).encode(["axa"])


def test_only_whole_characters_are_counted() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Tokenizer(models.BPE(alphabet, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = HuggingFaceTokenizer(library.to_str())
    ids = made.encode(["a\u65e5\u672c"])[0].tolist()
    assert len(ids) == 7
    assert [made.count_characters(part) for part in (ids, ids[:5], ids[5:])] == [3, 2, 0]
    library = Tokenizer(models.BPE({"a": 0, "[UNK]": 1}, [], unk_token="[UNK]"))
    named = HuggingFaceTokenizer(library.to_str())
    assert named.count_characters(named.encode(["axa"])[0].tolist()) == 3


def test_no_checkpoint_can_name_anything_else_as_a_tokenizer() -> None:
    for path in ("os.system", "subprocess.Popen"):
        with pytest.raises(FLDDError, match="no part of a model"):
            restore_tokenizer({"class_path": path, "init_args": {"args": ["true"]}})


def test_numbers_left_out_and_the_unknown_token_of_unigrams() -> None:
    from tokenizers import Tokenizer, models

    gaps = HuggingFaceTokenizer(Tokenizer(models.WordLevel({"a": 0, "?": 7}, unk_token="?")).to_str())
    assert (gaps.vocab_size, gaps.unknown) == (8, 7)
    assert gaps.decode([0, 3, 0]) == "a a"  # nothing is written for numbers without a token
    unigram = models.Unigram([("a", -1.0), ("?", -9.0), ("b", -1.0)], unk_id=1, byte_fallback=False)
    made = HuggingFaceTokenizer(Tokenizer(unigram).to_str())
    assert (made.vocab_size, made.unknown) == (3, 1)
    assert made.encode(["axb"])[0].tolist() == [0, 1, 2]
