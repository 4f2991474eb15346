"""Figures of merit of clouds: hand-made cases, what theory says of twins and of strangers, and the classifier."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffkit_pointcloud import classifier as classifying
from diffkit_pointcloud import metrics
from diffkit_pointcloud.classifier import Classifier
from diffkit_pointcloud.cloud import Cloud
from diffkit_pointcloud.distances import chamfer, emd, pairwise
from diffkit_pointcloud.metrics import Reference, against, coverage, evaluate, jsd, mmd, one_nn, stack, with_floor

FEW = {"chamfer": (chamfer, 64), "EMD": (emd, 64)}


def line(places: list[float]) -> Tensor:
    """Clouds of one point each, on a line: distances are what they look like."""
    return torch.tensor(places)[:, None, None] * torch.tensor([1.0, 0, 0])


def table(x: list[float], y: list[float]) -> Tensor:
    return (torch.tensor(x)[:, None] - torch.tensor(y)).abs()


def nn_share(x: list[float], y: list[float]) -> float:
    return one_nn(table(x, x), table(x, y), table(y, y)).value


def shapes(count: int, seed: int = 0, points: int = 64) -> Tensor:
    """Boxes of random sides, points within them: one distribution of shapes."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(count, 1, 3, generator=generator) * 0.9 + 0.1
    return (torch.rand(count, points, 3, generator=generator) * 2 - 1) * sides


def records(x: Tensor, category: str = "") -> list[Cloud]:
    return [Cloud(points.numpy(), category=category) for points in x]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([0.0, 1.0], [10.0, 11.0], 1.0),  # apart
        ([0.0, 10.0], [1.0, 11.0], 0.0),  # every nearest is of the other set
        ([0.0, 1.0, 20.0], [10.0, 21.0], 2 / 5),  # 0 and 1 have each other; 20 and 21 too, across; 10 is nearest to 1
        ([0.0, 0.0], [0.0], (1 / 2 + 1 / 2 + 0) / 3),  # all equally near: each counts in part
        ([0.0], [5.0], 0.0),  # no other of one's own set
    ],
)
def test_one_nn_by_hand(x: list[float], y: list[float], expected: float) -> None:
    assert nn_share(x, y) == pytest.approx(expected)
    assert nn_share(y, x) == pytest.approx(expected)


@pytest.mark.parametrize(("a", "b"), [(6, 6), (4, 9)])
def test_one_nn_of_two_samples_of_one_distribution(a: int, b: int) -> None:
    """Of the a + b - 1 others, a - 1 are of one's own set. The mean of 800 draws, within 4 of its errors."""
    expected = (a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1))
    rng = np.random.default_rng(0)
    draws = [nn_share(list(rng.normal(size=a)), list(rng.normal(size=b))) for _ in range(800)]
    assert np.mean(draws) == pytest.approx(expected, abs=4 * np.std(draws) / math.sqrt(800))


def test_identical_sets_score_what_copies_score() -> None:
    x = shapes(12)
    found = against(x, Reference(x.clone()), FEW)
    for name in FEW:
        assert found[f"1-NNA/{name}"].value == 0.0 and found[f"1-NNA/{name}"].n == 24
        assert found[f"coverage/{name}"].value == 1.0
        assert found[f"MMD/{name}"].value == pytest.approx(0, abs=2e-6)
    assert found["JSD"].value == pytest.approx(0, abs=1e-9)


def test_two_samples_of_shapes_score_about_half() -> None:
    found = against(shapes(60, 1), Reference(shapes(60, 2)), {"chamfer": (chamfer, 64)})
    n, expected = 120, 59 / 119
    assert found["1-NNA/chamfer"].value == pytest.approx(expected, abs=4 * math.sqrt(0.25 / n))


def test_sets_that_are_apart_score_one() -> None:
    found = against(shapes(8) * 0.1, Reference(shapes(8, 1) * 0.1 + 0.8), FEW)
    for name in FEW:
        assert found[f"1-NNA/{name}"].value == 1.0
    assert found["JSD"].value == pytest.approx(1.0)


def test_figures_do_not_depend_on_the_order_of_points_or_of_clouds() -> None:
    x, y = shapes(7, 1, 80), shapes(7, 2, 80)
    generator = torch.Generator().manual_seed(3)
    turned = x[torch.randperm(7, generator=generator)][:, torch.randperm(80, generator=generator)]
    expected, got = against(x, Reference(y), FEW), against(turned, Reference(y), FEW)
    assert {k: v.value for k, v in got.items()} == pytest.approx({k: v.value for k, v in expected.items()}, abs=1e-6)


def test_coverage_and_mmd_by_hand() -> None:
    between = table([0.0, 1.0, 2.0], [0.5, 8.0])  # every sample is nearest to 0.5
    assert coverage(between).value == 0.5
    assert mmd(between).value == pytest.approx((0.5 + 6.0) / 2)
    assert coverage(between).n == mmd(between).n == 2


def test_jsd_by_hand() -> None:
    a, b = line([-1.0, 1.0]), line([-1.0])
    # p = (1/2, 1/2), q = (1, 0), m = (3/4, 1/4)
    bits = 0.5 * (0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)) + 0.5 * math.log2(4 / 3)
    assert jsd(a, b).value == pytest.approx(bits)
    assert jsd(b, a).value == pytest.approx(bits)
    assert jsd(line([5.0]), line([1.0])).value == 0  # what lies outside counts at the border


