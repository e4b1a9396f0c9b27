"""Tasks, results and names as they travel in a fleet: what comes is sound, or is said to be none."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.sources.ids import is_id
from supervisor.sources.nats import subjects
from supervisor.sources.nats.messages import Poison, decode_result, decode_task, encode_task

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NEARLY_TASKS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.uuids().map(str) | st.uuids().map(lambda u: str(u).upper()) | JSON_VALUES,
        "type": st.text(max_size=200) | JSON_VALUES,
        "payload": st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3) | JSON_VALUES,
        "priority": st.integers() | JSON_VALUES,
    },
)


@given(st.binary(max_size=200) | (JSON_VALUES | NEARLY_TASKS).map(lambda value: json.dumps(value).encode()))
def test_any_message_is_a_task_or_poison(data: bytes) -> None:
    fault = None
    try:
        claim = decode_task(data)
    except Poison as poison:
        fault = poison
    if fault is not None:
        assert str(fault)
        assert not fault.task_id or is_id(fault.task_id)
        return
    assert is_id(claim.id)
    assert 0 < len(claim.type) <= 128
    assert claim.type.isprintable()
    assert isinstance(claim.payload, dict)
    assert type(claim.priority) is int
    assert decode_task(encode_task(claim)).id == claim.id


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_token_is_one_token_and_tells_texts_apart(one: str, other: str) -> None:
    token = subjects.token(one)
    assert re.fullmatch(r"[A-Za-z0-9_=-]*", token)
    assert (token == subjects.token(other)) == (one == other)


def test_names_on_the_wire() -> None:
    assert subjects.token("a.b c") == "a=2Eb=20c"
    assert subjects.token("a=2Eb") != subjects.token("a.b")
    assert subjects.task_subject("llm inference", "id") == "rae.tasks.llm=20inference.id"
    with pytest.raises(Poison):
        decode_task(b'{"id": 1}')
    with pytest.raises(Poison):
        decode_result(b'{"id": 1}')
