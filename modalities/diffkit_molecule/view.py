"""Generated molecules as files: `molecules.sdf`, `molecules.csv` and `preview.png`.

Every molecule that was drawn has its row in the CSV, the invalid ones with the reason and the SMILES of the graph as it
came; none is dropped or repaired. The SDF and the picture hold the valid ones: the SDF with hydrogens and coordinates,
those the model made or, for a model of graphs alone, RDKit's (ETKDGv3, MMFF94). A file is written whole or not at all.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdkit import Chem
from rdkit.Chem import rdDepictor, rdMolDescriptors
from rdkit.Chem.Draw import rdMolDraw2D

from diffkit.files import whole
from diffkit_molecule.chem import canonical_smiles, with_hydrogens_and_conformer
from diffkit_molecule.descriptors import CONTINUOUS, NAMES, describe
from diffkit_molecule.metrics import Samples, verdict

COLUMNS = ("index", "smiles", "valid", "reason", "formula", *NAMES)
PREVIEW_MOLECULES = 25
PANEL = (280, 240)  # pixels
LEGEND_CHARACTERS = 26  # longer SMILES give way to formula and logP

Row = dict[str, str | int | float | bool]


def save(samples: Samples, folder: Path | str, seed: int = 0) -> dict[str, Any]:
    """Write the three files of ``samples`` (as decoded: not sanitised, or None) to ``folder``, made if missing.

    Returns the numbers drawn, valid, failed by reason, and left without a conformer. ``seed`` is for the conformers
    that RDKit makes, about 100 molecules of QM9 a second.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    verdicts = [verdict(sample) for sample in samples]
    rows = [_row(i, sample, *found) for i, (sample, found) in enumerate(zip(samples, verdicts, strict=True))]
    valid = [(mol, row) for (mol, _), row in zip(verdicts, rows, strict=True) if mol is not None]
    solid = [_solid(mol, row, seed) for mol, row in valid]
    _write(folder / "molecules.csv", _csv(rows).encode())
    _write(folder / "molecules.sdf", _sdf(solid).encode())
    _write(folder / "preview.png", preview([mol for mol, _ in valid], f"none of {len(samples)} is valid"))
    return {
        "drawn": len(samples),
        "valid": len(valid),
        "failed": dict(Counter(reason for _, reason in verdicts if reason)),
        "without_conformer": sum(not mol.GetConformer().Is3D() for mol in solid),
    }


def _write(path: Path, content: bytes) -> None:
    with whole(path) as part:
        part.write_bytes(content)


def _row(index: int, sample: Chem.Mol | None, mol: Chem.Mol | None, reason: str) -> Row:
    """A line of the CSV; without properties if the molecule is not valid."""
    row: Row = {"index": index, "smiles": _drawn_smiles(sample), "valid": mol is not None, "reason": reason}
    if mol is None:
        return row
    properties = describe(mol)
    rounded = {name: round(value, 4) if name in CONTINUOUS else value for name, value in properties.items()}
    return {**row, "smiles": canonical_smiles(mol), "formula": rdMolDescriptors.CalcMolFormula(mol), **rounded}


def _drawn_smiles(sample: Chem.Mol | None) -> str:
    """SMILES of a graph as it came, whatever its valences."""
    if sample is None:
        return ""
    copy = Chem.Mol(sample)
    copy.UpdatePropertyCache(strict=False)
    return str(Chem.MolToSmiles(copy))


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _solid(mol: Chem.Mol, row: Row, seed: int) -> Chem.Mol:
    """A valid molecule with hydrogens, coordinates (flat ones if no conformer is found) and the row as its fields."""
    if mol.GetNumConformers():
        origin = "generated"
    elif (embedded := with_hydrogens_and_conformer(mol, seed)) is not None:
        mol, origin = embedded, "ETKDGv3 + MMFF94"
    else:
        mol, origin = Chem.AddHs(mol), "flat: no conformer found"
        rdDepictor.Compute2DCoords(mol)
    mol.SetProp("_Name", str(row["smiles"]))
    for name, value in row.items():
        if name not in ("valid", "reason"):
            mol.SetProp(name, str(value))
    mol.SetProp("coordinates", origin)
    return mol


def _sdf(mols: Sequence[Chem.Mol]) -> str:
    text = io.StringIO()
    with Chem.SDWriter(text) as writer:
        for mol in mols:
            writer.write(mol)
    return text.getvalue()


def preview(mols: Sequence[Chem.Mol], otherwise: str = "no molecules") -> bytes:
    """PNG of the first 25 molecules as a grid, all at one scale; of the words ``otherwise`` if there are none."""
    shown = [_flat(mol) for mol in mols[:PREVIEW_MOLECULES]] or [_words(otherwise)]
    legends = [_legend(mol) for mol in shown] if mols else [""]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    canvas = rdMolDraw2D.MolDraw2DCairo(columns * PANEL[0], rows * PANEL[1], *PANEL)
    _style(canvas.drawOptions())
    canvas.DrawMolecules(shown, legends=legends)
    canvas.FinishDrawing()
    return bytes(canvas.GetDrawingText())


def _flat(mol: Chem.Mol) -> Chem.Mol:
    """The molecule as it is drawn: without hydrogens, laid out in the plane."""
    mol = Chem.RemoveHs(mol)
    rdDepictor.Compute2DCoords(mol, useRingTemplates=True)
    rdDepictor.StraightenDepiction(mol)
    return mol


def _words(text: str) -> Chem.Mol:
    """A molecule that is drawn as a line of text."""
    mol = Chem.MolFromSmiles("*")
    mol.GetAtomWithIdx(0).SetProp("_displayLabel", text)
    return mol


def _style(options: Any) -> None:  # Any: RDKit's stubs give every option the type of its class
    options.fixedBondLength = 36  # pixels: one scale for all, less only where a molecule would not fit
    options.bondLineWidth = 2
    options.padding = 0.06
    options.legendFontSize = 15
    options.legendFraction = 0.12
    options.setLegendColour((0.35, 0.35, 0.35))


def _legend(mol: Chem.Mol) -> str:
    smiles = canonical_smiles(mol)
    if len(smiles) <= LEGEND_CHARACTERS:
        return smiles
    return f"{rdMolDescriptors.CalcMolFormula(mol)}   logP {describe(mol)['logp']:.1f}"
