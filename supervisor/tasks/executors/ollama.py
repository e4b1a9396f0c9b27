"""Runs `llm_inference`, `quality_loop` and `code_verify_cycle` on this machine's Ollama, by its HTTP API.

The answer is read as a stream, so that closing it stops the model at once. However a task ends, Ollama is asked to unload its
models; whether the VRAM is free is for the GPU sensor to say. An error never quotes the server or the payload.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.config.schema import TaskType
from supervisor.config.urls import host_of, is_loopback
from supervisor.linux.proc import listed, name_of
from supervisor.sources.base import Claim
from supervisor.tasks import usage
from supervisor.tasks.executors.base import FreezeFailed, Rung, StartFailed, StopFailed, Wake
from supervisor.tasks.process import process_tree
from supervisor.tasks.process.rungs import RungName

if TYPE_CHECKING:
    import httpx2

    from supervisor.tasks.process.containment import Containment

WRITER: Final = "deepseek-coder:33b"
REVIEWER: Final = "deepseek-coder:6.7b"
TYPES: Final = ("llm_inference", "quality_loop", "code_verify_cycle")
PROGRAMS: Final = frozenset({"ollama", "ollama_llama_server"})
CONNECT_S: Final = 5.0
SILENCE_S: Final = 300.0  # between two pieces of an answer: a large model takes minutes to load
CUT_S: Final = 1.0
UNLOAD_S: Final = 3.0
PROCESSES_S: Final = 2.0  # how long a list of Ollama's processes is used
EXTRA_BYTES: Final = 4 << 20  # of a line, beside its text: the last one has the numbers of the whole conversation
SMALL_BYTES: Final = 1 << 20  # of an answer about loading
KEEP_ALIVE: Final = "1m"  # if the daemon is killed, Ollama unloads the model by itself
MAX_TEMPERATURE: Final = 100.0  # models make no sense above 2; NaN and infinities are none
MAX_TOKENS: Final = 2**31 - 1  # Ollama has 32 bits for it
_PASSED: Final = re.compile(r"\bPASSED\b")  # anywhere in the review
_MIB: Final = 1 << 20


class OllamaFailed(Exception):
    """The task failed. `kind` is stable; the text begins with it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class OllamaExecutor:
    """Runs one task type on Ollama. It starts no process, so it needs no containment."""

    def __init__(self, task_type: TaskType, containment: Containment | None = None) -> None:
        self._type = task_type

    async def start(self, claim: Claim, workdir: Path, wake: Wake) -> OllamaTask:
        """See Executor."""
        if not is_loopback(host_of(self._type.ollama_url)):
            raise StartFailed(f"tasks.{claim.type}.ollama_url is not an address of this machine")
        return OllamaTask(self._type, claim, wake)


