"""Figures of merit of clips: hand-made cases, closed forms, and real notes that are their own floor."""

import math
from collections import Counter
from dataclasses import replace
from importlib import util

import numpy as np
import pytest
import torch

from diffkit_audio import ears, metrics
from diffkit_audio.classifier import SETTINGS, Classifier
from diffkit_audio.clip import Clip
from diffkit_audio.instruments import INSTRUMENTS
from diffkit_audio.metrics import Notes, Reference, evaluate, heard, matched, nearest, usable, with_floor
from diffkit_audio.spread import has_pitch, playable, spread

RATE = SETTINGS.rate
PIANO, FLUTE, GUNSHOT = "Acoustic Grand Piano", "Flute", "Gunshot"


def tone(key: float, instrument: str = FLUTE, seconds: float = 2.0, rate: int = RATE, asked: int | None = None) -> Clip:
    """A sine of this pitch; of a piano, with two harmonics."""
    t = np.arange(round(seconds * rate)) / rate
    f = 440 * 2 ** ((key - 69) / 12)
    wave = sum(np.sin(2 * np.pi * f * h * t) / h for h in range(1, 4 if instrument == PIANO else 2))
    return Clip((0.3 * wave).astype(np.float32), rate, instrument=instrument, pitch=asked or round(key))


def notes(clips: list[Clip], mel: bool = True) -> Notes:
    waves = heard(clips)
    found = metrics._mels(waves).numpy() if mel else None
    integers = (waves * 32767).round().numpy().astype(np.int16)
    pitches = np.array([math.nan if clip.pitch is None else clip.pitch for clip in clips])
    return Notes(integers, found, RATE, [clip.instrument for clip in clips], pitches, np.arange(len(clips)))


