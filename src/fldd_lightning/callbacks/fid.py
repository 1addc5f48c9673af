"""Sample quality at fixed step budgets: FID, or the same distance in other features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..data import DiscreteDataModule
from ..errors import FLDDError
from ..image import ImageFLDD
from ..metrics import Coverage, FeatureExtractor, FrechetDistance, InceptionFeatures
from .quality import SampleQuality
from .statistics import load_statistics, save_statistics, statistics_path

__all__ = ["FIDCallback"]


class FIDCallback(SampleQuality[ImageFLDD]):
    """Samples with every step budget there is a model for and compares with the real images.

    Logs, in validation and in testing, ``{val,test}/fid_T{t}`` (``frechet_classifier_T{t}`` or
    ``frechet_pixels_T{t}`` with other features) and, in the same features, ``precision_inception_T{t}``,
    ``recall_...``, ``density_...`` and ``coverage_...``; one callback for each kind of features.
    With every number goes a line in ``sample_quality.jsonl`` in the run's folder: extractor, samples,
    real images, T and dtype.

    The real images are those of the split; their statistics are computed once and kept on disk under
    the hash of images, rendering and extractor. The metric lives here and
    not on the module, which would put it into every checkpoint.

    Args:
        extractor: Features; Inception's if None.
        num_samples: Samples per budget. FID depends on this number: compare equal ones only.
        models: Checkpoints of further step budgets, such as those trained with another T.
        every_n_validations: Evaluate at every so many-th validation of ``fit``; 0 only in
            ``validate`` and ``test``.
        neighbours: k of precision, recall, density and coverage, on at most 2,000 features a side.
        cache_dir: Where the statistics are kept; None keeps none.
        batch_size: Images at once.
        seed: Of the samples.

    Raises:
        FLDDError: If the numbers are out of range, or the module or data is of another kind.
    """

    module_class = ImageFLDD

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        num_samples: int = 10_000,
        models: Sequence[str] = (),
        every_n_validations: int = 1,
        neighbours: int = 5,
        cache_dir: str | None = "~/.cache/fldd-lightning",
        batch_size: int = 250,
        seed: int = 0,
    ) -> None:
        super().__init__(num_samples, models, every_n_validations, batch_size, seed)
        if neighbours < 1:
            raise FLDDError("neighbours must be at least 1.")
        self.extractor = extractor if extractor is not None else InceptionFeatures()
        self.neighbours = neighbours
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._real: dict[str, tuple[FrechetDistance, Coverage]] = {}

    def evaluate(self, trainer: Trainer, module: ImageFLDD, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DiscreteDataModule):
            raise FLDDError("FIDCallback needs a DiscreteDataModule; remove it from the callbacks.")
        device = torch.device("cpu") if module.device.type == "mps" else module.device  # needs float64
        self.extractor.to(device).eval()
        if stage not in self._real:
            self._real[stage] = self._read_real(trainer, module, data.splits[stage].x, device)
        frechet, coverage = self._real[stage]
        num_features = frechet.num_features
        for model in self.budgets(module):
            frechet.reset()  # neither forgets the real features
            coverage.reset()
            coverage.update(torch.zeros(0, num_features, device=device), real=False)  # a process may get no batch
            for first, samples in self.samples(trainer, model):
                features = self.extractor(model.render(samples).to(device))
                frechet.update(features, real=False)
                if first < _MANIFOLD:
                    coverage.update(features[: _MANIFOLD - first], real=False)
            steps = model.problem.num_steps
            name = self.extractor.name
            values = {self.extractor.metric_name: frechet.compute()}
            values.update({f"{key}_{name}": value for key, value in coverage.compute().items()})
            named = {f"{stage}/{key}_T{steps}": value.float().to(module.device) for key, value in values.items()}
            module.log_dict(named, rank_zero_only=False, sync_dist=False)
            facts = {"extractor": self.extractor.describe(), "num_real": len(data.splits[stage])}
            self.report(trainer, model, named, facts)

    def _read_real(
        self, trainer: Trainer, module: ImageFLDD, x: Tensor, device: torch.device
    ) -> tuple[FrechetDistance, Coverage]:
        num_features = self.extractor(module.render(x[:1]).to(device)).shape[1]
        for number, what in ((len(x), "real images"), (self.num_samples, "samples")):
            if number <= num_features:
                rank_zero_warn(
                    f"{number} {what} do not determine the covariance of {num_features} features: the Fréchet "
                    f"distance will be far too large. Use more than {num_features}, or fewer features."
                )
        frechet = FrechetDistance(num_features).to(device)
        coverage = Coverage(self.neighbours).to(device)
        coverage.update(torch.zeros(0, num_features, device=device), real=True)
        path = statistics_path(self.cache_dir, x, type(module).__qualname__, self.extractor)
        kept = load_statistics(path, num_features, len(x))
        for _, first, size in self.shares(trainer, len(x)):
            if kept is not None and first >= _MANIFOLD:
                break
            features = self.extractor(module.render(x[first : first + size]).to(device))
            if kept is None:
                frechet.update(features, real=True)
            if first < _MANIFOLD:
                coverage.update(features[: _MANIFOLD - first], real=True)
        if kept is None:
            statistics = frechet.real_statistics()
            if trainer.is_global_zero:
                save_statistics(path, statistics)
        elif trainer.is_global_zero:
            frechet.load_real_statistics(kept)
        return frechet, coverage


_MANIFOLD = 2_000  # features a side for precision, recall, density and coverage
