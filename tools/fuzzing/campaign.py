"""A campaign of fuzzing: worker processes in turn, their crashes and hangs, and a summary."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.guard import LIMIT_S, Finding
from fuzzing.targets import BUNDLES
from fuzzing.worker import BAIT, BEAT, CASE, HEART, OUTPUT, RESULT, SCRATCH, keep

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 2500
"""Cases that one process tries before another takes its place."""
# Times the limit of a case, in processor time and in time: then its process is ended. A machine that is busy with other
# work gives little processor time, and a case that waits takes none.
_DEAD_CPU, _DEAD_WALL = 2, 24


@dataclass
class Summary:
    """Figures of a campaign.

    Attributes:
        cases: Target -> cases tried.
        succeeded: Target -> how many were taken as good.
        found: Target and finding -> how often.
        seconds: Time it took.
    """

    cases: dict[str, int] = field(default_factory=dict)
    succeeded: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, target: str, cases: int, succeeded: int, found: Mapping[str, int]) -> None:
        """Add what a worker did."""
        self.cases[target] = self.cases.get(target, 0) + cases
        self.succeeded[target] = self.succeeded.get(target, 0) + succeeded
        for key, times in found.items():
            self.found[f"{target}: {key}"] = self.found.get(f"{target}: {key}", 0) + times

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON."""
        total = sum(self.cases.values())
        rate = round(total / max(self.seconds, 1e-9), 1)
        figures = {"cases": self.cases, "succeeded": self.succeeded, "found": self.found}
        return {**figures, "seconds": round(self.seconds, 1), "cases_per_second": rate}


def environment() -> dict[str, str]:
    """Return the environment of a worker."""
    paths = (str(ROOT / "tools"), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Images of a few hundred pixels gain nothing from threads; the limit keeps a header from taking seconds.
        "OMP_NUM_THREADS": "1",
        "FLAWSCOPE_MAX_PIXELS": str(1 << 23),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
    }


def make_seeds(folder: Path) -> None:
    """Write the valid bundles that campaigns begin with, in a process of its own: it imports torch."""
    code = "import sys, pathlib, fuzzing.bundle_seeds as seeds; seeds.write_bundle_seeds(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment(), cwd=ROOT)


class _Process:
    """One worker process, and the folder it works in."""

    def __init__(self, folder: Path, order: dict[str, object]) -> None:
        self.folder, self.order = folder, order
        for name in (CASE, SCRATCH, BAIT):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / BAIT / "secret").write_bytes(bytes(4096))
        (folder / HEART).write_bytes(bytes(BEAT.size))
        (folder / RESULT).unlink(missing_ok=True)
        (folder / "order.json").write_text(json.dumps(order))
        with (folder / OUTPUT).open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fuzzing.worker", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment(), "TMPDIR": str(folder / SCRATCH), "HOME": str(folder / SCRATCH)},
                cwd=ROOT,
            )
        self.hangs = False

    def beat(self) -> tuple[int, float, float]:
        """Return cases begun, when the last one began, and the processor time it began at."""
        begun, since, cpu = BEAT.unpack((self.folder / HEART).read_bytes()[: BEAT.size])
        return int(begun), float(since), float(cpu)

    def stop_if_it_hangs(self) -> None:
        """End the process if its case takes too long."""
        _, since, cpu = self.beat()
        if not since or self.process.poll() is not None:
            return
        spent = time.monotonic() - since
        limit = float(str(self.order["limit_s"]))
        if spent > _DEAD_WALL * limit or (spent > limit and _cpu_seconds(self.process.pid) - cpu > _DEAD_CPU * limit):
            self.hangs = True
            self.process.send_signal(signal.SIGABRT)  # at which faulthandler says where it hangs
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def result(self, findings: Path) -> tuple[int, int, dict[str, int]]:
        """Return cases, successes and findings of a process that ended; a case that ended it is kept."""
        target = str(self.order["target"])
        if self.process.returncode == 0:
            done = json.loads((self.folder / RESULT).read_bytes())
            return done["cases"], done["succeeded"], done["found"]
        output = (self.folder / OUTPUT).read_bytes()[-6000:].decode(errors="replace")
        begun, since, _ = self.beat()
        if not since:
            raise RuntimeError(f"the worker of {target} failed outside of a case:\n{output}")
        kind = "hang" if self.hangs else "crash"
        finding = Finding(kind, f"exit status {self.process.returncode}\n{output}", _stack(output))
        keep(self.folder / CASE, findings, target, finding)
        return begun, 0, {f"{kind} {finding.place}": 1}


