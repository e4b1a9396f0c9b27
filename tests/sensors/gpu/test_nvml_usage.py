"""What is on the GPU, and whose it is (R9, R10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from states.guards import gpu_free
from states.limits import Limits
from states.memory import Memory
from states.observation import Automation, Observation, Reading
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name, listed
from supervisor.sensors.gpu.nvml_usage import Device, judge
from supervisor.sensors.gpu.ownership import GIB, GpuUse, Known, Process, Whose

SETTINGS = GpuSettings()
NAMES = {
    10: Name("worker", "/opt/task/worker"),
    11: Name("ollama", "/usr/bin/ollama"),
    20: Name("Xorg", "/usr/lib/xorg/Xorg", "/system.slice/gdm.service"),
    21: Name("gnome-shell", "", "/user.slice/user-1000.slice/user@1000.service/session.slice/org.gnome.Shell@wayland.service"),
    30: Name("game", "/home/anna/game", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-game-9.scope"),
    31: Name("python3", ""),
    40: Name("model", "", "/system.slice/ollama.service"),
    41: Name("model", "", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-ollama.scope"),
}


def gib(size: float) -> int:
    return round(size * GIB)


def gpu(*there: Process, percent: int | None = 0, used: float = 0.0, uuid: str = "GPU-a", error: str = "") -> Device:
    return Device(
        uuid=uuid, total=gib(24), used=gib(used), reserved=gib(0.4), percent=percent, processes=there, error=error
    )


def seen(
    *devices: Device,
    own: frozenset[int] = frozenset(),
    lately: frozenset[int] = frozenset(),
    settings: GpuSettings = SETTINGS,
) -> GpuUse:
    names, ago_s = (lambda pid: NAMES.get(pid, Name())), dict.fromkeys(lately, 0.0)
    return judge(devices, Known(settings, names, own, ago_s, display_manager="gdm.service"))


OWN = frozenset({10})
BIG_TASK = Process(10, "c", gib(10))
XORG = Process(20, "g", gib(1))
SHELL = Process(21, "g", gib(0.5))


@pytest.mark.parametrize(
    ("use", "percent", "vram_gb", "names"),
    [
        pytest.param(seen(gpu()), 0, 0, (), id="a quiet GPU is free"),
        pytest.param(
            seen(gpu(Process(40, "c", gib(2)), used=2), settings=GpuSettings(own_units=["ollama.service"])),
            0, 0, (), id="of a unit that is RAE's",
        ),
        pytest.param(
            seen(gpu(Process(41, "c", gib(2)), used=2), settings=GpuSettings(own_units=["ollama.service"])),
            0, 2, ("model (pid 41)",), id="of another unit",
        ),
        pytest.param(seen(gpu(percent=15)), 15, 0, (), id="a little load by nobody listed counts"),
        pytest.param(seen(gpu(used=0.9)), 0, 0.9, (), id="a little memory of nobody listed counts"),
        pytest.param(
            seen(gpu(Process(30, "g", gib(6)), percent=80, used=6)), 80, 6, ("game (pid 30)",), id="a game is type G"
        ),
        pytest.param(seen(gpu(Process(31, "c", gib(2)), used=2)), 0, 2, ("python3 (pid 31)",), id="another's CUDA job"),
        pytest.param(
            seen(gpu(Process(99, "c", gib(2)), Process(30, "g", gib(1)), used=3)), 0, 3, ("game (pid 30)", "pid 99"),
            id="a pid that is nobody, beside somebody",
        ),
        pytest.param(seen(gpu(XORG, SHELL, used=1.5, percent=3)), 3, 1.5, (), id="what draws a desktop, under the cap"),
        pytest.param(
            seen(gpu(XORG, Process(21, "g", gib(1.5)), used=2.5)), 0, 2.5, ("Xorg (pid 20)", "gnome-shell (pid 21)"),
            id="over the cap together",
        ),
        pytest.param(
            seen(gpu(Process(20, "g", None), used=1)), 0, 1, ("Xorg (pid 20)",),
            id="what reports no memory proves nothing",
        ),
        pytest.param(seen(gpu(BIG_TASK, percent=99, used=11), own=OWN), 0, 1, (), id="the task's load is its own"),
        pytest.param(
            seen(gpu(BIG_TASK, Process(30, "g", gib(2)), percent=99, used=13), own=OWN), 99, 3, ("game (pid 30)",),
            id="beside somebody foreign all load counts",
        ),
        pytest.param(
            seen(gpu(Process(10, "c", None), used=10), own=OWN), 0, 10, (), id="own memory that is unknown is not subtracted"
        ),
        pytest.param(seen(gpu(BIG_TASK, used=4), own=OWN), 0, 0, (), id="never below nothing"),
        pytest.param(
            seen(gpu(BIG_TASK, used=10), lately=OWN), 0, 10, ("worker (pid 10)",), id="alive after the task is foreign"
        ),
        pytest.param(
            seen(gpu(Process(77, "c", gib(10)), used=10), lately=frozenset({77})), 0, 10, (),
            id="what the task left behind is memory, not a person",
        ),
        pytest.param(
            seen(gpu(), gpu(Process(30, "g", gib(1)), used=1, uuid="GPU-b")), 0, 1, ("game (pid 30) on GPU-b",),
            id="on one of several",
        ),
        pytest.param(
            seen(gpu(percent=5, used=1), gpu(percent=20, used=0.5, uuid="GPU-b")), 20, 1, (),
            id="the busiest of the lent counts",
        ),
    ],
)
def test_a_look(use: GpuUse, percent: float, vram_gb: float, names: tuple[str, ...]) -> None:
    """What others do on the lent GPUs."""
    assert use.error == ""
    assert use.gpu is not None
    assert (percent, pytest.approx(vram_gb), len(names), names) == (
        use.gpu.percent, use.gpu.vram_gb, use.gpu.foreign, use.gpu.foreign_names,
    )  # fmt: skip


LATE, EARLY = {77: 5.0}, {77: 4.9}
OLLAMA = GpuSettings(own_processes=["ollama"])


@pytest.mark.parametrize(
    ("there", "used", "lately", "unlisted", "left", "held"),
    [
        pytest.param([Process(77, "c", gib(2))], 2, EARLY, {}, "2 GiB by pid 77, which is gone", False, id="just gone"),
        pytest.param([Process(77, "c", gib(2))], 2, LATE, {}, "2 GiB by pid 77, which is gone", True, id="gone for too long"),
        pytest.param([Process(77, "c", None)], 2, LATE, {}, "VRAM by pid 77, which is gone", True, id="nobody knows how much"),
        pytest.param([Process(77, "c", 0)], 2, LATE, {}, "", False, id="a context without memory"),
        pytest.param([], 0, LATE, {"GPU-a": 0.0}, "", False, id="given back"),
        pytest.param([], 3, LATE, {"GPU-a": 1.0}, "2 GiB by no listed process", True, id="a driver that leaks"),
        pytest.param([], 3, {}, {"GPU-a": 1.0}, "2 GiB by no listed process", True, id="a leak of long ago"),
        pytest.param([], 1.2, LATE, {"GPU-a": 1.0}, "", False, id="the driver's bookkeeping"),
        pytest.param([Process(30, "g", gib(2))], 3, LATE, {"GPU-a": 1.0}, "", False, id="somebody else, who is listed"),
        pytest.param(
            [Process(11, "c", gib(8))], 8, {11: 9.0}, {}, "8 GiB by ollama (pid 11)", True, id="a server that does not unload"
        ),
        pytest.param([Process(11, "c", gib(0.4))], 0.4, {11: 9.0}, {}, "", False, id="a server's own small context"),
        pytest.param([Process(11, "c", gib(8))], 8, {}, {}, "", False, id="a server that no recent task has used"),
    ],
)
def test_what_a_task_has_left(
    there: list[Process], used: float, lately: dict[int, float], unlisted: dict[str, float], left: str, held: bool
) -> None:
    """Reported at once; it blocks, with that reason, when it stays longer than VRAM_RELEASE_S."""
    known = Known(OLLAMA, lambda pid: NAMES.get(pid, Name()), lately=lately, unlisted=unlisted)
    use = judge((gpu(*there, used=used),), known)
    assert use.gpu is not None
    assert use.own.left == left
    assert use.gpu.held == (left if held else "")


@pytest.mark.parametrize(
    ("there", "percent", "own"),
    [
        pytest.param([Process(10, "c", gib(10), 40), Process(20, "g", gib(1), 5)], 45, (1, 10.0, 40.0), id="known by process"),
        pytest.param([Process(10, "c", gib(10))], 45, (1, 10.0, 45.0), id="all of it is the task's where that is unknown"),
        pytest.param([Process(10, "c", gib(10), 0)], 95, (1, 10.0, 95.0), id="a driver that only seems to report it"),
        pytest.param([Process(10, "c", gib(10), 900)], 45, (1, 10.0, 45.0), id="an impossible number is unknown"),
        pytest.param([Process(10, "c", gib(10)), Process(30, "g", gib(1))], 45, (1, 10.0, None), id="nobody can part them"),
        pytest.param([Process(30, "g", gib(1))], 45, (0, 0.0, None), id="no context"),
        pytest.param([Process(10, "c", gib(4), 70), Process(12, "c", gib(4), 60)], 99, (2, 8.0, 100.0), id="two of the task"),
    ],
)
def test_what_the_task_itself_does(there: list[Process], percent: int, own: tuple[int, float, float | None]) -> None:
    """Its processes, its VRAM, and how busy it keeps the GPU (R4)."""
    use = seen(gpu(*there, used=12, percent=percent), own=frozenset({10, 12}))
    assert (use.own.processes, use.own.vram_gb, use.own.percent) == own


def test_of_several_gpus_the_worst_is_named() -> None:
    """Each is held to the limits; the reason says which one is over."""
    use = seen(gpu(XORG, percent=5, used=1.5), gpu(percent=15, used=0.5, uuid="GPU-b"))
    assert use.gpu is not None
    assert (use.gpu.percent, use.gpu.busiest, use.gpu.vram_gb, use.gpu.fullest) == (15, "GPU-b", 1.5, "GPU-a")
    found = Observation(0.0, Automation(True), gpu=Reading(use.gpu, "", "NVML", 0.0))
    for limits, reason in (
        (Limits(max_gpu_percent=10), "GPU GPU-b at 15 %, limit 10 % (safety.max_gpu_percent)"),
        (Limits(max_vram_gb=1), "VRAM of GPU-a 1.5 GiB in use by others, limit 1 GiB (safety.max_vram_gb)"),
    ):
        assert gpu_free.explain(found, Memory(), limits).reason == reason


def test_only_the_lent_gpu_is_judged() -> None:
    """A game on GPU a does not keep GPU b from being lent; a fault of a neither."""
    settings = GpuSettings(lend=["GPU-b"])
    busy = gpu(Process(30, "g", gib(6)), percent=99, used=6)
    assert seen(busy, gpu(uuid="GPU-b"), settings=settings).gpu == seen(gpu()).gpu
    assert seen(gpu(error="is lost"), gpu(uuid="GPU-b"), settings=settings).gpu == seen(gpu()).gpu
    assert [row["lent"] for row in seen(busy, gpu(uuid="GPU-b"), settings=settings).rows] == [False, True]


def test_configured_programs_are_own_and_their_load_is_forgiven_only_while_a_task_runs() -> None:
    """`gpu.own_processes` by path or name: an Ollama that computes without a task of ours serves somebody else."""
    settings = GpuSettings(own_processes=["/usr/bin/ollama"])
    device = gpu(Process(11, "c", gib(8)), percent=90, used=8)
    for own, percent in ((frozenset[int](), 90.0), (OWN, 0.0)):
        use = seen(device, own=own, settings=settings)
        assert use.gpu is not None
        assert (percent, 0.0, 0) == (use.gpu.percent, use.gpu.vram_gb, use.gpu.foreign)


@pytest.mark.parametrize(
    ("devices", "lend", "reason"),
    [
        pytest.param((gpu(percent=255),), (), "impossible utilisation (255 %)", id="255 percent"),
        pytest.param((gpu(percent=-1),), (), "impossible utilisation", id="negative percent"),
        pytest.param((gpu(percent=None),), (), "impossible utilisation", id="no percent"),
        pytest.param((gpu(used=25),), (), "impossible memory", id="more used than there is"),
        pytest.param((gpu(used=-1),), (), "impossible memory", id="less than nothing used"),
        pytest.param((gpu(Process(30, "c", -5)),), (), "memory of a process", id="a process with less than nothing"),
        pytest.param((gpu(error="its memory cannot be read: lost"),), (), "cannot be read", id="a device in error"),
        pytest.param((gpu(), gpu(uuid="GPU-b", error="is lost")), (), "GPU-b: is lost", id="one of two in error"),
        pytest.param((gpu(),), ("GPU-z",), "GPU-z (gpu.lend in node.yaml) is not there", id="a lent one that is not there"),
        pytest.param((gpu(uuid="", error="cannot be opened"),), ("GPU-z",), "one cannot be opened", id="a lent one lost"),
        pytest.param((), (), "shows no GPU", id="none at all"),
    ],
)
def test_what_cannot_be_believed_is_unknown(devices: tuple[Device, ...], lend: tuple[str, ...], reason: str) -> None:
    """No value, and the reason (R12)."""
    use = seen(*devices, settings=GpuSettings(lend=list(lend)))
    assert use.gpu is None
    assert reason in use.error


def test_the_note_mentions_memory_without_a_process() -> None:
    """Above half a GiB, without what the driver reserves where it cannot say so."""
    assert seen(gpu(XORG, used=1.4)).note == ""
    assert seen(gpu(XORG, used=1.8)).note == "0.8 GiB of VRAM held by no listed process"
    old_call = Device(uuid="GPU-a", total=gib(24), used=gib(1.0), percent=0)
    assert seen(old_call).note == ""


@pytest.mark.parametrize(
    ("name", "entry", "same"),
    [
        (Name("Xorg", "/usr/lib/xorg/Xorg"), "Xorg", True),
        (Name("Xorg", "/home/anna/game"), "Xorg", False),
        (Name("Xorg", ""), "Xorg", True),
        (Name("Xorg2", ""), "Xorg", False),
        (Name("kwin_wayland", ""), "kwin", False),
        (Name("a-very-long-nam", ""), "a-very-long-name-indeed", True),
        (Name("worker", "/opt/a/worker"), "/opt/a/worker", True),
        (Name("worker", "/tmp/worker"), "/opt/a/worker", False),
        (Name("worker", ""), "/opt/a/worker", False),
        (Name("", ""), "", False),
    ],
)
def test_a_program_is_known_by_its_file_before_its_name(name: Name, entry: str, same: bool) -> None:
    """A process may call itself what it likes; its file counts where it may be read."""
    assert listed(name, [entry]) is same


def test_hostile_names_cannot_write_to_the_terminal() -> None:
    """Control characters and length of a name that somebody else chose."""
    assert str(Name("\x1b[31mgame\n")) == "game"
    assert len(str(Name("x" * 100))) == 32


pids = st.integers(1, 40)
sizes = st.one_of(st.none(), st.integers(0, gib(24)))
contexts = st.builds(Process, pids, st.sampled_from(["c", "g", "cg"]), sizes)
processes = st.lists(contexts, max_size=6, unique_by=lambda p: p.pid)


@given(processes, st.integers(-5, 260), st.integers(-1, gib(25)), st.frozensets(pids), st.frozensets(pids))
def test_a_judgement_is_in_bounds_or_none(
    there: list[Process], percent: int, used: int, own: frozenset[int], lately: frozenset[int]
) -> None:
    """Either a value in its bounds or an error; every process that is neither ours nor harmless is counted."""
    device = Device(uuid="GPU-a", total=gib(24), used=used, reserved=0, percent=percent, processes=tuple(there))
    use = seen(device, own=own, lately=lately)
    if use.gpu is None:
        assert use.error
        return
    assert 0 <= use.gpu.percent <= 100
    assert 0 <= use.gpu.vram_gb <= 24
    foreign = [p for p in use.rows[0]["processes"] if p["whose"] == Whose.FOREIGN]
    assert use.gpu.foreign == len(foreign) == len(use.gpu.foreign_names)
    assert not {p["pid"] for p in foreign} & own
    unknown = {p.pid for p in there if p.pid not in NAMES} - own - lately
    assert unknown <= {p["pid"] for p in foreign}


@pytest.mark.parametrize(
    ("xids", "error"),
    [((), ""), ((31, 45), ""), ((48, 45), "GPU-a: the driver reported Xid 48 (memory error that cannot be corrected)")],
)
def test_a_fault_of_the_gpu_itself_counts_whatever_came_after_it(xids: tuple[int, ...], error: str) -> None:
    faulty = structs.replace(gpu(), xids=xids)
    assert seen(faulty).error.startswith(error)
    assert bool(seen(faulty).error) == bool(error)


APP = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x-1.scope"
SESSION = "/user.slice/user-1000.slice/user@1000.service/session.slice/x.service"
SCOPE = "/user.slice/user-1000.slice/session-2.scope"
GREETER = "/user.slice/user-118.slice/session-c1.scope"
DAY, MINUTE = 86400.0, 60.0


def drawing(cgroup: str, kind: str = "g", gb: float = 0.05, age: float = DAY, load: int | None = 0, all_load: int = 0) -> Whose:
    """Whose a process is that is alone on the GPU."""
    there = Process(50, kind, gib(gb), load)
    known = Known(
        SETTINGS, lambda _: Name("any", "/usr/bin/any", cgroup), age_s=lambda _: age, display_manager="sddm.service"
    )
    (row,) = judge([gpu(there, used=gb, percent=all_load)], known).rows[0]["processes"]
    return Whose(row["whose"])


@pytest.mark.parametrize(
    ("found", "whose"),
    [
        pytest.param(drawing(SESSION, age=1), Whose.DESKTOP, id="a part of the desktop that has just started"),
        pytest.param(drawing(SESSION, "cg", age=1), Whose.DESKTOP, id="one that draws by Vulkan"),
        pytest.param(drawing(SESSION, "c"), Whose.FOREIGN, id="what computes is no desktop, wherever it is"),
        pytest.param(drawing(SESSION, gb=2.5), Whose.FOREIGN, id="too much for a desktop"),
        pytest.param(drawing(GREETER, age=1), Whose.DESKTOP, id="a login screen"),
        pytest.param(drawing("/system.slice/sddm.service", age=1), Whose.DESKTOP, id="its X server"),
        pytest.param(drawing("/system.slice/other.service", age=1), Whose.FOREIGN, id="another service"),
        pytest.param(drawing("/system.slice/docker-0123.scope", age=1), Whose.FOREIGN, id="a container"),
        pytest.param(drawing("/user.slice/user-0.slice/session-3.scope", age=1), Whose.FOREIGN, id="root is somebody"),
        pytest.param(drawing(SCOPE), Whose.DESKTOP, id="a compositor or a panel without a unit of its own"),
        pytest.param(drawing(SCOPE, age=MINUTE), Whose.FOREIGN, id="a game that has just started from it"),
        pytest.param(drawing(APP), Whose.DESKTOP, id="a browser that was left open"),
        pytest.param(drawing(APP, age=1), Whose.FOREIGN, id="a program of the person that has just started"),
        pytest.param(drawing(APP, gb=0.8), Whose.FOREIGN, id="one that holds more"),
        pytest.param(drawing(APP, load=40, all_load=40), Whose.FOREIGN, id="one that draws all the time"),
        pytest.param(drawing(APP, load=None, all_load=60), Whose.FOREIGN, id="one of those that keep it busy"),
        pytest.param(drawing(APP, load=None, all_load=10), Whose.DESKTOP, id="load that a desktop makes"),
        pytest.param(drawing(APP, "c"), Whose.FOREIGN, id="a CUDA program that waits"),
        pytest.param(drawing(""), Whose.DESKTOP, id="without control groups, by its age"),
        pytest.param(drawing("", age=0), Whose.FOREIGN, id="nor its age"),
    ],
)
def test_what_draws_a_desktop_is_known_by_what_it_is(found: Whose, whose: Whose) -> None:
    """By its unit, or else by its age, its memory and its load; never by its name (R10)."""
    assert found is whose


@pytest.mark.parametrize(
    "programs",
    [
        ["gnome-shell", "Xwayland", "mutter-x11-frames"],
        ["cosmic-comp", "Xwayland", "cosmic-panel", "cosmic-app-library", "cosmic-workspaces", "xdg-desktop-portal-cosmic"],
        ["Xorg", "sddm-greeter"],
        ["anything", "that", "will", "be", "written", "later"],
    ],
)
def test_a_desktop_that_nobody_touches_leaves_the_gpu_free(programs: list[str]) -> None:
    """Else a node on such a desktop could never begin."""
    names = {pid: Name(program[:15], f"/usr/bin/{program}", SCOPE) for pid, program in enumerate(programs, 100)}
    there = [Process(pid, "g", gib(0.05), 0) for pid in names]
    use = judge([gpu(*there, used=0.06 * len(names))], Known(SETTINGS, names.__getitem__))
    assert use.gpu is not None
    assert use.gpu.foreign == 0


def test_a_task_that_keeps_the_gpu_busy_is_not_held_against_a_desktop() -> None:
    """Where the driver does not divide the load; nor the load that it reports a moment after the task."""
    browser = Process(50, "g", gib(0.1))
    for own, on_gpu_s in ((OWN, 0.0), (frozenset[int](), 1.0)):
        there = (BIG_TASK, browser) if own else (browser,)
        known = Known(SETTINGS, lambda pid: NAMES.get(pid, Name("firefox", "", APP)), own, on_gpu_s=on_gpu_s)
        use = judge([gpu(*there, used=10.5 if own else 0.5, percent=99)], known)
        assert use.gpu is not None
        assert use.gpu.foreign == 0


@pytest.mark.parametrize(
    ("use", "error"),
    [
        pytest.param(seen(gpu(percent=60)), "60 % load on GPU-a, by no listed process: ", id="load"),
        pytest.param(seen(gpu(used=8)), "8 GiB of VRAM on GPU-a, by no listed process: ", id="memory"),
        pytest.param(seen(gpu(used=8, percent=60)), "8 GiB of VRAM and 60 % load on GPU-a, by no listed process: ", id="both"),
        pytest.param(seen(gpu(XORG, used=3, percent=60)), "2 GiB of VRAM on GPU-a, by no", id="the load can be the desktop's"),
        pytest.param(seen(gpu(), gpu(uuid="GPU-b", used=2)), "2 GiB of VRAM on GPU-b, by no", id="each of several"),
        pytest.param(seen(gpu(percent=60), own=OWN), "60 % load on GPU-a, by no", id="a task without a context is no excuse"),
        pytest.param(seen(gpu(BIG_TASK, used=13, percent=99), own=OWN), "", id="beside the task it can be the task's"),
        pytest.param(seen(gpu(used=1, percent=20)), "", id="what a driver keeps for itself"),
    ],
)
def test_what_belongs_to_nobody_makes_the_gpu_unknown(use: GpuUse, error: str) -> None:
    """A driver's list leaves out other containers, for example; the reason says what would help (R12)."""
    assert use.error.startswith(error)
    assert bool(use.error) is bool(error) is (use.gpu is None)
    assert bool(error) is ("sudo fuser -v /dev/nvidia*" in use.error)


