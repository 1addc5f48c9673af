"""Features in which sets of pictures are compared: Inception's, a small classifier's, the pixels themselves."""

from __future__ import annotations

import hashlib
import pickle
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FLDDError

__all__ = ["Classifier", "ClassifierFeatures", "FeatureExtractor", "InceptionFeatures", "PixelFeatures"]


class FeatureExtractor(nn.Module, ABC):
    """Base class; a new extractor is one subclass with one method and a name.

    Attributes:
        name: Of the features, in the names of metrics.
    """

    name: str

    @property
    def metric_name(self) -> str:
        """What a Fréchet distance in these features is called; ``fid`` is Inception's alone."""
        return f"frechet_{self.name}"

    @abstractmethod
    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``(N, F)`` of pictures in [0, 1], ``(N, C, H, W)``."""

    def describe(self) -> str:
        """What to say beside the number."""
        return type(self).__name__

    def fingerprint(self) -> str:
        """Of the class's name and all of its weights; statistics on disk are found by it.

        Override it where features depend on anything else.
        """
        digest = hashlib.sha256(type(self).__qualname__.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


class PixelFeatures(FeatureExtractor):
    """The pixels themselves: first and second moments, which is just what a factorised step breaks."""

    name = "pixels"

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)

    def describe(self) -> str:
        return "pixels"


class InceptionFeatures(FeatureExtractor):
    """The 2,048 features of torch-fidelity's Inception v3, as in Heusel et al. (2017).

    Grey pictures are repeated to three channels; the network resizes to 299x299 itself.

    Args:
        weights_path: A local copy of ``weights-inception-2015-12-05-6726825d.pth``. None lets
            torch-fidelity download it, which fails at once where there is no network.

    Raises:
        FLDDError: If the weights are missing or broken.
    """

    name = "inception"

    def __init__(self, weights_path: str | None = None) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        if weights_path is not None and not Path(weights_path).is_file():
            raise FLDDError(f"no Inception weights at '{weights_path}'.")
        if weights_path is None:
            _require_download()
        self.weights_path = weights_path
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights_path)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, KeyError) as error:
            raise FLDDError(
                f"cannot load the Inception weights: {str(error)[:200]}. Give weights_path a copy of "
                "weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases."
            ) from error

    @property
    def metric_name(self) -> str:
        return "fid"

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1] not in (1, 3):
            raise FLDDError(
                f"Inception takes grey or colour pictures, not {pictures.shape[1]} channels. Use ClassifierFeatures, "
                "which 'fldd-lightning features' trains on any."
            )
        colours = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        features: Tensor = self.network((colours * 255).round().byte())
        return features

    def describe(self) -> str:
        return "torch-fidelity Inception v3, " + (self.weights_path or "downloaded weights")


class Classifier(nn.Module):
    """A small convolutional network whose 64 hidden features tell classes apart.

    Args:
        channels: Of the pictures.
        num_labels: Classes.
    """

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, 32, 3, padding=1)
        self.convs = nn.ModuleList([first, nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 2, 1)])
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in (32, 64, 64))
        self.hidden, self.out = nn.Linear(64 * 16, 64), nn.Linear(64, num_labels)

    def features(self, pictures: Tensor) -> Tensor:
        """``(N, 64)`` from pictures ``(N, C, H, W)`` of any size."""
        for conv, norm in zip(self.convs, self.norms):
            pictures = F.silu(norm(conv(pictures)))
        pooled = F.adaptive_avg_pool2d(pictures, 4)  # (N, 64, 4, 4)
        return F.silu(self.hidden(pooled.flatten(1)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``(N, num_labels)``."""
        logits: Tensor = self.out(self.features(pictures))
        return logits


class ClassifierFeatures(FeatureExtractor):
    """The hidden features of a classifier that ``fldd-lightning features`` has trained.

    For pictures Inception says little about: 8x8, binary, tiny. Its distances compare models on one
    data set and with one classifier; they are no FID and compare with none.

    Args:
        path: What ``fldd-lightning features --output`` wrote.

    Raises:
        FLDDError: If the file is missing or of another kind, or the pictures do not fit it.
    """

    name = "classifier"

    def __init__(self, path: str) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FLDDError(f"no classifier at '{path}'. Train one with 'fldd-lightning features --output {path}'.")
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.picture_shape = tuple(saved["picture_shape"])
            self.network = Classifier(self.picture_shape[0], saved["num_labels"])
            self.network.load_state_dict(saved["state_dict"])
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
            raise FLDDError(f"'{path}' was not written by 'fldd-lightning features': {error}") from error
        self.path, self.accuracy = path, float(saved["accuracy"])
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Tensor:
        if tuple(pictures.shape[1:]) != self.picture_shape:
            raise FLDDError(
                f"the classifier '{self.path}' was trained on pictures {self.picture_shape}, not "
                f"{tuple(pictures.shape[1:])}. Train one on this data with 'fldd-lightning features'."
            )
        return self.network.features(pictures.float())

    def describe(self) -> str:
        return f"classifier {Path(self.path).name}, {100 * self.accuracy:.1f} % right"


def _require_download() -> None:
    """Raise unless torch-fidelity's weights are cached or their home answers."""
    from ..network import answers

    cached = Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    if not cached.exists() and not answers("https://github.com"):
        raise FLDDError(
            "the Inception weights are not here and there is no network to fetch them. Set weights_path to a copy of "
            "weights-inception-2015-12-05-6726825d.pth, or use ClassifierFeatures or PixelFeatures."
        )
