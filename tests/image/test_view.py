"""The files and pictures that pictures become."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffkit_image import Image as Adapter
from diffkit_image import view
from diffkit_image.record import Picture


def picture(wide: int = 20, tall: int = 12, mode: str = "RGBA", **known: str) -> Picture:
    """Red at the left and, if it can be, transparent at the right."""
    pixels = np.zeros((tall, wide, 4), np.uint8)
    pixels[:, : wide // 2] = (255, 0, 0, 255)
    return Picture(Image.fromarray(pixels, "RGBA").convert(mode), **known)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_colours_and_transparency_are_kept_to_the_bit(format: str, tmp_path: Path) -> None:
    report = view.save([picture(), picture(8, 8)], tmp_path, format)
    with Image.open(tmp_path / f"0000.{format}") as image:
        assert image.mode == "RGBA" and np.array_equal(np.asarray(image), np.asarray(picture().image))
    assert report == {"drawn": 2, "written": 2, "sizes": ["20x12", "8x8"], "format": format}


def test_jpeg_is_on_white(tmp_path: Path) -> None:
    view.save([picture(32, 32)], tmp_path, "jpg")
    with Image.open(tmp_path / "0000.jpg") as image:
        assert image.mode == "RGB" and image.format == "JPEG"
        assert np.abs(np.asarray(image)[4, 28].astype(int) - 255).max() < 4
        assert np.abs(np.asarray(image)[4, 4].astype(int) - (255, 0, 0)).max() < 6


def test_what_is_no_picture_has_no_file_and_is_counted(tmp_path: Path) -> None:
    report = view.save([None, picture()], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0001.png", "preview.png"]
    assert report["drawn"] == 2 and report["written"] == 1
    assert view.save([], tmp_path)["sizes"] == []


def test_a_format_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="got format 'pgn'; expected one of png, jpg, webp; did you mean 'png'"):
        replace(Adapter(), format="pgn")


def test_transparency_is_shown_on_squares() -> None:
    shown = np.asarray(view.on_checkerboard(picture(32, 32).image, square=8))
    assert (shown[:, :16] == (255, 0, 0)).all()
    assert {tuple(c) for c in shown[:, 16:].reshape(-1, 3).tolist()} == {(255, 255, 255), (226, 226, 230)}
    assert (shown[0, 24] != shown[0, 16]).all() and (shown[8, 16] == shown[0, 24]).all()


def test_the_contact_sheet_enlarges_small_pictures_by_whole_numbers_and_shrinks_large_ones() -> None:
    small = view.contact_sheet([picture(32, 32, caption="smiling cat")])
    assert small.size == (128 + 2 * view.GAP, 128 + view.CAPTION + 2 * view.GAP)
    red = np.asarray(small)[view.GAP : view.GAP + 128, view.GAP : view.GAP + 64]
    assert (red == (255, 0, 0)).all()
    large = view.contact_sheet([picture(2000, 500, "RGB"), None])
    assert large.size == (2 * (256 + view.GAP) + view.GAP, 64 + view.CAPTION + 2 * view.GAP)
    assert view.contact_sheet([]).size[0] > 0
    assert view.contact_sheet([picture()] * 200).size[1] < 1000
