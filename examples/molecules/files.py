"""SMILES from files: the first field of every line, or a column of a table."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rdkit import Chem

from fldd_lightning import FLDDError
from fldd_lightning.data.corpus import Documents
from fldd_lightning.data.hub import TABLES, load_local
from fldd_lightning.data.readers import Csv, Lines

LINES = dict.fromkeys((".smi", ".smiles", ".txt"), Lines)
KINDS = {**TABLES, ".csv": Csv, **LINES}
CHECKED = 1_000  # SMILES that RDKit reads beforehand, evenly spaced over the file


def read_smiles(path: str, column: str | None = None) -> list[str]:
    """The SMILES of a file, or of a folder of files, gzipped or not.

    A line of a ``.smi``, ``.smiles`` or ``.txt`` file is a SMILES; what stands behind a space, as a name, is not read.
    If RDKit cannot read the first one, it is a header. Other files are tables.

    Args:
        path: The file or folder.
        column: Of a table; by default ``smiles``, or the only one with ``smiles`` in its name, in any case.

    Raises:
        FLDDError: If there is nothing to read, no such column, something in it that is no SMILES, or most of
            a thousand of them cannot be read by RDKit.
    """
    table = load_local(Path(path).expanduser(), KINDS, one_split=True)["train"]
    names = table.column_names
    is_lines = names == ["text"]
    likely = names if is_lines else [name for name in names if "smiles" in name.lower()]
    exact = [name for name in likely if name.lower() == "smiles"]
    found = column or next(iter(exact if len(exact) == 1 else likely if len(likely) == 1 else []), None)
    if found not in names:
        raise FLDDError(
            f"'{path}': column is {column!r}; columns called smiles: {likely or 'none'}; all columns: {names}. Set "
            "--data.column. A table needs a header; a file with one SMILES a line is called .smi."
        )
    smiles = [text.split()[0] for text in Documents(table, found, f"'{path}'") if text.strip()]
    if is_lines and smiles and Chem.MolFromSmiles(smiles[0]) is None:
        header = smiles[0]
        rank_zero_info(f"'{path}': the first line, '{header}', is no molecule and was taken for a header.")
        smiles = [each for each in smiles if each != header]
    wrong = next((each for each in smiles if not each.isascii() or set(each) & set(",;\"'")), None)
    if wrong is not None:
        raise FLDDError(
            f"'{path}': {wrong!r} is no SMILES. Give one SMILES a line, or fields between commas under a header in a "
            "file called .csv."
        )
    _check_molecules(smiles, path)
    return smiles


def _check_molecules(smiles: list[str], path: str) -> None:
    """Refuse what is mostly no molecules, as names are, and say how many of others RDKit cannot read."""
    checked = smiles[:: max(1, len(smiles) // CHECKED)]
    wrong = [each for each in checked if Chem.MolFromSmiles(each) is None]
    if not wrong:
        return
    found = f"'{path}': of {len(checked)} SMILES that were checked, RDKit cannot read {len(wrong)}, as {wrong[0]!r}."
    if len(wrong) > len(checked) / 2:
        raise FLDDError(f"{found} Give SMILES; of a table, their column by --data.column.")
    rank_zero_warn(f"{found} They are trained on as they are.")
