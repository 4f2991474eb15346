"""The check of a modality: that an adapter's members fit each other, and keep what the toolkit promises of them."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from operator import eq
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffkit.condition import Condition
from diffkit.data import collate
from diffkit.denoiser import Denoiser
from diffkit.modality import Batch, Modality, Request
from diffkit.noise import Noise
from diffkit.process import Categorical
from diffkit.product import Product
from diffkit.sample import sample
from diffkit.samplers import Ancestral
from diffkit.testing.compare import agree, identical
from diffkit.typing import State

__all__ = ["check_modality"]

NEAR = 1e-4
"""How far results may move, in relation to their size, where sums are taken over another amount of padding."""


def check_modality(
    adapter: Modality,
    records: Sequence[Any],
    *,
    same: Callable[[Any, Any], bool] = eq,
    process: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Round trip, masks, padding, layout, network, noise, weights on disk, and native files.

    Args:
        adapter: what is checked, with its statistics.
        records: at least two native objects, of different sizes if the data is ragged.
        same: whether a decoded object is the one that was encoded.
        process, network: options for the adapter's members; choose a small network.
    """
    product = adapter.process(**process or {})
    batch = collate([(k, adapter.encode(record)) for k, record in enumerate(records)])
    _check_encoding(adapter, product, batch, records, same)
    _check_layout(adapter, product, batch)
    module = _fresh(adapter, network, seed=1)
    denoiser = Denoiser(module, product)
    _check_network(denoiser, batch)
    _check_padding(denoiser, batch)
    _check_draws(adapter, denoiser)
    _check_weights(adapter, network, module, denoiser, batch)
    _check_view(adapter, records)


def _fresh(adapter: Modality, options: Mapping[str, Any] | None, seed: int) -> nn.Module:
    """A network whose weights are all random: those that begin at zero would hide what they are joined to."""
    module = adapter.network(**options or {}).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    return module


def _hidden(x: Tensor, mask: Tensor) -> Tensor:
    return ~mask.expand(x.shape)


def _check_encoding(
    adapter: Modality, product: Product, batch: Batch, records: Sequence[Any], same: Callable[[Any, Any], bool]
) -> None:
    leaves = set(product)
    assert set(batch.x) == leaves, (
        f"encode: got the leaves {sorted(batch.x)}; expected {sorted(leaves)}, as the process"
    )
    assert set(batch.mask) <= leaves, f"encode: got masks of {sorted(batch.mask)}; expected of {sorted(leaves)} alone"
    for k, x in batch.x.items():
        process = product[k]
        if isinstance(process, Categorical):
            assert x.dtype == torch.int64, f"encode: got leaf '{k}' in {x.dtype}; expected int64 classes"
            low, top = int(x.min()), int(x.max())
            assert low >= 0 and top < process.classes, (
                f"encode: got classes {low} to {top} in leaf '{k}'; expected 0 to {process.classes - 1}"
            )
        else:
            assert x.is_floating_point(), f"encode: got leaf '{k}' in {x.dtype}; expected a floating-point type"
        mask = batch.mask.get(k)
        if mask is not None:
            assert mask.dtype == torch.bool, f"encode: got a mask of leaf '{k}' in {mask.dtype}; expected bool"
            assert not bool(x[_hidden(x, mask)].any()), f"encode: got padding of leaf '{k}' that is not exactly zero"
        agree(process.project(x, mask).double(), x.double(), f"encode: leaf '{k}', in its space", atol=1e-5)
    decoded = adapter.decode(batch.x, batch.mask)
    assert len(decoded) == len(records), f"decode: got {len(decoded)} objects of a batch of {len(records)}"
    for number, (got, record) in enumerate(zip(decoded, records, strict=True)):
        assert same(got, record), f"decode(encode(x)): got {got!r} for record {number}; expected {record!r}"


