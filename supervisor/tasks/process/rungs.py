"""The steps of freezing, thawing and stopping a task. Imports nothing slow: the shim pays for it before every task."""

from __future__ import annotations

import enum


class RungName(enum.StrEnum):
    """A step; its value is the step's name on the wire between shim and daemon and in the journal."""

    FROZEN = "frozen"
    NOT_FROZEN = "not frozen"
    THAWED_AGAIN = "not frozen, and thawed again after"
    THAWED = "thawed"
    WAS_NOT_FROZEN = "was not frozen"
    BEING_STOPPED = "it is being stopped"

    NOTICE = "notice"
    STATE_SAVED = "state saved"
    NO_STATE = "no state"
    STATE_TOO_LARGE = "its state is not a file of at most 65536 bytes"
    STATE_NOT_JSON = "its state is not JSON"
    TERM = "term"
    KILL = "kill"
    GONE = "gone"
    GONE_ALREADY = "gone already"
    ENDED_ITSELF = "ended by itself"
    CLEARED = "cleared away by the daemon"

    REQUEST_CUT = "request cut"
    NOTHING_TO_UNLOAD = "nothing to unload"
    UNLOADED = "unloaded"
    UNLOAD_FAILED = "unloading failed"
    NOT_UNLOADED = "not unloaded within 3 s"

    NO_CUDA = "no CUDA process"
    LOCKED = "locked"
    VRAM_OUT = "VRAM out"
    VRAM_BACK = "VRAM back"
    UNLOCKED = "unlocked"
