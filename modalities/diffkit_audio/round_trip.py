"""What is lost between a sound, its spectrogram and a sound again: the vocoder on real clips, Griffin-Lim beside it.

    python -m diffkit_audio.round_trip

prints, over clips of the notes' test split, the distance of spectra at three resolutions, that of log-mel spectrograms,
and the error of pitch in cents by autocorrelation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from diffkit.report import Metric, Metrics, table
from diffkit_audio import data, spectra, vocoder
from diffkit_audio.mel import MelSettings, griffin_lim, log_mel

__all__ = ["figures", "main", "measure"]

SHIPPED = Path(__file__).parent / "weights" / "notes" / "vocoder.safetensors"
AT_ONCE = 8
A4, CONCERT = 69, 440.0


def measure(made: Tensor, real: Tensor, pitches: list[int | None], settings: MelSettings) -> Metrics:
    """Figures of waves ``made`` (B, S) beside those that they should be.

    Args:
        pitches: MIDI number of each; None for one that has none.
    """
    count = len(real)
    apart = {
        "log spectral distance": spectra.distance(made, real),
        "spectral convergence": spectra.convergence(made, real),
        "log-mel distance": (log_mel(made, settings) - log_mel(real, settings)).abs().mean((1, 2)),
    }
    periods = [None if p is None else settings.rate / (CONCERT * 2 ** ((p - A4) / 12)) for p in pitches]
    off = torch.tensor([spectra.cents(a, b, p) for a, b, p in zip(made, real, periods, strict=True) if p is not None])
    off = off[~off.isnan()].abs()
    return {name: Metric(float(value.mean()), count, "clips") for name, value in apart.items()} | {
        "pitch error, median": _of(off, lambda x: float(x.median()), "cents"),
        "pitch error, 90 % below": _of(off, lambda x: float(x.quantile(0.9)), "cents"),
        "within 10 cents": _of(off, lambda x: float((x < 10).double().mean()), "share"),
    }


def _of(off: Tensor, figure: Callable[[Tensor], float], unit: str) -> Metric:
    return Metric(figure(off) if len(off) else float("nan"), len(off), "clips with a pitch", unit)


@torch.no_grad()
def figures(waves: Tensor, pitches: list[int | None], network: vocoder.Vocoder, iterations: int = 60) -> str:
    """A table of the network's round trip and of Griffin-Lim's, of waves (B, S)."""
    settings = network.settings
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "vocoder": network,
        f"Griffin-Lim, {iterations} iterations": lambda mel: griffin_lim(mel, settings, iterations),
    }
    waves = waves[:, : waves.shape[1] // settings.hop * settings.hop]
    columns = {}
    for name, way in ways.items():
        begin = perf_counter()
        made = torch.cat([way(log_mel(part, settings)) for part in waves.split(AT_ONCE)])
        taken = (perf_counter() - begin) / (waves.numel() / settings.rate)
        columns[name] = measure(made, waves, pitches, settings) | {
            "seconds of work": Metric(taken, len(waves), "clips", "of a second of sound")
        }
    return table(columns)


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m diffkit_audio.round_trip", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--vocoder", type=Path, default=SHIPPED, help="a file, or the folder of a run (the shipped one)"
    )
    parser.add_argument("--source", default="notes", help="notes, speech or sample (%(default)s)")
    parser.add_argument("--path", type=Path, help="a folder of sound instead")
    parser.add_argument("--split", default="test", help="train, valid or test (%(default)s)")
    parser.add_argument("-n", "--count", type=int, default=200, help="clips, spread evenly (%(default)s)")
    parser.add_argument("--iterations", type=int, default=60, help="of Griffin-Lim (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        print(_report(given))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(given: argparse.Namespace) -> str:
    if given.count < 1:
        raise ValueError(f"got {given.count} clips; expected at least one")
    network = vocoder.load(given.vocoder)
    source = None if given.path else given.source
    clips = data.load(given.split, source, given.path, waveforms=True, mel=network.settings)
    if not len(clips):
        raise ValueError(f"got the split '{given.split}', which is empty; expected one with clips")
    chosen = torch.linspace(0, len(clips) - 1, min(given.count, len(clips))).long().tolist()
    pitches = [clips.records(n).pitch for n in chosen]
    return figures(clips.batch(chosen).x["wave"], pitches, network, given.iterations)


if __name__ == "__main__":
    raise SystemExit(main())
