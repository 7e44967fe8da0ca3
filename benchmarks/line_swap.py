"""Measure a swap of bundles on a line that works: how long each step takes, and what parts wait meanwhile.

Parts come at equal distances. Each cycle swaps to the other bundle, takes the swap back, and waits until the line has
let go of the other bundle, so that each swap loads it anew. Parts are told apart by whether a swap was on its way.

    python benchmarks/line_swap.py BUNDLE OTHER IMAGE_FOLDER FOLDER --out results/NAME.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from line import percentiles, running, settled
from result_file import machine

from flawscope.bundle import open_bundle
from flawscope.files import write_text
from flawscope.imaging.image_files import images_in
from flawscope.versions import package_versions

_REST_S = 8.0
"""Longer than the deadline of the line: a bundle is let go of then."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure swaps and the way back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("folder", type=Path, help="folder for the journals, on the disk that counts")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--rate", type=float, default=20.0, help="parts a second")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    images = [path.read_bytes() for path in itertools.islice(images_in(options.images), 100)]
    document: dict[str, Any] = {
        "suite": "line_swap",
        "settings": {name: getattr(options, name) for name in ("backend", "depth", "rate", "cycles")},
        "machine": machine(),
        "versions": package_versions(),
        "bundles": [described(path) for path in (options.bundle, options.other)],
        **measure(options, images),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if options.out is not None:
        write_text(options.out, text + "\n")


def measure(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Swap and roll back while parts come, and return the times of steps and parts."""
    steps: list[dict[str, float]] = []
    rollback_ms: list[float] = []
    swapping: list[tuple[int, int]] = []
    stop = threading.Event()
    with running(options, 1) as line:
        (station,) = line.stations.values()
        assert line.swaps is not None
        swaps, name = line.swaps, station.name
        digest = swaps.add(options.other)
        rest(line, 1.0)

        def push() -> None:
            start = time.perf_counter()
            for number, image in enumerate(itertools.cycle(images)):
                if stop.wait(max(0.0, start + number / options.rate - time.perf_counter())):
                    return
                station.push({"cam0": image})

        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            for _ in range(options.cycles):
                rest(line, _REST_S)
                begun = time.monotonic_ns()
                swaps.begin(name, None, digest)
                while (state := swaps.state(name))["state"] == "running":
                    time.sleep(0.01)
                if state["state"] != "done":
                    raise SystemExit(f"expected a swap, got {state}")
                swapping.append((begun, time.monotonic_ns()))
                steps.append({step["name"]: step["ms"] for step in state["steps"]})
                rest(line, 1.0)
                started = time.perf_counter()
                swaps.rollback(name)
                rollback_ms.append(1e3 * (time.perf_counter() - started))
        finally:
            stop.set()
            pusher.join()
        settled(line, 1)
        records = line.journal.parts(limit=10**6)
        told = line.told.at  # type: ignore[attr-defined]
        numbers = [record.seq for record in records]
        if numbers != list(range(1, len(numbers) + 1)):
            raise SystemExit("expected every number once, got gaps")
    rows: dict[bool, list[float]] = {False: [], True: []}
    for record in records:
        is_swapping = any(begun <= record.mono_ns <= ended for begun, ended in swapping)
        rows[is_swapping].append((told[record.seq] - record.mono_ns) / 1e6)
    return {
        "parts": len(records),
        "swap_ms": {name: float(np.median([each[name] for each in steps])) for name in steps[0]},
        "swap_s": percentiles([(ended - begun) / 1e9 for begun, ended in swapping]),
        "rollback_ms": percentiles(rollback_ms),
        "trigger_to_verdict_ms": {"parts": len(rows[False]), **percentiles(rows[False])},
        "trigger_to_verdict_while_swapping_ms": {"parts": len(rows[True]), **percentiles(rows[True])},
    }


def rest(line: Any, seconds: float) -> None:
    """Turn a line once a second, as its command does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        line.turn()
        time.sleep(min(1.0, left))


def described(path: Path) -> dict[str, Any]:
    """Return what a bundle is."""
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        mib = sum(entry.size for entry in manifest.files.values()) / 2**20
        return {"method": manifest.method, "input": list(manifest.input.size), "mib": round(mib, 1)}


if __name__ == "__main__":
    main()
