"""The installed service on a real systemd: starts when told, comes back from everything, stops its task whatever happens."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cuda_standin import cuda_library
from support.installed import QUICK, RAE_NODE, UNIT, USER, Installed, boot
from support.nvml_standin import GIB, nvml_library
from support.seed import REPORT
from support.task_programs import RESTLESS
from support.waiting import until

__all__ = ["cuda_library", "nvml_library"]
pytestmark = [pytest.mark.slow, pytest.mark.box]

# Faults of ours, brought about in the living process: on a signal the next tick fails.
FAULTS = """
import signal
def fail(name, make):
    def handler(*_):
        import supervisor.daemon.loop as daemon
        def broken(self, *_):
            raise make(daemon)
        setattr(daemon.Daemon, name, broken)
    return handler
signal.signal(signal.SIGUSR1, fail("_ask", lambda daemon: RuntimeError("injected")))
signal.signal(signal.SIGUSR2, fail("_check_invariants", lambda daemon: daemon.InvariantBroken("injected")))
"""
CAP_SYS_RESOURCE = 1 << 24


@pytest.fixture(scope="module")
def node(wheels: Path, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """One box, freshly installed, for the story that the tests of this file tell in their order."""
    with boot(tmp_path_factory.mktemp("service")) as box:
        yield Installed(box, wheels, nvml_library)


def block_locks(node: Installed) -> list[str]:
    """Who holds block locks, and on what."""
    text = node.box.run("systemd-inhibit", "--list", "--no-legend", "--no-pager").stdout
    return [f"{line.split()[0]} {line.split()[5]}" for line in text.splitlines() if line.split()[-1] == "block"]


def running_task(node: Installed, kind: str = "sleep") -> str:
    """A task in the middle of its work; its id."""
    node.wait_for("READY")
    task = node.add(kind)
    until(lambda: node.task_pids() and node.status_text().startswith("RUNNING:"), "a running task")
    return task


def gone(node: Installed) -> None:
    """Nothing of a task is left: no process, no cgroup, no file, no core."""
    until(lambda: not node.task_pids(), "the task's processes gone")
    traces = "find /sys/fs/cgroup/rae.slice -name 'rae-task*' 2>/dev/null; ls -A /opt/rae-node/workdir"
    until(lambda: node.box.sh(f"{traces} || true") == "", "its cgroup and its files gone")
    assert [path for path in node.box.changes("/") if re.fullmatch(r"core(\.\d+)?", Path(path).name)] == []


def settled(node: Installed, task: str) -> dict[str, Any]:
    """The control node knows how the task ended."""
    until(lambda: node.task(task)["status"] in ("FAILED", "COMPLETED"), lambda: str(node.task(task)), 30)
    return node.task(task)


def test_installed_and_ready_but_not_started(node: Installed, site: Path) -> None:
    with node.without_pip(site):
        node.install()
    assert node.show("UnitFileState", "ActiveState") == {"UnitFileState": "enabled", "ActiveState": "inactive"}
    report = node.cli("report")
    assert report.returncode == 1, "it knows no control node and no task type yet"
    assert "\ntask types: node.yaml names no task type; name one below tasks in node.yaml" in report.stdout
    assert "\ncontrol node: http://127.0.0.1:8000 cannot be reached: connection refused; control.url is as" in report.stdout
    assert report.stdout.endswith("\n\nNOT READY\n")
    node.make_ready()
    report = node.cli("report")
    assert report.returncode == 0, report.stdout
    assert (report.stdout, report.stderr) == (REPORT, "")
    assert node.show("ActiveState") == {"ActiveState": "inactive"}, "a report starts nothing (R24)"


def test_systemd_has_nothing_to_say_against_it(node: Installed) -> None:
    done = node.box.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}")
    assert done.stdout + done.stderr == ""
    text = node.box.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    found = re.search(r"exposure level for rae-node.service: ([\d.]+)", text)
    assert found
    assert float(found[1]) <= 2.5


def test_a_report_names_what_fails_and_changes_nothing(node: Installed) -> None:
    box = node.box
    look = "find /opt/rae-node /etc/systemd /etc/polkit-1 /var/lib/rae-node -printf '%p %m %u %s %T@\\n' 2>/dev/null || true"
    before = box.sh(look)
    box.run("systemctl", "disable", UNIT)
    box.sh("mv /etc/polkit-1/rules.d/50-rae-node.rules /var/tmp/")
    node.put("/run/systemd/system/rae-task@.service.d/weak.conf", "[Service]\nDynamicUser=no\nUser=root\n")
    box.run("systemctl", "daemon-reload")
    until(lambda: "polkit refuses the lock" in node.cli("report").stdout, lambda: node.cli("report").stdout)
    report = node.cli("report")
    assert report.returncode == 1
    assert "Auto-start on boot: NO\n" in report.stdout
    assert "enabled: the unit is disabled; run `sudo rae-node enable`\n" in report.stdout
    assert f"sleep lock: polkit refuses the lock org.freedesktop.login1.inhibit-block-sleep to {USER}: run the" in report.stdout
    assert "\ntask units: rae-task@.service: DynamicUser is no, not yes (a task needs a user of its own); see" in report.stdout
    assert report.stdout.endswith("\nNOT READY\n")
    box.sh("rm -r /run/systemd/system/rae-task@.service.d; systemctl daemon-reload")
    box.sh("mv /var/tmp/50-rae-node.rules /etc/polkit-1/rules.d/")
    enabled = node.cli("enable")
    assert (enabled.returncode, enabled.stderr) == (0, "")
    assert node.show("ActiveState") == {"ActiveState": "inactive"}
    until(lambda: node.cli("report").returncode == 0, lambda: node.cli("report").stdout)
    after = box.sh(look)
    changed = {line.split()[0] for line in set(before.splitlines()) ^ set(after.splitlines())}
    wants = "/etc/systemd/system/multi-user.target.wants"
    assert changed <= {"/etc/polkit-1/rules.d", wants, f"{wants}/{UNIT}", "/etc/systemd/system"}


def test_enable_now_is_what_starts_it(node: Installed) -> None:
    refused = node.cli("enable", "--now", user=USER)
    assert refused.returncode == 1
    assert "run it with sudo" in refused.stderr
    assert node.cli("status").returncode == 3
    done = node.cli("enable", "--now")
    assert (done.returncode, done.stderr) == (0, "")
    shown = node.show("ActiveState", "SubState", "UnitFileState", "NRestarts")
    assert shown == {"ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NRestarts": "0"}
    until(lambda: node.status_text().startswith("IDLE_WAIT:"), node.status_text)
    verify = node.cli("verify", "--json")
    told = json.loads(verify.stdout)
    assert (verify.returncode, told["passed"]) == (0, True), verify.stdout
    checks = {check["name"]: check for check in told["checks"]}
    assert {checks[name]["result"] for name in ("no open port", "task units", "task sockets")} == {"passed"}
    assert "of a task 1." in checks["unit files"]["reason"]
    node.box.sh(f"mkdir -p /opt/own; cp /bin/true /opt/own/; chmod 700 /opt/own; chown {USER} /opt/own")
    kept = node.box.sh("cat /opt/rae-node/agent/node.yaml")
    node.put("/opt/rae-node/agent/node.yaml", "tasks: {own: {argv: [/opt/own/true]}, fine: {argv: ['true']}}\n")
    node.box.sh("chmod 666 /run/rae-task.sock")
    report = node.cli("report").stdout
    assert "\ntask sockets: /run/rae-task.sock has mode 0666, not 0600; run `systemctl" in report
    assert "\ntask program: own: a task's user cannot run /opt/own/true; it must be readable by everybody" in report
    assert "task program: fine" not in report
    node.box.sh("chmod 600 /run/rae-task.sock; rm -r /opt/own")
    node.put("/opt/rae-node/agent/node.yaml", kept)


def test_its_sandbox_lets_journald_have_the_fields(node: Installed) -> None:
    text = node.box.run("journalctl", "-u", UNIT, "-o", "json", "RAE_ROW=switched-on").stdout
    line = json.loads(text.splitlines()[-1])
    assert (line["MESSAGE"], line["RAE_TO"]) == ("DISABLED → IDLE_WAIT: switched-on", "IDLE_WAIT")
    logs = node.box.sh("ls /opt/rae-node/logs").split()
    assert [name[:9] for name in logs] == ["decisions", "rae-node-"]


def test_it_runs_as_its_user_isolated_and_locked_in(node: Installed) -> None:
    pid = node.main_pid()
    cmdline = node.box.sh(f"tr '\\0' ' ' < /proc/{pid}/cmdline")
    assert re.fullmatch(r"/opt/rae-node/versions/\S+/bin/python -I -m supervisor.daemon.main --unattended ", cmdline)
    status = dict(line.split(":\t", 1) for line in node.box.sh(f"cat /proc/{pid}/status").splitlines())
    assert status["Uid"].split() == [str(node.uid)] * 4
    assert (int(status["CapEff"], 16), status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == (0, "1", "2")
    limits = node.box.sh(f"grep -E 'core file|nice' /proc/{pid}/limits")
    assert re.search(r"core file size\s+1\s+1 ", limits)
    assert node.show("LimitNICE") == {"LimitNICE": "20"}
    if int(node.box.sh("grep CapEff /proc/1/status").split()[1], 16) & CAP_SYS_RESOURCE:  # systemd may raise limits here
        assert re.search(r"nice priority\s+20\s+20", limits)


def test_what_its_own_user_breaks_is_made_again_and_hangs_nobody(node: Installed) -> None:
    """What a task could do while it had the service's user: the socket, a closed work folder, pipes among the files."""
    box, control = node.box, "/run/rae-node/control.sock"
    fake = f"import os, socket; socket.socket(1).bind('{control}.fake'); os.replace('{control}.fake', '{control}')"
    box.sh("chmod 0 /opt/rae-node/workdir")
    box.run("/opt/rae-node/venv/bin/python", "-c", fake, user=USER)
    until(lambda: any("a socket was in its place" in note for note in node.status().get("notes", [])), node.status_text)
    told = box.run("journalctl", "-u", UNIT, "-o", "cat").stdout
    assert f"the control socket {control} was made again: a socket was in its place" in told
    box.run("mkfifo", "/opt/rae-node/logs/decisions-2026-01-01.jsonl", "/var/lib/rae-node/pause.json", user=USER)
    for command in ("timeline", "whatif", "replay /opt/rae-node/logs"):
        done = node.cli(*command.split())
        assert done.returncode == 2
        assert "decisions-2026-01-01.jsonl" in done.stderr
        assert "it is a pipe, not a plain file" in done.stderr
    box.run("systemctl", "restart", UNIT)
    until(lambda: "pause.json cannot be read: it is a pipe" in node.status_text(), node.status_text)
    assert node.cli("resume").returncode == 0
    node.wait_for("IDLE_WAIT")
    box.sh("rm -f /opt/rae-node/logs/decisions-2026-01-01.jsonl")  # mostly the node has, as it is old
    assert box.sh("stat -c %a /opt/rae-node/workdir").strip() == "700"