class OllamaTask:
    """One task's requests: a RunningTask without a process of its own. It is alive until the models are unloaded, too."""

    def __init__(self, task_type: TaskType, claim: Claim, wake: Wake) -> None:
        self._url = task_type.ollama_url.rstrip("/")
        self._max = int(task_type.max_result_mb * _MIB)
        self._claim = claim
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._used: set[str] = set()
        self._answer_bytes = 0  # of all answers
        self._stopping: asyncio.Task[tuple[Rung, ...]] | None = None
        self._rungs: tuple[Rung, ...] = ()
        self.alive = True
        self.error: str | None = None
        self.result: Mapping[str, Any] = {}
        self.state: Any = None  # an answer that was cut starts from the beginning
        self._listed_s = float("-inf")
        self._pids: frozenset[int] = frozenset()
        self._used_s: dict[int, float] = {}  # by process, while it was there
        self._used_before_s = {pid: _cpu_s(pid) for pid in self.pids()}
        self._job = self._loop.create_task(self._run())

    def pids(self) -> frozenset[int]:
        """Ollama's processes, found by their program: what they use counts as the task's use."""
        if not self.alive:
            return frozenset()
        if self._loop.time() - self._listed_s >= PROCESSES_S:
            self._listed_s = self._loop.time()
            pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
            self._pids = frozenset(pid for pid in pids if listed(name_of(Path("/proc"), pid), PROGRAMS))
        return self._pids

    def memory(self, enough: float | None) -> int:
        """See RunningTask."""
        return usage.memory(self.pids(), enough)

    async def disk(self) -> int:
        """Ollama writes nothing for a task."""
        return 0

    def cpu_s(self) -> float:
        """CPU seconds of Ollama's processes since the task began; they never fall."""
        for pid in self.pids():
            self._used_s[pid] = max(self._used_s.get(pid, 0.0), _cpu_s(pid) - self._used_before_s.get(pid, 0.0))
        return sum(self._used_s.values())

    def freeze_now(self) -> None:
        """See RunningTask: see `freeze`."""

    async def freeze(self) -> Rung:
        """See RunningTask: never. The model computes in Ollama's own processes, another user's, which serve others too."""
        raise FreezeFailed("a request to Ollama cannot be frozen, only cut: the model computes in Ollama's own processes")

    async def thaw(self) -> Rung:
        """See RunningTask."""
        return Rung(RungName.WAS_NOT_FROZEN)

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """Cut the request, ask Ollama to unload, and wait for that for three seconds at most. Raises StopFailed."""
        if not self.alive:
            return self._rungs or (Rung(RungName.GONE_ALREADY),)
        if self._stopping is None or self._stopping.done():
            self._stopping = self._loop.create_task(self._stop())
        return await asyncio.shield(self._stopping)

    async def _stop(self) -> tuple[Rung, ...]:
        begun_s = self._loop.time()
        self._job.cancel()
        await asyncio.wait([self._job], timeout=CUT_S)
        if not self._job.done():
            raise StopFailed(f"the request to Ollama did not end within {CUT_S:g} s")
        if not self.alive:
            return (Rung(RungName.ENDED_ITSELF),)
        self.error, self.result = "its end was not seen", {}
        cut = Rung(RungName.REQUEST_CUT, self._loop.time() - begun_s)
        unloaded = await self._unload()
        self._rungs = cut, replace(unloaded, seconds=self._loop.time() - begun_s)
        self._finish()
        return self._rungs

    async def _run(self) -> None:
        try:
            async with await asyncio.to_thread(_client) as client:
                result = await self._work(client)
            self.error, self.result = None, {"status": "success", **result}
        except Exception as error:  # noqa: BLE001 - whatever a server does to the library is a failure of the task
            failed = error if isinstance(error, OllamaFailed) else _failure(error, self._claim.type)
            self.error, self.result = str(failed), {"status": "error", "kind": failed.kind, "error": str(failed)}
        await self._unload()
        self._finish()

    def _finish(self) -> None:
        self.alive = False
        self._wake()

    async def _work(self, client: httpx2.AsyncClient) -> dict[str, Any]:
        payload = self._claim.payload
        if self._claim.type == "llm_inference":
            model = _text(payload, "model") or WRITER
            return {"response": await self._generate(client, model, _required(payload, "prompt"), _text(payload, "system"))}
        task = _text(payload, "prompt") or _text(payload, "task")
        code = _text(payload, "diff") or _text(payload, "code")
        if not task and not code:
            why = "a memory_id alone cannot be followed: nodes have no memory access" if "memory_id" in payload else ""
            raise OllamaFailed("bad payload", why or "it has neither prompt or task, nor diff or code")
        parts = [task or "Check the code below, correct what is wrong, and answer with the whole of it."]
        for name, text in (("Context", _text(payload, "context")), ("Code", code)):
            if text:
                parts.append(f"{name}:\n{text}")
        order = "\n\n".join(parts)
        written = await self._generate(client, _text(payload, "writer_model") or WRITER, order)
        review = await self._generate(
            client,
            _text(payload, "reviewer_model") or REVIEWER,
            "Review the answer to the task below. Begin with the word PASSED if it is correct and complete; otherwise "
            f"begin with REJECTED and say what is wrong.\n\nTask:\n{order}\n\nAnswer:\n{written}",
        )
        return {"writer_output": written, "review_report": review, "is_passed": _PASSED.search(review) is not None}

    async def _generate(self, client: httpx2.AsyncClient, model: str, prompt: str, system: str = "") -> str:
        """One whole answer of a model."""
        if model.strip().lower().endswith(("-cloud", ":cloud")):
            raise OllamaFailed("model refused", "a cloud model would send the task's data out of this machine")
        self._used.add(model)
        order: dict[str, Any] = {"model": model, "prompt": prompt, "stream": True, "keep_alive": KEEP_ALIVE}
        if system:
            order["system"] = system
        if options := _options(self._claim.payload):
            order["options"] = options
        body = json.dumps(order).encode()
        texts: list[str] = []
        size, rest = 0, bytearray()
        async with client.stream("POST", f"{self._url}/api/generate", content=body) as response:
            response.extensions["network_stream"].answered()
            if response.status_code == 404:
                raise OllamaFailed("model missing", "Ollama does not have the model; `ollama list` shows what it has")
            if response.status_code != 200:
                raise OllamaFailed("http error", f"Ollama answered with status {response.status_code}")
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > 16 * self._max:  # each piece of text comes in a line of some hundred bytes
                    raise OllamaFailed("too large", f"the stream is longer than {16 * self._max} bytes")
                *lines, left = chunk.split(b"\n")
                for line in lines:
                    rest += line
                    if rest.strip() and self._read_line(bytes(rest), texts):
                        return "".join(texts)
                    rest.clear()
                rest += left
                if len(rest) > self._max + EXTRA_BYTES:
                    raise OllamaFailed("too large", f"a line of the stream is longer than {self._max + EXTRA_BYTES} bytes")
        if rest.strip() and self._read_line(bytes(rest), texts):
            return "".join(texts)
        raise OllamaFailed("stream broken", "Ollama's answer ended before the model was done")

    def _read_line(self, line: bytes, texts: list[str]) -> bool:
        """Add the text of one line of the stream; returns whether it was the last line."""
        try:
            message = json.loads(line.decode(errors="replace"))  # a byte that is no text costs one character
        except (ValueError, RecursionError):
            raise OllamaFailed("stream broken", "a line of Ollama's answer is not JSON") from None
        if not isinstance(message, dict):
            raise OllamaFailed("stream broken", "a line of Ollama's answer is not a JSON object")
        if "error" in message:
            raise OllamaFailed("model failed", "Ollama reported an error in the middle of its answer; see its own log")
        text = message.get("response", "")
        if not isinstance(text, str):
            raise OllamaFailed("stream broken", "a line of Ollama's answer has no text")
        texts.append(text)
        self._answer_bytes += len(text.encode(errors="replace"))
        if self._answer_bytes > self._max:
            raise OllamaFailed("too large", f"the answer is longer than {self._max / _MIB:g} MiB (max_result_mb)")
        return message.get("done") is True

    async def _unload(self) -> Rung:
        """Ask Ollama to unload the models, and wait until it lists them no more. Only the GPU sensor knows the VRAM."""
        if not self._used:
            return Rung(RungName.NOTHING_TO_UNLOAD)
        try:
            async with asyncio.timeout(UNLOAD_S), await asyncio.to_thread(_client) as client:
                for model in self._used:
                    order = json.dumps({"model": model, "keep_alive": 0}).encode()
                    await _read_small(client, "POST", f"{self._url}/api/generate", order)
                while self._used & await self._loaded(client):  # noqa: ASYNC110 - Ollama has no event for it
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return Rung(RungName.NOT_UNLOADED)
        except Exception as error:  # noqa: BLE001 - a server that is gone has no VRAM; that is read in any case
            return Rung(RungName.UNLOAD_FAILED, detail=type(error).__name__)
        return Rung(RungName.UNLOADED)

    async def _loaded(self, client: httpx2.AsyncClient) -> set[str]:
        answer = json.loads(await _read_small(client, "GET", f"{self._url}/api/ps"))
        names = {str(model.get("name", "")) for model in answer.get("models", [])}
        return names | {name.removesuffix(":latest") for name in names}


