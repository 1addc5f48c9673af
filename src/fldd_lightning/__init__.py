"""Forward-Learned Discrete Diffusion as PyTorch Lightning modules.

Data flows one way: data -> forward process -> coupling -> (denoiser) -> bound -> module ->
trainer. Sampling uses the denoiser alone. All that a user puts together is imported from here.
Names are imported on first use, so that ``import fldd_lightning`` and the command line's help do
not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from .callbacks import AnyOrderBound as AnyOrderBound
    from .callbacks import CollapseMonitor as CollapseMonitor
    from .callbacks import FIDCallback as FIDCallback
    from .callbacks import NELBOWriter as NELBOWriter
    from .callbacks import PerplexityCallback as PerplexityCallback
    from .callbacks import Pictures as Pictures
    from .callbacks import Report as Report
    from .callbacks import RunProgressBar as RunProgressBar
    from .callbacks import Texts as Texts
    from .callbacks.checkpoints import BestCheckpoint as BestCheckpoint
    from .callbacks.checkpoints import LastCheckpoint as LastCheckpoint
    from .callbacks.signals import SaveOnSignal as SaveOnSignal
    from .checkpoint import load_model as load_model
    from .data import ArrayDataModule as ArrayDataModule
    from .data import CharacterTokenizer as CharacterTokenizer
    from .data import CIFAR10DataModule as CIFAR10DataModule
    from .data import DigitsDataModule as DigitsDataModule
    from .data import DiscreteDataModule as DiscreteDataModule
    from .data import FashionMNISTDataModule as FashionMNISTDataModule
    from .data import HuggingFaceTokenizer as HuggingFaceTokenizer
    from .data import ImageDataModule as ImageDataModule
    from .data import MNISTDataModule as MNISTDataModule
    from .data import Split as Split
    from .data import TableDataModule as TableDataModule
    from .data import TextDataModule as TextDataModule
    from .data import Tokenizer as Tokenizer
    from .decoding import Ancestral as Ancestral
    from .decoding import ConfidentFirst as ConfidentFirst
    from .decoding import Decoding as Decoding
    from .decoding import ExactlyN as ExactlyN
    from .decoding import GreedyEnd as GreedyEnd
    from .errors import FLDDError as FLDDError
    from .estimators import RLOO as RLOO
    from .estimators import Concrete as Concrete
    from .estimators import ExactMasks as ExactMasks
    from .estimators import GradientEstimator as GradientEstimator
    from .estimators import Reinforce as Reinforce
    from .estimators import StepLoss as StepLoss
    from .estimators import WarmUp as WarmUp
    from .forward import AbsorbingProcess as AbsorbingProcess
    from .forward import D3PMProcess as D3PMProcess
    from .forward import DenseStep as DenseStep
    from .forward import ForwardProcess as ForwardProcess
    from .forward import LearnedMaskProcess as LearnedMaskProcess
    from .forward import MaskedStep as MaskedStep
    from .forward import MaskProcess as MaskProcess
    from .forward import Posterior as Posterior
    from .forward import ResidualAbsorbingProcess as ResidualAbsorbingProcess
    from .forward import ResidualProcess as ResidualProcess
    from .forward import ResidualUniformProcess as ResidualUniformProcess
    from .forward import StaggeredProcess as StaggeredProcess
    from .forward import Step as Step
    from .forward import UniformProcess as UniformProcess
    from .guidance import Guided as Guided
    from .image import ImageFLDD as ImageFLDD
    from .latents import AutoencoderLatent as AutoencoderLatent
    from .latents import ChainLatent as ChainLatent
    from .latents import ConditionLatent as ConditionLatent
    from .latents import EitherLatent as EitherLatent
    from .latents import GivenLatent as GivenLatent
    from .latents import LabelLatent as LabelLatent
    from .latents import Latent as Latent
    from .latents import LatentPosterior as LatentPosterior
    from .latents import LengthLatent as LengthLatent
    from .latents import MixtureLatent as MixtureLatent
    from .latents import PointPosterior as PointPosterior
    from .latents import TableLatent as TableLatent
    from .latents import TrainedChainLatent as TrainedChainLatent
    from .latents import TrainedMixtureLatent as TrainedMixtureLatent
    from .latents import VectorLatent as VectorLatent
    from .loop import OwnLoop as OwnLoop
    from .metrics import CausalLMJudge as CausalLMJudge
    from .metrics import Coverage as Coverage
    from .metrics import FeatureExtractor as FeatureExtractor
    from .metrics import FrechetDistance as FrechetDistance
    from .metrics import GeneratedText as GeneratedText
    from .metrics import InceptionFeatures as InceptionFeatures
    from .metrics import Judge as Judge
    from .metrics import Judgement as Judgement
    from .metrics import NELBOMetric as NELBOMetric
    from .metrics import NGramJudge as NGramJudge
    from .metrics import PixelFeatures as PixelFeatures
    from .metrics import SampleQuality as SampleQuality
    from .metrics import TokenBound as TokenBound
    from .module import FLDD as FLDD
    from .networks import MLP as MLP
    from .networks import Autoencoder as Autoencoder
    from .networks import Backbone as Backbone
    from .networks import ConvAutoencoder as ConvAutoencoder
    from .networks import DiT as DiT
    from .networks import MLPAutoencoder as MLPAutoencoder
    from .networks import StateEmbedding as StateEmbedding
    from .networks import StepEmbedding as StepEmbedding
    from .networks import Transformer as Transformer
    from .networks import UNet as UNet
    from .reverse import DirectReverse as DirectReverse
    from .reverse import MaskedReverse as MaskedReverse
    from .reverse import PredictingReverse as PredictingReverse
    from .reverse import Reverse as Reverse
    from .spec import Seen as Seen
    from .spec import Spec as Spec
    from .table import TableFLDD as TableFLDD
    from .text import TextFLDD as TextFLDD

# Where each name lives. A checkpoint may name the classes among them and no others: see docs/security.md.
_HOMES = {
    "callbacks.checkpoints": "BestCheckpoint LastCheckpoint",
    "callbacks.signals": "SaveOnSignal",
    "callbacks": (
        "AnyOrderBound CollapseMonitor FIDCallback NELBOWriter PerplexityCallback Pictures Report RunProgressBar Texts"
    ),
    "checkpoint": "load_model",
    "data": (
        "ArrayDataModule CIFAR10DataModule CharacterTokenizer DigitsDataModule DiscreteDataModule "
        "FashionMNISTDataModule HuggingFaceTokenizer ImageDataModule MNISTDataModule Split TableDataModule "
        "TextDataModule Tokenizer"
    ),
    "decoding": "Ancestral ConfidentFirst Decoding ExactlyN GreedyEnd",
    "errors": "FLDDError",
    "estimators": "RLOO Concrete ExactMasks GradientEstimator Reinforce StepLoss WarmUp",
    "forward": (
        "AbsorbingProcess D3PMProcess DenseStep ForwardProcess LearnedMaskProcess MaskProcess MaskedStep "
        "Posterior ResidualAbsorbingProcess ResidualProcess ResidualUniformProcess StaggeredProcess Step "
        "UniformProcess"
    ),
    "guidance": "Guided",
    "image": "ImageFLDD",
    "latents": (
        "AutoencoderLatent ChainLatent ConditionLatent EitherLatent GivenLatent LabelLatent Latent LatentPosterior "
        "LengthLatent MixtureLatent PointPosterior TableLatent TrainedChainLatent TrainedMixtureLatent VectorLatent"
    ),
    "loop": "OwnLoop",
    "metrics": (
        "CausalLMJudge Coverage FeatureExtractor FrechetDistance GeneratedText InceptionFeatures Judge "
        "Judgement NELBOMetric NGramJudge PixelFeatures SampleQuality TokenBound"
    ),
    "module": "FLDD",
    "networks": (
        "MLP Autoencoder Backbone ConvAutoencoder DiT MLPAutoencoder StateEmbedding StepEmbedding Transformer UNet"
    ),
    "reverse": "DirectReverse MaskedReverse PredictingReverse Reverse",
    "spec": "Seen Spec",
    "table": "TableFLDD",
    "text": "TextFLDD",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)
__version__ = version("fldd-lightning")


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fldd_lightning' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
