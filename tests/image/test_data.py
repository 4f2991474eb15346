"""Pictures as tensors: the shipped sample, public sets where they are cached, latents, conditions."""

import gzip
import io
import json
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffkit.data import StepSampler
from diffkit.packages import members
from diffkit_image import animals, captions, clipart, latents, noto, packed
from diffkit_image.data import ImageDataset, load, measure, multi_hot
from diffkit_image.packed import Found
from diffkit_image.readers import Shape
from diffkit_image.record import to_image, to_tensor
from diffkit_image.sources import sample


class Means(nn.Module):
    """Means of squares, each channel by a weight of its own: what it makes is known."""

    def __init__(self, factor=8):
        super().__init__()
        self.factor, self.channels = factor, 4
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def encode(self, pixels):
        return nn.functional.avg_pool2d(pixels, self.factor) * self.weight.view(-1, 1, 1)


def flat(colour, size=(16, 16)):
    return Image.new("RGBA", size, colour)


def small_set(tmp_path=None):
    """Six pictures of two sizes and two categories."""
    red, blue = (255, 0, 0, 255), (0, 0, 255, 128)
    found = [
        Found("a", "train", flat(red), ("a red square", "red thing"), "square"),
        Found("b", "train", flat(blue, (32, 16)), ("blue boxes",), "box"),
        Found("c", "train", flat(blue), (), ""),
        Found("d", "train", flat(red), ("two red squares",), "square"),
        Found("e", "valid", flat(blue, (32, 16)), ("unheard words",), "other"),
        Found("f", "test", flat(red), ("a red square",), "square"),
    ]
    return packed.gather(found, home=tmp_path)


def dataset(tmp_path, split="train", conditions=("category", "words"), **options):
    whole = small_set(tmp_path)
    made = latents.encoded(whole, Means())
    statistics = measure(whole, whole.of("train"), made)
    return ImageDataset(whole, whole.of(split), statistics, made, conditions, split == "train", **options)


# Records


def test_pixels_are_colour_times_opacity_and_come_back():
    image = flat((255, 128, 0, 51), (2, 3))
    pixels = to_tensor(image)
    assert pixels.shape == (4, 3, 2)
    wanted = torch.tensor([0.2, 0.2 * 128 / 255, 0, 0.2]) * 2 - 1
    assert torch.allclose(pixels[:, 0, 0], wanted)
    assert to_image(pixels).getpixel((1, 2)) == (255, 128, 0, 51)
    assert to_tensor(flat((9, 9, 9, 0))).eq(-1).all()


# Packed


def test_a_set_in_memory_and_on_the_disk_are_the_same(tmp_path):
    whole = small_set()
    found = [
        Found(whole.names[n], packed.SPLITS[whole.splits[n]], p.image, whole.captions[n], p.category)
        for n, p in ((n, whole.picture(n)) for n in range(len(whole)))
    ]
    packed.save(iter(found), tmp_path / "set", rejected=[("x.png", "is empty")], changed=[("a", "is CMYK")])
    read = packed.load(tmp_path / "set")
    assert (read.names, read.captions, read.categories) == (whole.names, whole.captions, whole.categories)
    assert read.sizes == whole.sizes == ((16, 16), (16, 32))
    assert all(np.array_equal(a, b) for a, b in zip(read.pixels, whole.pixels, strict=True))
    assert all(np.array_equal(getattr(read, k), getattr(whole, k)) for k in ("places", "category", "splits"))
    assert (read.rejected, read.changed) == ((("x.png", "is empty"),), (("a", "is CMYK"),))


