"""Run a line for a long time and watch what it holds: memory, open files, threads; and its account at the end.

`flawscope line run` is a process of its own; parts come over HTTP at a steady rate, the images of a folder in turns,
one part in a hundred with a broken image. Its state lies in FOLDER.

    python benchmarks/line_soak.py BUNDLE IMAGE_FOLDER FOLDER --minutes 30 --parts-per-s 20 --out FILE.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from result_file import machine

from flawscope.files import write_text
from flawscope.imaging.image_files import images_in
from flawscope.versions import package_versions

CONFIG = """
line: {{name: soak, state: {state}}}
http: {{listen: "127.0.0.1:{port}"}}
stations:
  - name: one
    deadline_ms: {deadline_ms}
    depth: 16
    views:
      - {{name: cam0, source: {{kind: push}}, bundle: {bundle}, scene: {{frozen: note}}}}
sinks:
  - {{kind: jsonl, path: {sink}}}
"""
START_S = 120.0
END_S = 60.0
_SMALLEST = 4
"""Fewest points of the second half of a run from which a slope is told."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def held(pid: int) -> dict[str, int]:
    """Return resident bytes, open files and threads of a process and its children."""
    total = {"resident_bytes": 0, "files": 0, "threads": 0}
    for each in _family(pid):
        place = Path(f"/proc/{each}")
        try:
            pages = int((place / "statm").read_text().split()[1])
            files, threads = (sum(1 for _ in (place / name).iterdir()) for name in ("fd", "task"))
        except OSError:  # a child that has just ended
            continue
        total["resident_bytes"] += pages * os.sysconf("SC_PAGE_SIZE")
        total["files"] += files
        total["threads"] += threads
    return total


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def slope(points: Sequence[dict[str, float]], name: str) -> float:
    """Return by how much something grows with each part, over the second half of the points."""
    half = points[len(points) // 2 :]
    if len(half) < _SMALLEST:
        raise SystemExit(f"expected at least {2 * _SMALLEST} points, got {len(points)}. Run it for longer.")
    return float(np.polyfit([point["parts"] for point in half], [point[name] for point in half], 1)[0])


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Wait until the line is ready."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the line ended at its start, exit status {process.returncode}")
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the line was not ready within {START_S:.0f} s")


def feed(options: argparse.Namespace, client: httpx.Client, pid: int, images: Sequence[bytes]) -> dict[str, Any]:
    """Give parts at a steady rate and note what the process holds."""
    verdicts: Counter[str] = Counter()
    points: list[dict[str, float]] = []
    started = time.monotonic()
    end, every_s = started + 60 * options.minutes, 60 * options.minutes / options.points
    parts = 0
    for image in itertools.cycle(images):
        now = time.monotonic()
        if now >= started + every_s * len(points):
            points.append({"s": round(now - started, 1), "parts": parts, **held(pid)})
            print(json.dumps(points[-1]), file=sys.stderr, flush=True)
        if now >= end:
            break
        if (left := started + parts / options.parts_per_s - now) > 0:
            time.sleep(left)
        body = image[: len(image) // 2] if parts % 100 == 99 else image
        answer = client.post(
            "/api/v1/stations/one/trigger?wait=1", content=body, headers={"Content-Type": "application/octet-stream"}
        )
        answer.raise_for_status()
        verdicts[answer.json()["verdict"] or "none"] += 1
        parts += 1
    return {"parts": parts, "seconds": time.monotonic() - started, "verdicts": dict(verdicts), "points": points}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a line for so many minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("folder", type=Path, help="empty folder for the state of the line")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--parts-per-s", type=float, default=20.0)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--deadline-ms", type=float, default=5000.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        raise SystemExit(f"{options.folder}: expected an empty folder, got one with files. Name another.")
    images = [path.read_bytes() for path in images_in(options.images)]
    port, config = free_port(), options.folder / "line.yml"
    config.write_text(
        CONFIG.format(
            state="state",
            sink="results",
            port=port,
            deadline_ms=options.deadline_ms,
            bundle=json.dumps(str(options.bundle.resolve())),
        )
    )
    command = [sys.executable, "-m", "flawscope", "line"]
    process = subprocess.Popen([*command, "run", str(config)])
    try:
        # trust_env: proxies of the machine must not get these requests.
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False) as client:
            wait_until_ready(client, process)
            found = feed(options, client, process.pid, images)
            state = client.get("/api/v1/state").json()
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(END_S)
    document = {
        "suite": "line_soak",
        "settings": {name: getattr(options, name) for name in ("minutes", "parts_per_s", "points", "deadline_ms")},
        "machine": machine(),
        "versions": package_versions(),
        **found,
        "exit_status": status,
        "account_holds": state["account_holds"],
        "resident_bytes_per_part": slope(found["points"], "resident_bytes"),
        "files_per_part": slope(found["points"], "files"),
        "threads_per_part": slope(found["points"], "threads"),
        "state_bytes": sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file()),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if options.out is not None:
        write_text(options.out, text + "\n")


if __name__ == "__main__":
    main()
