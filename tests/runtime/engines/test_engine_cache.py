"""The cache of engines believes its owner alone, and many may use it at once. The engines here are any bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from flawscope import cli, private_files, scratch
from flawscope.errors import BackendError, StorageError
from flawscope.runtime.doctor.doctor_command import diagnose
from flawscope.runtime.engines import BuildOptions, Built, EngineCache, Key, Stored, Target, ensure
from flawscope.runtime.engines.stored_engine import ENTRY, LAYERS, PLAN, TIMING

PLACES = (".", "engine", PLAN, ENTRY, LAYERS, TIMING)


def key_of(model: str = "m") -> Key:
    return Key(model, "features", "fp32", "tensorrt", "11.0", Target("L4", (8, 9), "580"), BuildOptions(1, 1, 4))


def built(plan: bytes = b"engine") -> Built:
    return Built(plan, 1.0, (), '{"Layers": []}', None, b"timings")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """A cache with one engine."""
    monkeypatch.setenv("FLAWSCOPE_ENGINES", str(tmp_path / "engines"))
    cache = EngineCache()
    cache.put(key_of(), "padim", built())
    return cache


def place_of(cache: EngineCache, place: str) -> Path:
    return {".": cache.root, "engine": cache.folder(key_of())}.get(place, cache.folder(key_of()) / place)


# --- what is believed


def for_the_group(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWGRP)


def for_all(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.chmod(0o777)


def a_link(path: Path, patch: pytest.MonkeyPatch) -> None:
    outside = EngineCache().root.parent / "elsewhere"
    path.rename(outside)
    path.symlink_to(outside)


def of_another_user(path: Path, patch: pytest.MonkeyPatch) -> None:
    number, real = path.stat().st_ino, os.fstat

    def of_another(handle: int) -> os.stat_result:
        found = real(handle)
        fields = list(found)
        fields[4] += found.st_ino == number
        return os.stat_result(fields)

    patch.setattr(private_files.os, "fstat", of_another)


def a_pipe(path: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path, 0o600)


FAULTS: dict[Callable[[Path, pytest.MonkeyPatch], None], str] = {
    for_the_group: r"only its owner may write, got mode 0[67][26]0\. If nobody changed it: chmod go-w /",
    for_all: r"only its owner may write, got mode 0777\. If nobody changed it: chmod go-w /",
    a_link: r"got a link or another kind\. Remove it, or name another folder with FLAWSCOPE_ENGINES\.",
    of_another_user: r"got one of user \d+, who could change it\. Remove it, or name another folder",
    a_pipe: "got a (pipe or device|link or another kind)",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_somebody_else_could_have_changed_is_neither_used_nor_replaced(
    cache: EngineCache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[Path, pytest.MonkeyPatch], None],
    place: str,
) -> None:
    fault(place_of(cache, place), monkeypatch)
    with pytest.raises(BackendError, match=FAULTS[fault]) as caught:
        cache.stored(key_of())
    assert str(place_of(cache, place)) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=FAULTS[fault]):
        cache.put(key_of(), "padim", built(b"another"))
    # Every command tells the same.
    status = cli.run(["engine", "list"])
    printed = capsys.readouterr()
    assert status == (2 if place == "." else 1)
    reason = str(caught.value).removeprefix("engine: ")
    assert reason in " ".join((printed.err if place == "." else printed.out).split())
    report = diagnose()["engines"]["cache"]
    assert (reason in (report["problem"] or ""), report["unusable"]) == ((True, 0) if place == "." else (False, 1))


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_engine_that_is_not_believed_can_be_removed_and_what_a_link_names_stays(
    cache: EngineCache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[Path, pytest.MonkeyPatch], None],
    place: str,
) -> None:
    fault(place_of(cache, place), monkeypatch)
    assert cli.run(["engine", "clear", "--broken"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 engines")
    assert list(cache.root.iterdir()) == []
    assert (cache.root.parent / "elsewhere").exists() == (fault is a_link)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_what_is_written_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cache = EngineCache(tmp_path / "new" / "engines")
        cache.put(key_of(), "padim", built())
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (cache.root, *cache.root.rglob("*"))}
    assert set(modes.values()) == {0o700, 0o600}
    stored = cache.stored(key_of())
    assert stored is not None
    assert stored.load() == b"engine"


def test_a_folder_that_others_may_read_is_believed(cache: EngineCache) -> None:
    for path in (cache.root, *cache.root.rglob("*")):
        path.chmod(0o755)
    stored = cache.stored(key_of())
    assert stored is not None
    assert stored.problem is None


# --- what was verified is what runs


def test_the_bytes_that_were_hashed_are_those_that_are_loaded(cache: EngineCache) -> None:
    stored = cache.stored(key_of())
    assert stored is not None
    stored.plan.write_bytes(b"ENGINE")
    assert stored.load() == b"engine"
    put = cache.put(key_of(), "padim", built(b"new"))
    shutil.rmtree(put.folder)
    assert (put.load(), put.layers) == (b"new", b'{"Layers": []}')


def test_what_must_not_be_used_is_not_loaded(cache: EngineCache) -> None:
    (cache.folder(key_of()) / PLAN).write_bytes(b"ENGINE")
    stored = cache.stored(key_of())
    assert stored is not None
    assert stored.data is None
    with pytest.raises(BackendError, match=r"its file was changed: SHA-256 .*\. Build it again\."):
        stored.load()
    for listed in cache.all():
        with pytest.raises(BackendError, match="its file was changed"):
            listed.load()


def test_a_copy_under_the_name_of_another_engine_is_told_by_every_reader(cache: EngineCache) -> None:
    shutil.copytree(cache.folder(key_of()), cache.folder(key_of("other")))
    stored = cache.stored(key_of("other"))
    assert stored is not None
    problems = {listed.folder: listed.problem for listed in cache.all()}
    assert problems == {stored.folder: "its entry is of another engine", cache.folder(key_of()): None}
    assert stored.problem == problems[stored.folder]


def test_a_failed_write_leaves_the_engine_that_was_there(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(msgspec.json, "format", full)
    with pytest.raises(StorageError, match="the disk is full"):
        cache.put(key_of(), "padim", built(b"another"))
    monkeypatch.undo()
    assert [path.name for path in cache.root.iterdir()] == [cache.folder(key_of()).name]
    assert next(cache.all()).problem is None


# --- many at once


class FakeBundle:
    """What `ensure_engine` asks of a bundle."""

    path, manifest = Path("padim.flaw"), SimpleNamespace(name="padim")

    def graph_files(self, graph: str, precision: str) -> tuple[str, ...]:
        return ("features.onnx",)

    @contextlib.contextmanager
    def unpacked(self, files: object) -> Iterator[Path]:
        yield Path("nowhere")


def test_one_of_many_builds_and_the_others_take_what_it_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[int] = []

    def build(*_: object, **__: object) -> Built:
        builds.append(threading.get_ident())
        time.sleep(0.2)
        return built(f"engine {len(builds)}".encode())

    monkeypatch.setattr(ensure, "build_engine", build)
    monkeypatch.setattr(ensure, "model_hash", lambda *_: "m")
    bundle: Any = FakeBundle()

    def one(_: int) -> ensure.Ensured:
        tensorrt: Any = SimpleNamespace(name="tensorrt", version="11.0")
        cache = EngineCache(tmp_path / "engines")
        return ensure.ensure_engine(bundle, "features", tensorrt, Target("L4", (8, 9), "580"), BuildOptions(), cache)

    with ThreadPoolExecutor(8) as pool:
        ensured = list(pool.map(one, range(8)))
    assert len(builds) == 1
    assert {each.stored.load() for each in ensured} == {b"engine 1"}
    assert sorted(each.built_because is None for each in ensured) == [False, *[True] * 7]


WRITER = """
import sys
from pathlib import Path
from flawscope.runtime.engines import BuildOptions, Built, EngineCache, Key, Target
cache = EngineCache(Path(sys.argv[1]))
key = Key("m", "features", "fp32", "tensorrt", "11.0", Target("L4", (8, 9), "580"), BuildOptions(1, 1, 4))
for number in range(int(sys.argv[2])):
    plan = f"{sys.argv[3]} {number} ".encode() * 1000
    stored = cache.put(key, "padim", Built(plan, 1.0, (), None, None, b"t"))
    assert stored.load() == plan
    if sys.argv[3] == "0":
        cache.remove(stored)