def test_jsd_tells_places_one_step_apart() -> None:
    step = 2 / (metrics.RESOLUTION - 1)
    assert jsd(line([-1.0]), line([-1.0 + step])).value == 1.0
    assert jsd(line([-1.0]), line([-1.0 + 0.49 * step])).value == 0.0


def test_samples_that_are_no_clouds_are_counted_and_left_out() -> None:
    bad = [Cloud(np.full((4, 3), np.nan, np.float32)), Cloud(np.zeros((0, 3), np.float32))]
    x = records(shapes(4))
    found = evaluate([*x, *bad], Reference(shapes(4, 1)), shapes(5, 2), distances=FEW)
    assert found["usable"].value == pytest.approx(4 / 6) and found["usable"].n == 6
    assert found["nearest train"].n == 4
    assert set(evaluate(bad, Reference(shapes(4, 1)), shapes(5, 2))) == {"usable"}
    with pytest.raises(ValueError, match="got cloud 4 without points"):
        stack([*x, *bad])


@pytest.mark.parametrize("count", [10, 64, 200])
def test_clouds_of_any_size_are_stacked(count: int) -> None:
    (cloud,) = records(shapes(1, points=count))
    stacked = stack([cloud], 64)
    assert stacked.shape == (1, 64, 3)
    assert {tuple(p) for p in stacked[0].tolist()} <= {tuple(p) for p in cloud.points.tolist()}
    if count >= 64:
        assert len({tuple(p) for p in stacked[0].tolist()}) == 64
    assert stack([], 64).shape == (0, 64, 3)


def test_copies_of_the_training_set_are_seen() -> None:
    train, held_out, fresh = shapes(30, 1), shapes(9, 2), shapes(12, 3)
    again = records(train[:9] + 0.001)
    columns = with_floor(again, records(fresh), records(held_out), records(train), distances=FEW)
    model, floor = columns["model"], columns["held-out (floor)"]
    assert model["nearest train"].value < 0.01 * floor["nearest train"].value
    assert model["nearest train/5 %"].value <= model["nearest train"].value
    assert list(columns) == ["model", "held-out (floor)"]


def test_both_columns_are_of_equal_numbers() -> None:
    columns = with_floor(
        records(shapes(20)), records(shapes(6, 1)), records(shapes(9, 2)), records(shapes(5, 3)), distances=FEW
    )
    for name in ("1-NNA/chamfer", "coverage/EMD", "MMD/chamfer"):
        assert columns["model"][name].n == columns["held-out (floor)"][name].n
    assert columns["model"]["1-NNA/chamfer"].n == 12


def test_the_distances_of_the_reference_are_those_of_a_part_of_it() -> None:
    reference = Reference(shapes(9))
    against(shapes(9, 1), reference, FEW)
    known = reference.within["chamfer"]
    assert torch.equal(known, pairwise(chamfer, reference.clouds))
    few = against(shapes(4, 2), reference, FEW)
    assert few["coverage/chamfer"].n == 4 and reference.within["chamfer"] is known


# The classifier


def flat_and_tall(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    x = shapes(count, seed, 128).numpy()
    x[::2, :, 1] *= 0.05
    x[1::2, :, 0] *= 0.05
    x[1::2, :, 2] *= 0.05
    return list(x), ["flat", "tall"] * (count // 2)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    clouds, kinds = flat_and_tall(32, 0)
    return classifying.train(clouds, kinds, epochs=8, points=48, batch_size=16)


def test_the_classifier_learns_what_is_plain(trained: Classifier) -> None:
    clouds, kinds = flat_and_tall(40, 1)
    assert trained.kinds == ("flat", "tall")
    assert classifying.accuracy(trained, torch.from_numpy(np.stack(clouds)), kinds) == 1.0


def test_the_classifier_sees_no_order_of_points(trained: Classifier) -> None:
    x = shapes(4, 5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(trained(x), trained(x[:, order]), atol=1e-5)


def test_training_is_a_function_of_its_seed() -> None:
    clouds, kinds = flat_and_tall(8, 0)
    state = torch.get_rng_state()
    a, b, c = (classifying.train(clouds, kinds, epochs=1, points=16, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(state, torch.get_rng_state())


def test_the_classifier_is_small_and_comes_back_from_its_file(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    classifying.save(trained, path)
    again = classifying.load(path)
    x = shapes(6, 7)
    assert again.kinds == trained.kinds and torch.allclose(again(x), trained(x), atol=0.05)
    classifying.save(Classifier([str(k) for k in range(11)]), path)
    assert path.stat().st_size < 2**20 / 2
    assert sum(p.numel() for p in trained.parameters()) <= 250_000


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not say its kinds"):
        classifying.load(tmp_path / "other.safetensors")


def test_kinds_are_counted_where_they_were_asked_for(trained: Classifier) -> None:
    clouds, kinds = flat_and_tall(8, 2)
    asked = [*kinds[:6], "tall", "sofa"]  # one wrong, one that the classifier does not know
    found = metrics.kind(torch.from_numpy(np.stack(clouds)), asked, trained)["kind"]
    assert (found.value, found.n) == (pytest.approx(6 / 7), 7)
    assert metrics.kind(torch.from_numpy(np.stack(clouds)), [""] * 8, trained) == {}


def test_the_shipped_classifier_is_whole_and_small() -> None:
    path = Path(classifying.__file__).parent / "weights" / "furniture" / "classifier.safetensors"
    shipped = classifying.load(path)
    assert len(shipped.kinds) == 10 and path.stat().st_size <= 2**20
    said = shipped.classify(shapes(3))
    assert set(said) <= set(shipped.kinds)
