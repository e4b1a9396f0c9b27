"""How every bench prints and judges: `name  ours  baseline  ratio  target  ok|short`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. `target` is of the ratio ours / baseline: at least, or at most with `less`. None: for information."""

    name: str
    ours: float
    baseline: float | None
    target: float | None
    less: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if not self.baseline else self.ours / self.baseline

    @property
    def short(self) -> bool:
        if self.target is None or self.ratio is None:
            return False
        return self.ratio > self.target if self.less else self.ratio < self.target


def verdict(baseline: str, rows: list[Row]) -> int:
    """Print all rows; 1 when any is short."""
    print(f"baseline: {baseline}")
    print(f"{'name':<34} {'ours':>12} {'baseline':>12} {'ratio':>7} {'target':>8}")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        target = "" if row.target is None else f"{'≤' if row.less else '≥'} {row.target:g}"
        judged = "" if row.target is None or row.ratio is None else "short" if row.short else "ok"
        base = "" if row.baseline is None else f"{row.baseline:,.4g}"
        print(f"{row.name:<34} {row.ours:>12,.6g} {base:>12} {ratio:>7} {target:>8}  {judged:<5} {row.note}".rstrip())
    return int(any(row.short for row in rows))
