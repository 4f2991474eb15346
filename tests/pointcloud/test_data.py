"""Point clouds as datasets: the frame, surfaces, the shipped sample, the catalogue, and packed files."""

import hashlib

import numpy as np
import pytest
import torch

from diffkit import packages
from diffkit.data import collate
from diffkit_pointcloud import packed as packing
from diffkit_pointcloud.catalogue import KINDS, bucket_of, kind_of, parse, split_of
from diffkit_pointcloud.cloud import Cloud, normalise, restore
from diffkit_pointcloud.crop import cropped
from diffkit_pointcloud.data import SAMPLE, load


@pytest.fixture(autouse=True)
def no_cache_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("a download was tried"))


# The frame


def test_a_cloud_in_its_frame_is_centred_of_half_extent_one_and_can_be_restored():
    box = Cloud(np.array([[1, 2, 3], [5, 4, 4], [3, 3, 3]], np.float32))
    framed = normalise(box)
    assert np.array_equal(framed.points, np.array([[-1, -0.5, -0.25], [1, 0.5, 0.25], [0, 0, -0.25]], np.float32))
    assert framed.transform == ((3.0, 3.0, 3.5), 2.0)
    assert np.allclose(restore(framed).points, box.points, atol=1e-6)


def test_frames_compose():
    points = np.random.default_rng(0).normal(5, 3, (50, 3)).astype(np.float32)
    once = normalise(Cloud(points))
    part = normalise(Cloud(once.points[:20], transform=once.transform))
    assert np.allclose(restore(part).points, points[:20], atol=1e-5)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (np.zeros((0, 3)), "at least one point"),
        (np.zeros((4, 2)), "expected \\(N, 3\\)"),
        (np.ones((4, 3)), "without extent"),
        (np.array([[0, 0, np.nan], [1, 1, 1]]), "NaN"),
    ],
)
def test_a_cloud_that_has_no_frame_is_refused(points, said):
    with pytest.raises(ValueError, match=said):
        normalise(Cloud(points.astype(np.float32)))


# The catalogue


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Office chair", "chair"),
        ("Table lamp", "lamp"),
        ("Desk lamp", "lamp"),
        ("Glass table", "table"),
        ("Chair with cushion", "chair"),
        ("Double window with large pane", "window"),
        ("Bottle", "bottle"),
        ("Teddy bear", "other"),
        ("", "other"),
    ],
)
def test_the_last_known_word_of_a_name_decides_on_its_kind(name, kind):
    assert kind_of(name) == kind


def test_no_word_names_two_kinds():
    words = [word for listed in KINDS.values() for word in listed]
    assert len(words) == len(set(words))


def test_near_copies_are_in_one_split():
    assert len({bucket_of(n) for n in ("S#sofa_left", "S#sofa-right-2", "s#Sofa", "S#sofa 03")}) == 1
    digest = int(hashlib.sha256(b"ssofa").hexdigest()[:8], 16) % 100
    assert bucket_of("S#sofa_left") == digest
    assert split_of("S#sofa") == ("train" if digest < 80 else "valid" if digest < 90 else "test")


def test_a_catalogue_is_read_entry_by_entry():
    text = """# a comment
id=Library
id#2=Lib#b
name#2=Caf\\u00e9 chair
model#2=/a/b.obj
tags#2=Blend Swap, Seat, Deck
modelRotation#2=0 0 1 0 1 0 -1 0 0
creator#2=Someone
name#1=Bed
model#1=/bed.obj
category#1=Bedroom
name#3=No model
"""
    bed, chair = parse(text)
    assert (bed.name, bed.kind, bed.path, bed.room) == ("Bed", "bed", "bed.obj", "Bedroom")
    assert (chair.identity, chair.name, chair.kind, chair.creator) == ("Lib#b", "Café chair", "chair", "Someone")
    assert chair.caption == "Café chair, seat, deck"
    assert np.array_equal(chair.rotation @ [0, 0, 1], [1, 0, 0])


# Packed


def test_packing_keeps_points_to_half_a_step(tmp_path):
    generator = np.random.default_rng(0)
    clouds = [Cloud(generator.normal(size=(n, 3)).astype(np.float32), caption=f"{n}", category="a") for n in (9, 4)]
    packed = packing.pack(clouds, ["x", "y"], ["train", "test"], ["me", "you"])
    packing.save(packed, tmp_path / "a.npz")
    again = packing.load(tmp_path / "a.npz")
    for m, cloud in enumerate(clouds):
        assert np.abs(again.cloud(m).points - normalise(cloud).points).max() <= 0.51 / 32767
        assert np.allclose(restore(again.cloud(m)).points, cloud.points, atol=1e-3)
    assert len(again.of("test")) == 1
    assert again.of("test").names.tolist() == ["y"] and again.of("test").credits.tolist() == ["you"]
    assert again.select([1, 0], 3).offsets.tolist() == [0, 3, 6]


# The sample


