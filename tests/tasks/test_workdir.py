"""The work folder against whatever a task may leave in it (R6)."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.trees import NOBODY

from supervisor.tasks.workdir import Workdir

ROOT = os.geteuid() == 0


@pytest.fixture
def work(tmp_path: Path) -> Workdir:
    return Workdir(tmp_path / "deep" / "work")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_fresh_is_private_and_never_the_same(work: Workdir) -> None:
    first, second = work.fresh("id"), work.fresh("../../id")
    assert first != second
    assert {first.parent, second.parent} == {work.root}
    assert [mode(path) for path in (work.root, first, second)] == [0o700] * 3
    assert "id" not in first.name
    assert not list(first.iterdir())


def deep(folder: Path) -> None:
    """Deeper than a path may be long, and than files may be open."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def locked(folder: Path) -> None:
    for number, rights in enumerate((0o000, 0o500, 0o200, 0o100)):
        inner = folder / str(number) / "inner"
        inner.mkdir(parents=True)
        (inner / "file").touch(mode=0o000)
        inner.chmod(rights)
        inner.parent.chmod(rights)
    folder.chmod(0o000)


def odd(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "task-0123").mkdir()
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b"a" * 255):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    subprocess.run(["python3", "-c", "import socket; socket.socket(socket.AF_UNIX).bind('s')"], cwd=folder, check=True)


def many(folder: Path) -> None:
    for number in range(600):
        (folder / f"f{number}").touch()
        if number % 20 == 0:
            (folder / f"d{number}" / "e").mkdir(parents=True)


def nothing(folder: Path) -> None:
    folder.rmdir()


def is_file(folder: Path) -> None:
    folder.rmdir()
    folder.touch()


@pytest.mark.parametrize("mess", [deep, locked, odd, many, nothing, is_file])
def test_wipe_takes_everything(work: Workdir, mess: Callable[[Path], None]) -> None:
    folder, other = work.fresh("a"), work.fresh("b")
    (other / "kept").touch()
    mess(folder)
    work.wipe(folder)
    assert sorted(work.root.iterdir()) == [other]
    assert (other / "kept").exists()
    work.wipe(folder)


def as_plain_user(body: Callable[[Path], None]) -> None:
    """Root's rights hide what a folder of mode 000 means. The body gets a folder of its own."""
    top = Path(tempfile.mkdtemp())
    try:
        os.chown(top, NOBODY, NOBODY)

        def run() -> None:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            body(top)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(60)
        assert process.exitcode == 0
    finally:
        shutil.rmtree(top)


@pytest.mark.skipif(not ROOT, reason="becomes a plain user")
@pytest.mark.parametrize("mess", [deep, locked])
def test_wipe_as_a_plain_user(mess: Callable[[Path], None]) -> None:
    def body(top: Path) -> None:
        work = Workdir(top / "work")
        mess(folder := work.fresh("a"))
        work.wipe(folder)
        assert not list(work.root.iterdir())

    as_plain_user(body)


@pytest.mark.skipif(not ROOT, reason="becomes a plain user")
@pytest.mark.parametrize("rights", [0o000, 0o100, 0o400, 0o577])
def test_a_root_that_somebody_closed_is_opened_again_and_that_is_told(rights: int) -> None:
    def body(top: Path) -> None:
        said: list[str] = []
        work = Workdir(top / "work", said.append)
        folder = work.fresh("a")
        (folder / "left").touch()
        work.root.chmod(rights)
        assert work.wipe_all() == 1
        assert said == [f"the work folder {work.root} had mode {rights:04o}; it has 0700 again"]
        work.root.chmod(rights)
        folder = work.fresh("b")
        assert mode(work.root) == 0o700
        work.root.chmod(rights)
        work.wipe(folder)
        assert not list(work.root.iterdir())
        assert len(said) == 3

    as_plain_user(body)


@pytest.mark.parametrize("then", ["fresh", "wipe_all"])
def test_a_root_that_is_gone_is_made_again_and_that_is_told(tmp_path: Path, then: str) -> None:
    said: list[str] = []
    work = Workdir(tmp_path / "deep/work", said.append)
    folder = work.fresh("a")
    assert said == [], "at the first start there is none"
    (tmp_path / "deep").rename(tmp_path / "elsewhere")
    work.wipe(folder)
    work.fresh("b") if then == "fresh" else work.wipe_all()
    (text,) = said
    assert text.startswith(f"the work folder {work.root} was gone and is made again; ")
    assert mode(work.root) == 0o700
    work.fresh("c")
    assert work.wipe_all() >= 1
    assert len(said) == 1


