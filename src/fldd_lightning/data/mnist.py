"""Ready-made image data sets: MNIST, Fashion-MNIST and CIFAR-10.

Sources and licences:

- MNIST: Y. LeCun, C. Cortes and C. Burges, 1998, made of NIST's Special Databases 1 and 3; licence CC BY-SA 3.0 as
  stated by its authors. The hub's copy is ``ylecun/mnist``.
- Fashion-MNIST: H. Xiao, K. Rasul and R. Vollgraf, 2017, of Zalando's articles; MIT licence. The hub's copy is
  ``zalando-datasets/fashion_mnist``.
- CIFAR-10: A. Krizhevsky, 2009, a labelled part of the 80 Million Tiny Images; no licence is stated. The hub's copy is
  ``uoft-cs/cifar10``.
"""

from __future__ import annotations

from ..errors import FLDDError
from ..ranges import COUNT, check_numbers
from .image import ImageDataModule

__all__ = ["CIFAR10DataModule", "FashionMNISTDataModule", "MNISTDataModule"]


class MNISTDataModule(ImageDataModule):
    """Binarised MNIST (LeCun et al., 1998), 60,000 training and 10,000 test images.

    At sizes other than 28, images are padded to 32x32 and averaged down.

    Args:
        path: Folder with the four idx files; otherwise the hub's ``ylecun/mnist``.
        size: Height and width: 28, or a divisor of 32.
        threshold: Brightness, between 0 and 1, above which a pixel is 1.
        stochastic: Draw pixels by their brightness instead; see :class:`ImageDataModule`.
        levels: K, the number of grey levels.
        num_val: Training images held out for validation.
        batch_size: Images per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the split and of the training order.

    Raises:
        FLDDError: As :class:`ImageDataModule`, or if ``size`` does not divide 32.
    """

    hub_name = "ylecun/mnist"

    def __init__(
        self,
        path: str | None = None,
        size: int = 28,
        threshold: float = 0.5,
        stochastic: bool = False,
        levels: int = 2,
        num_val: int = 5_000,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        check_numbers(locals(), size=COUNT)
        if size != 28 and 32 % size:
            raise FLDDError(f"size is {size}, but it must be 28 or a divisor of 32 (16, 8, 4, ...).")
        super().__init__(
            path,
            self.hub_name,
            size=size,
            padding=0 if size == 28 else 2,
            grey=True,
            levels=levels,
            threshold=threshold,
            stochastic=stochastic,
            num_val=num_val,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST (Xiao et al., 2017; MIT licence), from idx files or ``zalando-datasets/fashion_mnist``."""

    hub_name = "zalando-datasets/fashion_mnist"


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 (Krizhevsky, 2009): 32x32 colour images of 10 classes.

    Args:
        path: Local copy: a parquet folder or a folder of images; otherwise the hub's ``uoft-cs/cifar10``.
        levels: K, the number of levels of each colour.
        flip: Mirror training images at random.
        num_val: Training images held out for validation.
        batch_size: Images per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the split and of the training order.

    Raises:
        FLDDError: As :class:`ImageDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        levels: int = 256,
        flip: bool = True,
        num_val: int = 5_000,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            path,
            "uoft-cs/cifar10",
            levels=levels,
            flip=flip,
            num_val=num_val,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
