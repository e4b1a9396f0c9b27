"""A scripted replay as YAML (interface §5, R17), read strictly: every error at once, each with file, line and column.

Nothing is guessed: an unknown key, value, duration, state, effect, guard, row or setting is an error that says what is
allowed, and so is a script that expects nothing. What a step leaves out of `gpu` holds from before; the first time all
three readings are needed. `gpu.held`, a text, says what a task that is over has not given back, and `gpu.pinned: true` that
the own task holds GPU memory, which a freeze would keep there; both for that look only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from states.effects import Effect
from states.guards import GUARDS
from states.limits import Limits
from states.memory import State
from states.observation import Link, TaskPhase
from states.table import BY_ID
from supervisor.config import yaml_reader as yaml_strict
from supervisor.config.generate import SEED
from supervisor.config.load import limits_of
from supervisor.config.schema import NodeSettings, Runtime
from supervisor.config.validate import Walk
from supervisor.config.yaml_reader import Mapping as MappingNode
from supervisor.config.yaml_reader import Node, Problem, Scalar, Sequence, found, resolved
from supervisor.journal.codec import ABSENT, GPU_FIELDS, GPU_MORE, READINGS, UNKNOWN

VERSION: Final = 1
MAX_TICKS: Final = 100_000
HELD, FREE = "held", "free"
COVERS: Final = tuple(f"R{n}" for n in range(1, 25))

_RUNTIME: Final = Runtime.__struct_fields__
_MACHINE: Final = NodeSettings.__struct_fields__

# As YAML libraries write them, with all digits of a float, and an exponent only behind a point.
_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,25}(?:[eE][-+][0-9]{1,3})?)?|\.[0-9]{1,25}")
_DURATION: Final = re.compile(r"(?=[0-9])" + "".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?){unit})?" for unit in "hms"))
_SWITCH: Final = {"on": "on", "true": "on", "off": "off", "false": "off"}
_UNIT_S: Final = (3600.0, 60.0, 1.0)


@dataclass(frozen=True, slots=True)
class Expect:
    """What a step must lead to; None where the script does not ask. `row` is "" for `null`: no row fired."""

    state: State
    row: str | None = None
    effects: tuple[str, ...] | None = None
    inhibitor: str | None = None
    blocked_by: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """`ticks` ticks at `at_s` (seconds), with `see` laid over what was seen before; `line` is its place in the file."""

    number: int
    line: int
    at_s: float
    see: Mapping[str, Any]
    refuse: frozenset[Effect] = frozenset()
    stale: tuple[str, ...] = ()
    ticks: int = 1
    expect: Expect | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """A whole script. `inhibitor` False: this machine has none (host.inhibitor), so taking it does nothing."""

    file: str
    title: str
    covers: tuple[str, ...]
    steps: tuple[Step, ...]
    limits: Limits
    inhibitor: bool = True
    enabled: bool = True


class ScriptError(Exception):
    """The script is not one; `problems` in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.line, p.column))
        super().__init__("\n".join(map(str, self.problems)))


def parse(text: str, file: str) -> Script:
    """The script in this text; `file` is the name that errors carry.

    Raises:
        ScriptError: it is no script; every reason is in it.
    """
    root, problems = yaml_strict.parse(text, file)
    reader = _Reader(file, problems)
    script = reader.script(root)
    if problems:
        raise ScriptError(problems)
    assert script is not None
    return script