def test_a_pid_without_an_entry_in_proc_makes_the_gpu_unknown() -> None:
    """In another container, or hidden: whether it is a person's cannot be said."""
    use = seen(gpu(XORG, *(Process(pid, "c", gib(0.1)) for pid in (96, 97, 98, 99)), used=1.5))
    assert use.gpu is None
    assert use.error.startswith("pid 96, 97, 98, … has the GPU open and cannot be looked into: ")


def test_the_load_of_a_task_that_has_just_ended_is_nobodys_for_a_moment() -> None:
    """The driver reports it a moment longer, also between two programs of a task that goes on."""
    none = frozenset[int]()
    for ago_s, own, percent in ((1.0, OWN, 0.0), (1.0, none, 99.0), (4.0, OWN, None), (4.0, none, None)):
        use = judge([gpu(percent=99)], Known(SETTINGS, NAMES.__getitem__, own, on_gpu_s=ago_s))
        assert (use.gpu.percent if use.gpu else None) == percent


def test_a_gpu_without_memory_of_its_own_is_judged_by_what_it_has() -> None:
    """The host's guard judges the system's memory (R12: each reading by itself)."""
    unified = structs.replace(gpu(BIG_TASK, Process(30, "g", gib(2)), percent=70), total=None, reserved=None)
    use = seen(unified, own=OWN)
    assert use.gpu is not None
    assert (use.gpu.vram_gb, use.gpu.foreign, use.own.vram_gb) == (2.0, 1, 10.0)
    assert use.note == "no VRAM of its own: the system's memory counts"
    assert seen(structs.replace(gpu(percent=50), total=None)).error.startswith("50 % load")


