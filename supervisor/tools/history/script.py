"""A scripted replay as YAML (interface §5), read strictly: all errors at once, each with file, line and column.

Nothing is guessed. An unknown key, value, duration, state, effect, guard, row or setting is an error that says what is
allowed. A script that expects nothing is an error too. What a step leaves out of `gpu` stays as it was; the first time
all three readings are needed. Two more fields hold for their step only: `gpu.held` is a text that says which GPU memory a
task that is over still holds; `gpu.pinned: true` says that the running task holds GPU memory, so a freeze would keep it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import msgspec

from states.effects import Effect
from states.guards import GUARDS
from states.limits import Limits
from states.memory import State
from states.observation import Link, TaskPhase
from states.table import BY_ID
from supervisor.config import yaml_reader
from supervisor.config.load import limits_of
from supervisor.config.schema import SHIPPED_RUNTIME, NodeSettings, Runtime
from supervisor.config.validate import Validator
from supervisor.config.yaml_reader import Problem, Scalar, Sequence, YamlNode, found, resolved
from supervisor.journal.codec import ABSENT, GPU_FIELDS, GPU_MORE, READINGS, UNKNOWN

VERSION: Final = 1
MAX_TICKS: Final = 100_000
HELD, FREE = "held", "free"

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
    root, problems = yaml_reader.parse(text, file)
    reader = _Reader(file, problems)
    script = reader.script(root)
    if problems:
        raise ScriptError(problems)
    assert script is not None
    return script


_Read = Callable[[YamlNode, str], Any]  # what a value means, by its node and the name that errors give it; None: refused


class _Reader:
    """Walks the tree and collects problems. A part that is wrong is None and is reported once."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._gpu: dict[str, Any] = {}
        self._at_s = 0.0

    def script(self, root: YamlNode | None) -> Script | None:
        if root is None:
            self._refuse(YamlNode(1, 1), "", "nothing", "a mapping with replay, title, covers, settings and steps")
            return None
        covers = self._list_of(self._one_of((f"R{n}" for n in range(1, 25)), "R1 to R24"))
        readers = {
            "replay": self._version, "title": self._text, "covers": covers, "settings": self._settings, "steps": self._steps,
        }  # fmt: skip
        top = self._mapping(root, "", readers, ("replay", "steps"))
        if top is None:
            return None
        settings = top["settings"] if "settings" in top else self._settings(None)
        if settings is None:
            return None
        runtime, machine = settings
        return Script(
            self._file,
            top.get("title") or "",
            top.get("covers") or (),
            top.get("steps") or (),
            limits_of(runtime, machine),
            machine.host.inhibitor != "none",
            runtime.automation.enabled,
        )

    def _version(self, node: YamlNode, field: str) -> None:
        if not (isinstance(node, Scalar) and node.plain and node.text == str(VERSION)):
            self._refuse(node, field, found(node), str(VERSION))

    # --- steps

    def _steps(self, node: YamlNode, field: str) -> tuple[Step, ...]:
        if not isinstance(node, Sequence) or not node.items:
            what = "an empty list" if isinstance(node, Sequence) else found(node)
            self._refuse(node, field, what, "a list of at least one step")
            return ()
        effects = tuple(Effect)
        performed = self._one_of(
            (*effects, *(f"{effect}!" for effect in effects)), f"{', '.join(effects)}, each with ! if it failed"
        )
        expect = {
            "state": self._one_of(State),
            "row": self._row,
            "effects": self._list_of(performed),
            "inhibitor": self._one_of((HELD, FREE)),
            "blocked_by": self._list_of(self._one_of(guard.name for guard in GUARDS)),
        }
        readers = {
            "at": self._at,
            "see": self._see,
            "ticks": self._ticks,
            "stale": self._list_of(self._one_of(READINGS)),
            "refuse": self._list_of(self._one_of(effects)),
            "expect": lambda n, f: self._expect(self._mapping(n, f, expect, ("state",))),
        }
        steps: list[Step] = []
        asked = False
        for number, item in enumerate(node.items, 1):
            fields = self._mapping(item, f"step {number}", readers, ("at",), ": ")
            # What a step without a readable mapping expects is not known; its error was reported.
            asked = asked or fields is None or "expect" in fields
            if fields is not None:
                refuse, stale = fields.get("refuse") or (), fields.get("stale") or ()
                see, ticks, expected = fields.get("see") or {}, fields.get("ticks") or 1, fields.get("expect")
                steps.append(Step(number, item.line, self._at_s, see, frozenset(map(Effect, refuse)), stale, ticks, expected))
        if not asked:
            self._refuse(node, field, "no step that expects anything", "`expect: {state: …}` on at least one step")
        return tuple(steps)

    def _at(self, node: YamlNode, field: str) -> None:
        at_s = self._duration(node, field)
        if at_s is not None and at_s < self._at_s:
            self._refuse(node, field, f"{found(node)}, which is before the step above", "the same time or a later one")
        elif at_s is not None:
            self._at_s = at_s

    def _ticks(self, node: YamlNode, field: str) -> int | None:
        allowed = f"a whole number from 1 to {MAX_TICKS}"
        number = self._number(allowed, whole=True)(node, field)
        if number is not None and not 1 <= number <= MAX_TICKS:
            self._refuse(node, field, found(node), allowed)
            return None
        return None if number is None else int(number)

    def _see(self, node: YamlNode, field: str) -> dict[str, Any]:
        readers: dict[str, _Read] = {
            "automation": self._automation,
            "user": self._user,
            "gpu": self._gpu_seen,
            "cpu": self._cpu,
            "host": self._host,
            "task": self._one_of(TaskPhase),
            "link": self._one_of(Link),
        }
        return self._mapping(node, field, readers) or {}

    def _automation(self, node: YamlNode, field: str) -> str | None:
        switch = _SWITCH.get(node.text.lower()) if isinstance(node, Scalar) else None
        if switch is None:
            self._refuse(node, field, found(node), "on or off")
        return switch

    def _user(self, node: YamlNode, field: str) -> Any:
        if isinstance(node, yaml_reader.Mapping):
            return self._mapping(node, field, {"idle": self._duration}, ("idle",))
        user = self._one_of(("active", UNKNOWN), "active, unknown, or {idle: DURATION}")(node, field)
        return {"idle": 0.0} if user == "active" else user

    def _gpu_seen(self, node: YamlNode, field: str) -> Any:
        if not isinstance(node, yaml_reader.Mapping):
            self._gpu = {}
            return self._one_of((ABSENT, UNKNOWN), f"absent, unknown, or {{{', '.join(GPU_FIELDS)}}}")(node, field)
        readers = {name: self._number("a number ≥ 0") for name in GPU_FIELDS}
        readers["foreign"] = self._number("a whole number ≥ 0", whole=True)
        readers |= {"held": self._text, "pinned": self._one_of(("true", "false"))}
        fields = self._mapping(node, field, readers) or {}
        self._gpu = {name: value for name, value in self._gpu.items() if name not in GPU_MORE}
        self._gpu |= {name: value or 0.0 for name, value in fields.items() if name in GPU_FIELDS}
        if "held" in fields:
            self._gpu["held"] = fields["held"] or ""
        if "pinned" in fields:
            self._gpu["pinned"] = fields["pinned"] == "true"
        missing = [name for name in GPU_FIELDS if name not in self._gpu]
        if missing and len(fields) == len(node.pairs):  # a misspelt one was refused already
            self._refuse(node, field, f"no {' and no '.join(missing)}, and none from before", f"{{{', '.join(GPU_FIELDS)}}}")
        return dict(self._gpu)

    def _cpu(self, node: YamlNode, field: str) -> Any:
        if isinstance(node, Scalar) and node.text == UNKNOWN:
            return UNKNOWN
        return self._number("a number ≥ 0, or unknown")(node, field)

    def _host(self, node: YamlNode, field: str) -> Any:
        if isinstance(node, yaml_reader.Mapping):
            return self._mapping(node, field, {"unfit": self._text}, ("unfit",))
        known = ("fit", "going-down", UNKNOWN)
        return self._one_of(known, "fit, {unfit: reason}, going-down, or unknown")(node, field)

    def _expect(self, fields: Mapping[str, Any] | None) -> Expect | None:
        if fields is None or fields.get("state") is None:
            return None
        blocked = fields.get("blocked_by")
        return Expect(
            State(fields["state"]),
            fields.get("row"),
            fields.get("effects"),
            fields.get("inhibitor"),
            None if blocked is None else frozenset(blocked),
        )

    def _row(self, node: YamlNode, field: str) -> str | None:
        if isinstance(node, Scalar) and node.plain and resolved(node.text) == "null":
            return ""
        row: str | None = self._one_of(BY_ID, f"null, {', '.join(BY_ID)}")(node, field)
        return row

    # --- settings

    def _settings(self, node: YamlNode | None, field: str = "settings") -> tuple[Runtime, NodeSettings] | None:
        """Both files as shipped, with the script's settings in them, judged by the files' own rules."""
        runtime, machine = _shipped_runtime(), yaml_reader.Mapping(1, 1)
        places: dict[str, YamlNode] = {}
        if node is not None and not isinstance(node, yaml_reader.Mapping):
            self._refuse(node, "settings", found(node), "a mapping of dotted names, such as work.run_minutes: 0")
        for key, value in node.pairs if isinstance(node, yaml_reader.Mapping) else ():
            section = key.text.partition(".")[0] if isinstance(key, Scalar) and "." in key.text else ""
            if not isinstance(key, Scalar) or section not in (*_RUNTIME, *_MACHINE):
                self._refuse(key, "settings", found(key), "the dotted name of a setting of runtime.yaml or node.yaml")
            elif key.text in places or any(_inside(key.text, other) for other in places):
                self._refuse(key, f"settings.{key.text}", "it a second time", "each setting once")
            else:
                places[key.text] = key
                _put(runtime if section in _RUNTIME else machine, key, value)
        validator = Validator(self._file, self._problems)
        judged = validator.section(Runtime, runtime, "", runtime), validator.section(NodeSettings, machine, "", machine)
        return judged if isinstance(judged[0], Runtime) and isinstance(judged[1], NodeSettings) else None

    # --- pieces

    def _refuse(self, node: YamlNode, field: str, what: str, allowed: str) -> None:
        if type(node) is not YamlNode or not self._problems:  # a bare YamlNode was refused already
            self._problems.append(Problem(self._file, node.line, node.column, field, what, allowed))

    def _mapping(
        self, node: YamlNode, field: str, readers: Mapping[str, _Read], required: tuple[str, ...] = (), join: str = "."
    ) -> dict[str, Any] | None:
        """The values of a mapping, each read by its reader."""
        if not isinstance(node, yaml_reader.Mapping):
            self._refuse(node, field, found(node), f"a mapping with {', '.join(readers)}")
            return None
        fields: dict[str, Any] = {}
        for key, value in node.pairs:
            name = key.text if isinstance(key, Scalar) else ""
            if name not in readers:
                self._refuse(key, field, f"the unknown key {found(key)}", ", ".join(readers))
            elif name in fields:
                self._refuse(key, field, f"the key {name} a second time", "each key once")
            else:
                fields[name] = readers[name](value, f"{field}{join}{name}" if field else name)
        for name in required:
            if name not in fields:
                self._refuse(node, field, f"no {name}", f"{name} is needed here")
        return fields

    def _list_of(self, item: _Read) -> _Read:
        def read(node: YamlNode, field: str) -> tuple[str, ...] | None:
            if not isinstance(node, Sequence):
                self._refuse(node, field, found(node), "a list")
                return None
            items = [item(one, field) for one in node.items]
            return tuple(one for one in items if one is not None)

        return read

    def _one_of(self, known: Iterable[str], allowed: str = "") -> _Read:
        names = tuple(map(str, known))

        def read(node: YamlNode, field: str) -> str | None:
            if isinstance(node, Scalar) and node.text in names:
                return node.text
            self._refuse(node, field, found(node), allowed or ", ".join(names))
            return None

        return read

    def _number(self, allowed: str, whole: bool = False) -> _Read:
        def read(node: YamlNode, field: str) -> float | None:
            if isinstance(node, Scalar) and node.plain and not (whole and "." in node.text):
                number = _plain_number(node.text)
                if number is not None:
                    return number
            self._refuse(node, field, found(node), allowed)
            return None

        return read

    def _text(self, node: YamlNode, field: str) -> str | None:
        if isinstance(node, Scalar) and (not node.plain or resolved(node.text) != "null"):
            return " ".join(node.text.split())
        self._refuse(node, field, found(node), "a text")
        return None

    def _duration(self, node: YamlNode, field: str) -> float | None:
        seconds = duration_s(node.text) if isinstance(node, Scalar) else None
        if seconds is None:
            self._refuse(node, field, found(node), "a duration such as 90s, 10m, 1h30m, or a number of seconds")
        return seconds


