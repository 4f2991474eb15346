"""Sets of pictures of the `datasets` library, by the name that they have on the Hub or by their folder.

Rows are streamed: of a set too large for this machine only the first are fetched. The picture is the first column of
that kind, what is said of it the first of `TEXTS`, its category the first column of class labels, or one of
`CATEGORIES`. Splits are the set's own; where it has none to validate or to test on, they are hashes of the numbers of
its rows.

No code of a set is run. `datasets` is asked for where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from diffkit.folders import reasons
from diffkit_image import readers
from diffkit_image.packed import Found
from diffkit_image.readers import FOLDERS, Report, Shape

__all__ = ["CATEGORIES", "TEXTS", "identity", "read"]

TEXTS = ("text", "caption", "captions", "prompt", "sentence", "description", "title")
CATEGORIES = ("category", "label", "class")


def read(name: str, shape: Shape, limit: int, report: Report) -> Iterator[Found]:
    """The pictures of a set; what is to be said of them is added to ``report``.

    Args:
        name: ``owner/set``, ``owner/set:configuration``, or a folder.
        shape: of the pictures.
        limit: rows of the split to train on that are read, and ten times those of each other.
        report: of what cannot be used.

    Raises:
        ModuleNotFoundError: without `datasets`.
        ValueError: for a set that cannot be had, or that has no usable pictures.
    """
    parts = _parts(_opened(name))
    for group, rows in parts.items():
        columns = _Columns.of(name, rows.features)
        raw = rows.cast_column(columns.picture, _library().Image(decode=False))
        for number, row in enumerate(islice(raw, limit if group == "train" else max(1, limit // 10))):
            where, hashed = f"{group}/{number}", readers.split_of(str(number))
            try:
                image, note = readers.decode(_content(row[columns.picture]))
            except (ValueError, OSError) as error:
                report.rejected.append((where, str(error)))
                continue
            report.used += 1
            report.changed += [(where, note)] if note else []
            split = hashed if group == "train" and hashed not in parts else group
            yield Found(where, split, shape.fit(image), *columns.said(row))
    if not report.used:
        raise ValueError(f"got the set {name} without a usable picture ({reasons(report.rejected) or 'empty'})")


def identity(name: str) -> str:
    """What changes when the set does: of a folder, the names, sizes and times of its files."""
    path = Path(name)
    if not path.exists():
        return name
    files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    return "\n".join([str(path.resolve()), *(f"{f.name}|{s.st_size}|{s.st_mtime_ns}" for f, s in files)])


@dataclass(frozen=True)
class _Columns:
    """Where a row has what."""

    picture: str
    text: str
    category: str
    names: tuple[str, ...]  # of class labels

    @staticmethod
    def of(name: str, features: Mapping[str, Any] | None) -> _Columns:
        """The columns of a set, by what the library says that they hold. A ValueError if there are no pictures."""
        known = dict(features or {})
        kinds = {column: type(feature).__name__ for column, feature in known.items()}
        picture = next((column for column, kind in kinds.items() if kind == "Image"), None)
        if picture is None:
            raise ValueError(
                f"got the set {name} with columns {', '.join(known) or 'unknown'}; expected one of pictures"
            )
        labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
        category = next(iter([*labels, *(column for column in CATEGORIES if column in known)]), "")
        names = tuple(known[category].names) if category in labels else ()
        return _Columns(picture, next((column for column in TEXTS if column in known), ""), category, names)

    def said(self, row: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
        """Captions and category of a row."""
        label = row.get(self.category)
        if self.names:
            category = self.names[label] if isinstance(label, int) and 0 <= label < len(self.names) else ""
        else:
            category = "" if label is None else str(label)
        text = row.get(self.text)
        texts = [text] if isinstance(text, str) else [t for t in text or () if isinstance(t, str)]
        captions = tuple(dict.fromkeys(" ".join(t.split()) for t in texts if t.strip()))
        return captions or ((category.replace("_", " "),) if category else ()), category


def _content(value: Any) -> Path | bytes:
    """The file of a row's picture, which may lie elsewhere."""
    if not isinstance(value, Mapping):
        raise ValueError("has no picture")
    content, path = value.get("bytes"), value.get("path")
    if content is not None:
        return bytes(content)
    if not path:
        raise ValueError("has no picture")
    return Path(path)


def _parts(opened: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by split, train first; where none has that name the first is for training."""
    named = {FOLDERS[split]: rows for split, rows in opened.items() if split in FOLDERS}
    train = named.pop("train", None)
    return {"train": train, **named} if train is not None else {"train": next(iter(opened.values()))}


def _opened(name: str) -> Mapping[str, Any]:
    """The rows of each split of a set."""
    library, folder = _library(), Path(name)
    try:
        if any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
            found = library.load_from_disk(name)
            return found if isinstance(found, Mapping) else {"train": found}
        owner, _, configuration = (name, "", "") if folder.exists() else name.partition(":")
        opened: Mapping[str, Any] = library.load_dataset(owner, configuration or None, streaming=True)
        return opened
    except Exception as error:  # of many kinds: of the network, of the Hub, of the set
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"got the set {name}, which cannot be had ({reason}); expected owner/set, owner/set:name or a folder"
        ) from None


def _library() -> Any:
    try:
        return import_module("datasets")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "got a set of the datasets library, which is not installed; install it with `pip install datasets`"
        ) from None
