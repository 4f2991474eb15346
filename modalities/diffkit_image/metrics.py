r"""What a set of generated pictures is worth, each figure with the number it was counted over.

- *category*: the share of pictures that the `judge` takes for the category asked for, of those that it knows;
- *R@1*, *R@5*: the share whose name, as it was asked for, the judge puts first, and among the first five, of all names
  in the data. Skin tones are left out, and names of the same words (`captions.words`) are one;
- *KD-...*: the kernel distance to held-out pictures, with its standard error;
- *FD-...*: the Fréchet distance to training pictures. What follows the dash says whose features: "emoji" are the
  judge's, made as long as one another, "efflite0" those of the package of that name. Neither is a "KID" or an "FID",
  which are of Inception's;
- *nearest picture*: the root of the mean squared difference, in levels of 255 over all pixels and channels, between a
  picture and the training picture nearest to it, both made half as large: the median, and the lowest twentieth, where
  copies show first.

Pictures are seen as `diffkit_image.real` has it. Beside the model stand

- real training pictures of the same names (where there is none, of the same category);
- real pictures that were not trained on (the *floor*), of the same categories, each taken once;
- both after they have been encoded and decoded: what that alone costs, and as near as a model of latents can come.

The kernel distance of training to held-out pictures is zero but for chance where a split is drawn at random, so that a
model's is to be seen beside its error, and beside that of training pictures that have been encoded and decoded.

Distances depend on what is compared. They are taken over those samples that a held-out picture of the same category
stands beside, so that all columns have the same number of each kind.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor
from torch.nn import functional as F

from diffkit.data import collate
from diffkit.frechet import frechet
from diffkit.modality import Modality
from diffkit.report import Metric, Metrics
from diffkit_image import judge as judging
from diffkit_image.distances import Eye, cached, kernel
from diffkit_image.eyes import installed
from diffkit_image.judge import Judge
from diffkit_image.real import Real, matched, nearest, seen, twins, usable
from diffkit_image.record import Picture
from diffkit_image.spread import key

__all__ = ["Reference", "evaluate", "recognised", "report", "sets", "with_floor"]

JUDGE = Path(__file__).parent / "weights" / "emoji" / "judge.safetensors"

REFERENCE = 20
"""Training pictures of a category, at most, that a Fréchet distance is measured to."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What pictures are compared with, and by whom.

    Args:
        train: training pictures.
        names: all that are known.
        judge: of what is shown; None for other pictures than it knows.
        eyes: whose features are compared.
        towards: the features that each eye has of training pictures, for Fréchet distances.
        held_out: those of held-out pictures, for kernel distances.
    """

    train: Real
    names: Sequence[str]
    judge: Judge | None
    eyes: Mapping[str, Eye]
    towards: Mapping[str, Tensor]
    held_out: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, train: Real, held_out: Real, names: Sequence[str], judge: Judge | None, eyes: Mapping[str, Eye]
    ) -> Self:
        """With the features of these held-out pictures, and of at most 20 training pictures of each category."""
        own = {} if judge is None else {"emoji": Eye(f"directions {judge.version}", partial(_directions, judge))}
        every, real, some = {**own, **eyes}, held_out.seen(), train.evened(REFERENCE).seen()
        towards = {name: cached(name, eye, some) for name, eye in every.items() if len(train)}
        kept = {name: cached(name, eye, real) for name, eye in every.items() if len(held_out)}
        return cls(train, names, judge, every, towards, kept)


def _directions(judge: Judge, pixels: Tensor) -> Tensor:
    """The judge's features (B, F) of length √F, so that a kernel of degree three is not that of the longest."""
    features = judge.see(pixels)
    return F.normalize(features, dim=1) * math.sqrt(features.shape[1])


def recognised(pictures: Sequence[Picture], pixels: Tensor, judge: Judge, names: Sequence[str]) -> Metrics:
    """Shares of pictures (B, 4, 64, 64) that are taken for what was asked for; nothing where that is not known.

    Args:
        names: all that there are to choose from.
    """
    features, found = judge.see(pixels), Metrics()
    rows = [row for row, one in enumerate(pictures) if one.category in judge.categories]
    if rows:
        right = sum(a == pictures[row].category for a, row in zip(judge.kinds(features[rows]), rows, strict=True))
        found["category"] = Metric(right / len(rows), len(rows), "pictures of categories that the judge knows", "share")
    known = {key(name): name for name in names if key(name)}
    asked = [known.get(key(one.caption)) for one in pictures]
    rows = [row for row, name in enumerate(asked) if name is not None]
    if rows:
        every = list(known.values())
        ranks = judge.ranks(features[rows], [name for name in asked if name is not None], every)
        of = f"pictures, each with {len(every):,} names to choose from"
        found |= {f"R@{k}": Metric(float((ranks < k).float().mean()), len(rows), of, "share") for k in (1, 5)}
    return found