def test_the_sample_is_small_split_by_the_stated_rule_and_credited():
    assert sum(file.stat().st_size for file in SAMPLE.parent.iterdir()) < 2_000_000
    whole = packing.load(SAMPLE)
    assert len(whole) == 180
    for m, name in enumerate(whole.names.tolist()):
        assert packing.SPLITS[whole.splits[m]] == split_of(name)
        cloud = whole.cloud(m)
        assert len(cloud.points) == 1024 and np.abs(cloud.points).max() <= 1
        assert cloud.caption and cloud.category in KINDS
    credited = (SAMPLE.parent / "attribution.csv").read_text(encoding="utf-8")
    assert all(name in credited and credit in credited for name, credit in zip(whole.names, whole.credits, strict=True))


def test_training_examples_are_another_part_each_time_and_others_the_same():
    train, valid = load("train", "sample", points=100), load("valid", "sample", points=100)
    assert not torch.equal(train[3].x["points"], train[3].x["points"])
    assert torch.equal(valid[3].x["points"], valid[3].x["points"])
    assert np.allclose(valid[3].x["points"].numpy(), valid.packed.cloud(3, 100).points)
    torch.manual_seed(5)
    once = train[3].x["points"]
    torch.manual_seed(5)
    assert torch.equal(once, train[3].x["points"])


def test_stretched_clouds_stay_in_the_frame_and_are_mirrored_half_of_the_time():
    train = load("train", "sample", points=1024, stretch=0.2)
    for index in range(0, len(train), 25):
        assert float(train[index].x["points"].abs().max()) == pytest.approx(1, abs=1e-6)
    plain = load("train", "sample", points=1024, stretch=0.0)
    skew = np.array([np.mean(train.packed.take(m)[:, 0] ** 3) for m in range(len(train))])
    index = int(np.abs(skew).argmax())
    signs = [float(plain[index].x["points"][:, 0].pow(3).mean()) > 0 for _ in range(40)]
    assert 8 < sum(signs) < 32


def test_a_crop_is_one_side_of_a_plane_in_its_own_frame():
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(np.float32)
    seen = []
    for seed in range(20):
        framed, given = cropped(points, np.random.default_rng(seed))
        seen.append(given.mean())
        if not given.any():
            continue
        centre, extent = normalise(Cloud(framed[given])).transform
        assert np.allclose(centre, 0, atol=1e-5) and extent == pytest.approx(1, abs=1e-5)
        scale = np.ptp(points, axis=0) / np.ptp(framed, axis=0)
        assert np.allclose(scale, scale[0], rtol=1e-4)
        inside, outside = framed[given], framed[~given]
        direction = outside.mean(0) - inside.mean(0)  # of even points in a cube this is near the plane's normal
        assert np.quantile(inside @ direction, 0.9) < np.quantile(outside @ direction, 0.1)
    assert min(seen) > 0.25 and max(seen) < 0.85


def test_a_part_that_is_too_small_is_not_given():
    line = np.stack([np.linspace(-1, 1, 100), np.zeros(100), np.zeros(100)], 1).astype(np.float32)
    framed, given = cropped(line, np.random.default_rng(0), share=(0.1, 0.1))
    assert framed is line and not given.any()


def test_a_part_of_half_of_the_training_examples_is_given():
    torch.manual_seed(0)
    conditions = ("category", "given")
    train, valid = (load(split, "sample", points=64, conditions=conditions) for split in ("train", "valid"))
    batch = collate([(m, train[m]) for m in range(100)])
    share = batch.given["points"].any(1).float().mean()
    assert (
        batch.given["points"].shape == (100, 64, 1)
        and 0.3 < share < 0.7
        and set(batch.condition.values) == {"category"}
    )
    assert not valid[0].given and not load("train", "sample", points=64)[0].given


def test_categories_are_the_largest_and_the_rest_is_other_or_left_out():
    every = load("train", "sample")
    with_rest, without = load("train", "sample", categories=3), load("train", "sample", categories=3, others=False)
    names, counts = with_rest.statistics["categories"], with_rest.statistics["counts"]
    assert names[-1] == "other" and sum(counts) == len(with_rest) == len(every)
    assert counts[:3] == sorted(counts[:3], reverse=True)
    assert without.statistics["categories"] == names[:3] and len(without) == sum(counts[:3])
    numbers = torch.stack([with_rest[m].condition["category"] for m in range(len(with_rest))])
    assert torch.bincount(numbers.long()).tolist() == counts


def test_a_batch_of_clouds_of_different_sizes_is_padded_with_zeros():
    adapterless = load("valid", "sample", points=50)
    short = load("valid", "sample", points=20)
    batch = collate([(0, adapterless[0]), (1, short[1])])
    assert batch.x["points"].shape == (2, 50, 3) and batch.mask["points"].sum(1).flatten().tolist() == [50, 20]
    assert not batch.x["points"][1, 20:].any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "furnitur"}, "did you mean"),
        ({}, "data.path=FOLDER"),
        ({"source": "sample", "split": "tset"}, "expected one of train, valid, test"),
    ],
)
def test_names_that_do_not_exist_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        load(**{"split": "train", **options})
