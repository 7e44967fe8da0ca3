"""A new reference for drift, by request: for a view that is named, or the only one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

for needed in ("httpx", "starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

from http_here import GOES, Here  # noqa: E402


class NotingDrift:
    """Watches one view, and notes who asked for a new reference."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def state(self) -> tuple[Any, ...]:
        return ()

    def relearn(self, station: str, view: str, actor: str, role: str = "") -> bool:
        self.asked.append((station, view, actor, role))
        return view == "left"


@pytest.fixture
def drift(here: Here) -> Iterator[NotingDrift]:
    noting = NotingDrift()
    here.line.drift = noting  # type: ignore[assignment]
    yield noting
    here.line.drift = None


def test_the_only_view_and_one_that_is_named(here: Here, drift: NotingDrift) -> None:
    answer = here.post("/api/v1/stations/one/drift/relearn", 200, headers=GOES)
    assert answer == {"station": "one", "view": "left"}
    here.post("/api/v1/stations/two/drift/relearn?view=left", 200, json={})
    assert drift.asked == [("one", "left", "local", "admin"), ("two", "left", "local", "admin")]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("two/drift/relearn", 400, "expected the view, as station two has several"),
        ("two/drift/relearn?view=middle", 400, "view: expected one of left, right, got 'middle'"),
        ("two/drift/relearn?view=right", 409, "expected a view that is watched for drift, got right"),
        ("none/drift/relearn", 404, "expected one of the stations"),
        ("one/drift/relearn?all=1", 400, "expected no parameters but view"),
    ],
)
def test_what_is_refused(here: Here, drift: NotingDrift, path: str, status: int, words: str) -> None:
    assert words in here.refused(f"/api/v1/stations/{path}", status, headers=GOES)


def test_a_line_without_a_watch(here: Here) -> None:
    refused = here.refused("/api/v1/stations/one/drift/relearn", 409, headers=GOES)
    assert "expected a view that is watched for drift" in refused
