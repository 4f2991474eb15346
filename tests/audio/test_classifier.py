"""The classifier of notes: what it learns, what it does not depend on, and its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import diffkit_audio
from diffkit_audio import classifier as classifying
from diffkit_audio.classifier import Classifier
from diffkit_audio.instruments import FAMILIES, INSTRUMENTS

SHIPPED = Path(diffkit_audio.__path__[0]) / "weights" / "notes" / "classifier.safetensors"
NAMES = ("Flute", "Gunshot", "Ocarina")


def spectrograms(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of three kinds: a line that is held, noise that dies away, a line in every eighth band."""
    rng = np.random.default_rng(seed)
    x, kinds = np.full((count, 32, 128), -9.2, np.float16), rng.integers(0, 3, count)
    for row, kind in zip(x, kinds, strict=True):
        first = rng.integers(10, 80)
        if kind == 1:
            row[:] = np.maximum(rng.normal(-2, 1, (32, 128)) - np.arange(32)[:, None] / 4, -9.2)
        else:
            row[:, first : first + 1 if kind == 0 else None : 8] = -2
    return x, kinds


def fresh() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier().eval()


def test_it_learns_and_gives_the_same_again() -> None:
    x, kinds = spectrograms(96)
    unseen, truth = spectrograms(48, seed=1)
    _, said = classifying.train(x, kinds, NAMES, epochs=8, batch_size=16).hear(unseen)
    assert np.mean(said.argmax(1).numpy() == truth) > 0.9
    one, two = (classifying.train(x[:32], kinds[:32], NAMES, epochs=1, batch_size=16).hear(unseen)[1] for _ in range(2))
    assert torch.equal(one, two)


def test_a_family_is_the_sum_of_its_instruments() -> None:
    judge = Classifier(NAMES)  # two pipes and a sound effect
    assert judge.families(torch.tensor([[0.3, 0.4, 0.3], [0.1, 0.8, 0.1]])) == ["Pipe", "Sound Effects"]
    assert judge.instruments(torch.tensor([[0.3, 0.4, 0.3]])) == ["Gunshot"]
    assert fresh().members.sum(0).tolist() == [8.0] * 16 + [47.0] and len(FAMILIES) == 17


def test_batches_change_nothing() -> None:
    x = torch.from_numpy(spectrograms(9)[0])
    whole, parts = fresh().hear(x), fresh().hear(x, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(whole[1].sum(1), torch.ones(9))


@pytest.mark.parametrize("frames", [1, 44, 300])
def test_any_length(frames: int) -> None:
    features, said = fresh().hear(torch.zeros(2, frames, 128))
    assert features.shape == (2, classifying.FEATURES) and said.shape == (2, len(INSTRUMENTS))


def test_nothing_is_heard_in_nothing() -> None:
    features, said = fresh().hear(torch.zeros(0, 172, 128))
    assert len(features) == len(said) == 0


def test_its_file(tmp_path: Path) -> None:
    judge, x = fresh(), torch.from_numpy(spectrograms(4)[0])
    classifying.save(judge, tmp_path / "a.safetensors")
    again = classifying.load(tmp_path / "a.safetensors")
    assert again.names == INSTRUMENTS and not again.training
    assert torch.allclose(judge.hear(x)[1], again.hear(x)[1], atol=1e-3)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"a": torch.zeros(1)}
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="does not say its names"):
        classifying.load(tmp_path / "b.safetensors")


@pytest.mark.skipif(not SHIPPED.exists(), reason="no weights in this checkout")
def test_the_shipped_one() -> None:
    assert SHIPPED.stat().st_size <= 250_000
    assert classifying.load(SHIPPED).names == INSTRUMENTS
