"""The ground truth itself, against sums and integrals over x_0 that know nothing of its formulas."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffkit.condition import Condition
from diffkit.estimate import CategoricalEstimate, GaussianEstimate
from diffkit.noise import Noise
from diffkit.process import Categorical, Gaussian
from diffkit.product import Product
from diffkit.schedule import Cosine, RectifiedFlow, VEKarras, VPLinear
from diffkit.space import ZeroCentreOfMass
from diffkit.testing import Classes, Mixture, Normals, mixed
from diffkit.testing.compare import counts_agree, is_uniform
from diffkit.testing.drawing import CLEAN, NOISY, _planar, _reference

PI = (0.2, 0.5, 0.3)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return torch.exp(-((x - mean) ** 2) / (2 * deviation**2)) / deviation


@pytest.mark.parametrize("schedule", [VPLinear(), Cosine(), VEKarras(2.0, 1.0), RectifiedFlow()], ids=str)
def test_gaussian_mixture_is_the_integral_over_x0(schedule: VPLinear) -> None:
    """On a line, with the trapezoidal rule on 20,001 points."""
    weights, means, deviations = (
        number_list([0.5, 0.2, 0.3]),
        number_list([-1.0, 0.4, 2.0]),
        number_list([0.3, 0.5, 0.2]),
    )
    mixture = Mixture.gaussian(means.unsqueeze(1), deviations.unsqueeze(1), weights)
    process, grid = Product({"x": Gaussian(schedule)}), torch.linspace(-4, 5, 20_001, dtype=torch.float64)
    prior = (weights * normal(grid.unsqueeze(1), means, deviations)).sum(1)
    for t, x_t in itertools.product((0.2, 0.5, 0.9), (-2.0, 0.3, 1.5)):
        alpha, sigma = schedule(number(t))
        posterior = prior * normal(number(x_t), alpha * grid, sigma)
        expected = torch.trapezoid(grid * posterior, grid) / torch.trapezoid(posterior, grid)
        said = mixture.denoise(process)({"x": number(x_t).reshape(1, 1)}, number(t), Condition(), {})["x"]
        assert isinstance(said, GaussianEstimate)
        torch.testing.assert_close(said.x0[0, 0], expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(alpha * said.x0 + sigma * said.eps, torch.full((1, 1), x_t, dtype=torch.float64))


def number_list(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_centred_mixture_is_gaussian_conditioning_in_the_subspace() -> None:
    """With a basis Q of the subspace and covariance matrices, for each size of a ragged batch."""
    means = Noise.of(0, 2).normal("m", (4, 3), torch.float64)
    deviations = torch.tensor([[[0.5, 1.0, 2.0]], [[0.8, 0.4, 1.5]]], dtype=torch.float64)
    weights, process = number_list([0.3, 0.7]), Product({"x": Gaussian(RectifiedFlow(), ZeroCentreOfMass())})
    sizes, t = [4, 2, 3], 0.6
    mask = {"x": (torch.arange(4) < torch.tensor(sizes).unsqueeze(1)).unsqueeze(2)}
    x_t = process.project({"x": Noise.of(1, 3).normal("x", (4, 3), torch.float64)}, mask)
    said = Mixture.gaussian(means, deviations, weights).denoise(process)(x_t, number(t), Condition(), mask)["x"]
    assert isinstance(said, GaussianEstimate)
    for row, n in enumerate(sizes):
        flat = slice(0, 3 * n)
        centring = torch.eye(3 * n, dtype=torch.float64) - torch.eye(3, dtype=torch.float64).repeat(n, n) / n
        basis = torch.linalg.svd(centring)[0][:, : 3 * (n - 1)]
        z, total, mean = basis.T @ x_t["x"][row].flatten()[flat], number(0.0), torch.zeros(3 * n, dtype=torch.float64)
        for w, m, c in zip(weights, means, deviations, strict=True):
            centre = basis.T @ m.flatten()[flat]
            covariance = basis.T @ torch.diag(c.expand(n, 3).flatten() ** 2) @ basis
            marginal = (1 - t) ** 2 * covariance + t**2 * torch.eye(len(z), dtype=torch.float64)
            density = torch.distributions.MultivariateNormal((1 - t) * centre, marginal).log_prob(z).exp() * w
            gain = (1 - t) * covariance @ torch.linalg.inv(marginal)
            mean += density * (basis @ (centre + gain @ (z - (1 - t) * centre)))
            total += density
        torch.testing.assert_close(said.x0[row].flatten()[flat], mean / total)


PRIORS = {
    "uniform": Categorical.uniform(3),
    "marginal": Categorical(PI, Cosine()),
    "absorbing": Categorical.uniform(3, absorbing=True),
}


def likelihood(process: Categorical, x0: int, x_t: int, t: float) -> float:
    alpha = float(process.schedule(number(t))[0])
    return alpha * (x0 == x_t) + (1 - alpha) * float(process.noise_probabilities()[x_t])


@pytest.mark.parametrize("name", PRIORS)
def test_joint_classes_are_the_sum_over_all_x0(name: str) -> None:
    """Three elements with any joint distribution: 27 patterns, every x_t."""
    process, table = PRIORS[name], Noise.of(0, 1).uniform("table", (3, 3, 3))[0].square()
    table = table / table.sum()
    denoise = Mixture.joint(table).denoise(Product({"x": process}))
    seen = torch.tensor(list(itertools.product(range(process.tokens), repeat=3)))
    for t in (0.3, 0.8):
        said = denoise({"x": seen}, number(t), Condition(), {})["x"]
        assert isinstance(said, CategoricalEstimate)
        for x_t, got in zip(seen.tolist(), said.logits.exp(), strict=True):
            expected = torch.zeros(3, 3, dtype=torch.float64)
            for x0 in itertools.product(range(3), repeat=3):
                p = float(table[x0]) * np.prod([likelihood(process, a, b, t) for a, b in zip(x0, x_t, strict=True)])
                for i, c in enumerate(x0):
                    expected[i, c] += p
            torch.testing.assert_close(got, expected / expected.sum(1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_leaves_of_both_kinds_inform_each_other() -> None:
    """p(c_0 | x_t) by a sum over the classes and an integral over the plane, which knows nothing of components."""
    case, t = mixed(), 0.6
    means, deviations = (getattr(case.mixture.leaves["x"], k) for k in ("means", "deviations"))
    classes = case.mixture.leaves["c"].probabilities  # type: ignore[union-attr]
    weights, process = case.mixture.weights.mean(0), case.process["c"]
    assert isinstance(process, Categorical)
    x_t, c_t = number_list([0.4, -0.7]), [2, 0]
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    expected_c, expected_x = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for c0 in itertools.product(range(3), repeat=2):
        seen = np.prod([likelihood(process, a, b, t) for a, b in zip(c0, c_t, strict=True)])
        for k in range(3):
            p = weights[k] * classes[k, 0, c0[0]] * classes[k, 1, c0[1]] * seen
            lines = [
                normal(axis, means[k, d], deviations[k, d]) * normal(x_t[d], (1 - t) * axis, number(t)) for d in (0, 1)
            ]
            mass = [torch.trapezoid(line, axis) for line in lines]
            expected_c[c0[0]] += p * mass[0] * mass[1]
            expected_x[0] += p * torch.trapezoid(axis * lines[0], axis) * mass[1]
            expected_x[1] += p * torch.trapezoid(axis * lines[1], axis) * mass[0]
    said = case.denoise({"x": x_t.unsqueeze(0), "c": torch.tensor([c_t])}, number(t), Condition(), {})
    assert isinstance(said["c"], CategoricalEstimate)
    torch.testing.assert_close(said["c"].logits.exp()[0, 0], expected_c / expected_c.sum())
    torch.testing.assert_close(said["x"].x0[0], expected_x / expected_c.sum())


def test_a_symmetric_pair_counts_once() -> None:
    """p(k | x_t) of one bond, seen twice in its matrix, is Bayes' rule on one observation."""
    process = Categorical(PI, symmetric=True)
    p = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    bonds = Classes(p.reshape(2, 1, 1, 3).expand(2, 2, 2, 3).contiguous())
    x_t, t = torch.tensor([[[0, 2], [2, 0]]]), 0.4
    mask = {"x": ~torch.eye(2, dtype=torch.bool).unsqueeze(0)}
    said = Mixture(number_list([0.5, 0.5]), {"x": bonds}).denoise(Product({"x": process}))(
        {"x": x_t}, number(t), Condition(), mask
    )
    joint = torch.stack([p.mean(0)[c] * likelihood(process, c, 2, t) for c in range(3)])
    assert isinstance(said["x"], CategoricalEstimate)
    torch.testing.assert_close(said["x"].logits.exp()[0, 0, 1], joint / joint.sum())


