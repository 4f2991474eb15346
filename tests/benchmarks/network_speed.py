"""Training speed of the molecule network: eager and compiled, float32 and bfloat16, side by side in one run.

    python tests/benchmarks/network_speed.py

One step is a forward and a backward pass of molecule/qm9's network on 512 molecules of the shipped sample. Prints
molecules a second and, as machines differ and drift, the ratio to eager float32.
"""

import time

import torch

from diffkit import recipe
from diffkit.fit import prepare
from diffkit.noise import Noise

BATCH, TRIES, STEPS = 512, 3, 4


def best_seconds(run, precision: torch.dtype) -> float:  # type: ignore[no-untyped-def]
    """Seconds of one step, the best of a few tries."""

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            losses = run.module.losses(batch, times, noise)
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()

    batch = run.loaders.train.batch(range(BATCH))
    noise, times = Noise(0, batch.index), torch.rand(BATCH)
    step()
    taken = []
    for _ in range(TRIES):
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        taken.append((time.perf_counter() - began) / STEPS)
    return min(taken)


def main() -> None:
    """Measure and print."""
    speeds: dict[str, float] = {}
    for compiled in (False, True):
        for precision in (torch.float32, torch.bfloat16):
            run = prepare(recipe.load("molecule/qm9", ["data.source=sample"]))
            if compiled:
                run.model.network.compile()
            name = f"{'compiled' if compiled else 'eager'} {str(precision).removeprefix('torch.')}"
            speeds[name] = BATCH / best_seconds(run, precision)
    slowest = speeds["eager float32"]
    for name, speed in speeds.items():
        print(f"{name:<18} {speed:7.0f} molecules/s  {speed / slowest:.2f}x")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
