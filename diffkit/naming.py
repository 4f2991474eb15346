"""Help for people who mistype a name."""

import difflib
from collections.abc import Collection, Iterable

__all__ = ["nearest", "require_known"]


def nearest(name: str, known: Iterable[str]) -> str:
    """The words "; did you mean …?" where one of the ``known`` names is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def require_known(kind: str, name: str, known: Collection[str]) -> None:
    """A ValueError for a name that is none of the ``known``, with those and the nearest."""
    if name not in known:
        listed = ", ".join(known) or "(there are none)"
        raise ValueError(f"got {kind} '{name}'; expected one of {listed}{nearest(name, known)}")
