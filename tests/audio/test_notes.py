"""Notes: names, captions, words of recordings, and a soundfont of one sine."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from diffkit_audio import soundfont
from diffkit_audio.captions import HELD_OUT, held_out, note_name, write
from diffkit_audio.clip import Clip
from diffkit_audio.instruments import ALIASES, DRUMS, FAMILIES, INSTRUMENTS, PROGRAMS, family_of
from diffkit_audio.speech import spoken

# Names


def test_general_midi_has_sixteen_families_of_eight_and_47_drums():
    assert (len(PROGRAMS), len(DRUMS), len(set(INSTRUMENTS)), len(FAMILIES)) == (128, 47, 175, 17)
    assert [family_of(name) for name in PROGRAMS] == [family for family in FAMILIES[:16] for _ in range(8)]
    assert {family_of(name) for name in DRUMS} == {"Drums"} and family_of("dog") == "dog"
    known = {0: "Acoustic Grand Piano", 40: "Violin", 56: "Trumpet", 73: "Flute", 127: "Gunshot"}
    assert {k: INSTRUMENTS[k] for k in known} == known
    keys = {
        36: "Bass Drum 1",
        38: "Acoustic Snare",
        42: "Closed Hi-Hat",
        49: "Crash Cymbal 1",
        56: "Cowbell",
        81: "Open Triangle",
    }
    assert {k: DRUMS[k - 35] for k in keys} == keys


def test_no_two_instruments_have_a_name_in_common():
    names = [alias.lower() for name in INSTRUMENTS for alias in (name, *ALIASES.get(name, ()))]
    assert len(names) == len(set(names)) and set(ALIASES) <= set(INSTRUMENTS)


@pytest.mark.parametrize(("pitch", "name"), [(60, "C4"), (69, "A4"), (36, "C2"), (95, "B6"), (70, "A#4"), (0, "C-1")])
def test_notes_have_their_names(pitch, name):
    assert note_name(pitch) == name
    assert note_name(pitch, flat=True) == name.replace("A#", "Bb")


# Captions

NOTE = Clip(np.zeros(0, np.float32), 22050, "", "Flute", 81, 40, 1.5)


def every():
    for name in PROGRAMS[::17]:
        for pitch in range(36, 96, 12):
            for velocity in soundfont.VELOCITIES:
                for duration in soundfont.DURATIONS:
                    yield replace(NOTE, instrument=name, pitch=pitch, velocity=velocity, duration=duration)


def test_captions_say_what_is_true_in_many_ways():
    said = write(NOTE)
    assert said == write(replace(NOTE)) and len(set(said)) >= 5
    names = [alias.lower() for alias in ("Flute", "pipe", *ALIASES["Flute"])]
    assert all(any(name in caption for name in names) for caption in said)
    assert sum("A5" in caption for caption in said) >= 3
    loud, short = ("loud", "hard", "force", "fortissimo"), ("short", "brief", "staccato", "clipped")
    assert not any(word in caption for caption in said for word in (*loud, *short))
    wordings = {caption for clip in every() for caption in write(clip)}
    assert len(wordings) > 250


def test_no_caption_of_the_data_is_in_a_held_out_wording():
    data = {caption for clip in every() for caption in write(clip)}
    unseen = {caption for clip in every() for caption in held_out(clip)}
    assert len(held_out(NOTE)) == len(HELD_OUT) and not data & unseen


def test_there_are_few_enough_captions_to_embed():
    """What only the velocity or the duration tells apart is said of the instrument, at all pitches alike."""
    clips = [replace(c, instrument="Oboe") for c in every()]
    noted = {caption for clip in clips for caption in write(clip)[:4]}
    assert len(noted) <= 1 + 3 * 5


def test_drums_have_captions_without_a_note_and_own_captions_come_alone():
    said = write(Clip(NOTE.wave, 22050, "", "Cowbell", None, 120, None))
    assert len(said) == 3 and all("cow" in caption for caption in said)
    assert write(replace(NOTE, caption="my flute")) == ("my flute",)
    assert write(Clip(NOTE.wave, 22050)) == ()


# Words


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("digits/7", "number", "seven"),
        ("digits/19", "number", "nineteen"),
        ("digits/90", "number", "ninety"),
        ("digits/h-9", "ordinal", "ninth"),
        ("digits/h-12", "ordinal", "twelfth"),
        ("digits/h-40", "ordinal", "fortieth"),
        ("digits/h-hundred", "ordinal", "hundredth"),
        ("digits/mon-0", "month", "January"),
        ("digits/day-6", "day", "Saturday"),
        ("digits/p-m", "number", "PM"),
        ("letters/q", "letter", "the letter Q"),
        ("letters/ascii92", "letter", "backslash"),
        ("letters/exclaimation-point", "letter", "exclamation point"),
        ("phonetic/z_p", "phonetic", "zulu"),
        ("phonetic/9_p", "phonetic", "nine"),
    ],
)
def test_recordings_are_called_by_what_is_said(name, kind, words):
    assert spoken(name) == (kind, words)


# A soundfont


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def lists(name: bytes, *parts: bytes) -> bytes:
    return chunk(b"LIST", name + b"".join(parts))


def sine_font() -> bytes:
    """Programs 0 of banks 0 and 128 are a sine of 440 Hz at key 69, looped until it is released."""
    wave = np.round(20000 * np.sin(2 * np.pi * np.arange(1000) / 100)).astype("<i2")
    names = [b"sine", b"drum", b"EOP"]
    presets = b"".join(
        struct.pack("<20sHHHIII", name, 0, bank, bag, 0, 0, 0)
        for bag, (name, bank) in enumerate(zip(names, (0, 128, 0), strict=True))
    )
    bags = b"".join(struct.pack("<HH", k, 0) for k in range(3))
    generators = struct.pack("<Hh", 41, 0) * 2 + struct.pack("<Hh", 0, 0)  # 41: instrument
    instruments = struct.pack("<20sH", b"sine", 0) + struct.pack("<20sH", b"EOI", 1)
    zones = struct.pack("<HH", 0, 0) + struct.pack("<HH", 2, 0)
    zone = struct.pack("<Hh", 54, 1) + struct.pack("<Hh", 53, 0) + struct.pack("<Hh", 0, 0)  # 54: loop; 53: sample
    sample = struct.pack("<20sIIIIIBbHH", b"sine", 0, 1000, 100, 900, 44000, 69, 0, 0, 1)
    sample += struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    modulators = struct.pack("<HHhHH", 0, 0, 0, 0, 0)
    data = lists(b"sdta", chunk(b"smpl", wave.tobytes() + b"\0" * 92))
    hydra = lists(
        b"pdta",
        chunk(b"phdr", presets),
        chunk(b"pbag", bags),
        chunk(b"pmod", modulators),
        chunk(b"pgen", generators),
        chunk(b"inst", instruments),
        chunk(b"ibag", zones),
        chunk(b"imod", modulators),
        chunk(b"igen", zone),
        chunk(b"shdr", sample),
    )
    info = lists(b"INFO", chunk(b"ifil", struct.pack("<HH", 2, 1)), chunk(b"INAM", b"sine\0\0"))
    return chunk(b"RIFF", b"sfbk" + info + data + hydra)


@pytest.fixture
def font(tmp_path):
    pytest.importorskip("tinysoundfont")
    (tmp_path / "sine.sf2").write_bytes(sine_font())
    return soundfont.Font(tmp_path / "sine.sf2")


@pytest.mark.parametrize("key", [57, 69, 81])
def test_a_note_has_its_pitch_and_its_length(font, key):
    wave = font.note(0, key, 100, 0.5)
    assert wave.shape == (44032,) and wave.dtype == np.float32
    held, after = wave[: round(0.5 * 22050)], wave[round(0.6 * 22050) :]
    assert np.abs(held).max() > 0.01 and np.abs(after).max() < 1e-4
    spectrum = np.abs(np.fft.rfft(held[:11000] * np.hanning(11000), 1 << 17))
    hertz = spectrum.argmax() * 22050 / (1 << 17)
    assert abs(1200 * np.log2(hertz / (440 * 2 ** ((key - 69) / 12)))) < 2


def test_notes_do_not_hear_each_other(font):
    alone = font.note(0, 60, 70, 1.5)
    font.note(0, 90, 127, 1.5)
    assert np.array_equal(font.note(0, 60, 70, 1.5), alone)


def test_one_gain_serves_an_instrument_at_a_pitch(font):
    clips = list(soundfont._played(font, 0, "Flute", 69))
    peaks = {clip.velocity: np.abs(clip.wave).max() for clip in clips}
    assert len(clips) == soundfont.EACH == len({(c.velocity, c.duration) for c in clips})
    assert sorted(peaks.values()) == [peaks[v] for v in sorted(peaks)]
    assert max(peaks.values()) < soundfont.PEAK
    gain = soundfont._gain(font.note(0, 69, 127, 1.5))
    assert np.abs(font.note(0, 69, 127, 1.5) * gain).max() == pytest.approx(soundfont.PEAK)


def test_what_does_not_sound_is_no_note(font, monkeypatch):
    monkeypatch.setattr(font, "note", lambda *_: np.zeros(44032, np.float32))
    assert list(soundfont._played(font, 0, "Flute", 69)) == []


def test_splits_are_of_instrument_and_pitch_and_drums_are_for_training():
    clips = [replace(NOTE, instrument=name, pitch=pitch) for name in PROGRAMS for pitch in soundfont.PITCHES]
    found = [soundfont.split_of(clip) for clip in clips]
    assert found == [soundfont.split_of(replace(clip, velocity=100, duration=0.25)) for clip in clips]
    shares = [found.count(split) / len(found) for split in ("train", "valid", "test")]
    assert np.allclose(shares, [0.9, 0.05, 0.05], atol=0.01)
    assert soundfont.split_of(Clip(NOTE.wave, 22050, "", "Cowbell", None, 100)) == "train"


def test_what_is_no_soundfont_is_refused(tmp_path):
    pytest.importorskip("tinysoundfont")
    (tmp_path / "a.sf2").write_bytes(b"RIFF of another kind")
    with pytest.raises(ValueError, match="no soundfont"):
        soundfont.Font(tmp_path / "a.sf2")
