"""What a check of the host has found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Findings(NamedTuple):
    """Why the host is unfit, and what cannot be known, one text each; both empty: it is fit."""

    unfit: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


FIT = Findings()


def merge(found: Iterable[Findings]) -> Findings:
    parts = tuple(found)
    return Findings(tuple(text for it in parts for text in it.unfit), tuple(text for it in parts for text in it.unknown))
