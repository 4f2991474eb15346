"""A person's own sound: every format, and everything that can be wrong with it."""

import json
import math

import numpy as np
import pytest

from diffkit_audio.data import load
from diffkit_audio.mel import MelSettings
from diffkit_audio.readers import Report, read, read_wave, resample, splits

soundfile = pytest.importorskip("soundfile")
SETTINGS = MelSettings()
RATE = SETTINGS.rate


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def tone(rate=RATE, seconds=0.5, hertz=441.0, channels=1, gain=0.5):
    """(samples, channels) of a sine."""
    time = np.arange(round(rate * seconds)) / rate
    return np.repeat((gain * np.sin(2 * math.pi * hertz * time)).astype(np.float32)[:, None], channels, 1)


def write(path, sound=None, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rate) if sound is None else sound, rate, **options)
    return path


def found_in(path, frames=172):
    rejected = []
    return list(read(path, SETTINGS, frames, rejected)), dict(rejected)


# Formats


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        (".wav", "PCM_U8", 1 / 128),
        (".wav", "PCM_16", 1 / 32768),
        (".wav", "PCM_24", 1e-6),
        (".wav", "PCM_32", 1e-6),
        (".wav", "FLOAT", 1e-6),
        (".wav", "DOUBLE", 1e-6),
        (".flac", "PCM_16", 1 / 32768),
        (".ogg", "VORBIS", 0.05),
        (".mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_is_read(suffix, subtype, error, tmp_path):
    wave = read_wave(write(tmp_path / f"a{suffix}", subtype=subtype), SETTINGS)
    assert wave.dtype == np.float32
    assert np.abs(wave[2000:9000] - tone()[2000:9000, 0]).max() < error


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000, 192000, 384000])
def test_every_rate_becomes_the_settings_rate(rate, tmp_path):
    wave = read_wave(write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT"), SETTINGS)
    assert abs(len(wave) - RATE // 2) <= 2
    assert np.abs(wave[500:-500] - tone()[500 : len(wave) - 500, 0]).max() < 5e-3


@pytest.mark.parametrize("rate", [5003, 22061, 44101, 47999, 999_983])
def test_odd_rates_keep_the_pitch(rate):
    """The ratio of the rates is rounded; by how much, the phase tells over three seconds."""
    wave = resample(tone(rate, 4.0)[:, 0], rate, RATE)
    assert abs(len(wave) / RATE - 4) < 2e-3
    still = wave * np.exp(-2j * math.pi * 441 * np.arange(len(wave)) / RATE)
    smooth = np.convolve(still, np.ones(500) / 500, "valid")
    turns = np.unwrap(np.angle(smooth)) / (2 * math.pi)
    drift = (turns[-5000] - turns[5000]) / ((len(turns) - 10000) / RATE)
    assert abs(1200 * math.log2(1 + drift / 441)) < 0.5


def test_channels_are_averaged(tmp_path):
    sound = tone(channels=7) * np.arange(7, dtype=np.float32) / 7
    wave = read_wave(write(tmp_path / "a.wav", sound, subtype="FLOAT"), SETTINGS)
    assert np.allclose(wave, tone()[:, 0] * 3 / 7, atol=1e-6)


def test_what_is_too_loud_becomes_quieter_as_a_whole(tmp_path):
    wave = read_wave(write(tmp_path / "a.wav", tone(gain=8.0), subtype="FLOAT"), SETTINGS)
    assert np.abs(wave).max() == pytest.approx(1)
    assert np.allclose(wave, tone(gain=1.0)[:, 0], atol=2e-3)


# What cannot be used


def with_nan():
    sound = tone()
    sound[7] = np.nan
    sound[9] = np.inf
    return sound


BAD = {
    "empty.wav": (lambda p: p.write_bytes(b""), "is empty"),
    "noise.wav": (lambda p: p.write_bytes(bytes(range(256)) * 9), "cannot be read as sound"),
    "text.mp3": (lambda p: p.write_text("no music " * 99), "cannot be read as sound"),
    "cut.flac": (lambda p: p.write_bytes(b"fLaC\0\0\0\x22"), "cannot be read as sound"),
    "nothing.wav": (lambda p: write(p, np.zeros((0, 1))), "has no samples"),
    "short.wav": (lambda p: write(p, tone(seconds=0.05)), "has 0.05 s of sound; expected at least 0.0929 s"),
    "slow.wav": (lambda p: write(p, tone(100, 9.0, 5.0), 100), "has 100 samples per second; expected 1000"),
    "holes.wav": (lambda p: write(p, with_nan(), subtype="FLOAT"), "has 2 samples that are not finite"),
}


def test_what_cannot_be_used_is_named_and_the_rest_is_used(tmp_path):
    for name, (make, _) in BAD.items():
        make(tmp_path / name)
    write(tmp_path / "good.wav")
    write(tmp_path / ".hidden.wav")
    (tmp_path / "notes.txt").write_text("of no interest")
    found, rejected = found_in(tmp_path)
    assert [name for name, _, _ in found] == ["good.wav#0"]
    assert set(rejected) == set(BAD)
    for name, (_, said) in BAD.items():
        assert said in rejected[name], name


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match="no sound in it"):
        found_in(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 files usable: a\.wav is empty"):
        found_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        found_in(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"ends in \.wav"):
        found_in(tmp_path / "a.txt")


def test_a_report_is_short_and_counts_all(tmp_path):
    said = str(Report(tmp_path, 3, [(f"{k}.wav", "is empty") for k in range(20)]))
    assert "3 of 23 files used" in said and "0.wav is empty" in said and said.endswith("and 12 more")


# What is said of the files


def test_captions_are_those_of_the_metadata_and_missing_files_are_named(tmp_path):
    for name in ("a", "b", "in/c"):
        write(tmp_path / f"{name}.wav")
    rows = ["file_name,text,pitch", 'a.wav,"a long, deep hum",60', "in\\c.wav,a hiss,", "gone.wav,lost,", ",none,"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    found, rejected = found_in(tmp_path)
    clips = {name: clip for name, _, clip in found}
    assert (clips["a.wav#0"].caption, clips["a.wav#0"].pitch) == ("a long, deep hum", 60)
    assert (clips["b.wav#0"].caption, clips["b.wav#0"].instrument) == ("", "")
    assert (clips["in/c.wav#0"].caption, clips["in/c.wav#0"].instrument) == ("a hiss", "in")
    assert rejected == {
        "gone.wav": "is not there, though metadata.csv names it",
        "metadata.csv": "has a row without file_name",
    }


def test_metadata_may_be_json_lines_in_a_folder_below(tmp_path):
    write(tmp_path / "deep" / "a.wav")
    rows = [
        json.dumps({"file_name": "a.wav", "text": "zwitschern \N{BIRD}", "velocity": 90, "duration": 0.5}),
        "",
        "{not json",
        "[1, 2]",
        json.dumps({"file_name": "../outside.wav", "text": "x"}),
    ]
    (tmp_path / "deep" / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    rejected = []
    [(_, _, clip)] = read(tmp_path, SETTINGS, 172, rejected)
    assert (clip.caption, clip.velocity, clip.duration, clip.pitch) == ("zwitschern \N{BIRD}", 90, 0.5, None)
    assert rejected == [
        ("deep/metadata.jsonl", "has no JSON object in line 3"),
        ("deep/metadata.jsonl", "has no JSON object in line 4"),
        ("deep/../outside.wav", "is not there, though deep/metadata.jsonl names it"),
    ]


@pytest.mark.parametrize(
    ("column", "value"), [("pitch", "C4"), ("velocity", "0"), ("pitch", "nan"), ("duration", "inf")]
)
def test_numbers_that_are_none_are_refused(column, value, tmp_path):
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,{column}\na.wav,{value}")
    found, rejected = found_in(tmp_path)
    assert [name for name, _, _ in found] == ["b.wav#0"]
    assert f"has {column}={value} in its metadata" in rejected["a.wav"]


def test_folders_are_instruments_and_captions(tmp_path):
    write(tmp_path / "dog_bark" / "one.wav")
    write(tmp_path / "rain" / "two.ogg")
    found, _ = found_in(tmp_path)
    assert [(clip.instrument, clip.caption) for _, _, clip in found] == [("dog_bark", "dog bark"), ("rain", "rain")]


def test_a_long_file_gives_several_examples(tmp_path):
    """Of 100 frames each; of the last, at least half must be there."""
    hop, wave = SETTINGS.hop, tone(seconds=3.0)
    for extra, expected in ((49, 2), (50, 3)):
        write(tmp_path / "a.wav", wave[: (200 + extra) * hop], subtype="FLOAT")
        found, _ = found_in(tmp_path / "a.wav", 100)
        assert [name for name, _, _ in found] == [f"a.wav#{k}" for k in range(expected)]
        assert np.array_equal(
            np.concatenate([c.wave for _, _, c in found]), wave[: (200 + extra * (expected > 2)) * hop, 0]
        )


# Splits


def test_the_parts_of_a_file_are_in_one_split_and_all_splits_are_there():
    names = [f"{k}.wav#{part}" for k in range(400) for part in range(3)]
    found = splits(names).reshape(400, 3)
    assert (found == found[:, :1]).all()
    assert np.allclose(np.bincount(found[:, 0]) / 400, [0.9, 0.05, 0.05], atol=0.03)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_even_a_few_files_give_some_to_train_and_some_to_validate(count):
    found = splits([f"{k}.wav#0" for k in range(count)])
    assert {0, 1} <= set(found.tolist())


def test_folders_that_are_splits_are_no_instruments(tmp_path):
    for name in ("train/dog/a", "train/b", "validation/dog/c", "test/dog/d"):
        write(tmp_path / f"{name}.wav")
    packed = load("train", path=tmp_path).packed
    assert packed.names == ("test/dog/d.wav#0", "train/b.wav#0", "train/dog/a.wav#0", "validation/dog/c.wav#0")
    assert packed.splits.tolist() == [2, 0, 0, 1]
    assert packed.instruments == ("dog",)
    assert packed.instrument.tolist() == [0, -1, 0, 0]
