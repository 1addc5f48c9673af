"""Sample quality at fixed step budgets: FID, or the same distance in other features."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ..data import DiscreteDataModule
from ..errors import FLDDError
from ..image import ImageFLDD
from ..metrics import FeatureExtractor, InceptionFeatures, SampleQuality
from ..module import FLDD
from .budgets import load_budgets
from .statistics import load_statistics, save_statistics, statistics_path

__all__ = ["FIDCallback"]


class FIDCallback(Callback):
    """Samples with every step budget there is a model for and compares with the real images.

    Logs, in validation and in testing, ``{val,test}/fid_T{t}`` (``frechet_classifier_T{t}`` or
    ``frechet_pixels_T{t}`` with other features) and, in the same features, ``precision_inception_T{t}``,
    ``recall_...``, ``density_...`` and ``coverage_...``; one callback for each kind of features.
    With every number goes a line in ``sample_quality.jsonl`` in the run's folder: extractor, samples,
    real images, T and dtype.

    The real images are those of the split; their statistics are computed once and kept on disk under
    the hash of images, rendering and extractor. Samples are drawn in batches with seeds of
    their own, shared out over processes: any number of processes draws the same samples.
    The metric lives here and not on the module, which would put it into every checkpoint.

    Args:
        extractor: Features; Inception's if None.
        num_samples: Samples per budget. FID depends on this number: compare equal ones only.
        models: Checkpoints of further step budgets, such as those trained with another T.
        every_n_validations: Evaluate at every so many-th validation of ``fit``; 0 only in
            ``validate`` and ``test``.
        neighbours: k of precision, recall, density and coverage; see :class:`SampleQuality`.
        cache_dir: Where the statistics are kept; None keeps none.
        batch_size: Images at once.
        seed: Of the samples.

    Raises:
        FLDDError: If the numbers are out of range, or the module or data is of another kind.
    """

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
        if min(batch_size, neighbours) < 1 or num_samples < 2 or every_n_validations < 0:
            raise FLDDError(
                "num_samples must be at least 2, batch_size and neighbours at least 1, every_n_validations 0 or more."
            )
        self.extractor = extractor if extractor is not None else InceptionFeatures()
        self.num_samples, self.models, self.every_n_validations = num_samples, models, every_n_validations
        self.neighbours, self.batch_size, self.seed = neighbours, batch_size, seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts anew with every call of the trainer, as it may be with other data."""
        self._validations = 0
        self._qualities: dict[str, SampleQuality] = {}
        self._others: list[FLDD] | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        due = self.every_n_validations > 0 and self._validations % self.every_n_validations == 0
        if due or trainer.state.fn != TrainerFn.FITTING:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    @torch.no_grad()
    def _evaluate(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(module, ImageFLDD) or not isinstance(data, DiscreteDataModule):
            raise FLDDError("FIDCallback needs an ImageFLDD and a DiscreteDataModule; remove it from the callbacks.")
        if stage not in self._qualities:
            self._qualities[stage] = self._with_real(trainer, module, data.splits[stage].x)
        quality = self._qualities[stage]
        if self._others is None:
            self._others = load_budgets(self.models, module)
        for model in [module, *self._others]:
            model.to(module.device)
            quality.reset()
            for first, samples in self._samples(trainer, model):
                quality.update(model.render(samples), first, real=False)
            steps = model.problem.num_steps
            named = {f"{stage}/{key}_T{steps}": value.float() for key, value in quality.compute().items()}
            module.log_dict({key: value.to(module.device) for key, value in named.items()}, rank_zero_only=False)
            self._report(trainer, named, len(data.splits[stage]), steps, next(model.parameters()).dtype)

    def _samples(self, trainer: Trainer, model: FLDD) -> Iterator[tuple[int, Tensor]]:
        """This process's share of the samples, in batches, each with the number of its first sample."""
        starts = range(0, self.num_samples, self.batch_size)
        for i in range(trainer.global_rank, len(starts), trainer.world_size):
            size = min(self.batch_size, self.num_samples - starts[i])
            yield starts[i], model.sample(size, 1_000_003 * (self.seed + 1) + i, batch_size=size)

    def _with_real(self, trainer: Trainer, module: ImageFLDD, x: Tensor) -> SampleQuality:
        """The comparison with the real side in it: from the disk, or each process's share of it from the pixels."""
        device = torch.device("cpu") if module.device.type == "mps" else module.device  # needs float64
        self.extractor.to(device).eval()
        quality = SampleQuality(self.extractor, module.render(x[:1])[0], self.neighbours, device)
        for number, what in ((len(x), "real images"), (self.num_samples, "samples")):
            if number <= quality.num_features:
                rank_zero_warn(
                    f"{number} {what} do not determine the covariance of {quality.num_features} features: the Fréchet "
                    f"distance will be far too large. Use more than {quality.num_features}, or fewer features."
                )
        kept = None
        if self.cache_dir is not None:
            rendering = f"{type(module).__qualname__} {module.problem.num_classes}"
            kept = statistics_path(self.cache_dir, x, rendering, self.extractor)
        is_loaded = trainer.is_global_zero and kept is not None and load_statistics(kept, quality.load_real, len(x))
        if trainer.strategy.broadcast(is_loaded):
            return quality
        starts = range(0, len(x), self.batch_size)
        for i in range(trainer.global_rank, len(starts), trainer.world_size):
            quality.update(module.render(x[starts[i] : starts[i] + self.batch_size]), starts[i], real=True)
        statistics = quality.real_statistics()
        if trainer.is_global_zero and kept is not None:
            save_statistics(kept, statistics)
        return quality

    def _report(
        self, trainer: Trainer, values: dict[str, Tensor], num_real: int, steps: int, dtype: torch.dtype
    ) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes agree on it, so all must ask
        if not trainer.is_global_zero:
            return
        numbers = {name: float(value) for name, value in values.items()}
        facts = {
            "extractor": self.extractor.describe(),
            "num_samples": self.num_samples,
            "num_real": num_real,
            "num_steps": steps,
            "dtype": str(dtype).removeprefix("torch."),
            "global_step": trainer.global_step,
        }
        rank_zero_info(
            f"{', '.join(f'{name} {value:.3f}' for name, value in numbers.items())} ({facts['extractor']}; "
            f"{self.num_samples} samples against {num_real} images, {steps} steps, {facts['dtype']})"
        )
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "sample_quality.jsonl").open("a") as file:
            file.write(json.dumps({**numbers, **facts}) + "\n")
