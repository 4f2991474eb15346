"""What pictures are called, and the public sets: emoji, clip art, silhouettes, where they are cached."""

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffkit.packages import members
from diffkit_image import animals, captions, clipart, noto, packed
from diffkit_image.sources import sample

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
        Image.new("RGBA", (64, 64), colour).save(folder / f"img/google/64/{name}.png")
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