def _stack(output: str) -> str:
    """Return the innermost place in Python of what faulthandler wrote."""
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith("File ")]
    ours = [line for line in lines if "/fuzzing/" not in line]
    return (ours or lines or ["unknown"])[0]


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(
    counts: Mapping[str, int],
    findings: Path,
    *,
    seed: int = 0,
    jobs: int = 1,
    limit_s: float = float("inf"),
    case_limit_s: float = LIMIT_S,
    tell: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Try cases of several targets.

    Args:
        counts: Target -> number of cases.
        findings: Folder for what is found.
        seed: Of the cases: the same seed gives the same cases.
        jobs: Processes at a time.
        limit_s: No new process begins after this time.
        case_limit_s: Processor time that a case may take.
        tell: Is given a line now and then.
    """
    findings.mkdir(parents=True, exist_ok=True)
    summary, started, told = Summary(), time.monotonic(), 0.0
    # In memory: a case is written and removed thousands of times.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="flawscope-fuzz-", dir=place) as name:
        folder = Path(name)
        if any(target in BUNDLES for target in counts):
            make_seeds(folder / "seeds")
        common = {"seeds": str(folder / "seeds"), "findings": str(findings), "limit_s": case_limit_s}
        orders = [{**common, **order} for order in _orders(counts, seed)]
        free, running = [folder / f"worker-{number}" for number in range(jobs)], list[_Process]()
        try:
            while running or (orders and time.monotonic() - started < limit_s):
                while free and orders and time.monotonic() - started < limit_s:
                    running.append(_Process(free.pop(), orders.pop(0)))
                time.sleep(0.1)
                for process in list(running):
                    process.stop_if_it_hangs()
                    if process.process.poll() is not None:
                        running.remove(process)
                        summary.add(str(process.order["target"]), *process.result(findings))
                        rest = _rest(process.order, process)
                        orders[:0] = [rest] if rest else []
                        shutil.rmtree(process.folder)
                        free.append(process.folder)
                summary.seconds = time.monotonic() - started
                if summary.seconds - told > 10:
                    told = summary.seconds
                    tell(f"{told:6.0f} s  {sum(summary.cases.values())} cases  {len(summary.found)} kinds of findings")
        finally:
            for process in running:
                process.process.kill()
                process.process.wait()
    return summary


def _orders(counts: Mapping[str, int], seed: int) -> Iterator[dict[str, object]]:
    """Yield the orders of workers, the targets in turn."""
    left = dict(counts)
    number = 0
    while any(left.values()):
        for target in left:
            if count := min(CHUNK, left[target]):
                left[target] -= count
                yield {"target": target, "count": count, "seed": seed * 1_000_003 + number}
                number += 1


def _rest(order: dict[str, object], process: _Process) -> dict[str, object] | None:
    """Return an order for the cases that a process which ended early has left over, or None."""
    left = int(str(order["count"])) - process.beat()[0]
    if process.process.returncode == 0 or left <= 0:
        return None
    # Another seed: the same one would end at the same case again.
    return {**order, "count": left, "seed": int(str(order["seed"])) + 500_000}


def replay(finding: Path, findings: Path) -> dict[str, int]:
    """Try a kept case again; return what is found."""
    told = json.loads((finding / "finding.json").read_bytes())
    with tempfile.TemporaryDirectory(prefix="flawscope-fuzz-") as name:
        folder = Path(name)
        order = {"target": told["target"], "seeds": "", "findings": str(findings), "limit_s": LIMIT_S}
        shutil.copytree(finding, folder / CASE, ignore=shutil.ignore_patterns("finding.json"))
        process = _Process(folder, order)
        while process.process.poll() is None:
            time.sleep(0.05)
            process.stop_if_it_hangs()
        return process.result(findings)[2]
