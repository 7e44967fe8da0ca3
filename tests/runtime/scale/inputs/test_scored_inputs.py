"""`flawscope score` of one process on images that are no files of a folder: the same decisions, other names."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.errors import ImageError
from flawscope.runtime.results import Result
from flawscope.runtime.scale.inputs import Item
from flawscope.runtime.scale.inputs.results import results_of

VALUES = {"0.png": 60, "1.png": 200, "2.png": 90, "broken.png": None}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a bundle whose score is the brightness and whose threshold is 150."""
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds(150.0), min_area_px=1)
    (tmp_path / "parts").mkdir()
    for name, value in VALUES.items():
        encoded = cv2.imencode(".png", np.full((16, 16, 3), value or 0, np.uint8))[1].tobytes()
        (tmp_path / "parts" / name).write_bytes(b"no image" if value is None else encoded)
    return tmp_path


def score(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[Any]]:
    status = cli.run(["score", "t.flaw", *map(str, arguments), "--backend", "cpu", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return status, [(line["image"], line["decision"], line["score"]) for line in lines]


def judged(name: str = "{}") -> list[tuple[str, str, float | None]]:
    decided = {60: "accept", 90: "accept", 200: "reject", None: "fault"}
    return [(name.format(image), decided[value], value) for image, value in VALUES.items()]


def test_patterns_and_lists_are_scored(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for image in ("parts", "par*/*.png", "p**.png"):
        assert score(capsys, image) == (1, judged("parts/{}"))
    Path("list.txt").write_text("\ufeff" + "".join(f"parts/{name}\r\n" for name in VALUES), "utf-8")
    assert score(capsys, "@list.txt") == (1, judged("parts/{}"))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path("list.txt").read_bytes())))
    assert score(capsys, "-") == (1, judged("parts/{}"))


def test_an_archive_is_scored_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open("a.tar", "w") as tar:
        for name in VALUES:
            tar.add(f"parts/{name}", name)
    assert score(capsys, "a.tar", "--maps", "maps", "--out", "out", "--batch", 2) == (1, judged("a.tar::{}"))
    assert sorted(path.relative_to("maps").as_posix() for path in Path("maps").rglob("*.png")) == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
    ]
    assert json.loads(Path("out/report.json").read_text())["images"] == 4


def test_a_table_is_scored_by_the_column_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow", reason="tables need pyarrow (extra parquet)")
    pq = pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow (extra parquet)")
    images = [Path("parts", name).read_bytes() for name in VALUES]
    pq.write_table(pa.table({"one": images, "two": [b""] * 4}), "a.parquet")
    rows = [(f"a.parquet::{row}", *line[1:]) for row, line in enumerate(judged())]
    assert score(capsys, "a.parquet", "--column", "one") == (1, rows)
    assert cli.run(["score", "t.flaw", "a.parquet", "--backend", "cpu"]) == 2
    assert "Name one with --column" in capsys.readouterr().err


def test_objects_of_a_store_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    fsspec = pytest.importorskip("fsspec", reason="URLs need fsspec (extra remote)")
    store = fsspec.filesystem("memory")
    for name in VALUES:
        store.pipe(f"/scored/{name}", Path("parts", name).read_bytes())
    try:
        assert score(capsys, "memory://scored") == (1, judged("memory://scored/{}"))
        status, lines = score(capsys, "memory://scored/0.png", "memory://scored/gone.png")
        assert (status, [decision for _, decision, _ in lines]) == (1, ["accept", "fault"])
    finally:
        store.rm("/scored", recursive=True)


def test_results_come_in_order_whatever_can_be_read() -> None:
    items = [Item(str(number), str(number)) for number in range(40)]

    def read(item: Item) -> bytes:
        if int(item.name) % 3 == 0:
            raise ImageError(f"{item.name}: gone")
        if int(item.name) % 7 == 0:
            raise KeyError(item.name)  # what a library may raise
        return item.name.encode()

    def stream(images: Any) -> Any:
        for frame in images:
            yield Result(frame.id, "accept", score=float(frame.image))

    for some in (items, items[:1], items[1:2], []):
        scored = list(results_of(some, read, stream, ahead=5))
        assert [one.item for one in scored] == some
        for item, image, result in scored:
            is_read = int(item.name) % 3 and int(item.name) % 7
            assert (result.decision, image is None) == ("accept" if is_read else "fault", not is_read)
            assert result.image == item.name
    reasons = [one.result.reason for one in results_of(items[6:8], read, stream, ahead=0)]
    assert reasons == ["gone", "unexpected KeyError: '7'"]
