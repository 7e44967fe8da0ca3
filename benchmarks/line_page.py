"""Measure what an open page costs a line: time from trigger to verdict with it and without, in turns.

A process of its own does what the page in a browser does, without drawing: it reads the stream of events, and after
each `new` asks for the state, the last 20 parts and the JPEG of the newest one, at most five times a second. Parts come
at equal distances, their image files from memory. The browser itself is left out: it takes cores where it runs.

    python benchmarks/line_page.py BUNDLE IMAGE_FOLDER FOLDER --out results/NAME.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from line import burst, paced, percentiles, running
from result_file import machine

from flawscope.files import write_text
from flawscope.imaging.image_files import images_in
from flawscope.runtime.line.line import Line
from flawscope.versions import package_versions

PAUSE_S = 0.2
"""Between two answers that the page asks for (`line.js`)."""
_LAST = 20


class Page:
    """What the page asks for, over one connection that is kept, as a browser does.

    Args:
        url: Address of the line.
        is_map: Whether the image is asked for with its anomaly map.

    Attributes:
        asked: What was asked for -> how many times it was answered.
    """

    def __init__(self, url: str, *, is_map: bool) -> None:
        host = urlsplit(url).netloc
        self._connection, self._events = (http.client.HTTPConnection(host, timeout=30) for _ in range(2))
        self._is_map, self._seen, self._shown = is_map, {}, {}
        self.asked: Counter[str] = Counter()
        self._is_new = threading.Event()

    def run(self, seconds: float) -> None:
        """Watch the line for a time."""
        threading.Thread(target=self._listen, daemon=True).start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # Every two seconds in any case.
            self._is_new.wait(2.0)
            self._is_new.clear()
            self._refresh()
            time.sleep(PAUSE_S)

    def _listen(self) -> None:
        self._events.request("GET", "/api/v1/events")
        for line in self._events.getresponse():
            if line.startswith(b"data:"):
                self.asked["new"] += 1
                self._is_new.set()

    def _refresh(self) -> None:
        state = json.loads(self._get("state", "/api/v1/state"))
        for station in state["stations"]:
            name, parts = station["name"], station["parts"]
            if self._seen.get(name) == parts:
                continue
            self._seen[name] = parts
            found = json.loads(self._get("parts", f"/api/v1/parts?station={name}&order=newest&limit={_LAST}"))["parts"]
            if not found or self._shown.get(name) == found[0]["seq"]:
                continue
            self._shown[name] = found[0]["seq"]
            view = found[0]["views"][0]["view"]
            query = f"view={view}&map={int(self._is_map)}&seq={found[0]['seq']}"
            self._get("image", f"/stations/{name}/live.jpg?{query}")

    def _get(self, what: str, path: str) -> bytes:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        # An image may be gone from memory when it is asked for.
        self.asked[what if answer.status == 200 else f"{what}: {answer.status}"] += 1
        return body


@contextmanager
def watched(line: Line, pages: int, seconds: float, *, is_map: bool) -> Iterator[list[dict[str, int]]]:
    """Watch a line by so many pages for a block; yields a list that holds what each has asked for, afterwards."""
    command = [sys.executable, __file__, "--watch", line.page, str(seconds), "1" if is_map else "0"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(pages)]
    asked: list[dict[str, int]] = []
    try:
        end = time.monotonic() + 60
        while pages and line._server.watchers < pages:  # type: ignore[union-attr]
            if time.monotonic() > end:
                raise SystemExit(f"expected {pages} pages, got {line._server.watchers}")  # type: ignore[union-attr]
            time.sleep(0.02)
        yield asked
        asked += [json.loads(process.communicate(timeout=seconds + 60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Measure a line of one station with pages and without, in turns."""
    times: dict[int, list[float]] = {0: [], options.pages: []}
    asked: Counter[str] = Counter()
    seconds = len(images) / options.parts_per_s
    with running(options, 1) as line:
        burst(line, images[:50])  # the first warms up
        for _ in range(options.turns):
            for pages, told in times.items():
                with watched(line, pages, seconds, is_map=options.map) as counts:
                    told += [row["told"] for row in paced(line, images, options.parts_per_s)]
                for count in counts:
                    asked.update(count)
    without, with_pages = (percentiles(told) for told in times.values())
    return {
        "parts": len(times[0]),
        "without_ms": without,
        "with_ms": with_pages,
        "cost_ms": {name: with_pages[name] - without[name] for name in without},
        "asked_per_s": {what: count / (options.turns * seconds) for what, count in sorted(asked.items())},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or be the page."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--watch"]:
        page = Page(given[1], is_map=given[3] == "1")
        page.run(float(given[2]))
        print(json.dumps(page.asked))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("folder", type=Path, help="folder for the journals, on the disk that counts")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, help="threads of the inference; all cores by default")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--count", type=int, default=200, help="images of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--parts-per-s", type=float, default=20.0)
    parser.add_argument("--pages", type=int, default=1)
    parser.add_argument("--map", action="store_true", help="with the anomaly map over the image")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    images = [path.read_bytes() for path in itertools.islice(itertools.cycle(images_in(options.images)), options.count)]
    document: dict[str, Any] = {
        "suite": "line_page",
        "settings": {
            name: getattr(options, name)
            for name in ("backend", "threads", "depth", "count", "turns", "parts_per_s", "pages", "map")
        },
        "machine": machine(),
        "versions": package_versions(),
        **measure(options, images),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if options.out is not None:
        write_text(options.out, text + "\n")


if __name__ == "__main__":
    main()