def test_other_people_learn_how_the_node_is_and_nothing_of_who_is_here(node: Installed) -> None:
    ours, theirs = (json.loads(node.cli("status", "--json", user=user, check=True).stdout) for user in (USER, "nobody"))
    assert ours["presence"]
    assert (theirs["presence"], theirs["contradictions"], theirs["recent"]) == ([], [], [])
    assert theirs["state"] == ours["state"]
    refused = node.cli("pause", user="nobody")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "only root, the node's user and members of its group" in refused.stderr


def test_a_task_runs_in_the_sandbox_and_leaves_nothing(node: Installed) -> None:
    probe = (
        "cat > /dev/null; touch here; for p in /tmp /var/tmp /dev/shm; do echo x > $p/left; done; "
        "for p in /etc /opt/rae-node /opt/rae-node/agent /home /root; do touch $p/x 2>/dev/null && echo wrote $p; done; "
        "cat /home/*/* 2>/dev/null; : < /dev/null; echo '{\"nice\":' $(nice)', \"secret\": 0}'"
    )
    node.box.sh(f"echo secret > /home/{USER}/diary; chown {USER} /home/{USER}/diary")
    node.configure(node={"tasks": {"probe": {"argv": ["/bin/sh", "-c", probe]}}})
    node.start_control()
    node.drop_in("quick", QUICK)
    node.box.run("systemctl", "restart", UNIT)
    node.wait_for("READY")
    task = settled(node, node.add("probe"))
    assert (task["status"], task["result"]) == ("COMPLETED", {"nice": 19, "secret": 0}), task
    assert node.box.sh("find /tmp/left /var/tmp/left /dev/shm/left 2>/dev/null || true") == ""
    gone(node)