def test_draws_have_the_stated_distribution() -> None:
    case, n = mixed(), 20_000
    x0 = case.mixture.draw(case.process, Noise.of(0, n), {})
    p = case.mixture.leaves["c"].probabilities  # type: ignore[union-attr]
    table = torch.einsum("k,ka,kb->ab", case.mixture.weights.mean(0), p[:, 0], p[:, 1])
    counts_agree(torch.bincount(3 * x0["c"][:, 0] + x0["c"][:, 1], minlength=9), table.flatten(), "pairs of classes")
    for direction in ([1.0, 0.0], [0.6, 0.8]):
        is_uniform(case.mixture.percentile(case.process, x0, "x", number_list(direction), {}), "percentiles")


def test_percentiles_see_a_dependence_that_is_missing() -> None:
    """Both leaves right by themselves and independent of each other: the test of their dependence must fail."""
    case, n = mixed(), 4000
    x0 = dict(case.mixture.draw(case.process, Noise.of(0, n), {}))
    x0["c"] = case.mixture.draw(case.process, Noise.of(1, n), {})["c"]
    u = case.mixture.percentile(case.process, x0, "x", number_list([1.0, 0.0]), {})
    with pytest.raises(AssertionError, match="off by"):
        is_uniform(u, "percentiles")


def test_labels_choose_the_weights() -> None:
    case = mixed()
    labels = Condition({"label": torch.tensor([0, 1, 1])}, {"label": torch.tensor([True, True, False])})
    expected = torch.stack([case.mixture.weights[0], case.mixture.weights[1], case.mixture.weights.mean(0)])
    torch.testing.assert_close(case.mixture.weights_given(labels, 3), expected)


