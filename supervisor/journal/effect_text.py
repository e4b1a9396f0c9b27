"""The text of an effect, for people who read the journal, made from its typed result; and an ending's fields, for programs."""

from __future__ import annotations

from typing import Any

from states.effects import Effect
from states.ending import Ending, EndingKind, StopReport, Vram, VramState
from states.lifecycle import EffectResult


def effect_detail(result: EffectResult) -> str:
    """What was done, or why it failed, in one line without task data."""
    if not result.ok:
        return result.error
    match result.report:
        case Ending() as ending:
            return _ending(ending, asked_back=result.effect is Effect.HAND_BACK)
        case StopReport() as stop:
            return _stop(stop)
        case None:
            return "nothing to stop" if result.effect is Effect.STOP else ""
    return str(result.report)


def ending_fields(ending: Ending) -> dict[str, Any]:
    """The ending for the journal: `kind` and `error`, and of the stop the seconds of each rung and the state of the VRAM."""
    fields: dict[str, Any] = {"kind": str(ending.kind)}
    if ending.error is not None:
        fields["error"] = ending.error
    if (stop := ending.stop) is not None:
        fields["rungs"] = [[rung.name, None if rung.seconds is None else round(rung.seconds, 4)] for rung in stop.rungs]
        fields["vram"] = str(stop.vram.state)
        if stop.vram.state in (VramState.FREE, VramState.HELD):
            fields["vram_s"] = round(stop.vram.after_s, 4)
    return fields


def _ending(ending: Ending, *, asked_back: bool) -> str:
    match ending.kind:
        case EndingKind.SUCCEEDED:
            text = "succeeded"
        case EndingKind.HANDED_BACK:
            return f"{ending.error}; with the place that it has saved" if ending.saved_state is not None else str(ending.error)
        case _ if asked_back:
            return f"settled in place of that, failed: {ending.error}"
        case _:
            text = f"failed: {ending.error}"
    # The effect `stop` has a line of its own; what is read after an end by itself belongs to the ending.
    after = "" if ending.stop is None or ending.stop.rungs else _stop(ending.stop)
    return ", ".join(filter(None, (text, after)))


def _stop(stop: StopReport) -> str:
    done = ", ".join(filter(None, (*map(str, stop.rungs), _vram(stop.vram))))
    return "; ".join(filter(None, (done, stop.note)))


def _vram(vram: Vram) -> str:
    match vram.state:
        case VramState.FREE:
            return f"VRAM free after {vram.after_s * 1000:.0f} ms"
        case VramState.HELD:
            return f"VRAM still held after {vram.after_s * 1000:.0f} ms: {vram.detail}"
        case VramState.UNREADABLE:
            return f"VRAM not readable: {vram.detail}"
        case VramState.NOT_REQUIRED:
            return f"VRAM not readable ({vram.detail}), and gpu.presence asks for no GPU"
    return ""