def classifier() -> Classifier:
    """One that has learned nothing, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier().eval()


def test_what_is_heard() -> None:
    clips = [tone(69, seconds=0.5), tone(69, seconds=3), tone(69, rate=44100), tone(69, rate=8000)]
    waves = heard(clips)
    assert waves.shape == (4, 172 * 256)
    assert (
        torch.equal(waves[0, : RATE // 2], torch.from_numpy(clips[0].wave[: RATE // 2])) and not waves[0, 11100:].any()
    )
    for row in waves[2:]:  # resampled: the same sine
        assert (row - waves[1])[1000:43000].abs().max() < 2e-3


def test_what_is_no_sound() -> None:
    good = tone(69)
    broken = replace(good, wave=np.full(9, np.nan, np.float32))
    silent, empty = (replace(good, wave=np.zeros(n, np.float32)) for n in (9, 0))
    assert [usable(clip) for clip in (good, broken, silent, empty, None)] == [True, False, False, False, False]


@pytest.mark.parametrize("mel", [True, False])
def test_the_nearest_note_by_hand(mel: bool) -> None:
    train = notes([tone(60, PIANO), tone(64, PIANO), tone(60, FLUTE)], mel)
    louder = [replace(tone(k, PIANO), wave=2 * tone(k, PIANO).wave) for k in (60, 64)]
    sounds = metrics._mels(heard([tone(64, PIANO), *louder, tone(60, FLUTE)]))
    found = nearest(sounds, [PIANO, PIANO, PIANO, GUNSHOT], train)
    assert found[0] == pytest.approx(0, abs=0.6)  # the wave was rounded to 16 bits
    above = 20 * math.log10(2)  # everywhere but where both are under the floor
    assert 0 < found[1] <= above and 0 < found[2] <= above
    assert found[3].isnan()
    scale = 20 / math.log(10)
    assert nearest(sounds[:1] + 1, [PIANO], notes([tone(64, PIANO)])) == pytest.approx(scale, rel=0.05)


def test_each_sample_has_its_real_note() -> None:
    known = notes([tone(k, name) for name in (PIANO, FLUTE) for k in (40, 50, 60)])
    samples = [tone(52, PIANO), tone(52, PIANO), tone(52, PIANO), tone(41), tone(60), tone(60, GUNSHOT), tone(1, PIANO)]
    found = matched(samples, known)
    assert [clip.pitch for clip in found[:5]] == [50, 60, 40, 40, 60]
    assert [clip.instrument for clip in found[:5]] == [PIANO] * 3 + [FLUTE] * 2
    assert len(found) == 6 and found[5].instrument == PIANO  # no gunshot; for a fourth piano, again from the start
    nameless = matched([replace(tone(50), instrument="")] * 2, known)
    assert len(nameless) == 2


def test_shares_of_what_was_asked_for() -> None:
    judge = classifier()
    said = torch.zeros(4, len(INSTRUMENTS))
    for row, name in enumerate([PIANO, "Harpsichord", FLUTE, PIANO]):
        said[row, INSTRUMENTS.index(name)] = 1
    clips = [tone(60, PIANO), tone(60, PIANO), tone(60, PIANO), tone(60, "my own")]
    found = metrics.asked_for(clips, said, judge)
    assert (found["instrument"].value, found["family"].value) == (1 / 3, 2 / 3)
    assert found["family"].n == 3
    assert metrics.asked_for(clips[3:], said[3:], judge) == {}


def test_the_share_in_tune_counts_pitched_clips_alone() -> None:
    clips = [tone(60.3, asked=60), tone(60.7, asked=60), tone(60, GUNSHOT), replace(tone(60), pitch=None)]
    found = metrics.in_tune(clips, heard(clips))["pitch within 50 cents"]
    assert (found.value, found.n) == (0.5, 2)
    assert metrics.in_tune(clips[2:], heard(clips[2:])) == {}


def test_real_notes_score_their_own_floor() -> None:
    held_out = [tone(k, name) for name in (PIANO, FLUTE) for k in range(50, 80, 6)]
    train = notes([tone(k, name) for name in (PIANO, FLUTE) for k in range(52, 82, 6)])
    columns = with_floor(held_out, notes(held_out), train, classifier(), again=lambda clips: clips)
    assert list(columns) == ["model", "held-out, encoded and decoded", "held-out (floor)"]
    for name, metric in columns["held-out (floor)"].items():
        assert columns["model"][name].value == pytest.approx(metric.value, abs=0.05), name
    assert columns["model"]["pitch within 50 cents"].value == 1.0
    assert columns["model"]["usable"].n == len(held_out)


def test_copies_of_the_training_notes_are_at_no_distance() -> None:
    clips = [tone(k, PIANO) for k in range(50, 80, 5)]
    found = evaluate(clips, Reference.of(notes(clips), classifier(), {}))
    assert found["FD-notes"].value < 1e-2
    assert found["nearest note"].value < 0.6


def test_what_cannot_be_used_is_counted_and_left_out() -> None:
    reference = Reference.of(notes([tone(k) for k in (50, 60, 70)]), classifier(), {})
    silent = replace(tone(60), wave=np.zeros(100, np.float32))
    found = evaluate([tone(50), tone(60), silent, tone(70)], reference)
    assert (found["usable"].value, found["usable"].n) == (0.75, 4)
    assert found["pitch within 50 cents"].n == 3
    assert list(evaluate([silent], reference)) == ["usable"]


def test_no_floor_where_no_such_note_was_kept() -> None:
    clips = [tone(k, "my own") for k in (50, 60, 70)]
    assert list(with_floor(clips, notes([tone(60)]), notes(clips), classifier())) == ["model"]


def test_an_ear_of_ones_own() -> None:
    clips = [tone(k) for k in (50, 60, 70)]
    loudness = {"loudness": lambda waves: waves.square().mean(1, keepdim=True)}
    columns = with_floor(clips, notes(clips), notes(clips), classifier(), ears=loudness)
    assert columns["model"]["FD-loudness"].value == pytest.approx(0, abs=1e-6)


@pytest.mark.skipif(util.find_spec("aisfx") is None, reason="needs aisfx")
def test_aisfx_tells_sounds_apart() -> None:
    ear = ears.installed()["aisfx"]
    waves = heard([tone(60), tone(60.2), replace(tone(60), wave=np.random.default_rng(0).normal(0, 0.1, 44032))])
    found = ear(waves)
    assert found.shape == (3, 512)
    assert (found[0] - found[1]).norm() < (found[0] - found[2]).norm() / 3


def test_prompts_are_spread_evenly() -> None:
    ranges = playable(INSTRUMENTS, {FLUTE: (60, 90)})
    found = spread(range(500), ranges)
    counts = Counter(name for name, _ in found)
    assert set(counts) == set(ranges) and max(counts.values()) - min(counts.values()) <= 1
    keys = [key for _, key in found if key is not None]
    assert len(keys) == 500 and min(keys) == 36 and max(keys) == 95
    assert all(60 <= key <= 90 for name, key in found if name == FLUTE and key is not None)
    octaves = Counter((key - 36) // 12 for key in keys)
    assert max(octaves.values()) < 1.25 * min(octaves.values())
    one = [key for name, key in spread(range(60 * len(ranges)), ranges) if name == PIANO]
    assert len(set(one)) > 45 and len(one) == 60


def test_a_sample_is_asked_for_the_same_in_any_batch() -> None:
    ranges = playable(INSTRUMENTS)
    assert spread([7, 300], ranges) == [spread(range(500), ranges)[k] for k in (7, 300)]
    assert [spread([k], {FLUTE: (60, 60)})[0] for k in (0, 5)] == [(FLUTE, 60)] * 2


def test_which_instruments_are_asked_for() -> None:
    assert has_pitch(PIANO) and has_pitch("my own") and not has_pitch(GUNSHOT) and not has_pitch("Hand Clap")
    assert GUNSHOT not in playable(INSTRUMENTS) and len(playable(INSTRUMENTS)) > 95
    drums = playable(INSTRUMENTS, family="Drums")
    assert len(drums) == 47 and {key for _, key in spread(range(47), drums)} == {None}
    assert len(playable(INSTRUMENTS, family="Sound Effects")) == 8
