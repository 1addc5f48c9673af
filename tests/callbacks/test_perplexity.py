"""Perplexity: judges against hand counts, numbers that belong beside it, further budgets, bad input."""

from __future__ import annotations

import json
import sys
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

import fldd_lightning
from conftest import image_model, randomise
from fldd_lightning import FLDDError, GreedyEnd
from fldd_lightning.callbacks import PerplexityCallback, Texts, perplexity
from fldd_lightning.data import CharacterTokenizer, TextDataModule
from fldd_lightning.metrics import CausalLMJudge, GeneratedText, Judgement, NGramJudge
from test_text import WORDS, data_of, model_of, trainer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS * 30))
    return path


def callback(**options: Any) -> PerplexityCallback:
    return PerplexityCallback(**{"num_samples": 30, "batch_size": 8, **options})


# ---- judges ----------------------------------------------------------------------------------


def test_ngrams_are_a_distribution_and_equal_hand_counts() -> None:
    judge = NGramJudge(order=2)
    judge.prepare(["abab", "aab"], "abc")
    for context in ("a", "ab", "cb", "c"):
        p = [exp(-float(judge([context + c]).nats - judge([context]).nats)) for c in "abc"]
        assert sum(p) == pytest.approx(1, abs=1e-9)
    # Witten-Bell after 'a' (followed by b, b, a, b; 2 kinds): (count + 2 p(c)) / (4 + 2), p the unigrams 4/7 and 3/7
    expected = (1 - 1e-3) * (3 + 2 * 3 / 7) / 6 + 1e-3 / 3
    assert float(judge(["ab"]).nats) == pytest.approx(-log(expected))
    judgement = judge(["abz", "", "a"])
    assert judgement.tokens.tolist() == [2, 0, 0]
    assert judgement.unknown.tolist() == [1, 0, 0]
    assert judgement.nats[1:].tolist() == [0, 0]


def test_ngrams_prefer_the_language_they_know() -> None:
    judge = NGramJudge(order=4, max_characters=200)
    judge.prepare(WORDS * 100, None)
    assert "4-grams of 20" in judge.describe()  # stops after the text with which it has enough
    real, noise = judge(["dab a bee", "face"]), judge(["eebbadab ", "cefa"])
    assert real.nats.sum() < 0.5 * noise.nats.sum()
    assert judge.name == "4gram"


def test_causal_lm_equals_its_own_loss(lm: Path) -> None:
    judge = CausalLMJudge(str(lm), batch_size=2)
    texts = ["a bee cab", "bead", "f", "", "dab"]
    judgement = judge(texts)
    for i, text in enumerate(texts):
        ids = judge.tokenizer(text, return_tensors="pt")["input_ids"].long()
        assert judgement.tokens[i] == max(0, ids.shape[1] - 1)
        if ids.shape[1] > 1:
            loss = judge.model(input_ids=ids, labels=ids).loss
            assert float(judgement.nats[i]) == pytest.approx(float(loss) * (ids.shape[1] - 1), rel=1e-4)
            assert judgement.characters[i] == len(text) - len(judge.tokenizer.decode(ids[0, :1]))
    assert judgement.unknown.sum() == 0
    assert judge(["abcdef" * 20]).tokens[0] == 11  # cut at the model's 12 positions, and it says so
    assert "at most 12 tokens" in judge.describe()
    features = judge.features(texts[:3])
    alone = torch.cat([judge.features([text]) for text in texts[:3]])
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-4)  # padding changes nothing


def test_judges_of_another_vocabulary_are_refused(lm: Path, tmp_path: Path, corpus: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    small = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=1, n_head=2))
    PreTrainedTokenizerFast.from_pretrained(lm).save_pretrained(tmp_path / "small")
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(FLDDError, match="another vocabulary than its tokenizer: 50 tokens in the model"):
        CausalLMJudge(str(tmp_path / "small"))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "bonjour": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "french")
    small.save_pretrained(tmp_path / "french")
    data = data_of(corpus, padded=False, length=16)
    words.pre_tokenizer = None
    judge = CausalLMJudge(str(tmp_path / "french"))
    judge.tokenizer.backend_tokenizer.pre_tokenizer = _by_character()
    with pytest.raises(FLDDError, match=r"of another vocabulary: 100 % of the tokens"):
        trainer(tmp_path, callback(judge=judge)).test(model_of(data), data, verbose=False)