def _cpu_s(pid: int) -> float:
    process = process_tree.look(pid)
    return 0.0 if process is None else process.cpu_s


def _client() -> httpx2.AsyncClient:
    """In a thread: importing the library takes time."""
    import httpx2

    from supervisor.sources.rae.paced import paced

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used: loopback only, no redirects
    limits = httpx2.Limits(max_connections=2, max_keepalive_connections=0)
    return httpx2.AsyncClient(
        transport=paced(httpx2.AsyncHTTPTransport(verify=context, limits=limits, trust_env=False)),
        timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S),
        trust_env=False,
        follow_redirects=False,
        headers={"content-type": "application/json", "accept-encoding": "identity"},
    )


async def _read_small(client: httpx2.AsyncClient, method: str, url: str, content: bytes | None = None) -> bytes:
    """An answer, or the beginning of one that is longer than SMALL_BYTES."""
    body = bytearray()
    async with client.stream(method, url, content=content) as response:
        response.extensions["network_stream"].answered()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > SMALL_BYTES:
                break
    return bytes(body)


def _failure(error: Exception, task_type: str) -> OllamaFailed:
    """The failure that an exception of the HTTP library means."""
    import httpx2

    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return OllamaFailed("not reachable", f"no Ollama answers at tasks.{task_type}.ollama_url; is its service running?")
    if isinstance(error, httpx2.TimeoutException):
        return OllamaFailed("silent", f"Ollama sent nothing for {SILENCE_S:g} s")
    if isinstance(error, httpx2.TransportError):
        return OllamaFailed("stream broken", "the connection to Ollama broke off")
    return OllamaFailed("failed", f"the request to Ollama failed ({type(error).__name__})")


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise OllamaFailed("bad payload", f"its {name} is not a text")
    return value


def _options(payload: Mapping[str, Any]) -> dict[str, float]:
    """Ollama's options, from the names that RAE gives them. Without them Ollama uses the model's own."""
    options: dict[str, float] = {}
    if (temperature := payload.get("temperature")) is not None:
        if type(temperature) not in (int, float) or not 0 <= temperature <= MAX_TEMPERATURE:
            raise OllamaFailed("bad payload", f"its temperature is not a number from 0 to {MAX_TEMPERATURE:g}")
        options["temperature"] = temperature
    if (tokens := payload.get("max_tokens")) is not None:
        if type(tokens) is not int or not 0 < tokens <= MAX_TOKENS:
            raise OllamaFailed("bad payload", f"its max_tokens is not a whole number from 1 to {MAX_TOKENS}")
        options["num_predict"] = tokens
    return options


def _required(payload: Mapping[str, Any], name: str) -> str:
    value = _text(payload, name)
    if not value:
        raise OllamaFailed("bad payload", f"it has no {name}")
    return value
