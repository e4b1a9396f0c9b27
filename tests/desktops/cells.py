"""What a cell of the table does on a stage. Each returns what was seen, or raises `Fails` with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from desktops.stage import IDLE_S, PERSON, READY_S, SESSIONS, TASK_S, Fails, Stage, reasons
from support.waiting import until

Cell = Callable[[Stage], str]
FILM = "filmplayer"  # what a film's lock calls itself in all scripts
HUNG_S = 75.0  # an idle desktop is asked every half minute, and given time to answer; then ever more seldom
NO_TRAY = "ServiceUnknown"
NOT_OFFERED = "not offered"  # nobody has that name on this desktop's bus
HELD_S = IDLE_S + 8  # a film, or somebody who types: long enough to see that the node would work without


def ready(play: Stage) -> str:
    """Untouched, it becomes READY, and works."""
    return f"{play.works():.0f} s"


def touch(play: Stage) -> str:
    """A touch ends RUNNING; the slowest of three."""
    seen = [play.leaves(lambda: play.act("touch")) for _ in range(3)]
    return f"{max(ms for ms, _ in seen):.0f} ms"


def quiet(play: Stage, seconds: float) -> str:
    """Minutes of nothing are nobody."""
    play.works()
    play.goes_on(seconds)
    return f"{seconds:g} s"


def film(play: Stage, verbs: tuple[str, ...]) -> str:
    """A film holds it off and is named, whichever way its player says so; over, it works again."""
    told: list[str] = []
    wrong: list[str] = []
    evidence = ""
    for verb in verbs:
        try:
            told.append(_one_film(play, verb))
        except Fails as error:
            wrong.append(f"{verb}: {error}")
            evidence += f"  {verb}:\n{play.evidence()}"
        play.end()
        play.box.run("pkill", "-f", "saver_hold.py|systemd-inhibit|session-inhibit", check=False)
    if wrong or set(told) == {NOT_OFFERED}:
        raise Fails("; ".join(wrong) or "there is no way to hold off idling", evidence)
    return ", ".join(told)


def _one_film(play: Stage, verb: str) -> str:
    playing = []

    def start() -> None:
        playing.append(play.begin(verb))

    try:
        ms, _ = play.leaves(start, during="a film")
    except Fails:
        if playing and playing[0].poll() is not None:
            assert playing[0].stderr
            if "does not exist" in playing[0].stderr.read():
                return NOT_OFFERED
        raise
    play.stays_away(HELD_S, "a film")
    if FILM not in play.node.cli("why", "--all").stdout:
        raise Fails(f"a film, not named: {play.said()}")
    play.end()
    play.works()
    return f"{ms / 1e3:.1f} s"


def whole_tasks(play: Stage, count: int = 3) -> str:
    """With shipped settings: tasks of a minute run to their end, in one stay."""
    tasks = [play.node.add("minute") for _ in range(count)]
    until(play.runs, lambda: f"RUNNING, not {play.said()}", 800)
    before = len(play.decisions())

    def settled() -> bool:
        return all(play.node.task(task)["status"] in ("COMPLETED", "FAILED") for task in tasks)

    until(lambda: settled() or play.left_by(before), "the tasks' end", count * (TASK_S + 90))
    ended = [play.node.task(task)["status"] for task in tasks]
    if ended != ["COMPLETED"] * count:
        left = play.left_by(before)
        raise Fails(f"{', '.join(ended)}; {left['row'] if left else ''}: {reasons(left) if left else play.said()}")
    return f"{count} of {count} ran for {TASK_S} s"


def locked(play: Stage) -> str:
    """Locked and untouched, it becomes READY; a touch of the locked screen ends that."""
    play.works()
    play.act("lock")
    time.sleep(3)
    s = play.works()
    hint = "locked" if "LockedHint=yes" in play.box.sh(SESSIONS) else "asked to lock"
    ms, _ = play.leaves(lambda: play.act("touch-locked"), during="locked")
    play.act("unlock")
    play.works()
    return f"{hint}: {s:.0f} s, {ms:.0f} ms"


def hang(play: Stage) -> str:
    """A desktop that hangs is told, and counts as somebody; it goes on, and the node works again."""
    try:
        ms, why = play.leaves(lambda: play.act("hang"), HUNG_S, during="hung")
    finally:
        play.act("go-on")
    if "unknown" not in why:
        raise Fails(f"hung, but: {why}")
    play.works(2 * HUNG_S)
    return f"{ms / 1e3:.1f} s: {why}"


def logout(play: Stage) -> str:
    """A logout is a sign; then there is nobody."""
    ms, _ = play.leaves(lambda: play.act("logout"), during="logout")
    play.works()
    return f"{ms / 1e3:.1f} s"


def kill(play: Stage) -> str:
    """A desktop that is killed is told; afterwards there is nobody, or the reason says which session is left."""
    play.act("start", check=False)
    ms, why = play.leaves(lambda: play.act("kill"), during="killed")
    try:
        play.works()
    except Fails as error:
        if "session" not in str(error):
            raise
        return f"{ms / 1e3:.1f} s, then held: {play.said()}"
    return f"{ms / 1e3:.1f} s: {why}"


def held(play: Stage) -> str:
    """Nothing can see this desktop's person: it counts as somebody, and the reason says which session and what to do."""
    play.stays_away(2 * IDLE_S + 8, "unseen")
    said = play.said()
    if "session" not in said:
        raise Fails(f"held, but no session named: {said}")
    return said


