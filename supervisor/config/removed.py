"""Settings that node.yaml had in earlier versions. A file that still has one gets a note; its value is not read."""

from __future__ import annotations

from typing import Final

REMOVED: Final[dict[str, str]] = {
    "control.paths": "all paths are found automatically",
    "control.connect_timeout_sec": "it is a constant now (5 s)",
    "control.read_timeout_sec": "it is a constant now (15 s)",
    "control.total_timeout_sec": "it is a constant now (30 s)",
    "control.max_answer_mb": "it is a constant now (16 MiB)",
    "control.max_requests_per_sec": "it is a constant now (100)",
    "control.backoff_max_sec": "it is a constant now (300 s)",
    "gpu.display_cap_gb": "it is a constant now (2 GiB)",
    "gpu.display_servers": "what draws the desktop is known by its unit, or by its age, memory and load",
    "gpu.look_interval_sec": "it is a constant now (2 s)",
    "gpu.vram_release_sec": "it is a constant now (5 s)",
    "gpu.max_age_sec": "it is a constant now (80 s)",
    "presence.gamepad_dead_zone_percent": "it is a constant now (25 %)",
    "presence.max_age_sec": "it is a constant now (80 s)",
    "host.check_timeout_sec": "it is a constant now (5 s)",
    "host.cpu_window_sec": "it is a constant now (10 s)",
    "host.max_age_sec": "it is a constant now (30 s)",
    "work.settle_sec": "it is a constant now (10 s)",
}
