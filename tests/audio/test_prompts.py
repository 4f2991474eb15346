"""Prompts read by their words."""

import math

import pytest

from diffkit_audio.captions import NOTES, held_out, note_name, write
from diffkit_audio.clip import Clip
from diffkit_audio.instruments import ALIASES, DRUMS, INSTRUMENTS, PROGRAMS, family_of
from diffkit_audio.prompts import Asked, pitch_of, read


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("bright electric piano, C4", Asked(("Electric Piano 2",), 60)),
        ("soft flute, A5", Asked(("Flute",), 81, 40)),
        ("A5 on a flute, played softly", Asked(("Flute",), 81, 40)),
        ("a long, loud trumpet note: Bb3", Asked(("Trumpet",), 58, 120, 1.5)),
        ("TROMBONE ff 0.5s F#2", Asked(("Trombone",), 42, 120, 0.5)),
        ("violin, c sharp 4, pp, 250 ms", Asked(("Violin",), 61, 40, 0.25)),
        ("440 Hz on an oboe for half a second", Asked(("Oboe",), 69, None, 0.5)),
        ("middle C on a piano", Asked(("Acoustic Grand Piano",), 60)),
        ("two violins", Asked(("Violin",))),
        ("kick drum", Asked(("Bass Drum 1",))),
        ("a high tom, softly", Asked(("High Tom",), None, 40)),
        ("clean electric guitar, very short", Asked(("Electric Guitar (clean)",), None, None, 0.25)),
        ("charang lead in G", Asked(("Lead 5 (charang)",), 55)),
        ("velocity 90 cello, midi 48", Asked(("Cello",), 48, 90)),
        ("A flute", Asked(("Flute",))),
        ("something nice", Asked()),
        ("", Asked()),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, asked: Asked) -> None:
    assert read(prompt) == asked


@pytest.mark.parametrize("pitch", range(128))
def test_every_note_is_found_by_its_name(pitch: int) -> None:
    for flat in (False, True):
        name = note_name(pitch, flat)
        for text in (name, f"flute {name}", f"{name.lower()}, a flute", f"the note {name} on a flute"):
            assert pitch_of(text) == pitch, text


@pytest.mark.parametrize("hertz", [27.5, 65.41, 440, 1000, 4186])
def test_a_frequency_is_a_note_between_notes(hertz: float) -> None:
    assert pitch_of(f"{hertz} Hz") == pytest.approx(69 + 12 * math.log2(hertz / 440))
    assert pitch_of(f"{hertz / 1000}kHz") == pytest.approx(69 + 12 * math.log2(hertz / 440))


@pytest.mark.parametrize("text", ["0 Hz", "a 4 second note", "A flute", "4C", "1 b", "be2ter", "H4", "C4.5", "drum"])
def test_what_is_no_note(text: str) -> None:
    assert pitch_of(text) is None


@pytest.mark.parametrize("name", NOTES)
def test_a_note_without_an_octave_is_the_one_about_middle_c_or_where_it_is_asked_for(name: str) -> None:
    if name != "A":  # which is an article
        pitch = pitch_of(f"flute in {name}")
        assert pitch is not None and abs(pitch - 60) <= 6 and NOTES[int(pitch) % 12] == name
        high = pitch_of(f"a high {name} on a flute")
        assert high is not None and abs(high - 81) <= 6 and NOTES[int(high) % 12] == name


def test_every_instrument_is_found_by_all_its_names() -> None:
    for name in INSTRUMENTS:
        for called in (name, *ALIASES.get(name, ())):
            found = read(f"play {called} please").instruments
            assert name in found or {family_of(n) for n in found} == {family_of(name)}, called
        same = [other for other in INSTRUMENTS if other.rstrip(" 12") == name.rstrip(" 12")]
        assert set(read(name).instruments) & {*same}, name


def test_a_family_means_any_of_it() -> None:
    assert set(read("a reed instrument").instruments) == {n for n in PROGRAMS if family_of(n) == "Reed"}
    assert set(read("drums").instruments) == set(DRUMS)


def test_the_captions_of_the_data_are_read_as_what_they_say() -> None:
    """Those in words that a model learns from and those that it does not; a word can be read in two ways at times."""
    right = {"instrument": 0, "pitch": 0, "velocity": 0, "duration": 0}
    total = 0
    for k, instrument in enumerate(PROGRAMS):
        if family_of(instrument) in ("Sound Effects", "Synth Effects"):
            continue
        clip = Clip(
            None, 1, "", instrument, 36 + k * 7 % 60, (40, 70, 100, 120)[k % 4], (0.25, 0.5, 1.0, 1.5)[k // 4 % 4]
        )  # type: ignore[arg-type]
        for caption in held_out(clip)[-1:]:
            asked, total = read(caption), total + 1
            right["instrument"] += instrument in asked.instruments
            right["pitch"] += asked.pitch == clip.pitch
            right["velocity"] += asked.velocity == clip.velocity
            right["duration"] += asked.duration == clip.duration
    assert right["pitch"] == total
    assert min(right.values()) > 0.9 * total, (right, total)


def test_of_a_models_own_instruments() -> None:
    assert read("a dog barks", ["Dog", "Cat"]).instruments == ("Dog",)
    assert read("piano", ["Dog", "Cat"]).instruments == ()


@pytest.mark.parametrize("prompt", ["\U0001f3b9" * 10_000, "x " * 5000, "C4 " * 4000, "(" * 10_000, "♭♯#b" * 2500])
def test_long_and_strange_prompts_take_no_time(prompt: str) -> None:
    assert read(prompt).instruments == ()


def test_the_beginning_of_a_long_prompt_counts() -> None:
    assert read("flute A5 " + "and so on " * 2000) == Asked(("Flute",), 81)
    assert write(Clip(None, 1)) == ()  # type: ignore[arg-type]