def over(play: Stage, verb: str) -> str:
    """Its end is the end of that somebody."""
    play.act("start", check=False)
    play.stays_away(3, "unseen")
    play.act(verb)
    try:
        return f"{play.works():.0f} s"
    except Fails:
        if verb != "kill" or "session" not in play.said():
            raise
        return f"held: {play.said()}"


def tray(play: Stage) -> str:
    """The icon follows the state, and its menu pauses and resumes. Without a tray, the message of the first login was shown."""
    play.works()
    with contextlib.suppress(AssertionError):
        until(lambda: NO_TRAY not in play.tray("show"), "a tray", 10)
    if NO_TRAY in (seen := play.tray("show")):
        choices = play.box.root / f"home/{PERSON}/.config/rae-node/desk.json"
        until(choices.exists, "the message of the first login", READY_S)
        return "none: a message"
    until(lambda: play.tray("show").startswith("True|Active|rae-node-lent|Lent"), lambda: f"lent, not {seen}", 15)
    for entry, icon in (("Pause for 2 hours", "rae-node-paused|Paused by bert"), ("Resume", "rae-node-yours|Yours")):
        play.tray("click", entry)
        until(lambda icon=icon: f"|{icon}" in play.tray("show"), lambda icon=icon: f"{icon}, not {play.tray('show')}", 15)
    play.works()
    return "lent, paused, yours"


# --- ways in without a desktop: a variant of remote-shells.sh


def typed(play: Stage, variant: str, seconds: int) -> str:
    """Somebody comes in that way and works there: that ends RUNNING, and as long as they work, nothing begins."""
    came = []
    ms, why = play.leaves(lambda: came.append(play.begin(variant, str(seconds))), during=variant)
    play.stays_away(seconds - 8, f"while somebody works ({variant})")
    if came[0].poll() is not None:
        raise Fails(f"{variant} ended: {came[0].stderr.read()[-200:] if came[0].stderr else ''}")
    return f"{ms / 1e3:.1f} s: {why}"


def gone(play: Stage) -> str:
    """They have left."""
    play.end()
    return f"{play.works():.0f} s"


def open_but_quiet(play: Stage, variant: str) -> str:
    """Somebody came in that way and touches nothing any more."""
    process = play.begin(variant, "90")
    time.sleep(3)
    if process.poll() is not None:
        raise Fails(f"{variant} ended: {process.stderr.read()[-200:] if process.stderr else ''}")
    return f"{play.works():.0f} s"


def nobody(play: Stage, variant: str, seconds: float) -> str:
    """What goes on by itself is nobody; that it was begun may be a sign."""
    process = play.begin(variant, str(int(seconds + READY_S) + 5))
    time.sleep(3)
    play.works()
    play.goes_on(seconds, variant)
    if process.poll() is not None:
        raise Fails(f"{variant} ended: {process.stderr.read()[-200:] if process.stderr else ''}")
    return f"{seconds:g} s"
