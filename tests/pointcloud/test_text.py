"""Captions as a condition: vectors where the encoder is installed, words where it is not."""

import numpy as np
import pytest
import torch

from diffkit import text
from diffkit.modality import Request
from diffkit.noise import Noise
from diffkit_pointcloud import PointCloud
from diffkit_pointcloud.cloud import Cloud

STATISTICS = {"categories": ["chair", "table"], "counts": [5, 3]}


def layout(prompt):
    adapter = PointCloud(points=4, conditions=("category", "text"), statistics=STATISTICS)
    return adapter.layout(2, Noise.of(0, 2), Request(prompt)).condition


def test_without_the_encoder_a_prompt_is_its_category(monkeypatch):
    monkeypatch.setattr(text, "installed", lambda *_: False)
    condition = layout("an office chair")
    assert condition.values["category"].tolist() == [0, 0] and condition.present["category"].all()
    assert condition.values["text"].shape == (2, text.WIDTH) and not condition.present["text"].any()
    with pytest.raises(ValueError, match="none of whose words"):
        layout("a dinosaur")


def test_a_records_caption_becomes_a_vector(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "embed", lambda said, *_: np.array([[len(c)] * text.WIDTH for c in said], np.float32))
    adapter = PointCloud(points=4, conditions=("text",), statistics=STATISTICS)
    record = Cloud(np.eye(3, dtype=np.float32), caption="chair")
    assert adapter.encode(record).condition["text"].tolist() == [5.0] * text.WIDTH


@pytest.mark.skipif(not text.installed(), reason="needs the text extra")
def test_a_prompt_of_no_category_is_its_vector():
    condition = layout("a dinosaur")
    assert condition.present["text"].all() and not condition.present["category"].any()
    assert torch.allclose(condition.values["text"].norm(dim=1), torch.ones(2), atol=1e-5)
