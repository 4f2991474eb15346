"""Error of samplers against the exact solution, beside diffusers, at 4 to 100 evaluations, in one run.

    python tests/benchmarks/sampling_error.py --out docs/benchmarks

The network is the exact denoiser of a Gaussian mixture in float64, so nothing but the solver errs: what is measured is
the distance of each sample to where the probability-flow ODE leads from the same noise, found by scipy's DOP853 to
1e-10. Two mixtures, in the plane and in 64 dimensions (deviations from 0.03 to 3), under VP (DDPM's table of betas), VE
and flow.

Theirs is the best of all their schedulers and settings, at each budget and for each measure apart: every multistep
scheduler in orders 2 and 3, with their linspace, trailing, Karras, exponential, Lu, beta and flow grids, and final
steps of both kinds. They are given more than a user has: the network is asked at the exact noise level of their state,
and not at the step number that it is rounded to. UniPC's state is float32, as its tables are.

Ours is, likewise, the best of our samplers and grids (``OUR_SAMPLERS``, ``OUR_GRIDS``), and, on its own, one
recommendation: UniPC of order 2 on a grid that was tuned to the model on 64 other samples (`diffkit.tune.optimise`).
"""

import argparse
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffkit import registry
from diffkit.condition import Condition
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import sample
from diffkit.schedule import RectifiedFlow, Schedule, VEKarras, VPTable
from diffkit.testing import Exact, Mixture
from diffkit.tune import Pilots, optimise

BUDGETS = (4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
BATCH, TUNED_UP_TO = 256, 20
SCHEDULES: dict[str, Schedule] = {"vp": VPTable.linear(), "ve": VEKarras(), "flow": RectifiedFlow()}
OUR_SAMPLERS: tuple[Any, ...] = (
    {"name": "unipc", "order": 2},
    {"name": "unipc", "order": 3},
    {"name": "unipc", "order": 3, "variant": "bh1"},
    {"name": "unipc", "order": 3, "lower_final": True},
    "dpmpp_2m",
    "dpmpp_3m",
    {"name": "deis", "order": 2},
    {"name": "deis", "order": 3},
    {"name": "lms", "order": 2},
    {"name": "lms", "order": 3},
    {"name": "lms", "order": 4},
    "ipndm",
    "heun",
)
OUR_GRIDS: dict[str, tuple[Any, ...]] = {
    "vp": (
        *({"name": "power", "power": p} for p in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)),
        *({"name": "karras", "sigma_min": low, "sigma_max": 1e3} for low in (0.002, 0.01)),
        *({"name": "karras", "sigma_min": low, "sigma_max": 1e3, "rho": 9.0} for low in (0.01, 0.015)),
        *({"name": "exponential", "sigma_min": low, "sigma_max": 1e3} for low in (0.002, 0.005, 0.008, 0.01)),
        "beta",
        "log_snr",
    ),
    "ve": (
        *({"name": "karras", "sigma_min": low} for low in (0.002, 0.01)),
        {"name": "karras", "rho": 5.0},
        *({"name": "exponential", "sigma_min": low} for low in (0.002, 0.01)),
        "power",
    ),
    "flow": (
        *({"name": "shifted", "shift": s} for s in (0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 4.0)),
        *({"name": "power", "power": p} for p in (1.3, 1.6)),
        *({"name": "beta", "alpha": a, "beta": a} for a in (0.5, 0.6, 0.7, 0.8)),
        *({"name": "beta", "alpha": a, "beta": b} for a, b in ((0.9, 0.7), (1.0, 0.8))),
        "exponential",
    ),
}
OUR_STARTS = {"vp": (1.0,), "ve": (1.0,), "flow": (1.0, 0.999, 1 - 1e-6)}
"""Where grids begin; those of a flow also where theirs do: from pure noise exponential methods lose two steps."""


def plane() -> Mixture:
    means = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [1.5, -2.0]], dtype=torch.float64)
    deviations = torch.tensor([[0.5, 0.4], [0.3, 0.6], [0.7, 0.3]], dtype=torch.float64)
    return Mixture.gaussian(means, deviations, torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64))


def wide() -> Mixture:
    deviations = torch.logspace(-1.5, 0.5, 64, dtype=torch.float64).expand(4, 64)
    means = deviations * Noise.of(0, 4).normal("m", (64,), torch.float64)
    return Mixture.gaussian(means, deviations, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64))


DATA: dict[str, Callable[[], Mixture]] = {"2-D": plane, "64-D": wide}