def test_samples_unknown_to_the_judge_are_told_and_end_no_run(corpus: Path, tmp_path: Path, lm: Path) -> None:
    """An untrained model of bytes writes characters that no training text holds."""
    data = data_of(corpus, tokenizer=str(lm))
    with pytest.warns(UserWarning, match=r"\d\d % of the tokens of samples with T = 2 are unknown to the judge"):
        logged = trainer(tmp_path, callback()).test(model_of(data), data, verbose=False)[0]
    assert logged["test/gen_ppl_5gram_data"] < logged["test/gen_ppl_5gram_T2"]


def _by_character() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex("."), "isolated")


def test_wrong_judges_are_named(tmp_path: Path) -> None:
    with pytest.raises(FLDDError, match=r"cannot load the judge 'nobody/nothing'.*Give a local folder"):
        CausalLMJudge("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FLDDError, match="cannot load the judge"):
        CausalLMJudge(str(tmp_path / "empty"))
    with pytest.raises(FLDDError, match="must be float32"):
        CausalLMJudge("x", dtype="int8")
    with pytest.raises(FLDDError, match="order of NGramJudge"):
        NGramJudge(order=1)
    with pytest.raises(FLDDError, match="has seen no text"):
        NGramJudge()(["a"])
    with pytest.raises(FLDDError, match="no features for MAUVE"):
        NGramJudge().features(["a"])


# ---- numbers beside it -----------------------------------------------------------------------


def generated(x: torch.Tensor, pad: int | None = None, parts: int = 1) -> dict[str, torch.Tensor]:
    metric = GeneratedText("j", pad)
    for part in x.chunk(parts):
        n = len(part)
        ones = torch.ones(n, dtype=torch.long)
        judgement = Judgement(torch.full((n,), 3.0, dtype=torch.float64), 2 * ones, 4 * ones, 0 * ones)
        metric.update(part, judgement, torch.zeros(n, 0))
    return metric.compute()


def test_entropy_and_distinct_ngrams_by_hand() -> None:
    values = generated(torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]]))
    assert float(values["entropy"]) == pytest.approx(log(2) / 2)
    assert float(values["gen_ppl_j"]) == pytest.approx(exp(1.5))
    assert float(values["gen_bits_j"]) == pytest.approx(3 / 4 / log(2))
    expected = {1: 3 / 8, 2: 3 / 6, 3: 3 / 4, 4: 2 / 2}
    assert {n: float(values[f"distinct_{n}"]) for n in expected} == pytest.approx(expected)
    padded = generated(torch.tensor([[0, 1, 3, 3], [0, 1, 2, 3]]), pad=3)
    assert {n: float(padded[f"distinct_{n}"]) for n in (1, 2, 3)} == pytest.approx({1: 3 / 5, 2: 2 / 3, 3: 1.0})
    assert "distinct_4" not in padded
    assert float(padded["entropy"]) == pytest.approx((log(2) + log(3)) / 2)


def test_distinct_ngrams_of_random_tokens_and_many_classes() -> None:
    x = torch.randint(50_257, (20, 30)) * torch.randint(2, (20, 30))
    values = generated(x, parts=3)
    for n in range(1, 5):
        grams = [tuple(row[i : i + n]) for row, i in product(x.tolist(), range(31 - n))]
        assert float(values[f"distinct_{n}"]) == pytest.approx(len(set(grams)) / len(grams), abs=1e-6)


# ---- the callback ----------------------------------------------------------------------------


