"""Names of a fleet on JetStream: streams, subjects, keys. admin/streams.json defines the streams."""

from __future__ import annotations

import re
from typing import Final

TASKS: Final = "RAE_TASKS"  # a work queue: a task leaves it when it is acknowledged, after its result is stored
RESULTS: Final = "RAE_RESULTS"  # one result a task, the first; a second one is refused
DEAD: Final = "RAE_DEAD"  # tasks that no node can run, as they came, with the reason
PLACES: Final = "RAE_PLACES"  # what a task had saved when it was given back; the last of each task
NODES: Final = "RAE_NODES"  # the bucket of the nodes' entries; an entry that is not renewed in time is gone
NODES_STREAM: Final = f"KV_{NODES}"
DESIRED: Final = "RAE_DESIRED"  # the bucket of the operator's last order to each node
DESIRED_STREAM: Final = f"KV_{DESIRED}"
WAKE: Final = "RAE_WAKE"  # the bucket of how each node can be woken; it stays while the node sleeps
WAKE_STREAM: Final = f"KV_{WAKE}"
CONSUMER: Final = "nodes"  # all nodes pull from it, unless control.nats.consumer says otherwise
BRIDGE: Final = "bridge"  # a bridge reads results from it

GATE: Final = "rae.gate"  # requests through the gate: rae.gate.USER.SUBJECT
GATE_USER: Final = "gate"

ANY_RESULT: Final = "rae.results.*"
REASON_HEADER: Final = "Rae-Reason"
LEASE_HEADER: Final = "Rae-Lease"  # the address of a task's lease, where it is asked for what needs one

_PLAIN: Final = re.compile(r"[^A-Za-z0-9_-]")


def token(text: str) -> str:
    """The text as one token of a subject; different texts give different tokens."""
    return _PLAIN.sub(lambda m: "".join(f"={byte:02X}" for byte in m[0].encode("utf-8", "replace")), text)


def task_subject(kind: str, task_id: str) -> str:
    """Where a task is posted. At most one message lies there, so that a task cannot be queued twice."""
    return f"rae.tasks.{token(kind)}.{task_id}"


def result_subject(task_id: str) -> str:
    """Where a task's one result is stored."""
    return f"rae.results.{task_id}"


def dead_subject(name: str) -> str:
    """Where a task that cannot be run ends; `name` is its id, or its place in the queue."""
    return f"rae.dead.{name}"


def place_subject(task_id: str) -> str:
    """Where the state that a task has saved lies for its next node."""
    return f"rae.places.{task_id}"


def node_subject(node_id: str) -> str:
    """Where a node writes its entry."""
    return f"$KV.{NODES}.{token(node_id)}"


def desired_subject(node_id: str) -> str:
    """Where the operator's last order to a node lies."""
    return f"$KV.{DESIRED}.{token(node_id)}"


def wake_subject(node_id: str) -> str:
    """Where a node writes how it can be woken."""
    return f"$KV.{WAKE}.{token(node_id)}"


def ask_subject(node_id: str, question: str) -> str:
    """Where a node is asked something, and answers at once."""
    return f"rae.ask.{token(node_id)}.{question}"


def next_subject(stream: str, consumer: str) -> str:
    """Where the next message is asked for."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def inbox(user: str) -> str:
    """Where answers for a user arrive; nobody else may listen there."""
    return f"_INBOX.{token(user)}"
