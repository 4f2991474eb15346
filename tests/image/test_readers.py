"""A person's own pictures: every format and mode, and everything that can be wrong with them."""

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from diffkit_image.data import load
from diffkit_image.readers import Report, Shape, decode, read, splits


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def ramp(mode="RGB", size=(24, 16)):
    """Red grows to the right, green downwards; opacity, where there is any, is half on the left."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    opacity = np.where(np.arange(size[0]) < size[0] // 2, 128, 255)[None].repeat(size[1], 0)
    pixels = np.stack([x, y, np.full_like(x, 80), opacity], -1).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def write(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (ramp() if image is None else image).save(path, **options)
    return path


def found_in(path, side=32):
    report = Report(str(path))
    return list(read(path, Shape(side, 8), report)), report


# Formats


@pytest.mark.parametrize(
    ("name", "mode", "error"),
    [
        ("a.png", "RGB", 0),
        ("a.png", "RGBA", 0),
        ("a.PNG", "L", 0),
        ("a.jpg", "RGB", 12),
        ("a.webp", "RGBA", 12),
        ("a.bmp", "RGB", 0),
        ("a.tiff", "RGBA", 0),
        ("a.gif", "P", 40),
        ("a.png", "P", 40),
        ("a.png", "LA", 0),
        ("a.png", "1", 0),
    ],
)
def test_every_format_is_read(name, mode, error, tmp_path):
    image = ramp().quantize(256) if mode == "P" else ramp(mode)
    found, note = decode(write(tmp_path / name, image))
    assert not note
    assert found.mode == ("RGBA" if "A" in mode else "RGB")
    wanted = ramp(found.mode) if mode == "P" else image.convert(found.mode)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max() <= error


def test_a_transparent_colour_of_a_palette_is_transparent(tmp_path):
    image = Image.new("P", (10, 10), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 5, 10))
    found, _ = decode(write(tmp_path / "a.gif", image, transparency=0))
    assert found.getpixel((0, 0))[3] == 0
    assert found.getpixel((9, 0)) == (255, 0, 0, 255)


def test_the_first_frame_of_an_animation_is_used_and_that_is_said(tmp_path):
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue", "green")]
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        found, note = decode(write(tmp_path / name, frames[0], save_all=True, append_images=frames[1:]))
        assert note == "has 3 frames (the first is used)"
        red, green, blue = found.convert("RGB").getpixel((3, 3))
        assert red > 240 and green < 15 and blue < 15


def test_cmyk_is_converted_and_that_is_said(tmp_path):
    for name in ("a.jpg", "a.tiff"):
        found, note = decode(write(tmp_path / name, Image.new("CMYK", (16, 16), (0, 255, 255, 0))))
        assert note == "is CMYK (converted without a profile)"
        assert np.abs(np.asarray(found).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_become_the_nearest_eight(name, tmp_path):
    values = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    found, note = decode(write(tmp_path / name, Image.fromarray(values)))
    assert note == "has more than 8 bits (8 are kept)"
    assert np.array_equal(np.asarray(found)[..., 1], np.rint(values / 257).astype(np.uint8))


def test_numbers_from_0_to_1_are_grey_and_others_refused(tmp_path):
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    found, _ = decode(write(tmp_path / "a.tiff", Image.fromarray(values)))
    assert np.array_equal(np.asarray(found)[..., 0], np.rint(values * 255))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        decode(write(tmp_path / "b.tiff", Image.fromarray(values * 7)))
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decode(write(tmp_path / "c.tiff", Image.fromarray(values)))


def test_a_photograph_is_turned_as_its_metadata_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    found, _ = decode(write(tmp_path / "a.png", exif=exif))
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(ramp()), -1))


# What is wrong


def huge_png(width, height):
    """The beginning of a picture that says how large it is."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def png_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


