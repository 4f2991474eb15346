r"""Assertions that say what was got and what was expected, and statistical tests whose power is known.

Two bounds hold for every distribution and sample size, so a test states what it can see. For n samples whose
distribution function is F_n (Dvoretzky, Kiefer & Wolfowitz; Massart 1990),

    P(sup |F_n - F| > d) <= 2 exp(-2 n d^2)

and for Pearson's statistic over m + 1 classes, chi-square with m degrees of freedom (Laurent & Massart 2000),

    P(X > m + 2 sqrt(m c) + 2 c) <= exp(-c)

A right implementation fails with probability at most ``FALSE_ALARM``. A wrong one is caught with probability 0.99 where
its distribution function is off by more than d(FALSE_ALARM) + d(0.01): 0.068 at n = 4000.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FALSE_ALARM", "agree", "counts_agree", "identical", "is_uniform", "refused", "same_counts", "same_law"]

FALSE_ALARM = 1e-6


def agree(got: Tensor, expected: Tensor | float, what: str, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Assert that tensors differ by at most ``atol + rtol |expected|``; infinities agree if equal, NaN never does."""
    wanted = torch.as_tensor(expected, dtype=got.dtype, device=got.device).expand(got.shape)
    off = (got - wanted).abs().to(torch.float64)
    off = torch.where(got == wanted, torch.zeros_like(off), off)
    bad = ~(off <= atol + rtol * torch.where(torch.isfinite(wanted), wanted.abs(), 0.0).to(torch.float64))
    if bool(bad.any()):
        place = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{what}: got {got[place].item():.9g} at {place}, expected {wanted[place].item():.9g}; {int(bad.sum())} of "
            f"{bad.numel()} values are off, the largest by {off.nan_to_num(math.inf).max().item():.3g}, with a "
            f"tolerance of {atol:g} + {rtol:g} |expected|"
        )


def identical(got: Tensor, expected: Tensor, what: str) -> None:
    """Assert that two tensors have equal shapes, types and bits."""
    assert got.shape == expected.shape, f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{what}: got {got.dtype}, expected {expected.dtype}"
    assert torch.equal(got, expected), (
        f"{what}: got {int((got != expected).sum())} of {got.numel()} values that differ; expected equal bits"
    )


def refused(call: Callable[[], object], what: str) -> str:
    """Assert that ``call`` raises a ValueError that says what it got; returns its text."""
    try:
        call()
    except ValueError as error:
        text = str(error)
        assert text.startswith("got ") and ("expected" in text or "use " in text), (
            f"{what}: got the message {text!r}; expected it to say what was got, what was expected and what to do"
        )
        return text
    raise AssertionError(f"{what}: got no error; expected a ValueError")


def _distance(n: float, alarm: float = FALSE_ALARM) -> float:
    return math.sqrt(math.log(2 / alarm) / (2 * n))


def is_uniform(u: Tensor, what: str) -> None:
    """Assert that the numbers (n,) look drawn from (0, 1): Kolmogorov-Smirnov's test."""
    n = len(u)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    ordered = u.to(torch.float64).cpu().sort().values
    off = float(torch.maximum(ordered - ranks[:-1], ranks[1:] - ordered).max())
    assert off <= _distance(n), (
        f"{what}: got a distribution function that is off by {off:.4f}; expected at most {_distance(n):.4f} "
        f"from {n} samples (false alarm {FALSE_ALARM:g})"
    )


def same_law(a: Tensor, b: Tensor, what: str) -> None:
    """Assert that two samples (n,) and (m,) look drawn from one continuous distribution, and have one mean."""
    pooled = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(v.sort().values, pooled, right=True) / len(v) for v in (a, b)]
    off = float((below[0] - below[1]).abs().max())
    limit = sum(_distance(len(v), FALSE_ALARM / 2) for v in (a, b))
    assert off <= limit, f"{what}: got distribution functions that differ by {off:.4f}; expected at most {limit:.4f}"
    error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
    off = float((a.mean() - b.mean()).abs())
    assert off <= 5 * error, f"{what}: got means that differ by {off:.4g}; expected at most {5 * error:.4g}"


def _pearson(statistic: float, freedom: int, what: str) -> None:
    c = math.log(1 / FALSE_ALARM)
    limit = freedom + 2 * math.sqrt(freedom * c) + 2 * c
    assert statistic <= limit, (
        f"{what}: got a chi-square of {statistic:.1f} with {freedom} degrees of freedom; expected at most {limit:.1f}"
    )


def counts_agree(counts: Tensor, probabilities: Tensor, what: str) -> None:
    """Assert that ``counts`` look drawn from ``probabilities``, and that what is impossible was not drawn."""
    impossible = int(counts[probabilities == 0].sum())
    assert impossible == 0, f"{what}: got {impossible} draws of classes with probability 0; expected none"
    possible = probabilities > 0
    expected = probabilities[possible] * counts.sum()
    _pearson(float(((counts[possible] - expected) ** 2 / expected).sum()), int(possible.sum()) - 1, what)


def same_counts(a: Tensor, b: Tensor, what: str) -> None:
    """Assert that two tables of counts look drawn from one distribution."""
    seen = (a + b) > 0
    a, b = a[seen].double(), b[seen].double()
    total = (a + b) / (a.sum() + b.sum())
    statistic = sum(float(((v - total * v.sum()) ** 2 / (total * v.sum())).sum()) for v in (a, b))
    _pearson(statistic, max(int(seen.sum()) - 1, 1), what)
