"""The order of the data is a function of (seed, step), and a batch holds what its examples hold."""

import math

import pytest
import torch

from diffkit.data import Batches, Sealed, StepSampler, collate
from diffkit.modality import Example


def example(size: int, side: float = 0.0) -> Example:
    x = {"atoms": torch.arange(1, size + 1), "bonds": torch.full((size, size), size)}
    mask = {"atoms": torch.ones(size, dtype=torch.bool), "bonds": torch.ones(size, size, dtype=torch.bool)}
    return Example(x, mask, {"side": torch.tensor(side), "text": torch.full((2,), side)})


def test_ragged_examples_are_padded_with_zeros_on_every_axis() -> None:
    batch = collate([(7, example(1)), (3, example(3))])
    assert batch.x["atoms"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch.x["bonds"].shape == (2, 3, 3) and batch.x["bonds"][0].sum() == 1
    assert batch.mask["atoms"].tolist() == [[True, False, False], [True, True, True]]
    assert batch.mask["bonds"][0].sum() == 1
    assert batch.index.tolist() == [7, 3]


def test_a_condition_that_is_nan_is_not_present_and_not_nan_either() -> None:
    condition = collate([(0, example(2, 0.5)), (1, example(2, math.nan))]).condition
    for name in ("side", "text"):
        assert condition.present[name].tolist() == [True, False]
        assert torch.isfinite(condition.values[name]).all()


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (3, 8), (8, 8)])
def test_every_pass_sees_every_item_once_in_another_order(length: int, batch_size: int) -> None:
    steps = 4 * length // math.gcd(length, batch_size)
    items = [i for batch in StepSampler(length, batch_size, 0, 0, steps) for i in batch]
    passes = [items[i : i + length] for i in range(0, len(items), length)]
    assert all(sorted(seen) == list(range(length)) for seen in passes)
    assert passes[0] != passes[1] or length < 4


def test_a_run_taken_up_at_a_step_sees_what_the_unbroken_one_sees() -> None:
    whole = list(StepSampler(10, 4, seed=3, start=0, stop=9))
    assert list(StepSampler(10, 4, seed=3, start=5, stop=9)) == whole[5:]
    assert list(StepSampler(10, 4, seed=4, start=0, stop=9)) != whole


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_batch_of_a_step(ranks: int) -> None:
    shares = [list(StepSampler(10, 4, 0, 0, 6, rank, ranks)) for rank in range(ranks)]
    whole = list(StepSampler(10, 4, 0, 0, 6))
    for step, batch in enumerate(whole):
        assert [shares[i % ranks][step][i // ranks] for i in range(4)] == batch


def test_a_dataset_that_makes_batches_itself_is_asked_for_them() -> None:
    class Slow:
        statistics: dict[str, float] = {}  # noqa: RUF012

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Example:
            return example(index + 1)

    class Fast(Slow):
        def batch(self, indices: list[int]) -> str:
            return f"a batch of {indices}"

    assert Batches(Slow()).__getitems__([2, 0]).x["atoms"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert Batches(Fast()).__getitems__([2, 0]) == "a batch of [2, 0]"
    assert len(Batches(Slow())) == 3


def test_a_sealed_batch_moves_as_one() -> None:
    batch = collate([(7, example(1, 0.5)), (3, example(3, math.nan))])
    moved = Sealed(batch).to(torch.device("meta")).batch
    tensors = [*moved.x.values(), *moved.mask.values(), *moved.condition.values.values(), moved.index]
    assert {v.device.type for v in [*tensors, *moved.condition.present.values()]} == {"meta"}
    assert {k: v.shape for k, v in moved.x.items()} == {k: v.shape for k, v in batch.x.items()}