def test_no_link_leads_out(work: Workdir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "precious").write_text("mine")
    folder = work.fresh("a")
    (folder / "sub").mkdir()
    (folder / "out").symlink_to(outside)
    (folder / "sub" / "out").symlink_to(outside)
    (folder / "hard").hardlink_to(outside / "precious")
    work.wipe(folder)
    link = work.root / "task-link"
    link.symlink_to(outside)
    assert work.wipe_all() == 1
    assert (outside / "precious").read_text() == "mine"
    assert mode(outside) == 0o755
    assert not list(work.root.iterdir())


def test_wipe_only_what_is_ours(work: Workdir, tmp_path: Path) -> None:
    work.fresh("a")
    (work.root / "holiday.jpg").touch()
    for path in (work.root, tmp_path, work.root / "holiday.jpg", work.root / "task-1" / "x", work.root / "task-1" / ".."):
        with pytest.raises(ValueError, match="is not a task's folder in"):
            work.wipe(path)
    assert work.wipe_all() == 1
    assert [path.name for path in work.root.iterdir()] == ["holiday.jpg"]


def test_wipe_all(work: Workdir) -> None:
    assert work.wipe_all() == 0  # there is no root yet
    kept, *others = [work.fresh(str(number)) for number in range(4)]
    for folder in others:
        odd(folder)
    assert work.wipe_all([kept]) == 3
    assert list(work.root.iterdir()) == [kept]
    assert work.wipe_all() == 1
    assert work.wipe_all() == 0


def test_root_is_made_private_or_refused(work: Workdir, tmp_path: Path) -> None:
    work.root.mkdir(parents=True)
    work.root.chmod(0o777)
    work.fresh("a")
    assert mode(work.root) == 0o700
    link = Workdir(tmp_path / "link")
    link.root.symlink_to(work.root)
    with pytest.raises(OSError, match=r"paths\.workdir is a symbolic link; name the folder itself"):
        link.fresh("a")
    file = Workdir(tmp_path / "file")
    file.root.touch()
    with pytest.raises(NotADirectoryError):
        file.fresh("a")
    if ROOT:
        os.chown(work.root, NOBODY, NOBODY)
        with pytest.raises(OSError, match=f"paths.workdir belongs to uid {NOBODY}, the node runs as uid 0") as refused:
            work.fresh("a")
        assert refused.value.errno == errno.EPERM


@pytest.mark.skipif(not ROOT, reason="chattr is root's")
def test_what_would_not_go_is_owed(work: Workdir) -> None:
    """The rest goes all the same, the error says why without the task's names, and the next try is not fooled."""
    folder, other = work.fresh("a"), work.fresh("b")
    (folder / "sub").mkdir()
    (folder / "sub" / "secret-name").touch()
    (folder / "goes").touch()
    stuck = folder / "sub" / "secret-name"
    if subprocess.run(["chattr", "+i", stuck], capture_output=True).returncode != 0:
        pytest.skip("no immutable files on this file system")
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=r"1 entries could not be removed: Operation not permitted \(an imm") as owed:
                work.wipe_all()
            assert "secret-name" not in str(owed.value)
        assert not other.exists()
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 1
    finally:
        subprocess.run(["chattr", "-R", "-i", folder], check=True)
    work.wipe(folder)
    assert not list(work.root.iterdir())


def test_two_may_wipe_at_once(work: Workdir) -> None:
    """The daemon, and the shim that has lost it."""
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        many(folder := work.fresh("a"))
        both = [context.Process(target=work.wipe, args=(folder,)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert not folder.exists()


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
TREES = st.recursive(
    st.sampled_from(["file", "link", "fifo"]), lambda below: st.dictionaries(NAMES, below, max_size=4), max_leaves=20
)


@pytest.fixture
def shared() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


@settings(max_examples=examples(60, 20), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(tree=TREES, rights=st.sampled_from([0o000, 0o500, 0o700]))
def test_any_tree_is_wiped(shared: Path, tree: object, rights: int) -> None:
    def build(path: Path, node: object) -> None:
        if isinstance(node, dict):
            path.mkdir(exist_ok=True)
            for name, below in node.items():
                build(path / name, below)
            path.chmod(rights)
        elif node == "link":
            path.symlink_to(shared)
        elif node == "fifo":
            os.mkfifo(path)
        else:
            path.touch()

    work = Workdir(shared / "work")
    folder = work.fresh("a")
    build(folder / "top", tree)
    work.wipe(folder)
    assert not list(work.root.iterdir())
