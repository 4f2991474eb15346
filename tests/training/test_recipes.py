"""Every recipe trains: with a small network, on data that ships, and with no network connection."""

from pathlib import Path

import pytest

from diffkit import checkpoint
from diffkit.cli import main
from diffkit.inventory import recipe_names

SHORT = [
    "training.steps=3",
    "training.batch_size=4",
    "training.compile=false",
    "training.validate_every=3",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "sampling.steps=3",
]
SMALL = {
    "audio": [
        "data.source=sample",
        "modality.conditions=[instrument,pitch,velocity,duration]",
        "modality.seconds=0.3",
        "network={width: 32, condition: 16, hidden: 32, layers: 1}",
    ],
    "image": [
        "data.source=sample",
        "modality.conditions=[category,words]",
        "modality.size=[16,16]",
        "network={width: 32, condition: 16, hidden: 32, layers: 1}",
    ],
    "molecule": ["data.source=sample", "network.width=32", "network.pair_width=8", "network.layers=2"],
    "pointcloud": [
        "data.source=sample",
        "data.points=64",
        "modality.points=64",
        "network={width: 32, latent_width: 32, latents: 8, blocks: 1, layers: 1}",
    ],
}
CODECS = {
    "audio/vocoder": ["data.source=sample", "codec.width=16", "codec.hidden=16", "codec.layers=1"],
    "image/autoencoder": ["data.source=sample"],
}
"""Recipes of encoders and decoders."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a recipe on shipped data asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("diffkit.packages._download", refuse)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in CODECS])
def test_a_recipe_trains_and_its_model_generates(name: str, tmp_path: Path) -> None:
    overrides = [*SHORT, *SMALL[name.split("/")[0]]]
    assert main(["train", name, *overrides, "--quiet", "--out", str(tmp_path)]) == 0
    assert len(checkpoint.load(tmp_path).generate(4)) == 4


@pytest.mark.parametrize("name", CODECS)
def test_a_recipe_of_a_codec_trains(name: str, tmp_path: Path) -> None:
    assert main(["train", name, *SHORT[:-1], *CODECS[name], "--quiet", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_molecules_of_ones_own_with_a_property_to_ask_for(tmp_path: Path) -> None:
    smiles = ["C" * n + end for n in range(1, 12) for end in ("O", "N", "F", "C=O")]
    (tmp_path / "mine.smi").write_text("\n".join(smiles))
    own = [f"data.path={tmp_path / 'mine.smi'}", "modality.conditions=[logp]"]
    overrides = [*SHORT, *SMALL["molecule"], *own]
    assert main(["train", "molecule/qm9", *overrides, "--quiet", "--out", str(tmp_path / "run")]) == 0
    model = checkpoint.load(tmp_path / "run")
    assert model.recipe["modality"]["statistics"]["vocabulary"] == ["C", "O", "F", "N"]
    assert len(model.generate(4, condition={"logp": 1.0}, guidance=2.0)) == 4


def test_a_mistyped_override_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "molecule/sample", "training.lerning_rate=1", "--out", str(tmp_path / "run")]) == 1
    assert "lerning_rate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
