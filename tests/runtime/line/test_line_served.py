"""Lines whose bundles are scored by an inference server: it may be away at any time, and comes back by itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from line_project import PUSH, png, read_line, write_line
from line_stand_ins import wait_until
from swapped_lines import events_of, running, step_of, swapped, swaps_of, top, verdict_of, write_bundle_at
from tiny_bundle import tiny_thresholds, write_tiny_bundle
from tiny_ensemble import write_member

from flawscope.bundle import open_bundle
from flawscope.cli import run
from flawscope.errors import BackendError
from flawscope.export.triton import write_models
from flawscope.runtime import Inspector
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.swap import steps

pytest.importorskip("tritonclient.grpc", reason='needs pip install "flawscope[client]"')
pytest.importorskip("tritonclient.http", reason='needs pip install "flawscope[client]"')

from kserve_stand_in import KserveStandIn, Refused

BOTH = pytest.mark.parametrize("servers", ["grpc", "http"], indirect=True)
VIEW = {"name": "cam0", "source": PUSH, "bundle": "tiny.flaw", "backend": "triton"}
TOKEN = "hunter2-token"


class Servers:
    """A server on one address, which can be away."""

    def __init__(self, folder: Path, protocol: str) -> None:
        self.repository, self._ports = folder / "models", {}
        self.now = self._start()
        self.url = self.now.url(protocol)

    def _start(self) -> KserveStandIn:
        server = KserveStandIn(self.repository, **self._ports)
        self._ports = {"grpc_port": server.grpc_port, "http_port": server.http_port}
        return server

    def go(self) -> None:
        self.now.close()

    def come_back(self) -> KserveStandIn:
        self.now = self._start()
        return self.now


def serve(bundle: Path, repository: Path, **options: Any) -> None:
    with open_bundle(bundle) as opened:
        write_models(opened, repository, **options)


@pytest.fixture
def servers(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """A server that serves the bundle of the line, which the environment names."""
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(150.0))
    serve(tmp_path / "tiny.flaw", tmp_path / "models")
    servers = Servers(tmp_path, getattr(request, "param", "grpc"))
    monkeypatch.setenv("FLAWSCOPE_TRITON", servers.url)
    monkeypatch.setenv("FLAWSCOPE_TRITON_TIMEOUT", "30")
    yield servers
    servers.go()


@contextlib.contextmanager
def served(folder: Path, **station: Any) -> Iterator[Line]:
    with running(folder, views=[VIEW], **station) as line:
        yield line


def push(line: Line, value: int) -> PartRecord:
    """Give a part to the line, whatever state it is in; returns what is on record of it."""
    seq = line.stations["top"].push({"cam0": png(value)})
    wait_until(lambda: line.journal.part_of(seq) is not None)
    record = line.journal.part_of(seq)
    assert record is not None
    return record


def is_ready(line: Line) -> bool:
    line.turn()
    return line.stations["top"].readiness.is_ready


@BOTH
def test_parts_are_judged_as_here(tmp_path: Path, servers: Servers) -> None:
    values = (50, 149, 151, 200)
    with served(tmp_path) as line:
        parts = [verdict_of(line, value) for value in values]
    assert [part.verdict for part in parts] == ["accept", "accept", "reject", "reject"]
    with Inspector.load(tmp_path / "tiny.flaw", "cpu", path="graph") as local:
        images = [cv2.imdecode(np.frombuffer(png(value), np.uint8), cv2.IMREAD_COLOR) for value in values]
        assert [part.views[0].score for part in parts] == [result.score for result in local(images)]


@BOTH
def test_a_server_that_dies_costs_parts_and_is_found_when_it_is_back(tmp_path: Path, servers: Servers) -> None:
    with served(tmp_path) as line:
        assert verdict_of(line, 50).verdict == "accept"
        servers.go()
        assert (push(line, 50).verdict, is_ready(line)) == ("fault", False)
        readiness = line.stations["top"].readiness
        assert readiness.state == "error"
        assert "server: the server does not work, and is looked for: " in readiness.reason
        assert "no server answers there" in readiness.reason
        for _ in range(3):  # longer than a device of this machine may fail
            part = push(line, 50)
            assert (part.verdict, part.reason) == ("fault", "not_ready")
            line.turn()
        # No new process would help, and systemd must not try.
        assert (line.lost, line.is_sound(60.0)) == ("", True)
        assert top_scoring(line).device_failures == 1
        servers.come_back()
        wait_until(lambda: is_ready(line))
        assert [verdict_of(line, value).verdict for value in (50, 200)] == ["accept", "reject"]
    assert len(events_of(tmp_path, "device_failed")) == 1


def top_scoring(line: Line) -> Any:
    return line.stations["top"].views["cam0"].measure.scoring


def test_what_waits_for_a_server_that_is_away_is_a_fault_at_once(tmp_path: Path, servers: Servers) -> None:
    """Before the state of the station has changed, too: nobody waits for the deadline."""
    with served(tmp_path, deadline_ms=60_000.0) as line:
        assert verdict_of(line, 50).verdict == "accept"
        servers.go()
        for _ in range(3):
            part = push(line, 50)
            assert (part.verdict, part.reason) == ("fault", "inference")
            assert "no server answers there" in part.views[0].detail


def test_a_server_that_is_absent_at_the_start_is_waited_for(tmp_path: Path, servers: Servers) -> None:
    servers.go()
    for first in ("", "no more"):  # the second start has an active file
        said: list[str] = []
        with running(tmp_path, views=[VIEW], said=said) as line:
            station = line.stations["top"]
            assert "no server answers there" in station.readiness.against("server"), first
            assert (push(line, 50).verdict, is_ready(line), line.is_sound(60.0)) == ("fault", False, True)
            assert any("not ready yet; the server is looked for" in text for text in said)
            servers.come_back()
            wait_until(lambda: is_ready(line))
            assert [verdict_of(line, value).verdict for value in (50, 200)] == ["accept", "reject"]
            assert top_scoring(line)._took_ms, "how long batches take is measured then"
        servers.go()
    assert not events_of(tmp_path, "bundle_replaced", "bundle_refused", "device_lost")


def test_a_server_of_another_version_is_no_accept_and_waited_for(tmp_path: Path, servers: Servers) -> None:
    """At the start, and in the middle: it says what is expected, and goes on when the server has it."""
    own = tmp_path / "kept"
    servers.repository.rename(own)
    (tmp_path / "louder").mkdir()
    write_member(tmp_path / "louder" / "tiny.flaw", 0.5)
    serve(tmp_path / "louder" / "tiny.flaw", servers.repository)
    servers.now.load()
    with served(tmp_path) as line:
        reason = line.stations["top"].readiness.against("server")
        assert "Expected the model tiny in version" in reason
        assert push(line, 50).verdict == "fault"
        other = tmp_path / "others"
        servers.repository.rename(other)
        own.rename(servers.repository)
        servers.now.load()
        wait_until(lambda: is_ready(line))
        assert verdict_of(line, 50).verdict == "accept"
        servers.repository.rename(own)
        other.rename(servers.repository)
        servers.now.load()
        assert push(line, 50).verdict == "fault"
        assert not is_ready(line)
        servers.repository.rename(other)
        own.rename(servers.repository)
        servers.now.load()
        wait_until(lambda: is_ready(line))
        assert verdict_of(line, 50).verdict == "accept"


def test_a_self_test_that_meets_no_server_has_found_nothing_wrong(tmp_path: Path, servers: Servers) -> None:
    """On an idle line the self-test is the first to notice; nobody has to acknowledge what a server did."""
    read = read_line(tmp_path, views=[VIEW])
    read = dataclasses.replace(read, config=msgspec.structs.replace(read.config, selftest_s=0.05))
    with running(tmp_path, read=read) as line:
        top(line)
        servers.go()
        wait_until(lambda: not is_ready(line))
        assert line.is_sound(60.0)
        servers.come_back()
        wait_until(lambda: is_ready(line))
        assert verdict_of(line, 50).verdict == "accept"
    assert not events_of(tmp_path, "selftest_failed")


def test_a_challenge_waits_for_the_server(tmp_path: Path, servers: Servers) -> None:
    for name, value in (("must_accept", 50), ("must_reject", 200)):
        folder = tmp_path / "state" / "challenge" / "top" / name
        folder.mkdir(parents=True)
        (folder / "part.png").write_bytes(png(value))
    servers.go()
    with served(tmp_path) as line:
        assert not is_ready(line)
        assert not line.has_begun
        servers.come_back()
        wait_until(lambda: is_ready(line))
        assert line.has_begun
        assert verdict_of(line, 50).verdict == "accept"
    (passed,) = events_of(tmp_path, "challenge_passed", "challenge_failed")
    assert passed["action"] == "challenge_passed"


def test_an_outage_in_the_challenge_of_a_swap_is_none_of_the_bundle(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap fails for its server, which is what a release that a view follows is tried again for."""
    folder = tmp_path / "state" / "challenge" / "top" / "must_accept"
    folder.mkdir(parents=True)
    (folder / "part.png").write_bytes(png(50))
    digest = write_bundle_at(tmp_path / "new.flaw", 100.0, name="new")
    serve(tmp_path / "new.flaw", servers.repository)
    servers.now.load()
    challenge = steps.run_challenge

    def dies(*arguments: Any) -> str:
        servers.go()
        return challenge(*arguments)

    with served(tmp_path) as line:
        assert verdict_of(line, 140).verdict == "accept"
        swaps_of(line).add(tmp_path / "new.flaw")
        monkeypatch.setattr(steps, "run_challenge", dies)
        state = swapped(line, digest)
        assert (state["state"], step_of(state, "challenge")["state"]) == ("failed", "failed")
        assert "no server answers there" in state["reason"]
        run_of_it = swaps_of(line).last_run("top")
        assert run_of_it is not None
        assert run_of_it.step_of("challenge").device_failed
        servers.come_back()
        wait_until(lambda: is_ready(line))
        assert verdict_of(line, 140).verdict == "accept"


