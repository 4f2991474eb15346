"""
Two moons, from noise
=====================

The core alone, without Lightning, recipes or the command line: a small network learns two moons, and the loop
records how a thousand points get there.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from diffkit import Condition, Denoiser, Gaussian, Noise, Product
from diffkit.sample import sample
from diffkit.samplers import DDIM, DPMpp2M
from diffkit.schedule import RectifiedFlow

# %%
# The data: two half circles, one turned about the origin against the other.


def moons(count: int) -> dict[str, Tensor]:
    angle, side = math.pi * torch.rand(count), 2 * torch.randint(2, (count,)) - 1
    return {"xy": torch.stack([side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)], dim=1)}


# %%
# The state has one leaf, ``xy``, with a Gaussian process. The network's output is read as a v-prediction unless
# another is named.

torch.manual_seed(0)
mlp = nn.Sequential(
    nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
)
process = Product({"xy": Gaussian(RectifiedFlow())})
denoiser = Denoiser(lambda x, t, condition, mask: {"xy": mlp(torch.cat([x["xy"], t[:, None]], dim=1))}, process)

# %%
# Training: draw a time in (0, 1] for every point, add that much noise, ask the network what it sees. The noise is a
# function of the seed, the step and the number of the sample.

noise = Noise.of(seed=0, count=512)
optimiser = torch.optim.Adam(mlp.parameters(), lr=5e-3)
for step in range(1000):
    x0, t = moons(512), 1 - torch.rand(512)
    x_t = process.corrupt(x0, t, noise.fold("step", step), mask={})
    output = denoiser.output(x_t, t, Condition(), mask={})
    loss = process.loss(output, x0, x_t, t, mask={})["xy"].mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

# %%
# Twenty steps of DPM-Solver++(2M). Every recorded step holds :math:`x_t` (above) and the estimate of :math:`x_0`
# made from it (below): it starts as the mean of the data and ends as a sample.

drawn = sample(
    denoiser,
    {"xy": (1000, 2)},
    sampler=DPMpp2M(),
    times=torch.linspace(1, 0, 21),
    noise=Noise.of(seed=1, count=1000),
    record=True,
)
figure, axes = plt.subplots(2, 5, figsize=(10, 4.2), layout="constrained", sharex=True, sharey=True)
for column, index in zip(axes.T, (0, 5, 10, 15, 19), strict=True):
    step = drawn.steps[index]
    column[0].scatter(*step.x_t["xy"].T, s=2)
    column[1].scatter(*step.estimates["xy"].x0.T, s=2, color="tab:orange")
    column[0].set(title=f"t = {step.t:.2f}", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
axes[0, 0].set_ylabel("x_t")
axes[1, 0].set_ylabel("estimate of x_0")
plt.show()

# %%
# The paths of forty points. A deterministic sampler follows one curve from each point of noise; with eta = 1 the
# walk is the ancestral one, and ends in the same distribution.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained", sharex=True, sharey=True)
for axis, eta in zip(axes, (0.0, 1.0), strict=True):
    drawn = sample(
        denoiser,
        {"xy": (40, 2)},
        sampler=DDIM(eta=eta),
        times=torch.linspace(1, 0, 51),
        noise=Noise.of(seed=2, count=40),
        record=True,
    )
    path = torch.stack([*(step.x_t["xy"] for step in drawn.steps), drawn.x["xy"]])
    axis.plot(*path.unbind(-1), color="tab:blue", linewidth=0.6, alpha=0.6)
    axis.scatter(*drawn.x["xy"].T, s=8, color="tab:orange", zorder=2)
    axis.set_title(f"DDIM, eta = {eta:g}")
plt.show()
