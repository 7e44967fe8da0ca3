"""What the way to an inference server and back costs: the same images here and over loopback, in turns.

    python benchmarks/served_latency.py BUNDLE FOLDER [--images 40] [--rounds 5]

The server is the stand-in of the tests in a process of its own, with ONNX Runtime behind it as here: no Triton. Every
way has to give the same scores to the last bit. One line of JSON: for each way milliseconds of an image from file to
decision, one after the other (median over all rounds), and images a second of a stream, alone and with four requests
under way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flawscope.bundle import open_bundle
from flawscope.export.triton import write_models
from flawscope.files import temporary_folder
from flawscope.runtime import Inspector
from flawscope.runtime.client import connect

STAND_IN = Path(__file__).resolve().parent.parent / "tests" / "helpers" / "kserve_stand_in.py"
AT_ONCE = 4


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    images = sorted(path for path in arguments.folder.rglob("*") if path.is_file())[: arguments.images]
    with temporary_folder() as repository, ExitStack() as stack:
        with open_bundle(arguments.bundle) as bundle:
            write_models(bundle, repository / "models")
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(STAND_IN), str(repository / "models")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert server.stdout is not None
        ports = json.loads(server.stdout.readline())
        ways = {"here": stack.enter_context(Inspector.load(arguments.bundle, "cpu", path="graph"))}
        for protocol, port in ports.items():
            ways[protocol] = stack.enter_context(connect(arguments.bundle, f"{protocol}://127.0.0.1:{port}"))
        print(json.dumps(measure(ways, images, arguments.rounds)))
        assert server.stdin is not None
        server.stdin.close()


def measure(ways: dict[str, Inspector], images: list[Path], rounds: int) -> dict[str, Any]:
    """Return the figures of every way; the first round is a warm-up."""
    singles: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {}
    scores: dict[str, list[float | None]] = {}
    for round_ in range(rounds + 1):
        for name, inspector in ways.items():
            times, found = [], []
            for image in images:
                started = time.perf_counter()
                found.append(inspector(image).score)
                times.append(1e3 * (time.perf_counter() - started))
            assert scores.setdefault("all", found) == found, f"{name}: expected the scores of the other ways"
            several = (1,) if name == "here" else (1, AT_ONCE)
            for at_once in several:
                started = time.perf_counter()
                count = sum(1 for _ in inspector.stream(images, in_flight=at_once))
                if round_:
                    rate = count / (time.perf_counter() - started)
                    rates.setdefault(name if at_once == 1 else f"{name}, {at_once} under way", []).append(rate)
            if round_:
                singles[name] += times
    return {
        "images": len(images),
        "rounds": rounds,
        "ms_p50": {name: round(statistics.median(times), 2) for name, times in singles.items()},
        "ms_p90": {name: round(statistics.quantiles(times, n=10)[-1], 2) for name, times in singles.items()},
        "images_per_s": {name: round(statistics.median(found), 1) for name, found in rates.items()},
    }


if __name__ == "__main__":
    main()
