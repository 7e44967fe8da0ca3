"""The operator's page as files: what is served, that nothing foreign is asked for, and that text stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from project_paths import ROOT

pytest.importorskip("starlette", reason="the HTTP interface needs the extra `line`")
pytest.importorskip("uvicorn", reason="the HTTP interface needs the extra `line`")
pytest.importorskip("httpx", reason="the client of these tests")

PAGE = ROOT / "runtime" / "line" / "http" / "page"
FILES = sorted(path for path in PAGE.iterdir())
WITH_TEXT = [path for path in FILES if path.suffix in (".js", ".html")]


def test_the_page_is_served_and_asked_for_again_only_when_it_changed(here: Any) -> None:
    answer = here.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers.get_list("cache-control") == ["no-cache"]
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    again = here.client.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert here.client.get("/", headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_with_its_type(here: Any, path: Path) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    answer = here.client.get(f"/page/{path.name}")
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"].partition(";")[0] == kinds[path.suffix]


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "%2e%2e/app.py", "", "__init__.py"])
def test_nothing_else_is_served(here: Any, name: str) -> None:
    assert here.client.get(f"/page/{name}").status_code == 404


def test_the_page_asks_for_its_own_files_alone() -> None:
    names = {path.name for path in FILES}
    asked = set()
    for path in FILES:
        text = path.read_text()
        asked |= set(re.findall(r'from "\./([^"]+)"', text)) | set(re.findall(r'(?:href|src)="/page/([^"]+)"', text))
        foreign = set(re.findall(r"\w+://[^\"'\s]*", text)) - {"http://www.w3.org/2000/svg"}
        assert not foreign, path.name
    # Nothing is asked for that is not there, and nothing lies there that nobody asks for.
    assert asked | {"index.html"} == names


@pytest.mark.parametrize("path", WITH_TEXT, ids=lambda path: path.name)
def test_text_is_set_as_text_and_nothing_is_inline(path: Path) -> None:
    text = path.read_text()
    # Part ids come from strangers. What the content policy would refuse must not be there either.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=\"|<script(?![^>]*src=)|javascript:", text)


def test_a_shift_begins_for_all_pages_and_is_on_record(here: Any) -> None:
    before = here.get("/api/v1/shift")
    assert (before["actor"], before["is_start"]) == ("line", True)
    here.one.push({}, "")
    counts = here.one.status()
    told = here.post("/api/v1/shift", 200, headers={"X-Flawscope": "1"})
    assert told["before"]["one"] == {"accept": counts.accept, "reject": counts.reject, "fault": counts.fault}
    assert here.get("/api/v1/shift") == told
    assert (told["actor"], told["is_start"]) == ("local", False)
    event = here.line.journal.said[-1]
    assert (event["action"], event["actor"]) == ("shift", "local")
    assert json.loads(event["new"]) == told["before"]