def test_all_is_logged_together(corpus: Path, tmp_path: Path) -> None:
    data = data_of(corpus)
    model = model_of(data)
    logged = trainer(tmp_path, callback()).test(model, data, verbose=False)[0]
    line = json.loads((tmp_path / "sample_quality.jsonl").read_text())
    for name in ("gen_ppl_5gram", "gen_bits_5gram", "entropy", "distinct_1", "distinct_4"):
        for of in ("T2", "data"):
            assert line[f"test/{name}_{of}"] == pytest.approx(logged[f"test/{name}_{of}"])
    for name in ("bits_per_token", "bits_per_char", "ppl_bound"):
        assert logged[f"test/{name}_T2"] == pytest.approx(logged[f"test/{name}"])
    assert (line["num_samples"], line["num_real"], line["num_steps"], line["dtype"]) == (30, 15, 2, "float32")
    assert "5-grams" in line["judge"]
    assert logged["test/gen_ppl_5gram_data"] < 0.6 * logged["test/gen_ppl_5gram_T2"]  # the model is untrained

    # the value is that of the samples
    samples = torch.cat([model.sample(n, 1_000_003 + i, batch_size=n) for i, n in enumerate((8, 8, 8, 6))])
    judge = NGramJudge()
    judge.prepare(data.texts("train"), " abcdef")
    judgement = judge(model.texts(samples))
    expected = exp(float(judgement.nats.sum() / judgement.tokens.sum()))
    assert logged["test/gen_ppl_5gram_T2"] == pytest.approx(expected, rel=1e-5)


