"""The Ollama executor against a server that speaks Ollama's streaming form (R2, R4, R6, R23)."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.ollama_server import OllamaServer, answer, line

from supervisor.config.schema import TaskType
from supervisor.sources.base import Claim
from supervisor.tasks.executors import ollama
from supervisor.tasks.executors.base import FreezeFailed, Rung, StartFailed
from supervisor.tasks.executors.ollama import OllamaExecutor, OllamaTask
from supervisor.tasks.process.rungs import RungName

SECRET = "sentinel-4711"
Says = Callable[[dict[str, Any]], list[bytes | None]]


async def begin(server: OllamaServer, kind: str, payload: dict[str, Any], **fields: Any) -> tuple[OllamaTask, asyncio.Event]:
    ended = asyncio.Event()
    executor = OllamaExecutor(TaskType(executor="ollama_api", ollama_url=server.url, **fields))
    return await executor.start(Claim("id-1", kind, payload), Path("/"), ended.set), ended


async def outcome(server: OllamaServer, kind: str, payload: dict[str, Any], **fields: Any) -> tuple[str | None, Any]:
    task, ended = await begin(server, kind, payload, **fields)
    assert task.alive
    async with asyncio.timeout(20):
        await ended.wait()
    assert not task.alive
    assert task.pids() == frozenset()
    return task.error, task.result


def run(kind: str, payload: dict[str, Any], says: Says, status: int = 200, **fields: Any) -> tuple[Any, Any, OllamaServer]:
    async def go() -> tuple[Any, Any, OllamaServer]:
        async with OllamaServer(says, status=status) as server:
            return *await outcome(server, kind, payload, **fields), server

    return asyncio.run(go())


def test_an_inference() -> None:
    error, result, server = run("llm_inference", {"prompt": "hi", "system": "be brief"}, lambda _: answer("héllo"))
    assert (error, result) == (None, {"status": "success", "response": "héllo"})
    assert [(a["model"], a["prompt"], a["system"], a["stream"]) for a in server.asked] == [
        (ollama.WRITER, "hi", "be brief", True)
    ]
    assert server.unloaded == [ollama.WRITER]
    assert not server.loaded


@pytest.mark.parametrize("kind", ["quality_loop", "code_verify_cycle"])
@pytest.mark.parametrize(
    ("review", "passed"),
    [("PASSED: fine", True), ("It **PASSED**.", True), ("REJECTED: no", False), ("REJECTED: a check is BYPASSED", False)],
)
def test_a_cycle(kind: str, review: str, passed: bool) -> None:
    payload = {"task": "add", "code": "x = 1", "writer_model": "w", "reviewer_model": "r"}
    error, result, server = run(kind, payload, lambda a: answer("y = 2" if a["model"] == "w" else review))
    assert error is None
    assert result == {"status": "success", "writer_output": "y = 2", "review_report": review, "is_passed": passed}
    assert "x = 1" in server.asked[0]["prompt"]
    assert "y = 2" in server.asked[1]["prompt"]
    assert sorted(server.unloaded) == ["r", "w"]


FAILURES = [
    pytest.param({"prompt": SECRET}, 404, [], "model missing: ", id="model-missing"),
    pytest.param({"prompt": SECRET}, 500, [], "http error: Ollama answered with status 500", id="status"),
    pytest.param({"prompt": SECRET}, 302, [], "http error: Ollama answered with status 302", id="no-redirect"),
    pytest.param({"prompt": SECRET}, 200, [line(SECRET)], "stream broken: Ollama's answer ended", id="no-end"),
    pytest.param({"prompt": SECRET}, 200, [], "stream broken: Ollama's answer ended", id="nothing"),
    pytest.param({"prompt": SECRET}, 200, [SECRET.encode() + b"\n"], "stream broken: a line", id="no-json"),
    pytest.param({"prompt": SECRET}, 200, [b"[1]\n"], "stream broken: ", id="a-list"),
    pytest.param({"prompt": SECRET}, 200, [b'{"response": 7}\n'], "stream broken: ", id="no-text"),
    pytest.param({"prompt": SECRET}, 200, [b'{"error": "%b"}\n' % SECRET.encode()], "model failed: ", id="error-in-stream"),
    pytest.param({"prompt": SECRET}, 200, [line("x" * 200_000, done=True)], "too large: ", id="too-large"),
    pytest.param({"prompt": SECRET}, 200, [b"x" * 3_000_000], "too large: ", id="one-endless-line"),
    pytest.param({}, 200, [], "bad payload: it has no prompt", id="no-prompt"),
    pytest.param({"prompt": ["a"]}, 200, [], "bad payload: its prompt is not a text", id="prompt-of-another-type"),
    pytest.param({"prompt": SECRET, "model": "big:120b-cloud"}, 200, [], "model refused: ", id="cloud"),
    pytest.param({"prompt": SECRET, "model": "Big:120B-Cloud "}, 200, [], "model refused: ", id="cloud-in-capitals"),
    pytest.param({"prompt": SECRET}, 200, [b'{"n": %b}\n' % (b"9" * 5000)], "stream broken: ", id="a-huge-number"),
    pytest.param({"prompt": SECRET}, 200, [b"[" * 100_000 + b"\n"], "stream broken: ", id="nested-without-end"),
    *(
        pytest.param({"prompt": SECRET, name: value}, 200, [], f"bad payload: its {name} is not a ", id=f"{name}-{value}")
        for name, values in {
            "temperature": ("hot", True, -0.1, math.nan, math.inf, [0]), "max_tokens": (0, -1, 1.5, True, "9", 2**31)
        }.items()
        for value in values
    ),
]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, None),
        ({"temperature": None, "max_tokens": None}, None),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.7, "max_tokens": 4000}, {"temperature": 0.7, "num_predict": 4000}),
    ],
)
def test_temperature_and_max_tokens_are_passed_on(given: dict[str, Any], options: dict[str, Any] | None) -> None:
    for kind, asked in (("llm_inference", 1), ("quality_loop", 2)):
        error, _, server = run(kind, {"prompt": "p", **given}, lambda _: answer("x"))
        assert error is None
        assert [order.get("options") for order in server.asked] == [options] * asked


def test_a_byte_that_is_no_text_costs_one_character() -> None:
    error, result, _ = run("llm_inference", {"prompt": "p"}, lambda _: [b'{"response": "a\xff", "n": NaN, "done": true}\n'])
    assert (error, result["response"]) == (None, "a\ufffd")


@pytest.mark.parametrize(("payload", "status", "stream", "said"), FAILURES)
def test_failures_are_failures(payload: dict[str, Any], status: int, stream: list[bytes | None], said: str) -> None:
    """Each with its own kind; neither the payload nor what the server said is in it."""
    error, result, _ = run("llm_inference", payload, lambda _: stream, status, max_result_mb=0.1)
    assert error is not None
    assert error.startswith(said)
    assert result == {"status": "error", "kind": said.partition(":")[0], "error": error}
    assert SECRET not in str(result)


def test_a_memory_id_alone_cannot_be_followed() -> None:
    error, _, server = run("quality_loop", {"memory_id": "m"}, lambda _: [])
    assert error is not None
    assert "memory_id" in error
    assert server.asked == []


def test_nobody_listens() -> None:
    async def go() -> tuple[str | None, Any]:
        async with OllamaServer(lambda _: []) as server:
            pass
        return await outcome(server, "llm_inference", {"prompt": "x"})

    error, result = asyncio.run(go())
    assert error is not None
    assert error.startswith("not reachable: ")
    assert result["kind"] == "not reachable"


@pytest.mark.parametrize("sticky", [False, True])
def test_a_stop_cuts_the_stream_and_unloads(sticky: bool) -> None:
    """The server sees the end of the connection, then the request to unload; one that keeps them delays nothing for long."""

    async def go() -> None:
        async with OllamaServer(lambda _: [line("a"), None], sticky=sticky) as server:
            task, ended = await begin(server, "llm_inference", {"prompt": "x", "model": "m"})
            async with asyncio.timeout(20):
                await server.streaming.wait()
                reports = await asyncio.gather(task.stop(5), task.stop(0))
                await server.left.wait()
                await ended.wait()
            assert reports[0] == reports[1]
            assert reports[0][0].name is RungName.REQUEST_CUT
            assert (reports[0][1].name is RungName.NOT_UNLOADED) is sticky
            assert server.unloaded == ["m"]
            assert not task.alive
            assert task.error is not None
            assert await task.stop(0) == reports[0]

    asyncio.run(go())


def test_only_this_machine_is_asked() -> None:
    executor = OllamaExecutor(TaskType(executor="ollama_api", ollama_url="http://10.0.0.1:11434"))
    with pytest.raises(StartFailed, match="not an address of this machine"):
        asyncio.run(executor.start(Claim("id-1", "llm_inference", {"prompt": "x"}), Path("/"), lambda: None))


def test_ollamas_processes_count_as_the_tasks(tmp_path: Path) -> None:
    """Found by their program; CPU used before the task is not counted, and what was counted stays."""
    program = tmp_path / "ollama"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)

    async def go() -> None:
        async with OllamaServer(lambda _: [line("a"), None]) as server:
            with subprocess.Popen([program, "60"]) as runner:
                try:
                    task, _ = await begin(server, "llm_inference", {"prompt": "x"})
                    assert runner.pid in task.pids()
                    assert os.getpid() not in task.pids()
                    assert 0 <= task.cpu_s() < 1
                finally:
                    runner.kill()
            await task.stop(0)
            assert task.pids() == frozenset()

    asyncio.run(go())


def test_a_request_cannot_be_frozen() -> None:
    async def go() -> None:
        async with OllamaServer(lambda _: [None]) as server:
            task, _ = await begin(server, "llm_inference", {"prompt": "hi"})
            with pytest.raises(FreezeFailed, match="a request to Ollama cannot be frozen, only cut"):
                await task.freeze()
            assert await task.thaw() == Rung(RungName.WAS_NOT_FROZEN)
            await task.stop(0)

    asyncio.run(go())


def test_a_line_without_an_end_is_not_read_for_long() -> None:
    """Neither the memory nor the loop belongs to a server that sends one."""

    async def go() -> None:
        flood: list[bytes | None] = [b"x" * (1 << 20)] * 64
        async with OllamaServer(lambda _: flood) as server:
            error, _ = await outcome(server, "llm_inference", {"prompt": "hi"}, max_result_mb=4)
            assert error is not None
            assert error.startswith("too large: ")
            assert server.pieces < 32

    asyncio.run(go())


@pytest.mark.parametrize("path", ["/api/ps", "unload"])
def test_unloading_reads_no_endless_answer(path: str) -> None:
    async def go() -> None:
        async with OllamaServer(lambda _: answer("a"), floods=path) as server:
            assert await outcome(server, "llm_inference", {"prompt": "hi"}) == (None, {"status": "success", "response": "a"})
            await asyncio.wait_for(server.left.wait(), 20)
            assert server.pieces < 32

    asyncio.run(go())


def test_half_a_character_in_an_answer_goes_through() -> None:
    error, result, _ = run("llm_inference", {"prompt": "hi \ud800"}, lambda _: [b'{"response": "a\\ud800", "done": true}\n'])
    assert error is None
    assert result["response"] == "a\ud800"