def test_nothing_is_left_where_reading_fails(tmp_path):
    def broken():
        yield Found("a", "train", flat("red"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        packed.save(broken(), tmp_path / "set")
    assert not list(tmp_path.iterdir())


# Pixels and latents


def test_examples_of_pixels_are_the_pictures():
    for split, count in (("train", 86), ("valid", 9), ("test", 8)):
        data = load(split, source="sample", pixels=True)
        assert len(data) == count
        for n in (0, count - 1):
            example = data[n]
            assert torch.equal(example.x["pixels"], to_tensor(data.records(n).image))
            assert example.mask["pixels"].shape == (1, 64, 64) and example.mask["pixels"].all()
            assert not example.condition
    assert "mean" not in data.statistics and data.statistics["sizes"] == [[64, 64, 86]]


def test_latents_are_standardised_by_the_training_set(tmp_path):
    data = dataset(tmp_path)
    raw = [Means().encode(to_tensor(data.records(n).image)[None])[0] for n in range(4)]
    values = torch.cat([latent.flatten(1) for latent in raw], 1).detach().double()
    assert torch.allclose(torch.tensor(data.statistics["mean"]).double(), values.mean(1), atol=2e-3)
    assert torch.allclose(torch.tensor(data.statistics["scale"]).double(), values.std(1, correction=0), atol=2e-3)
    mean, scale = (torch.tensor(data.statistics[k]).view(-1, 1, 1) for k in ("mean", "scale"))
    for n in range(4):
        assert torch.allclose(data[n].x["latent"], (raw[n].detach() - mean) / scale, atol=5e-3)


def test_a_batch_of_two_sizes_is_masked_and_zero_elsewhere(tmp_path):
    batch = dataset(tmp_path).batch([1, 0, 2])
    x, mask = batch.x["latent"], batch.mask["latent"]
    assert x.shape == (3, 4, 2, 4) and mask.shape == (3, 1, 2, 4)
    assert mask[0].all() and mask[1:, ..., :2].all() and not mask[1:, ..., 2:].any()
    assert x[1:, ..., 2:].eq(0).all()
    assert batch.index.tolist() == [1, 0, 2]
    alone = dataset(tmp_path).batch([0])
    assert torch.equal(alone.x["latent"][0], x[1, ..., :2])


def test_latents_are_kept_and_those_of_other_weights_made_anew(tmp_path):
    whole, first = small_set(tmp_path), Means()
    made = latents.encoded(whole, first)
    files = sorted(tmp_path.glob("latents-*.npy"))
    assert len(files) == 2
    again = latents.encoded(whole, first)
    assert all(np.array_equal(a, b) for a, b in zip(made.parts, again.parts, strict=True))
    assert sorted(tmp_path.glob("latents-*.npy")) == files
    other = Means()
    with torch.no_grad():
        other.weight *= 2
    assert latents.fingerprint(other) != latents.fingerprint(first) == latents.fingerprint(Means())
    doubled = latents.encoded(whole, other)
    assert all(np.array_equal(2 * a, b) for a, b in zip(made.parts, doubled.parts, strict=True))


def test_a_size_that_the_autoencoder_cannot_encode(tmp_path):
    with pytest.raises(ValueError, match=r"got pictures of 16x16 for an autoencoder of factor 32"):
        latents.encoded(small_set(tmp_path), Means(32))


def test_latents_too_large_for_half_precision_are_refused_and_not_kept(tmp_path):
    large = Means()
    with torch.no_grad():
        large.weight *= 1e6
    with pytest.raises(ValueError, match="beyond half precision"):
        latents.encoded(small_set(tmp_path), large)
    assert not list(tmp_path.iterdir())


# Conditions


def test_conditions_are_those_of_the_captions(tmp_path):
    data = dataset(tmp_path, "test")
    assert data.statistics["categories"] == ["square", "box", "other"]
    assert data.statistics["vocabulary"] == ["blue", "box", "red", "square", "thing", "two"]
    assert data[0].condition["category"] == 0
    assert data[0].condition["words"].tolist() == [0, 0, 1, 1, 0, 0]
    valid = dataset(tmp_path, "valid")[0].condition
    assert valid["category"] == 2
    assert valid["words"].isnan().all()
    unknown = dataset(tmp_path).batch([2]).condition
    assert not unknown.present["category"].any() and not unknown.present["words"].any()


def test_words_of_training_examples_are_of_one_caption_and_some_left_out(tmp_path):
    data = dataset(tmp_path)
    names = data.statistics["vocabulary"]
    torch.manual_seed(0)
    seen = Counter()
    for words in data.batch([0] * 800).condition.values["words"]:
        seen[tuple(names[k] for k in words.nonzero()[:, 0])] += 1
    both, other = {"red", "square"}, {"red", "thing"}
    assert all(set(words) in (both, other) or len(words) == 1 for words in seen)
    # in half of the examples each of two words stays with 0.7, and both do where none would
    whole = 0.5 + 0.5 * (0.7**2 + 0.3**2)
    share = sum(count for words, count in seen.items() if len(words) == 2) / 800
    assert abs(share - whole) < 4 * (whole * (1 - whole) / 800) ** 0.5
    torch.manual_seed(0)
    again = data.batch([0] * 800).condition.values["words"]
    assert sum(int(row.sum() == 2) for row in again) == round(share * 800)


def test_words_are_those_of_a_prompt():
    vocabulary = ["box", "cat", "cherry", "face"]
    assert multi_hot("Cherries and two CATS in boxes", vocabulary).tolist() == [1, 1, 1, 0]
    assert multi_hot("nothing known", vocabulary).isnan().all()


def test_statistics_of_a_model_are_kept(tmp_path):
    given = {"categories": ["x", "square"], "vocabulary": ["red"], "mean": [0.0] * 4, "scale": [1.0] * 4}
    whole = small_set(tmp_path)
    data = ImageDataset(whole, whole.of("test"), given, latents.encoded(whole, Means()))
    assert data[0].condition["category"] == 1
    assert data[0].condition["words"].tolist() == [1]
    assert torch.allclose(data[0].x["latent"][:, 0, 0], torch.tensor([1.0, -2.0, -3.0, 4.0]))


def test_balance_shows_rare_categories_more_often():
    plain = load("train", source="sample", pixels=True)
    even = load("train", source="sample", pixels=True, balance=1.0)
    counts, evened = (Counter(d.packed.category[d.rows].tolist()) for d in (plain, even))
    assert max(counts.values()) / min(counts.values()) > 1.6
    assert max(evened.values()) / min(evened.values()) <= 1.6
    assert set(plain.rows) == set(even.rows)
    assert len(load("valid", source="sample", pixels=True, balance=1.0)) == 9


def test_batches_of_one_size():
    groups = [0] * 5 + [1] * 9 + [2]
    steps = 7  # 2 + 3 + 1 batches of four in a pass
    batches = list(StepSampler(15, 4, 0, 0, steps, groups=groups))
    assert len(batches) == steps
    assert all(len({groups[item] for item in batch}) == 1 and len(batch) == 4 for batch in batches)
    assert {item for batch in batches[:6] for item in batch} == set(range(15))
    assert list(StepSampler(15, 4, 0, 3, steps, groups=groups)) == batches[3:]
    halves = [list(StepSampler(15, 4, 0, 0, steps, rank, 2, groups=groups)) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in batches]


# Options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"source": "notto"}, "did you mean 'noto'"),
        ({}, r"expected data\.path=FOLDER"),
        ({"source": "sample", "conditions": ["colour"]}, "got condition 'colour'"),
        ({"source": "sample", "balance": 2}, "expected a number from 0"),
        ({"source": "sample", "size": 4}, "expected at least 8"),
    ],
)
def test_options_that_do_not_exist(options, reason):
    with pytest.raises(ValueError, match=reason):
        load("train", pixels=True, **options)


