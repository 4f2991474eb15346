"""Sets of the datasets library, made and saved by itself."""

import io

import pytest
from PIL import Image

from diffkit_image.data import load
from diffkit_image.hub import read
from diffkit_image.readers import Report, Shape

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def made(count=40, **columns):
    features = {"image": datasets.Image()}
    features |= {"label": datasets.ClassLabel(names=["cat", "wild_dog"])} if "label" in columns else {}
    features |= {"text": datasets.Value("string")} if "text" in columns else {}
    rows = {"image": [png((6 * k, 0, 0)) for k in range(count)], **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def found_in(name, limit=100):
    report = Report(str(name))
    return list(read(str(name), Shape(16, 8), limit, report)), report


def test_a_saved_set_with_labels(tmp_path):
    made(label=[0, 1] * 20).save_to_disk(tmp_path / "set")
    found, report = found_in(tmp_path / "set")
    assert report.used == len(found) == 40
    assert found[3].category == "wild_dog" and found[3].captions == ("wild dog",)
    assert found[3].image.getpixel((0, 0)) == (18, 0, 0, 255)
    assert {one.split for one in found} >= {"train", "valid"}
    assert len(found_in(tmp_path / "set", limit=7)[0]) == 7


def test_splits_of_the_set_are_kept(tmp_path):
    parts = {"train": made(label=[0] * 40), "validation": made(8, label=[1] * 8)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    found, _ = found_in(tmp_path / "set")
    assert {one.split for one in found if one.name.startswith("valid/")} == {"valid"}
    assert {one.split for one in found if one.name.startswith("train/")} <= {"train", "test"}


def test_a_folder_of_files_is_streamed(tmp_path):
    texts = [f"picture {k}" for k in range(40)]
    made(text=texts).to_parquet(tmp_path / "train.parquet")
    data = load("train", dataset=str(tmp_path), pixels=True, size=16)
    assert 30 < len(data) <= 40
    assert data.records(0).caption.startswith("picture")
    assert data[0].x["pixels"].shape == (4, 16, 16)


def test_bad_pictures_are_listed_and_the_rest_used(tmp_path):
    rows = made(4).cast_column("image", datasets.Image(decode=False)).to_dict()
    rows["image"][1] = {"bytes": b"no picture", "path": None}
    rows["image"][2] = None
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    found, report = found_in(tmp_path / "set")
    assert len(found) == 2
    assert [name for name, _ in report.rejected] == ["train/1", "train/2"]
    assert report.rejected[1][1] == "has no picture"


def test_a_set_without_pictures_or_that_is_not_there(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="with columns text; expected one of pictures"):
        found_in(tmp_path / "set")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot be had"):
        found_in(tmp_path / "nowhere")
