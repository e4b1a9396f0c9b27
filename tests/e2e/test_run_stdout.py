"""Whatever is behind stdout, a command's exit code is its answer's, and nobody sees a traceback (interface §4)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.running import RAE_NODE, ROOT, NodeFolder, daemon

pytestmark = pytest.mark.slow

UNEXPECTED = "replay: 1\nsteps: [{at: 0s, expect: {state: READY}}]\n"
# What it answers, and whether that is a yes.
ANSWERS = {
    "config check": 0,
    "config check --json": 0,
    "config schema node": 0,
    "dry-run": 0,
    "diagram --format svg": 0,
    "diagram --format png": 0,
    "replay {root}/tests/replays": 0,
    "replay {folder}/unexpected.yaml": 1,
    "check-gpu": 0,
    "doctor": 1,
    "--help": 0,
}
# Python speaks the locale's encoding only when it is told not to know better.
LOCALES = {
    "ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "nothing set": {"LC_ALL": None, "LANG": None, "HOME": None, "TERM": None, "PATH": None},
    "a narrow, dumb terminal": {"TERM": "dumb", "COLUMNS": "40", "NO_COLOR": "1"},
}


# The rest takes the same way out; make nightly tries it.
FEW = ("config check", "replay {folder}/unexpected.yaml", "doctor")
MANY = [words if words in FEW else pytest.param(words, marks=pytest.mark.nightly) for words in ANSWERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> NodeFolder:
    place = tmp_path_factory.mktemp("stdout") / "my nöde"
    place.mkdir()
    made = NodeFolder.make(place)
    (place / "unexpected.yaml").write_text(UNEXPECTED)
    return made


def argv(folder: NodeFolder, words: str) -> list[str]:
    where = [] if words.startswith("--") else ["--config", str(folder.path)]
    return [*RAE_NODE, *(w.format(root=ROOT, folder=folder.path) for w in words.split()), *where]


def environment(changes: dict[str, str | None]) -> dict[str, str]:
    left = {name: value for name, value in os.environ.items() if name not in changes}
    return left | {name: value for name, value in changes.items() if value is not None}


def told(words: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    # -I would not look at PYTHONIOENCODING.
    plain = [words[0], *words[2:]] if env else words
    return subprocess.run(plain, capture_output=True, cwd=ROOT if env else "/", timeout=120, env=env, check=False)


@pytest.mark.parametrize(
    ("locale", "words"), [("ascii", words) for words in ANSWERS] + [(locale, "dry-run") for locale in list(LOCALES)[1:]]
)
def test_every_command_answers_in_ascii_and_every_locale_gets_an_answer(folder: NodeFolder, words: str, locale: str) -> None:
    answered(folder, words, locale)


@pytest.mark.nightly
@pytest.mark.parametrize("words", ANSWERS)
@pytest.mark.parametrize("locale", LOCALES)
def test_every_locale_gets_the_answer(folder: NodeFolder, words: str, locale: str) -> None:
    answered(folder, words, locale)


def answered(folder: NodeFolder, words: str, locale: str) -> None:
    done = told(argv(folder, words), environment(LOCALES[locale]))
    assert (done.returncode, b"rror" in done.stderr) == (ANSWERS[words], False), done.stderr
    if locale == "ascii" and "diagram" not in words:
        done.stdout.replace(str(folder.path).encode(), b"").decode("ascii")
    if "svg" in words:
        assert "→" in done.stdout.decode()
    if "--json" in words:
        json.loads(done.stdout)


def test_a_locale_without_our_signs_gets_the_nearest(folder: NodeFolder) -> None:
    done = told(argv(folder, "replay {folder}/unexpected.yaml"), environment(LOCALES["ascii"]))
    assert "my nöde/unexpected.yaml:2: step 1".encode() in done.stdout, "a path is given back byte by byte"
    env = environment(LOCALES["ascii"])
    with daemon(folder) as node:
        node.wait_up()
        shown = told(argv(folder, "status --json"), env)
        assert json.loads(shown.stdout)["notes"] is not None
        for words in ("why", "top", "timeline"):
            shown = told(argv(folder, words), env)
            assert (shown.returncode, shown.stderr) == (0, b""), words
            shown.stdout.decode("ascii")


def test_a_name_that_is_not_utf_8_is_no_trouble(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.yaml"
    with open(odd, "w") as file:
        file.write(UNEXPECTED)
    for words in ((), ("--json",)):
        done = subprocess.run([*RAE_NODE, "replay", odd, *words], capture_output=True, cwd="/", timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1, b"")
        assert words or odd in done.stdout
    assert os.fsdecode(odd) in json.loads(done.stdout)[0].values()


@pytest.mark.parametrize("words", [w for w in MANY if "check-gpu" not in str(w)])
def test_a_reader_who_has_seen_enough_changes_no_answer(folder: NodeFolder, words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(argv(folder, words), stdout=writing, stderr=subprocess.PIPE, cwd="/", timeout=120, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ANSWERS[words], b"")


@pytest.mark.parametrize("words", MANY)
def test_a_full_disk_is_a_failure_in_one_line(folder: NodeFolder, words: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv(folder, words), stdout=full, stderr=subprocess.PIPE, text=True, cwd="/", timeout=120)
    assert done.returncode == 1
    assert done.stderr == "stdout cannot be written: No space left on device; send it to a place that can take it\n"


@pytest.mark.parametrize("words", MANY)
def test_streams_that_are_closed_from_the_beginning_take_nothing(folder: NodeFolder, words: str) -> None:
    closed = ["sh", "-c", '"$@" <&- >&-', "sh", *argv(folder, words)]
    done = subprocess.run(closed, stderr=subprocess.PIPE, cwd="/", timeout=120, check=False)
    assert (done.returncode, b"rror" in done.stderr) == (ANSWERS[words], False), done.stderr
    mute = ["sh", "-c", '"$@" 2>&-', "sh", *argv(folder, words)]
    assert subprocess.run(mute, stdout=subprocess.PIPE, cwd="/", timeout=120, check=False).returncode == ANSWERS[words]


def test_what_has_no_end_ends_with_its_reader(folder: NodeFolder) -> None:
    with daemon(folder) as node:
        node.wait_up()
        reading, writing = os.pipe()
        os.close(reading)
        watch = argv(folder, "status --watch")
        done = subprocess.run(watch, stdout=writing, stderr=subprocess.PIPE, cwd="/", timeout=120, check=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_takes_a_configuration(tmp_path: Path) -> None:
    """`disable` too, although it needs none: a script passes it to all."""
    for command in ("enable", "disable", "report", "verify", "doctor", "submit", "fleet", "bridge"):
        done = subprocess.run([*RAE_NODE, command, "--help"], capture_output=True, text=True, cwd="/", timeout=60, check=False)
        assert (done.returncode, "--config DIR" in done.stdout) == (0, True), command
