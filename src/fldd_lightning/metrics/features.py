"""Features in which sets of pictures are compared: Inception's, or the pixels themselves."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FLDDError

__all__ = ["FeatureExtractor", "InceptionFeatures", "PixelFeatures"]


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


class PixelFeatures(FeatureExtractor):
    """The pixels themselves: first and second moments, which is just what a factorised step breaks."""

    name = "pixels"

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)

    def describe(self) -> str:
        return "pixels"


class InceptionFeatures(FeatureExtractor):
    """The 2,048 features of torch-fidelity's Inception v3, as in Heusel et al. (2017).

    Grey pictures are repeated to three channels; the network resizes to 299x299 itself. Weights are those that
    torch-fidelity distributes (Apache-2.0, from Google's TensorFlow models). They are read without unpickling.

    Args:
        weights_path: A local copy of ``weights-inception-2015-12-05-6726825d.pth``. None downloads it once.

    Raises:
        FLDDError: If the weights are missing or broken.
    """

    name = "inception"

    def __init__(self, weights_path: str | None = None) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.weights_path = weights_path
        try:
            weights = _downloaded() if weights_path is None else _read(Path(weights_path))
            # torch-fidelity would unpickle a file of the user's: it gets one that holds tensors and nothing else
            with tempfile.TemporaryDirectory() as folder:
                torch.save(weights, f"{folder}/weights.pth")
                self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], f"{folder}/weights.pth")
        except FLDDError:
            raise
        except Exception as error:  # reading and fetching raise many kinds
            raise FLDDError(
                f"cannot load the Inception weights: {str(error)[:200]}. Set weights_path to a copy of {_WEIGHTS} from "
                "torch-fidelity's releases, or use PixelFeatures."
            ) from error

    @property
    def metric_name(self) -> str:
        return "fid"

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1] not in (1, 3):
            raise FLDDError(
                f"Inception takes grey or colour pictures, not {pictures.shape[1]} channels. Use PixelFeatures, or a "
                "FeatureExtractor of your own."
            )
        colours = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        features: Tensor = self.network((colours * 255).round().byte())
        return features

    def describe(self) -> str:
        return "torch-fidelity Inception v3, " + (self.weights_path or "downloaded weights")


_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FLDDError(f"no Inception weights at '{path}'. Set weights_path to a copy of {_WEIGHTS}.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _downloaded() -> Any:
    """The weights of torch-fidelity's releases, from torch's cache where they are; the name holds their hash."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if HF_HUB_OFFLINE and not (Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS).exists():
        raise FLDDError(
            f"the Inception weights are not here, and HF_HUB_OFFLINE says that there is no network. Set weights_path "
            f"to a copy of {_WEIGHTS}, or use PixelFeatures."
        )
    return torch.hub.load_state_dict_from_url(
        URL_INCEPTION_V3, map_location="cpu", progress=False, check_hash=True, weights_only=True
    )
