"""Configuration folders for tests, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config.load import ConfigErrors, load

SEED = """\
automation:
  enabled: true
  auto_start: true

safety:
  detect_active_user: true
  idle_required_minutes: 10
  max_cpu_percent: 80
  max_gpu_percent: 90
  max_vram_gb: 14
  cooldown_minutes: 15

execution:
  poll_interval_sec: 45
  heartbeat_interval_sec: 30
  task_timeout_minutes: 180
  retry_on_disconnect: true
"""


def write(folder: Path, runtime: str | bytes | None = SEED, node: str | bytes | None = None) -> Path:
    """A configuration folder."""
    for name, content in (("runtime.yaml", runtime), ("node.yaml", node)):
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def errors(folder: Path) -> list[str]:
    """The lines that a folder's configuration gets."""
    with pytest.raises(ConfigErrors) as caught:
        load(folder)
    lines = [str(problem) for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(lines)
    return lines


def gpu(value: str) -> str:
    """runtime.yaml with another max_gpu_percent."""
    return SEED.replace("max_gpu_percent: 90", f"max_gpu_percent: {value}")