"""


def writer(root: Path, count: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(root), str(count), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_eight_writers_and_one_that_removes_harm_neither_each_other_nor_a_reader(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    writers = [writer(cache.root, 60, str(number)) for number in range(8)]
    seen: list[Stored | None] = []
    while any(process.poll() is None for process in writers):
        seen += [cache.stored(key_of()), *cache.all()]
        cache.timing_cache(key_of())
    assert [process.communicate() for process in writers] == [("", "")] * 8
    found = [stored for stored in seen if stored is not None]
    assert {stored.problem for stored in found} == {None}
    assert len({stored.entry.sha256 for stored in found if stored.entry is not None}) > 3
    assert [path for path in cache.root.iterdir() if scratch.is_scratch(path.name)] == []


@pytest.mark.long
def test_nothing_is_left_of_a_killed_writer_after_the_next(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    cache.put(key_of(), "padim", built())
    for number in range(6):
        before = cache.root.stat().st_mtime_ns
        process = writer(cache.root, 100_000, "1")
        while cache.root.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.0007 * number)
        process.kill()
        assert process.communicate() == ("", "")
        stored = cache.stored(key_of())
        assert stored is None or stored.problem is None
    cache.put(key_of(), "padim", built())
    assert [path.name for path in cache.root.iterdir()] == [cache.folder(key_of()).name]


def test_removing_what_another_has_removed_is_no_error(cache: EngineCache) -> None:
    (stored,) = cache.all()
    assert cache.remove(stored)
    assert cache.remove(stored) is None
    cache.root.rmdir()
    assert cache.remove(stored) is None