def test_gpu_and_input_devices_can_be_opened_and_disks_cannot(node: Installed) -> None:
    """Stand-ins: a driver that opens without hardware, under the names, groups and modes of the real nodes. A task gets
    the lent GPU's; another GPU's is closed to it, and the keyboard's is the service's alone."""
    names = "nvidia-uvm dri/renderD128 input/event0"
    node.box.sh(
        f"mkdir -p /dev/input /dev/dri; for d in {names}; do mknod -m 660 /dev/$d c 10 229; done; mknod -m 666 /dev/disk b 7 0;"
        "chmod 666 /dev/nvidia-uvm; chgrp input /dev/input/event0; chgrp render /dev/dri/renderD128"
    )
    probe = f"cat > /dev/null; n=; for d in {names}; do (: < /dev/$d) && n=$n+$d; done; (: < /dev/disk) 2>/dev/null && n=disk; "
    argv = ["/bin/bash", "-c", probe + "echo '{\"opened\": \"'$n'\"}'"]
    node.configure(node={"tasks": {"probe": {"argv": argv}}})
    node.put("/etc/systemd/system/rae-task@.service.d/gpu.conf", "[Service]\nDeviceAllow=char-misc rw\n")  # as char-nvidia*
    node.box.run("systemctl", "daemon-reload")
    node.wait_for("READY")
    opened = settled(node, node.add("probe"))["result"]["opened"]
    assert opened == "+nvidia-uvm"
    unit = node.show("SupplementaryGroups", "DevicePolicy", "DeviceAllow")
    again = [f"-p{name}={value}" for name, value in unit.items()]
    node.box.run("systemd-run", "-q", "--wait", f"-pUser={USER}", *again, "sh", "-c", ": < /dev/input/event0")
    node.box.sh("rm -r /dev/nvidia-uvm /dev/input /dev/dri /dev/disk /etc/systemd/system/rae-task@.service.d")
    node.box.run("systemctl", "daemon-reload")
    node.configure()


