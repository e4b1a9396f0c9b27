"""What a script may say and what it may not (interface §5): every error has its place and says what is allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from states.effects import Effect
from states.memory import State
from supervisor.config import load as config
from supervisor.tools.history.replay import answer, as_json, compare, errors, exit_code, play, replay_files
from supervisor.tools.history.script import Script, ScriptError, duration_s, parse

SAFE = "automation: on, user: {idle: 1h}, gpu: {percent: 4, vram_gb: 1, foreign: 0}, cpu: 5, host: fit"
READY = f"  - {{at: 0s, see: {{{SAFE}}}, ticks: 2, expect: {{state: READY}}}}\n"
EXAMPLE = """\
replay: 1
title: The person comes back during a task
covers: [R3, R15, R23]
settings: {safety.idle_required_minutes: 10, work.run_minutes: 0}   # dotted; everything else as shipped
steps:
  - {at: 0s,  see: {automation: on, user: {idle: 9m}, gpu: {percent: 4, vram_gb: 1, foreign: 0}, cpu: 5, host: fit, task: none}, expect: {state: IDLE_WAIT}}
  - {at: 59s, expect: {state: IDLE_WAIT, blocked_by: [user_away]}}
  - {at: 60s, expect: {state: READY}}
  - {at: 70s, see: {task: claimed}, expect: {state: RUNNING, effects: [inhibit, start], inhibitor: held}}
  - {at: 75s, see: {task: running, user: active}, expect: {state: COOLDOWN, row: user-returned, effects: [stop, hand_back, wipe, release], inhibitor: free}}
