"""Part `memory` of the kernel benchmark: memory of `nearest` besides its inputs and outputs.

Every case is a process of its own: run as a script, this file measures one case and prints it as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernels_measure import patches, present, target

from flawscope.errors import FlawscopeError

LIMIT_MB = 64
MB = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cases(quick: bool) -> list[dict[str, Any]]:
    """Return the options of each process."""
    size, all_channels, neighbours = ((8192, 784), (384,), (1,)) if quick else ((65536, 6272), (384, 1536), (1, 9))
    return [
        {"rows": size[0], "queries": size[1], "channels": channels, "neighbours": k, "kind": kind}
        for channels, k, kind in itertools.product(all_channels, neighbours, ("rows", "bank"))
    ]


def status_kb(name: str) -> int:
    """Return a value in KiB from /proc/self/status."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise FlawscopeError(f"{STATUS}: expected a line {name}, got none.")


def begin_peak() -> tuple[int, Callable[[], int], str]:
    """Return the resident bytes now, a function for the peak in bytes from now on, and how that is measured."""
    # Memory that was freed but not returned to the system would hide as much of the growth.
    ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")
    except OSError:
        # This peak cannot be reset and may be an earlier one: the growth is an upper bound.
        return status_kb("VmRSS") * 1024, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "ru_maxrss"
    return status_kb("VmRSS") * 1024, lambda: status_kb("VmHWM") * 1024, "VmHWM, reset before"


def measure_here(options: argparse.Namespace) -> dict[str, Any]:
    """Return the growth of this process's peak memory in one call, its outputs not counted."""
    from flawscope.cpp_ext import Bank, nearest

    rows = patches("clustered", options.rows, options.channels, options.seed)
    queries = patches("clustered", options.queries, options.channels, options.seed, stream=1)
    bank = Bank(rows, threads=options.threads) if options.kind == "bank" else rows
    before, peak, how = begin_peak()
    distances, places = nearest(queries, bank, options.neighbours, threads=options.threads)
    growth = peak() - before
    return {
        "growth_mb": (growth - distances.nbytes - places.nbytes) / MB,
        "outputs_mb": (distances.nbytes + places.nbytes) / MB,
        "inputs_mb": (rows.nbytes + queries.nbytes) / MB,
        "bank_mb": (bank.nbytes if isinstance(bank, Bank) else 0) / MB,
        "how": how,
    }


def measure_case(case: dict[str, Any], seed: int, threads: int) -> dict[str, Any]:
    """Return the row of one case, measured in a fresh process.

    Raises:
        FlawscopeError: If the process fails.
    """
    options = case | {"seed": seed, "threads": threads}
    command = [sys.executable, str(Path(__file__).resolve())]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no output"]
        raise FlawscopeError(f"memory, {case}: expected a result, got status {process.returncode}: {lines[-1]}")
    names = {"rows": "M", "queries": "N", "channels": "D", "neighbours": "k"}
    return {names.get(name, name): value for name, value in case.items()} | json.loads(process.stdout)


def measure(quick: bool, seed: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the rows of all cases."""
    rows = []
    for case in cases(quick):
        rows.append(measure_case(case, seed, threads))
        say(f"memory {case['channels']} {case['kind']} k={case['neighbours']}: {rows[-1]['growth_mb']:.1f} MB")
    return {"rows": rows}


def targets(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of this part."""
    return present(
        target(
            "nearest: memory over inputs and outputs (and the bank)",
            LIMIT_MB,
            {f"D {row['D']}, k {row['k']}, {row['kind']}": row["growth_mb"] for row in part["rows"]},
            "MB",
        )
    )


def main() -> None:
    """Measure one case and print it."""
    parser = argparse.ArgumentParser(description="One case of the memory part; see kernels.py.")
    for name in ("rows", "queries", "channels", "neighbours", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--kind", choices=["rows", "bank"], required=True)
    print(json.dumps(measure_here(parser.parse_args())))


if __name__ == "__main__":
    main()
