from __future__ import annotations

import sys

import pytest

from fldd_lightning import FLDDError
from fldd_lightning.metrics import CausalLMJudge, NGramJudge


def test_what_a_judge_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nltk.lm", "nltk", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FLDDError, match=r"n-gram judge needs: pip install \"fldd-lightning\[text\]\""):
        NGramJudge().prepare(["some text"], None)
    with pytest.raises(FLDDError, match=r"pip install \"fldd-lightning\[text\]\""):
        CausalLMJudge("gpt2")


def test_without_a_network_it_is_said_what_to_do() -> None:
    with pytest.raises(FLDDError, match=r"cannot load the judge 'nobody/nothing'.*local folder.*HF_HUB_OFFLINE=1"):
        CausalLMJudge("nobody/nothing")
