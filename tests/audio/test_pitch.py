"""The pitch estimator on sounds whose pitch is known exactly."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffkit_audio.pitch import UNPITCHED, estimate, pitched, within

RATE = 22050
KEYS = torch.arange(36, 96, dtype=torch.float64)
SHAPES: dict[str, Callable[[int], float]] = {
    "sine": lambda h: float(h == 1),
    "sawtooth": lambda h: 1 / h,
    "pulses": lambda h: 1.0,
    "square": lambda h: (h % 2) / h,
    "dull": lambda h: 0.5**h,
}


def tones(keys: Tensor, shape: str = "sawtooth", seconds: float = 1.0, rate: int = RATE) -> Tensor:
    """Notes (B, samples) of these MIDI numbers, band-limited, of peak 0.5."""
    t = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    f = 440 * 2 ** ((keys.double() - 69) / 12)[:, None]
    weight = SHAPES[shape]
    parts = [weight(h) * torch.sin(2 * math.pi * h * f * t + h) * (h * f < rate / 2) for h in range(1, 40) if weight(h)]
    wave = torch.stack(parts).sum(0)
    return (0.5 * wave / wave.abs().amax(1, keepdim=True)).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_key_is_found_to_five_cents(shape: str) -> None:
    assert (estimate(tones(KEYS, shape, 0.5), RATE) - KEYS).abs().max() < 0.06


@pytest.mark.parametrize("cents", [-45, -20, 20, 45])
def test_a_note_out_of_tune_is_heard_as_such(cents: int) -> None:
    keys = KEYS[::5] + cents / 100
    assert (estimate(tones(keys), RATE) - keys).abs().max() < 0.02


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_any_rate(rate: int) -> None:
    keys = KEYS[:36:7]
    assert (estimate(tones(keys, rate=rate), rate) - keys).abs().max() < 0.02


def test_a_note_that_dies_away_before_silence() -> None:
    t = torch.arange(2 * RATE) / RATE
    wave = tones(KEYS[::4], seconds=2.0) * torch.exp(-12 * t) * (t < 0.5)
    assert (estimate(wave, RATE) - KEYS[::4]).abs().max() < 0.1


def test_noise_at_a_tenth_of_the_amplitude() -> None:
    noise = torch.randn(12, RATE, generator=torch.Generator().manual_seed(0))
    wave = tones(KEYS[::5])
    loud = wave.square().mean(1, keepdim=True).sqrt()
    assert (estimate(wave + 0.1 * loud * noise, RATE) - KEYS[::5]).abs().max() < 0.1


def test_loudness_padding_and_company_change_nothing() -> None:
    wave = tones(KEYS[::6])
    alone = torch.cat([estimate(row[None], RATE) for row in wave])
    assert torch.allclose(estimate(wave, RATE, batch_size=3), alone, atol=1e-4)
    assert torch.allclose(estimate(wave / 100, RATE), alone, atol=1e-4)
    longer = torch.nn.functional.pad(wave, (0, RATE))
    assert torch.allclose(estimate(longer, RATE), alone, atol=0.01)


def test_what_has_no_pitch_is_nan() -> None:
    wave = torch.zeros(3, RATE)
    wave[1, 5] = math.nan
    wave[2] = tones(torch.tensor([60.0]))
    found = estimate(wave, RATE)
    assert found.isnan().tolist() == [True, True, False]
    assert estimate(torch.zeros(0, RATE), RATE).shape == (0,)


def test_clips_shorter_than_a_window() -> None:
    assert estimate(tones(torch.tensor([81.0]), seconds=0.08), RATE).item() == pytest.approx(81, abs=0.5)
    assert estimate(torch.ones(1, 1), RATE).shape == (1,)


def test_shares_by_hand() -> None:
    found = torch.tensor([60.4, 60.6, 72.0, math.nan])
    metric = within(found, [60, 60, 60, 60])
    assert (metric.value, metric.n, metric.unit) == (0.25, 4, "share")
    assert within(found, [60, 60, 60, 60], cents=100).value == 0.5
    assert math.isnan(within(torch.zeros(0), []).value)


def test_which_instruments_have_a_pitch() -> None:
    assert pitched(0) and pitched(73) and pitched(114)
    assert not pitched(47) and not pitched(119) and not pitched(127) and not pitched(128)
    assert all(0 <= program < 128 and why for program, why in UNPITCHED.items())
