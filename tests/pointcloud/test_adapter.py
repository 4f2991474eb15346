"""The adapter: what can be asked for, and a model from end to end."""

import numpy as np
import pytest
import torch

from diffkit import recipe as recipes
from diffkit.modality import Request
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit_pointcloud import PointCloud
from diffkit_pointcloud.cloud import Cloud, normalise
from diffkit_pointcloud.formats import ply
from diffkit_pointcloud.prompts import category_of
from diffkit_pointcloud.readers import read_cloud

STATISTICS = {"categories": ["chair", "table", "lamp", "other"], "counts": [5, 3, 1, 1]}


def adapter(**fields):
    return PointCloud(**{"points": 16, "statistics": STATISTICS, **fields})


def layout(request, count=4, **fields):
    return adapter(**fields).layout(count, Noise.of(0, count), request)


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("office chair", "chair"),
        ("two red CHAIRS", "chair"),
        ("a bar stool", "chair"),
        ("table lamp", "lamp"),
        ("a desk", "table"),
        ("lamp table", "table"),
    ],
)
def test_a_prompt_is_read_by_its_words(prompt, category):
    assert category_of(prompt, STATISTICS["categories"]) == category
    batch = layout(Request(prompt))
    assert batch.condition.values["category"].tolist() == [STATISTICS["categories"].index(category)] * 4


@pytest.mark.parametrize("prompt", ["a dinosaur", "", "sofa"])
def test_a_prompt_of_unknown_words_is_refused_with_what_there_is(prompt):
    with pytest.raises(ValueError, match="none of whose words is known; this model makes chair, table, lamp, other"):
        category_of(prompt, STATISTICS["categories"])