@dataclass(frozen=True)
class Problem:
    """A denoiser, the noise to start from, and the exact end."""

    denoise: Exact
    schedule: Schedule
    start: Tensor
    exact: Tensor

    @classmethod
    def of(cls, data: str, schedule: str) -> "Problem":
        process = Product({"x": Gaussian(SCHEDULES[schedule])})
        denoise = DATA[data]().denoise(process)
        event = tuple(denoise.mixture.leaves["x"].means.shape[1:])  # type: ignore[union-attr]
        unit = Noise.of(1, BATCH).normal("x", event, torch.float64)
        problem = cls(denoise, SCHEDULES[schedule], SCHEDULES[schedule].at(1.0)[1] * unit, unit)
        return cls(denoise, problem.schedule, problem.start, problem._solve())

    def eps(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """(x_0, eps) where x = alpha x_0 + sigma eps, whatever the schedule has to say of such coefficients."""
        t = self.schedule.time_at(2 * math.log(alpha / sigma) if alpha > 0 else -math.inf)
        a, s = self.schedule.at(t)
        said = self.denoise({"x": x * ((a + s) / (alpha + sigma))}, t, Condition(), {})["x"]
        return said.x0, said.eps  # type: ignore[union-attr]

    def _solve(self) -> Tensor:
        """In x = cos(u) x_0 + sin(u) eps the ODE is dx/du = cos(u) eps - sin(u) x_0, regular at both ends."""
        alpha, sigma = self.schedule.at(1.0)
        first = math.atan2(sigma, alpha)

        def slope(u: float, flat: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(flat).reshape(self.start.shape)
            x0, eps = self.eps(x, math.cos(u), math.sin(u))
            return (math.cos(u) * eps - math.sin(u) * x0).flatten().numpy()

        start = (self.start / math.hypot(alpha, sigma)).flatten().numpy()
        found = solve_ivp(slope, (first, 1e-7), start, method="DOP853", rtol=1e-10, atol=1e-10)
        x = torch.from_numpy(found.y[:, -1]).reshape(self.start.shape)
        return self.eps(x, math.cos(1e-7), math.sin(1e-7))[0]

    def errors(self, x: Tensor) -> Tensor:
        """Root-mean-square error of each sample."""
        return (x.double() - self.exact).square().mean(1).sqrt()


# ------------------------------------------------------------------------------------------------- theirs

THEIR_GRIDS: tuple[dict[str, Any], ...] = (
    {},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_lu_lambdas": True},
    {"use_beta_sigmas": True},
)
FINAL: tuple[dict[str, Any], ...] = ({}, {"euler_at_final": True})
FLOWS: tuple[dict[str, Any], ...] = tuple(
    {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"} for shift in (1.0, 2.0, 4.0)
)


def schedulers(schedule: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of every one of theirs that can serve a schedule."""
    if schedule == "ve":
        for options in ({"sigma_schedule": "karras"}, {"sigma_schedule": "exponential"}):
            edm = {"sigma_min": 0.002, "sigma_max": 80.0, **options}
            yield "EDMEulerScheduler", edm
            for order in (2, 3):
                for final in FINAL:
                    yield "EDMDPMSolverMultistepScheduler", {**edm, "solver_order": order, **final}
        return
    if schedule == "flow":
        for shift in (1.0, 2.0, 4.0):
            yield "FlowMatchEulerDiscreteScheduler", {"shift": shift}
            yield "FlowMatchHeunDiscreteScheduler", {"shift": shift}
    grids = THEIR_GRIDS if schedule == "vp" else FLOWS
    for grid in grids:
        if schedule == "vp" and "use_lu_lambdas" not in grid:
            yield "EulerDiscreteScheduler", grid
            yield "HeunDiscreteScheduler", grid
            yield "LMSDiscreteScheduler", grid
        for order in (2, 3):
            for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
                finals = FINAL if name == "DPMSolverMultistepScheduler" else ({},)
                for final in finals:
                    yield name, {**grid, "solver_order": order, **final}
    if schedule == "vp":
        yield "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}


def theirs(problem: Problem, name: str, options: dict[str, Any], budget: int) -> Tensor | None:
    """Their samples at ``budget`` evaluations; None where they cannot."""
    kind = getattr(diffusers, name)
    if not set(options) <= set(
        kind.__init__.__signature__.parameters if hasattr(kind.__init__, "__signature__") else options
    ):
        return None
    twice = "Heun" in name
    if twice and budget % 2 == 0:
        return None
    try:
        scheduler = kind(**options)
        scheduler.set_timesteps((budget + 1) // 2 if twice else budget)
        return _their_loop(problem, scheduler, name)
    except (ValueError, TypeError, NotImplementedError, IndexError, AttributeError):
        return None


def _their_loop(problem: Problem, scheduler: Any, name: str) -> Tensor | None:
    flow = "Flow" in name or getattr(scheduler.config, "use_flow_sigmas", False)
    ratio_space = name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler") or "EDM" in name
    wide_type = torch.float32 if "UniPC" in name else torch.float64
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    x = problem.start.to(wide_type)
    for k, t in enumerate(scheduler.timesteps):
        if name == "DDIMScheduler":
            bar = float(scheduler.alphas_cumprod.double()[t])
            alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        else:
            if getattr(scheduler, "step_index", None) is None:
                scheduler._init_step_index(t)
            ratio = float(scheduler.sigmas[scheduler.step_index])
            alpha, sigma = (1 - ratio, ratio) if flow else (1.0, ratio)
            if not flow and not ratio_space:
                alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        if k == 0:  # pure noise of their own size, the same direction as ours
            _, s = problem.schedule.at(1.0)
            x = (problem.start / s * (sigma if flow else math.hypot(alpha, sigma))).to(wide_type)
        x0, eps = problem.eps(x.double(), alpha, sigma)
        output = eps - x0 if flow else eps
        if "EDM" in name:  # their network's output is preconditioned: what leads to this x_0
            data = scheduler.config.sigma_data
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
            output = (x0 - skip * x.double()) / out
        scheduler.is_scale_input_called = True
        x = scheduler.step(output.to(wide_type), t, x).prev_sample
    return x.double()


# --------------------------------------------------------------------------------------------------- ours


def drawn(problem: Problem, sampler: Any, times: Tensor) -> Tensor:
    """Our samples on a grid, from noise of the size that it has at the first time, in the same direction."""
    size = problem.schedule.at(float(times[0]))[1] / problem.schedule.at(1.0)[1]
    start, noise = {"x": size * problem.start}, Noise.of(1, BATCH)
    return sample(problem.denoise, {}, sampler=sampler, times=times, noise=noise, start=start).x["x"]


def ours(problem: Problem, schedule: str, budget: int) -> list["Score"]:
    """All of ours at ``budget`` evaluations."""
    scores = []
    for node, grid in product(OUR_SAMPLERS, OUR_GRIDS[schedule]):
        twice = node == "heun"
        if twice and budget % 2 == 0:
            continue
        times = registry.build("grid", grid)((budget + 1) // 2 if twice else budget, problem.schedule)
        for first in OUR_STARTS[schedule]:
            x = drawn(problem, registry.build("sampler", node), times * first)
            scores.append(Score.of(problem, x, f"{named(node)} on {named(grid)}{f' from {first:g}' * (first < 1)}"))
    return scores


def named(node: Any) -> str:
    """A node as the command line has it."""
    if isinstance(node, str):
        return node
    options = ",".join(f"{k}={v}" for k, v in node.items() if k != "name")
    return f"{node['name']}:{options}" if options else node["name"]


def tuned(problem: Problem, budget: int) -> "Score":
    """UniPC on a grid made for the model."""
    sampler = registry.build("sampler", "unipc")
    pilots = Pilots(problem.denoise, {"x": (64, *problem.start.shape[1:])}, Noise.of(2, 64))
    grid = optimise(pilots, sampler, budget)
    return Score.of(problem, drawn(problem, sampler, grid(budget, problem.schedule)), "unipc, tuned")


@dataclass(frozen=True)
class Score:
    """Median and mean over samples of the error, and whose it is."""

    median: float
    mean: float
    who: str = ""

    @classmethod
    def of(cls, problem: Problem, x: Tensor, who: str = "") -> "Score":
        errors = problem.errors(x)
        return cls(float(errors.median()), float(errors.mean()), who)


def best(scores: list[Score]) -> Score:
    """The least median and the least mean, wherever each is from."""
    scores = [s for s in scores if math.isfinite(s.mean)]
    median, mean = min(scores, key=lambda s: s.median), min(scores, key=lambda s: s.mean)
    return Score(median.median, mean.mean, f"{median.who} / {mean.who}")


def compare(data: str, schedule: str, budget: int, problem: Problem) -> dict[str, Any]:
    """All of theirs, and ours."""
    others = []
    for name, options in schedulers(schedule):
        x = theirs(problem, name, options, budget)
        if x is not None:
            said = ", ".join(f"{k}={v}" for k, v in options.items() if k not in ("prediction_type", "clip_sample"))
            others.append(Score.of(problem, x, f"{name.removesuffix('Scheduler')}({said})"))
    mine = ours(problem, schedule, budget)
    row: dict[str, Any] = {"data": data, "schedule": schedule, "budget": budget, "tried": [len(others), len(mine)]}
    if budget <= TUNED_UP_TO:
        mine.append(tuned(problem, budget))
        row["tuned"] = asdict(mine[-1])
    row["all"] = {score.who: score.mean for score in mine}
    return row | {"theirs": asdict(best(others)), "ours": asdict(best(mine))}


def ratio(row: dict[str, Any], kind: str) -> tuple[float, float]:
    """Our error over theirs, of the medians and of the means."""
    return row[kind]["median"] / row["theirs"]["median"], row[kind]["mean"] / row["theirs"]["mean"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| schedule | data | evaluations | theirs: median, mean | **ours over theirs** | tuned UniPC over theirs |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for r in rows:
        cells = [
            f"{r['schedule']} | {r['data']} | {r['budget']} | {r['theirs']['median']:.2g}, {r['theirs']['mean']:.2g}"
        ]
        cells += ["{:.2f}, {:.2f}".format(*ratio(r, kind)) if kind in r else "" for kind in ("ours", "tuned")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def choices(rows: list[dict[str, Any]], budgets: tuple[int, ...] = (5, 8, 10, 20, 50), most: int = 6) -> str:
    """Which setting, as Markdown: its mean error over the least that any of ours has, over both data, at each budget.

    The settings are those with the least geometric mean over all budgets, from pure noise.
    """
    parts = []
    for schedule in SCHEDULES:
        some = [r for r in rows if r["schedule"] == schedule and r["budget"] in budgets]
        who = {w for w in set.intersection(*(set(r["all"]) for r in some)) if " from " not in w}
        worth = {w: [math.prod(r["all"][w] / min(r["all"].values()) for r in some if r["budget"] == b) ** 0.5
                     for b in budgets] for w in who}  # fmt: skip
        ranked = sorted(who, key=lambda w: math.prod(worth[w]))[:most]
        lines = [f"| {schedule} | " + " | ".join(f"{b} evaluations" for b in budgets) + " |", "|---" * 6 + "|"]
        lines += [f"| `{w}` | " + " | ".join(f"{v:.1f}" for v in worth[w]) + " |" for w in ranked]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Median errors over evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(DATA), len(SCHEDULES), figsize=(10, 5.5), sharex=True)
    for (i, data), (j, schedule) in product(enumerate(DATA), enumerate(SCHEDULES)):
        some = [r for r in rows if r["data"] == data and r["schedule"] == schedule]
        for kind, style in (("theirs", "o--"), ("ours", "o-"), ("tuned", "x:")):
            line = [(r["budget"], r[kind]["median"]) for r in some if kind in r]
            axes[i][j].loglog(
                *zip(*line, strict=True), style, label={"theirs": "diffusers", "ours": "diffkit"}.get(kind, kind)
            )
        axes[i][j].set_title(f"{schedule}, {data}", fontsize=9)
    axes[0][0].legend(fontsize=8)
    figure.supxlabel("evaluations of the network")
    figure.supylabel("median error")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write error.json, error.md and error.png here")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for schedule, data in product(SCHEDULES, DATA):
        problem = Problem.of(data, schedule)
        for budget in given.budgets:
            rows.append(compare(data, schedule, budget, problem))
            print(table(rows[-1:]).splitlines()[-1], rows[-1]["ours"]["who"], "against", rows[-1]["theirs"]["who"])
    worse = [r for r in rows if max(ratio(r, "ours")) > 1]
    print(
        f"{len(rows)} comparisons; theirs is better in {len(worse)}: "
        f"{[(r['schedule'], r['data'], r['budget']) for r in worse]}"
    )
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        kept = [{k: v for k, v in r.items() if k != "all"} for r in rows]
        record = {"torch": torch.__version__, "diffusers": diffusers.__version__, "rows": kept}
        (given.out / "error.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (given.out / "error.md").write_text(table(rows), encoding="utf-8")
        (given.out / "choices.md").write_text(choices(rows), encoding="utf-8")
        plot(rows, given.out / "error.png")


if __name__ == "__main__":
    main()
