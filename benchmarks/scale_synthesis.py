"""`synth generate` in shards over many images: seconds of the plan, of going on after a kill, and memory on the way.

The images are small (32x32) and so is the network (four graphs made by hand, 16x16): what is measured is everything
around the drawing. `plan` and `resume` are short and want a quiet machine; memory does not.

    python benchmarks/scale_synthesis.py plan --work DIR --images 100000      # makes input and plan
    python benchmarks/scale_synthesis.py draw --work DIR                      # draws until --kill-at, then kill -9
    python benchmarks/scale_synthesis.py resume --work DIR                    # until a worker draws again, then kill -9
    python benchmarks/scale_synthesis.py finish --work DIR                    # to the end

Each adds what it measured to DIR/scale_synthesis.json. `draw` and `finish` go on with what is whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from result_file import machine

# The bundle of the tests: it is made by hand, so that no training stands before a measurement.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from tiny_synth_bundle import write_tiny_synth

from flawscope.versions import package_versions

SIDE = 32
NORMALS, MASKS = 1000, 100
POLL_S = 0.2


def make_input(work: Path) -> None:
    """Write a bundle, normal images and masks, from a fixed seed."""
    rng = np.random.default_rng(0)
    write_tiny_synth(work / "drawer.flaw", share=0.9)
    for number in range(NORMALS):
        image = np.clip(170 + rng.normal(0, 6, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        write(work / f"data/steel/train/good/{number:04d}.png", image)
    for number in range(MASKS):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(4, 16, 2)
        mask[top : top + 6 + number % 6, left : left + 6 + number % 5] = 255
        write(work / f"masks/steel/stain/{number:03d}.png", mask)


def write(path: Path, image: np.ndarray[Any, Any]) -> None:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


class Run:
    """One command, and what its processes take."""

    def __init__(self, work: Path, settings: dict[str, int], *more: str) -> None:
        per_image = str(settings["images"] // NORMALS)
        command = [
            *(sys.executable, "-m", "flawscope", "synth", "generate", str(work / "drawer.flaw")),
            *("--masks", str(work / "masks"), "--data", str(work / "data"), "--per-image", per_image),
            *("--backend", "cpu", "--keep-all", "--workers", str(settings["workers"])),
            *("--shard-size", str(settings["shard_size"]), "--out", str(work / "set"), *more),
        ]
        self.shards = work / "set.parts/round-001/shards"
        self.began = time.perf_counter()
        with (work / "log.txt").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began

    def whole(self) -> int:
        """Return how many shards are whole."""
        return sum(name.endswith(".jsonl") for name in listed(self.shards))

    def memory(self) -> dict[str, Any]:
        """Return the resident memory now in MB: of the driver and of each worker."""
        workers = [pid for pid in children(self.process.pid) if resident_mb(pid) > 20]
        return {
            "whole": self.whole(),
            "seconds": round(self.seconds, 1),
            "driver_mb": resident_mb(self.process.pid),
            "worker_mb": sorted(resident_mb(pid) for pid in workers),
        }

    def kill(self) -> None:
        """End it as a lack of power would."""
        workers = children(self.process.pid)  # before: orphans have another parent
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        while any(resident_mb(pid) for pid in workers):
            time.sleep(POLL_S)


def listed(folder: Path) -> list[str]:
    """Return the names in a folder; none where it is not there."""
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def children(pid: int) -> list[int]:
    """Return the processes that a process and its children have started."""
    found = []
    for entry in listed(Path("/proc")):
        if entry.isdigit() and parent_of(int(entry)) == pid:
            found += [int(entry), *children(int(entry))]
    return found


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 where it is gone."""
    return status_of(pid).get("PPid", 0)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 where it is gone."""
    return round(status_of(pid).get("VmRSS", 0) / 1024, 1)


def status_of(pid: int) -> dict[str, int]:
    """Return the whole numbers of the status of a process."""
    try:
        lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) for name, value in pairs if value.split() and value.split()[0].isdigit()}


def plan(work: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Make the input and the plan."""
    make_input(work)
    shutil.rmtree(work / "set.parts", ignore_errors=True)
    run = Run(work, settings, "--plan-only")
    if run.process.wait():
        raise SystemExit(f"{work / 'log.txt'}: the plan failed.")
    items = work / "set.parts/round-001/items.jsonl"
    return {"seconds": round(run.seconds, 2), "items_mb": round(items.stat().st_size / 1e6, 1)}


