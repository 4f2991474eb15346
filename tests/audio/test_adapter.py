"""The adapter: what can be asked for, and a model from end to end."""

import math

import numpy as np
import pytest
import torch

from diffkit import text
from diffkit.condition import Condition
from diffkit.modality import Request
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit_audio import Audio
from diffkit_audio.clip import Clip
from diffkit_audio.instruments import INSTRUMENTS
from diffkit_audio.mel import MelSettings, lower_silence, raise_silence

STATISTICS = {"mean": -8.0, "scale": 1.25, "instruments": list(INSTRUMENTS)}
CONDITIONS = ("instrument", "pitch", "velocity", "duration")


def adapter(**fields):
    return Audio(**{"conditions": CONDITIONS, "seconds": 0.5, "statistics": STATISTICS, **fields})


def layout(request, count=4, **fields):
    return adapter(**fields).layout(count, Noise.of(0, count), request)


def asked(condition: Condition, row: int = 0):
    """What is given, by name."""
    given = {k: float(v[row]) for k, v in condition.values.items() if v.ndim == 1 and condition.present[k][row]}
    return given | ({"instrument": INSTRUMENTS[int(given["instrument"])]} if "instrument" in given else {})


def test_a_prompt_is_read_by_its_words():
    assert asked(layout(Request("soft flute, A5")).condition) == {"instrument": "Flute", "pitch": 81, "velocity": 40}


def test_named_values_go_before_the_prompt():
    request = Request("soft flute, A5", {"pitch": "C#4", "instrument": "violin", "duration": "0.5"})
    expected = {"instrument": "Violin", "pitch": 61, "velocity": 40, "duration": 0.5}
    assert asked(layout(request).condition) == expected


def test_the_length_can_be_asked_for():
    batch = layout(Request(None, {"seconds": "1.0"}))
    assert batch.x["mel"].shape == (4, 88, 128) and batch.mask["mel"].all()  # 86.1 frames, in whole patches
    assert layout(Request()).x["mel"].shape == (4, 44, 128)


def test_a_family_is_another_of_its_instruments_for_each_sample_whatever_the_batch():
    noise = Noise.of(3, 40)
    batch = adapter().layout(40, noise, Request("a brass instrument"))
    assert len(set(batch.condition.values["instrument"].tolist())) == 1, "brass is what a brass section is called"
    batch = adapter().layout(40, noise, Request("a reed instrument"))
    names = [asked(batch.condition, row)["instrument"] for row in range(40)]
    assert len(set(names)) > 4 and set(names) <= set(INSTRUMENTS[64:72])
    alone = adapter().layout(1, Noise(3, noise.index[7:8]), Request("a reed instrument"))
    assert asked(alone.condition)["instrument"] == names[7]


def test_where_nothing_is_asked_for_samples_are_spread_over_instruments_and_pitches_by_their_numbers():
    batch = layout(Request(), count=60)
    assert {*asked(batch.condition)} == {"instrument", "pitch"}
    assert len(set(batch.condition.values["instrument"].tolist())) > 50
    pitches = batch.condition.values["pitch"]
    assert pitches.min() >= 36 and pitches.max() <= 95 and pitches.std() > 12
    alone = adapter().layout(1, Noise.of(5, 1, start=33), Request())
    assert asked(alone.condition) == asked(batch.condition, 33)
    assert not asked(layout(Request(), statistics={**STATISTICS, "instruments": []}, conditions=("text",)).condition)


def test_how_hard_and_how_long_is_drawn_as_the_data_has_it_where_it_is_not_asked_for():
    ranges = [[36, 95] if name == "Flute" else [] for name in INSTRUMENTS]
    usual = {"velocity": [40.0] * 12 + [120.0] * 4, "duration": [0.25, 1.5]}
    fields = {"statistics": {**STATISTICS, "ranges": ranges, "usual": usual}}
    condition = layout(Request("flute, A4"), count=400, **fields).condition
    assert {*asked(condition)} == set(CONDITIONS)
    assert condition.values["velocity"].eq(40).float().mean().item() == pytest.approx(0.75, abs=0.1)
    assert set(condition.values["duration"].tolist()) == {0.25, 1.5}
    alone = adapter(**fields).layout(1, Noise.of(0, 1, start=33), Request("flute, A4")).condition
    assert asked(alone) == asked(condition, 33)
    assert asked(layout(Request("soft flute, A4"), **fields).condition)["velocity"] == 40
    drum = asked(layout(Request(None, {"instrument": "Cowbell"}), **fields).condition)
    assert {*drum} == {"instrument", "velocity"}, "a drum is not held"
    assert len(asked(layout(Request(), **fields).condition)) == 4


def test_other_instruments_than_general_midis_are_asked_for_as_they_are():
    fields = {"statistics": {**STATISTICS, "instruments": ["Dog", "Cat"]}}
    values = {"velocity": "127", "duration": "9", "instrument": "dog"}
    batch = layout(Request(None, values), **fields).condition
    assert [batch.values[k][0].item() for k in ("instrument", "velocity", "duration")] == [0, 127, 9]


