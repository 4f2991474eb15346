r"""A small neural vocoder: log-mel spectrograms to sound.

Like Vocos (Siuzdak 2023, arXiv:2306.00814) it has a trunk of ConvNeXt blocks (Liu et al. 2022, arXiv:2201.03545) at the
rate of the frames, and a head that predicts a short-time spectrum, which the inverse transform turns into sound. It
differs in the phase. A convolution gives equal frames equal outputs, so a head that predicts phases from a spectrogram
repeats itself every hop while a tone is held: its pitch is then a multiple of rate / hop, 86 Hz, and it buzzes. Here
the network predicts magnitudes alone, which do not change while a tone is held, and the phase is *integrated*: a
partial of magnitude :math:`m_k` at its largest bin k, and :math:`r m_k` at the larger neighbour, is at

    f = k \pm (2 r - 1) / (1 + r)    bins

(exact for a Hann window, whose lobe it is), and all bins around it turn together, by :math:`2\pi f h / n` in a hop of h
samples (Laroche & Dolson 1999; Beauregard, Harish & Wyse 2015, "Single pass spectrogram inversion"). A few fast
Griffin-Lim iterations (Perraudin, Balazs & Søndergaard 2013) that start there bring attacks in line.

At last the sound is held to the spectrogram that was asked for (`diffkit_audio.mel.match`): its own is measured, and
what is missing in a band is given to the band's bins, a few times over.

Shape suffixes:
    B: batch    T: frames    M: mel bands    K: bins, n_fft / 2 + 1    D: width
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit import weights
from diffkit.inventory import WEIGHTS
from diffkit_audio.mel import MelSettings, match

__all__ = ["Vocoder", "integrate", "load", "save"]

OPTIONS = ("width", "hidden", "layers", "refinements", "corrections")
MOMENTUM = 0.99 / 1.99
"""Of the fast iteration, as in `torchaudio.functional.griffinlim`."""


class Vocoder(nn.Module):
    """Sound (B, T * hop) of log-mel spectrograms (B, T, M).

    Args:
        settings: of the spectrograms.
        width: D, of the trunk.
        hidden: width inside a block.
        layers: number of blocks.
        refinements: Griffin-Lim iterations.
        corrections: of the sound by its own spectrogram.
    """

    def __init__(
        self,
        settings: MelSettings = MelSettings(),  # noqa: B008  (frozen)
        *,
        width: int = 192,
        hidden: int = 640,
        layers: int = 4,
        refinements: int = 16,
        corrections: int = 8,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.options = {
            "width": width, "hidden": hidden, "layers": layers, "refinements": refinements, "corrections": corrections,
        }  # fmt: skip
        self.embed = nn.Conv1d(settings.bands, width, 3, padding=1)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, hidden, 1 / layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, settings.n_fft // 2 + 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.spread: Tensor
        self.register_buffer("spread", _spread(settings), persistent=False)

    @property
    def floor(self) -> float:
        """The amplitude that is added to magnitudes before their logarithm."""
        return self.settings.floor / 2

    def magnitudes(self, mel: Tensor) -> Tensor:
        """log(|STFT| + floor) (B, T, K), where a sine of amplitude 1 has magnitude 1: what the network predicts."""
        x = self.embed_norm(self.embed((mel + 6).mT / 3).mT)
        for block in self.blocks:
            x = block(x)
        change: Tensor = self.head(self.norm(x))
        return _interpolate(mel, self.spread) + change.float()

    def forward(self, mel: Tensor) -> Tensor:
        """(B, T, M) to (B, T * hop)."""
        return match(self.sound(self.magnitudes(mel)), mel, self.settings, self.options["corrections"])

    def amplitudes(self, logs: Tensor) -> Tensor:
        """Magnitudes of what `magnitudes` gives."""
        return (logs.clamp(max=3.0).exp() - self.floor).clamp(min=0)

    def sound(self, logs: Tensor) -> Tensor:
        """(B, T * hop) of what `magnitudes` gives; gradients reach those and not the phases."""
        samples = logs.shape[1] * self.settings.hop
        # The transform's last frame is centred at the very end, and a spectrogram has none there.
        magnitude = self.amplitudes(torch.cat([logs, logs[:, -1:]], 1)).mT
        with torch.no_grad():
            phase = self._phase(magnitude, samples)
        return self._invert(torch.polar(magnitude, phase), samples)

    def analyse(self, wave: Tensor) -> Tensor:
        """|STFT| (B, T, K) of (B, T * hop)."""
        return self._transform(wave)[..., :-1].abs().mT

    def _phase(self, magnitude: Tensor, samples: int) -> Tensor:
        """Of magnitudes (B, K, T + 1): integrated, then made consistent with them."""
        phase = integrate(magnitude, self.settings)
        if samples <= self.settings.n_fft // 2:  # too short to be analysed again
            return phase
        before = torch.zeros_like(phase)
        for _ in range(self.options["refinements"]):
            again = self._transform(self._invert(torch.polar(magnitude, phase), samples))
            phase = (again - MOMENTUM * before).angle()
            before = again
        return phase

    def _transform(self, wave: Tensor) -> Tensor:
        s = self.settings
        window = _window(wave, s)
        spectrum: Tensor = torch.stft(wave, s.n_fft, s.hop, window=window, center=True, return_complex=True)
        return spectrum * (4 / s.n_fft)

    def _invert(self, spectrum: Tensor, samples: int) -> Tensor:
        s = self.settings
        window = _window(spectrum.real, s)
        scaled = spectrum * (s.n_fft / 4)
        wave: Tensor = torch.istft(scaled, s.n_fft, s.hop, window=window, center=True, length=samples)
        return wave


class Block(nn.Module):
    """ConvNeXt: a depthwise convolution over 7 frames and a perceptron, added after ``scale``."""

    def __init__(self, width: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        change: Tensor = self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x.mT).mT))))
        return x + self.scale * change


@torch.no_grad()
def integrate(magnitude: Tensor, settings: MelSettings) -> Tensor:
    """Phases (B, K, T) of magnitudes (B, K, T) by the advance of the partials that they show."""
    left, right = F.pad(magnitude, (0, 0, 1, 0))[:, :-1], F.pad(magnitude, (0, 0, 0, 1))[:, 1:]
    ratio = torch.maximum(left, right) / magnitude.clamp(min=1e-9)
    offset = ((2 * ratio - 1) / (1 + ratio)).clamp(0, 0.5)
    bins = torch.arange(magnitude.shape[1], device=magnitude.device)[:, None]
    frequency = bins + torch.where(right > left, offset, -offset)
    owner = _owners((magnitude >= left) & (magnitude > right), bins)
    advance = frequency.gather(1, owner) * (2 * math.pi * settings.hop / settings.n_fft)
    phase = torch.zeros_like(magnitude[..., 0])
    phases = []
    for turn, peak in zip(advance.unbind(-1), owner.unbind(-1), strict=True):
        phase = (phase.gather(1, peak) + turn).remainder(2 * math.pi)
        phases.append(phase)
    # A frame is counted from its begin and a partial from its centre, half a window later: a half turn a bin.
    return torch.stack(phases, -1) + math.pi * (bins % 2)


def _owners(peak: Tensor, bins: Tensor) -> Tensor:
    """The bin of the nearest peak, for all bins (B, K, T)."""
    far = 4 * peak.shape[1]
    below = torch.where(peak, bins, -far).cummax(1).values
    above = -torch.where(peak, -bins, -far).flip(1).cummax(1).values.flip(1)
    return torch.where(bins - below <= above - bins, below, above).clamp(0, peak.shape[1] - 1)


def _window(like: Tensor, settings: MelSettings) -> Tensor:
    return torch.hann_window(settings.n_fft, device=like.device, dtype=like.dtype)


def _interpolate(mel: Tensor, spread: Tensor) -> Tensor:
    """``mel @ spread`` in full precision, as these are logarithms."""
    with torch.autocast(mel.device.type, enabled=False):
        return mel.float() @ spread


def _spread(settings: MelSettings) -> Tensor:
    """(M, K): a bin is interpolated between the bands whose centres are beside it."""

    def scale(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    low, high = scale(torch.tensor([settings.low, settings.high], dtype=torch.float64))
    hertz = torch.linspace(0, settings.rate / 2, settings.n_fft // 2 + 1, dtype=torch.float64)
    place = ((scale(hertz) - low) / (high - low) * (settings.bands + 1) - 1).clamp(0, settings.bands - 1)
    tents: Tensor = (1 - (place - torch.arange(settings.bands)[:, None]).abs()).clamp(min=0)
    return tents.float()


def save(vocoder: Vocoder, path: Path) -> None:
    """Write it in half precision, with its settings, whole or not at all."""
    weights.write(vocoder, path, settings=asdict(vocoder.settings), options=vocoder.options)


def load(path: Path) -> Vocoder:
    """What `save` wrote, or the folder of a run of ``diffkit train audio/vocoder``, ready for use.

    Raises:
        ValueError: if there is no such file, or it is cut short, or of something else.
    """
    try:
        vocoder, state = _of_run(path) if path.is_dir() else _of_file(path)
        vocoder.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(f"got {path}, which holds no vocoder: {' '.join(str(error).split())[:200]}") from None
    return vocoder.eval()


def _of_file(path: Path) -> tuple[Vocoder, dict[str, Tensor]]:
    state, about = weights.read(path, "settings", "options")
    return Vocoder(MelSettings(**about["settings"]), **about["options"]), state


def _of_run(folder: Path) -> tuple[Vocoder, dict[str, Tensor]]:
    folder = folder / "model" if (folder / "model").is_dir() else folder
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    options = {name: value for name, value in recipe["codec"].items() if name in OPTIONS}
    network = Vocoder(MelSettings(**recipe["modality"].get("mel", {})), **options)
    return network, weights.read(folder / WEIGHTS)[0]