def test_another_size():
    data = load("train", source="sample", pixels=True, size=32)
    assert data[0].x["pixels"].shape == (4, 32, 32)
    assert sample(Shape(32)).captions == sample().captions


def test_a_split_without_pictures_uses_those_for_training(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine" / "train"
    folder.mkdir(parents=True)
    flat("red").save(folder / "a.png")
    with pytest.warns(UserWarning, match="has no pictures for valid"):
        data = load("valid", path=tmp_path / "mine", pixels=True)
    assert len(data) == 1


# Captions


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a smiling CAT's faces", ("smiling", "cat", "face")),
        ("emoji of a Côte d’Ivoire flag", ("cote", "divoire", "flag")),
        ("boxes, cherries & glasses; the bus", ("box", "cherry", "glass", "bus")),
        ("medium-dark skin tone", ("medium", "dark", "skin", "tone")),
        ("", ()),
    ],
)
def test_words_of_a_text(text, found):
    assert tuple(w.removesuffix("'s") for w in captions.words(text)) in (found, ("smiling", "cats", "face"))


def test_kinds_are_said_as_people_do():
    assert [captions.kind(k) for k in ("animal-mammal", "face-smiling", "cat-face", "plant-other", "other-symbol")] == [
        *("mammal", "smiling face", "cat face", "plant", "symbol")
    ]


def test_captions_say_names_kinds_and_tones():
    said = captions.write(["waving hand"], "hands", ["medium-dark"])
    assert said[0] == "waving hand, medium-dark skin tone"
    assert all("medium-dark skin tone" in text and "waving hand" in text for text in said)
    assert captions.write(["kiss"], "", ["light", "dark"])[0] == "kiss, light and dark skin tones"
    assert captions.write(["kiss"], "", ["light", "light"])[0] == "kiss, light skin tone"
    plain = captions.write(["owl", "night bird"], "animal-bird")
    assert plain[0] == "owl" and any("night bird" in text for text in plain)
    assert plain == captions.write(["owl", "night bird"], "animal-bird")


# Sources


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1F44B-1F3FD", "1F44B"),
        ("1F469-1F3FD-200D-1F33E", "1F9D1-1F33E"),
        ("1F6B6-1F3FC-200D-2640-FE0F-200D-27A1-FE0F", "1F6B6"),
        ("1F468-200D-2764-FE0F-200D-1F468", "1F9D1-2764-1F9D1"),
        ("1F491", "1F9D1-2764-1F9D1"),
        ("1F46D", "1F9D1-1F91D-1F9D1"),
        ("1F468-200D-1F469-200D-1F466", "1F9D1-1F9D1-1F9D2"),
        ("2640-FE0F", "2640"),
        ("1F3FB", "1F3FB"),
        ("0023-FE0F-20E3", "0023-20E3"),
    ],
)
def test_an_emoji_without_tone_gender_and_direction(code, base):
    assert noto.base_of(code) == base