def test_the_pitches_of_an_instrument_are_its_own():
    ranges = [[40, 50] if name == "Flute" else [36, 95] for name in INSTRUMENTS]
    fields = {"statistics": {**STATISTICS, "ranges": ranges}}
    with pytest.warns(UserWarning, match=r"got pitch 81 \(A5\); known are 40 \(E2\) to 50 \(D3\)"):
        assert asked(layout(Request("flute A5"), **fields).condition)["pitch"] == 50
    assert asked(layout(Request("A5"), **fields).condition)["pitch"] == 81
    assert asked(layout(Request("oboe A5"), **fields).condition)["pitch"] == 81


def test_what_was_not_asked_for_is_open():
    assert asked(layout(Request("C4")).condition) == {"pitch": 60}
    assert asked(layout(Request(None, {"velocity": "100"})).condition) == {"velocity": 100}


def test_a_drum_has_no_pitch():
    assert asked(layout(Request("a low kick drum, loud")).condition) == {"instrument": "Bass Drum 1", "velocity": 120}


@pytest.mark.parametrize(
    ("values", "said", "used"),
    [
        (
            {"pitch": "110"},
            r"got pitch 110 \(D8\); known are 36 \(C2\) to 95 \(B6\): the nearest, 95 \(B6\), is used",
            {"pitch": 95},
        ),
        ({"pitch": "A0"}, r"got pitch 21 \(A0\)", {"pitch": 36}),
        ({"pitch": "450 Hz"}, r"got pitch 69.3891 .* the nearest, 69 \(A4\), is used", {"pitch": 69}),
        ({"velocity": "127"}, "got velocity 127; known are 40 to 120", {"velocity": 120}),
        ({"duration": "3"}, r"got duration 3; .* the nearest, 1.5, is used", {"duration": 1.5}),
    ],
)
def test_what_is_out_of_range_is_said_and_the_nearest_used(values, said, used):
    with pytest.warns(UserWarning, match=said):
        assert asked(layout(Request(None, values)).condition) == used


def test_a_prompt_out_of_range_too():
    with pytest.warns(UserWarning, match=r"got pitch 108 \(C8\)"):
        assert asked(layout(Request("piccolo C8")).condition) == {"instrument": "Piccolo", "pitch": 95}