def test_a_task_on_a_gpu_that_is_not_lent_is_a_stray() -> None:
    settings = GpuSettings(lend=["GPU-b"])
    there, lent = gpu(BIG_TASK, percent=99, used=10), gpu(uuid="GPU-b")
    assert seen(there, lent, own=OWN, settings=settings).own.stray == "GPU GPU-a, which is not lent (gpu.lend)"
    assert seen(there, lent, settings=settings).own.stray == ""
    assert seen(there, lent, own=OWN).own.stray == ""


@given(processes, st.integers(0, 100), st.integers(0, gib(24)), st.frozensets(pids))
def test_a_gpu_that_is_free_is_accounted_for(there: list[Process], percent: int, used: int, own: frozenset[int]) -> None:
    """Whatever else is there: no process is foreign, and what belongs to nobody is no more than a driver keeps for itself."""
    device = Device(uuid="GPU-a", total=gib(24), used=used, reserved=0, percent=percent, processes=tuple(there))
    use = seen(device, own=own)
    if use.gpu is None or use.gpu.foreign:
        return
    whose = {row["pid"]: row["whose"] for row in use.rows[0]["processes"]}
    assert set(whose.values()) <= {Whose.OWN, Whose.DESKTOP}
    assert there or percent <= 20
    if not own & whose.keys():
        assert used <= gib(1) + sum(p.used or 0 for p in there)
    assert sum(p.used or 0 for p in there if whose[p.pid] is Whose.DESKTOP) <= gib(2)
    assert all(p.kind != "c" for p in there if whose[p.pid] is Whose.DESKTOP)
