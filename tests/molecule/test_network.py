"""Symmetries and masks of the molecule network."""

import pytest
import torch

from diffkit.condition import Condition
from diffkit_molecule.features import components, non_backtracking
from diffkit_molecule.network import GraphTransformer

VALENCES = (4.0, 3.0, 2.0, 1.0, 4.0)


def random_molecules(sizes, total, positions, seed=0):
    """Random symmetric graphs of the given sizes, padded to ``total`` atoms."""
    g = torch.Generator().manual_seed(seed)
    batch = len(sizes)
    real = torch.arange(total)[None] < torch.tensor(sizes)[:, None]
    pair = real[:, :, None] & real[:, None] & ~torch.eye(total, dtype=torch.bool)
    bonds = torch.randint(0, 4, (batch, total, total), generator=g) * (
        torch.rand(batch, total, total, generator=g) < 0.5
    )
    bonds = bonds.triu(1)
    x = {"atoms": torch.randint(0, 5, (batch, total), generator=g) * real, "bonds": (bonds + bonds.mT) * pair}
    mask = {"atoms": real, "bonds": pair}
    if positions:
        r = torch.randn(batch, total, 3, generator=g) * real[..., None]
        x["positions"] = (r - r.sum(1, keepdim=True) / real.sum(1)[:, None, None]) * real[..., None]
        mask["positions"] = real[..., None]
    return x, mask


