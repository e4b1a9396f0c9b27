"""A task on this machine's Ollama, with the real daemon: it cannot be frozen, so it is cut at the first sign.

The sign is somebody else's process on the GPU (NVML stand-in); Ollama is a stand-in too.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.ollama_server import OllamaServer, line
from support.running import NodeFolder, control_node, daemon
from support.waiting import until

__all__ = ["nvml_library", "standin"]  # fixtures

pytestmark = pytest.mark.slow


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    """A model that begins to answer and never ends."""
    server = OllamaServer(lambda _: [line("a"), None])
    up, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server:
            up.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert up.wait(30)
    yield server
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()


def test_it_is_cut_at_the_first_sign_and_unloaded_and_never_put_on_hold(
    tmp_path: Path, standin: StandIn, ollama: OllamaServer
) -> None:
    with control_node() as control, subprocess.Popen(["sleep", "1000"]) as stranger:
        settings = {
            "tasks": {"llm_inference": {"executor": "ollama_api", "ollama_url": ollama.url, "on_preempt": "fail"}},
            "work": {"hold_sec": 120, "run_minutes": 0},
            "gpu": {"presence": "required"},
        }
        folder = NodeFolder.make(tmp_path / "node", control.url, node=settings, look_interval_s=0.2, settle_s=0)
        with daemon(folder, env=standin.env) as node:
            task = control.add("llm_inference", {"prompt": "x", "model": "m"})
            until(ollama.streaming.is_set, "the model answers")
            standin.shows(f"0.proc={stranger.pid}:{GIB}:g")
            until(ollama.left.is_set, "its request is cut")
            assert control.settled(task)["error"].startswith("preempted: the GPU was needed")
            assert ollama.unloaded == ["m"]
            standin.shows()
            stranger.kill()
            node.stop()
        rows = folder.rows()
        assert rows[rows.index("task-claimed") :][:2] == ["task-claimed", "gpu-taken"]
        folder.replays_clean()
