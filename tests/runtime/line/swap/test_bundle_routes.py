"""Bundles and thresholds over HTTP, as the page asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("starlette", reason="needs starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn")
pytest.importorskip("prometheus_client", reason="needs prometheus_client")

from line_project import png, read_config, write_line  # noqa: E402
from line_stand_ins import WAIT_S, wait_until  # noqa: E402
from swapped_lines import SWAP_S, events_of, running, verdict_of, write_bundle_at  # noqa: E402

from flawscope.bundle import open_bundle, pack_bundle  # noqa: E402
from flawscope.runtime.line.http.routes import bundles  # noqa: E402
from flawscope.runtime.line.line import Line  # noqa: E402
from flawscope.runtime.line.users.users_file import UsersFile  # noqa: E402

TOP = "/api/v1/stations/top"
PACKED = {"Content-Type": "application/octet-stream"}


class Asked:
    """A line and a client of its HTTP server."""

    def __init__(self, line: Line, client: Any, packed: bytes) -> None:
        self.line, self.client, self.packed = line, client, packed

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, status: int, **options: Any) -> Any:
        answer = self.client.post(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def error(self, path: str, status: int, **options: Any) -> str:
        return str(self.post(path, status, **options)["error"])


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    write_bundle_at(tmp_path / "other.flaw", 100.0)
    with open_bundle(tmp_path / "other.flaw") as opened:
        pack_bundle(opened, tmp_path / "packed.flaw")
    read = read_config(write_line(tmp_path))
    with running(tmp_path, read=read) as line:
        assert line._server is not None
        host, port = line._server.address
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=WAIT_S, trust_env=False) as client:
            yield Asked(line, client, (tmp_path / "packed.flaw").read_bytes())


def test_upload_swap_and_rollback(asked: Asked, tmp_path: Path) -> None:
    assert verdict_of(asked.line, 120).verdict == "accept"
    (view,) = asked.get("/api/v1/state")["stations"][0]["views"]
    assert (view["name"], view["bundle"], view["threshold"], view["threshold_revision"]) == ("cam0", "tiny", 150.0, 0)
    digest = asked.post("/api/v1/bundles", 201, content=asked.packed, headers=PACKED)["digest"]
    bundles = {bundle["digest"]: bundle for bundle in asked.get("/api/v1/bundles")["bundles"]}
    assert bundles[digest]["used_by"] == []
    assert bundles[digest]["thresholds"] == {"fp32": {"image": 100.0, "low": 90.0, "high": 220.0}}
    assert bundles[view["digest"]]["used_by"] == ["top/cam0"]
    assert asked.get(f"{TOP}/swap")["state"] == "idle"
    begun = asked.post(f"{TOP}/swap", 202, json={"digest": digest, "view": "cam0", "shadow": 0})
    assert begun["digest"] == digest
    wait_until(lambda: asked.get(f"{TOP}/swap")["state"] == "done", SWAP_S)
    state = asked.get(f"{TOP}/swap")
    assert [step["name"] for step in state["steps"]][-1] == "flip"
    assert all({"name", "state", "detail", "ms"} == set(step) for step in state["steps"])
    assert state["previous"] == {"cam0": view["digest"]}
    assert verdict_of(asked.line, 120).verdict == "reject"
    state = asked.post(f"{TOP}/rollback", 200, json={"reason": "too many rejects"})
    assert (state["state"], state["reason"]) == ("rolled_back", "too many rejects")
    assert verdict_of(asked.line, 120).verdict == "accept"
    assert "expected a swap not longer than" in asked.error(f"{TOP}/rollback", 409, json={})
    assert asked.post(f"{TOP}/challenge", 202, json={})["digest"] == view["digest"]
    wait_until(lambda: asked.get(f"{TOP}/swap")["state"] == "done")
    counted = 'flawscope_swaps_total{result="rolled_back",station="top"} 1.0'
    wait_until(lambda: counted in asked.client.get("/metrics").text)
    asked.line.journal.flush()
    assert {event["actor"] for event in events_of(tmp_path, "bundle_added", "swap", "rollback")} == {"local"}


def test_thresholds_and_what_if(asked: Asked) -> None:
    for value in (100, 120, 140, 160):
        verdict_of(asked.line, value)
    found = asked.get(f"{TOP}/what-if?view=cam0&image=130&last=10")
    assert (found["parts"], found["accept"], found["reject"], found["threshold"]) == (4, 2, 2, 150.0)
    assert found["changed"] == [{"seq": 3, "score": 140.0, "verdict": "accept", "would_be": "reject"}]
    assert found["limits"] == {"low": 90.0, "high": 220.0}
    for image in ("", "nan", "inf", "many"):
        assert "a finite number" in asked.get(f"{TOP}/what-if?image={image}", 400)["error"]
    said = {"image": 130.0, "reason": "scratches"}
    assert asked.post(f"{TOP}/threshold", 200, json=said) == {"threshold": 130.0, "threshold_revision": 1}
    assert verdict_of(asked.line, 140).verdict == "reject"
    (view,) = asked.get("/api/v1/state")["stations"][0]["views"]
    assert (view["threshold"], view["threshold_revision"]) == (130.0, 1)
    assert "within the bundle's limits" in asked.error(f"{TOP}/threshold", 400, json={**said, "image": 400.0})
    assert "expected one of cam0" in asked.error(f"{TOP}/threshold", 400, json={**said, "view": "cam1"})
    assert "expected JSON with image, reason, view" in asked.error(f"{TOP}/threshold", 400, json={"image": 1.0})


def test_what_is_wrong_is_refused_in_one_line(asked: Asked, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "bundles"
    before = sorted(folder.iterdir())
    assert "application/octet-stream" in asked.error("/api/v1/bundles", 415, json={})
    broken = asked.packed[:-100]
    assert "what was sent" in asked.error("/api/v1/bundles", 400, content=broken, headers=PACKED)
    assert sorted(folder.iterdir()) == before
    assert "expected a bundle of this line" in asked.error(f"{TOP}/swap", 409, json={"digest": "0" * 64})
    assert "expected a bundle of this line" in asked.error(f"{TOP}/swap", 409, json={"digest": "../../x"})
    assert "one of the stations top" in asked.error("/api/v1/stations/side/swap", 404, json={"digest": "0" * 64})
    assert "expected JSON" in asked.error(
        f"{TOP}/swap", 400, content=b"{", headers={"Content-Type": "application/json"}
    )
    asked.line.journal.flush()
    (event,) = events_of(tmp_path, "bundle_refused")
    assert event["actor"] == "local"


def test_an_upload_that_is_too_large_is_refused_before_it_is_whole(tmp_path: Path) -> None:
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    path = write_line(tmp_path)
    path.write_text(path.read_text() + "swap: {upload_mb: 1}\n")
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(1 << 20)

    with running(tmp_path, read=read_config(path)) as line:
        assert line._server is not None
        host, port = line._server.address
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=WAIT_S, trust_env=False) as client:
            try:
                answer = client.post("/api/v1/bundles", content=pieces(), headers=PACKED)
            except httpx.WriteError:
                pass  # the server has hung up while it was being sent
            else:
                assert answer.status_code == 413
                assert "at most 1 MiB" in answer.json()["error"]
        assert sent < 64
        assert len(list((tmp_path / "state" / "bundles").iterdir())) == 1
        assert line.stations["top"].push({"cam0": png(50)}) == 1


def test_an_upload_by_somebody_who_is_signed_out_meanwhile_leaves_nothing(asked: Asked, tmp_path: Path) -> None:
    folder, users = tmp_path / "state" / "bundles", asked.line.users
    assert users is not None
    before = sorted(folder.iterdir())

    def pieces() -> Iterator[bytes]:
        yield asked.packed[:1000]
        # The first user: from now on nobody is `local` any more.
        UsersFile(tmp_path / "state").add_user("olga", "operator", "four plain words here")
        users.look()
        yield asked.packed[1000:]

    assert "may still ask when the body is whole" in asked.error(
        "/api/v1/bundles", 401, content=pieces(), headers=PACKED
    )
    assert sorted(folder.iterdir()) == before
    asked.line.journal.flush()
    assert not events_of(tmp_path, "bundle_added")


def test_an_upload_that_trickles_keeps_others_out_for_a_while_alone(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "BODY_S", 0.4)
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(300):
            sent += 1
            yield b"P"
            time.sleep(0.1)

    try:
        answer = asked.client.post("/api/v1/bundles", content=pieces(), headers=PACKED)
    except httpx.WriteError:
        pass  # the server has hung up while it was being sent
    else:
        assert answer.status_code == 408
    assert sent < 300
    assert asked.post("/api/v1/bundles", 201, content=asked.packed, headers=PACKED)["digest"]