def test_the_reference_solution_is_that_of_another_integrator() -> None:
    """scipy's eighth-order Dormand-Prince on the same ODE, to 1e-8."""
    start, end = _reference()
    case = _planar(RectifiedFlow())  # the flow in y = x / alpha is the same under any schedule

    def slope(rho: float, flat: np.ndarray) -> np.ndarray:
        t = case.process["x"].schedule.time(number(-2 * rho))
        alpha, _ = case.process["x"].schedule(t)
        x_t = alpha * torch.from_numpy(flat).reshape(start.shape)
        said = case.denoise({"x": x_t}, t, Condition(), {})["x"]
        assert isinstance(said, GaussianEstimate)
        return (np.exp(rho) * said.eps).flatten().numpy()

    found = solve_ivp(slope, (NOISY, CLEAN), start.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.y[:, -1], end.flatten().numpy(), atol=1e-8)


def test_the_wrong_kind_of_process_is_refused() -> None:
    mixture = Mixture.gaussian(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), torch.ones(1).double())
    with pytest.raises(TypeError, match="got Categorical for a leaf of Normals; expected a Gaussian process"):
        mixture.denoise(Product({"x": Categorical.uniform(2)}))({"x": torch.zeros(1, 2)}, number(0.5), Condition(), {})
    classes = Mixture(torch.ones(1).double(), {"x": Classes(torch.full((1, 2, 2), 0.5).double())})
    with pytest.raises(TypeError, match="got Gaussian for a leaf of Classes; expected a Categorical process"):
        classes.denoise(Product({"x": Gaussian()}))({"x": torch.zeros(1, 2)}, number(0.5), Condition(), {})


def test_a_leaf_of_normals_may_be_used_by_itself() -> None:
    leaf = Normals(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
    _, mean = leaf.posterior(Gaussian(RectifiedFlow()), torch.ones(2, 3), number(0.5), None)
    torch.testing.assert_close(mean, torch.ones(1, 2, 3).double())  # alpha c^2 / (alpha^2 c^2 + sigma^2) = 1 at t = 1/2