def test_an_outage_after_a_swap_does_not_take_the_new_bundle_back(tmp_path: Path, servers: Servers) -> None:
    digest = write_bundle_at(tmp_path / "new.flaw", 100.0, name="new")
    with served(tmp_path, deadline_ms=60_000.0) as line:
        first = verdict_of(line, 50)
        swaps_of(line).add(tmp_path / "new.flaw")
        # The server has no model of it: the old bundle goes on.
        state = swapped(line, digest)
        assert state["state"] == "failed"
        assert "Expected the model new in version" in state["reason"]
        assert verdict_of(line, 140).verdict == "accept"
        serve(tmp_path / "new.flaw", servers.repository)
        servers.now.load()
        assert swapped(line, digest)["state"] == "done"
        assert verdict_of(line, 140).verdict == "reject"
        servers.go()
        assert {push(line, 50).verdict for _ in range(5)} == {"fault"}
        line.turn()
        servers.come_back()
        wait_until(lambda: is_ready(line))
        part = verdict_of(line, 140)
        assert (part.verdict, part.views[0].bundle) == ("reject", digest)
        assert part.views[0].bundle != first.views[0].bundle
    assert not events_of(tmp_path, "rollback")


def test_a_bundle_that_makes_the_server_fail_each_time_is_taken_back(tmp_path: Path, servers: Servers) -> None:
    """That is no outage: the server gives its golden scores in between."""
    digest = write_bundle_at(tmp_path / "new.flaw", 100.0, name="new")
    serve(tmp_path / "new.flaw", servers.repository)
    servers.now.load()
    real = servers.now.answer

    def answer(model: Any, images: np.ndarray, request: str) -> Any:
        if model.config.name == "new" and images.max() == 70:
            raise Refused("out of memory")
        return real(model, images, request)

    servers.now.answer = answer  # type: ignore[method-assign]
    with served(tmp_path, deadline_ms=60_000.0) as line:
        assert verdict_of(line, 70).verdict == "accept"
        swaps_of(line).add(tmp_path / "new.flaw")
        assert swapped(line, digest)["state"] == "done"
        for _ in range(3):
            assert push(line, 70).verdict == "fault"
            wait_until(lambda: is_ready(line))
        wait_until(lambda: line.stations["top"].measures["cam0"].bundle != digest)
        assert verdict_of(line, 70).verdict == "accept"
    (back,) = events_of(tmp_path, "rollback")
    assert "3 parts in a row could not be scored" in str(back["reason"])