def evaluate(
    samples: Sequence[Picture | None],
    reference: Reference,
    compared: Sequence[int] | None = None,
    to: Sequence[str] = ("KD", "FD", "nearest"),
) -> Metrics:
    """Every figure of ``samples`` by name; ``caption`` and ``category`` of each are what was asked for.

    Args:
        compared: numbers of the samples that distances are taken over; of all.
        to: which distances.
    """
    kept = [number for number, one in enumerate(samples) if usable(one)]
    pictures = [one for one in samples if one is not None and usable(one)]
    valid = Metric(len(kept) / len(samples) if samples else math.nan, len(samples), "pictures drawn", "share")
    if not pictures:
        return {"usable": valid}
    pixels = seen(pictures)
    chosen = set(range(len(samples)) if compared is None else compared)
    some = pixels[[row for row, number in enumerate(kept) if number in chosen]]
    judge, found = reference.judge, {"usable": valid}
    found |= recognised(pictures, pixels, judge, reference.names) if judge is not None else {}
    for name, eye in reference.eyes.items():
        features = eye.see(some)
        found |= _kernel(name, features, reference) if "KD" in to else {}
        if "FD" in to and name in reference.towards:
            found[f"FD-{name}"] = Metric(frechet(features, reference.towards[name]), len(some), "pictures")
    return found | (_least(nearest(pixels, reference.train)[0]) if "nearest" in to else {})


def _kernel(name: str, features: Tensor, reference: Reference) -> Metrics:
    if name not in reference.held_out:
        return {}
    held_out = reference.held_out[name]
    of = f"pictures, to {len(held_out):,} held-out ones"
    value, error = kernel(features, held_out)
    return {f"KD-{name}": Metric(value, len(features), of), f"KD-{name}/error": Metric(error, len(features), of)}


def _least(distances: Tensor) -> Metrics:
    distances = distances[distances.isfinite()]
    if not len(distances):
        return {}
    low, middle = (Metric(float(distances.quantile(q)), len(distances), "pictures", "of 255") for q in (0.05, 0.5))
    return {"nearest picture": middle, "nearest picture/5 %": low}


def with_floor(
    samples: Sequence[Picture | None],
    held_out: Real,
    train: Real,
    judge: Judge | None = None,
    again: Callable[[Sequence[Picture]], Sequence[Picture | None]] | None = None,
    eyes: Mapping[str, Eye] | None = None,
) -> dict[str, Metrics]:
    """`evaluate` of the samples, and of training and held-out pictures, before and after they were encoded.

    Args:
        judge: of what is shown, where the pictures are of the kind that it knows.
        again: pictures encoded and decoded; without it those columns are left out.
        eyes: feature nets besides the judge, by name.
    """
    compared, floor = matched(samples, held_out)
    names = sorted({real.name(row) for real in (train, held_out) for row in real.rows.tolist()} - {""})
    reference = Reference.of(train, floor, names, judge, eyes or {})
    columns = {"model": evaluate(samples, reference, compared if len(floor) else None)}
    pictures = twins(samples, train).pictures() if len(train) else []
    if pictures and again is not None:
        columns["train, encoded and decoded"] = evaluate(again(pictures), reference, compared, ("KD",))
    if pictures:
        columns["train"] = evaluate(pictures, reference, compared, ("KD",))
    pictures = floor.pictures()
    if pictures and again is not None:
        columns["held-out, encoded and decoded"] = evaluate(again(pictures), reference, to=("FD", "nearest"))
    if pictures:
        columns["held-out (floor)"] = evaluate(pictures, reference, to=("FD", "nearest"))
    return columns


def report(modality: Modality, samples: Sequence[Picture | None], **options: Any) -> dict[str, Metrics]:
    """`with_floor` of an adapter's samples; options are a recipe's ``data`` node.

    Emoji are judged by the judge that ships, other pictures by their features alone.
    """
    train, held_out = sets(modality, **options)
    judge = judging.load(JUDGE) if JUDGE.exists() else None
    if judge is not None and not set(train.packed.categories) & set(judge.categories):
        judge = None
    return with_floor(samples, held_out, train, judge, lambda some: _again(modality, some), installed())


def sets(modality: Modality, **options: Any) -> tuple[Real, Real]:
    """An adapter's training and held-out pictures; options are a recipe's ``data`` node."""
    packed = cast(Any, modality.dataset("train", **{**options, "pixels": True})).packed
    return Real.of(packed, "train"), Real.of(packed, "valid", "test")


def _again(modality: Any, pictures: Sequence[Picture]) -> list[Picture | None]:
    """Pictures encoded and decoded, one by one, for they may differ in size."""
    bare, found = replace(modality, conditions=()), []
    for picture in pictures:
        batch = collate([(0, bare.encode(picture))])
        made = bare.decode(batch.x, batch.mask)[0]
        found.append(made and replace(picture, image=made.image))
    return found
