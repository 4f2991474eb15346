"""Pictures as tensors: pixels, latents, conditions, options."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffkit.data import StepSampler
from diffkit_image import latents, packed
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