def _check_layout(adapter: Modality, product: Product, batch: Batch) -> None:
    noise = Noise.of(3, 6)
    layout = adapter.layout(6, noise, Request())
    assert set(layout.x) == set(product), f"layout: got the leaves {sorted(layout.x)}; expected {sorted(product)}"
    assert torch.equal(layout.index.cpu(), noise.index), f"layout: got index {layout.index}; expected {noise.index}"
    for k, x in layout.x.items():
        like = batch.x[k]
        assert x.dtype == like.dtype, f"layout: got leaf '{k}' in {x.dtype}; expected {like.dtype}, as encode gives"
        assert len(x) == 6 and x.ndim == like.ndim, f"layout: got leaf '{k}' of shape {tuple(x.shape)}"
    assert set(layout.mask) == set(batch.mask), (
        f"layout: got masks of {sorted(layout.mask)}; expected {sorted(batch.mask)}"
    )
    names = set(layout.condition.values)
    assert names == set(batch.condition.values) or not batch.condition.values, (
        f"layout: got conditions {sorted(names)}; expected {sorted(batch.condition.values)}, as encode gives"
    )
    for row in range(6):
        alone = adapter.layout(1, Noise(3, noise.index[row : row + 1]), Request())
        for k, mask in alone.mask.items():
            got, expected = mask.sum(), layout.mask[k][row].sum()
            assert got == expected, (
                f"layout: got {got} real elements of '{k}' in sample {row} alone; expected {expected}"
            )


def _corrupted(product: Product, batch: Batch) -> dict[str, Tensor]:
    return product.corrupt(batch.x, TIME, Noise(5, batch.index), batch.mask)


TIME = torch.tensor(0.6, dtype=torch.float64)


def _check_network(denoiser: Denoiser, batch: Batch) -> None:
    product = denoiser.process
    x_t = _corrupted(product, batch)
    output = denoiser.output(x_t, TIME, batch.condition, batch.mask)
    for k in product:
        assert k in output, f"network: got outputs {sorted(output)}; expected one for leaf '{k}'"
        process, shape = product[k], tuple(batch.x[k].shape)
        expected = (*shape, process.classes) if isinstance(process, Categorical) else shape
        assert tuple(output[k].shape) == expected, (
            f"network: got {tuple(output[k].shape)} for '{k}'; expected {expected}"
        )
        assert bool(torch.isfinite(output[k]).all()), f"network: got values that are not finite for leaf '{k}'"
    losses = product.loss(output, batch.x, x_t, TIME, batch.mask)
    total = torch.stack([loss.mean() for loss in losses.values()]).sum()
    total.backward()
    assert isinstance(denoiser.network, nn.Module)
    for name, p in denoiser.network.named_parameters():
        bad = p.grad is not None and not bool(torch.isfinite(p.grad).all())
        assert not bad, f"network: got a gradient of '{name}' that is not finite"