@pytest.mark.parametrize(
    ("prompt", "values", "said"),
    [
        (None, {"category": "chiar"}, "did you mean"),
        (None, {"category": "chair,chiar"}, "got category=chiar"),
        (None, {"colour": "red"}, "this model takes category, points"),
        (None, {"points": "many"}, "whole number of points"),
        (None, {"points": "0"}, "at least 1"),
        ("chair", {"category": "table"}, "expected one of them"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(prompt, values, said):
    with pytest.raises(ValueError, match=said):
        layout(Request(prompt, values))


def test_a_model_without_categories_takes_no_prompt():
    with pytest.raises(ValueError, match="without categories"):
        layout(Request(None, {"category": "chair"}), conditions=())
    assert not layout(Request(), conditions=()).condition.values


def test_the_number_of_points_can_be_asked_for():
    batch = layout(Request(None, {"points": "77"}))
    assert batch.x["points"].shape == (4, 77, 3) and batch.mask["points"].all()


def test_where_nothing_is_asked_for_categories_come_as_often_as_in_the_data():
    found = layout(Request(), count=4000).condition
    share = torch.bincount(found.values["category"].long(), minlength=4) / 4000
    assert found.present["category"].all()
    assert (share - torch.tensor([0.5, 0.3, 0.1, 0.1])).abs().max() < 5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("asked", "turns"), [("each", [0, 1, 2, 3, 0, 1]), ("lamp, chair", [2, 0, 2, 0, 2, 0]), ("table", [1] * 6)]
)
def test_samples_take_turns_in_the_categories_asked_for(asked, turns):
    request = Request(None, {"category": asked})
    assert layout(request, count=6).condition.values["category"].tolist() == turns
    alone = adapter().layout(1, Noise.of(0, 1, start=3), request)
    assert alone.condition.values["category"].tolist() == turns[3:4]


def test_a_category_that_is_not_known_is_not_given():
    encode = adapter().encode
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert encode(Cloud(points, category="table")).condition["category"] == 1
    assert encode(Cloud(points, category="piano")).condition["category"].isnan()
    assert encode(Cloud(points)).condition["category"].isnan()


def test_points_that_are_not_finite_are_not_valid():
    assert adapter().valid(Cloud(np.zeros((3, 3), np.float32)))
    assert not adapter().valid(Cloud(np.full((3, 3), np.nan, np.float32)))


@pytest.fixture(scope="module")
def model():
    recipe = recipes.load("pointcloud/sample", ["network.width=32", "network.latent_width=32", "network.latents=4"])
    recipe["modality"].update(statistics=STATISTICS, points=24)
    torch.manual_seed(0)
    return Model.of(recipe)


def test_samples_say_what_they_were_asked_to_be(model):
    samples = model.generate(3, prompt="a stool", steps=2, sampler="ddim", grid="even")
    assert [s.category for s in samples.records] == ["chair"] * 3
    assert all(s.points.shape == (24, 3) and s.points.dtype == np.float32 for s in samples.records)


def test_a_sample_is_the_same_at_any_batch_size(model):
    one, all_ = (model.generate(3, steps=2, batch_size=n).records for n in (1, 3))
    for a, b in zip(one, all_, strict=True):
        assert a.category == b.category and np.allclose(a.points, b.points, atol=1e-5)


# Normals and colours


def balls(folder, count=8):
    """Balls whose normals are their directions, and whose colours tell where up is."""
    folder.mkdir()
    for name in "abcdefghijkl"[:count]:
        normals = np.random.default_rng(ord(name)).normal(size=(90, 3)).astype(np.float32)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        colours = np.where(normals[:, 1:2] > 0, [[255, 0, 0]], [[0, 0, 255]]).astype(np.uint8)
        (folder / f"{name}.ply").write_bytes(ply(Cloud(3 * normals, normals, colours)))


def test_normals_and_colours_go_from_files_to_files(tmp_path):
    balls(tmp_path / "balls")
    adapter = PointCloud(conditions=())
    train = adapter.dataset("train", path=tmp_path / "balls", points=64, stretch=0.3, normals=True, colours=True)
    x = train[0].x["points"].numpy()
    assert x.shape == (64, 9) and train.statistics["normals"] is train.statistics["colours"] is True
    assert np.array_equal(x[:, 6] > 0, x[:, 1] > 0)  # red above, blue below
    # of an ellipsoid the normal at p is the direction of p / axes^2, whatever it was stretched by
    axes = np.sqrt(1 / np.linalg.lstsq(x[:, :3] ** 2, np.ones(64), rcond=None)[0])
    expected = x[:, :3] / axes**2
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(x[:, 3:6], expected, atol=0.03)  # normals are kept in bytes


def test_a_model_of_normals_and_colours_draws_and_completes_them(tmp_path):
    balls(tmp_path / "balls")
    small = ["network.width=32", "network.latent_width=32", "network.latents=4", "modality.conditions=[given]"]
    recipe = recipes.load("pointcloud/folder", small)
    recipe["modality"].update(statistics={"normals": True, "colours": True}, points=24)
    asked = {"given": tmp_path / "balls" / "a.ply", "points": 100}
    samples = Model.of(recipe).generate(1, condition=asked, steps=2, guidance=1, sampler="ddim")
    samples.save(tmp_path / "out", "npy")
    table = np.load(tmp_path / "out" / "0000.npy")
    part = read_cloud(tmp_path / "balls" / "a.ply")
    assert table.shape == (100, 9)
    assert np.array_equal(table[:90], np.concatenate([part.points, part.normals, part.colours], 1))
    assert np.allclose(np.linalg.norm(table[:, 3:6], axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="without normals"):
        broken(tmp_path / "bare.ply")
        Model.of(recipe).generate(1, condition={"given": tmp_path / "bare.ply"}, steps=2, guidance=1)


def test_the_sample_has_no_colours():
    with pytest.raises(ValueError, match="the shipped sample, which has none"):
        PointCloud().dataset("train", source="sample", colours=True)


# Completion


def broken(path, points=40):
    cloud = np.random.default_rng(3).normal([5, 0, -2], [0.5, 3, 1], (points, 3)).astype(np.float32)
    path.write_bytes(ply(Cloud(cloud)))
    return cloud


@pytest.fixture(scope="module")
def completing():
    small = ["network.width=32", "network.latent_width=32", "network.latents=4", "modality.conditions=[category,given]"]
    recipe = recipes.load("pointcloud/sample", small)
    recipe["modality"].update(statistics=STATISTICS, points=24)
    torch.manual_seed(0)
    built = Model.of(recipe)
    for p in built.network.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    return built


def test_a_cloud_is_completed_around_its_points_which_stay_as_they_are(completing, tmp_path):
    part = broken(tmp_path / "broken.ply")
    samples = completing.generate(2, condition={"given": tmp_path / "broken.ply"}, prompt="chair", guidance=2, steps=3)
    samples.save(tmp_path / "out", "npy")
    written = np.load(tmp_path / "out" / "0001.npy")
    for cloud in (*(s.points for s in samples.records), written):
        assert cloud.shape == (80, 3)
        assert np.array_equal(cloud[:40][np.lexsort(cloud[:40].T)], part[np.lexsort(part.T)])
        assert not np.isin(cloud[40:], part).any() and np.isfinite(cloud).all()
    one, two = (s.points[40:] for s in samples.records)
    assert not np.allclose(one, two) and [s.category for s in samples.records] == ["chair"] * 2


def test_what_is_given_has_a_say_in_the_rest(completing, tmp_path):
    whole = completing.generate(1, condition={"points": 80, "category": "chair"}, steps=3).records[0].points
    broken(tmp_path / "a.ply")
    asked = {"given": tmp_path / "a.ply", "category": "chair"}
    drawn = completing.generate(1, condition=asked, steps=3).records[0]
    frame = normalise(Cloud(drawn.points[:40])).transform
    assert not np.allclose((drawn.points[40:] - np.array(frame[0])) / frame[1], whole[40:], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "points", "said"),
    [("no.ply", "80", "is no file"), ("a.zip", "80", "expected a file that ends"), ("a.ply", "40", "40 of them given")],
)
def test_a_part_that_cannot_be_completed_is_refused(completing, tmp_path, name, points, said):
    broken(tmp_path / "a.ply")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=said):
        completing.generate(1, condition={"given": tmp_path / name, "points": points})


def test_a_model_that_did_not_learn_to_complete_is_not_asked_to(model, tmp_path):
    with pytest.raises(ValueError, match="got the condition given; this model takes category, points"):
        model.generate(1, condition={"given": tmp_path / "a.ply"})


@pytest.mark.parametrize("name", ["furniture", "folder", "sample", "kicad"])
def test_recipes_compose(name):
    recipe = recipes.load(f"pointcloud/{name}")
    recipe["modality"]["statistics"] = STATISTICS
    model = Model.of(recipe)
    parameters = sum(p.numel() for p in model.network.parameters())
    assert 2 * parameters < 6_000_000
    assert set(model.denoiser.process) == {"points"}