def test_a_false_alarm_moves_the_vram_of_a_unit_out_and_back(node: Installed, cuda_library: Path) -> None:
    """The driver refuses whoever has not the task's user, so it is called from inside the unit."""
    box = node.box
    played, module = "/srv/cuda", "/srv/module/nvidia"
    (packages,) = box.root.glob("opt/rae-node/versions/*/lib/python3*/site-packages")
    shutil.copytree(cuda_library.parent, box.share / "cuda")
    bindings = importlib.util.find_spec("cuda.bindings")
    assert bindings is not None
    assert bindings.origin is not None
    shutil.copytree(Path(bindings.origin).parents[1], packages / "cuda")
    box.sh(f"cp /mnt/share/cuda/{cuda_library.name} /usr/local/lib/; ldconfig; mkdir -m 777 {played}")
    node.put(f"{module}/version", "580.65.06\n")
    node.drop_in("cuda", "[Service]\nBindReadOnlyPaths=/srv/module:/sys/module\n")
    for unit in ("rae-task", "rae-task-network"):
        text = f"[Service]\nEnvironment=FAKE_CUDA_DIR={played}\nReadWritePaths={played}\n"
        node.put(f"/etc/systemd/system/{unit}@.service.d/cuda.conf", text)
    box.run("systemctl", "daemon-reload")
    argv = ["/usr/bin/python3", "-I", "-S", "-c", RESTLESS]
    work = {"argv": argv, "checkpoint": "cuda", "hold_sec": 59, "grace_sec": 30, "on_preempt": "fail"}
    node.configure(node={"tasks": {"work": work}, "gpu": {"presence": "required"}})
    box.run("systemctl", "restart", UNIT)
    task = running_task(node, "work")
    (pid,) = node.task_pids()
    until(lambda: box.sh(f"cat {played}/calls 2>/dev/null || true") == "init\n", "the driver loaded")
    node.put(f"{played}/{pid}.state", "0\n")
    ours, theirs = f"0.proc={pid}:{GIB // 8}:c", f"0.proc=1:{GIB}:g"
    look = f"cat {played}/{pid}.state"
    node.gpu(ours, theirs)
    until(lambda: " is on hold: " in node.status_text(), node.status_text)
    assert box.sh(look) == "2\n", "its VRAM is out"
    assert box.sh(f"stat -c %u {played}/{pid}.state") == box.sh(f"stat -c %u /proc/{pid}")
    node.gpu(ours)
    until(lambda: box.sh(look) == "0\n", lambda: f"its VRAM back, not {box.sh(look)}")
    box.sh(f"touch /proc/{pid}/cwd/end")
    assert settled(node, task)["status"] == "COMPLETED", node.task(task)
    gone(node)
    node.gpu()
    box.sh(f": > {played}/calls")
    running_task(node, "work")
    until(lambda: box.sh(f"cat {played}/calls") == "init\n", "the driver loaded")
    began_s = time.monotonic()
    box.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began_s < 15, "the helper used up the task's grace"
    gone(node)
    box.sh(f"rm -r /etc/systemd/system/rae-task*@.service.d/cuda.conf /etc/systemd/system/{UNIT}.d/cuda.conf {played} {module}")
    box.run("systemctl", "daemon-reload")
    node.configure()
    box.run("systemctl", "restart", UNIT)


