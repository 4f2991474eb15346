"""Clips as datasets: the shipped sample, packed sets, a person's folder, captions as vectors."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffkit import packages
from diffkit.data import collate
from diffkit_audio import packed as packing
from diffkit_audio.adapter import Audio
from diffkit_audio.clip import Clip
from diffkit_audio.data import CONDITIONS, ClipDataset, load, measure
from diffkit_audio.mel import MelSettings, log_mel
from diffkit_audio.sources import SAMPLE, place

SETTINGS = MelSettings()
HOP = SETTINGS.hop


@pytest.fixture(autouse=True)
def no_cache_and_no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("a download was tried"))


def clip(frames=20, hertz=300.0, **known):
    time = np.arange(frames * HOP + 100) / SETTINGS.rate
    return Clip((0.4 * np.sin(2 * math.pi * hertz * time)).astype(np.float32), SETTINGS.rate, **known)


CLIPS = [
    ("a", "train", clip(20, 300, instrument="Flute", pitch=60, velocity=70, duration=0.5)),
    ("b", "train", clip(16, 500, instrument="Cowbell", velocity=100)),
    ("c", "valid", clip(40, 700, caption="a hum")),
    ("d", "test", clip(9, 900, instrument="Flute", pitch=61)),
]


def gathered(instruments=("Tuba", "Flute")):
    return packing.gather(CLIPS, instruments, SETTINGS, 24)


def dataset(split="train", **options):
    packed = gathered()
    rows = packed.of(split)
    return ClipDataset(packed, rows, measure(packed, packed.of("train")), CONDITIONS[:4], split == "train", **options)


# Packed sets


def test_a_set_says_what_its_clips_said():
    packed = gathered()
    assert packed.frames.tolist() == [20, 16, 24, 9]
    assert packed.instruments == ("Tuba", "Flute", "Cowbell")
    assert [packed.of(split).tolist() for split in packing.SPLITS] == [[0, 1], [2], [3]]
    for n, (_, _, known) in enumerate(CLIPS):
        back = packed.clip(n)
        assert replace(back, wave=known.wave).__dict__ == known.__dict__
        assert np.abs(back.wave - known.wave[: len(back.wave)]).max() < 2e-5
        assert len(back.wave) == packed.frames[n] * HOP


def test_spectrograms_are_those_of_each_clip_alone():
    packed = gathered()
    for n in range(len(packed)):
        exact = log_mel(torch.from_numpy(packed.wave(n)), SETTINGS).numpy()
        assert np.abs(packed.mel[n, : packed.frames[n]] - exact).max() < 5e-3
        assert not packed.mel[n, packed.frames[n] :].any()


def test_what_is_saved_is_what_is_gathered(tmp_path):
    rejected = [("x.wav", "is empty")]
    packing.save(CLIPS, ("Tuba", "Flute"), SETTINGS, 24, tmp_path / "set", rejected)
    there, here = packing.load(tmp_path / "set"), gathered()
    for name, value in here.__dict__.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(there, name), value, equal_nan=value.dtype.kind == "f"), name
        elif name != "rejected":
            assert getattr(there, name) == value, name
    assert there.rejected == (("x.wav", "is empty"),)
    assert isinstance(there.mel, np.memmap) and np.load(tmp_path / "set" / "mel.npy").dtype == np.float16


def test_a_set_is_written_whole_or_not_at_all(tmp_path):
    def broken():
        yield from CLIPS * 40
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packing.save(broken(), (), SETTINGS, 24, tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_the_default_has_a_plain_name_and_others_have_their_own():
    names = {place("notes-v1", MelSettings(), 172).name, place("notes-v1", MelSettings(bands=80), 172).name}
    names.add(place("notes-v1", MelSettings(), 86).name)
    assert "notes-v1" in names and len(names) == 3


# Statistics and examples


def test_the_spectrograms_of_the_train_split_have_mean_0_and_deviation_1():
    packed = gathered()
    found = measure(packed, packed.of("train"))
    real = np.concatenate([packed.mel[n, : packed.frames[n]].astype(np.float64).ravel() for n in (0, 1)])
    assert found["mean"] == pytest.approx(real.mean(), abs=1e-9)
    assert found["scale"] == pytest.approx(real.std(), abs=1e-9)
    assert found["instruments"] == ["Tuba", "Flute", "Cowbell"] and found["ranges"] == [[], [60, 61], []]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_batch_is_its_examples(split):
    data = dataset(split)
    indices = list(range(len(data)))[::-1]
    torch.manual_seed(0)
    batch = data.batch(indices)
    fixed = replace(data, training=False)
    examples = collate([(k, fixed[k]) for k in indices])
    length = examples.x["mel"].shape[1]
    whole = fixed.batch(indices)
    assert torch.equal(whole.x["mel"][:, :length], examples.x["mel"]) and not whole.x["mel"][:, length:].any()
    assert torch.equal(whole.mask["mel"][:, :length], examples.mask["mel"])
    assert not batch.x["mel"][~batch.mask["mel"].expand_as(batch.x["mel"])].any()
    for name in CONDITIONS[:4]:
        assert torch.equal(batch.condition.values[name], examples.condition.values[name])
        assert torch.equal(batch.condition.present[name], examples.condition.present[name])
    assert torch.equal(batch.index, examples.index)


def test_examples_are_what_the_adapter_makes_of_their_clips():
    data = dataset("valid", gap=1.0)
    adapter = Audio(conditions=CONDITIONS[:4], statistics=data.statistics, gap=1.0)
    got, made = data[0].x["mel"], adapter.encode(data.records(0)).x["mel"]
    assert got.shape == made[: len(got)].shape and (got - made[: len(got)]).abs().median() < 1e-3


def test_what_is_not_known_is_not_present():
    batch = replace(dataset(), training=False).batch([0, 1])
    known = {name: v.tolist() for name, v in batch.condition.present.items()}
    assert known == {
        "instrument": [True, True],
        "pitch": [True, False],
        "velocity": [True, True],
        "duration": [True, False],
    }
    assert batch.condition.values["instrument"].tolist() == [1, 2]
    assert batch.condition.values["pitch"].tolist() == [60, 0]


def test_a_models_instruments_keep_their_numbers():
    data = replace(dataset(), statistics={"mean": 0.0, "scale": 1.0, "instruments": ["Cowbell", "Oboe"]})
    batch = data.batch([0, 1])
    assert batch.condition.present["instrument"].tolist() == [False, True]
    assert batch.condition.values["instrument"].tolist() == [0, 0]


def test_half_of_the_training_examples_are_whole_and_the_others_of_every_length():
    packed = packing.gather([("a", "train", clip(172))], ("Flute",), SETTINGS, 172)
    data = ClipDataset(packed, np.array([0]), measure(packed, np.array([0])), (), True)
    torch.manual_seed(0)
    lengths = torch.cat([data.batch([0] * 1000).mask["mel"].sum((1, 2)) for _ in range(4)]).numpy()
    parts = lengths[lengths < 172]
    assert abs((lengths == 172).mean() - (0.5 + 0.5 / 33)) < 0.03
    assert set(parts.tolist()) == set(range(44, 172, 4))
    assert np.bincount(parts)[44::4].min() > 0.5 * len(parts) / 32
    torch.manual_seed(0)
    assert torch.equal(data.batch([0] * 1000).mask["mel"].sum((1, 2)), torch.from_numpy(lengths[:1000]))


def test_clips_shorter_than_the_shortest_example_stay_within_themselves():
    data = dataset()
    for seed in range(20):
        torch.manual_seed(seed)
        lengths = data.batch([0, 1]).mask["mel"].sum((1, 2))
        assert lengths[0] in (20,) and lengths[1] in (16,)


def test_waveforms_are_whole_clips_without_conditions():
    data = replace(dataset(), waveforms=True, conditions=())
    batch = data.batch([1, 0])
    assert batch.x["wave"].shape == (2, 24 * HOP) and set(batch.x) == {"wave"} and not batch.condition.values
    assert batch.mask["wave"].sum(1).tolist() == [16 * HOP, 20 * HOP]
    assert torch.equal(batch.x["wave"][0, : 16 * HOP], torch.from_numpy(data.packed.wave(1)))
    assert torch.equal(data[1].x["wave"], batch.x["wave"][0, : 16 * HOP])


# Captions


def test_captions_are_drawn_in_training_and_the_first_elsewhere(monkeypatch):
    text = pytest.importorskip("diffkit.text")
    asked = []

    def spell(captions, encoder=None):
        asked.extend(captions)
        return np.array([[float(sum(map(ord, c))), len(c)] for c in captions], np.float32)

    monkeypatch.setattr(text, "embed", spell)
    data = replace(dataset(), conditions=("text",))
    torch.manual_seed(0)
    batches = [data.batch([0, 1]).condition for _ in range(30)]
    drawn = {tuple(b.values["text"][0].tolist()) for b in batches}
    assert len(drawn) > 3 and all(b.present["text"].all() for b in batches)
    assert len(asked) == len(set(asked)) and "" not in asked
    valid = replace(dataset("valid"), conditions=("text",)).batch([0]).condition
    assert valid.values["text"].tolist() == [[float(sum(map(ord, "a hum"))), 5.0]]


def test_a_clip_of_which_nothing_is_known_has_no_text(monkeypatch):
    text = pytest.importorskip("diffkit.text")
    monkeypatch.setattr(text, "embed", lambda captions, encoder=None: np.ones((len(captions), 2), np.float32))
    packed = packing.gather([("a", "train", clip()), ("b", "train", clip(caption="it"))], (), SETTINGS, 24)
    data = ClipDataset(packed, np.arange(2), measure(packed, np.arange(2)), ("text",))
    assert data.batch([0, 1]).condition.present["text"].tolist() == [False, True]


# The shipped sample


def test_the_sample_ships_and_has_every_split():
    parts = {split: load(split, source="sample") for split in packing.SPLITS}
    assert SAMPLE.stat().st_size < 600_000
    assert sum(len(p) for p in parts.values()) == 115 and min(len(p) for p in parts.values()) >= 8
    train = parts["train"]
    assert len(train.statistics["instruments"]) == 15
    assert parts["test"].statistics == train.statistics
    assert {k: len(v) for k, v in train.statistics["usual"].items()} == {"velocity": 16, "duration": 16}
    assert set(train.statistics["usual"]["duration"]) <= {0.25, 0.5, 1.0, 1.5}
    example = parts["valid"][0]
    assert example.x["mel"].shape == (172, 128) and example.mask["mel"].all()
    mel = torch.cat([replace(train, training=False)[k].x["mel"].flatten() for k in range(len(train))])
    assert mel.mean().abs() < 1e-3 and abs(mel.std() - 1) < 1e-3
    label = train.records(0)
    assert label.instrument in train.statistics["instruments"] and len(label.wave) == 44032


def test_the_sample_is_there_at_other_settings():
    data = load("train", source="sample", mel=MelSettings(rate=16000, high=8000, bands=40), seconds=1.0)
    assert data.packed.mel.shape[1:] == (62, 40)


# A person's folder


def write(folder, count=12):
    soundfile = pytest.importorskip("soundfile")
    for k in range(count):
        path = folder / ("low" if k % 2 else "high") / f"{k}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip(40 + k, 200 + 50 * k).wave, SETTINGS.rate)


def test_a_folder_is_read_once(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"12 of 13 files used; left out: empty\.wav is empty"):
        train = load("train", path=tmp_path)
    assert train.statistics["instruments"] == ["high", "low"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        valid = load("valid", path=tmp_path)
    assert len(train) + len(valid) + len(valid.packed.of("test")) == 12 and len(valid)
    from diffkit_audio import data, readers

    data._read_files.cache_clear()
    monkeypatch.setattr(readers, "read_wave", lambda *_: pytest.fail("a file was read again"))
    with pytest.warns(UserWarning, match="12 of 13"):
        assert len(load("train", path=tmp_path)) == len(train)


def test_a_folder_that_has_changed_is_read_again(tmp_path):
    from diffkit_audio import data

    write(tmp_path, 6)
    assert len(load("train", path=tmp_path).packed) == 6
    write(tmp_path, 8)
    data._read_files.cache_clear()
    assert len(load("train", path=tmp_path).packed) == 8


def test_one_file_is_a_set_and_of_an_instrument(tmp_path):
    write(tmp_path, 1)
    data = load("train", path=tmp_path / "high" / "0.wav")
    assert len(data) == 1 and data.statistics["instruments"] == ["sound"]
    assert data.batch([0]).condition.present["instrument"].all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "note"}, "did you mean"),
        ({}, "data.path=FOLDER"),
        ({"source": "sample", "split": "tset"}, "expected one of train, valid, test"),
        ({"source": "sample", "conditions": ("pich",)}, "did you mean 'pitch'"),
    ],
)
def test_names_that_do_not_exist_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        load(**{"split": "train", **options})
