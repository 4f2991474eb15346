r"""Guidance: a function from a denoiser to a denoiser; one small file per family.

Guidance bends the estimate and knows nothing of samplers, so any guidance goes with any sampler, and several compose in
the order written: ``for g in guidances: denoise = g(denoise)``. Whatever is a difference of two estimates has one
convention here,

    guided = u + scale (c - u)

so 1 is no guidance and 0 leaves the stronger estimate c out (of an energy: 1 is the tilted distribution, 0 the plain
one). Papers that write c + s (c - u) mean a scale of 1 + s. It acts on x_0 and eps of a Gaussian leaf and on the
logits of a categorical one (there it is p_u (p_c / p_u)^scale, renormalised; Nisonoff et al. 2024, arXiv:2406.01572,
eq. 3).

Whatever is measured, norms and products, is measured on x_0 or on the velocity of each sample's real elements: so it
depends neither on what the network predicts, nor on padding, nor on the other samples.

A new guidance is a frozen dataclass whose ``__call__`` takes a `Denoise` and gives one (`Guided`); register it in
``diffkit/registry.py``.
"""

from diffkit.guidance.apg import AdaptiveProjected
from diffkit.guidance.base import Guidance, Guided
from diffkit.guidance.cfg import ClassifierFree
from diffkit.guidance.compose import Composition
from diffkit.guidance.energy import Energy
from diffkit.guidance.given import Given
from diffkit.guidance.temperature import Temperature
from diffkit.guidance.top_p import TopP
from diffkit.guidance.weaker import Autoguidance, PerturbedAttention, SkipLayers
from diffkit.guidance.zero import ZeroStar

__all__ = [
    "AdaptiveProjected",
    "Autoguidance",
    "ClassifierFree",
    "Composition",
    "Energy",
    "Given",
    "Guidance",
    "Guided",
    "PerturbedAttention",
    "SkipLayers",
    "Temperature",
    "TopP",
    "ZeroStar",
]
