"""Text: the bound per token, and what a judge says of samples, never alone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..data import CharacterTokenizer, TextDataModule
from ..decoding import Decoding
from ..errors import FLDDError
from ..metrics import GeneratedText, Judge, NGramJudge
from ..text import TextFLDD
from .curve import Point, save_curve
from .run import run_folder
from .samples import SampleCallback

__all__ = ["PerplexityCallback"]

_TRIED = 64  # texts


class PerplexityCallback(SampleCallback[TextFLDD]):
    """Bounds and generative perplexity.

    Logs, in validation and in testing, with ``_T{t}`` after each name:

    - ``{val,test}/bits_per_token``, ``ppl_bound`` and ``bits_per_char``: the bound on the split, all T terms.
    - ``gen_ppl_{judge}``: exp of the judge's nats per token of its own, over all samples; ``gen_bits_{judge}``: its
      bits per character, which can be compared between judges. Low values are bought by repetition, so beside them:
    - ``entropy``: of the tokens within a sample, in nats, mean over samples; ``distinct_{n}``: share of n-grams that
      differ, n = 1..4, over all samples.

    The same with ``_data`` is said of as many real examples of the split, which is what to aim at. All of it
    goes into ``sample_quality.jsonl`` with judge, number of samples, T, controls of sampling, dtype and the package's
    version.

    With ``temperatures`` samples are drawn at each of them, too. Perplexity against entropy, a point for each, is drawn
    into ``perplexity_T{t}.png``, beside the point of real texts; a line for each goes into ``sample_quality.jsonl``.

    Args:
        judge: :class:`NGramJudge` if None; or a :class:`CausalLMJudge`.
        num_samples: Samples each time.
        mauve: Also ``mauve``, in the judge's features (Pillutla et al., 2021), for which the package ``mauve-text``
            must be installed.
        every_n_validations: Evaluate at every so many-th validation of ``fit``; 0 only in
            ``validate`` and ``test``.
        batch_size: Samples at once.
        seed: Of the samples.
        decoding: How a step is drawn, with temperature and top-p; None for :class:`~fldd_lightning.Ancestral`.
        best_of: How many are drawn for each sample, as in :meth:`FLDD.sample`.
        temperatures: Further temperatures, in place of that of ``decoding``.

    Raises:
        FLDDError: If the numbers are out of range, a package is missing, or the module or data is of another kind. Also
            if more than a tenth of the tokens of some real texts, which it is tried on before the first step, are
            unknown to the judge. Of samples that is a warning only: an untrained model may well write what no text
            holds.
    """

    module_class = TextFLDD

    def __init__(
        self,
        judge: Judge | None = None,
        num_samples: int = 1_000,
        mauve: bool = False,
        every_n_validations: int = 1,
        batch_size: int = 250,
        seed: int = 0,
        decoding: Decoding | None = None,
        best_of: int = 1,
        temperatures: Sequence[float] = (),
    ) -> None:
        super().__init__(num_samples, every_n_validations, batch_size, seed, decoding, best_of)
        self.decodings = {temperature: self.decoding.at(temperature) for temperature in sorted(temperatures)}
        if judge is None and find_spec("nltk") is None:
            raise FLDDError(
                'the n-gram judge of PerplexityCallback needs: pip install "fldd-lightning[text]". Or give it another '
                "judge."
            )
        self.judge = judge if judge is not None else NGramJudge()
        self.mauve = mauve
        if mauve:
            _import_mauve()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._real: dict[str, tuple[dict[str, Tensor], Tensor | None]] = {}
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TextDataModule):
            raise FLDDError("PerplexityCallback needs a TextDataModule; remove it from the callbacks.")
        assert isinstance(pl_module, TextFLDD)
        for decoding in self.decodings.values():
            self.check_decoding(pl_module, decoding)
        self._prepare(data, "test" if stage == "test" else "val")

    @torch.no_grad()
    def _prepare(self, data: TextDataModule, split: str) -> None:
        """Let the judge learn from the training texts, and try it on some others, where it stands."""
        alphabet = data.tokenizer.alphabet if isinstance(data.tokenizer, CharacterTokenizer) else None
        self.judge.eval().prepare(data.texts("train"), alphabet)
        texts = list(islice(data.texts(split), min(_TRIED, self.num_samples)))
        judgement = self.judge(texts)
        tokens = int(judgement.tokens.sum())
        if tokens == 0:
            raise FLDDError(
                f"the judge ({self.judge.describe()}) makes no tokens of real texts. Is its tokenizer where its model "
                "is? Save both with save_pretrained."
            )
        unknown = int(judgement.unknown.sum()) / tokens
        if unknown > 0.1:
            raise FLDDError(
                f"the judge ({self.judge.describe()}) is of another vocabulary: {100 * unknown:.0f} % of the tokens of "
                "real texts are unknown to it. Use one of the same language and characters, or NGramJudge."
            )
        if self.mauve:
            self.judge.features(texts[:2])

    def evaluate(self, trainer: Trainer, module: TextFLDD, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.judge.to(module.device).eval()
        if stage not in self._real:
            x = data.splits[stage].x
            parts = [x[first : first + size] for _, first, size in self.shares(trainer, min(len(x), self.num_samples))]
            values, features, _ = self._judged(module, parts)
            self._real[stage] = ({f"{stage}/{key}_data": value for key, value in values.items()}, features)
        real, real_features = self._real[stage]
        if module.tokenizer is None or module.tokenizer.fingerprint != data.tokenizer.fingerprint:
            raise FLDDError("this model has no tokenizer or another than the data: use the data it was trained on.")
        judged, features, unknown = self._judged(module, [samples for _, samples in self.samples(trainer, module)])
        steps = module.spec.num_steps
        if unknown > 0.1:
            rank_zero_warn(
                f"{100 * unknown:.0f} % of the tokens of samples with T = {steps} are unknown to the judge "
                f"({self.judge.describe()}), whose numbers say little until they are few."
            )
        bounds = module.evaluations[stage].metrics["tokens"].compute()  # the module's own epoch end comes later
        values = {**bounds, **judged}
        if features is not None and real_features is not None:
            values["mauve"] = _mauve(real_features, features, self.seed)
        named = {f"{stage}/{key}_T{steps}": value.float().to(module.device) for key, value in values.items()}
        named |= {key: value.float().to(module.device) for key, value in real.items()}
        module.log_dict(named, rank_zero_only=False, sync_dist=False)
        facts = {
            "judge": self.judge.describe(),
            "num_real": min(len(data.splits[stage]), self.num_samples),
            "corpus": data.corpus.what,
            "corpus_hash": data.corpus.fingerprint[:16],
            "precision": str(trainer.precision),  # of the bounds; samples are drawn in that of the parameters
        }
        self.report(trainer, module, named, facts)
        if self.decodings:
            self._curve(trainer, module, stage, facts)

    def _curve(self, trainer: Trainer, module: TextFLDD, stage: str, facts: dict[str, Any]) -> None:
        """Samples at each temperature: their numbers, and the picture."""
        steps, perplexity = module.spec.num_steps, f"gen_ppl_{self.judge.name}"
        points = []
        for temperature, decoding in self.decodings.items():
            values, _, _ = self._judged(module, [x for _, x in self.samples(trainer, module, decoding)])
            named = {f"{stage}/{key}_T{steps}_at{temperature:g}": value for key, value in values.items()}
            self.report(trainer, module, named, {**facts, "temperature": temperature}, decoding)
            points.append(Point(f"{temperature:g}", float(values["entropy"]), float(values[perplexity])))
        real = self._real[stage][0]
        aim = Point("real texts", *(float(real[f"{stage}/{key}_data"]) for key in ("entropy", perplexity)))
        trained = max(trainer.global_step, module.trained_steps)
        title = f"{facts['judge']}\nT = {steps}, {self.num_samples} samples, step {trained}"
        path = run_folder(trainer) / f"perplexity_T{steps}.png"
        if trainer.is_global_zero:
            save_curve(points, aim, title, path)

    def _judged(self, model: TextFLDD, parts: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor | None, float]:
        """Numbers, features and the share of unknown tokens, of batches ``(B, length)`` of this process."""
        metric = GeneratedText(self.judge.name, model.spec.pad).to(model.device)
        empty = torch.zeros(0, model.spec.num_dims, dtype=torch.long)  # a process may get no batch
        for x in [empty, *parts]:
            texts = model.texts(x)
            features = self.judge.features(texts) if self.mauve else torch.zeros(len(x), 0)
            metric.update(x.to(model.device), self.judge(texts), features.to(model.device))
        values = metric.compute()
        features, unknown = values.pop("features"), float(values.pop("unknown"))
        return values, features if self.mauve else None, unknown


def _import_mauve() -> Any:
    try:
        import mauve
    except ImportError as error:
        raise FLDDError('MAUVE needs: pip install "fldd-lightning[mauve]". Or set mauve to false.') from error
    return mauve


def _mauve(real: Tensor, samples: Tensor, seed: int) -> Tensor:
    """MAUVE of features ``(N, F)``; all processes have all features, and compute the same."""
    result = _import_mauve().compute_mauve(
        p_features=real.cpu().numpy(), q_features=samples.cpu().numpy(), seed=seed, verbose=False
    )
    return torch.tensor(float(result.mauve))
