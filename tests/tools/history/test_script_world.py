"""The scripted world and the replay as a whole: random scripts end in an answer or an error in words, never otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples

from states.effects import Effect
from states.guards import GUARDS
from states.lifecycle import Lifecycle
from states.limits import Limits
from states.memory import State
from states.observation import TaskPhase
from states.table import BY_ID
from supervisor.journal.codec import see_of
from supervisor.tools.history.replay import play
from supervisor.tools.history.script import Script, ScriptError, parse
from supervisor.tools.history.script_world import World

SAFE: dict[str, Any] = {
    "automation": "on",
    "user": {"idle": 3600.0},
    "gpu": {"percent": 4.0, "vram_gb": 1.0, "foreign": 0},
    "cpu": 5.0,
    "host": "fit",
}


def tick(lifecycle: Lifecycle, world: World, at_s: float, *refuse: Effect) -> list[str]:
    """One tick; what was done."""
    plan = lifecycle.propose(world.look(at_s))
    outcome = world.perform(plan, refuse)
    lifecycle.commit(plan, outcome)
    return [f"{r.effect}{'' if r.ok else '!'}" for r in outcome.results]


def phase(world: World) -> TaskPhase:
    return world.look(0.0).task.phase


@pytest.fixture
def running() -> tuple[Lifecycle, World]:
    lifecycle, world = Lifecycle(Limits()), World()
    world.lay({**SAFE}, 0.0)
    tick(lifecycle, world, 0.0)
    tick(lifecycle, world, 0.0)
    world.lay({"task": "claimed"}, 0.0)
    assert tick(lifecycle, world, 0.0) == ["inhibit", "start"]
    return lifecycle, world


# --- the task moves by itself


def test_start_makes_the_task_running(running: tuple[Lifecycle, World]) -> None:
    assert phase(running[1]) is TaskPhase.RUNNING


def test_a_stop_with_the_hand_back_owed_leaves_an_ended_task(running: tuple[Lifecycle, World]) -> None:
    lifecycle, world = running
    world.lay({"user": {"idle": 0.0}}, 1.0)
    assert tick(lifecycle, world, 1.0, Effect.HAND_BACK) == ["stop", "hand_back!", "wipe", "release"]
    assert phase(world) is TaskPhase.ENDED
    assert tick(lifecycle, world, 2.0) == ["hand_back"]
    assert phase(world) is TaskPhase.NONE


def test_a_refused_stop_leaves_no_claim_but_a_process(running: tuple[Lifecycle, World]) -> None:
    lifecycle, world = running
    world.lay({"user": {"idle": 0.0}}, 1.0)
    assert tick(lifecycle, world, 1.0, Effect.STOP) == ["stop!", "hand_back", "wipe", "release"]
    assert phase(world) is TaskPhase.NONE
    assert lifecycle.memory.owed == (Effect.STOP,)


def test_task_settled_asks_again_only_once_its_settle_succeeded(running: tuple[Lifecycle, World]) -> None:
    lifecycle, world = running
    world.lay({"task": "ended"}, 1.0)
    assert tick(lifecycle, world, 1.0, Effect.SETTLE) == ["settle!", "wipe"]
    assert phase(world) is TaskPhase.ENDED
    assert tick(lifecycle, world, 2.0) == ["settle"]
    assert phase(world) is TaskPhase.ASKED


def test_leaving_running_cancels_the_question_for_another_task(running: tuple[Lifecycle, World]) -> None:
    lifecycle, world = running
    world.lay({"task": "ended"}, 1.0)
    tick(lifecycle, world, 1.0, Effect.SETTLE)
    world.lay({"host": "going-down"}, 2.0)
    assert tick(lifecycle, world, 2.0)[0] == "settle"
    assert phase(world) is TaskPhase.NONE


def test_a_sign_ages_by_itself_and_a_later_one_replaces_it() -> None:
    world = World()
    world.lay({"user": {"idle": 60.0}}, 100.0)
    assert see_of(world.look(130.0), Limits())["user"] == {"idle": 90.0}
    world.lay({"cpu": 5.0}, 140.0)
    assert see_of(world.look(150.0), Limits())["user"] == {"idle": 110.0}
    world.lay({"user": {"idle": 0.0}}, 200.0)
    assert see_of(world.look(210.0), Limits())["user"] == {"idle": 10.0}
    world.lay({"user": "unknown"}, 220.0)
    assert see_of(world.look(1e6), Limits())["user"] == "unknown"


# --- anything that people may write


JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=4), st.lists(st.integers(), max_size=2), st.just({})
)
NAMES = ("safety.cooldown_minutes", "work.run_minutes", "execution.task_timeout_minutes", "gpu.presence", "host.inhibitor")
CHANGES = ("", " ", "x", "0", "{", "]", ":", "\n", "-", "!", "&", "9m", "null")
YAML_LIKE = st.lists(st.sampled_from(list("{}[]:,-&*!|>'\"%@` \n#?~0as")), max_size=60).map("".join)


def mess(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """Mostly something that is allowed, at times anything."""
    return draw(good if draw(st.integers(0, 150)) else JUNK)


@st.composite
def step(draw: st.DrawFn, at_s: int) -> Any:
    number = st.floats(0, 120).map(lambda x: round(x, 2))
    gpus = st.one_of(
        st.sampled_from(["absent", "unknown"]),
        st.fixed_dictionaries({"percent": number, "vram_gb": number, "foreign": st.integers(0, 2)}),
    )
    see = {
        "automation": st.sampled_from(["on", "on", "on", "off", True, False]),
        "user": st.sampled_from(["active", "unknown", {"idle": "1h"}, {"idle": "10m"}, {"idle": 5}]),
        "gpu": gpus,
        "cpu": st.one_of(number, st.just("unknown")),
        "host": st.sampled_from(["fit", "fit", "going-down", "unknown", {"unfit": "hot"}]),
        "task": st.sampled_from([str(p) for p in TaskPhase]),
        "link": st.sampled_from(["up", "up", "down", "lost"]),
    }
    effects = [str(e) for e in Effect]
    fields: dict[str, Any] = {"at": mess(draw, st.just(at_s))}
    if draw(st.booleans()):
        fields["see"] = {name: mess(draw, how) for name, how in see.items() if draw(st.integers(0, 3)) == 0}
    if draw(st.booleans()):
        fields["refuse"] = mess(draw, st.lists(st.sampled_from(effects), max_size=4))
    if draw(st.integers(0, 4)) == 0:
        fields["stale"] = mess(draw, st.lists(st.sampled_from(["user", "gpu", "cpu", "host"]), max_size=2))
    if draw(st.integers(0, 4)) == 0:
        fields["ticks"] = mess(draw, st.integers(1, 4))
    fields["expect"] = mess(
        draw,
        st.fixed_dictionaries(
            {"state": st.sampled_from([str(s) for s in State])},
            optional={
                "row": st.sampled_from([None, *BY_ID]),
                "effects": st.lists(st.sampled_from([*effects, *(f"{e}!" for e in effects)]), max_size=3),
                "inhibitor": st.sampled_from(["held", "free"]),
                "blocked_by": st.lists(st.sampled_from([g.name for g in GUARDS]), max_size=2),
            },
        ),
    )
    return mess(draw, st.just(fields))


@st.composite
def document(draw: st.DrawFn) -> Any:
    times = sorted(draw(st.lists(st.integers(0, 4000), min_size=1, max_size=12)))
    values = st.sampled_from([1, 5, 30, 1, 5, 30, "none"])
    safe = {**SAFE, "user": {"idle": 3600}}
    first = {"at": 0, "see": safe, "ticks": 2, "expect": {"state": "READY"}}
    return {
        "replay": mess(draw, st.just(1)),
        "title": mess(draw, st.just("A title")),
        "settings": mess(draw, st.dictionaries(st.sampled_from(NAMES), values, max_size=1)),
        "steps": mess(draw, st.just([first, *(draw(step(at_s)) for at_s in times)])),
    }


def check_promises(script: Script) -> None:
    """What holds after every step, whatever the script says."""
    for got in play(script):
        assert got.state in State
        assert got.row == "" or got.row in BY_ID
        if got.state is State.RUNNING:
            assert got.inhibitor == ("held" if script.inhibitor else "free")
        if got.row and got.step.ticks == 1:
            assert got.before in BY_ID[got.row].sources
            assert got.state is BY_ID[got.row].to
        for effect in got.effects:
            assert (effect.removesuffix("!") in got.step.refuse) or not effect.endswith("!")


@settings(max_examples=examples(300, 60), deadline=None)
@given(document())
def test_random_scripts_end_in_an_answer_or_in_errors_with_a_place(content: Any) -> None:
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    try:
        script = parse(text, "s.yaml")
    except ScriptError as error:
        problems = error.problems
    else:
        check_promises(script)
        return
    assert problems
    for problem in problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert "\n" not in str(problem)


@settings(max_examples=examples(200, 60), deadline=None)
@given(st.one_of(st.text(max_size=200), YAML_LIKE))
def test_random_text_is_refused_with_a_place(text: str) -> None:
    with pytest.raises(ScriptError) as error:
        parse(text, "s.yaml")
    assert all(problem.line >= 1 for problem in error.value.problems)


@settings(max_examples=examples(150, 40), deadline=None)
@given(st.data())
def test_a_sound_script_with_any_change_is_answered_or_refused(data: st.DataObject) -> None:
    paths = sorted((Path(__file__).parents[2] / "replays").glob("*.yaml"))
    text = data.draw(st.sampled_from(paths)).read_text()
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start, min(len(text), start + 6)))
    changed = text[:start] + data.draw(st.sampled_from(CHANGES)) + text[end:]
    try:
        script = parse(changed, "s.yaml")
    except ScriptError:
        return
    check_promises(script)
