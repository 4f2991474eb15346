"""The vocoder: phases that are integrated are those of the sound, and what is written is what is read."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from diffkit.noise import Noise
from diffkit_audio import spectra
from diffkit_audio.mel import MelSettings, log_mel, match
from diffkit_audio.vocoder import Vocoder, integrate, load, save

SETTINGS = MelSettings()
SMALL = {"width": 16, "hidden": 24, "layers": 2, "refinements": 2, "corrections": 2}
OTHER = MelSettings(rate=16000, n_fft=1024, hop=256, bands=80, high=8000.0)


def sine(hertz: float, samples: int = 64 * 256, phase: float = 0.3) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / SETTINGS.rate
    return (2 * math.pi * hertz * time + phase).sin()


def vocoder(settings: MelSettings = SETTINGS, **options: int) -> Vocoder:
    torch.manual_seed(0)
    return Vocoder(settings, **{**SMALL, **options}).eval()


def mels(count: int = 2, frames: int = 24, settings: MelSettings = SETTINGS) -> Tensor:
    return Noise.of(0, count).normal("mel", (frames, settings.bands)) - 4


@pytest.mark.parametrize("hertz", [65.406, 220.3, 441.7, 1000.0, 3951.1])
def test_phases_of_a_sine_advance_by_its_frequency(hertz: float) -> None:
    magnitude = vocoder().analyse(sine(hertz)[None]).mT[..., 8:40]
    phase = integrate(magnitude, SETTINGS)
    top = round(hertz * SETTINGS.n_fft / SETTINGS.rate)
    turn = phase[0, top - 1 : top + 2].diff(dim=-1)
    expected = torch.tensor(2 * math.pi * hertz * SETTINGS.hop / SETTINGS.rate)
    off = torch.atan2((turn - expected).sin(), (turn - expected).cos())
    assert off.abs().max() < 2e-3 * 2 * math.pi  # of a turn in a hop, 0.2 Hz: other sines' lobes and its mirror image


def test_neighbouring_bins_of_a_partial_are_half_a_turn_apart() -> None:
    """A frame is counted from its begin; from its centre the bins of a Hann window's lobe agree."""
    wave = sine(1000.0)[None]
    magnitude = vocoder().analyse(wave).mT[..., 8:40]
    phase = integrate(magnitude, SETTINGS)[0, 92:95]
    turns = phase.diff(dim=0).remainder(2 * math.pi)
    torch.testing.assert_close(turns, torch.full_like(turns, math.pi))


@pytest.mark.parametrize("refinements", [0, 8])
@pytest.mark.parametrize("hertz", [65.406, 246.94, 1661.2])
def test_a_tone_keeps_its_pitch_and_its_level(hertz: float, refinements: int) -> None:
    """From exact magnitudes; 246.94 Hz is no multiple of rate / hop, which equal frames could not give otherwise."""
    wave = (0.5 * sine(hertz) + 0.3 * sine(2 * hertz) + 0.1 * sine(3 * hertz))[None].float()
    network = vocoder(refinements=refinements)
    made = network.sound((network.analyse(wave) + network.floor).log())
    assert abs(spectra.cents(made[0], wave[0], SETTINGS.rate / hertz)) < 2
    inner = slice(4096, -4096)
    assert made[0, inner].std() == pytest.approx(float(wave[0, inner].std()), rel=0.02)


def test_a_sine_of_amplitude_one_has_magnitude_one() -> None:
    hertz = 100 * SETTINGS.rate / SETTINGS.n_fft
    magnitude = vocoder().analyse(sine(hertz)[None])
    torch.testing.assert_close(magnitude[0, 10:50, 100], torch.ones(40, dtype=torch.float64), rtol=1e-4, atol=0)


def test_bins_are_interpolated_between_the_bands_beside_them() -> None:
    """A spectrogram that is linear on the mel scale stays so; the outermost bands go on beyond their centres."""
    spread = vocoder().spread
    torch.testing.assert_close(spread.sum(0), torch.ones(1025))
    hertz = torch.linspace(0, SETTINGS.rate / 2, 1025, dtype=torch.float64)
    low, high = (2595 * math.log10(1 + edge / 700) for edge in (SETTINGS.low, SETTINGS.high))
    place = (2595 * torch.log10(1 + hertz / 700) - low) / ((high - low) / 129) - 1
    found = torch.arange(128.0) @ spread
    torch.testing.assert_close(found, place.clamp(0, 127).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", [SETTINGS, OTHER], ids=["default", "other"])
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 44])
def test_a_frame_is_a_hop_of_sound(frames: int, settings: MelSettings) -> None:
    made = vocoder(settings)(mels(2, frames, settings))
    assert made.shape == (2, frames * settings.hop)
    assert made.isfinite().all()


