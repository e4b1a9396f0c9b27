"""How a task ended, as an effect line of the journal says it: in its field `ending`, in old journals in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from states.effects import Effect
from states.ending import EndingKind


def ending_of(entry: Mapping[str, Any]) -> tuple[EndingKind, str]:
    """(kind, error) of a `settle` or `hand_back` that was done; for a task that was handed back the error is the reason.

    Raises:
        AttributeError, KeyError, ValueError: the field `ending` is not of the journal's form.
    """
    detail = str(entry.get("detail", ""))
    if "ending" in entry:
        return EndingKind(entry["ending"]["kind"]), str(entry["ending"].get("error", ""))
    return _from_sentence(entry["effect"], detail)


def _from_sentence(effect: str, detail: str) -> tuple[EndingKind, str]:
    """Version 0.1.0 wrote no field `ending`, only the sentence in `detail`:

    - settle: `succeeded`, `succeeded, VRAM free after 12 ms`, `failed: exit: status 3`, or, for a task that was handed
      back instead, the reason alone;
    - hand_back: the reason, or `settled in place of that, failed: …` for a task that would have failed elsewhere too.
    """
    if effect == Effect.SETTLE:
        if detail == "succeeded" or detail.startswith("succeeded, "):
            return EndingKind.SUCCEEDED, ""
        if detail.startswith("failed: "):
            return EndingKind.FAILED, detail.removeprefix("failed: ")
    elif detail.startswith("settled in place of that, failed: "):
        return EndingKind.FAILED, detail.removeprefix("settled in place of that, failed: ")
    return EndingKind.HANDED_BACK, detail
