"""The check of adapters: on every installed one, on a small one written here, and on that one broken in many ways."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rdkit import Chem
from rdkit.Chem import AllChem
from torch import Tensor, nn

from diffkit.condition import Condition
from diffkit.inventory import modality_names
from diffkit.modality import Batch, Dataset, Example, Modality, Request, in_format
from diffkit.noise import Noise
from diffkit.process import Categorical, Gaussian
from diffkit.product import Product
from diffkit.samples import Samples
from diffkit.settings import Settings
from diffkit.testing import check_modality
from diffkit.testing.formulas import ragged
from diffkit.typing import Masks, State, Time
from diffkit_audio import Audio
from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings, log_mel
from diffkit_image import Image as Picturing
from diffkit_image.record import Picture
from diffkit_molecule import Molecule
from diffkit_pointcloud import PointCloud
from diffkit_pointcloud.cloud import Cloud, normalise

# ------------------------------------------------------------------------------------------- installed


def same_molecule(decoded: Chem.Mol, record: Chem.Mol) -> bool:
    """Equal as molecules, and as shapes up to a shift where they have one."""
    found = Chem.Mol(decoded)
    Chem.SanitizeMol(found)
    if Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(found))) != Chem.CanonSmiles(
        Chem.MolToSmiles(Chem.RemoveHs(record))
    ):
        return False
    if not record.GetNumConformers():
        return True
    a, b = (torch.from_numpy(m.GetConformer().GetPositions()) for m in (found, record))
    return bool(torch.allclose(a - a.mean(0), b - b.mean(0), atol=1e-4))


def molecules() -> tuple[Molecule, list[Any]]:
    symbols = ("C", "N", "O", "F", "N+", "O-")
    statistics = {
        "sizes": [0, 1, 1, 2, 4, 3, 1],
        "atoms": [0.7, 0.1, 0.1, 0.04, 0.03, 0.03],
        "bonds": [0.7, 0.2, 0.07, 0.03],
    }
    records = [Chem.MolFromSmiles(s) for s in ("CCO", "c1ccncc1", "C[N+](C)(C)CC([O-])=O", "C")]
    return Molecule(symbols, statistics=statistics), records


def molecules_in_space() -> tuple[Molecule, list[Any]]:
    symbols = ("H", "C", "N", "O")
    statistics = {
        "sizes": [0, 0, 0, 1, 2, 4, 3],
        "atoms": [0.5, 0.3, 0.1, 0.1],
        "bonds": [0.7, 0.2, 0.07, 0.03],
        "position_scale": 1.7,
    }
    records = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in ("CO", "C#N", "O")]
    for record in records:
        AllChem.EmbedMolecule(record, randomSeed=7)
    return Molecule(symbols, hydrogens=True, positions=True, statistics=statistics), records


SMALL = {"width": 32, "pair_width": 8, "layers": 2, "heads": 2}


@pytest.mark.parametrize("noise", ["marginal", "uniform", "absorbing"])
def test_molecules(noise: str) -> None:
    adapter, records = molecules()
    process = {"atoms": {"noise": noise}, "bonds": {"noise": noise}}
    check_modality(adapter, records, same=same_molecule, network=SMALL, process=process)


def test_molecules_in_space() -> None:
    adapter, records = molecules_in_space()
    check_modality(adapter, records, same=same_molecule, network=SMALL)


def clouds() -> tuple[PointCloud, list[Any]]:
    generator = np.random.default_rng(0)
    names = ("chair", "table", "something else")
    sizes = (40, 17, 5)
    records = [
        Cloud(generator.normal(2, 3, (n, 3)).astype(np.float32), category=k) for n, k in zip(sizes, names, strict=True)
    ]
    return PointCloud(points=20, statistics={"categories": ["chair", "table"], "counts": [3, 1]}), records


def same_cloud(decoded: Cloud, record: Cloud) -> bool:
    same = np.allclose(decoded.points, normalise(record).points, atol=1e-5)
    if decoded.normals is not None:
        same &= np.allclose(decoded.normals, record.normals, atol=1e-6)
    return bool(same) and (decoded.colours is None or np.array_equal(decoded.colours, record.colours))


def clouds_in_colour() -> tuple[PointCloud, list[Any]]:
    adapter, records = clouds()
    generator = np.random.default_rng(1)
    full = []
    for record in records:
        normals = generator.normal(size=record.points.shape)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        colours = generator.integers(0, 256, record.points.shape).astype(np.uint8)
        full.append(replace(record, normals=normals.astype(np.float32), colours=colours))
    return replace(adapter, statistics={**adapter.statistics, "normals": True, "colours": True}), full


@pytest.mark.parametrize("made", [clouds, clouds_in_colour])
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_point_clouds(prediction: str, made: Callable[[], tuple[PointCloud, list[Any]]]) -> None:
    adapter, records = made()
    network = {"width": 32, "latent_width": 32, "latents": 4, "blocks": 2, "layers": 1}
    check_modality(adapter, records, same=same_cloud, network=network, process={"points": {"prediction": prediction}})


def clips() -> tuple[Audio, list[Any]]:
    """Tones that fade: their lengths are whole patches of frames, or not."""
    time = np.arange(60 * 256) / 22050
    records = []
    for hertz, frames in ((220.0, 60), (440.0, 41), (880.0, 22)):
        wave = (0.5 * np.sin(2 * np.pi * hertz * time) * np.exp(-3 * time))[: frames * 256].astype(np.float32)
        records.append(Clip(wave, 22050, instrument="Flute", pitch=round(69 + 12 * np.log2(hertz / 440)), velocity=90))
    statistics = {"mean": -8.0, "scale": 1.25, "instruments": ["Flute", "Violin"], "ranges": [[36, 95], [55, 95]]}
    return Audio(("instrument", "pitch", "velocity", "duration"), seconds=0.5, statistics=statistics), records


def same_clip(decoded: Clip, record: Clip) -> bool:
    """Equal lengths, and spectrograms alike where the tone is: the phase is not kept."""
    a, b = (log_mel(torch.from_numpy(clip.wave), MelSettings()) for clip in (decoded, record))
    heard = b > -5
    return a.shape == b.shape and decoded.rate == record.rate and bool((a - b)[heard].abs().mean() < 0.3)


@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_clips(prediction: str) -> None:
    adapter, records = clips()
    network = {"width": 32, "condition": 16, "hidden": 32, "layers": 2}
    check_modality(adapter, records, same=same_clip, network=network, process={"mel": {"prediction": prediction}})


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of diffusers: pixels in fours to four numbers, with weights that are not trained."""
    autoencoders = pytest.importorskip("diffkit_image.autoencoder")
    folder = tmp_path_factory.mktemp("autoencoder")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    options = {
        "block_out_channels": [4, 8],
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        **blocks,
    }
    autoencoders.export(
        autoencoders.build("AutoencoderKL", in_channels=4, out_channels=4, **options), folder, torch.float32
    )
    return str(folder)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_pictures(prediction: str, patch: int, autoencoder: str) -> None:
    """What an autoencoder keeps of a picture is for its own tests; here, its size."""
    generator = np.random.default_rng(0)
    records = []
    for tall, wide, name in ((16, 16, "red square"), (8, 20, "blue bar"), (6, 6, "")):
        pixels = generator.integers(0, 256, (tall, wide, 4)).astype(np.uint8)
        records.append(Picture(Image.fromarray(pixels, "RGBA"), name, "shape" if name else ""))
    words = ["bar", "blue", "red", "square"]
    statistics = {"mean": [0.0] * 4, "scale": [1.0] * 4, "categories": ["shape"], "vocabulary": words}
    adapter = Picturing(("category", "words"), autoencoder, (16, 16), statistics=statistics)
    network = {"width": 32, "condition": 16, "hidden": 32, "layers": 2, "patch": patch}
    process = {"latent": {"prediction": prediction}}
    check_modality(adapter, records, same=lambda a, b: a.image.size == b.image.size, network=network, process=process)