def test_an_alarm_of_the_clock_is_set_for_as_long_as_it_is_wanted(node: Installed) -> None:
    """The kernel shows the timer. One hour of the day is open, and it is another one."""
    hour = (time.localtime().tm_hour + 6) % 24
    window = f"{hour:02}:00-{hour:02}:30"
    node.configure(node={"work": {"run_minutes": 0, "wake": True, "hours": [window]}})

    def timer() -> str:
        pids = node.box.run("pgrep", "-f", "supervisor.linux.wake", check=False).stdout.split()
        return "".join(node.box.sh(f"cat /proc/{pid}/fdinfo/* 2>/dev/null || true") for pid in pids)

    until(lambda: "clockid: 8" in timer(), lambda: f"{timer()} {node.status_text()}", 60)
    left_s = int(re.search(r"it_value: \((\d+),", timer())[1])  # type: ignore[index]
    assert 4 * 3600 < left_s < 7 * 3600
    assert "CapBnd:\t0000000800000000" in node.box.sh("cat /proc/$(pgrep -of supervisor.linux.wake)/status")  # CAP_WAKE_ALARM
    until(lambda: "outside work.hours" in node.status_text(), node.status_text)
    node.configure()
    until(lambda: not timer(), timer, 60)
    assert "not woken" not in node.status_text()


def test_a_hanging_daemon_is_killed_by_the_watchdog(node: Installed) -> None:
    task = running_task(node)
    before = int(node.show("NRestarts")["NRestarts"])
    node.box.run("kill", "-STOP", str(node.main_pid()))
    until(lambda: int(node.show("NRestarts")["NRestarts"]) > before, "the watchdog's bite")
    gone(node)
    assert settled(node, task)["status"] == "FAILED"
    journal = node.box.run("journalctl", "-u", UNIT, "--no-pager").stdout
    assert "Watchdog timeout" in journal
    assert "core-dump" not in journal
    assert block_locks(node) == []


