"""The judge of emoji: what it learns, what it does not depend on, and its file."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import diffkit_image
from diffkit_image import judge as judging
from diffkit_image.judge import Judge
from diffkit_image.judge_training import evenly, train, varied

SHIPPED = Path(diffkit_image.__path__[0]) / "weights" / "emoji" / "judge.safetensors"
COLOURS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def pictures(count: int, seed: int = 0) -> tuple[Tensor, list[str], list[str]]:
    """Stripes and blobs, in one of two colours each: pixels, categories and names."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    pixels, kinds, names = [], [], []
    for number in range(count):
        kind, colour = ("stripes", "blob")[number % 2], ("red", "blue")[number // 2 % 2]
        phase, size = torch.rand(2, generator=generator).tolist()
        if kind == "stripes":
            opacity = ((x + y) / 3 + 9 * phase).sin() > 0
        else:
            opacity = (x - 32).square() + (y - 32).square() < (12 + 10 * size) ** 2
        shares = torch.stack([*(c * opacity for c in COLOURS[colour]), opacity.float()])
        pixels.append(shares * 2 - 1)
        kinds.append(kind)
        names.append(f"{colour} {kind}")
    return torch.stack(pixels), kinds, names


def fresh() -> Judge:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Judge(("blob", "stripe"), ("blob", "blue", "red", "stripe")).eval()


def test_it_learns_kinds_and_names_and_gives_the_same_again() -> None:
    pixels, kinds, names = pictures(64)
    things = [str(k) for k in range(64)]
    unseen, truth, said = pictures(32, seed=1)
    found = train(pixels, kinds, names, things, epochs=8, batch_size=16)
    features = found.see(unseen)
    assert sum(a == b for a, b in zip(found.kinds(features), truth, strict=True)) >= 30
    every = sorted({*names, "green stripes"})
    assert float((found.ranks(features, said, every) == 0).float().mean()) > 0.8
    one, two = (train(pixels[:16], kinds[:16], names[:16], things[:16], epochs=1, batch_size=8) for _ in range(2))
    assert torch.equal(one.see(unseen), two.see(unseen)) and one.version == two.version != found.version


def test_it_does_not_depend_on_the_batch() -> None:
    pixels, _, _ = pictures(5)
    judge = fresh()
    assert torch.allclose(judge.see(pixels, batch_size=2), judge.see(pixels), atol=1e-5)
    assert judge.see(pixels[:0]).shape == (0, judging.FEATURES) and judge.kinds(judge.see(pixels[:0])) == []


def test_names_are_their_known_words() -> None:
    judge = fresh()
    with torch.no_grad():
        vectors = judge.names([["red", "blob"], ["blob", "red"], ["red", "blob", "unheard"], ["unheard"], []])
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6) and torch.equal(vectors[0], vectors[2])
    assert torch.equal(vectors[3], vectors[4])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5))


def test_ranks_by_hand() -> None:
    judge = fresh()
    every = ["red blob", "blue blob", "red stripes", "blue stripes"]
    features = judge.see(pictures(6)[0])
    with torch.no_grad():
        near = judge.pictures(features) @ judge.names([judging.words(name) for name in every]).T
    order = near.argsort(1, descending=True)
    for place in range(4):
        asked = [every[k] for k in order[:, place].tolist()]
        assert judge.ranks(features, asked, every).tolist() == [place] * 6


def test_a_file_is_as_good_as_the_judge(tmp_path: Path) -> None:
    judge = fresh()
    judging.save(judge, tmp_path / "judge.safetensors")
    again = judging.load(tmp_path / "judge.safetensors")
    assert (again.categories, again.vocabulary, again.version) == (judge.categories, judge.vocabulary, judge.version)
    pixels, _, _ = pictures(4)
    assert torch.allclose(again.see(pixels), judge.see(pixels), atol=1e-2)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not say its categories"):
        judging.load(tmp_path / "other.safetensors")


def test_how_often_pictures_are_drawn() -> None:
    """Four things, two of them fruit; an apple has three variants. The root of a number of things: 1 of 1, √2 of 2."""
    kinds = ["fruit", "fruit", "fruit", "fruit", "hand", "tool"]
    weights = evenly(kinds, ["apple", "apple", "apple", "pear", "fist", "saw"])
    expected = [1 / 3, 1 / 3, 1 / 3, 1, math.sqrt(2), math.sqrt(2)]
    assert (weights / weights[3]).tolist() == pytest.approx(expected)


def test_pictures_are_varied_alike_and_stay_pictures() -> None:
    pixels, _, _ = pictures(8)
    one, two = (varied(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == pixels.shape
    assert one.min() >= -1 and one.max() <= 1 and (one - pixels).abs().mean() > 0.02
    empty = varied(torch.full((4, 4, 64, 64), -1.0), torch.Generator().manual_seed(3))
    assert (empty + 1).abs().mean() < 0.05  # nothing stays nothing, but for the grain


@pytest.mark.skipif(not SHIPPED.exists(), reason="needs the shipped judge")
def test_the_shipped_judge() -> None:
    judge = judging.load(SHIPPED)
    assert SHIPPED.stat().st_size <= 400_000
    assert len(judge.categories) == 99 and "cat-face" in judge.categories and "cat" in judge.vocabulary