def test_every_installed_modality_has_examples_here() -> None:
    assert set(modality_names()) <= {"audio", "image", "molecule", "pointcloud"}, (
        "give a new modality a few records in this file"
    )


# ---------------------------------------------------------------------------------- one that is written here

Melody = tuple[tuple[int, float], ...]
"""Notes: a pitch class among three, and how loud it is."""


class Notes(nn.Module):
    """A set network: every note sees itself and the mean of all."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.loud = nn.Embedding(4, width), nn.Linear(2, width)
        self.mix, self.pitch, self.out = nn.Linear(2 * width, width), nn.Linear(width, 3), nn.Linear(width, 1)

    def summary(self, h: Tensor, real: Tensor) -> Tensor:
        """The mean over the notes."""
        return (h * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)

    def forward(self, x: State, t: Time, condition: Condition, mask: Masks) -> dict[str, Tensor]:
        assert isinstance(t, Tensor)
        time = t.reshape(-1, 1, 1).expand(*x["loudness"].shape)
        h = torch.tanh(self.embed(x["pitch"]) + self.loud(torch.cat([x["loudness"], time], -1)))
        both = torch.cat([h, self.summary(h, mask["loudness"]).expand(h.shape)], -1)
        h = torch.tanh(self.mix(both))
        return {"pitch": self.pitch(h), "loudness": self.out(h)}


@dataclass(frozen=True)
class Music(Modality):
    """Melodies of one to six notes."""

    longest: int = 6

    def dataset(self, split: str, **options: Any) -> Dataset:
        raise NotImplementedError

    def encode(self, record: Melody) -> Example:
        pitch = torch.tensor([p for p, _ in record])
        loudness = torch.tensor([[v] for _, v in record])
        real = torch.ones(len(record), dtype=torch.bool)
        return Example({"pitch": pitch, "loudness": loudness}, {"pitch": real, "loudness": real.unsqueeze(1)})

    def decode(self, x: State, mask: State) -> list[Melody]:
        rows = zip(x["pitch"].tolist(), x["loudness"][..., 0].tolist(), mask["pitch"].sum(1).tolist(), strict=True)
        return [tuple((p, v) for p, v in zip(pitch[:n], loud[:n], strict=True)) for pitch, loud, n in rows]

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        sizes = 1 + (noise.uniform("size", ()) * self.longest).long()
        mask = ragged(sizes.tolist())
        x = {"pitch": torch.zeros(mask.shape[:2], dtype=torch.int64), "loudness": torch.zeros(mask.shape)}
        return Batch(x, {"pitch": mask[..., 0], "loudness": mask}, Condition(), noise.index)

    def process(self, **options: Any) -> Product:
        return Product({"pitch": Categorical.uniform(3, absorbing=True), "loudness": Gaussian()})

    def network(self, **options: Any) -> nn.Module:
        return Notes(**options)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Any]:
        return {}

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        (folder / "melodies.txt").write_text("\n".join(map(str, samples)), encoding="utf-8")
        Image.new("L", (8, 8)).save(folder / "preview.png")
        return {"melodies": len(samples)}


MELODIES: list[Melody] = [((0, 0.5), (2, -1.0)), ((1, 0.25),), ((2, 2.0), (2, 0.0), (1, -0.5), (0, 1.0))]


def test_music() -> None:
    check_modality(Music(), MELODIES)


@dataclass(frozen=True)
class Sheets(Music):
    """Music in two formats."""

    format: str = "txt"

    def __post_init__(self) -> None:
        if self.format not in ("txt", "abc"):
            raise ValueError(f"got format '{self.format}'; expected txt or abc")

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        super().view(samples, folder)
        return {"path": str((folder / "melodies.txt").rename(folder / f"melodies.{self.format}"))}


def test_samples_are_written_in_the_format_asked_for(tmp_path: Path) -> None:
    samples = Samples(Sheets(), Settings(4, "ddim", "power"), MELODIES, [0, 1, 2])
    samples.save(tmp_path / "a")
    samples.save(tmp_path / "b", "abc")
    assert (tmp_path / "a" / "melodies.txt").exists() and (tmp_path / "b" / "melodies.abc").exists()
    with pytest.raises(ValueError, match="got format 'xml'; expected txt or abc"):
        samples.save(tmp_path / "c", "xml")
    with pytest.raises(ValueError, match="got format 'abc'; this kind of data is written in one format alone"):
        in_format(Music(), "abc")
    assert not (tmp_path / "c").exists()


# -------------------------------------------------------------------------------------------- and broken


class Forgetful(Music):
    """Decodes one note too few."""

    def decode(self, x: State, mask: State) -> list[Melody]:
        return [melody[:-1] for melody in super().decode(x, mask)]


class Unhidden(Music):
    """Encodes something under a mask that says there is nothing."""

    def encode(self, record: Melody) -> Example:
        example = super().encode(record)
        return replace(example, mask={"pitch": example.mask["pitch"], "loudness": torch.zeros(len(record), 1).bool()})


class FloatPitch(Music):
    def encode(self, record: Melody) -> Example:
        example = super().encode(record)
        return replace(example, x={"pitch": example.x["pitch"].float(), "loudness": example.x["loudness"]})


class FourthPitch(Music):
    def encode(self, record: Melody) -> Example:
        example = super().encode(record)
        return replace(example, x={"pitch": example.x["pitch"] + 1, "loudness": example.x["loudness"]})


class OneLeafShort(Music):
    def process(self, **options: Any) -> Product:
        return Product({"pitch": Categorical.uniform(3)})


class RandomSizes(Music):
    """Sizes from torch's global generator."""

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        return super().layout(count, Noise(int(torch.randint(10**9, ())), noise.index), request)


