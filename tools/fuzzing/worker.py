"""A process that tries cases, one after another: a crash ends it, not the campaign.

python -m fuzzing.worker FOLDER     with the order in FOLDER/order.json
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity

from fuzzing.cases import Case
from fuzzing.guard import Finding, Guard
from fuzzing.targets import Target, target_named

CASE, SCRATCH, BAIT, OUTPUT, HEART, RESULT = "case", "tmp", "bait", "output", "heart", "result.json"
BEAT = struct.Struct("<Qdd")
"""A beat of the heart file: cases begun, the time, and the processor time of the process at that moment."""
_KEPT = 3
"""Cases of one cause that a worker keeps."""
_PR_SET_PDEATHSIG = 1


class Worker:
    """Tries cases and keeps what is found.

    Args:
        folder: Folder of this worker.
        order: `target`, `seeds` and `findings` (folders), `limit_s`; and `count` and `seed`, unless a case is replayed.
    """

    def __init__(self, folder: Path, order: dict[str, Any]) -> None:
        self._folder, self._order = folder, order
        self._target: Target = target_named(order["target"])
        self._guard = Guard(folder / CASE, folder / SCRATCH, folder / BAIT, folder / OUTPUT, order["limit_s"])
        self._heart = os.open(folder / HEART, os.O_WRONLY | os.O_CREAT)
        self._begun = self._succeeded = 0
        self._found: dict[str, int] = {}

    def run(self) -> None:
        """Try as many cases as ordered."""
        cases = self._target.cases(Path(self._order["seeds"]), self._folder / BAIT / "secret")

        @hypothesis.seed(self._order["seed"])
        @hypothesis.settings(
            max_examples=self._order["count"],
            database=None,
            deadline=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        @hypothesis.given(cases)
        def each(case: Case) -> None:
            case.lay(self._folder / CASE)
            self.try_case()

        each()

    def tell(self) -> None:
        """Write the result."""
        result = {"cases": self._begun, "succeeded": self._succeeded, "found": self._found}
        (self._folder / RESULT).write_text(json.dumps(result))

    def try_case(self) -> None:
        """Try the case that lies in the folder; keep it if something is found."""
        self._begun += 1
        os.pwrite(self._heart, BEAT.pack(self._begun, time.monotonic(), time.process_time()), 0)
        try:
            self._succeeded += self._guard.check(lambda: self._target.work(self._folder / CASE))
        except Finding as finding:
            key = f"{finding.kind} {finding.place}"
            self._found[key] = self._found.get(key, 0) + 1
            if self._found[key] <= _KEPT:
                keep(self._folder / CASE, Path(self._order["findings"]), self._order["target"], finding)
            shutil.rmtree(self._folder / SCRATCH)
            (self._folder / SCRATCH).mkdir()
        # Between cases: making the next one takes its time too.
        self._rest()

    def _rest(self) -> None:
        os.pwrite(self._heart, BEAT.pack(self._begun, 0.0, 0.0), 0)


def keep(case: Path, findings: Path, target: str, finding: Finding) -> Path:
    """Copy a case and what it did into a folder of its own; return that."""
    digest = hashlib.sha256(f"{finding.kind} {finding.place} {time.time_ns()}".encode()).hexdigest()[:10]
    place = findings / f"{target}-{finding.kind}-{digest}"
    shutil.copytree(case, place)
    told = {"target": target, "kind": finding.kind, "place": finding.place, "text": finding.text}
    (place / "finding.json").write_text(json.dumps(told, indent=1))
    return place


def main() -> None:
    """Do what the order says."""
    folder = Path(sys.argv[1])
    faulthandler.enable()
    # Nobody would wait for a worker whose campaign was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads((folder / "order.json").read_bytes())
    worker = Worker(folder, order)
    if "count" in order:
        worker.run()
    else:  # a replay: the case lies there
        worker.try_case()
    worker.tell()


if __name__ == "__main__":
    main()
