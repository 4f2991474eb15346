"""Figures of merit, and how they are shown.

A figure says over how many things it was counted. Columns of figures stand side by side: what the model scored, and
what held-out data scores by the same function, which is as good as it gets at that number.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

__all__ = ["Metric", "Metrics", "table"]


@dataclass(frozen=True)
class Metric:
    """A figure, the number ``n`` of things it was counted over, and what they are (``of``). NaN where there is none.

    The unit "share" is a part of one, shown in per cent.
    """

    value: float
    n: int
    of: str
    unit: str = ""

    def record(self) -> dict[str, Any]:
        """Fields for a JSON file, which has neither NaN nor infinity."""
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else None}

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "n/a"
        return f"{100 * self.value:.2f} %" if self.unit == "share" else f"{self.value:.4g} {self.unit}".rstrip()


Metrics: TypeAlias = dict[str, Metric]


def table(columns: Mapping[str, Metrics]) -> str:
    """Columns of figures as aligned text: value and (N) for each, and at the end what N counts."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [("", *columns, "over")]
    for name in names:
        found = [column.get(name) for column in columns.values()]
        cells = ("-" if metric is None else f"{metric} ({metric.n:,})" for metric in found)
        rows.append((name, *cells, next(metric.of for metric in found if metric is not None)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