class OtherNumbers(Music):
    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        return replace(super().layout(count, noise, request), index=torch.arange(count) + 1)


class Classless(Music):
    """Logits with a class too many."""

    def network(self, **options: Any) -> nn.Module:
        notes = Notes()
        notes.pitch = nn.Linear(16, 4)
        return notes


class MeanOfAll(Notes):
    """Counts the padding."""

    def summary(self, h: Tensor, real: Tensor) -> Tensor:
        return h.mean(1, keepdim=True)


class SumOverPadding(Notes):
    """Divides by the real notes, but adds up all."""

    def summary(self, h: Tensor, real: Tensor) -> Tensor:
        return h.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


class BatchNormed(Notes):
    """Looks at the other samples."""

    def summary(self, h: Tensor, real: Tensor) -> Tensor:
        mean: Tensor = super().summary(h, real)
        return mean - mean.mean(0, keepdim=True)


class Unsaved(Notes):
    """Holds random numbers that are not in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.rand(16), persistent=False)

    def summary(self, h: Tensor, real: Tensor) -> Tensor:
        assert isinstance(self.hidden, Tensor)
        return super().summary(h, real) + self.hidden


def music_with(network: type[Notes]) -> Music:
    @dataclass(frozen=True)
    class Variant(Music):
        def network(self, **options: Any) -> nn.Module:
            return network(**options)

    return Variant()


class NoPreview(Music):
    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        result = super().view(samples, folder)
        (folder / "preview.png").unlink()
        return result


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Forgetful(), r"decode\(encode\(x\)\): got .* for record 0; expected"),
        (Unhidden(), "padding of leaf 'loudness' that is not exactly zero"),
        (FloatPitch(), "got leaf 'pitch' in torch.float32; expected int64 classes"),
        (FourthPitch(), "got classes 0 to 3 in leaf 'pitch'; expected 0 to 2"),
        (OneLeafShort(), r"got the leaves \['loudness', 'pitch'\]; expected \['pitch'\]"),
        (RandomSizes(), "real elements of .* alone; expected"),
        (OtherNumbers(), "got index"),
        (Classless(), r"got \(3, 4, 4\) for 'pitch'; expected \(3, 4, 3\)"),
        (music_with(MeanOfAll), "in all padding|without the batch's padding"),
        (music_with(SumOverPadding), "with 1 in all padding"),
        (music_with(BatchNormed), "without the batch's padding"),
        (music_with(Unsaved), "after saving and loading the weights"),
        (NoPreview(), "expected preview.png among them"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_broken_adapters(adapter: Music, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_modality(adapter, MELODIES)
