"""A small network that says what an emoji shows, by its kind and by its name, and by which sets of them are compared.

Six convolutions halve the resolution four times; the mean and the largest value of every feature over the picture, and
one layer, make 64 features ("emoji" in the distances). From them

- one layer gives the probability of each category: the 99 subcategories of the Noto emoji;
- another a vector of length 1, near to that of the picture's name and far from those of others (A. Radford et al. 2021,
  arXiv:2103.00020). A name's vector is the sum of its words' through one layer. Words are read without an encoder, so
  that nothing needs to be installed; unknown ones are passed over.

Pictures are (4, 64, 64) in [-1, 1] as `diffkit_image.record` makes them, colour premultiplied by opacity.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit import weights
from diffkit_image.captions import words

__all__ = ["SIDE", "Judge", "load", "save"]

SIDE = 64
"""Pixels a side of what is judged."""
FEATURES, VECTOR, WORD = 64, 48, 24
"""Numbers of a picture's features, of its vector, and of a word's."""
BLOCKS = ((4, 1), (20, 2), (20, 1), (48, 2), (48, 1), (64, 2), (64, 2))
"""Channels after each convolution, and its stride; the picture's own first."""


class Judge(nn.Module):
    """What pictures (B, 4, 64, 64) show.

    Args:
        categories: their names.
        vocabulary: the words of names that are known.
    """

    def __init__(self, categories: Sequence[str], vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.categories, self.vocabulary = tuple(categories), tuple(vocabulary)
        self._number = {word: number for number, word in enumerate(self.vocabulary)}
        self.body = nn.Sequential(*(_block(i, o, stride) for (i, _), (o, stride) in pairwise(BLOCKS)))
        self.neck = nn.Linear(2 * BLOCKS[-1][0], FEATURES)
        self.head = nn.Linear(FEATURES, len(self.categories))
        self.vector = nn.Linear(FEATURES, VECTOR)
        self.word = nn.EmbeddingBag(max(len(self.vocabulary), 1), WORD, mode="sum")
        nn.init.normal_(self.word.weight, std=WORD**-0.5)
        self.name = nn.Linear(WORD, VECTOR)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 4, 64, 64) to features (B, 64)."""
        h = self.body(pixels)
        found: Tensor = self.neck(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Of the categories, (B, K), from features (B, 64)."""
        found: Tensor = self.head(F.relu(features))
        return found

    def pictures(self, features: Tensor) -> Tensor:
        """Vectors (B, 48) of length 1 from features (B, 64)."""
        return F.normalize(self.vector(F.relu(features)).float(), dim=1)

    def names(self, said: Sequence[Sequence[str]]) -> Tensor:
        """Vectors (B, 48) of length 1 of names as their words."""
        known = [[self._number[word] for word in row if word in self._number] for row in said]
        counts = torch.tensor([len(row) for row in known])
        flat = torch.tensor([number for row in known for number in row], dtype=torch.long)
        bags = self.word(flat, counts.cumsum(0) - counts)
        return F.normalize(self.name(bags / counts.clamp(min=1).sqrt()[:, None]), dim=1)

    @torch.no_grad()
    def see(self, pixels: Tensor, batch_size: int = 128) -> Tensor:
        """Features (B, 64) of any number of pictures (B, 4, 64, 64)."""
        training = self.training
        self.eval()
        found = [self(part) for part in pixels.split(batch_size) if len(part)]
        self.train(training)
        return torch.cat([torch.zeros(0, FEATURES), *found])

    @torch.no_grad()
    def kinds(self, features: Tensor) -> list[str]:
        """The most probable category of each row (B, 64)."""
        return [self.categories[k] for k in self.logits(features).argmax(1).tolist()]

    @torch.no_grad()
    def ranks(self, features: Tensor, asked: Sequence[str], every: Sequence[str]) -> Tensor:
        """How many of ``every`` name come before the one asked for (B,), by features (B, 64); the first is 0.

        Args:
            asked: for each picture, a name that is among ``every``.
        """
        near = self.pictures(features) @ self.names([words(name) for name in every]).T
        places = {name: k for k, name in enumerate(every)}
        own = near[torch.arange(len(asked)), [places[name] for name in asked]]
        return (near > own[:, None]).sum(1)

    @property
    def version(self) -> str:
        """A digest of the weights, as they are in half precision."""
        digest = hashlib.sha256()
        for value in self.state_dict().values():
            digest.update(value.half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def save(judge: Judge, path: Path) -> None:
    """Write the weights in half precision, the categories and the words, to ``path``: whole or not at all."""
    weights.write(judge, path, categories=judge.categories, vocabulary=judge.vocabulary)


def load(path: Path) -> Judge:
    """Read what `save` wrote.

    Raises:
        ValueError: for a file that is not a judge's.
    """
    state, about = weights.read(path, "categories", "vocabulary")
    judge = Judge(about["categories"], about["vocabulary"])
    counters = {k: v for k, v in judge.state_dict().items() if k.endswith("num_batches_tracked")}
    judge.load_state_dict(counters | state)
    return judge.eval()