@pytest.mark.parametrize("how", ["KILL", "USR1", "USR2", "SEGV", "ABRT"])
def test_back_after_any_end(node: Installed, how: str) -> None:
    if how.startswith("USR"):
        site = node.box.sh("echo /opt/rae-node/venv/lib/python3*/site-packages").strip()
        node.put(f"{site}/faults.py", FAULTS)
        node.put(f"{site}/faults.pth", "import faults\n")
        node.box.run("systemctl", "restart", UNIT)
    task = running_task(node)
    before, pid = int(node.show("NRestarts")["NRestarts"]), node.main_pid()
    node.box.run("kill", f"-{how}", str(pid))
    until(lambda: int(node.show("NRestarts")["NRestarts"]) > before, "back after RestartSec")
    gone(node)
    assert settled(node, task)["status"] == "FAILED"
    assert block_locks(node) == []
    node.wait_for("READY")
    said = node.box.run("journalctl", "-u", UNIT, "--no-pager", "-n50").stdout
    result = {"USR1": "exit-code", "USR2": "watchdog"}.get(how, "signal")
    assert f"Failed with result '{result}'" in said, said


def test_a_stop_hands_the_task_back_in_order(node: Installed) -> None:
    task = running_task(node)
    (pid,) = node.task_pids()
    classes = [node.box.sh(f"ps -o cls= -p {of}").strip() for of in (pid, f"$(ps -o ppid= -p {pid})")]
    assert classes == ["IDL", "TS"], "the shim must run before its task"
    node.box.run("systemctl", "stop", UNIT)
    gone(node)
    assert node.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert settled(node, task)["error"].startswith("preempted:")
    node.box.run("systemctl", "start", UNIT)


def test_a_stop_waits_for_the_grace_of_a_task_however_short_its_own_time(node: Installed) -> None:
    argv = ["/bin/bash", "-c", "trap '' TERM; touch up; while :; do sleep 0.1; done"]
    node.configure(node={"tasks": {"stubborn": {"argv": argv, "grace_sec": 6, "on_preempt": "fail"}}})
    node.drop_in("hasty", "[Service]\nTimeoutStopSec=4\n")
    running_task(node, "stubborn")
    until(lambda: node.box.sh("ls /var/tmp/systemd-private-*/tmp/task/up || true"), "a task that ignores SIGTERM")
    began_s = time.monotonic()
    node.box.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began_s > 5.9
    assert node.show("Result") == {"Result": "success"}, "EXTEND_TIMEOUT_USEC was heard"
    gone(node)
    node.box.run("rm", f"/etc/systemd/system/{UNIT}.d/hasty.conf")
    node.box.run("systemctl", "daemon-reload")
    node.configure()
    node.box.run("systemctl", "start", UNIT)


def test_locked_against_sleep_while_a_task_runs_and_only_then(node: Installed) -> None:
    box = node.box
    power = box.root / "sys/power/state"
    power.write_text("freeze mem")
    box.add_user("berta")
    running_task(node)
    assert sorted(block_locks(node)) == ["rae-node idle", "rae-node sleep"]
    call = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]
    assert box.run("systemctl", "suspend", user="berta", check=False).returncode
    refused = box.run("systemctl", "--check-inhibitors=yes", "suspend", user="berta", check=False)
    assert "Operation inhibited by" in refused.stderr
    assert "runs task" in refused.stderr, "with our reason"
    assert power.read_text().strip() == "freeze mem"
    began_s = time.monotonic()
    box.run("busctl", "call", *call, "Suspend", "b", "false", check=False)  # root's own is not fought: going-down
    until(lambda: not node.task_pids(), "the task gone inside the delay")
    until(lambda: not block_locks(node), "our block locks gone")
    until(lambda: power.read_text().strip() != "freeze mem", "the machine asleep")
    assert time.monotonic() - began_s < 9, "it waited for our delay lock to time out"
    power.write_text("freeze mem")