def test_bounds_are_those_of_each_validation(corpus: Path, tmp_path: Path) -> None:
    data = data_of(corpus)
    run = trainer(
        tmp_path, callback(every_n_validations=2), max_steps=8, val_check_interval=2, enable_checkpointing=False
    )
    run.fit(model_of(data), data)
    lines = [json.loads(line) for line in (tmp_path / "sample_quality.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines] == [4, 8]
    assert lines[1]["val/bits_per_token_T2"] == pytest.approx(float(run.callback_metrics["val/bits_per_token"]))
    assert lines[0]["val/bits_per_token_T2"] != lines[1]["val/bits_per_token_T2"]  # it trains


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_facts_name_precision_and_corpus(corpus: Path, tmp_path: Path, precision: Any) -> None:
    data = data_of(corpus)
    logged = trainer(tmp_path, callback(), precision=precision).test(model_of(data), data, verbose=False)[0]
    assert logged["test/bits_per_token_T2"] == pytest.approx(logged["test/bits_per_token"])
    facts = json.loads((tmp_path / "sample_quality.jsonl").read_text().splitlines()[-1])
    assert facts["precision"] == precision
    assert facts["corpus_hash"] == data.corpus.fingerprint[:16]


def test_the_default_judge_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "find_spec", lambda name: None)
    with pytest.raises(FLDDError, match=r'pip install "fldd-lightning\[text\]"'):
        callback()


def test_one_callback_with_other_data(corpus: Path, tmp_path: Path) -> None:
    """The judge, the real texts and the bounds of one call are not those of the next."""
    first = data_of(corpus)
    (tmp_path / "other.txt").write_text("\n".join([*WORDS[::2]] * 30))
    other = data_of(tmp_path / "other.txt", alphabet=" abcdef")
    model = model_of(first)
    reused = callback()
    trainer(tmp_path, reused).test(model, first, verbose=False)
    values = [trainer(tmp_path, each).test(model, other, verbose=False)[0] for each in (reused, callback())]
    assert values[0] == values[1]


def test_causal_lm_and_mauve(corpus: Path, tmp_path: Path, lm: Path) -> None:
    data = data_of(corpus)
    judge = CausalLMJudge(str(lm))
    logged = trainer(tmp_path, callback(judge=judge)).test(model_of(data), data, verbose=False)[0]
    assert logged[f"test/gen_ppl_{lm.name}_T2"] == pytest.approx(262, rel=0.3)  # it knows nothing
    assert "test/mauve_T2" not in logged

    def compute_mauve(p_features: Any, q_features: Any, **options: Any) -> Any:
        assert p_features.shape == (15, 16)
        assert q_features.shape == (30, 16)
        return type("Result", (), {"mauve": 0.25})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mauve", type("Module", (), {"compute_mauve": staticmethod(compute_mauve)}))
        logged = trainer(tmp_path, callback(judge=judge, mauve=True)).test(model_of(data), data, verbose=False)[0]
        assert logged["test/mauve_T2"] == 0.25
        patch.setitem(sys.modules, "mauve", None)
        with pytest.raises(FLDDError, match="fldd-lightning\\[mauve\\]"):
            callback(judge=judge, mauve=True)


def test_wrong_modules_and_data_are_named(tmp_path: Path, corpus: Path) -> None:
    from conftest import Stripes

    with pytest.raises(FLDDError, match="PerplexityCallback needs a TextFLDD, not a ImageFLDD"):
        trainer(tmp_path, callback()).test(image_model(2), Stripes(), verbose=False)
    with pytest.raises(FLDDError, match="ImageFLDD writes no text"):
        trainer(tmp_path, Texts()).fit(image_model(2), Stripes())
    with pytest.raises(FLDDError, match="num_samples"):
        callback(num_samples=0)
    model = model_of(data_of(corpus, padded=False))

    class Exchanges(Callback):
        def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.tokenizer = CharacterTokenizer("fedcba ")

    data = data_of(corpus)
    with pytest.raises(FLDDError, match="this model has no tokenizer or another than the data"):
        trainer(tmp_path, Exchanges(), callback()).test(model_of(data), data, verbose=False)

    class Other(Stripes):
        def load(self) -> Any:
            return data_of(corpus, padded=False).splits

    with pytest.raises(FLDDError, match="needs a TextDataModule"):
        trainer(tmp_path, callback()).test(model, Other(), verbose=False)


def test_embedded_corpus_has_the_expected_entropy_of_ngrams(tmp_path: Path) -> None:
    """A sanity check of units: 5-grams need between 1 and 2 bits a character of a text as repetitive as this."""
    data = TextDataModule(length=64, cache_dir=str(tmp_path))
    judge = NGramJudge(max_characters=200_000)
    judge.prepare(data.texts("train"), None)
    texts = [text for text, _ in zip(data.texts("test"), range(60))]
    judgement = judge(texts)
    bits = float(judgement.nats.sum() / judgement.characters.sum()) / log(2)
    assert 1.0 < bits < 2.0


def test_a_curve_over_temperatures(corpus: Path, tmp_path: Path) -> None:
    data = data_of(corpus)
    model = model_of(data)
    randomise(model.reverse)
    asked = callback(decoding=GreedyEnd(top_p=0.9), best_of=2, temperatures=[2.0, 0.5])
    trainer(tmp_path, asked).test(model, data, verbose=False)
    first, *lines = [json.loads(line) for line in (tmp_path / "sample_quality.jsonl").read_text().splitlines()]
    assert first["decoding"] == "GreedyEnd(temperature=1.0, top_p=0.9)"
    assert [line["temperature"] for line in lines] == [0.5, 2.0]
    assert [line["decoding"] for line in lines] == [f"GreedyEnd(temperature={t}, top_p=0.9)" for t in (0.5, 2.0)]
    for line in (first, *lines):
        assert (line["best_of"], line["num_samples"], line["version"]) == (2, 30, fldd_lightning.__version__)
    for temperature in (0.5, 2.0):
        line = lines[temperature > 1]
        decoding = GreedyEnd(temperature, 0.9)
        draws = [
            model.sample(n, 1_000_003 + i, batch_size=n, decoding=decoding, best_of=2)
            for i, n in enumerate((8, 8, 8, 6))
        ]
        judgement = asked.judge(model.texts(torch.cat(draws)))
        expected = exp(float(judgement.nats.sum() / judgement.tokens.sum()))
        assert line[f"test/gen_ppl_5gram_T2_at{temperature:g}"] == pytest.approx(expected, rel=1e-5)
    assert lines[0]["test/entropy_T2_at0.5"] < lines[1]["test/entropy_T2_at2"]
    with Image.open(tmp_path / "perplexity_T2.png") as picture:
        assert min(picture.size) > 300
    with pytest.raises(FLDDError, match="temperature of Ancestral is 0"):
        callback(temperatures=[0.0])
