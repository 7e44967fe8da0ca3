"""Images of parts over HTTP: the last ones from memory as JPEG, others from the disk without loss."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from line_control import wait_for
from line_project import png

httpx = pytest.importorskip("httpx", reason="the client of these tests is not installed")
for needed in ("starlette", "uvicorn", "prometheus_client", "yaml"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `line`)")

from line_here import LineHere, decoded, line_here, spotted  # noqa: E402

from flawscope.runtime.line.http.routes import images as images_routes  # noqa: E402
from flawscope.runtime.line.parts import ViewRecord  # noqa: E402


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LineHere]:
    with line_here(tmp_path_factory.mktemp("line"), images={"keep": "rejects", "accepts": 0.0}) as started:
        yield started


def test_the_last_image_of_a_station_is_a_jpeg(here: LineHere) -> None:
    told = here.push(png(60))
    answer = here.get("/stations/top/live.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-flawscope-seq"] == str(told["seq"])
    assert np.abs(decoded(answer.content).astype(int) - 60).max() <= 3


def test_the_map_is_drawn_over_the_image_on_demand(here: LineHere) -> None:
    seq = here.push(spotted(20, 250))["seq"]
    plain = decoded(here.get(f"/stations/top/live.jpg?view=cam0&seq={seq}").content)
    under_map = decoded(here.get(f"/stations/top/live.jpg?view=cam0&seq={seq}&map=1").content)
    assert plain.shape == under_map.shape == (16, 16, 3)
    assert np.ptp(plain[8:, 8:].astype(int)) < 20
    assert np.abs(under_map.astype(int) - plain).max() > 50


def test_a_disk_that_hangs_holds_up_no_trigger_and_no_halt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, asked = threading.Event(), []

    def read(state: Path, record: ViewRecord) -> None:
        asked.append(record.image)
        assert go_on.wait(30)

    with line_here(tmp_path, images={"keep": "all"}) as here:
        seq = here.push(png(50))["seq"]
        monkeypatch.setattr(images_routes, "read_image", read)
        askers = [threading.Thread(target=here.client.get, args=(f"/api/v1/parts/{seq}/cam0.png",)) for _ in range(10)]
        for asker in askers:
            asker.start()
        try:
            wait_for(lambda: len(asked) == 8)
            assert here.push(png(50))["verdict"] == "accept"
            assert here.post("/api/v1/stations/top/halt", {})["state"] == "halted"
        finally:
            go_on.set()
            for asker in askers:
                asker.join()


def test_a_part_that_is_gone_is_said(here: LineHere) -> None:
    here.push(png(60))
    assert "it was not kept, or is gone" in here.refused("/stations/top/live.jpg?seq=999999", 404)
    assert "expected one of cam0" in here.refused("/stations/top/live.jpg?view=cam7", 400)
    assert "stations top" in here.refused("/stations/bottom/live.jpg", 404)


def test_a_stored_image_is_what_was_sent(here: LineHere) -> None:
    sent = png(201)
    told = here.push(sent)
    assert told["verdict"] == "reject"
    assert here.get(f"/api/v1/parts/{told['seq']}/cam0.png").content == sent
    record = here.get(f"/api/v1/parts/{told['seq']}").json()["views"][0]
    assert record["image"].endswith(f"/{told['seq']}-cam0.png")


def test_an_image_that_is_not_stored_comes_from_memory(here: LineHere) -> None:
    sent = png(70)
    seq = here.push(sent)["seq"]
    assert here.get(f"/api/v1/parts/{seq}").json()["views"][0]["image"] == ""
    answer = here.get(f"/api/v1/parts/{seq}/cam0.png")
    assert answer.content == sent
    assert answer.headers["content-type"] == "image/png"


def test_other_views_and_parts_are_refused(here: LineHere) -> None:
    seq = here.push(png(70))["seq"]
    assert "(cam0)" in here.refused(f"/api/v1/parts/{seq}/cam1.png", 404)
    assert "(cam0)" in here.refused(f"/api/v1/parts/{seq}/cam1-map.png", 404)
    assert "on record" in here.refused("/api/v1/parts/999999/cam0.png", 404)


def test_bytes_that_are_no_image_are_a_fault_that_is_kept(here: LineHere, tmp_path: Path) -> None:
    told = here.push(b"no image")
    assert (told["verdict"], told["reason"]) == ("fault", "unreadable_image")
    assert here.get(f"/api/v1/parts/{told['seq']}").json()["views"][0]["image"].endswith("-cam0.bin")
    assert "expected an image" in here.refused(f"/api/v1/parts/{told['seq']}/cam0.png", 404)
    assert "expected an image" in here.refused(f"/stations/top/live.jpg?seq={told['seq']}", 404)


def test_images_outlive_the_line_in_memory(tmp_path: Path) -> None:
    sent: Any = spotted(20, 250)
    with line_here(tmp_path) as before:
        seq = before.push(sent)["seq"]
        shown = decoded(before.get(f"/api/v1/parts/{seq}/cam0-map.png").content)
    with line_here(tmp_path) as after:
        assert after.get(f"/api/v1/parts/{seq}/cam0.png").content == sent
        drawn = decoded(after.get(f"/api/v1/parts/{seq}/cam0-map.png").content)
        after.refused(f"/stations/top/live.jpg?seq={seq}", 404)
    # From memory it has boxes, too; without them, the colours are the same.
    assert drawn.shape == shown.shape
    assert np.abs(drawn[8:, 8:].astype(int) - shown[8:, 8:]).max() <= 2


@pytest.mark.long
def test_a_full_disk_stops_the_station_and_it_recovers_by_itself(tmp_path: Path) -> None:
    free = [10**12]
    with line_here(
        tmp_path, images={"keep": "all", "stop_below_gb": 2.0, "prune_below_gb": 3.0, "fault_below_gb": 1.0}
    ) as here:
        gallery = here.line.gallery
        assert gallery is not None
        gallery._disk._usage = lambda folder: SimpleNamespace(free=free[0])
        first = here.push(png(60))
        told = []
        for free_gb, level in ((1.5, "stop"), (0.5, "fault"), (4.0, "ok")):
            free[0] = int(free_gb * 1e9)
            wait_for(lambda level=level: gallery.disk == level)
            here.line.turn()
            told.append(here.push(png(60)))
            state = here.get("/api/v1/state").json()
            assert state["images"]["disk"] == level
            assert state["stations"][0]["state"] == ("error" if level == "fault" else "ready")
        assert [one["verdict"] for one in (first, *told)] == ["accept", "accept", "fault", "accept"]
        assert told[1]["reason"] == "not_ready"
        parts = here.get("/api/v1/parts").json()["parts"]
        assert [bool(part["views"] and part["views"][0]["image"]) for part in parts] == [True, False, False, True]
        here.line.turn()
        assert here.line.status().account_holds