@BOTH
def test_nothing_of_a_token_is_on_record(tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("FLAWSCOPE_TRITON_TOKEN", f"file:{token}")
    servers.now.wants, servers.now.tells = {"authorization": f"Bearer {TOKEN}"}, True
    said: list[str] = []
    with running(tmp_path, views=[VIEW], said=said) as line:
        assert verdict_of(line, 50).verdict == "accept"
        servers.now.wants = {"authorization": "Bearer another"}
        assert push(line, 50).verdict == "fault"
        line.turn()
        assert "Is it right, and not expired?" in line.stations["top"].readiness.reason
        token.write_text("another")
        wait_until(lambda: is_ready(line))
        assert verdict_of(line, 50).verdict == "accept"
        servers.now.trouble = "error"
        assert push(line, 50).verdict == "fault"
        assert line.journal.flush(10.0)
        for file in (tmp_path / "state").rglob("*"):
            assert not file.is_file() or b"hunter2" not in file.read_bytes(), file
    assert "hunter2" not in " ".join(said)


def test_without_an_address_the_line_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, as by `flawscope line check`: what is wrong here comes back by nothing."""
    monkeypatch.delenv("FLAWSCOPE_TRITON", raising=False)
    with pytest.raises(BackendError, match=r"Set FLAWSCOPE_TRITON=grpc://HOST:8001"):
        Line(read_line(tmp_path, views=[VIEW]), lambda text: None).start()
    assert run(["line", "check", str(write_line(tmp_path, views=[VIEW]))]) == 1
    assert "Set FLAWSCOPE_TRITON=grpc://HOST:8001" in capsys.readouterr().out


def test_check_says_that_the_server_is_away(
    tmp_path: Path, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_line(tmp_path, views=[VIEW])
    assert run(["line", "check", str(config)]) in (0, 1)  # the disk of the machine that runs the tests may be full
    assert "tiny.flaw on triton: asked for" in capsys.readouterr().out
    servers.go()
    assert run(["line", "check", str(config)]) == 1
    assert "no server answers there" in capsys.readouterr().out
