"""scikit-learn's 8x8 digits, carried by the package: no download.

Source: UCI Optical Recognition of Handwritten Digits (test part, 1,797 images), E. Alpaydin and
C. Kaynak, licence CC BY 4.0, as distributed with scikit-learn (BSD-3-Clause).
"""

from __future__ import annotations

import torch

from .base import DiscreteDataModule, Split

__all__ = ["DigitsDataModule"]


class DigitsDataModule(DiscreteDataModule):
    """8x8 digits with 10 labels; fixed stratified split of 1,257 / 270 / 270 images.

    Args:
        binary: Binarise (grey level 8 and above is 1), or keep the 17 grey levels.
        batch_size: Images per batch and process.
        num_workers: Worker processes of the loaders.
        seed: Seed of the training order; the split is always the same.
    """

    def __init__(self, binary: bool = True, batch_size: int = 128, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.binary = binary

    @property
    def num_classes(self) -> int:
        return 2 if self.binary else 17

    @property
    def num_labels(self) -> int:
        """10 digits."""
        return 10

    def load(self) -> dict[str, Split]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        x = torch.from_numpy(digits.images).long()  # (1797, 8, 8)
        labels = torch.from_numpy(digits.target).long()
        if self.binary:
            x = (x >= 8).long()
        train, held = train_test_split(range(len(x)), test_size=540, random_state=0, stratify=labels)
        val, test = train_test_split(held, test_size=270, random_state=0, stratify=labels[held])
        rows = {"train": torch.tensor(train), "val": torch.tensor(val), "test": torch.tensor(test)}
        return {name: Split(x, labels, i) for name, i in rows.items()}
