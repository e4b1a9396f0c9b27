"""Whatever a control node answers: the node goes on, and what it would run is a task that the server sent, whole and sound.

Answers are made from the schemas of the embedded control node's own OpenAPI document: sound ones, ones with a part changed,
left out or put in, any JSON, and bytes that are none.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import rae_server as s
from support.clock import MadeLoop, ManualClock
from support.depth import examples
from support.rae_server import RaeServer
from support.recorded_events import Recorded

from states.ending import failed, handed_back, succeeded
from states.observation import Link
from supervisor.config.schema import Control
from supervisor.linux.clock import SystemClock
from supervisor.sources.base import Availability, Claim, SourceSettings
from supervisor.sources.rae.source import RaeSource
from supervisor.tools.demo.control_node.api import Api
from supervisor.tools.demo.control_node.server import Request
from supervisor.tools.demo.control_node.store import ControlNode

EXAMPLES = examples(100, 20)  # conversations
HOUR_S = 3600.0
# What must be true of a task before it may run, written independently of the product.
RUNNABLE = {
    "type": "object",
    "required": ["id", "type", "payload"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"},
        "type": {"type": "string", "minLength": 1, "maxLength": 200},
        "payload": {"type": "object"},
        "status": {"not": {"enum": ["COMPLETED", "FAILED"]}},
    },
}
counts: Counter[str] = Counter()


def served() -> dict[str, Any]:
    """The good answer's schema of each kind of call, from the document that the control node serves."""
    document = Api(ControlNode(SystemClock()))(Request("GET", "/openapi.json", "", {}, b"", "")).value
    schemas = json.dumps(document["components"]["schemas"])
    assert "$ref" not in schemas

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return document["components"]["schemas"][value["$ref"].rpartition("/")[2]]
            return {key: whole(inner) for key, inner in value.items()}
        return [whole(inner) for inner in value] if isinstance(value, list) else value

    found: dict[str, Any] = {"openapi": {"type": "object"}}
    server = RaeServer()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            kind = server.kind(Request(method.upper(), path, "", {}, b"", ""))
            (answer,) = route["responses"].values()
            found[kind] = whole(answer["content"]["application/json"]["schema"])
    return found


SCHEMAS = served()
KINDS = ("openapi", "nodes", "register", "heartbeat", "poll", "result", "create", "task")
PRINTABLE = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)  # what a type may be
TEXTS = {
    "uuid": st.uuids().map(str), "date-time": st.just("2026-11-24T08:28:55.366707Z"),
    None: PRINTABLE | PRINTABLE | PRINTABLE | st.text(max_size=12),
}  # fmt: skip
NASTY = st.sampled_from(["", "\0", "\ud800", "../../x", "a" * 300, "NaN", -0.0, 1e308, 10**40, True, [], {}, None])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | NASTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema, of the few forms that the document has. (hypothesis-jsonschema leans on Hypothesis's internals,
    and its last release does not work with today's.)"""
    match schema:
        case {"anyOf": forms}:
            return st.one_of(*map(from_schema, forms))
        case {"enum": values}:
            return st.sampled_from(values)
        case {"type": "object", "properties": properties}:
            return st.fixed_dictionaries({name: from_schema(inner) for name, inner in properties.items()})
        case {"type": "object"}:
            return st.dictionaries(st.text(max_size=6), ANY_JSON, max_size=3)
        case {"type": "array", "items": inner}:
            return st.lists(from_schema(inner), max_size=3)
        case {"type": "string"}:
            return TEXTS[schema.get("format")]
        case {"type": "integer"}:
            return st.integers()
        case {"type": "null"}:
            return st.none()
    raise AssertionError(f"a form of schema that is not known here: {schema}")


SOUND = {kind: from_schema(SCHEMAS[kind]) for kind in KINDS}


@st.composite
def changed(draw: st.DrawFn, kind: str) -> Any:
    """A sound answer with a part replaced, left out, or put in."""
    value = draw(SOUND[kind])
    for _ in range(draw(st.integers(1, 2))):
        if not isinstance(value, dict) or not value:
            return draw(ANY_JSON)
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(["replace", "leave out", "put in"]))
        value = {name: inner for name, inner in value.items() if how != "leave out" or name != key}
        if how != "leave out":
            value[key if how == "replace" else draw(st.text(max_size=6))] = draw(ANY_JSON)
    return value


