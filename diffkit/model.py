"""A model: an adapter, its network and its process, put together from a recipe, ready to draw samples.

A *recipe* here is the resolved mapping (plain numbers, strings, lists) that `diffkit.recipe` composes and a checkpoint
keeps. Training and generation build their parts with the same `Model.of`, so they cannot drift apart.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffkit import registry
from diffkit.denoiser import Denoise, Denoiser, log_snr_code
from diffkit.grid import check_times, from_strength
from diffkit.guidance import Given, Guidance, Temperature, TopP
from diffkit.modality import Batch, Modality, Request, find_modality
from diffkit.naming import nearest
from diffkit.noise import Noise
from diffkit.product import Product
from diffkit.sample import sample, start_at
from diffkit.samples import Samples
from diffkit.settings import Node, Settings

__all__ = ["Model"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]

TIME_CODES = {"t": None, "log_snr": log_snr_code}
PATIENCE = 20
"""Draws per sample asked for before giving up on valid ones."""
STRENGTH = 0.6
"""Of a start from a file, where neither a person nor the recipe says one."""


@dataclass(frozen=True)
class Model:
    """A network with all that it needs.

    Args:
        recipe: the resolved recipe it was built from.
        modality: the adapter.
        network: its weights are float32.
        denoiser: ``network`` with its process.
        name: of a shipped model, or the folder that it is from.
        options: of the adapter, that whoever loaded it asked for and that are in the recipe.
    """

    recipe: Mapping[str, Any]
    modality: Modality
    network: nn.Module
    denoiser: Denoiser
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Mapping[str, Any], name: str = "", options: Mapping[str, Any] | None = None) -> "Model":
        """The model that a resolved recipe describes, with fresh weights.

        Raises:
            ValueError: for a name or an option that does not exist.
        """
        fields = dict(recipe["modality"])
        modality: Modality = _adapter(fields.pop("name"), fields)
        network = modality.network(**recipe.get("network", {}))
        process = modality.process(**recipe.get("process", {}))
        view = recipe.get("denoiser", {})
        code = view.get("time_code", "t")
        if code not in TIME_CODES:
            raise ValueError(
                f"got time_code '{code}'; expected one of {', '.join(TIME_CODES)}{nearest(code, TIME_CODES)}"
            )
        denoiser = Denoiser(network, process, time_code=TIME_CODES[code], input_scale=view.get("input_scale"))
        return cls(recipe, modality, network, denoiser, name, options or {})

    @property
    def device(self) -> torch.device:
        """Where the network computes: where it is, unless it says otherwise (weights may wait elsewhere)."""
        place = getattr(self.network, "device", None)
        return place if isinstance(place, torch.device) else next(self.network.parameters()).device

    @property
    def origin(self) -> dict[str, Any]:
        """Its name, that of its modality, and the options that were asked for, as samples keep them."""
        known = {"modality": str(self.recipe["modality"]["name"]), "model": self.name}
        return known | ({"options": dict(self.options)} if self.options else {})

    def settings(self, **given: Any) -> Settings:
        """The recipe's ``sampling`` node, overridden by what is ``given`` and not None."""
        said = {k: v for k, v in given.items() if v is not None}
        usual = {"strength": STRENGTH, **self.recipe["sampling"]}
        if said.get("request", Request()).start is None:
            del usual["strength"]
        return Settings(**{**usual, **said})

    def times(self, settings: Settings) -> list[float]:
        """The times at which samples of ``settings`` are, from the first one down.

        Raises:
            ValueError: for a grid that cannot be made, or a strength that leaves none of its steps.
        """
        process = self._under(settings.schedule).process
        times = registry.build("grid", settings.grid)(settings.steps, process[next(iter(process))].schedule)
        return check_times(times) if settings.strength is None else from_strength(times, settings.strength)

    def generate(
        self,
        count: int,
        *,
        prompt: str | None = None,
        condition: Mapping[str, str | float] | None = None,
        negative: str | Mapping[str, str | float] | None = None,
        start: str | Path | None = None,
        strength: float | None = None,
        steps: int | None = None,
        sampler: Node | None = None,
        grid: Node | None = None,
        jump: Node | None = None,
        schedule: Node | None = None,
        guidance: float | None = None,
        guider: Node | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        precision: str = "32",
        valid_only: bool = False,
        record: bool = False,
        progress: Progress | None = None,
    ) -> Samples:
        """Draw ``count`` samples.

        Args:
            prompt: what is asked for in words, for a modality that takes them.
            condition: named values asked for.
            negative: what to steer away from, a prompt or named values; needs guidance.
            start: a file of this kind of data that samples start from, in place of pure noise.
            strength: in (0, 1], how far it is noised: the first time is the grid's nearest to it. The recipe's own, or
                0.6, where None.
            steps, sampler, grid, jump: the recipe's own where None; names, or nodes such as
                ``{"name": "ddim", "eta": 1}``.
            schedule: that samples are drawn under, a name or a node; the model's own where None.
            guidance: scale s of u + s (c - u), at or above 0; 1 is none. The recipe's own where None.
            guider: name or node of the guidance, "cfg" where None; see `diffkit list guidance`.
            interval: (low, high) times within which guidance acts; 0 is data, 1 noise.
            temperature: of categories, above 0; above 1 samples are more varied. The recipe's own where None.
            top_p: of categories, in (0, 1]: of each element the likeliest ones that make up this probability.
            seed: equal seeds and settings give equal samples.
            first: number of the first of them: a seed has as many samples as one likes.
            batch_size: samples per network call; the recipe's own where None, and 256 where it has none.
            precision: "32" or "bf16".
            valid_only: draw again until ``count`` of them are valid.
            record: keep every step of every batch.
            progress: wraps the iterable of steps, e.g. ``tqdm``.

        Raises:
            ValueError: for a count below 1, or settings that the model cannot serve.
        """
        settings = self.settings(
            steps=steps,
            sampler=sampler,
            grid=grid,
            jump=jump,
            schedule=schedule,
            guidance=guidance,
            guider=guider,
            interval=interval,
            temperature=temperature,
            top_p=top_p,
            request=Request(prompt, _text(condition or {}), None if start is None else str(start)),
            strength=strength,
            negative=_request(negative),
            seed=seed,
            batch_size=batch_size,
            precision=precision,
        )
        samples = Samples(self.modality, settings=settings, origin=self.origin)
        for part in self.stream(count, settings, first=first, valid_only=valid_only, record=record, progress=progress):
            samples = samples + part
        return samples

    def stream(
        self,
        count: int,
        settings: Settings,
        *,
        first: int = 0,
        valid_only: bool = False,
        record: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Samples]:
        """The samples batch by batch, so that what is done can be kept if the rest is not waited for."""
        if count < 1 or first < 0:
            raise ValueError(f"got a count of {count} from number {first}; expected at least 1, from 0 or above")
        kept = drawn = 0
        while kept < count:
            size = min(settings.batch_size, count - kept)
            part = self._batch(first + drawn, size, settings, record, progress)
            drawn += size
            part = part.valid() if valid_only else part
            kept += len(part.records)
            yield part
            if drawn >= PATIENCE * count and kept < count:
                raise ValueError(
                    f"got {kept} valid samples out of {drawn}; expected {count}: this model rarely draws a valid one, "
                    "so take more steps, other settings, or all samples"
                )

    def check(self, settings: Settings) -> None:
        """Make all that a sample of ``settings`` needs, and draw none.

        Raises:
            ValueError: for settings that the model cannot serve.
        """
        layout = self._layout(1, Noise.of(settings.seed, 1).fold("layout"), settings.request).to(self.device)
        self._guided(settings, layout)
        self.times(settings)
        registry.build("sampler", settings.sampler)
        registry.build("jump", settings.jump)

    def _batch(self, first: int, size: int, settings: Settings, record: bool, progress: Progress | None) -> Samples:
        """Samples ``first`` to ``first + size``."""
        noise = Noise.of(settings.seed, size, start=first)
        layout = self._layout(size, noise.fold("layout"), settings.request).to(self.device)
        noise, times = replace(noise, index=layout.index), self.times(settings)
        denoise = self._guided(settings, layout)
        began = time.perf_counter()
        with (
            _rows_counted(self.network) as rows,
            _evaluating(self.network),
            _precision(self.device, settings.precision),
        ):
            result = sample(
                denoise,
                {k: tuple(v.shape) for k, v in layout.x.items()},
                sampler=registry.build("sampler", settings.sampler),
                times=times,
                noise=noise,
                condition=layout.condition,
                mask=layout.mask,
                start=start_at(denoise.process, layout.start, times[0], noise, layout.mask) if layout.start else None,
                jump=registry.build("jump", settings.jump),
                record=record,
                progress=progress or (lambda steps: steps),
            )
        x = Given(layout.x, layout.given).kept(result.x)
        records = self.modality.labelled(self.modality.decode(x, layout.mask), layout.condition)
        return Samples(
            self.modality,
            settings=settings,
            origin=self.origin,
            records=self.modality.completed(records, settings.request) if layout.given else records,
            numbers=list(range(first, first + size)),
            drawn=size,
            evaluations=sum(rows),
            seconds=time.perf_counter() - began,
            steps=[result.steps] if record else [],
        )

    def _layout(self, size: int, noise: Noise, request: Request) -> Batch:
        """What the adapter lays out, in the shape of the file to start from, where there is one.

        Of its conditions those count that were asked for: a file alone says all there is to say.
        """
        layout = self.modality.layout(size, noise, request)
        if request.start is None or layout.start:
            return layout
        if layout.given:
            raise ValueError("got a file to start from, and a part that is given; expected one of them")
        example = self.modality.encode(self.modality.read(request.start, request))
        x, mask = ({k: torch.stack([v] * size) for k, v in leaves.items()} for leaves in (example.x, example.mask))
        asked = request.prompt is not None or request.values.keys() & layout.condition.values.keys()
        condition = layout.condition if asked else layout.condition.null()
        return replace(layout, x=x, mask=mask, condition=condition, start=x)

    def _guided(self, settings: Settings, layout: Batch) -> Denoise:
        denoise: Denoise = self._under(settings.schedule)
        if layout.given:
            denoise = Given(layout.x, layout.given)(denoise)
        if settings.temperature != 1.0:
            denoise = Temperature(settings.temperature)(denoise)
        if settings.top_p != 1.0:
            denoise = TopP(settings.top_p)(denoise)
        if settings.guidance == 1.0:
            if settings.negative is not None:
                raise ValueError("got something to steer away from at guidance 1; expected a guidance above 1, e.g. 3")
            return denoise
        guidance: Guidance = registry.build("guidance", self._guider(settings, layout))
        return guidance(denoise)

    def _under(self, schedule: Node | None) -> Denoiser:
        """The denoiser, under another schedule where one is given."""
        if schedule is None:
            return self.denoiser
        built = registry.build("schedule", schedule)
        leaves: dict[str, Any] = dict(self.denoiser.process.leaves)
        return self.denoiser.under(Product({k: replace(leaf, schedule=built) for k, leaf in leaves.items()}))

    def _guider(self, settings: Settings, layout: Batch) -> dict[str, Any]:
        """The node of the guidance, with the scale, the interval and what to steer away from."""
        node: dict[str, Any] = {"name": settings.guider} if isinstance(settings.guider, str) else dict(settings.guider)
        known = signature(registry.lookup("guidance", node["name"])).parameters
        if "scale" not in known:
            raise ValueError(
                f"got guider '{node['name']}', which has no scale; expected one such as cfg, apg or zero_star"
            )
        for option, setting in {"scale": "guidance", "interval": "interval", "negative": "negative"}.items():
            if option in node:
                raise ValueError(f"got {option} as an option of guider '{node['name']}'; expected it as --{setting}")
        node |= {"scale": settings.guidance, "interval": settings.interval}
        if settings.negative is not None:
            if "negative" not in known:
                raise ValueError(f"got something to steer away from with guider '{node['name']}'; expected cfg or apg")
            noise = Noise(settings.seed, layout.index[:1].cpu())
            node["negative"] = self.modality.layout(1, noise, settings.negative).to(self.device).condition
        return node


def _adapter(name: str, fields: Mapping[str, Any]) -> Modality:
    try:
        adapter: Modality = find_modality(name)(**fields)
    except TypeError as error:
        raise ValueError(f"got options {', '.join(fields)} of modality '{name}': {error}") from None
    return adapter


def _request(asked: str | Mapping[str, str | float] | None) -> Request | None:
    if asked is None or isinstance(asked, str):
        return None if asked is None else Request(asked)
    return Request(None, _text(asked))


def _text(values: Mapping[str, str | float]) -> dict[str, str]:
    return {k: str(v) for k, v in values.items()}


@contextmanager
def _rows_counted(network: nn.Module) -> Iterator[list[int]]:
    """The batch size of every call of ``network`` in the meantime."""
    rows: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(next(iter(inputs[0].values())))))
    try:
        yield rows
    finally:
        hook.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """``network`` in evaluation mode, and afterwards as it was."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextmanager
def _precision(device: torch.device, precision: str) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield
