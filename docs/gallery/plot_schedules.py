"""
Noise schedules
===============

A schedule is two numbers for each time, alpha and sigma of :math:`x_t = \\alpha_t x_0 + \\sigma_t \\epsilon`. Time
runs from 0 (data) to 1 (noise). All else follows from the pair, the log signal-to-noise ratio first of all.
"""

import matplotlib.pyplot as plt
import torch

from diffkit.schedule import Cosine, RectifiedFlow, VEKarras, VPLinear

schedules = {
    "VP, linear beta": VPLinear(),
    "cosine": Cosine(),
    "rectified flow": RectifiedFlow(),
    "rectified flow, shift 3": RectifiedFlow(shift=3.0),
    "VE, sigma up to 80": VEKarras(),
}

# %%
# What is left of the data, and how much noise has been added. The variance-exploding schedule keeps alpha at 1, and its
# sigma leaves the picture.

t = torch.linspace(0, 1, 401, dtype=torch.float64)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharex=True)
for name, schedule in schedules.items():
    alpha, sigma = schedule(t)
    axes[0].plot(t, alpha, label=name)
    axes[1].plot(t, sigma, label=name)
axes[0].set(xlabel="t", ylabel="alpha")
axes[1].set(xlabel="t", ylabel="sigma", ylim=(0, 1.1))
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %%
# On the scale of the log-SNR all of them fall from data to noise. Where two schedules have the same log-SNR, their
# :math:`x_t` differ by a factor alone: a model trained under one is sampled under the other by matching it
# (``Denoiser.under``).

figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, schedule in schedules.items():
    axis.plot(t[1:-1], schedule.log_snr(t[1:-1]), label=name)
axis.set(xlabel="t", ylabel="log-SNR", ylim=(-15, 20))
axis.legend(frameon=False, fontsize=8)
plt.show()
