"""What a round trip loses is measured rightly: distances and pitches of sounds that are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from diffkit.noise import Noise
from diffkit_audio import spectra
from diffkit_audio.mel import MelSettings
from diffkit_audio.round_trip import figures, main, measure
from diffkit_audio.vocoder import Vocoder, save

SETTINGS = MelSettings()
RATE = SETTINGS.rate


def tone(hertz: float, partials: tuple[float, ...] = (1.0, 0.5, 0.25), samples: int = 22050) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / RATE
    waves = [a * (2 * math.pi * hertz * (k + 1) * time).sin() for k, a in enumerate(partials)]
    return torch.stack(waves).sum(0).float()


@pytest.mark.parametrize("pitch", range(36, 96, 7))
@pytest.mark.parametrize("partials", [(1.0,), (1.0, 0.5, 0.25), (0.2, 1.0, 0.7)])
def test_a_period_is_found(pitch: int, partials: tuple[float, ...]) -> None:
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    found, sure = spectra.period(tone(hertz, partials), RATE / hertz * 1.01)
    assert 1200 * abs(math.log2(found * hertz / RATE)) < 1.0
    assert sure > 0.95


@pytest.mark.parametrize("off", [-20.0, -3.0, 0.5, 7.0])
def test_an_error_of_pitch_is_in_cents(off: float) -> None:
    made = tone(311.13 * 2 ** (off / 1200))
    assert spectra.cents(made, tone(311.13), RATE / 311.13) == pytest.approx(off, abs=0.1)


def test_noise_has_no_pitch() -> None:
    noise = Noise.of(0, 1).normal("wave", (22050,))[0]
    assert math.isnan(spectra.cents(noise, noise, 100.0))
    assert math.isnan(spectra.cents(noise, torch.zeros(22050), 100.0))


def test_a_sound_is_at_no_distance_from_itself() -> None:
    wave = torch.stack([tone(220), tone(330)])
    assert torch.equal(spectra.distance(wave, wave), torch.zeros(2))
    assert torch.equal(spectra.convergence(wave, -wave), torch.zeros(2))


def test_distances_of_a_sound_that_is_too_loud_are_known() -> None:
    wave = Noise.of(0, 2).normal("wave", (8192,))
    torch.testing.assert_close(spectra.convergence(1.25 * wave, wave), torch.full((2,), 0.25))
    torch.testing.assert_close(spectra.distance(1.25 * wave, wave), torch.full((2,), math.log(1.25)), rtol=0.01, atol=0)


def test_figures_of_a_perfect_round_trip() -> None:
    wave = torch.stack([tone(440), tone(440 * 2 ** (3 / 12))])
    found = measure(wave, wave, [69, 72], SETTINGS)
    assert {name: metric.value for name, metric in found.items()} == {
        "log spectral distance": 0,
        "spectral convergence": 0,
        "log-mel distance": 0,
        "pitch error, median": 0,
        "pitch error, 90 % below": 0,
        "within 10 cents": 1,
    }


def test_pitch_is_counted_over_what_has_one() -> None:
    noise = Noise.of(0, 1).normal("wave", (22050,))
    real = torch.cat([tone(440)[None], tone(440)[None], noise])
    made = torch.cat([tone(440 * 2 ** (20 / 1200))[None], tone(440)[None], noise])
    found = measure(made, real, [69, None, 60], SETTINGS)
    assert found["pitch error, median"].n == 1 and found["within 10 cents"].value == 0
    assert found["pitch error, median"].value == pytest.approx(20, abs=0.1)
    assert math.isnan(measure(made, real, [None] * 3, SETTINGS)["pitch error, median"].value)


def test_both_ways_stand_side_by_side() -> None:
    network = Vocoder(width=16, hidden=16, layers=1, refinements=1)
    said = figures(torch.stack([tone(440)] * 2), [69, 69], network, iterations=2)
    assert "vocoder" in said and "Griffin-Lim, 2 iterations" in said and "pitch error, median" in said


def test_the_command_prints_figures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(20):
        soundfile.write(tmp_path / f"{n}.wav", np.asarray(0.3 * tone(200.0 + 10 * n)), RATE)
    save(Vocoder(width=16, hidden=16, layers=1, refinements=1), tmp_path / "v.safetensors")
    asked = ["--path", str(tmp_path), "--vocoder", str(tmp_path / "v.safetensors"), "--split", "train", "-n", "2"]
    assert main([*asked, "--iterations", "2"]) == 0
    assert "log-mel distance" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [["--vocoder", "nowhere.safetensors"], ["-n", "0"]])
def test_the_command_says_what_is_wrong(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked) == 2
    assert capsys.readouterr().err.startswith("error: got ")
