"""Sample quality: FID, or the same distance in other features."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..categorical import float64_device
from ..data import DiscreteDataModule
from ..decoding import Decoding
from ..errors import FLDDError
from ..image import ImageFLDD
from ..metrics import FeatureExtractor, InceptionFeatures, SampleQuality
from ..ranges import AT_LEAST_TWO, COUNT, check_numbers
from .samples import SampleCallback

__all__ = ["FIDCallback"]


class FIDCallback(SampleCallback[ImageFLDD]):
    """Samples, and compares with the real images of the split.

    Logs, in validation and in testing, ``{val,test}/fid_T{t}`` (``frechet_classifier_T{t}`` or
    ``frechet_pixels_T{t}`` with other features) and, in the same features, ``precision_inception_T{t}``,
    ``recall_...``, ``density_...`` and ``coverage_...``; one callback for each kind of features.
    With every number goes a line in ``sample_quality.jsonl`` in the run's folder: extractor, samples,
    real images, T, controls of sampling, dtype and the package's version.

    The statistics of the real images are computed once a run. The metric lives here and not on the module, which
    would put it into every checkpoint.

    Args:
        extractor: Features; Inception's if None.
        num_samples: Samples each time. FID depends on this number: compare equal ones only.
        every_n_validations: Evaluate at every so many-th validation of ``fit``; 0 only in
            ``validate`` and ``test``.
        neighbours: k of precision, recall, density and coverage; see :class:`SampleQuality`.
        batch_size: Images at once.
        seed: Of the samples.
        decoding: How a step is drawn, with temperature and top-p; None for :class:`~fldd_lightning.Ancestral`.
        best_of: How many are drawn for each sample, as in :meth:`FLDD.sample`.

    Raises:
        FLDDError: If the numbers are out of range, or the module or data is of another kind.
    """

    module_class = ImageFLDD

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        num_samples: int = 10_000,
        every_n_validations: int = 1,
        neighbours: int = 5,
        batch_size: int = 250,
        seed: int = 0,
        decoding: Decoding | None = None,
        best_of: int = 1,
    ) -> None:
        check_numbers(locals(), num_samples=AT_LEAST_TWO, neighbours=COUNT)
        super().__init__(num_samples, every_n_validations, batch_size, seed, decoding, best_of)
        self.extractor = extractor if extractor is not None else InceptionFeatures()
        self.neighbours = neighbours

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._qualities: dict[str, SampleQuality] = {}
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DiscreteDataModule):
            raise FLDDError("FIDCallback needs a DiscreteDataModule; remove it from the callbacks.")
        assert isinstance(pl_module, ImageFLDD)
        for name, split in data.splits.items():
            if name in ("val", "test") and len(split) < 2:
                raise FLDDError(
                    f"FIDCallback needs two real images or more, but the {name} split has one: give it more, or remove "
                    "the callback."
                )
        with torch.no_grad():  # whether it takes such pictures is known before training
            self.extractor.cpu().eval()(pl_module.render(data.splits["val"].x[:1]).cpu())

    def evaluate(self, trainer: Trainer, module: ImageFLDD, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage not in self._qualities:
            self._qualities[stage] = self._with_real(trainer, module, data.splits[stage].x)
        quality = self._qualities[stage]
        quality.reset()
        for first, samples in self.samples(trainer, module):
            quality.update(module.render(samples), first, real=False)
        values = quality.compute()
        steps = module.spec.num_steps
        named = {f"{stage}/{key}_T{steps}": value.float().to(module.device) for key, value in values.items()}
        module.log_dict(named, rank_zero_only=False, sync_dist=False)
        facts = {"extractor": self.extractor.describe(), "num_real": len(data.splits[stage])}
        self.report(trainer, module, named, facts)

    def _with_real(self, trainer: Trainer, module: ImageFLDD, x: Tensor) -> SampleQuality:
        """The comparison with this process's share of the real images in it."""
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]  # folders are sorted by class
        device = float64_device(module.device)
        self.extractor.to(device).eval()
        quality = SampleQuality(self.extractor, module.render(x[:1])[0], self.neighbours, device)
        for number, what in ((len(x), "real images"), (self.num_samples, "samples")):
            if number <= quality.num_features:
                rank_zero_warn(
                    f"{number} {what} do not determine the covariance of {quality.num_features} features: the Fréchet "
                    f"distance will be far too large. Use more than {quality.num_features}, or fewer features."
                )
        for _, first, size in self.shares(trainer, len(x)):
            quality.update(module.render(x[first : first + size]), first, real=True)
        return quality