def _output(denoiser: Denoiser, x_t: State, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(denoiser.output(x_t, TIME, batch.condition, batch.mask))


def _check_padding(denoiser: Denoiser, batch: Batch) -> None:
    """What stands in the padding, and how much of it there is, changes nothing."""
    x_t = _corrupted(denoiser.process, batch)
    whole = _output(denoiser, x_t, batch)
    filled = {k: v.masked_fill(_hidden(v, batch.mask[k]), 1) if k in batch.mask else v for k, v in x_t.items()}
    for k, output in _output(denoiser, filled, batch).items():
        _check_rows(output, whole[k], batch.mask.get(k), f"network: leaf '{k}' with 1 in all padding")
    losses = denoiser.process.loss(whole, batch.x, x_t, TIME, batch.mask)
    for row in range(len(batch.index)):
        alone = _alone(batch, row)
        x = _corrupted(denoiser.process, alone)
        said = _output(denoiser, x, alone)
        loss = denoiser.process.loss(said, alone.x, x, TIME, alone.mask)
        for k, mask in alone.mask.items():
            corner = tuple(slice(n) for n in alone.x[k].shape[1:])
            what = f"leaf '{k}' of sample {row} without the batch's padding"
            _check_rows(whole[k][row][corner].unsqueeze(0), said[k], mask, f"network: {what}")
            _check_rows(losses[k][row][corner].unsqueeze(0), loss[k], mask, f"loss: {what}")


def _alone(batch: Batch, row: int) -> Batch:
    """One sample of a batch with as little padding as its masks allow."""
    x, mask = {}, {}
    for k, v in batch.x.items():
        m = batch.mask.get(k)
        if m is None:
            x[k] = v[row : row + 1]
            continue
        real = m[row].expand(v[row].shape)
        corner = tuple(slice(int(real.nonzero()[:, axis].max()) + 1 if real.any() else 1) for axis in range(real.ndim))
        x[k] = v[row : row + 1][(slice(None), *corner)]
        mask[k] = m[row : row + 1][
            (slice(None), *(c if n > 1 else slice(None) for c, n in zip(corner, m.shape[1:], strict=True)))
        ]
    one = slice(row, row + 1)
    condition = Condition(
        {k: v[one] for k, v in batch.condition.values.items()}, {k: v[one] for k, v in batch.condition.present.items()}
    )
    return Batch(x, mask, condition, batch.index[one])


def _check_rows(got: Tensor, expected: Tensor, mask: Tensor | None, what: str) -> None:
    """Equal where the data is real, up to rounding."""
    if mask is not None:
        real = mask.unsqueeze(-1) if got.ndim > mask.ndim else mask
        got, expected = (torch.where(real, v, torch.zeros_like(v)) for v in (got, expected))
    size = max(float(expected.abs().max()), 1.0)
    agree(got, expected, what, atol=NEAR * size)


def _drawn(adapter: Modality, denoiser: Denoiser, noise: Noise, steps: int = 3) -> tuple[State, Batch]:
    layout = adapter.layout(len(noise.index), noise.fold("layout"), Request())
    shapes = {k: tuple(v.shape) for k, v in layout.x.items()}
    times = torch.linspace(1, 0, steps + 1)
    drawn = sample(
        denoiser, shapes, sampler=Ancestral(), times=times, noise=noise, condition=layout.condition, mask=layout.mask
    )
    return drawn.x, layout


def _check_draws(adapter: Modality, denoiser: Denoiser) -> None:
    """A sample is the same in any batch, its padding is zero, and it can be decoded."""
    noise = Noise.of(9, 4)
    together, layout = _drawn(adapter, denoiser, noise)
    for k, mask in layout.mask.items():
        assert not bool(together[k][_hidden(together[k], mask)].any()), f"sample: got padding of '{k}' that is not zero"
    decoded = adapter.decode(together, layout.mask)
    assert len(decoded) == 4, f"decode: got {len(decoded)} objects of a batch of 4 samples"
    for row in range(4):
        alone, _ = _drawn(adapter, denoiser, Noise(9, noise.index[row : row + 1]))
        for k, x in alone.items():
            corner = together[k][row : row + 1][(slice(None), *(slice(n) for n in x.shape[1:]))]
            what = f"sample: leaf '{k}' of sample {row} in a batch of 4 and alone"
            if x.is_floating_point():
                agree(corner, x, what, atol=NEAR * max(float(x.abs().max()), 1.0))
            else:
                identical(corner.contiguous(), x, what)


def _check_weights(
    adapter: Modality, options: Mapping[str, Any] | None, module: nn.Module, denoiser: Denoiser, batch: Batch
) -> None:
    """Weights that were saved and loaded into a new network give the same output, bit for bit."""
    again = _fresh(adapter, options, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
        again.load_state_dict(load_file(path))
    x_t = _corrupted(denoiser.process, batch)
    expected = _output(denoiser, x_t, batch)
    for k, output in _output(Denoiser(again, denoiser.process), x_t, batch).items():
        identical(output, expected[k], f"network: leaf '{k}' after saving and loading the weights")


def _check_view(adapter: Modality, records: Sequence[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = adapter.view(records, Path(folder))
        assert isinstance(result, Mapping), (
            f"view: got {type(result).__name__}; expected a mapping of counts for run.json"
        )
        written = sorted(p.name for p in Path(folder).iterdir())
        assert "preview.png" in written, f"view: got the files {written}; expected preview.png among them"
        assert len(written) > 1, f"view: got the files {written}; expected native files beside preview.png"