def test_the_sample_is_small_and_its_splits_are_those_of_the_emoji():
    folder = Path(packed.__file__).parent / "sample"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 350_000
    whole = sample()
    assert [packed.SPLITS[k] for k in whole.splits] == [noto.split_of(name) for name in whole.names]
    assert set(whole.category) == set(range(21))


def test_titles_and_keywords_of_a_drawing():
    svg = (
        '<svg><metadata id="m"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work>'
        '<dc:title xmlns:dc="http://purl.org/dc/elements/1.1/">Lemonade</dc:title><dc:subject><rdf:Bag>'
        "<rdf:li>hash</rdf:li><rdf:li></rdf:li><rdf:li>Food</rdf:li><rdf:li>linda kim</rdf:li></rdf:Bag></dc:subject>"
        "<dc:creator><cc:Agent><dc:title>Linda Kim</dc:title></cc:Agent></dc:creator>"
        "</cc:Work></rdf:RDF></metadata></svg>"
    )
    assert clipart.said_of(svg.encode()) == ("Lemonade", "clip art of Lemonade", "Lemonade, food")
    assert clipart.said_of(b"<svg/>") == clipart.said_of(b"<metadata><broken</metadata>") == ()


def test_a_pickle_of_an_array_is_read_and_nothing_else(tmp_path):
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with gzip.open(tmp_path / "good.gz", "wb") as file:
        pickle.dump(numbers, file, protocol=4)
    assert np.array_equal(animals.array(tmp_path / "good.gz"), numbers)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for name, content in {"evil": Evil(), "list": [1, 2], "object": np.array([None])}.items():
        with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
            pickle.dump(content, file)
        with pytest.raises((ValueError, TypeError)):
            animals.array(tmp_path / f"{name}.gz")
    assert not (tmp_path / "made").exists()


def test_silhouettes(tmp_path):
    folder = tmp_path / "animal_shape_mnist" / "data" / "Animal Shape"
    folder.mkdir(parents=True)
    shapes = np.full((2, 28, 28), 255, np.uint8)
    for name, content in {"data": shapes, "label": np.array([5, 9])}.items():
        with gzip.open(folder / f"animal_{name}_version_3.gz", "wb") as file:
            pickle.dump(content, file, protocol=4)
    found = list(animals.read(tmp_path))
    assert [one.category for one in found] == ["elephant", "zebra"]
    assert found[0].captions[1] == "silhouette of an elephant"
    assert np.asarray(found[0].image)[..., 3].sum() == 255 * 28 * 28
    assert found[0].split == found[1].split  # the same pixels


def test_emoji_of_the_package(tmp_path):
    folder = tmp_path / "package"
    (folder / "img/google/64").mkdir(parents=True)
    about = {"unified": "1F44B", "image": "a.png", "name": "WAVING HAND SIGN", "short_names": ["wave", "u7"]}
    about |= {"subcategory": "hands", "sort_order": 1}
    about["skin_variations"] = {"1F3FB": {"unified": "1F44B-1F3FB", "image": "b.png"}}
    (folder / "emoji.json").write_text(json.dumps([about]))
    for name, colour in {"a": "yellow", "b": "white"}.items():
        flat(colour, (64, 64)).save(folder / f"img/google/64/{name}.png")
    found = list(noto.read(tmp_path))
    assert [one.name for one in found] == ["1F44B", "1F44B-1F3FB"]
    assert found[0].captions[0] == "waving hand sign"
    assert any("wave" in text for text in found[0].captions) and not any("u7" in text for text in found[0].captions)
    assert found[1].captions[0] == "waving hand sign, light skin tone"
    assert found[0].split == found[1].split == noto.split_of("1F44B")


def test_links_in_a_debian_package_are_passed_over(tmp_path):
    archive, link, content = io.BytesIO(), tarfile.TarInfo("b.png"), tarfile.TarInfo("a.png")
    link.type, link.linkname, content.size = tarfile.SYMTYPE, "a.png", 3
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        tar.addfile(content, io.BytesIO(b"abc"))
        tar.addfile(link)
    data = archive.getvalue()
    head = b"data.tar.xz".ljust(48) + str(len(data)).encode().ljust(10) + b"`\n"
    (tmp_path / "a.deb").write_bytes(b"!<arch>\n" + head + data)
    assert list(members(tmp_path / "a.deb", ".png")) == [("a.png", b"abc")]
