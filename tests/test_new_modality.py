"""The walk-through ``docs/new-modality.md``: its code is the example's, and runs from data to judged samples."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fcd import get_predictions, load_ref_model
from PIL import Image

from fldd_lightning import FLDDError
from fldd_lightning.checkpoint import load_model
from fldd_lightning.cli import main

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "molecules"
SMILES = ["C", "CC", "CCO", "C[NH3+]", "ClC1CC1Br", "c1cc[nH]c1", "CC(=O)O", "N#CC", "OC1CC1", "CCN", "CCF", "C=C"]
TRUST = ["--trust", "examples.molecules.smiles"]
QUICK = [
    *("--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--model.num_samples", "30", "--data.held_out", "0.2"),
    *("--data.batch_size", "4"),
]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the example is run; the command line finds its classes there
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])


def write(path: Path, lines: list[str]) -> str:
    path.write_text("smiles\n" + "".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fit`` on a dozen molecules, by the documented command."""
    folder = tmp_path_factory.mktemp("molecules")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        args = ["fit", "--config", "examples/molecules/qm9.yaml", "--data.path", write(folder / "a.txt", SMILES)]
        args += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder)]
        assert main([*args, *QUICK]) == 0
    return folder


def checkpoint(folder: Path) -> str:
    return str(next(folder.rglob("final.ckpt")))


def test_the_walk_through_is_the_example() -> None:
    text = (ROOT / "docs" / "new-modality.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    example = (EXAMPLE / "smiles.py").read_text()
    assert re.sub(r"\n+", "\n", "".join(code)) == re.sub(r"\n+", "\n", example)  # but for blank lines
    assert re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) == [(EXAMPLE / "qm9.yaml").read_text()]
    assert len(example.splitlines()) < 150


def test_fit_logs_the_bound_and_the_quality(run: Path) -> None:
    header = next(run.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"val/nelbo", "val/kl_length", "val/kl_mixture", "val/valid", "val/unique", "val/novel"} <= set(header)
    for name in ("samples", "trajectory", "marginals"):
        assert Image.open(next(run.rglob(f"{name}.png"))).size[0] > 90


def test_checkpoint_is_tested_and_sampled_by_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["test", "--ckpt_path", checkpoint(run), "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    assert main(args) == 1
    assert "--trust examples.molecules.smiles.MoleculeFLDD" in capsys.readouterr().err
    assert main([*args, *TRUST]) == 0
    assert "test/valid" in capsys.readouterr().out
    args = ["sample", "--ckpt_path", checkpoint(run), "--num_samples", "5", "--output", str(tmp_path / "s")]
    assert main([*args, "--trajectory", "true", *TRUST]) == 0
    from examples.molecules.smiles import MoleculeFLDD

    model = load_model(checkpoint(run), trusted=[MoleculeFLDD])
    assert isinstance(model, MoleculeFLDD)
    assert model.num_samples == 30
    assert [line.rstrip("\n") for line in (tmp_path / "s.txt").open()] == model.to_text(
        torch.from_numpy(np.load(tmp_path / "s.npy"))
    )
    assert "?" in model.to_text(torch.from_numpy(np.load(tmp_path / "s_trajectory.npy"))[0])[0]
    for name in ("s.png", "s_trajectory.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_other_tokens_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [line.replace("F", "I") for line in SMILES]  # as many tokens, as long
    for lines, message in ((other, "different vocabularies"), ([*SMILES, "S" * 20], "num_classes")):
        args = ["test", "--ckpt_path", checkpoint(run), "--data.path", write(tmp_path / "b.txt", lines)]
        assert main([*args, "--trainer.logger", "false", "--trainer.accelerator", "cpu", *TRUST]) == 1
        assert message in capsys.readouterr().err


def test_smiles_become_tokens_and_come_back(tmp_path: Path) -> None:
    from examples.molecules.smiles import SmilesDataModule, to_smiles

    data = SmilesDataModule(write(tmp_path / "a.txt", [*SMILES, "CC"]), held_out=0.1)
    texts = [s for split in data.splits.values() for s in to_smiles(split.x, list(data.vocabulary or []))]
    assert sorted(texts) == sorted(SMILES)  # "CC" once
    assert {" ", "Cl", "Br", "[nH]", "[NH3+]"} <= set(data.vocabulary or [])
    assert data.num_classes == len(data.vocabulary or [])
    assert data.padded
    assert (data.vocabulary or [])[-1] == " "


MOLECULES = ["CCO", "c1ccccc1", "[Na+].[Cl-]", "[13CH4]", "F/C=C/F", "C%12CCCCC%12", "BrCCl", "N#N"]


@pytest.mark.parametrize(
    ("name", "header", "row", "options"),
    [
        ("a.smi", "SMILES Name\n", "{} n{}\n", {}),
        ("a.smi", "", "{}\tn{}, rac\n", {}),
        ("a.txt", "canonical_smiles\n", "{}\n", {}),
        ("a.smi.gz", "smiles\n", "{}\n\n", {}),
        ("a.csv", "smiles,logP,qed\n", "{},{}.5,0.5\n", {}),
        ("a.csv", "id,Canonical_SMILES\n", '1,"{}"\n', {}),
        ("a.csv", "smiles_scaffold,SMILES,y\n", "C,{},{}\n", {}),
        ("a.csv", "name,structure\n", '"1,2-{1}",{0}\n', {"column": "structure"}),
        ("a.jsonl", "", '{{"smiles": "{}", "y": {}}}\n', {}),
    ],
)
def test_smiles_are_found_in_files(tmp_path: Path, name: str, header: str, row: str, options: dict[str, str]) -> None:
    from examples.molecules.smiles import SmilesDataModule, to_smiles

    content = (header + "".join(row.format(smiles, i) for i, smiles in enumerate(MOLECULES))).encode("utf-8-sig")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data = SmilesDataModule(str(path), held_out=0.2, **options)  # type: ignore[arg-type]
    texts = [s for split in data.splits.values() for s in to_smiles(split.x, list(data.vocabulary or []))]
    assert sorted(texts) == sorted(MOLECULES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "C\nC\u00d6\n", "is no SMILES"),
        ("a.smi", "CC\nCCO,ethanol\n", r"'CCO,ethanol' is no SMILES.*\.csv"),
        ("a.csv", "smiles;y\nCCO;1\n", "separate the columns by commas"),
        ("a.csv", "CCO,1\nCC,2\n", r"called smiles: none; all columns: \['CCO', '1'\]\. Set --data\.column"),
        ("a.csv", "r_smiles,p_smiles\nC,O\n", r"called smiles: \['r_smiles', 'p_smiles'\]"),
        ("a.csv", "smiles,y\nCCO,1,2\n", r"row 2 .* has 3 fields"),
        ("a.csv", "smiles,name\nethanol,CCO\nwater,O\n", r"of 2 SMILES that were checked, RDKit cannot read 2.*column"),
        ("a.mol", "C", "no known kind"),
        (None, "", "does not exist"),
    ],
)
def test_files_without_smiles_are_named(tmp_path: Path, name: str | None, content: str, message: str) -> None:
    from examples.molecules.smiles import SmilesDataModule

    if name is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(FLDDError, match=message):
        _ = SmilesDataModule(str(tmp_path / (name or "no.smi"))).splits