def test_a_clip_does_not_depend_on_the_others() -> None:
    network, both = vocoder(), mels()
    with torch.no_grad():
        alone = torch.cat([network(mel[None]) for mel in both])
        torch.testing.assert_close(network(both), alone, rtol=0, atol=2e-3)


def test_silence_stays_silent() -> None:
    network = vocoder()
    logs = torch.full((1, 44, 1025), math.log(network.floor))
    assert network.sound(logs).abs().max() < 1e-6


def test_gradients_reach_the_magnitudes_through_the_sound_of_silence_too() -> None:
    network = vocoder()
    logs = torch.full((1, 24, 1025), math.log(network.floor)).index_fill(2, torch.tensor([30, 31]), -1.0)
    logs.requires_grad_()
    network.sound(logs).square().sum().backward()
    assert logs.grad is not None and logs.grad.isfinite().all() and logs.grad[..., 30].abs().min() > 0


@pytest.mark.parametrize("settings", [SETTINGS, OTHER], ids=["default", "other"])
def test_what_is_written_is_read(tmp_path: Path, settings: MelSettings) -> None:
    network = vocoder(settings).half().float()
    save(network, tmp_path / "vocoder.safetensors")
    found = load(tmp_path / "vocoder.safetensors")
    assert found.settings == settings and found.options == network.options and not found.training
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_a_run_is_read(tmp_path: Path) -> None:
    network, folder = vocoder(OTHER), tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    mel = {"rate": 16000, "n_fft": 1024, "bands": 80, "high": 8000.0}
    recipe = {"modality": {"name": "audio", "mel": mel}, "codec": {**SMALL, "frames": 64, "jitter": 0.1}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for path in (folder, folder.parent):
        found = load(path)
        assert found.settings == OTHER and found.options == SMALL
        torch.testing.assert_close(found.state_dict(), network.state_dict(), rtol=0, atol=0)


def _bad(name: str, folder: Path) -> Path:
    path = folder / f"{name}.safetensors"
    network = vocoder()
    if name == "a text":
        path.write_text("RIFF")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "cut short":
        save(network, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "without settings":
        save_file(network.state_dict(), path)
    elif name == "other weights":
        about = {"settings": "{}", "options": json.dumps({**SMALL, "width": 24})}
        save_file(network.state_dict(), path, about)
    elif name == "unknown option":
        save_file(network.state_dict(), path, {"settings": "{}", "options": '{"heads": 3}'})
    elif name == "folder":
        path.mkdir()
    elif name == "another run":
        path.mkdir()
        (path / "recipe.yaml").write_text("modality: {name: audio}\nnetwork: {}\n")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "a text",
        "empty",
        "cut short",
        "without settings",
        "other weights",
        "unknown option",
        "folder",
        "another run",
    ],
)
def test_what_is_no_vocoder_is_named(name: str, tmp_path: Path) -> None:
    path = _bad(name, tmp_path)
    with pytest.raises(ValueError, match=r"got .*, which|expected") as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_sound_is_brought_to_the_spectrogram_asked_for() -> None:
    """White noise, twice as loud in its second half, out of even noise."""
    even = Noise.of(0, 1).normal("even", (64 * 256,)) * 0.05
    wanted = even * torch.where(torch.arange(64 * 256) < 32 * 256, 1.0, 2.0)
    mel = log_mel(wanted, SETTINGS)
    found = match(even, mel, SETTINGS, 8)
    assert (log_mel(even, SETTINGS) - mel).abs().mean() > 0.3
    assert (log_mel(found, SETTINGS) - mel).abs().mean() < 0.05


def test_a_sound_that_has_its_spectrogram_is_left_alone() -> None:
    wave = Noise.of(0, 1).normal("wave", (32 * 256,)) * 0.05
    torch.testing.assert_close(match(wave, log_mel(wave, SETTINGS), SETTINGS, 4), wave, atol=1e-5, rtol=0)


def test_silence_stays_silence() -> None:
    silence = torch.zeros(1, 32 * 256)
    assert match(silence, log_mel(silence, SETTINGS), SETTINGS, 4).abs().max() == 0
