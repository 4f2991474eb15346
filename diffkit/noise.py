r"""Noise as a pure function of (seed, sample, leaf, draw, element).

torch's global generator hands out numbers in the order in which they are asked for, so a sample changes with
the batch it sits in, the padding beside it and the rank that draws it. Here every number is computed from
what it is *for*. Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a
128-bit counter and a 64-bit key to 128 random bits:

    key     = hash(seed, tokens folded in so far, leaf)
    counter = (element coordinates: 64 bits, sample index: 64 bits)

The coordinates of an element are packed by position, not by the tensor's strides, so a larger padded size
leaves them alone. A uniform is (bits + 1/2) / 2^32. A normal is its inverse cumulative distribution (Wichura
1988, AS 241, PPND16) in float64, with a logarithm made of additions, products and quotients alone: those are
rounded the same way on every IEEE device, the vendors' own transcendentals are not. Hence equal bits on the
CPU and on a GPU, in eager mode.

``fold`` derives an independent stream, as JAX's ``fold_in`` does: ``noise.fold("step", 3)``.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.compiler import is_compiling

__all__ = ["Noise", "philox_4x32"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_PART = 1 << 13
"""Numbers that are made at once on a CPU."""


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four 32-bit words (int64 tensors that broadcast together) to four random words.

    int64 products wrap modulo 2^64, which leaves both 32-bit halves right once masked.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((high >> 32) & _MASK) ^ c1 ^ k0, high & _MASK
        c2, c3 = ((low >> 32) & _MASK) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _pack(shape: tuple[int, ...], device: torch.device, first: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """The two counter words that name each element of ``shape`` by its coordinates, whatever the sizes.

    Those along the leading axes are counted from ``first``.
    """
    bits = 64 // max(len(shape), 1)
    if any(size > 1 << min(bits, 62) for size in shape):
        raise ValueError(
            f"got a leaf of shape {shape}, its last axis in blocks of four; expected at most 2^{bits} along each axis"
        )
    low = high = torch.zeros((), dtype=torch.int64, device=device)
    for axis, size in enumerate(shape):
        begin = first[axis] if axis < len(first) else 0
        coordinate = torch.arange(begin, begin + size, device=device).reshape(-1, *(1,) * (len(shape) - axis - 1))
        shift = bits * (len(shape) - axis - 1)
        if shift >= 32:
            high = high | (coordinate << (shift - 32))
        else:
            low = low | ((coordinate << shift) & _MASK)
            high = high | (coordinate >> (32 - shift))
    return low, high & _MASK


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive float64 by exactly rounded operations: log m·2^e = e log 2 + 2 atanh z."""
    mantissa, exponent = torch.frexp(x)
    below = (mantissa < 0.7071067811865476).to(x.dtype)
    exponent = exponent.to(x.dtype).sub_(below)
    mantissa.mul_(below.add_(1))
    z = (mantissa - 1).div_(mantissa.add_(1))
    square = z * z
    series = torch.full_like(z, 1 / 23)
    for odd in range(21, 0, -2):
        series.mul_(square).add_(1 / odd)
    return exponent.mul_(0.6931471805599453).add_(z.mul_(2).mul_(series))


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value.mul_(x).add_(c)
    return value


# AS 241, PPND16: (numerator, denominator) near the centre and in the tail. It has another for p < e^-25, below what
# 32 bits give.
_CENTRE = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
_TAIL = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip


def _normal_quantile(p: Tensor) -> Tensor:
    """Inverse of the standard normal cumulative distribution for float64 ``p`` from e^-25 to 1 - e^-25."""
    q = p - 0.5
    r = _log(torch.minimum(p, 1 - p)).neg_().sqrt_().sub_(1.6)
    tail = _polynomial(r, _TAIL[0]).div_(_polynomial(r, _TAIL[1])).copysign_(q)
    r = 0.180625 - q * q
    centre = _polynomial(r, _CENTRE[0]).mul_(q).div_(_polynomial(r, _CENTRE[1]))
    return torch.where(q.abs() <= 0.425, centre, tail)


@dataclass(frozen=True)
class Noise:
    """The noise of a batch of samples.

    Args:
        seed: any integer; equal seeds give equal noise.
        index: (B,) int64, the number of each sample in the whole run (not in this batch), at least 0.
        path: the tokens folded in so far.
    """

    seed: int
    index: Tensor
    path: tuple[int | str, ...] = field(default=())

    @classmethod
    def of(cls, seed: int, count: int, *, start: int = 0, device: torch.device | str = "cpu") -> "Noise":
        """The noise of samples ``start`` to ``start + count``."""
        return cls(seed, torch.arange(start, start + count, device=device))

    def fold(self, *tokens: int | str) -> "Noise":
        """An independent stream for the same samples, named by ``tokens``."""
        return Noise(self.seed, self.index, (*self.path, *tokens))

    def bits(self, leaf: str, shape: tuple[int, ...], first: Sequence[int] = ()) -> Tensor:
        """Random 32-bit words, int64 of shape (B, *shape): one Philox block serves four neighbours on the last axis.

        With ``first``, those of a larger shape from there on along its leading axes, the last not among them.
        """
        last = shape[-1] if shape else 1
        blocks = (*shape[:-1], (last + 3) // 4)
        low, high = _pack(blocks, self.index.device, first)
        index = self.index.reshape(-1, *(1,) * len(blocks))
        words = philox_4x32((low, high, index & _MASK, (index >> 32) & _MASK), self._key(leaf))
        flat = torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(-2)
        return flat[..., :last].reshape(len(self.index), *shape)

    def uniform(self, leaf: str, shape: tuple[int, ...], first: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in the open interval (0, 1), float64 of shape (B, *shape); in float32 some would be 1."""
        return (self.bits(leaf, shape, first).to(torch.float64) + 0.5) / 4294967296.0

    def normal(self, leaf: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers of shape (B, *shape); none lies beyond 6.4 standard deviations."""
        sizes, width = (len(self.index), *shape[:-1]), shape[-1] if shape else 1
        if math.prod(sizes) * width <= _PART or self.index.device.type != "cpu" or is_compiling():
            return _normal_quantile(self.uniform(leaf, shape)).to(dtype)
        # In parts, as what leads to a number takes ten times its memory, and leaves a CPU's cache.
        x = torch.empty(len(self.index), *shape, dtype=dtype)
        for samples, *rest in _parts(sizes, width):
            part, some = x[(samples, *rest)], replace(self, index=self.index[samples])
            part.copy_(_normal_quantile(some.uniform(leaf, tuple(part.shape[1:]), [s.start for s in rest])))
        return x

    def _key(self, leaf: str) -> tuple[int, int]:
        return _hash(repr((int(self.seed), self.path, leaf)))


def _parts(sizes: tuple[int, ...], width: int) -> Iterator[tuple[slice, ...]]:
    """Slices that cut a tensor of ``sizes`` and a last axis of ``width`` into parts of few numbers, but whole rows."""
    each = width * math.prod(sizes[1:])
    rows = max(1, _PART // max(each, 1))
    for i in range(0, sizes[0], rows):
        for rest in _parts(sizes[1:], width) if each > _PART and len(sizes) > 1 else ((),):
            yield slice(i, i + rows), *rest


def _digest(address: str) -> tuple[int, int]:
    """Two 32-bit words."""
    digest = hashlib.blake2b(address.encode(), digest_size=8, person=b"diffkit").digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


# To the compiler a constant: an address is known when the loop is traced.
_hash: Callable[[str], tuple[int, int]] = torch.compiler.assume_constant_result(_digest)