def test_without_units_for_tasks_it_takes_none_and_says_so(node: Installed) -> None:
    node.box.run("systemctl", "stop", UNIT, "rae-task.socket")
    unit = "/etc/systemd/system/rae-task.socket"
    node.box.sh(f"mv {unit} /var/tmp/; systemctl daemon-reload; systemctl start {UNIT}")
    task = node.add("sleep")
    until(lambda: "no task can start: /run/rae-task.sock is missing" in node.status_text(), node.status_text)
    assert node.task(task)["status"] == "PENDING"
    node.box.sh(f"mv /var/tmp/rae-task.socket {unit}; systemctl daemon-reload; systemctl start rae-task.socket")
    node.box.run("systemctl", "reload", UNIT)
    until(lambda: node.task_pids(), "it finds the socket, and works")
    node.box.run("systemctl", "restart", UNIT)
    node.wait_for("READY")


def test_a_reboot_brings_back_what_was_and_nothing_more(node: Installed) -> None:
    box = node.box
    box.run("systemctl", "add-wants", "sdbox.target", "multi-user.target")

    def reboot() -> None:
        box.reboot()
        until(lambda: node.show("ActiveState")["ActiveState"] == "active", "the service up by itself")

    box.run("sh", "-c", "cd /opt/rae-node/workdir; echo x > mine; mkdir task-0; echo x > task-0/left", user=USER)
    reboot()
    until(lambda: "task-" not in box.sh("ls /opt/rae-node/workdir"), "what a power cut left")
    assert box.sh("ls /opt/rae-node/workdir") == "mine\n", "and only that"
    node.wait_for("READY")

    node.configure(runtime={"automation": {"enabled": False}})
    reboot()
    off = "DISABLED: automation.enabled is false in runtime.yaml"
    until(lambda: node.status_text() == off, node.status_text)
    node.start_control()  # a transient unit: the reboot took it
    task = node.add("sleep")
    assert node.cli("status").returncode == 0
    assert (node.status_text(), node.task(task)["status"]) == (off, "PENDING"), "it stays so, and asks for no task"

    node.put("/opt/rae-node/agent/runtime.yaml", "automation: {enabled: true")
    reboot()
    until(lambda: "runtime.yaml:" in node.status_text(), node.status_text)
    shown = box.run("systemctl", "status", UNIT, "--no-pager", check=False).stdout
    assert "active (running)" in shown
    assert re.search(r'Status: "DISABLED: runtime.yaml:\d+:\d+: ', shown), shown
    assert node.cli("report").returncode == 1
    node.configure()
    node.wait_for("READY")  # by itself


def test_a_key_from_the_credential_store(node: Installed) -> None:
    node.configure(node={"control": {"token": {"credential": "rae-node-token"}}})
    node.box.run("systemctl", "restart", UNIT)
    missing = "systemd gave no such credential"  # the service runs, and says so
    until(lambda: missing in json.dumps(node.status()), lambda: f"{missing}: {node.status_text()}")
    node.box.sh("mkdir -p /etc/credstore; (umask 077; echo s3cret > /etc/credstore/rae-node-token)")
    read = ["sh", "-c", 'cat "$CREDENTIALS_DIRECTORY/rae-node-token"']
    probe = ["systemd-run", "-q", "--pipe", "--wait", "-pLoadCredential=rae-node-token", "-pUser=daemon", *read]
    if node.box.run(*probe, check=False).returncode:
        node.configure()
        pytest.skip("no unit of an ordinary user can read a credential here: this kernel's tmpfs keeps no ACLs")
    node.box.run("systemctl", "restart", UNIT)
    until(lambda: missing not in json.dumps(node.status()), node.status_text)
    checks = {check["name"]: check for check in json.loads(node.cli("doctor", "--json").stdout)}
    assert checks["control node's key"]["result"] == "passed"
    assert "s3cret" not in node.box.run("journalctl", "--no-pager").stdout
    node.configure()


def test_disable_stops_it_for_good(node: Installed) -> None:
    done = node.box.run(RAE_NODE, "disable")
    assert done.stdout == "rae-node is stopped and disabled\n"
    assert node.show("ActiveState", "UnitFileState") == {"ActiveState": "inactive", "UnitFileState": "disabled"}
    assert node.box.sh("ls -A /run/rae-node 2>/dev/null || true") == ""