def build(positions=False, conditions=()):
    """A small network whose zero-initialised weights were moved, so that every part acts."""
    torch.manual_seed(0)
    network = GraphTransformer(
        VALENCES, positions=positions, conditions=conditions, width=32, pair_width=8, layers=3, heads=4
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


@pytest.fixture(params=[False, True], ids=["graph", "3d"])
def case(request):
    x, mask = random_molecules([7, 5, 1], 7, request.param)
    return build(request.param), x, torch.tensor([0.1, 0.5, 0.9]), mask


def permuted(tensors, order):
    return {k: v[:, order][:, :, order] if k == "bonds" else v[:, order] for k, v in tensors.items()}


def close(got, expected, tolerance=1e-4):
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_output_shapes_and_zero_padding(case):
    network, x, t, mask = case
    out = network(x, t, Condition(), mask)
    assert out["atoms"].shape == (3, 7, 5)
    assert out["bonds"].shape == (3, 7, 7, 4)
    assert out["atoms"][~mask["atoms"]].eq(0).all()
    assert out["bonds"][~mask["bonds"]].eq(0).all()
    assert torch.equal(out["bonds"], out["bonds"].transpose(1, 2))


def test_permuting_the_atoms_permutes_the_output(case):
    network, x, t, mask = case
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    out = network(permuted(x, order), t, Condition(), permuted(mask, order))
    close(out, permuted(network(x, t, Condition(), mask), order))


def test_what_stands_in_the_padding_changes_nothing(case):
    network, x, t, mask = case
    dirty = {k: torch.where(mask[k], v, torch.nan if v.is_floating_point() else 3) for k, v in x.items()}
    close(network(dirty, t, Condition(), mask), network(x, t, Condition(), mask), 0.0)


def test_the_amount_of_padding_changes_nothing(case):
    network, x, t, mask = case
    wide_x, wide_mask = random_molecules([7, 5, 1], 10, "positions" in x)
    for name, value in x.items():
        index = (slice(None), slice(7), slice(7)) if name == "bonds" else (slice(None), slice(7))
        wide_x[name] = torch.zeros_like(wide_x[name])
        wide_x[name][index] = value
    out = network(wide_x, t, Condition(), wide_mask)
    cut = {k: v[:, :7, :7] if k == "bonds" else v[:, :7] for k, v in out.items()}
    close(cut, network(x, t, Condition(), mask))


def test_a_molecule_of_padding_alone_gives_zeros(case):
    network, x, t, mask = case
    empty = {k: torch.zeros_like(v) for k, v in mask.items()}
    assert all(v.eq(0).all() for v in network(x, t, Condition(), empty).values())


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
def test_positions_turn_with_the_molecule(reflect):
    network, (x, mask) = build(positions=True), random_molecules([7, 5, 1], 7, True)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * torch.linalg.det(turn).sign() * (-1 if reflect else 1)
    t = torch.tensor([0.1, 0.5, 0.9])
    out = network(x, t, Condition(), mask)
    turned = network({**x, "positions": x["positions"] @ turn}, t, Condition(), mask)
    close(turned, {**out, "positions": out["positions"] @ turn})
    assert (out["positions"] - x["positions"]).abs().max() > 0.01


def test_moving_the_molecule_changes_nothing_and_the_centre_stays():
    network, (x, mask) = build(positions=True), random_molecules([7, 5, 1], 7, True)
    t = torch.tensor([0.1, 0.5, 0.9])
    out = network(x, t, Condition(), mask)
    moved = network({**x, "positions": x["positions"] + torch.tensor([3.0, -2.0, 1.0])}, t, Condition(), mask)
    close(moved, out)
    assert out["positions"].sum(1).abs().max() < 1e-5


def test_time_per_sample_per_element_and_per_leaf_agree(case):
    network, x, t, mask = case
    per_element = {
        k: t.reshape(-1, *(1,) * (v.ndim - 1)).expand_as(v[..., :1] if k == "positions" else v) for k, v in x.items()
    }
    per_leaf = dict.fromkeys(x, t)
    expected = network(x, t, Condition(), mask)
    close(network(x, per_element, Condition(), mask), expected)
    close(network(x, per_leaf, Condition(), mask), expected)
    close(network(x, torch.tensor(0.5), Condition(), mask), network(x, torch.full((3,), 0.5), Condition(), mask))


def test_time_of_one_bond_matters(case):
    network, x, _, mask = case
    times = {k: torch.full(v.shape[:1], 0.5) for k, v in x.items()}
    times["bonds"] = torch.full(x["bonds"].shape, 0.5)
    before = network(x, times, Condition(), mask)["bonds"]
    times["bonds"][0, 0, 1] = times["bonds"][0, 1, 0] = 0.0
    assert not torch.allclose(network(x, times, Condition(), mask)["bonds"][0], before[0])


def test_the_absorbing_state_is_a_valid_input(case):
    network, x, t, mask = case
    absorbed = {**x, "atoms": torch.full_like(x["atoms"], 5), "bonds": torch.full_like(x["bonds"], 4)}
    assert all(v.isfinite().all() for v in network(absorbed, t, Condition(), mask).values())


def test_conditions_act_only_where_they_are_given():
    network, (x, mask) = build(conditions=("gap",)), random_molecules([7, 5, 4], 7, False)
    t = torch.tensor([0.1, 0.5, 0.9])
    present = torch.tensor([True, False, False])
    out = network(x, t, Condition({"gap": torch.tensor([1.0, 5.0, torch.nan])}, {"gap": present}), mask)
    none = network(x, t, Condition(), mask)
    assert not torch.allclose(out["atoms"][0], none["atoms"][0])
    torch.testing.assert_close(out["atoms"][1:], none["atoms"][1:])


def test_an_unknown_condition_is_refused(case):
    network, x, t, mask = case
    with pytest.raises(ValueError, match=r"got conditions \['gap'\]"):
        network(x, t, Condition.of(gap=t), mask)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 30 and 8 heads"):
        GraphTransformer(VALENCES, width=30)


def test_every_parameter_learns():
    network, (x, mask) = build(positions=True, conditions=("gap",)), random_molecules([7, 5, 4], 7, True)
    t = torch.tensor([0.1, 0.5, 0.9])
    condition = Condition({"gap": t}, {"gap": torch.tensor([True, False, True])})
    sum(v.square().sum() for v in network(x, t, condition, mask).values()).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_bfloat16_autocast_stays_close(case):
    network, x, t, mask = case
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, t, Condition(), mask)
    assert all(v.dtype == torch.float32 for v in out.values())
    for name, expected in network(x, t, Condition(), mask).items():
        assert (out[name] - expected).norm() < 0.1 * expected.norm()


def ring(size):
    step = torch.roll(torch.eye(size), 1, dims=1)
    return (step + step.T).unsqueeze(0)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7])
def test_rings_are_counted_where_they_close(size):
    walks = non_backtracking(ring(size), 7)
    closed = [walk.diagonal(dim1=1, dim2=2).unique().tolist() for walk in walks]
    assert closed == [[2.0 if k % size == 0 else 0.0] for k in range(1, 8)]


def test_walks_between_the_ends_of_a_path():
    path = torch.diag(torch.ones(4), 1)
    walks = non_backtracking((path + path.T).unsqueeze(0), 5)
    assert [walk[0, 0, 4].item() for walk in walks] == [0, 0, 0, 1, 0]
    assert [walk[0, 0].sum().item() for walk in walks] == [1, 1, 1, 1, 0]


def test_components_of_two_fragments_and_padding():
    adjacency = torch.zeros(1, 6, 6)
    for i, j in [(0, 1), (1, 2), (3, 4)]:
        adjacency[0, i, j] = adjacency[0, j, i] = 1
    real = torch.tensor([[1.0, 1, 1, 1, 1, 0]])
    expected = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.zeros(1, 1))
    assert torch.equal(components(adjacency, real)[0], expected)