def test_smiles_that_rdkit_cannot_read_are_counted(tmp_path: Path) -> None:
    from examples.molecules.smiles import SmilesDataModule

    broken = [*MOLECULES, "C1CC", "C(=O"]
    with pytest.warns(UserWarning, match=r"of 10 SMILES that were checked, RDKit cannot read 2, as 'C1CC'"):
        splits = SmilesDataModule(write(tmp_path / "a.smi", broken), held_out=0.2).splits
    assert sum(map(len, splits.values())) == len(broken)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|² + tr(A + B - 2 (AB)^1/2)."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * root)


def test_quality_of_hand_written_samples() -> None:
    from examples.molecules.smiles import MoleculeQuality, canonical

    vocabulary = ["C", "O", "(", "F", " "]

    def tokens(*lines: str) -> torch.Tensor:
        return torch.tensor([[vocabulary.index(c) for c in line.ljust(4)] for line in lines])

    assert canonical("OCC") == canonical("CCO")
    assert [canonical(s) for s in ("", "C C", "C(", "F(C)(C)C")] == [None] * 4
    metric = MoleculeQuality(tokens("CCO", "CC", "CF"), vocabulary)
    # valid: OCC twice, CCF, CCCC; not valid: empty, PAD inside, open bracket, a divalent F
    for part in (tokens("OCC", "OCC", "CCF", "CCCC"), tokens("", "C C", "C(", "CFC")):
        metric.update(part)
    for _ in range(2):  # computing again, after a reset, does not count the training molecules twice
        values = {name: float(value) for name, value in metric.compute().items()}
        assert (values["valid"], values["unique"], values["novel"]) == pytest.approx((4 / 8, 3 / 4, 2 / 3))
        real, made = (get_predictions(load_ref_model(), s, n_jobs=0) for s in (["CCO", "CC", "CF"], SAMPLED))
        assert values["fcd"] == pytest.approx(frechet(real.astype(float), made.astype(float)), rel=1e-3)
        metric.reset()
        metric.update(tokens("OCC", "OCC", "CCF", "CCCC", "", "C C", "C(", "CFC"))


SAMPLED = ["CCO", "CCO", "CCF", "CCCC"]