@st.composite
def answers(draw: st.DrawFn, kind: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body; of polls, every second one as it should be."""
    if kind == "poll" and draw(st.booleans()):
        return 200, {"content-type": "application/json"}, json.dumps(draw(SOUND[kind] | SOUND["task"])).encode()
    value = draw(st.one_of(SOUND[kind], SOUND[kind], changed(kind), changed(kind), ANY_JSON))
    body = json.dumps(value).encode()
    match draw(st.sampled_from(["whole", "whole", "whole", "whole", "cut", "bytes"])):
        case "cut":
            body = body[: draw(st.integers(0, len(body)))]
        case "bytes":
            body = draw(st.binary(max_size=40))
    good = st.sampled_from([200, 200, 200, 201])
    status = draw(good | good | st.sampled_from([204, 301, 400, 401, 404, 405, 409, 413, 422, 429, 500, 502, 503]))
    headers = {"content-type": draw(st.sampled_from(["application/json", "text/html", "", "\x7f"]))}
    if draw(st.booleans()):
        headers["retry-after"] = draw(st.sampled_from(["1", "90", "-1", "soon", "1e9", "Fri, 31 Dec 1999 23:59:59 GMT"]))
    return status, headers, body


SCRIPTS = st.fixed_dictionaries({kind: st.lists(answers(kind), max_size=2) for kind in KINDS if kind != "poll"}).flatmap(
    lambda rest: st.lists(answers("poll"), min_size=1, max_size=5).map(lambda polls: {**rest, "poll": polls})
)
ENDS = st.lists(st.sampled_from(["done", "failed", "resubmit", "fail"]), min_size=1, max_size=6)


def said(status: int, headers: dict[str, str], body: bytes) -> s.Fault:
    """The answer as bytes."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *(f"{name}: {text}" for name, text in headers.items())]
    return s.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def sound_tasks(polls: list[tuple[int, dict[str, str], bytes]]) -> list[dict[str, Any]]:
    """Those of the answers to polls that hand out a task which may run."""
    tasks = []
    for status, _headers, body in polls:
        try:
            value = json.loads(body.decode(), parse_constant=lambda _: 1 / 0)
            jsonschema.validate(value, RUNNABLE)
        except (ValueError, ZeroDivisionError, jsonschema.ValidationError):
            continue
        if status in (200, 201):
            tasks.append(value)
    return tasks


class Conversation:
    """A node, and a control node that answers what the script says, and then the truth."""

    def __init__(self, script: dict[str, list[tuple[int, dict[str, str], bytes]]], ends: list[str], state: Path) -> None:
        self.clock = ManualClock(wall=time.time())
        self.ends = ends
        self.allowed = sound_tasks(script["poll"])
        self.server = RaeServer()
        for kind, answers in script.items():
            self.server.faults[kind] = [said(*answer) for answer in answers]
        self.state = state
        self.escaped: list[str] = []
        self.recorded = Recorded()

    def run(self) -> None:
        """All of it, in made time."""
        loop = MadeLoop(self.clock, sockets=True)
        loop.set_exception_handler(lambda _loop, context: self.escaped.append(str(context)))
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._talk())
            gc.collect()
        assert self.escaped == []

    async def _talk(self) -> None:
        async with self.server.listening():
            settings = SourceSettings(
                control=Control(url=self.server.url), node_id="node-1", state_dir=self.state, heartbeat_interval_s=30,
                poll_interval_s=45, retry_on_disconnect=True, on_preempt={}, capabilities={"life": "first"},
            )  # fmt: skip
            source = RaeSource(settings, self.clock, self.recorded)
            await source.start(lambda: None)
            source.announce(Availability.ONLINE)
            end_s = self.clock.now_s() + 5 * HOUR_S
            try:
                while any(self.server.faults.values()) and self.clock.now_s() < end_s:
                    await self._step(source)
                    if not self.server.faults["poll"]:  # the rest waits for calls that nothing starts
                        break
                self.server.faults.clear()
                await self._recovers(source)
            finally:
                await source.stop(10)
            assert source.status.outbox == 0

    async def _step(self, source: RaeSource) -> None:
        if source.ask():
            while source.asking:
                await asyncio.sleep(1)
            if (claim := source.take()) is not None:
                counts["claims"] += 1
                self._judge(claim)
                self._end(source, claim)
        await asyncio.sleep(45)

    def _judge(self, claim: Claim) -> None:
        """It is one of the sound ones, unchanged; and the record on disk has it, without its payload."""
        taken = (claim.id, claim.type, claim.payload)
        sent = [(t["id"].lower(), t["type"], t["payload"]) for t in self.allowed]
        # after a 404 it asks again, and that answer is no longer the script's: it may be what this node has posted again
        again = [(str(t.id), t.type, t.payload) for t in self.server.node._tasks.values()]
        assert taken in sent + again, f"{claim} was never sent so"
        note = json.loads((self.state / "task.json").read_text())["tasks"]
        assert {"id", "type"} <= set(note[-1]) <= {"id", "type", "node", "repost", "lost", "over"}
        assert claim.id in [entry["id"] for entry in note]

    def _end(self, source: RaeSource, claim: Claim) -> None:
        match self.ends[counts["claims"] % len(self.ends)]:
            case "done":
                source.settle(claim, succeeded({"echo": claim.payload}))
            case "failed":
                source.settle(claim, failed("failed"))
            case how:
                source.hand_back(claim, handed_back("user returned"), how)

    async def _recovers(self, source: RaeSource) -> None:
        """From now on the server answers well: a task comes, and its result arrives."""
        task_id = self.server.add("kind", {"a": 1})
        end_s = self.clock.now_s() + 5 * HOUR_S
        while self.clock.now_s() < end_s:
            if source.ask():
                while source.asking:
                    await asyncio.sleep(1)
                if (claim := source.take()) is not None and claim.id == task_id:
                    source.settle(claim, succeeded({"x": 1}))
                elif claim is not None:  # what was posted again because of the script's answers
                    source.settle(claim, succeeded({}))
            await asyncio.sleep(45)
            if self.server.task(task_id)["status"] == "COMPLETED" and not source.status.outbox:
                assert source.status.link is Link.UP
                return
        raise AssertionError(f"it does not recover: {source.status}; {self.recorded.events[-5:]}")


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_answer_stops_the_node_or_makes_it_run_what_was_not_sent_so() -> None:
    converse()
    print(dict(counts))
    assert counts["claims"] > EXAMPLES / 20, "the fuzz did reach claims"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCRIPTS, ENDS)
def converse(script: dict[str, Any], ends: list[str]) -> None:
    """One conversation of a node with these answers."""
    counts["conversations"] += 1
    counts["answers"] += sum(map(len, script.values()))
    counts["sound tasks among them"] += len(sound_tasks(script["poll"]))
    with tempfile.TemporaryDirectory() as state:
        Conversation(script, ends, Path(state)).run()
