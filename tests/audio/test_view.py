"""The files and pictures that clips become."""

import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from diffkit_audio import picture, view
from diffkit_audio.clip import Clip


def tone(hertz: float = 440, peak: float = 0.5, rate: int = 22050, seconds: float = 0.5, **known: object) -> Clip:
    time = np.arange(round(rate * seconds)) / rate
    return Clip((peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate, **known)  # type: ignore[arg-type]


BROKEN = Clip(np.full(9, np.nan, np.float32), 22050)
EMPTY = Clip(np.zeros(0, np.float32), 22050)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_a_wav_file_is_pcm_16_at_the_clips_own_rate(rate: int, tmp_path: Path) -> None:
    clip = tone(rate=rate)
    report = view.save([clip], tmp_path)
    with wave.open(str(tmp_path / "0000.wav")) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (rate, 2, 1)
        written = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert np.abs(written - clip.wave).max() <= 1 / 32768
    expected = {"drawn": 1, "written": 1, "seconds": [0.5], "rates": [rate], "made_quieter": 0, "format": "wav"}
    assert report == expected


def test_float_keeps_every_bit(tmp_path: Path) -> None:
    clip = tone()
    view.save([clip], tmp_path, "float")
    written, _ = soundfile.read(tmp_path / "0000.wav", dtype="float32")
    assert soundfile.info(tmp_path / "0000.wav").subtype == "FLOAT" and np.array_equal(written, clip.wave)


@pytest.mark.parametrize("format", ["wav", "float"])
def test_what_would_clip_is_made_quieter_and_keeps_its_shape(format: str, tmp_path: Path) -> None:
    loud = tone(peak=3.0)
    assert view.save([loud, tone()], tmp_path, format)["made_quieter"] == 1
    written, _ = soundfile.read(tmp_path / "0000.wav")
    assert np.abs(written).max() == pytest.approx(1, abs=1e-4)
    assert np.allclose(written, loud.wave / np.abs(loud.wave).max(), atol=1e-4)


def test_what_is_no_sound_has_no_file_and_is_counted(tmp_path: Path) -> None:
    report = view.save([BROKEN, tone(), EMPTY, None], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0001.png", "0001.wav", "preview.png"]
    assert report["drawn"] == 4 and report["written"] == 1
    assert view.save([], tmp_path)["seconds"] == []


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got format 'flot'; expected wav, .* did you mean 'float'"):
        view.save([], tmp_path, "flot")


@pytest.mark.parametrize("hertz", [300, 1000, 5000])
def test_a_tone_is_a_bright_line_at_its_height(hertz: float) -> None:
    """128 bands on the HTK mel scale from 20 Hz to half the rate; the highest is at the top."""
    image = np.asarray(picture.draw(tone(hertz, seconds=1.0), (43, 128)).convert("L"), float)
    mel = 2595 * np.log10(1 + np.array([20, hertz, 11025]) / 700)
    place = 129 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 1
    assert abs(127 - image[:, 20].argmax() - place) <= 1
    assert image[:, 20].max() > 5 * np.median(image[:, 20])


def test_silence_and_short_clips_have_pictures() -> None:
    dark = np.asarray(picture.draw(Clip(np.zeros(3, np.float32), 22050)))
    assert dark.max() <= 30
    assert picture.draw(EMPTY).size == (640, 256) and picture.draw(BROKEN, (10, 10)).size == (10, 10)


def test_the_contact_sheet_has_a_panel_for_each(tmp_path: Path) -> None:
    view.save([tone(), None, tone(880)], tmp_path)
    sheet = Image.open(tmp_path / "preview.png")
    assert sheet.width > 2 * picture.PANEL[0] and sheet.height > 2 * picture.PANEL[1]
    assert picture.contact_sheet([], []).width > 0


def test_captions_say_what_was_asked_for() -> None:
    said = view.caption(3, tone(instrument="Flute", pitch=81, velocity=40, duration=0.5))
    assert said == "0003  Flute, A5, velocity 40, 0.5 s"
    assert view.caption(0, tone(caption="a  dog")) == "0000  a  dog" and view.caption(1, None) == "0001"
