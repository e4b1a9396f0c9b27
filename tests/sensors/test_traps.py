"""The traps that presence and GPU sensors fall into, each with the tests that keep this node out, or the doctor's line.

The list of traps is the design's (T1 to T31); a trap without an entry here, or an entry without its test, fails.
`python tests/sensors/test_traps.py` prints it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# What it is; "file::test" below tests/, "doctor: name" for a line of the doctor, "not used: why" where it cannot happen here.
TRAPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "T1": ("XWayland's idle time is no session's: X is asked for x11 sessions alone", (
        "sensors/session_agent/test_agent.py::test_x_is_asked_for_x11_sessions_alone",
        "sensors/session_agent/test_agent_box.py::test_an_x_display_is_seen_whatever_logind_calls_its_session",
    )),
    "T2": ("X needs its owner's cookie, wherever the display manager put it", (
        "sensors/session_agent/test_sources.py::test_the_cookie_is_found_among_others",
    )),
    "T3": ("IdleHint: no is active, yes counts beside a second source; the manager's is not read", (
        "sensors/presence/test_logind_session.py::test_policy",
        "sensors/presence/test_logind_box.py::test_hints_count_only_together",
    )),
    "T4": ("locked is not away", ("sensors/presence/test_logind_session.py::test_policy",)),
    "T5": ("Mutter, KDE and screen savers live on the user's own bus", (
        "sensors/session_agent/test_session_bus.py::test_mutter_signals_both_ways_and_is_asked_for_a_proof",
        "sensors/session_agent/test_session_bus.py::test_a_real_mutter", "doctor: idle sources",
    )),
    "T6": ("an inhibitor silences version 1 of the idle notification", (
        "sensors/session_agent/test_sources.py::test_with_version_1_an_inhibitor_is_a_person",
        "sensors/session_agent/test_sources.py::test_an_inhibitor_is_told_from_a_person_by_version_2",
    )),
    "T7": ("inhibitors stay up: holder and age are shown, and one may be excepted, logind's and the desktop's alike", (
        "sensors/presence/test_logind_bus.py::test_a_lock_may_be_excepted_and_its_age_is_told",
        "sensors/presence/test_logind_bus.py::test_who_keeps_the_screen_on",
        "sensors/presence/test_agent_reports.py::test_a_holder_that_node_yaml_excepts_is_shown_and_does_not_count",
        "doctor: locks on idle",
    )),
    "T8": ("remote desktops have no seat, virtual machines no input devices", (
        "sensors/presence/test_logind_box.py::test_a_remote_desktop_needs_no_seat",
        "sensors/presence/test_input.py::test_no_device_is_no_source", "doctor: input devices",
    )),
    "T9": ("greeters and managers are nobody, unknown classes are people, a closing session does not count", (
        "sensors/presence/test_logind_session.py::test_policy", "sensors/presence/test_logind_box.py::test_a_greeter_is_nobody",
        "sensors/presence/test_logind_box.py::test_a_user_manager_is_nobody", "doctor: loginctl",
    )),
    "T10": ("a terminal's times move in 8-s steps: nothing finer is read into them", (
        "sensors/presence/test_terminals.py::test_a_terminal_is_no_older_than_the_look_before_its_change",
        "sensors/test_conflicts.py::test_what_contradicts_an_idle_desktop", "doctor: terminals",
    )),
    "T11": ("a drifting stick is nobody", (
        "sensors/presence/test_input.py::test_a_drifting_stick_is_nobody_and_costs_little",
        "sensors/presence/test_evdev.py::test_a_gamepad_shows_a_person_beyond_the_dead_zone",
    )),
    "T12": ("idle_detect's two times are read torn", (
        "sensors/presence/test_idle_detect.py::test_both_times_must_be_plausible",
    )),
    "T13": ("a query wakes a sleeping GPU", (
        "sensors/gpu/test_poller.py::test_a_sleeping_gpu_is_free_without_nvml",
        "sensors/gpu/test_poller.py::test_the_driver_is_let_go_between_looks_that_are_far_apart",
        "tools/doctor/test_second_opinion.py::test_a_gpu_that_sleeps_is_not_woken_to_be_compared",
    )),
    "T14": ("a driver just loaded shows 90 percent and more", (
        "sensors/gpu/test_nvml.py::test_the_first_sample_of_a_helper_is_not_believed",
        "sensors/gpu/test_nvml.py::test_a_first_sample_that_shows_a_load_is_discarded",
    )),
    "T15": ("AMD: sensors wake it, gpu_busy_percent lies or is missing", (
        "sensors/gpu/test_drm.py::test_a_sleeping_gpu_is_free_and_left_asleep",
        "sensors/gpu/test_drm.py::test_what_a_driver_cannot_say_is_unknown_and_tried_again",
    )),
    "T16": ("other users' fdinfo is hidden: unknown, not empty", (
        "sensors/gpu/test_drm_helper.py::test_another_users_process_is_hidden_from_who_is_not_root",
        "sensors/gpu/test_drm_helper.py::test_who_cannot_be_looked_into_counts_only_with_the_right_to_open_it",
    )),
    "T17": ("games are in the graphics list; a compositor may hold gigabytes", (
        "sensors/gpu/test_nvml_usage.py::test_a_look",
    )),
    "T18": ("memory by nobody listed is foreign", (
        "sensors/gpu/test_nvml_usage.py::test_a_look",
        "sensors/gpu/test_nvml_usage.py::test_the_note_mentions_memory_without_a_process",
    )),
    "T19": ("impossible utilisation is unknown", (
        "sensors/gpu/test_nvml_usage.py::test_what_cannot_be_believed_is_unknown",
    )),
    "T20": ("driver calls hang in the kernel", (
        "sensors/gpu/test_poller.py::test_a_call_that_hangs_is_abandoned",
        "sensors/gpu/test_poller.py::test_a_helper_that_cannot_be_killed_is_left_alone",
    )),
    "T21": ("library and module of different versions: its own reason", (
        "sensors/gpu/test_nvml.py::test_what_nvml_cannot_say_is_unknown_with_the_reason", "doctor: nvidia-smi",
    )),
    "T22": ("CUDA checkpoints hang and fail", ("not used: a task is ended and handed back, never checkpointed",)),
    "T23": ("Ollama keeps VRAM after it said that it unloaded", (
        "tasks/test_ollama.py::test_a_stop_cuts_the_stream_and_unloads",
        "sensors/gpu/test_nvml_usage.py::test_what_a_task_has_left",
    )),
    "T24": ("one lock a kind, refusal tried as another user", (
        "daemon/test_inhibitor.py::test_one_lock_a_kind_in_block_mode_until_released",
        "daemon/test_inhibitor_box.py::test_a_lock_on_sleep_keeps_another_user_from_suspending", "doctor: sleep lock",
    )),
    "T25": ("the lid suspends in spite of locks", (
        "sensors/presence/test_logind_session.py::test_a_closed_lid_is_going_down_unless_logind_ignores_it",
        "sensors/presence/test_logind_bus.py::test_a_lid_is_found_without_a_signal",
    )),
    "T26": ("a delay lock lasts five seconds, once", (
        "sensors/presence/test_logind_box.py::test_sleep_waits_for_the_delay_lock_and_twice_in_a_row",
        "sensors/presence/test_logind_bus.py::test_going_down_is_read_on_connecting",
    )),
    "T27": ("polkit refuses a service's lock", (
        "daemon/test_inhibitor_box.py::test_polkit_refuses_a_plain_user_in_words_until_a_rule_allows_it",
        "doctor: sleep lock",
    )),
    "T28": ("no frozen CUDA task across a suspend", (
        "daemon/test_performer.py::test_the_grace_is_the_types_and_short_before_a_sleep",
        "sensors/gpu/test_poller.py::test_after_a_suspend_nothing_is_known_until_a_new_helper_has_looked",
    )),
    "T29": ("a watchdog's abort would dump the task's data", ("deploy/test_unit_file.py::test_it_says",)),
    "T30": ("children born during a kill", ("tasks/test_containment.py::test_hoppers_as_that_user",)),
    "T31": ("gamemode starts when called; sandboxed programs are known by their scope", (
        "sensors/session_agent/test_inhibitors.py::test_a_game_that_gamemode_knows_and_gamemode_is_never_started",
        "sensors/host/test_host_extras.py::test_windows_programs_and_sandboxes_are_seen_by_what_they_show",
    )),
}  # fmt: skip


DOCTOR = ("in_service.py", "doctor.py", "second_opinion.py")


def test_every_trap_has_its_entry() -> None:
    assert list(TRAPS) == [f"T{number}" for number in range(1, 32)]


@pytest.mark.parametrize("trap", TRAPS)
def test_what_keeps_out_of_it_is_there(trap: str) -> None:
    _, kept = TRAPS[trap]
    assert kept
    doctor = [TESTS.parent / "supervisor/tools/doctor" / name for name in DOCTOR]
    sources = (TESTS.parent / "supervisor/sensors/presence").glob("*.py")  # each names its own checks
    inside = "".join(path.read_text() for path in (*doctor, *sources))
    for entry in kept:
        file, _, name = entry.partition("::")
        if entry.startswith("doctor: "):
            assert f'"{entry.removeprefix("doctor: ")}"' in inside, entry
        elif not entry.startswith("not used: "):
            assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE), entry


def main() -> None:
    """The table, for people."""
    for trap, (what, kept) in TRAPS.items():
        sys.stdout.write(f"{trap:<4} {what}\n" + "".join(f"       {entry}\n" for entry in kept))


if __name__ == "__main__":
    main()
