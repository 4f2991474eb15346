"""What a sampler costs beyond the network: time of a step, beside diffusers in the same run, and memory.

    python tests/benchmarks/sampling_cost.py --out docs/benchmarks

The network is a fixed tensor that costs nothing, so the time of a loop is that of the sampler and of all that stands
between it and the network: ours the whole denoiser, theirs ``scale_model_input`` and ``step``. One core, float32, 100
steps. Both loops take turns, and what is reported is the quickest turn of each, in processor time: what else the
machine does, it does to both.

Memory is the peak of live tensors (by the allocator's account) of a loop, less that of the network alone,
which is a real one here, and of its input, in units of the state; beside it, the states that a method has to remember
from one step to the next. The peak is to be no more than three and those.
"""

import argparse
import ctypes
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diffkit import registry
from diffkit.denoiser import Denoiser
from diffkit.grid import Power
from diffkit.noise import Noise
from diffkit.prediction import Eps, Prediction, Velocity
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import Step, walk
from diffkit.samplers import Call, SamplerState
from diffkit.schedule import RectifiedFlow, Schedule, VPTable

STEPS, TURNS = 100, 60
TABLE = VPTable.linear()
SHAPES: dict[str, tuple[int, ...]] = {"4x4x64x64": (4, 4, 64, 64), "ragged 16x1024x4": (16, 1024, 4)}
MEASURED: dict[str, tuple[Any, Schedule, Prediction, Callable[[], Any], float]] = {
    "DDIM": ("ddim", TABLE, Eps(), lambda: diffusers.DDIMScheduler(clip_sample=False), 0.25),
    "Euler": ("euler", TABLE, Eps(), diffusers.EulerDiscreteScheduler, 0.25),
    "DPM++ 2M": ("dpmpp_2m", TABLE, Eps(), diffusers.DPMSolverMultistepScheduler, 0.25),
    "UniPC": ("unipc", TABLE, Eps(), diffusers.UniPCMultistepScheduler, 0.25),
    "FlowMatchEuler": ("euler", RectifiedFlow(), Velocity(), diffusers.FlowMatchEulerDiscreteScheduler, 1.0),
}
"""Name -> our sampler, schedule and prediction, their scheduler, and the ratio that is asked for."""


REMEMBERED = (
    "ddim",
    "euler",
    "ancestral",
    "euler_ancestral",
    "edm",
    "heun",
    "midpoint",
    "dpmpp_2s",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "deis",
    "lms",
    "unipc",
    "sa_solver",
)


@dataclass(frozen=True)
class Cost:
    """Microseconds a step, ours and theirs, and their ratio."""

    sampler: str
    shape: str
    ours_us: float
    theirs_us: float
    ratio: float
    bar: float


@dataclass(frozen=True)
class Memory:
    """States at the peak beyond the network's own, and states that are remembered between steps."""

    peak: float
    remembered: int


def ours(sampler: str, schedule: Schedule, prediction: Prediction, x: Tensor, pred: Tensor, mask: Any) -> Any:
    """A loop of ours."""
    process = Product({"x": Gaussian(schedule, prediction=prediction)})
    denoiser = Denoiser(lambda x, t, condition, mask: {"x": pred}, process)
    call, noise = Call(denoiser, mask=mask), Noise.of(0, len(x))
    grid, built = Power()(STEPS, schedule).tolist(), registry.build("sampler", sampler)
    return lambda: walk(call, built, {"x": x}, grid, noise)


def theirs(make: Callable[[], Any], x: Tensor, pred: Tensor) -> Callable[[], None]:
    """A loop of theirs, its tables made beforehand."""

    def loop() -> None:
        state = x
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(state, t)
            state = scheduler.step(pred, t, state).prev_sample

    scheduler = make()

    def whole() -> float:
        scheduler.set_timesteps(STEPS)
        return seconds(loop)

    return whole  # type: ignore[return-value]


def seconds(loop: Callable[[], Any]) -> float:
    """Of this thread's own processor time, which does not run while others have the core."""
    began = time.thread_time()
    loop()
    return time.thread_time() - began