BAD = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"not a picture at all", "none that is known"),
    "cut.png": (png_of(Image.effect_noise((100, 100), 50))[:900], "cannot be read as a picture"),
    "cut.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", "cannot be read as a picture"),
    "one.png": (png_of(Image.new("RGB", (1, 1))), "has 1x1 pixels; expected at least 8"),
    "thin.png": (png_of(Image.new("RGB", (100, 3))), "has 100x3 pixels; expected at least 8"),
    "long.png": (png_of(Image.new("L", (30_000, 16))), "has 30000x16 pixels; expected sides of at most 4 : 1"),
    "huge.png": (huge_png(30_000, 30_000), "has 900 million pixels; expected at most 89 million"),
    "large.png": (huge_png(10_000, 10_000), "has 100 million pixels; expected at most 89 million"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_reason(name, tmp_path):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / name)


def test_good_files_are_used_and_bad_ones_listed(tmp_path):
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "good.png")
    write(tmp_path / "print.jpg", Image.new("CMYK", (16, 16)))
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    found, report = found_in(tmp_path)
    assert [one.name for one in found] == ["good.png", "print.jpg"]
    assert report.used == 2
    assert dict(report.rejected).keys() == BAD.keys()
    assert all(BAD[name][1] in reason for name, reason in report.rejected)
    assert str(report).startswith(f"{tmp_path}: 2 of 11 pictures used; left out: ")
    assert str(report).endswith("; and 1 more; used, but: print.jpg is CMYK (converted without a profile)")


def test_what_was_left_out_is_a_warning_once_and_again_from_the_cache(tmp_path):
    for k in range(3):
        write(tmp_path / f"good{k}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"3 of 4 pictures used; left out: bad\.png cannot be read"):
        load("train", path=tmp_path, pixels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load("train", path=tmp_path, pixels=True).packed) == 3


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no picture in it; expected files that end in .png"),
        ({"a.png": b"x", "b.jpg": b""}, "none of 2 files usable: a.png cannot be read"),
    ],
)
def test_nothing_usable_is_an_error(files, reason, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        found_in(tmp_path)


def test_a_path_that_is_not_there_or_no_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        found_in(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(ValueError, match="expected a folder, or a file that ends in"):
        found_in(tmp_path / "a.txt")


# What is said


def test_a_folder_is_the_category_and_the_text(tmp_path):
    write(tmp_path / "red_cars" / "a.png")
    write(tmp_path / "train" / "dogs" / "b.png")
    write(tmp_path / "test" / "c.png")
    found = {one.name: one for one in found_in(tmp_path)[0]}
    assert (found["red_cars/a.png"].captions, found["red_cars/a.png"].category) == (("red cars",), "red_cars")
    assert (found["train/dogs/b.png"].captions, found["train/dogs/b.png"].split) == (("dogs",), "train")
    assert (found["test/c.png"].captions, found["test/c.png"].category) == ((), "")
    assert found["test/c.png"].split == "test"


def test_metadata_and_texts_beside_a_picture(tmp_path):
    for name in ("a.png", "b.png", "in/c.png", "in/d.png"):
        write(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,text,category\na.png,a small cat,cats\ngone.png,none,\n,x,\n")
    rows = [json.dumps({"file_name": "c.png", "text": "a dog"}), "{broken", ""]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.txt").write_text("a bird\non a wire\n")
    found, report = found_in(tmp_path)
    said = {one.name: (one.captions, one.category) for one in found}
    assert said == {
        "a.png": (("a small cat",), "cats"),
        "b.png": (("a bird on a wire",), ""),
        "in/c.png": (("a dog",), "in"),
        "in/d.png": (("in",), "in"),
    }
    assert dict(report.rejected) == {
        "gone.png": "is not there, though metadata.csv names it",
        "metadata.csv": "has a row without file_name",
        "in/metadata.jsonl": "has no JSON object in line 2",
    }


def test_splits_are_stable_and_never_without_training():
    names = [f"{k}.png" for k in range(400)]
    found = splits(names)
    assert found == splits(names)
    assert [found[names.index(name)] for name in names[::-1]] == splits(names[::-1])
    assert 0.85 < found.count("train") / 400 < 0.95
    assert splits(["a/x.png"]) == ["train"]
    for k in range(60):
        assert "train" in splits([f"{k}.png"])
    assert "valid" in splits(["1.png", "2.png", "3.png"])


def test_another_file_gives_another_set(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    assert len(load("train", path=tmp_path, pixels=True).packed) == 2
    write(tmp_path / "c.png")
    assert len(load("train", path=tmp_path, pixels=True).packed) == 3