class _Reader:
    """Walks the tree and collects problems; a part that is wrong is None and said once."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._gpu: dict[str, Any] = {}

    def script(self, root: Node | None) -> Script | None:
        """The whole."""
        allowed = "a mapping with replay, title, covers, settings and steps"
        if root is None:
            self._refuse(Node(1, 1), "", "nothing", allowed)
            return None
        top = self._fields(root, "", ("replay", "title", "covers", "settings", "steps"), ("replay", "steps"))
        if top is None:
            return None
        version = top.get("replay")
        if version and not (isinstance(version, Scalar) and version.plain and version.text == str(VERSION)):
            self._refuse(version, "replay", found(version), str(VERSION))
        title = self._text(top["title"], "title") if "title" in top else ""
        covers = self._list(top["covers"], "covers", self._requirement) if "covers" in top else ()
        settings = self._settings(top.get("settings"))
        steps = self._steps(top["steps"]) if "steps" in top else ()
        if settings is None:
            return None
        runtime, machine = settings
        return Script(
            self._file,
            title or "",
            tuple(covers or ()),
            steps,
            limits_of(runtime, machine),
            machine.host.inhibitor != "none",
            runtime.automation.enabled,
        )

    # --- steps

    def _steps(self, node: Node) -> tuple[Step, ...]:
        if not isinstance(node, Sequence) or not node.items:
            what = "an empty list" if isinstance(node, Sequence) else found(node)
            self._refuse(node, "steps", what, "a list of at least one step")
            return ()
        steps: list[Step] = []
        at_s = 0.0
        asked = False
        for number, item in enumerate(node.items, 1):
            known = ("at", "see", "ticks", "stale", "refuse", "expect")
            fields = self._fields(item, f"step {number}", known, ("at",))
            if fields is None:
                asked = True  # what it expects is not known; the error is said already
                continue
            asked = asked or "expect" in fields
            step = self._step(number, item, fields, at_s)
            at_s = step.at_s
            steps.append(step)
        if not asked:
            self._refuse(node, "steps", "no step that expects anything", "`expect: {state: …}` on at least one step")
        return tuple(steps)

    def _step(self, number: int, item: Node, fields: Mapping[str, Node], not_before_s: float) -> Step:
        name = f"step {number}"
        at_s = not_before_s
        if "at" in fields and (given_s := self._duration(fields["at"], f"{name}: at")) is not None:
            at_s = given_s
            if at_s < not_before_s:
                what = f"{found(fields['at'])}, which is before the step above"
                self._refuse(fields["at"], f"{name}: at", what, "the same time or a later one")
                at_s = not_before_s
        ticks = self._ticks(fields["ticks"], f"{name}: ticks") if "ticks" in fields else 1
        refuse = self._list(fields["refuse"], f"{name}: refuse", self._effect) if "refuse" in fields else ()
        stale = self._list(fields["stale"], f"{name}: stale", self._reading) if "stale" in fields else ()
        return Step(
            number,
            item.line,
            at_s,
            self._see(fields["see"], f"{name}: see") if "see" in fields else {},
            frozenset(Effect(e) for e in refuse or ()),
            tuple(stale or ()),
            ticks or 1,
            self._expect(fields["expect"], f"{name}: expect") if "expect" in fields else None,
        )

    def _ticks(self, node: Node, field: str) -> int | None:
        number = self._number(node, field, f"a whole number from 1 to {MAX_TICKS}", whole=True)
        if number is not None and not 1 <= number <= MAX_TICKS:
            self._refuse(node, field, found(node), f"a whole number from 1 to {MAX_TICKS}")
            return None
        return None if number is None else int(number)

    def _see(self, node: Node, field: str) -> dict[str, Any]:
        readers: dict[str, Callable[[Node, str], Any]] = {
            "automation": self._automation,
            "user": self._user,
            "gpu": self._gpu_seen,
            "cpu": self._cpu,
            "host": self._host,
            "task": lambda n, f: self._word(n, f, TaskPhase),
            "link": lambda n, f: self._word(n, f, Link),
        }
        fields = self._fields(node, field, tuple(readers)) or {}
        return {name: readers[name](value, f"{field}.{name}") for name, value in fields.items()}

    def _automation(self, node: Node, field: str) -> str | None:
        word = _SWITCH.get(node.text.lower()) if isinstance(node, Scalar) else None
        if word is None:
            self._refuse(node, field, found(node), "on or off")
        return word

    def _user(self, node: Node, field: str) -> Any:
        if isinstance(node, MappingNode):
            fields = self._fields(node, field, ("idle",), ("idle",))
            idle_s = self._duration(fields["idle"], f"{field}.idle") if fields and "idle" in fields else None
            return None if idle_s is None else {"idle": idle_s}
        word = self._word(node, field, ("active", UNKNOWN), "active, unknown, or {idle: DURATION}")
        return {"idle": 0.0} if word == "active" else word

    def _gpu_seen(self, node: Node, field: str) -> Any:
        if not isinstance(node, MappingNode):
            self._gpu = {}
            return self._word(node, field, (ABSENT, UNKNOWN), f"absent, unknown, or {{{', '.join(GPU_FIELDS)}}}")
        fields = self._fields(node, field, (*GPU_FIELDS, *GPU_MORE)) or {}
        for name in GPU_MORE:
            self._gpu.pop(name, None)
        for name, value in fields.items():
            if name == "held":
                self._gpu["held"] = self._text(value, f"{field}.held") or ""
                continue
            if name == "pinned":
                self._gpu["pinned"] = self._word(value, f"{field}.pinned", ("true", "false")) == "true"
                continue
            allowed = "a whole number ≥ 0" if name == "foreign" else "a number ≥ 0"
            number = self._number(value, f"{field}.{name}", allowed, whole=name == "foreign")
            self._gpu[name] = number if number is not None else 0.0
        missing = [name for name in GPU_FIELDS if name not in self._gpu]
        if missing and len(fields) == len(node.pairs):  # a misspelt one was refused already
            self._refuse(node, field, f"no {' and no '.join(missing)}, and none from before", f"{{{', '.join(GPU_FIELDS)}}}")
        return dict(self._gpu)

    def _cpu(self, node: Node, field: str) -> Any:
        if isinstance(node, Scalar) and node.text == UNKNOWN:
            return UNKNOWN
        return self._number(node, field, "a number ≥ 0, or unknown")

    def _host(self, node: Node, field: str) -> Any:
        if isinstance(node, MappingNode):
            fields = self._fields(node, field, ("unfit",), ("unfit",))
            reason = self._text(fields["unfit"], f"{field}.unfit") if fields and "unfit" in fields else None
            return None if reason is None else {"unfit": reason}
        return self._word(node, field, ("fit", "going-down", UNKNOWN), "fit, {unfit: reason}, going-down, or unknown")

    def _expect(self, node: Node, field: str) -> Expect | None:
        fields = self._fields(node, field, ("state", "row", "effects", "inhibitor", "blocked_by"), ("state",))
        if fields is None or "state" not in fields:
            return None
        state = self._word(fields["state"], f"{field}.state", State)
        row = self._row(fields["row"], f"{field}.row") if "row" in fields else None
        inhibitor = self._word(fields["inhibitor"], f"{field}.inhibitor", (HELD, FREE)) if "inhibitor" in fields else None
        effects = blocked = None
        if "effects" in fields:
            effects = self._list(fields["effects"], f"{field}.effects", self._performed)
        if "blocked_by" in fields:
            blocked = self._list(fields["blocked_by"], f"{field}.blocked_by", self._guard)
        if state is None:
            return None
        return Expect(State(state), row, effects, inhibitor, None if blocked is None else frozenset(blocked))

    def _row(self, node: Node, field: str) -> str | None:
        if isinstance(node, Scalar) and node.plain and resolved(node.text) == "null":
            return ""
        return self._word(node, field, tuple(BY_ID), f"null, {', '.join(BY_ID)}")

    def _requirement(self, node: Node, field: str) -> str | None:
        return self._word(node, field, COVERS, "R1 to R24")

    def _reading(self, node: Node, field: str) -> str | None:
        return self._word(node, field, READINGS)

    def _guard(self, node: Node, field: str) -> str | None:
        return self._word(node, field, (guard.name for guard in GUARDS))

    def _effect(self, node: Node, field: str) -> str | None:
        return self._word(node, field, Effect)

    def _performed(self, node: Node, field: str) -> str | None:
        both = (*Effect, *(f"{effect}!" for effect in Effect))
        return self._word(node, field, both, f"{', '.join(Effect)}, each with ! if it failed")

    # --- settings

    def _settings(self, node: Node | None) -> tuple[Runtime, NodeSettings] | None:
        """Both files as shipped, with the script's settings in them, judged by the files' own rules."""
        runtime, machine = _shipped_runtime(), MappingNode(1, 1)
        places: dict[str, Node] = {}
        if node is not None and not isinstance(node, MappingNode):
            self._refuse(node, "settings", found(node), "a mapping of dotted names, such as work.run_minutes: 0")
        for key, value in node.pairs if isinstance(node, MappingNode) else ():
            section = key.text.partition(".")[0] if isinstance(key, Scalar) and "." in key.text else ""
            if not isinstance(key, Scalar) or section not in (*_RUNTIME, *_MACHINE):
                self._refuse(key, "settings", found(key), "the dotted name of a setting of runtime.yaml or node.yaml")
            elif key.text in places or any(_inside(key.text, other) for other in places):
                self._refuse(key, f"settings.{key.text}", "it a second time", "each setting once")
            else:
                places[key.text] = key
                _put(runtime if section in _RUNTIME else machine, key, value)
        walk = Walk(self._file, self._problems)
        judged = walk.section(Runtime, runtime, "", runtime), walk.section(NodeSettings, machine, "", machine)
        return judged if isinstance(judged[0], Runtime) and isinstance(judged[1], NodeSettings) else None

    # --- the pieces

    def _refuse(self, node: Node, field: str, what: str, allowed: str) -> None:
        if type(node) is not Node or not self._problems:  # a bare Node was refused already
            self._problems.append(Problem(self._file, node.line, node.column, field, what, allowed))

    def _fields(
        self, node: Node, field: str, known: tuple[str, ...], required: tuple[str, ...] = ()
    ) -> dict[str, Node] | None:
        if not isinstance(node, MappingNode):
            self._refuse(node, field, found(node), f"a mapping with {', '.join(known)}")
            return None
        fields: dict[str, Node] = {}
        for key, value in node.pairs:
            name = key.text if isinstance(key, Scalar) else ""
            if name not in known:
                self._refuse(key, field, f"the unknown key {found(key)}", ", ".join(known))
            elif name in fields:
                self._refuse(key, field, f"the key {name} a second time", "each key once")
            else:
                fields[name] = value
        for name in required:
            if name not in fields:
                self._refuse(node, field, f"no {name}", f"{name} is needed here")
        return fields

    def _list(self, node: Node, field: str, one: Callable[[Node, str], str | None]) -> tuple[str, ...] | None:
        if not isinstance(node, Sequence):
            self._refuse(node, field, found(node), "a list")
            return None
        items = [one(item, field) for item in node.items]
        return tuple(item for item in items if item is not None)

    def _word(self, node: Node, field: str, allowed: Iterable[str], in_words: str = "") -> str | None:
        words = tuple(str(word) for word in allowed)
        if isinstance(node, Scalar) and node.text in words:
            return node.text
        self._refuse(node, field, found(node), in_words or ", ".join(words))
        return None

    def _text(self, node: Node, field: str) -> str | None:
        if isinstance(node, Scalar) and (not node.plain or resolved(node.text) != "null"):
            return " ".join(node.text.split())
        self._refuse(node, field, found(node), "a text")
        return None

    def _number(self, node: Node, field: str, allowed: str, whole: bool = False) -> float | None:
        if isinstance(node, Scalar) and node.plain and not (whole and "." in node.text):
            number = plain_number(node.text)
            if number is not None:
                return number
        self._refuse(node, field, found(node), allowed)
        return None

    def _duration(self, node: Node, field: str) -> float | None:
        seconds = duration_s(node.text) if isinstance(node, Scalar) else None
        if seconds is None:
            self._refuse(node, field, found(node), "a duration such as 90s, 10m, 1h30m, or a number of seconds")
            return None
        return seconds


def plain_number(text: str) -> float | None:
    """The number, never negative nor infinite; None: it is none."""
    return number if _NUMBER.fullmatch(text) and isfinite(number := float(text)) else None


def duration_s(text: str) -> float | None:
    """Seconds of `90s`, `10m`, `1h30m` or a plain number of seconds; None: it is no duration."""
    if (number := plain_number(text)) is not None:
        return number
    match = _DURATION.fullmatch(text)
    return sum(float(part) * unit_s for part, unit_s in zip(match.groups("0"), _UNIT_S, strict=True)) if match else None


# --- settings by their dotted names


def _inside(name: str, other: str) -> bool:
    """One of the two dotted names is a part of the other."""
    return name.startswith(f"{other}.") or other.startswith(f"{name}.")


def _shipped_runtime() -> MappingNode:
    """runtime.yaml as it is shipped, as a tree, so that a script's settings are judged as if they stood in the file."""
    sections = {
        name: MappingNode(1, 1, [(_scalar(field), _scalar(str(value).lower())) for field, value in fields.items()])
        for name, fields in SEED.items()
    }
    return MappingNode(1, 1, [(_scalar(name), section) for name, section in sections.items()])


def _scalar(text: str) -> Scalar:
    return Scalar(1, 1, text, True)


def _put(tree: MappingNode, key: Scalar, value: Node) -> None:
    """Lay a dotted name over a tree; what is made on the way has the place of the name."""
    *sections, last = key.text.split(".")
    for name in sections:
        below = next((v for k, v in tree.pairs if isinstance(k, Scalar) and k.text == name), None)
        if not isinstance(below, MappingNode):
            below = MappingNode(key.line, key.column)
            _set(tree, Scalar(key.line, key.column, name, False), below)
        tree = below
    _set(tree, Scalar(key.line, key.column, last, False), value)


def _set(tree: MappingNode, key: Scalar, value: Node) -> None:
    tree.pairs = [(k, v) for k, v in tree.pairs if not (isinstance(k, Scalar) and k.text == key.text)]
    tree.pairs.append((key, value))