"""  # noqa: E501


def script(steps: str, settings: str = "") -> Script:
    return parse(f"replay: 1\nsettings: {{{settings}}}\nsteps:\n{steps}", "s.yaml")


def problems(text: str) -> list[str]:
    with pytest.raises(ScriptError) as error:
        parse(text, "s.yaml")
    return [str(problem) for problem in error.value.problems]


def run(tmp_path: Path, text: str, name: str = "s.yaml") -> tuple[int, str, str]:
    """(exit code, stdout, stderr) as the command has them."""
    path = tmp_path / name
    path.write_text(text)
    reports = replay_files([path])
    return exit_code(reports), "\n".join(answer(reports)), "\n".join(errors(reports))


def test_the_example_of_the_interface_passes(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, EXAMPLE)
    assert (code, err) == (0, "")
    assert out.startswith("ok ")
    assert "The person comes back during a task" in out


# --- differences


@pytest.mark.parametrize(
    ("change", "line", "difference"),
    [
        (("row: user-returned", "row: gpu-taken"), 10, "step 5 at 75s: row: expected gpu-taken, got user-returned"),
        (("row: user-returned", "row: null"), 10, "step 5 at 75s: row: expected null, got user-returned"),
        (("state: READY", "state: IDLE_WAIT"), 8, "step 3 at 60s: state: expected IDLE_WAIT, got READY"),
        (("[inhibit, start]", "[start, inhibit]"), 9, "4 at 70s: effects: expected [start, inhibit], got [inhibit, start]"),
        (("[inhibit, start]", "[inhibit!, start]"), 9, "4 at 70s: effects: expected [inhibit!, start], got [inhibit, start]"),
        (("inhibitor: held", "inhibitor: free"), 9, "step 4 at 70s: inhibitor: expected free, got held"),
        (("[user_away]", "[]"), 7, "step 2 at 59s: blocked_by: expected [], got [user_away]"),
        (("[user_away]", "[gpu_free, user_away]"), 7, "blocked_by: expected [gpu_free, user_away], got [user_away]"),
        (("minutes: 10", "minutes: 11"), 8, "step 3 at 60s: state: expected READY, got IDLE_WAIT"),
    ],
)
def test_the_first_difference_is_told(tmp_path: Path, change: tuple[str, str], line: int, difference: str) -> None:
    code, out, err = run(tmp_path, EXAMPLE.replace(*change))
    assert (code, err) == (1, "")
    assert f"s.yaml:{line}: " in out
    assert difference in out
    assert out.count("expected") == 1
    assert "user_away " in out  # what the node saw


def test_blocked_by_knows_no_order() -> None:
    blocked = "[cpu_free, user_away, host_fit, gpu_free]"
    got = script(f"  - {{at: 0, see: {{automation: on}}, expect: {{state: IDLE_WAIT, blocked_by: {blocked}}}}}")
    (result,) = play(got)
    assert got.steps[0].expect is not None
    assert compare(got.steps[0].expect, result) is None


def test_exit_code_two_wins_over_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(EXAMPLE)
    (tmp_path / "b.yaml").write_text(EXAMPLE.replace("row: user-returned", "row: gpu-taken"))
    (tmp_path / "notes.txt").write_text("not a script")
    assert exit_code(replay_files([tmp_path])) == 1
    (tmp_path / "c.yaml").write_text("replay: 2\n")
    reports = replay_files([tmp_path])
    assert [r.ok for r in reports] == [True, False, False]
    assert exit_code(reports) == 2


def test_json_has_stable_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(EXAMPLE.replace("row: user-returned", "row: gpu-taken"))
    (document,) = msgspec.json.decode(msgspec.json.encode(as_json(replay_files([tmp_path]))))
    assert list(document) == ["ok", "path", "title", "covers", "steps", "difference", "errors"]
    assert document["difference"]["line"] == 10
    assert document["difference"]["expected"] == "gpu-taken"


# --- files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ":1:1: found nothing"),
        (b"\xff\xfe", "UTF-8"),
        (b"a: \xff", "UTF-8"),
        (b"replay: 1\0", "U+0000"),
        (b"- 1\n", ":1:1: found a list"),
        (b"x: " + b"y" * 300_000, "larger than"),
        (b"{" * 100_000, "nesting"),
        (b"replay: [", "s.yaml:2:1: found no value where one must be"),
    ],
)
def test_what_is_no_script_is_exit_two(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    reports = replay_files([path])
    assert exit_code(reports) == 2
    assert said in "\n".join(errors(reports))


def test_missing_files_and_empty_folders_are_exit_two(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("none.yaml", "not found"), ("empty", "no script"), ("none.jsonl", "cannot be read")):
        reports = replay_files([tmp_path / name])
        assert exit_code(reports) == 2
        assert said in errors(reports)[0]


# --- errors in scripts


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("title: x\nsteps:\n" + READY, "s.yaml:1:1: found no replay, allowed: replay is needed here"),
        ("replay: 2\nsteps:\n" + READY, "s.yaml:1:9: replay: found 2, allowed: 1"),
        ("replay: '1'\nsteps:\n" + READY, "s.yaml:1:9: replay: found '1', allowed: 1"),
        ("replay: 1\n", "s.yaml:1:1: found no steps, allowed: steps is needed here"),
        ("replay: 1\nsteps: []\n", "s.yaml:2:8: steps: found an empty list, allowed: a list of at least one step"),
        ("replay: 1\nsteps: {}\n", "s.yaml:2:8: steps: found a mapping"),
        ("replay: 1\nsteps:\n  - {at: 0s}\n", "s.yaml:3:3: steps: found no step that expects anything"),
        ("replay: 1\nspeed: 2\nsteps:\n" + READY, "s.yaml:2:1: found the unknown key speed, allowed: replay, title"),
        ("replay: 1\nreplay: 1\nsteps:\n" + READY, "s.yaml:2:1: found the key replay a second time"),
        ("replay: 1\ncovers: [R25]\nsteps:\n" + READY, "s.yaml:2:10: covers: found R25, allowed: R1 to R24"),
        ("replay: 1\ntitle: [a]\nsteps:\n" + READY, "s.yaml:2:8: title: found a list, allowed: a text"),
        ("replay: &a 1\nsteps:\n" + READY, "s.yaml:1:9: found the anchor &a"),
        ("replay: !!int 1\nsteps:\n" + READY, "s.yaml:1:9: found the tag !!int"),
        ("replay: 1\nsteps:\n" + READY + "---\nreplay: 1\n", "s.yaml:4:1: found a second document"),
    ],
)
def test_errors_of_the_whole(text: str, first: str) -> None:
    assert problems(text)[0].startswith(first)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("▸{expect: {state: READY}}", "step 1: found no at"),
        ("{at: ▸soon, expect: {state: READY}}", "step 1: at: found soon, allowed: a duration such as 90s"),
        ("{at: ▸1:30, expect: {state: READY}}", "step 1: at: found 1:30"),
        ("{at: ▸-1s, expect: {state: READY}}", "step 1: at: found -1s"),
        ("{at: ▸.inf, expect: {state: READY}}", "step 1: at: found .inf"),
        ("{at: ▸10 m, expect: {state: READY}}", "step 1: at: found 10 m"),
        ("{at: ▸10min, expect: {state: READY}}", "step 1: at: found 10min"),
        ("{at: ▸30m1h, expect: {state: READY}}", "step 1: at: found 30m1h"),
        ("{at: ▸'', expect: {state: READY}}", "step 1: at: found ''"),
        ("{at: 0, expect: ▸{}}", "step 1: expect: found no state"),
        ("{at: 0, expect: ▸READY}", "step 1: expect: found READY, allowed: a mapping with state"),
        ("{at: 0, expect: {state: ▸IDLE}}", "step 1: expect.state: found IDLE, allowed: DISABLED, IDLE_WAIT"),
        ("{at: 0, expect: {state: READY, row: ▸gone}}", "step 1: expect.row: found gone, allowed: null, switched-off"),
        ("{at: 0, expect: {state: READY, row: ▸'null'}}", "step 1: expect.row: found 'null'"),
        ("{at: 0, expect: {state: READY, effects: [▸jump]}}", "step 1: expect.effects: found jump, allowed: inhibit, start"),
        ("{at: 0, expect: {state: READY, effects: [▸start!!]}}", "step 1: expect.effects: found start!!"),
        ("{at: 0, expect: {state: READY, effects: ▸start}}", "step 1: expect.effects: found start, allowed: a list"),
        ("{at: 0, expect: {state: READY, inhibitor: ▸taken}}", "step 1: expect.inhibitor: found taken, allowed: held, free"),
        ("{at: 0, expect: {state: READY, blocked_by: [▸mood]}}", "expect.blocked_by: found mood, allowed: automation_on"),
        ("{at: 0, expect: {state: READY, ▸why: x}}", "step 1: expect: found the unknown key why"),
        ("{at: 0, ticks: ▸0}", "step 1: ticks: found 0, allowed: a whole number from 1"),
        ("{at: 0, ticks: ▸1.5}", "step 1: ticks: found 1.5"),
        ("{at: 0, refuse: [▸sleep]}", "step 1: refuse: found sleep, allowed: inhibit, start"),
        ("{at: 0, stale: [▸task]}", "step 1: stale: found task, allowed: user, gpu, cpu, host"),
        ("{at: 0, see: {▸weather: fine}}", "step 1: see: found the unknown key weather"),
        ("{at: 0, see: {automation: ▸yes}}", "see.automation: found yes, allowed: on or off"),
        ("{at: 0, see: {user: ▸away}}", "see.user: found away, allowed: active, unknown, or {idle"),
        ("{at: 0, see: {user: {idle: ▸long}}}", "see.user.idle: found long"),
        ("{at: 0, see: {user: ▸{}}}", "see.user: found no idle"),
        ("{at: 0, see: {gpu: ▸{percent: 4}}}", "see.gpu: found no vram_gb and no foreign, and none from before"),
        ("{at: 0, see: {gpu: {▸load: 4}}}", "see.gpu: found the unknown key load"),
        ("{at: 0, see: {gpu: {percent: ▸-4, vram_gb: 1, foreign: 0}}}", "see.gpu.percent: found -4"),
        ("{at: 0, see: {gpu: {percent: ▸.nan, vram_gb: 1, foreign: 0}}}", "see.gpu.percent: found .nan"),
        ("{at: 0, see: {gpu: {percent: 4, vram_gb: 1, foreign: ▸0.5}}}", "see.gpu.foreign: found 0.5, allowed: a whole"),
        ("{at: 0, see: {gpu: ▸none}}", "see.gpu: found none, allowed: absent, unknown"),
        ("{at: 0, see: {cpu: ▸'5'}}", "see.cpu: found '5', allowed: a number"),
        ("{at: 0, see: {cpu: ▸true}}", "see.cpu: found true"),
        ("{at: 0, see: {host: ▸unfit}}", "see.host: found unfit, allowed: fit, {unfit: reason}"),
        ("{at: 0, see: {task: ▸waiting}}", "see.task: found waiting, allowed: none, asked"),
        ("{at: 0, see: {link: ▸gone}}", "see.link: found gone, allowed: up, down, lost"),
        ("▸3", "step 1: found 3, allowed: a mapping with at"),
    ],
)  # fmt: skip
def test_errors_of_a_step(step: str, said: str) -> None:
    """▸ marks the place that the error must name."""
    column = 5 + step.index("▸")
    found = problems(f"replay: 1\nsteps:\n  - {step.replace('▸', '')}\n  - {{at: 999999, expect: {{state: READY}}}}\n")
    assert len(found) == 1, found
    assert found[0].startswith(f"s.yaml:3:{column}: ")
    assert said in found[0]


def test_time_does_not_go_back() -> None:
    found = problems("replay: 1\nsteps:\n  - {at: 10, expect: {state: DISABLED}}\n  - {at: 9, expect: {state: DISABLED}}\n")
    assert found == ["s.yaml:4:10: step 2: at: found 9, which is before the step above, allowed: the same time or a later one"]


def test_every_error_is_told_at_once_in_the_order_of_the_file() -> None:
    found = problems("replay: 3\nsettings: {work.run_minutes: -1}\nsteps:\n  - {at: x, see: {cpu: y}, expect: {state: z}}\n")
    assert [line.split(": ")[0] for line in found] == ["s.yaml:1:9", "s.yaml:2:30", "s.yaml:4:10", "s.yaml:4:24", "s.yaml:4:44"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("safety.max_gpu_percent: 140", "s.yaml:2:36: safety.max_gpu_percent: found 140, allowed: a number > 0 and ≤ 100"),
        ("safety.max_gpu_percent: '90'", "s.yaml:2:36: safety.max_gpu_percent: found '90'"),
        ("safety.max_gpu_percent: true", "s.yaml:2:36: safety.max_gpu_percent: found true"),
        ("safety.detect_active_user: off", "s.yaml:2:39: safety.detect_active_user: found off, allowed: true or false"),
        ("safety.patience: 3", "s.yaml:2:12: safety.patience: found an unknown field"),
        ("patience: 3", "s.yaml:2:12: settings: found patience, allowed: the dotted name of a setting"),
        ("safety: {max_gpu_percent: 3}", "s.yaml:2:12: settings: found safety, allowed: the dotted name of a setting"),
        ("gpu.presence: maybe", "s.yaml:2:26: gpu.presence: found maybe"),
        ("host.inhibitor: maybe", "s.yaml:2:28: host.inhibitor: found maybe"),
        ("work.run_minutes: 1, work.run_minutes: 2", "s.yaml:2:33: settings.work.run_minutes: found it a second time"),
        ("work.run_minutes.x: 1", "s.yaml:2:12: work.run_minutes: found a mapping"),
    ],
)
def test_settings_are_judged_as_in_their_files(settings: str, said: str) -> None:
    found = problems(f"replay: 1\nsettings: {{{settings}}}\nsteps:\n{READY}")
    assert len(found) == 1, found
    assert found[0].startswith(said)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ("", {}),
        ("safety.idle_required_minutes: 0.5", {"idle_required_s": 30.0}),
        ("safety.cooldown_minutes: 0", {"cooldown_s": 0.0}),
        ("safety.max_cpu_percent: 50.5", {"max_cpu_percent": 50.5}),
        ("execution.task_timeout_minutes: 1", {"task_timeout_s": 60.0}),
        ("work.run_minutes: 0", {"run_s": 0.0}),
        ("gpu.presence: optional", {"gpu_required": False}),
        ("gpu.presence: required", {}),
        ("safety.detect_active_user: false", {"detect_active_user": False}),
        ("execution.poll_interval_sec: 5, logs.keep_days: 3, node.id: anna, work.hours: []", {}),
        ("tasks.render.timeout_minutes: 5", {"task_timeouts_s": {"render": 300.0}}),
    ],
)
def test_settings_reach_the_guards(settings: str, changes: dict[str, object]) -> None:
    assert script(READY, settings).limits == replace(script(READY).limits, **changes)  # type: ignore[arg-type]


def test_everything_else_is_as_shipped() -> None:
    shipped = config.load(Path(__file__).parents[3] / "config").limits
    assert replace(script(READY).limits, task_timeouts_s={}) == replace(shipped, task_timeouts_s={})


# --- what is allowed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("0s", 0.0), ("90s", 90.0), ("10m", 600.0), ("1h30m", 5400.0), ("1h30m10s", 5410.0), ("1h5s", 3605.0),
        ("90", 90.0), ("1.5", 1.5), ("1.5h", 5400.0), ("0.25s", 0.25), ("", None), ("h", None), ("s", None), ("1", 1.0),
        ("1d", None), ("1 h", None), ("1H", None), ("1e3", None), ("٣s", None), ("1s1s", None), ("1m1h", None), ("-1", None),
        ("33.333333333333336", 33.333333333333336), ("1.0e-05", 1e-05), ("1.5e+300", 1.5e300), ("1.0e+999", None),
        ("1_0s", None), ("inf", None), ("nan", None), ("9" * 40 + "s", None),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["on", "true", "On", "'on'", "off", "false", "OFF"])
def test_both_forms_of_on_and_off_are_taken(tmp_path: Path, text: str) -> None:
    state = "IDLE_WAIT" if text.strip("'").lower() in ("on", "true") else "DISABLED"
    step = f"{{at: 0, see: {{automation: {text}}}, expect: {{state: {state}}}}}"
    code, out, err = run(tmp_path, f"replay: 1\nsteps:\n  - {step}\n")
    assert code == 0, out + err


@pytest.mark.parametrize("null", ["null", "~", "", "Null"])
def test_every_null_means_no_row(tmp_path: Path, null: str) -> None:
    code, out, err = run(tmp_path, f"replay: 1\nsteps:\n  - {{at: 0, expect: {{state: DISABLED, row: {null}}}}}\n")
    assert code == 0, out + err


def test_a_step_may_expect_nothing_and_a_script_have_no_title(tmp_path: Path) -> None:
    code, _, _ = run(tmp_path, "replay: 1\nsteps:\n  - {at: 0}\n  - at: 1s\n    expect:\n      state: DISABLED\n")
    assert code == 0


def test_a_step_in_all_its_parts() -> None:
    expect = "{state: DISABLED, effects: [stop!]}"
    step = script(f"  - {{at: 1m, see: {{}}, ticks: 3, stale: [gpu], refuse: [stop, wipe], expect: {expect}}}").steps[0]
    assert (step.number, step.line, step.at_s, step.ticks, step.stale) == (1, 4, 60.0, 3, ("gpu",))
    assert step.refuse == {Effect.STOP, Effect.WIPE}
    assert step.expect is not None
    assert (step.expect.state, step.expect.row, step.expect.effects) == (State.DISABLED, None, ("stop!",))


def test_what_a_step_leaves_out_of_the_gpu_holds() -> None:
    got = script(READY + "  - {at: 1, see: {gpu: {percent: 95}}}\n  - {at: 2, see: {gpu: {percent: 5}}}\n").steps
    assert got[1].see["gpu"] == {"percent": 95.0, "vram_gb": 1.0, "foreign": 0.0}
    assert got[2].see["gpu"] == {"percent": 5.0, "vram_gb": 1.0, "foreign": 0.0}


def test_automation_that_runtime_yaml_switches_off_is_off(tmp_path: Path) -> None:
    step = "{at: 0, see: {automation: on}, expect: {state: DISABLED}}"
    assert run(tmp_path, f"replay: 1\nsettings: {{automation.enabled: false}}\nsteps:\n  - {step}\n")[0] == 0


def test_ticks_show_all_effects_and_the_last_row(tmp_path: Path) -> None:
    expect = "{state: READY, row: safe, effects: [hand_back]}"
    step = f"{{at: 0s, see: {{{SAFE}, task: claimed}}, ticks: 2, expect: {expect}}}"
    assert run(tmp_path, f"replay: 1\nsteps:\n  - {step}\n")[0] == 0
