"""Completion against exact answers: a part of the data given, the rest drawn from its distribution given that part."""

import pytest
import torch

from diffkit.condition import Condition
from diffkit.data import Sealed, collate
from diffkit.denoiser import Denoiser
from diffkit.estimate import weigh
from diffkit.guidance import ClassifierFree, Given
from diffkit.modality import Example
from diffkit.noise import Noise
from diffkit.process import Gaussian
from diffkit.product import Product
from diffkit.sample import sample
from diffkit.samplers import DDIM, Ancestral, DPMpp2M, Heun
from diffkit.schedule import Cosine, RectifiedFlow
from diffkit.testing import mixed
from diffkit.times import Uniform
from diffkit.training import DiffusionModule, Optimisation

COUNT = 3000


def given(count=COUNT):
    """Of each sample the first coordinate is -1.2 and the second class 1."""
    x0 = {"x": torch.tensor([[-1.2, 0.0]]).repeat(count, 1), "c": torch.tensor([[0, 1]]).repeat(count, 1)}
    where = {"x": torch.tensor([[True, False]]).repeat(count, 1), "c": torch.tensor([[False, True]]).repeat(count, 1)}
    return Given(x0, where)


def shares(mixture, label=None):
    """p(component | what is given), by Bayes' rule."""
    normals, classes = mixture.leaves["x"], mixture.leaves["c"]
    weights = mixture.weights.mean(0) if label is None else mixture.weights[label]
    m, s = normals.means[:, 0], normals.deviations[:, 0]
    evidence = weights * torch.exp(-(((-1.2 - m) / s) ** 2) / 2) / s * classes.probabilities[:, 1, 1]
    return evidence / evidence.sum()


@pytest.mark.parametrize(
    ("sampler", "schedule", "absorbing"),
    [
        (Ancestral(), RectifiedFlow(), False),
        (DDIM(), Cosine(), True),
        (Heun(), RectifiedFlow(), True),
        (DPMpp2M(), Cosine(), False),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_rest_is_drawn_from_its_distribution_given_the_part(sampler, schedule, absorbing):
    case = mixed(schedule, absorbing)
    part = given()
    drawn = sample(
        part(case.mixture.denoise(case.process)),
        {"x": (COUNT, 2), "c": (COUNT, 2)},
        sampler=sampler,
        times=torch.linspace(1, 0, 41),
        noise=Noise.of(1, COUNT),
    ).x
    assert (drawn["x"][:, 0] + 1.2).abs().max() < 1e-5 and (drawn["c"][:, 1] == 1).all()
    kept = part.kept(drawn)
    assert torch.equal(kept["x"][:, 0], part.x0["x"][:, 0])
    p = shares(case.mixture)
    normals, classes = case.mixture.leaves["x"], case.mixture.leaves["c"]
    m, s = normals.means[:, 1], normals.deviations[:, 1]
    mean, square = (p * m).sum(), (p * (m**2 + s**2)).sum()
    found, error = drawn["x"][:, 1].double(), (square - mean**2).sqrt() / COUNT**0.5
    assert (found.mean() - mean).abs() < 4 * error + 0.02  # 0.02: of forty steps
    assert abs(found.std() / (square - mean**2).sqrt() - 1) < 0.1
    frequency = torch.bincount(drawn["c"][:, 0], minlength=3) / COUNT
    assert (frequency - p @ classes.probabilities[:, 0]).abs().max() < 4 * 0.5 / COUNT**0.5


def test_guidance_above_it_asks_for_the_batch_twice_over():
    case, part = mixed(), given(3)
    x_t = {"x": torch.tensor([[0.3, 0.1], [2.0, -1.0], [0.0, 0.5]]), "c": torch.tensor([[0, 2], [1, 1], [2, 0]])}
    denoise = part(case.mixture.denoise(case.process))
    condition = Condition.of(label=torch.tensor([0, 1, 1]))
    got = ClassifierFree(3.0)(denoise)(x_t, 0.5, condition, {})
    strong, weak = (denoise(x_t, 0.5, c, {}) for c in (condition, condition.null()))
    for leaf in ("x", "c"):
        expected = weigh([strong[leaf], weak[leaf]], [3.0, -2.0])
        assert torch.allclose(got[leaf].x0.double(), expected.x0.double(), atol=1e-6)
    assert torch.allclose(got["x"].x0[:, 0], part.x0["x"][:, 0], atol=1e-6)


def test_under_another_schedule_the_part_is_still_clean():
    seen = []

    def network(x, t, condition, mask):
        seen.append((x["x"], t))
        return {"x": torch.zeros_like(x["x"])}

    where = torch.tensor([[True, False]]).repeat(2, 1)
    x0 = torch.tensor([[0.7, 0.0], [-0.4, 0.0]])
    denoiser = Denoiser(network, Product({"x": Gaussian(RectifiedFlow())}))
    other = denoiser.under(Product({"x": Gaussian(Cosine())}))
    said = Given({"x": x0}, {"x": where})(other)({"x": torch.full((2, 2), 9.0)}, 0.6, Condition(), {})
    x, t = seen[0]
    assert torch.allclose(x[:, 0], x0[:, 0], atol=1e-5) and (t[:, 0].abs() < 1e-5).all() and (t[:, 1] > 0.1).all()
    assert torch.allclose(said["x"].x0[:, 0], x0[:, 0], atol=1e-6) and torch.isfinite(said["x"].eps).all()


def test_training_shows_what_is_given_and_does_not_learn_it():
    seen = {}

    class Network(torch.nn.Module):
        def forward(self, x, t, condition, mask):
            seen.update(x=x["x"], t=t)
            return {"x": torch.zeros_like(x["x"])}

    def example(known):
        x = torch.arange(4.0).reshape(4, 1) / 4
        return Example({"x": x}, {"x": torch.ones(4, 1).bool()}, given={"x": torch.tensor(known).bool().reshape(4, 1)})

    batch = collate([(0, example([1, 1, 0, 0])), (1, example([0, 0, 0, 0]))])
    batch = Sealed(batch).to(torch.device("cpu")).batch.to("cpu")
    process = Product({"x": Gaussian()})
    module = DiffusionModule(Network(), Denoiser(Network(), process), Optimisation(), Uniform())
    t, noise = torch.tensor([0.5, 0.25], dtype=torch.float64), Noise.of(0, 2)
    loss = module.losses(batch, t, noise)["x"]
    assert torch.equal(seen["x"][0, :2], batch.x["x"][0, :2]) and (seen["x"][1] != batch.x["x"][1]).all()
    assert seen["t"].flatten().tolist() == [0, 0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    x_t = process.corrupt(batch.x, t, noise, batch.mask)
    every = process.loss({"x": torch.zeros(2, 4, 1)}, batch.x, x_t, t, batch.mask)["x"]
    assert torch.allclose(loss, torch.stack([every[0, 2:].mean(), every[1].mean()]).float())