def measure(name: str, shape: str) -> Cost:
    """Both loops by turns."""
    sampler, schedule, prediction, make, bar = MEASURED[name]
    x, pred = torch.randn(SHAPES[shape]), torch.randn(SHAPES[shape])
    lengths = torch.arange(1, len(x) + 1) * x.shape[1] // len(x)
    real = (
        (torch.arange(x.shape[1]) < lengths.unsqueeze(1)).unsqueeze(2).expand(x.shape[:3])
        if "ragged" in shape
        else None
    )
    mask = {} if real is None else {"x": real.contiguous()}  # as `sample` makes it
    mine, other = ours(sampler, schedule, prediction, x, pred, mask), theirs(make, x, pred)
    seconds(mine), other()  # to warm up
    turns = [(seconds(mine), other()) for _ in range(TURNS)]
    quickest = [1e6 * min(column) / STEPS for column in zip(*turns, strict=True)]
    return Cost(name, shape, quickest[0], quickest[1], quickest[0] / quickest[1], bar)


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that ``run`` holds at once, by the allocator's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    now = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def kept(memory: Any) -> set[int]:
    """The addresses of the tensors in what a sampler remembers."""
    if isinstance(memory, Tensor):
        return {memory.data_ptr()}
    if is_dataclass(memory):
        memory = vars(memory)
    parts = memory.values() if isinstance(memory, Mapping) else memory if isinstance(memory, tuple) else ()
    return set().union(*map(kept, parts))


def memory(sampler: str) -> Memory:
    """Peak beyond the network's own, and what is remembered, in states."""
    layer = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(SHAPES["4x4x64x64"])
    process = Product({"x": Gaussian(TABLE, prediction=Eps())})
    denoiser = Denoiser(lambda x, t, condition, mask: {"x": layer(x["x"])}, process)
    call, noise = Call(denoiser), Noise.of(0, len(x))
    built, grid = registry.build("sampler", sampler), Power()(6, TABLE).tolist()
    remembered: list[int] = []

    def count(step: Step, state: SamplerState) -> bool:
        remembered.append(len(kept(state.memory)))
        return False

    walk(call, built, {"x": x}, grid, noise, count)
    loop = peak(lambda: walk(call, built, {"x": x}, grid, noise))
    alone = peak(lambda: layer(x.clone()))  # with its input, which in a loop is a state
    return Memory((loop - alone) / x.nbytes, max(remembered))


def table(costs: list[Cost], states: Mapping[str, Memory]) -> str:
    """Markdown."""
    lines = [
        "| sampler | state | ours, µs a step | diffusers, µs a step | ratio | asked for |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.sampler} | {c.shape} | {c.ours_us:.0f} | {c.theirs_us:.0f} | **{c.ratio:.2f}** | {c.bar:g} |"
        for c in costs
    ]
    lines += ["", "| sampler | states beyond the network's own, at the peak | asked for: 3 and what is remembered |"]
    lines += ["|---|---|---|"]
    lines += [f"| `{name}` | {m.peak:.1f} | 3 + {m.remembered} |" for name, m in states.items()]
    return "\n".join(lines) + "\n"


def plot(costs: list[Cost], path: Path) -> None:
    """Ratios as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    names = [f"{c.sampler}\n{c.shape}" for c in costs]
    axes.bar(names, [c.ratio for c in costs], color="#3b6ea5")
    axes.scatter(names, [c.bar for c in costs], color="#c0392b", marker="_", s=600, label="asked for")
    axes.set_ylabel("ours / diffusers")
    axes.tick_params(axis="x", labelsize=6)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def keep_memory() -> None:
    """Let glibc keep what is freed, for both sides: else it is chance whether such a tensor costs page faults."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


@torch.no_grad()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write cost.json, cost.md and cost.png here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    logging.disable(logging.WARNING)
    costs = [measure(name, shape) for name in MEASURED for shape in SHAPES]
    states = {name: memory(name) for name in REMEMBERED}
    print(table(costs, states))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        record = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        record |= {"costs": [asdict(c) for c in costs], "states": {k: asdict(m) for k, m in states.items()}}
        (given.out / "cost.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (given.out / "cost.md").write_text(table(costs, states), encoding="utf-8")
        plot(costs, given.out / "cost.png")


if __name__ == "__main__":
    main()