def _plain_number(text: str) -> float | None:
    """The number, never negative nor infinite; None: it is none."""
    return number if _NUMBER.fullmatch(text) and isfinite(number := float(text)) else None


def duration_s(text: str) -> float | None:
    """Seconds of `90s`, `10m`, `1h30m` or a plain number of seconds; None: it is no duration."""
    if (number := _plain_number(text)) is not None:
        return number
    match = _DURATION.fullmatch(text)
    return sum(float(part) * unit_s for part, unit_s in zip(match.groups("0"), _UNIT_S, strict=True)) if match else None


# --- settings by their dotted names


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.") or other.startswith(f"{name}.")


def _shipped_runtime() -> yaml_reader.Mapping:
    """The shipped runtime.yaml as a tree, so that a script's settings are judged as if they stood in the file."""
    tree, _ = yaml_reader.parse(msgspec.json.encode(SHIPPED_RUNTIME).decode(), "runtime.yaml")
    assert isinstance(tree, yaml_reader.Mapping)
    return tree


def _put(tree: yaml_reader.Mapping, key: Scalar, value: YamlNode) -> None:
    """Put a value under a dotted name; mappings that are made for it have the place of the name."""
    *sections, last = key.text.split(".")
    for name in sections:
        below = next((v for k, v in tree.pairs if isinstance(k, Scalar) and k.text == name), None)
        if not isinstance(below, yaml_reader.Mapping):
            below = yaml_reader.Mapping(key.line, key.column)
            _set(tree, Scalar(key.line, key.column, name, False), below)
        tree = below
    _set(tree, Scalar(key.line, key.column, last, False), value)


def _set(tree: yaml_reader.Mapping, key: Scalar, value: YamlNode) -> None:
    tree.pairs = [(k, v) for k, v in tree.pairs if not (isinstance(k, Scalar) and k.text == key.text)]
    tree.pairs.append((key, value))
