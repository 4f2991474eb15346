"""Sound for diffkit: the adapter.

A clip is one leaf:

    mel        (B, T, M)   Gaussian   log-mel spectrogram, standardised by two numbers of the training set

with a mask (B, T, 1), as clips of a batch may have different lengths, and the conditions ``instrument``, ``pitch``,
``velocity``, ``duration`` and ``text``, any of which may be left open. Spectrograms become sound by the vocoder that
ships, where it was made for their settings, and otherwise by Griffin-Lim.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffkit import registry, text
from diffkit.condition import Condition
from diffkit.data import collate
from diffkit.modality import Batch, Example, Modality, Request
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.report import Metrics
from diffkit.space import Euclidean
from diffkit.typing import State
from diffkit_audio import asking, classifier, data, ears, metrics, readers, view, vocoder
from diffkit_audio.captions import note_name
from diffkit_audio.clip import Clip
from diffkit_audio.mel import MelSettings, griffin_lim, log_mel, lower_silence, match, raise_silence
from diffkit_audio.network import PATCH, SCALARS, Spectrogram
from diffkit_audio.spread import playable, spread
from diffkit_audio.torchaudio import functional
from diffkit_audio.vocoder_training import VocoderCodec

__all__ = ["Audio"]

WEIGHTS = Path(__file__).parent / "weights" / "notes"


@dataclass(frozen=True)
class Audio(Modality):
    """The adapter. Its fields are a recipe's ``modality`` node.

    Args:
        conditions: what a sample can be asked for: instrument, pitch, velocity, duration, and text (the ``text``
            extra).
        seconds: of each sample, unless ``--condition seconds=S`` asks for another length.
        mel: what of the spectrogram's settings differs from `MelSettings`.
        gap: in natural logarithms, by which silence is lowered for the model; see `diffkit_audio.mel.lower_silence`.
        encoder: of texts, as `diffkit.text` names it.
        encoder_width: of its vectors.
        format: of the files that are written: wav, of 16-bit samples, or float, of 32-bit ones.
        statistics: what `dataset` measured: ``mean`` and ``scale`` of the spectrograms, names of the ``instruments``.
    """

    conditions: Sequence[str] = ("instrument", "pitch", "velocity", "duration", "text")
    seconds: float = 2.0
    mel: Mapping[str, Any] = field(default_factory=dict)
    gap: float = 0.0
    encoder: str = text.MINILM
    encoder_width: int = text.WIDTH
    format: str = "wav"
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        view.require_format(self.format)
        if self.gap < 0:
            raise ValueError(
                f"got gap={self.gap}; expected 0, for none, or how far below the floor silence is to stand"
            )

    @property
    def settings(self) -> MelSettings:
        """Of the spectrogram."""
        return MelSettings(**self.mel)

    @property
    def instruments(self) -> list[str]:
        """Names in the order of their numbers."""
        return list(self.statistics.get("instruments", []))

    def dataset(self, split: str, **options: Any) -> data.ClipDataset:
        """Clips; options are those of `diffkit_audio.data.load`."""
        return data.load(
            split=split,
            conditions=tuple(self.conditions),
            mel=self.settings,
            encoder=self.encoder,
            statistics=self.statistics or None,
            gap=self.gap,
            **options,
        )

    # ------------------------------------------------------------------------------------------- records

    def encode(self, record: Clip) -> Example:
        settings = self.settings
        wave = functional.resample(torch.from_numpy(record.wave), record.rate, settings.rate)
        mel = lower_silence(log_mel(wave, settings), settings, self.gap)
        mel = (mel - self.statistics["mean"]) / self.statistics["scale"]
        return Example({"mel": mel}, {"mel": torch.ones(len(mel), 1, dtype=torch.bool)}, self._known(record))

    def read(self, source: str, request: Request) -> Clip:
        """A clip of as many seconds as are asked for, with silence at its end, or else of its own length."""
        try:
            wave = readers.read_wave(Path(source), self.settings)
        except ValueError as error:
            raise ValueError(f"got {source}, which {error}") from None
        asked = request.values.get("seconds")
        if asked is None:
            asking.require_length(source, len(wave) / self.settings.rate)
            return Clip(wave, self.settings.rate)
        samples = self._frames(asked) * self.settings.hop
        return Clip(np.pad(wave[:samples], (0, max(samples - len(wave), 0))), self.settings.rate)

    def _known(self, record: Clip) -> dict[str, Tensor]:
        known = record.instrument in self.instruments
        values: dict[str, float | None] = {name: getattr(record, name) for name in SCALARS}
        values["instrument"] = self.instruments.index(record.instrument) if known else None
        found = {name: torch.tensor(float("nan") if v is None else float(v)) for name, v in values.items()}
        if "text" in self.conditions:
            found["text"] = (
                self._vector(record.caption) if record.caption else torch.full((self.encoder_width,), torch.nan)
            )
        return {name: found[name] for name in self.conditions}

    def _vector(self, said: str) -> Tensor:
        """(width,) of a text."""
        vector = torch.from_numpy(text.embed([said], self.encoder)[0])
        if len(vector) != self.encoder_width:
            raise ValueError(
                f"got vectors of width {len(vector)} from the encoder '{self.encoder}'; expected {self.encoder_width}: "
                f"train with modality.encoder_width={len(vector)}"
            )
        return vector

    def decode(self, x: State, mask: State) -> list[Any]:
        real, settings = mask["mel"].squeeze(-1), self.settings
        mels = x["mel"].float() * self.statistics["scale"] + self.statistics["mean"]
        mels = raise_silence(mels, settings, self.gap)
        sound = _vocoder(settings, mels.device)
        waves = [sound(mel[r].unsqueeze(0)).squeeze(0).cpu().numpy() for mel, r in zip(mels, real, strict=True)]
        return [Clip(np.ascontiguousarray(wave, np.float32), settings.rate) for wave in waves]

    def valid(self, record: Clip) -> bool:
        return view.usable(record)

    def labelled(self, records: Sequence[Clip], condition: Condition) -> list[Any]:
        asked = [self._label(condition, row) for row in range(len(records))]
        return [replace(record, **label) for record, label in zip(records, asked, strict=True)]

    def _label(self, condition: Condition, row: int) -> dict[str, Any]:
        """What sample ``row`` was asked to be, as a clip says it."""
        numbers = {k: float(v[row]) for k, v in condition.values.items() if k != "text" and condition.present[k][row]}
        known: dict[str, Any] = {k: v if k == "duration" else round(v) for k, v in numbers.items()}
        if "instrument" in known:
            known["instrument"] = self.instruments[known["instrument"]]
        return known

    # ------------------------------------------------------------------------------------------ requests

    def layout(self, count: int, noise: Noise, request: Request) -> Batch:
        values = dict(request.values)
        frames = self._frames(values.pop("seconds", str(self.seconds)))
        mask = torch.ones(count, frames, 1, dtype=torch.bool)
        x = torch.zeros(count, frames, self.settings.bands)
        return Batch({"mel": x}, {"mel": mask}, self._condition(noise, request.prompt, values), noise.index)

    def _frames(self, said: str) -> int:
        """Whole patches of so many seconds."""
        return -(-self.settings.frames(asking.seconds(said)) // PATCH) * PATCH

    def _condition(self, noise: Noise, prompt: str | None, values: Mapping[str, str]) -> Condition:
        """What was asked for; where that was nothing, every sample has an instrument and a pitch of its own.

        How hard a note is played, and how long it is held, is drawn for every sample as often as the training notes
        have it, where it was not asked for.
        """
        asking.require_known(values, self.conditions)
        if prompt is None and not values:
            return self._whole(self._usual(noise) | self._spread(noise), len(noise.index))
        names, numbers = asking.understood(prompt, values, self.instruments, self._ranges)
        found = {name: torch.full((len(noise.index),), number) for name, number in numbers.items()}
        if names:
            found["instrument"] = self._one_of(names, noise)
        if prompt is not None and "text" in self.conditions and text.installed(self.encoder):
            found["text"] = self._vector(prompt).repeat(len(noise.index), 1)
        if prompt is not None and not found.keys() & set(self.conditions):
            without = "text" in self.conditions  # an encoder, then
            raise ValueError(asking.not_understood(prompt, self.instruments, without))
        usual = self._usual(noise)
        if set(names) and not set(names) & self._ranges.keys():
            usual.pop("duration", None)  # a drum's sound ends by itself
        return self._whole(usual | found, len(noise.index))

    def _usual(self, noise: Noise) -> dict[str, Tensor]:
        """Velocities and durations (B,), as often as the training notes have them."""
        known = {k: torch.tensor(v) for k, v in self.statistics.get("usual", {}).items() if k in self.conditions}
        drawn = {k: noise.fold("usual", k).uniform("mel", ()).cpu() for k in known}
        return {k: v[(drawn[k] * len(v)).long()].float() for k, v in known.items()}

    def _spread(self, noise: Noise) -> dict[str, Tensor]:
        """Instruments and pitches evenly over all that can be played, each a function of the sample's number.

        With their words ("Flute, A5"), where there is an encoder, as of a prompt.
        """
        ranges = playable(self.instruments, self._ranges)
        if not ranges:
            return {}
        drawn = spread(noise.index.tolist(), ranges)
        found = {"instrument": torch.tensor([float(self.instruments.index(name)) for name, _ in drawn])}
        pitches = [pitch for _, pitch in drawn if pitch is not None]
        if len(pitches) == len(drawn):
            found["pitch"] = torch.tensor(pitches).float()
        if "text" in self.conditions and text.installed(self.encoder):
            said = [f"{name}, {note_name(pitch)}" if pitch is not None else name for name, pitch in drawn]
            found["text"] = torch.from_numpy(text.embed(said, self.encoder))
        return found

    @property
    def _ranges(self) -> dict[str, tuple[int, int]]:
        """The lowest and the highest pitch of each instrument that has one."""
        known = zip(self.instruments, self.statistics.get("ranges", []), strict=False)
        return {name: (pitches[0], pitches[1]) for name, pitches in known if pitches}

    def _one_of(self, names: Sequence[str], noise: Noise) -> Tensor:
        """The number (B,) of one of ``names`` for each sample."""
        numbers = torch.tensor([float(self.instruments.index(name)) for name in names])
        drawn = (noise.fold("instrument").uniform("mel", ()) * len(names)).long().clamp(max=len(names) - 1)
        return numbers[drawn.cpu()]

    def _whole(self, found: Mapping[str, Tensor], count: int) -> Condition:
        """With every condition of the model, those that were not asked for as not given."""
        shapes = {name: (count, self.encoder_width) if name == "text" else (count,) for name in self.conditions}
        values = {name: found.get(name, torch.zeros(shape)) for name, shape in shapes.items()}
        return Condition(values, {name: torch.full((count,), name in found) for name in shapes})

    # --------------------------------------------------------------------------------------------- model

    def process(self, **options: Any) -> Product:
        """The leaf's process; options are {mel: {schedule, prediction}}."""
        return Product({"mel": _gaussian(**options.get("mel", {}))})

    def network(self, **options: Any) -> nn.Module:
        return Spectrogram(
            bands=self.settings.bands,
            instruments=len(self.instruments) if "instrument" in self.conditions else 0,
            scalars=tuple(name for name in SCALARS if name in self.conditions),
            text=self.encoder_width if "text" in self.conditions else 0,
            **options,
        )

    def codec(self, **options: Any) -> VocoderCodec:
        """The vocoder in training; options are a recipe's ``codec`` node."""
        return VocoderCodec.of(self.settings, **options)

    def metrics(self, samples: Sequence[Any], **options: Any) -> Mapping[str, Metrics]:
        """Against the training notes; the floor is what held-out ones score, as they are, and encoded and decoded."""
        packed = self.dataset("test", **options).packed
        train, held_out = metrics.Notes.of(packed, "train"), metrics.Notes.of(packed, "valid", "test")
        judge = classifier.load(WEIGHTS / "classifier.safetensors")
        return metrics.with_floor(samples, held_out, train, judge, self._again, ears.installed())

    def _again(self, clips: Sequence[Clip]) -> list[Clip]:
        """Clips encoded and decoded, one by one, for they may differ in length."""
        found = []
        for clip in clips:
            batch = collate([(0, replace(self, conditions=()).encode(clip))])
            found += [replace(clip, wave=made.wave, rate=made.rate) for made in self.decode(batch.x, batch.mask)]
        return found

    def view(self, samples: Sequence[Any], folder: Path) -> Mapping[str, Any]:
        return view.save(samples, folder, self.format)


def _gaussian(schedule: Any = "flow", prediction: Any = "velocity") -> Gaussian:
    return Gaussian(registry.build("schedule", schedule), Euclidean(), registry.build("prediction", prediction))


@cache
def _vocoder(settings: MelSettings, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Spectrograms (1, T, M) to waves (1, samples)."""
    path = WEIGHTS / "vocoder.safetensors"
    if path.exists() and (found := vocoder.load(path)).settings == settings:
        return torch.no_grad()(found.to(device))
    return lambda mel: match(griffin_lim(mel, settings), mel, settings)
