"""Reviews: new entries of the chain that change no verdict, a filter of parts, and data sets that come of them."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from line_project import png
from line_stand_ins import wait_until

httpx = pytest.importorskip("httpx", reason="the client of these tests is not installed")
for needed in ("starlette", "uvicorn", "prometheus_client", "yaml"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `line`)")

from line_here import LineHere, line_here  # noqa: E402

from flawscope import cli  # noqa: E402
from flawscope.datasets import open_dataset  # noqa: E402
from flawscope.runtime.line.gallery import export  # noqa: E402
from flawscope.runtime.line.journal.verify import verify  # noqa: E402
from flawscope.runtime.line.parts import ViewRecord  # noqa: E402

ALL = {"keep": "all"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LineHere]:
    with line_here(tmp_path_factory.mktemp("line"), images=ALL) as started:
        yield started


def test_a_review_is_an_entry_and_changes_no_verdict(here: LineHere) -> None:
    seq = here.push(png(200))["seq"]
    before = here.get(f"/api/v1/parts/{seq}").json()
    said = {"label": "anomalous", "type": "scratch", "view": "cam0", "note": "upper edge"}
    assert here.post(f"/api/v1/parts/{seq}/review", said) == {"seq": seq, "recorded": True}
    assert here.post(f"/api/v1/parts/{seq}/review", {"label": "normal"})["recorded"]
    first, second = here.get(f"/api/v1/parts/{seq}/reviews").json()["reviews"]
    assert (first["label"], first["type"], first["view"], first["note"]) == (
        "anomalous",
        "scratch",
        "cam0",
        "upper edge",
    )
    assert (first["actor"], first["role"]) == ("local", "admin")
    assert (second["label"], second["view"]) == ("normal", "")
    assert second["link"] > first["link"]
    assert here.get(f"/api/v1/parts/{seq}").json() == before


def test_parts_are_asked_for_by_whether_they_were_reviewed(here: LineHere) -> None:
    reviewed, other = here.push(png(210))["seq"], here.push(png(211))["seq"]
    here.post(f"/api/v1/parts/{reviewed}/review", {"label": "unsure"})

    def seqs(query: str) -> list[int]:
        parts = here.get(f"/api/v1/parts?after={reviewed - 1}&{query}").json()["parts"]
        return [part["seq"] for part in parts]

    assert seqs("reviewed=1") == [reviewed]
    assert seqs("reviewed=0&verdict=reject") == [other]
    assert seqs(f"before={other}") == [reviewed]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"label": "good"}, "expected a JSON object with label"),
        ({"label": "normal", "more": 1}, "expected a JSON object with label"),
        ({"label": "normal", "view": "cam9"}, "view: expected one of cam0"),
        ({"label": "normal", "type": "scratch"}, "type: expected none"),
        ({"label": "anomalous", "type": "../x"}, "type: expected at most 40"),
        ({"label": "anomalous", "type": "Good"}, "type: expected the name of a defect"),
        ({"label": "anomalous", "type": "masks"}, "type: expected the name of a defect"),
        ({"label": "normal", "note": "two\nlines"}, "note: expected at most"),
    ],
)
def test_a_review_that_says_nothing_clear_is_refused(here: LineHere, body: dict[str, str], words: str) -> None:
    seq = here.push(png(60))["seq"]
    assert words in here.post(f"/api/v1/parts/{seq}/review", body, status=400)["error"]
    assert here.get(f"/api/v1/parts/{seq}/reviews").json()["reviews"] == []


def test_an_unknown_part_has_no_reviews(here: LineHere) -> None:
    assert "on record" in here.post("/api/v1/parts/999999/review", {"label": "normal"}, status=404)["error"]
    assert "on record" in here.refused("/api/v1/parts/999999/reviews", 404)


def reviewed_line(folder: Path) -> dict[str, int]:
    """Run a line, review its parts, and return their numbers by what was said last."""
    with line_here(folder, images=ALL) as here:
        seqs = {name: here.push(png(value))["seq"] for name, value in REVIEWED.items()}
        say = {
            "good": [{"label": "anomalous", "type": "dent"}, {"label": "normal"}],
            # The later one counts: what is said of the part comes before what is said of its view.
            "scratch": [{"label": "normal"}, {"label": "anomalous", "type": "scratch", "view": "cam0"}],
            "unnamed": [{"label": "anomalous", "note": "looks odd"}],
            "unsure": [{"label": "unsure"}],
        }
        for name, bodies in say.items():
            for body in bodies:
                here.post(f"/api/v1/parts/{seqs[name]}/review", body)
        answer = here.get("/api/v1/reviews/export?station=top")
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            archive.extractall(folder / "unzipped")
    return seqs


REVIEWED = {"good": 180, "scratch": 190, "unnamed": 60, "unsure": 195, "nobody": 70}


def test_reviewed_parts_become_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seqs = reviewed_line(tmp_path)
    out = tmp_path / "out"
    assert cli.run(["line", "export", str(tmp_path / "line.yml"), str(out)]) == 0
    assert "left out: 1 images: the reviewer was not sure" in capsys.readouterr().err

    expected = {f"{kind}/part-{seqs[name]}.png" for kind, name in (("good", "good"), ("scratch", "scratch"))}
    expected.add(f"defect/part-{seqs['unnamed']}.png")
    for root in (out, tmp_path / "unzipped"):
        files = {path.relative_to(root / "top" / "cam0").as_posix() for path in (root / "top").rglob("*.png")}
        assert files == expected
        assert (root / "top" / "cam0" / "good" / f"part-{seqs['good']}.png").read_bytes() == png(180)
        lines = [json.loads(line) for line in (root / "reviews.jsonl").read_text().splitlines()]
        said = {line["part"]: (line["verdict"], line["label"], line["type"], line["left_out"]) for line in lines}
        assert said == {
            seqs["good"]: ("reject", "normal", "", ""),
            seqs["scratch"]: ("reject", "anomalous", "scratch", ""),
            seqs["unnamed"]: ("accept", "anomalous", "", ""),
            seqs["unsure"]: ("reject", "unsure", "", "the reviewer was not sure"),
        }

    dataset = open_dataset(out / "top" / "cam0")
    assert {(sample.defect, sample.is_anomalous) for sample in dataset.samples} == {
        ("good", False),
        ("scratch", True),
        ("defect", True),
    }
    assert (dataset.layout, dataset.ignored, dataset.orphan_masks) == ("folders", (), ())
    assert verify(tmp_path / "state").is_whole


def test_an_export_that_nobody_takes_any_more_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may = [], threading.Semaphore(2)

    def read(state: Path, record: ViewRecord) -> bytes:
        asked.append(record.image)
        assert may.acquire(timeout=30)
        return b"x" * 1000

    with line_here(tmp_path, images=ALL) as here:
        for _ in range(20):
            here.post(f"/api/v1/parts/{here.push(png(50))['seq']}/review", {"label": "normal"})
        monkeypatch.setattr(export, "read_image", read)
        with here.client.stream("GET", "/api/v1/reviews/export") as answer:
            assert answer.status_code == 200
            wait_until(lambda: len(asked) == 3)
        # How soon the line hears it depends on the machine; it must before all are read.
        count = 0
        while count < len(asked) < 20:
            count = len(asked)
            may.release()
            end = time.monotonic() + 1.0
            while len(asked) == count and time.monotonic() < end:
                time.sleep(0.01)
        assert len(asked) < 20


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviewed_line(tmp_path)
    arguments = ["line", "export", str(tmp_path / "line.yml"), str(tmp_path / "out")]
    assert cli.run([*arguments, "--view", "cam0"]) == 0
    assert cli.run(arguments) == 2
    assert cli.run([*arguments, "--overwrite"]) == 0
    assert cli.run([*arguments, "--overwrite", "--station", "bottom"]) == 1
    said = capsys.readouterr().err
    assert "no reviewed image could be exported" in said
    assert "--station: expected one of top, got bottom. Name another." in said