def draw(work: Path, settings: dict[str, int], until: float, most_s: float) -> dict[str, Any]:
    """Draw until a share of the shards is whole, the time is over, or to the end; sample memory at each tenth."""
    run, samples = Run(work, settings, "--resume"), list[dict[str, Any]]()
    total = -(-settings["images"] // settings["shard_size"])
    peak: dict[str, float] = {"driver_mb": 0.0, "worker_mb": 0.0}
    first = None
    while run.process.poll() is None:
        now = run.memory()
        first = now["whole"] if first is None else first
        peak["driver_mb"] = max(peak["driver_mb"], now["driver_mb"])
        peak["worker_mb"] = max([peak["worker_mb"], *now["worker_mb"]])
        if now["whole"] * 10 // total > (samples[-1]["whole"] * 10 // total if samples else first * 10 // total):
            samples.append(now)
        if (until < 1 and now["whole"] >= until * total) or run.seconds > most_s:
            run.kill()
            break
        time.sleep(POLL_S)
    else:
        if run.process.returncode:
            raise SystemExit(f"{work / 'log.txt'}: drawing failed with status {run.process.returncode}.")
    return {
        "first_whole": first,
        "last_whole": run.whole() if run.shards.is_dir() else total,
        "of": total,
        "seconds": round(run.seconds, 1),
        "at": samples,
        "peak": peak,
    }


def resume(work: Path, settings: dict[str, int], times: int) -> dict[str, Any]:
    """Go on until a worker has begun a shard, some times, each ended by a kill."""
    taken = []
    for _ in range(times):
        run = Run(work, settings, "--resume")
        began = {name for name in listed(run.shards) if name.endswith(".tmp")}
        while not {name for name in listed(run.shards) if name.endswith(".tmp")} - began:
            if run.process.poll() is not None:
                raise SystemExit(f"{work / 'log.txt'}: it ended before a worker began.")
            time.sleep(0.02)
        taken.append(round(run.seconds, 2))
        whole = run.whole()
        run.kill()
    return {"seconds_until_a_worker_draws": taken, "whole": whole}


def main() -> None:
    """Measure one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("plan", "draw", "resume", "finish"))
    parser.add_argument("--work", type=Path, required=True, help="folder for input, set and result")
    parser.add_argument("--images", type=int, default=100_000, help=f"a multiple of {NORMALS}")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--kill-at", type=float, default=0.9, help="share of the shards that are whole at the kill")
    parser.add_argument("--most-seconds", type=float, default=1e9, help="kill it then in any case, to go on later")
    parser.add_argument("--times", type=int, default=3, help="how often `resume` is measured")
    arguments = parser.parse_args()
    if arguments.images < NORMALS or arguments.images % NORMALS:
        parser.error(f"--images: expected a multiple of {NORMALS}, got {arguments.images}.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "scale_synthesis.json"
    document = json.loads(file.read_text()) if file.is_file() else {}
    if arguments.step == "plan":
        asked = {name: getattr(arguments, name) for name in ("images", "workers", "shard_size")}
        document = {"settings": asked, "versions": package_versions()}
    elif not document:
        parser.error(f"{arguments.step}: expected the step plan before it, got none in {arguments.work}.")
    settings = document["settings"]
    steps = {
        "plan": lambda: plan(arguments.work, settings),
        "draw": lambda: draw(arguments.work, settings, arguments.kill_at, arguments.most_seconds),
        "resume": lambda: resume(arguments.work, settings, arguments.times),
        "finish": lambda: draw(arguments.work, settings, 1.0, arguments.most_seconds),
    }
    document.setdefault(arguments.step, []).append(steps[arguments.step]())
    document["machine"] = machine()
    if (arguments.work / "set/generated.jsonl").is_file():
        with (arguments.work / "set/generated.jsonl").open("rb") as lines:
            document["lines"] = sum(1 for _ in lines)
    file.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document[arguments.step][-1]))


if __name__ == "__main__":
    main()