@pytest.mark.parametrize(
    ("prompt", "values", "said"),
    [
        (None, {"instrument": "flut"}, "did you mean 'Flute'"),
        (None, {"colour": "red"}, "this model takes duration, instrument, pitch, seconds, velocity"),
        (None, {"text": "red"}, "got the condition text; this model takes"),
        (None, {"pitch": "loud"}, "a MIDI note number or a name such as C4"),
        (None, {"velocity": "nan"}, "got velocity=nan; expected a number"),
        (None, {"seconds": "0"}, "got seconds=0; expected 0.25 to 60"),
        (None, {"seconds": "inf"}, "got seconds=inf; expected a number"),
        ("\U0001f3b9", {}, "none of whose words is known; expected an instrument .Acoustic Grand Piano"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(prompt, values, said):
    with pytest.raises(ValueError, match=said):
        layout(Request(prompt, values))


def test_without_an_encoder_a_prompt_is_its_words(monkeypatch):
    monkeypatch.setattr(text, "installed", lambda *_: False)
    conditions = (*CONDITIONS, "text")
    condition = layout(Request("soft flute, A5"), conditions=conditions).condition
    assert asked(condition)["instrument"] == "Flute"
    assert condition.values["text"].shape == (4, text.WIDTH) and not condition.present["text"].any()
    with pytest.raises(ValueError, match=r"pip install 'diffkit\[text\]'"):
        layout(Request("something nice"), conditions=conditions)


def test_with_an_encoder_a_prompt_is_its_words_and_its_vector(monkeypatch):
    monkeypatch.setattr(text, "installed", lambda *_: True)
    monkeypatch.setattr(text, "embed", lambda said, name: np.array([[len(s), len(name)] for s in said], np.float32))
    fields = {"conditions": (*CONDITIONS, "text"), "encoder": "own", "encoder_width": 2}
    for prompt, known in (("flute", {"instrument": "Flute"}), ("\U0001f3b9" * 10_000, {})):
        condition = layout(Request(prompt), **fields).condition
        assert asked(condition) == known
        assert condition.present["text"].all() and condition.values["text"].tolist() == [[len(prompt), 3]] * 4
    with pytest.raises(ValueError, match=r"got vectors of width 2 .* modality.encoder_width=2"):
        layout(Request("flute"), **{**fields, "encoder_width": 384})


def tone(samples=11025, rate=22050, **known):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
    return Clip(wave.astype(np.float32), rate, **known)


def test_a_record_becomes_its_spectrogram_and_what_is_known_of_it():
    example = adapter().encode(tone(instrument="Flute", pitch=69, duration=0.5))
    assert example.x["mel"].shape == (43, 128) and example.mask["mel"].all()
    assert example.condition["instrument"] == INSTRUMENTS.index("Flute") and example.condition["pitch"] == 69
    assert example.condition["velocity"].isnan() and example.condition["duration"] == 0.5
    assert adapter().encode(tone(instrument="Dog")).condition["instrument"].isnan()


def test_silence_stands_apart_from_what_is_nearly_silent():
    wave = np.concatenate([tone(11025).wave, np.zeros(11025, np.float32)])
    plain, apart = (adapter(gap=gap).encode(Clip(wave, 22050)).x["mel"] for gap in (0.0, 1.0))
    floor = math.log(MelSettings().floor)
    silent = plain * 1.25 - 8.0 <= floor + 1e-3
    assert 0.1 < silent.float().mean() < 0.9
    assert torch.equal(apart[~silent], plain[~silent])
    assert (apart[silent] * 1.25 - 8.0 - floor + 1.0).abs().max() < 1e-3


@pytest.mark.parametrize("error", [-0.45, 0.0, 0.45])
def test_silence_is_silent_whatever_a_model_is_off_by_up_to_half_a_gap(error):
    settings, floor = MelSettings(), math.log(MelSettings().floor)
    mel = torch.tensor([floor, floor + 0.5, floor + 0.01, 0.0])
    again = raise_silence(lower_silence(mel, settings, 1.0) + error, settings, 1.0)
    assert again[0] == floor and torch.allclose(again[1:], (mel[1:] + error).clamp(min=floor))
    assert torch.equal(raise_silence(mel, settings, 0.0), mel)


def test_a_gap_is_downwards():
    with pytest.raises(ValueError, match=r"got gap=-1\.0; expected 0"):
        adapter(gap=-1.0)


def test_a_record_of_another_rate_is_resampled():
    slow, fast = (adapter().encode(tone(rate // 2, rate)).x["mel"] for rate in (22050, 44100))
    assert slow.shape == fast.shape and (slow - fast)[2:-4, :100].abs().median() < 0.1
    assert slow.mean(0).argmax() == fast.mean(0).argmax()


def test_a_spectrogram_becomes_sound_of_its_length_at_the_models_rate():
    example = adapter().encode(tone())
    padded = {"mel": torch.nn.functional.pad(example.x["mel"], (0, 0, 0, 5)).unsqueeze(0)}
    mask = {"mel": torch.nn.functional.pad(example.mask["mel"], (0, 0, 0, 5)).unsqueeze(0)}
    clip = adapter().decode(padded, mask)[0]
    assert clip.rate == 22050 and clip.wave.shape == (43 * 256,) and clip.wave.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(clip.wave * np.hanning(len(clip.wave))))
    assert np.fft.rfftfreq(len(clip.wave), 1 / 22050)[spectrum.argmax()] == pytest.approx(440, abs=15)


def test_sound_that_is_not_finite_is_not_valid():
    assert adapter().valid(tone())
    assert not adapter().valid(Clip(np.full(9, np.nan, np.float32), 22050))
    assert not adapter().valid(Clip(np.zeros(0, np.float32), 22050))


@pytest.fixture(scope="module")
def model():
    network = {"width": 32, "layers": 1, "hidden": 32, "condition": 16}
    fields = {"name": "audio", "conditions": list(CONDITIONS), "seconds": 0.3, "statistics": STATISTICS}
    sampling = {"steps": 2, "sampler": "ddim", "grid": "even", "jump": "posterior"}
    torch.manual_seed(0)
    return Model.of({"modality": fields, "network": network, "sampling": sampling})


def test_samples_say_what_they_were_asked_to_be(model):
    samples = model.generate(2, prompt="soft flute, A5", condition={"duration": 0.5})
    assert [(s.instrument, s.pitch, s.velocity, s.duration) for s in samples.records] == [("Flute", 81, 40, 0.5)] * 2
    assert all(len(s.wave) == 28 * 256 and s.rate == 22050 for s in samples.records)


def test_guidance_away_from_something_else(model):
    wanted, other = {"pitch": "60"}, {"instrument": "Flute"}
    plain, guided = (
        model.generate(1, condition=wanted, guidance=2.0, negative=n).records[0].wave for n in (None, other)
    )
    assert plain.shape == guided.shape
    assert model.generate(1, prompt="violin", negative="flute", guidance=2.0).records[0].instrument == "Violin"


def test_a_sample_is_the_same_at_any_batch_size(model):
    one, all_ = (model.generate(3, batch_size=n).records for n in (1, 3))
    for a, b in zip(one, all_, strict=True):
        assert a.instrument == b.instrument and np.allclose(a.wave, b.wave, atol=1e-3)
