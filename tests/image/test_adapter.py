"""The adapter: what can be asked for, and a model from end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffkit import text
from diffkit.condition import Condition
from diffkit.modality import Request
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit_image import Image
from diffkit_image.record import Picture

coding = pytest.importorskip("diffkit_image.autoencoder")

STATISTICS = {
    "mean": [0.5, -1.0, 0.0, 2.0],
    "scale": [2.0, 1.0, 0.5, 1.5],
    "categories": ["cat-face", "animal-mammal", "geometric"],
    "vocabulary": ["blue", "cat", "circle", "dog", "face", "smiling"],
    "names": [["smiling cat face", "cat face"], ["dog", "cat"], ["blue circle"]],
}
CONDITIONS = ("category", "words")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder of diffusers, of two pixels to a place."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    options = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }
    coding.export(coding.build("AutoencoderKL", in_channels=4, out_channels=4, **options), folder, torch.float32)
    return str(folder)


@pytest.fixture
def adapter(autoencoder):
    def make(**fields):
        known = {"conditions": CONDITIONS, "size": (16, 16), "autoencoder": autoencoder, "statistics": STATISTICS}
        return Image(**{**known, **fields})

    return make


@pytest.fixture
def layout(adapter):
    return lambda request, count=3, **fields: adapter(**fields).layout(count, Noise.of(0, count), request)


def asked(condition: Condition, row: int = 0):
    """What is given, by name."""
    found = {}
    if condition.present["category"][row]:
        found["category"] = STATISTICS["categories"][int(condition.values["category"][row])]
    if condition.present["words"][row]:
        found["words"] = [STATISTICS["vocabulary"][k] for k in condition.values["words"][row].nonzero().flatten()]
    return found


def test_a_prompt_is_read_by_its_words(layout):
    assert asked(layout(Request("Smiling cats!")).condition) == {"category": "cat-face", "words": ["cat", "smiling"]}


def test_named_values_go_before_the_prompt(layout):
    request = Request("smiling cat", {"category": "Animal mammal"})
    assert asked(layout(request).condition) == {"category": "animal-mammal", "words": ["cat", "smiling"]}
    request = Request(None, {"words": "blue, circle"})
    assert asked(layout(request).condition) == {"category": "geometric", "words": ["blue", "circle"]}
    assert asked(layout(Request(None, {"category": "geometric"})).condition) == {"category": "geometric"}
    request = Request("a cat", {"words": "blue dogs"})
    assert asked(layout(request).condition) == {"category": "animal-mammal", "words": ["blue", "dog"]}


def test_the_size_can_be_asked_for(layout):
    batch = layout(Request(None, {"size": "24x10"}))
    assert batch.x["latent"].shape == (3, 4, 5, 12) and batch.mask["latent"].shape == (3, 1, 5, 12)
    assert batch.mask["latent"].all()
    assert layout(Request(None, {"size": "32"})).x["latent"].shape == (3, 4, 16, 16)
    assert layout(Request()).x["latent"].shape == (3, 4, 8, 8)


def test_the_usual_size_is_that_of_most_training_pictures(layout):
    sizes = {"statistics": {**STATISTICS, "sizes": [[12, 20, 7], [16, 16, 5]]}, "size": None}
    assert layout(Request(), **sizes).x["latent"].shape == (3, 4, 6, 10)
    assert layout(Request(), size=None).x["latent"].shape == (3, 4, 32, 32)


def test_where_nothing_is_asked_for_samples_are_spread_over_what_was_learnt_by_their_numbers(adapter, layout):
    batch = layout(Request(), count=60)
    found = [asked(batch.condition, row) for row in range(60)]
    assert {one["category"] for one in found} == set(STATISTICS["categories"])
    assert all(one["words"] == ["blue", "circle"] for one in found if one["category"] == "geometric")
    alone = adapter().layout(1, Noise.of(0, 1, start=33), Request())
    assert asked(alone.condition) == found[33]
    bare = {k: v for k, v in STATISTICS.items() if k != "names"}
    assert {*asked(layout(Request(), statistics=bare).condition)} == {"category"}
    nothing = {**bare, "categories": []}
    assert not asked(layout(Request(), statistics=nothing).condition)


def test_what_is_not_asked_for_is_open(layout):
    assert asked(layout(Request("something blue and smiling")).condition) == {"words": ["blue", "smiling"]}


def test_words_that_are_not_known_are_said(layout):
    with pytest.warns(UserWarning, match="left out 'smilng', which this model has not learnt; did you mean 'smiling'"):
        assert asked(layout(Request("smilng cat")).condition)["words"] == ["cat"]


@pytest.mark.parametrize(
    ("prompt", "values", "said"),
    [
        (None, {"category": "cat-fase"}, "expected one of 3 names such as cat-face.*did you mean 'cat-face'"),
        (None, {"words": "walrus"}, "got words=walrus, none of which this model has learnt"),
        (None, {"colour": "red"}, "this model takes category, size, words"),
        (None, {"text": "red"}, "got the condition text; this model takes"),
        (None, {"size": "big"}, "got size=big; expected WIDTHxHEIGHT in pixels, such as 96x64"),
        (None, {"size": "15x16"}, "expected multiples of 2, .* for instance 16x16"),
        (None, {"size": "0"}, "got size=0; expected multiples of 2"),
        (None, {"size": "30000x64"}, "up to 4096, for instance 4096x64"),
        ("\U0001f408", {}, "none of whose words is known; expected some of the 6 words or 3 categories"),
        ("smilng", {}, "none of whose words is known; .*did you mean 'smiling'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(layout, prompt, values, said):
    with pytest.raises(ValueError, match=said):
        layout(Request(prompt, values))


def test_without_an_encoder_a_prompt_is_its_words(layout, monkeypatch):
    monkeypatch.setattr(text, "installed", lambda *_: False)
    conditions = (*CONDITIONS, "text")
    condition = layout(Request("smiling cat"), conditions=conditions).condition
    assert asked(condition)["words"] == ["cat", "smiling"]
    assert condition.values["text"].shape == (3, text.WIDTH) and not condition.present["text"].any()
    with pytest.raises(ValueError, match=r"pip install 'diffkit\[text\]'"):
        layout(Request("something nice"), conditions=conditions)


def test_with_an_encoder_a_prompt_is_its_words_and_its_vector(layout, monkeypatch):
    monkeypatch.setattr(text, "installed", lambda *_: True)
    monkeypatch.setattr(text, "embed", lambda said, name: np.array([[len(s), len(name)] for s in said], np.float32))
    fields = {"conditions": (*CONDITIONS, "text"), "encoder": "own", "encoder_width": 2}
    for prompt in ("a walrus, smiling", "\U0001f408" * 10_000):
        condition = layout(Request(prompt), **fields).condition
        assert condition.present["text"].all() and condition.values["text"].tolist() == [[len(prompt), 3]] * 3
    assert layout(Request(), **fields).condition.present["text"].all()
    with pytest.raises(ValueError, match=r"got vectors of width 2 .* modality.encoder_width=2"):
        layout(Request("cat"), **{**fields, "encoder_width": 384})


def picture(wide=16, tall=12, **known):
    pixels = np.random.default_rng(0).integers(0, 256, (tall, wide, 4)).astype(np.uint8)
    return Picture(Pillow.fromarray(pixels, "RGBA"), **known)


def test_a_record_becomes_its_latent_and_what_is_known_of_it(adapter):
    example = adapter().encode(picture(caption="smiling cats", category="cat-face"))
    assert example.x["latent"].shape == (4, 6, 8) and example.mask["latent"].shape == (1, 6, 8)
    assert example.condition["category"] == 0 and example.condition["words"].tolist() == [0, 1, 0, 0, 0, 1]
    unknown = adapter().encode(picture(caption="a walrus", category="tusks")).condition
    assert unknown["category"].isnan() and unknown["words"].isnan().all()


def test_latents_are_standardised_by_the_statistics(adapter):
    moments = {"mean": [0.0] * 4, "scale": [1.0] * 4}
    plain = adapter(statistics={**STATISTICS, **moments}).encode(picture()).x["latent"]
    mean, scale = (torch.tensor(STATISTICS[k]).reshape(-1, 1, 1) for k in ("mean", "scale"))
    assert torch.allclose(adapter().encode(picture()).x["latent"] * scale + mean, plain, atol=1e-5)


def test_a_picture_of_no_whole_number_of_places_is_cut_to_its_middle(adapter):
    whole, odd = picture(14, 12), picture(15, 13)
    assert adapter().encode(odd).x["latent"].shape == adapter().encode(whole).x["latent"].shape
    with pytest.raises(ValueError, match="got a picture of 1x9 pixels; expected at least 2x2"):
        adapter().encode(picture(1, 9))


def test_each_picture_of_a_batch_is_decoded_in_its_own_size(adapter):
    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 6, 8, dtype=torch.bool)
    mask[1, :, 4:] = mask[1, :, :, 5:] = False
    x = torch.where(mask, x, 0)
    first, second = adapter().decode({"latent": x}, {"latent": mask})
    assert (first.image.size, second.image.size) == ((16, 12), (10, 8)) and first.image.mode == "RGBA"
    alone = adapter().decode({"latent": x[1:, :, :4, :5]}, {"latent": mask[1:, :, :4, :5]})[0]
    assert np.array_equal(np.asarray(alone.image), np.asarray(second.image))
    broken = adapter().decode({"latent": x * torch.nan}, {"latent": mask})
    assert broken == [None, None] and not adapter().valid(broken[0])


@pytest.fixture(scope="module")
def model(autoencoder):
    network = {"width": 32, "layers": 1, "hidden": 32, "condition": 16}
    fields = {"name": "image", "conditions": CONDITIONS, "size": (8, 8), "statistics": STATISTICS}
    sampling = {"steps": 2, "sampler": "ddim", "grid": "even", "jump": "posterior"}
    torch.manual_seed(0)
    modality = {**fields, "autoencoder": autoencoder}
    return Model.of({"modality": modality, "network": network, "sampling": sampling})


def test_samples_say_what_they_were_asked_to_be(model, tmp_path: Path):
    samples = model.generate(2, prompt="smiling cat", condition={"size": "12x8"})
    assert [(s.category, s.caption, s.image.size) for s in samples.records] == [
        ("cat-face", "cat smiling", (12, 8))
    ] * 2
    assert samples.save(tmp_path)["result"]["sizes"] == ["12x8"]
    assert {p.name for p in tmp_path.iterdir()} == {"0000.png", "0001.png", "preview.png", "run.json"}


def test_guidance_away_from_something_else(model):
    assert model.generate(1, prompt="dog", negative="cat", guidance=2.0).records[0].category == "animal-mammal"


def test_a_sample_is_the_same_at_any_batch_size(model):
    one, all_ = (model.generate(3, batch_size=n).records for n in (1, 3))
    for a, b in zip(one, all_, strict=True):
        assert a.category == b.category
        assert np.abs(np.asarray(a.image, int) - np.asarray(b.image, int)).max() <= 1
