"""Molecules as SMILES: data, quality of samples, module."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch
from examples.molecules.files import read_smiles
from fcd import get_predictions, load_ref_model
from rdkit import Chem, RDLogger
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.transforms.functional import to_tensor

from fldd_lightning import FLDD, DiscreteDataModule, FrechetDistance, Split
from fldd_lightning.data import split_rows

PAD, MASK = " ", "?"
TOKEN = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|.")  # [nH], Br, Cl and %10 are one token each


def to_smiles(x: Tensor, vocabulary: list[str]) -> list[str]:
    """SMILES of tokens ``(N, length)``; PAD at the end is cut off, PAD inside stays as a blank."""
    symbols = [*vocabulary, MASK]
    return ["".join(symbols[i] for i in row).rstrip(PAD) for row in x.tolist()]


class SmilesDataModule(DiscreteDataModule):
    """SMILES of a file, one a line or in a column of a table; each one once, filled up with PAD.

    Args:
        path: The file, or a folder of files.
        held_out: Share of the molecules for validation, and the same again for testing.
        batch_size: Examples per batch and process.
        seed: Seed of the split and of the training order.
        column: The column, if its name does not tell.

    Raises:
        FLDDError: When read: if the file is missing, holds no SMILES or is too short.
    """

    padded = True

    def __init__(
        self, path: str, held_out: float = 0.05, batch_size: int = 128, seed: int = 0, column: str | None = None
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self.save_hyperparameters(logger=False)
        self.path, self.held_out, self.column = path, held_out, column

    @property
    def num_classes(self) -> int:
        _ = self.splits  # which brings the vocabulary
        return len(self.vocabulary)

    def load(self) -> dict[str, Split]:
        rows = [TOKEN.findall(line) for line in dict.fromkeys(read_smiles(self.path, self.column))]
        self.vocabulary = [*sorted({token for row in rows for token in row}), PAD]
        number = {token: i for i, token in enumerate(self.vocabulary)}
        longest = max(map(len, rows), default=0)
        x = torch.tensor([[number[token] for token in row + [PAD] * (longest - len(row))] for row in rows])
        return split_rows(x, self.held_out, self.held_out, self.seed)


RDLogger.DisableLog("rdApp.*")  # it prints a line for everything that is no molecule


@lru_cache(maxsize=1_000_000)
def canonical(smiles: str) -> str | None:
    """RDKit's form of a molecule; None for what is none: no text, text with PAD inside, bad chemistry."""
    molecule = Chem.MolFromSmiles(smiles) if smiles and PAD not in smiles else None
    return None if molecule is None else Chem.MolToSmiles(molecule)


class MoleculeQuality(Metric):
    """Share of samples that are ``valid``, of those ``unique``, of those ``novel``; and ``fcd``.

    ``fcd`` is the Fréchet distance in ChemNet's features (Preuer et al., 2018) between all valid
    samples and the first 10,000 training molecules; it falls with the number of samples.

    Args:
        known: Training molecules, tokens ``(N, length)``.
        vocabulary: SMILES of each token.
    """

    full_state_update = False

    def __init__(self, known: Tensor, vocabulary: list[str]) -> None:
        super().__init__()
        self.known, self.vocabulary = to_smiles(known, vocabulary), vocabulary
        self.frechet = FrechetDistance(512, sync_on_compute=False)  # every process computes it of all samples
        self.add_state("samples", [], dist_reduce_fx="cat")

    def update(self, samples: Tensor) -> None:
        """Add samples, tokens ``(N, length)``."""
        self.samples.append(samples.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """The four numbers; no ``fcd`` with fewer than two valid samples."""
        made = [canonical(smiles) for smiles in to_smiles(dim_zero_cat(self.samples), self.vocabulary)]
        unique = set(valid := [smiles for smiles in made if smiles is not None])
        novel = unique.difference(map(canonical, self.known))
        shares = {"valid": (valid, made), "unique": (unique, valid), "novel": (novel, unique)}
        values = {name: torch.tensor(len(part) / max(len(whole), 1)) for name, (part, whole) in shares.items()}
        if len(valid) > 1:
            if self.frechet.real_features_num_samples == 0:
                self._compare(self.known[:10_000], real=True)
            self.frechet.reset()  # forgets the samples, not the training molecules
            self._compare(valid, real=False)
            values["fcd"] = self.frechet.compute()
        return values

    def _compare(self, smiles: list[str], real: bool) -> None:
        features = torch.from_numpy(get_predictions(load_ref_model(), smiles, n_jobs=0))
        self.frechet.update(features.to(self.device), real)


class MoleculeFLDD(FLDD):
    """FLDD of SMILES, with the options of FLDD; logs the numbers of MoleculeQuality beside the bound.

    Args:
        num_samples: Samples drawn for them at every validation and test.
    """

    def __init__(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("num_samples")
        self.num_samples = num_samples

    def make_metrics(self) -> dict[str, Metric]:
        return {"molecules": MoleculeQuality(self.trainer.datamodule.splits["train"].x, self.vocabulary)}

    def update_metrics(self, metrics: dict[str, Metric], batch: Any, nelbo: Tensor) -> None:
        if metrics["molecules"].update_count == 0:  # the first batch of this evaluation
            share = -(-self.num_samples // self.trainer.world_size)
            metrics["molecules"].update(self.sample(share, seed=self.global_rank))

    def to_text(self, x: Tensor) -> list[str]:
        return to_smiles(x, self.vocabulary)

    def render(self, x: Tensor) -> Tensor:
        from rdkit.Chem import Draw  # here: it needs X11's libxrender1, which is missing on some servers

        molecules = [Chem.MolFromSmiles(text) if canonical(text) else Chem.Mol() for text in self.to_text(x)]
        return torch.stack([to_tensor(Draw.MolToImage(molecule, size=(96, 96))) for molecule in molecules])
