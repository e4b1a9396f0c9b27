"""`init`, `log`, `bugreport`, `config show`: what they write and show, and that no secret is in it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from support.running import RAE_NODE, SERVICE, NodeFolder, daemon

from supervisor.cli.init import init
from supervisor.cli.log import log
from supervisor.cli.pause import end_of
from supervisor.config.load import load
from supervisor.tools.redact import HIDDEN, scrub, secrets_of, shown

SECRET = "sentinel-4711-secret"


def cli(*words: str, text: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RAE_NODE, *words], input=text, capture_output=True, text=True, timeout=60, cwd="/", env={**os.environ, **env}
    )


def test_init_writes_ten_lines_that_work(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    words = ("init", "--url", "https://control.example.org", "--gpu", "optional", "--key-file", "-")
    done = cli(*words, "--task", "count: /usr/bin/wc -w", "--config", str(folder), text=f"{SECRET}\n")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert SECRET not in done.stdout
    node = (folder / "node.yaml").read_text()
    assert len(node.splitlines()) <= 14
    key = folder / "control-node.key"
    assert (key.read_text(), stat.S_IMODE(key.stat().st_mode)) == (f"{SECRET}\n", 0o600)
    config = load(folder)
    assert config.control.token.file == str(key)
    assert config.node.tasks["count"].argv == ["/usr/bin/wc", "-w"]
    again = cli(*words, "--task", "a: /bin/true", "--config", str(folder))
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    assert (folder / "node.yaml").read_text() == node
    assert cli(*words, "--task", "a: /bin/true", "--force", "--config", str(folder)).returncode == 0


def test_an_installed_nodes_key_becomes_its_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, folder, place = tmp_path / "given", tmp_path / "agent", tmp_path / "credstore/rae-node-token"
    given.write_text(f"{SECRET}\n")
    monkeypatch.setattr("supervisor.config.load.INSTALLED", folder)
    monkeypatch.setattr("supervisor.cli.init.CREDENTIAL", place)
    init("https://control.example.org", given, "none", "count: /usr/bin/wc -w", config=folder)
    assert (place.read_text(), stat.S_IMODE(place.stat().st_mode)) == (f"{SECRET}\n", 0o600)
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert load(folder).control.token.credential == place.name
    assert sorted(path.name for path in folder.iterdir()) == ["node.yaml", "runtime.yaml"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--task", "nothing"), "allowed: a name, a colon and a command"),
        (("--task", 'a: "b'), "No closing quotation"),
        (("--task", "a: /bin/true", "--gpu", "maybe"), "gpu.presence"),
        ((), "give it as an option"),
    ],
)
def test_init_says_what_is_wrong(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    gpu = () if "--gpu" in more else ("--gpu", "none")
    done = cli("init", "--url", "http://127.0.0.1:8000", *gpu, *more, "--config", str(tmp_path))
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def everywhere(folder: NodeFolder) -> None:
    """The key in each wrong place."""
    folder.environment["RAE_TEST_KEY"] = SECRET
    folder.write(node={
        "control": {"token": {"env": "RAE_TEST_KEY"}},
        "tasks": {"t": {
            "argv": ["/bin/cat", "--api-key", SECRET, f"--token={SECRET}", "-H", f"Authorization: Bearer {SECRET}"],
            "env": {"API_KEY": SECRET, "PLAIN": SECRET},
        }},
    })  # fmt: skip


def test_no_secret_leaves_the_machine(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n")
    everywhere(folder)
    with daemon(folder) as node:
        node.wait_up()
        out = tmp_path / "report.tar.gz"
        done = folder.cli("bugreport", str(out), timeout_s=120)
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        with tarfile.open(out) as tar:
            parts = {name: tar.extractfile(name).read().decode() for name in tar.getnames()}  # type: ignore[union-attr]
        assert {name.rpartition("/")[2] for name in parts} >= {"doctor.txt", "machine.txt", "settings.json", "status.json"}
        assert any("decisions-" in name for name in parts)
        texts = [*parts.values(), done.stdout, done.stderr, node.said]
        for words in (("config", "show"), ("config", "show", "--all", "--json"), ("status", "--json"), ("why",), ("log",),
                      ("doctor",), ("config", "check")):
            said = folder.cli(*words, timeout_s=120)
            texts += [said.stdout, said.stderr]
        again = folder.cli("bugreport", str(out))
        assert (again.returncode, "is there already" in again.stderr) == (1, True)
    texts += [path.read_text() for path in (folder.path / "logs").iterdir()]
    assert [text for text in texts if SECRET in text] == []
    assert json.loads(parts["rae-node/settings.json"])["node.yaml"]["tasks"]["t"]["env"] == {"API_KEY": HIDDEN, "PLAIN": HIDDEN}


@pytest.mark.parametrize(
    ("node", "runtime"),
    [
        ({"control": {"token": SECRET}}, {}),
        ({"control": {"token": {"file": SECRET}}}, {}),
        ({"control": {"url": f"http://op:{SECRET}@127.0.0.1:1"}}, {}),
        ({"control": {"source": SECRET}, SECRET: 1, "tasks": {"t": {"argv": f"curl -H {SECRET}"}}}, {}),
        ({}, {"automation": {"enabled": SECRET, SECRET: 1}}),
    ],
)
def test_a_key_in_a_wrong_place_is_in_no_report(tmp_path: Path, node: dict[str, Any], runtime: dict[str, Any]) -> None:
    folder = NodeFolder.make(tmp_path / "n", node=node, runtime=runtime)
    out = tmp_path / "report.tar.gz"
    done = folder.cli("bugreport", str(out), timeout_s=120)
    assert done.returncode == 0, done.stderr
    with tarfile.open(out) as tar:
        text = "".join(tar.extractfile(name).read().decode() for name in tar.getnames())  # type: ignore[union-attr]
    said = [folder.cli(*words) for words in (("config", "check"), ("config", "show", "--all"), ("why",))]
    assert SECRET not in text + "".join(one.stdout + one.stderr for one in (done, *said))
    assert "node.yaml" in text or "runtime.yaml" in text


def test_a_daemon_with_a_broken_file_says_no_key(tmp_path: Path) -> None:
    folder = NodeFolder.make(
        tmp_path / "n", node={"control": {"token": SECRET, "source": SECRET}, SECRET: 1, "tasks": {"t": SECRET}},
        runtime={"safety": {"max_cpu_percent": SECRET}},
    )  # fmt: skip
    out = tmp_path / "report.tar.gz"
    with daemon(folder, argv=SERVICE) as node:
        node.wait_up()
        said = [folder.cli(*words) for words in (("status",), ("status", "--json", "--all"), ("why",), ("log",))]
        said.append(folder.cli("bugreport", str(out), timeout_s=120))
    assert "DISABLED" in said[0].stdout
    with tarfile.open(out) as tar:
        names = tar.getnames()
        texts = [tar.extractfile(name).read().decode() for name in names]  # type: ignore[union-attr]
    assert {"rae-node/status.json", "rae-node/settings.txt"} <= set(names)
    assert any("decisions-" in name for name in names)
    texts += [path.read_text() for path in (folder.path / "logs").iterdir()]
    assert [text for text in (*texts, node.said, *(one.stdout + one.stderr for one in said)) if SECRET in text] == []


@pytest.mark.parametrize(
    "text",
    [f"token={SECRET}", f'"api_key": "{SECRET}"', f"tls://op:{SECRET}@host", f"PASSWORD: {SECRET}", f"x {SECRET} y"],
)
def test_texts_are_scrubbed(text: str) -> None:
    assert SECRET not in scrub(text, {SECRET} if text.startswith("x") else ())


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", node={"work": {"run_minutes": 5}})
    config = load(folder.path)
    assert shown(config, every=False)["node.yaml"]["work"] == {"run_minutes": 5}
    assert shown(config, every=False)["node.yaml"]["tasks"]["echo"] == {"argv": ["/bin/cat"]}
    assert "hours" in shown(config, every=True)["node.yaml"]["work"]
    assert secrets_of(config) == set()


def test_the_log_is_shown_from_a_moment_on_and_followed(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n")
    nothing = folder.cli("log")
    assert (nothing.returncode, "has it ever run?" in nothing.stderr) == (1, True)
    with daemon(folder) as node:
        node.wait_for("READY")
        whole = folder.cli("log").stdout
        assert "IDLE_WAIT → READY: safe" in whole
        assert folder.cli("log", "-n", "1").stdout == whole.splitlines()[-1] + "\n"
        assert folder.cli("log", "--since", "1h").stdout == whole
        later = folder.cli("log", "--since", "2100-01-01T00:00")
        assert (later.returncode, "no line of the log since" in later.stderr) == (1, True)
        follower = [*RAE_NODE, "log", "-f", "-n", "1", "--config", str(folder.path)]
        with subprocess.Popen(follower, stdout=subprocess.PIPE, text=True) as follows:
            try:
                assert follows.stdout
                follows.stdout.readline()
                assert folder.cli("pause").returncode == 0
                assert any("READY → DISABLED" in line for line in follows.stdout)
            finally:
                follows.kill()
    wrong = folder.cli("log", "--since", "whenever")
    assert (wrong.returncode, "--since: found 'whenever'" in wrong.stderr) == (2, True)


JOURNALCTL = """#!/bin/sh
echo "$*" >> "$0.asked"
case "$*" in *--since=*) ;; *) echo "2026-12-01T14:00:00+0000 rae-node[7]: READY" ;; esac
"""


def test_the_log_of_an_installed_service_is_journalds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "journalctl"
    program.write_text(JOURNALCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr("supervisor.config.load.INSTALLED", tmp_path)  # no configuration is read
    log(follow=True, lines=5, config=tmp_path)
    assert capsys.readouterr().out == "2026-12-01T14:00:00+0000 rae-node[7]: READY\n"
    with pytest.raises(typer.Exit) as none:
        log(follow=False, since="1970-01-01T00:00:10+00:00", config=tmp_path)
    assert none.value.exit_code == 1
    asked = Path(f"{program}.asked").read_text().splitlines()
    assert [line.partition("--unit=rae-node.service ")[2] for line in asked] == [
        "--lines=1", "--lines=5 --follow", "--lines=1", "--since=@10",
    ]  # fmt: skip


NOW_S = 1_800_000_000.0  # Friday 15 January 2027, 08:00:00 UTC
PAUSES: dict[str, Any] = {
    "": {"until": None}, "2h": {"for_s": 7200.0}, "1d": {"for_s": 86400.0}, "1d12h": {"for_s": 129600.0},
    "until 18:00": {"until": NOW_S + 10 * 3600}, "18:00": {"until": NOW_S + 10 * 3600}, "7am": {"until": NOW_S + 23 * 3600},
    "until 7am": {"until": NOW_S + 23 * 3600}, "until 9": {"until": NOW_S + 3600}, "12am": {"until": NOW_S + 16 * 3600},
    "12:30pm": {"until": NOW_S + 4.5 * 3600}, "until tomorrow": {"until": NOW_S + 24 * 3600},
    "tomorrow": {"until": NOW_S + 24 * 3600},
}  # fmt: skip


@pytest.mark.parametrize("text", PAUSES)
def test_ends_of_a_pause(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert end_of(text, NOW_S) == PAUSES[text]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["7", "0h", "25:00", "13pm", "until", "until 2h x", "99999d", "tomorrow 7am"])
def test_what_is_no_end_of_a_pause(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        end_of(text, NOW_S)
    assert re.search(r"allowed: a duration such as 2h", capsys.readouterr().err)


def test_many_errors_are_twenty_lines_and_a_number(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "n", node={"host": {f"wrong_{n}": 1 for n in range(30)}})
    said = folder.cli("config", "check").stderr.splitlines()
    assert len(said) == 21
    assert re.fullmatch(r"\.\.\. and \d+ more", said[-1])
