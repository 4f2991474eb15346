"""The noise promise: a number is a function of what it is for, equal bit for bit whatever stands beside it."""

import hashlib
from itertools import combinations

import pytest
import torch
from scipy.special import ndtri
from torch import Tensor

from diffkit.noise import Noise, _normal_quantile, philox_4x32
from diffkit.space import ZeroCentreOfMass
from diffkit.testing.compare import is_uniform
from diffkit.testing.formulas import ragged

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox_4x32(tuple(torch.tensor(c) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(w) for w in words) == expected


def philox_in_plain_integers(counter: list[int], key: list[int]) -> list[int]:
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b % 2**32, (a >> 32) ^ counter[3] ^ key[1], a % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_an_element_is_philox_of_its_address() -> None:
    """Recomputed from the module's text with Python's integers: key = hash, counter = coordinates and index."""
    index = 5 + 2**40
    noise = Noise(-7, torch.tensor([3, index])).fold("step", 12)
    bits = noise.bits("bonds", (6, 11))
    digest = hashlib.blake2b(repr((-7, ("step", 12), "bonds")).encode(), digest_size=8, person=b"diffkit").digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    i, j = 4, 9  # block j // 4 of row i, each coordinate in 32 bits
    words = philox_in_plain_integers([j // 4, i, index % 2**32, index >> 32], key)
    assert int(bits[1, i, j]) == words[j % 4]


@pytest.mark.parametrize("power", [1, 4, 12, 25, 33])
def test_quantile_is_that_of_the_normal_distribution(power: int) -> None:
    p = torch.cat([torch.linspace(0.5**power, 0.5, 4001, dtype=torch.float64), torch.tensor([0.5**power]).double()])
    p = torch.cat([p, 1 - p])
    p = p[(p > 0) & (p < 1)]
    expected = torch.from_numpy(ndtri(p.numpy()))
    torch.testing.assert_close(_normal_quantile(p), expected, rtol=1e-12, atol=1e-13)


SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 5), (2, 2, 3, 6)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sample_does_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    whole = Noise.of(1, 9).normal("x", shape)
    assert whole.shape == (9, *shape)
    assert torch.equal(Noise.of(1, 4, start=5).normal("x", shape), whole[5:])
    order = torch.tensor([7, 0, 7, 3])
    assert torch.equal(Noise(1, order).normal("x", shape), whole[order])


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_an_element_does_not_depend_on_the_padding(shape: tuple[int, ...]) -> None:
    narrow = Noise.of(1, 3).normal("x", shape)
    for axis in range(len(shape)):
        for more in (1, 3, 40):
            wide = Noise.of(1, 3).normal("x", (*shape[:axis], shape[axis] + more, *shape[axis + 1 :]))
            assert torch.equal(wide[(slice(None), *(slice(n) for n in shape))], narrow)


def test_a_narrower_type_is_the_same_number_rounded() -> None:
    wide = Noise.of(1, 3).normal("x", (50,), torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(Noise.of(1, 3).normal("x", (50,), dtype), wide.to(dtype))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), Noise.of(1, 3).normal("x", (5,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(Noise.of(1, 3).normal("x", (5,)), first)


def test_nothing_is_drawn_for_leaves_without_elements() -> None:
    assert Noise.of(1, 3).normal("x", (4, 0)).shape == (3, 4, 0)


def test_uniform_numbers_lie_inside_the_interval() -> None:
    u = Noise.of(0, 2000).uniform("x", (500,))
    assert u.dtype == torch.float64
    assert 0 < float(u.min()) < 1e-5 and 1 - 1e-5 < float(u.max()) < 1
    is_uniform(u.flatten(), "uniform noise")


def test_normal_noise_is_normal() -> None:
    """A million draws: moments to five standard errors, and the whole distribution function."""
    z = Noise.of(0, 2000).normal("x", (500,), torch.float64).flatten()
    n = len(z)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((z**power).mean()) - moment) < 5 * (variance / n) ** 0.5
    is_uniform(torch.special.ndtr(z), "normal noise")


def streams(n: int) -> dict[str, Tensor]:
    noise, shape = Noise.of(0, n // 100), (10, 10)
    return {
        "a leaf": noise.normal("a", shape),
        "another leaf": noise.normal("b", shape),
        "a leaf whose name is longer": noise.normal("a/keep", shape),
        "a step": noise.fold("step", 1).normal("a", shape),
        "the next step": noise.fold("step", 2).normal("a", shape),
        "a step folded twice": noise.fold("step", 1).fold("step", 1).normal("a", shape),
        "another seed": Noise.of(1, n // 100).normal("a", shape),
        "other samples": Noise.of(0, n // 100, start=n // 100).normal("a", shape),
        "samples far away": Noise.of(0, n // 100, start=2**40).normal("a", shape),
        "transposed": noise.normal("a", shape).transpose(1, 2),
        "its neighbour": noise.normal("a", (10, 11))[..., 1:],
    }


def test_streams_are_independent() -> None:
    """40,000 numbers a stream: a correlation above 0.025 between any two would be seen (five standard errors)."""
    n = 40_000
    for (a, x), (b, y) in combinations(streams(n).items(), 2):
        if {a, b} == {"a leaf", "transposed"}:  # one tenth of the elements lie on the diagonal
            x, y = (v[:, ~torch.eye(10, dtype=torch.bool)] for v in (x, y))
        correlation = float((x.flatten() * y.flatten()).mean())
        assert abs(correlation) < 5 / n**0.5, f"{a} and {b}: {correlation:.4f}"


def test_folding_in_one_call_or_two_is_the_same_stream() -> None:
    noise = Noise.of(3, 2)
    assert torch.equal(noise.fold("a").fold(1).normal("x", (4,)), noise.fold("a", 1).normal("x", (4,)))
    assert not torch.equal(noise.fold("1").normal("x", (4,)), noise.fold(1).normal("x", (4,)))


def test_a_leaf_too_large_to_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got a leaf of shape .*at most 2\^12"):
        Noise.of(0, 1).normal("x", (2, 2, 2, 2, 20_000))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_bits() -> None:
    cpu, gpu = Noise.of(5, 64), Noise.of(5, 64, device="cuda")
    assert torch.equal(cpu.bits("x", (33, 35)), gpu.bits("x", (33, 35)).cpu())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert torch.equal(cpu.normal("x", (300, 35), dtype), gpu.normal("x", (300, 35), dtype).cpu())
    mask = ragged([7 + n for n in range(64)])
    for width in (70, 300):  # a mean of floating-point numbers would change with the padding there
        wide = ragged([7 + n for n in range(64)], width).cuda()
        z = ZeroCentreOfMass().normal(gpu, "x", (64, width, 3), wide).cpu()
        assert torch.equal(z[:, :70], ZeroCentreOfMass().normal(cpu, "x", (64, 70, 3), mask))


@pytest.mark.parametrize("shape", [(64, 300), (7, 5000), (2, 9000), (3, 17, 33, 9)])
def test_large_leaves_are_made_in_parts_of_the_same_numbers(shape: tuple[int, ...]) -> None:
    noise = Noise.of(5, 6)
    whole = _normal_quantile(noise.uniform("x", shape)).float()
    assert whole.numel() > 1 << 14
    assert torch.equal(noise.normal("x", shape), whole)


def test_many_samples_are_made_in_parts_of_the_same_numbers() -> None:
    noise = Noise.of(5, 20_000)
    assert torch.equal(noise.normal("x", ()), _normal_quantile(noise.uniform("x", ())).float())
