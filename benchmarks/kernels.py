"""Compare the native kernels with faiss, torch, NumPy and anomalib on the CPU, in one run, and check the targets.

    python benchmarks/kernels.py [--quick] [--only PART] [--out FILE] [--anomalib-python PATH]

Needs faiss-cpu and threadpoolctl besides flawscope's own packages, and anomalib in an environment of its own, which is
made if it is not given. The result is written anew after every part; with --only, the other parts in --out are kept if
settings, versions, kernels and machine are the same. --quick runs every part on its smallest shape, as a test of the
scripts: its figures mean nothing, anomalib takes part only with --anomalib-python, and without --out nothing is
written. The method is described in README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kernels_kcenter
import kernels_mahalanobis
import kernels_measure
import kernels_memory
import kernels_nearest
import kernels_window
import numpy as np
from anomalib_env import ensure_environment
from kernels_tables import print_tables

import flawscope
from flawscope.cpp_ext import HAVE_CUDA, HAVE_NATIVE, implementation, native, simd_level
from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.files import sha256_file, write_text
from flawscope.versions import cpu_name, package_versions

PARTS = {
    "nearest": kernels_nearest,
    "window": kernels_window,
    "kcenter": kernels_kcenter,
    "mahalanobis": kernels_mahalanobis,
    "memory": kernels_memory,
}
RIVALS = {"faiss": "faiss-cpu", "threadpoolctl": "threadpoolctl", "torch": "torch"}
RESULTS = Path(__file__).resolve().parent / "results"
SGEMM_SIZE = 2048
SEED = 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every part on its smallest shape, in seconds")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--out", type=Path, help="JSON file; results/VERSION/kernels--cpu.json unless --quick")
    parser.add_argument(
        "--anomalib-python", type=Path, help="Python of an environment with anomalib; made if not given"
    )
    options = parser.parse_args(arguments)
    if options.out is None and not options.quick:
        options.out = RESULTS / flawscope.__version__ / "kernels--cpu.json"
    return options


def check_installation(options: argparse.Namespace) -> None:
    """Raise ArgumentError unless compiled kernels and all rivals are installed."""
    missing = []
    for module, package in RIVALS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise ArgumentError(
            f"{sys.executable}: expected an environment with the rivals, got one without {', '.join(missing)}. "
            f"Install them with: pip install {' '.join(missing)}"
        )
    if not HAVE_NATIVE:
        raise ArgumentError(f"kernels: expected compiled ones to measure, got {implementation()}.")
    if options.anomalib_python is not None and not options.anomalib_python.is_file():
        raise ArgumentError(f"--anomalib-python: expected a Python, got {options.anomalib_python}, which is not there.")


def use_threads() -> int:
    """Give every library as many threads as this process has cores, and return how many that is."""
    import faiss
    import threadpoolctl
    import torch

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # After the imports: it reaches the BLAS libraries that are loaded by now, and stays in force.
    threadpoolctl.threadpool_limits(limits=threads)
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    return threads


def sgemm_gflops(size: int = SGEMM_SIZE) -> float:
    """Return the best rate of a square product, the yardstick of the machine."""
    matrix = kernels_measure.patches("gaussian", size, size, SEED)
    timings = kernels_measure.race(kernels_measure.multiply_contestants(matrix, matrix, np.zeros_like(matrix)), 1.0)
    return 2e-9 * size**3 / timings[kernels_measure.fastest(timings, "sgemm")]["median_s"]


def settings_of(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Return the settings that decide the figures."""
    data = f"{kernels_measure.CENTRES} centres N(0, 1) + N(0, {kernels_measure.NOISE}²), ReLU; gaussian: N(0, 1)"
    return {"quick": options.quick, "seed": SEED, "threads": threads, "data": data}


def versions() -> dict[str, str]:
    """Return the versions of all packages, and first digits of the SHA-256 of the compiled files."""
    packages = package_versions() | {package: version(package) for package in RIVALS.values()}
    compiled = sorted(Path(native.MODULE.__file__).parent.glob("*.so"))  # the module and the library that it loads
    return packages | {"kernels": " ".join(sha256_file(path)[:12] for path in compiled)}


def machine() -> dict[str, Any]:
    """Return the properties of the machine that must be the same for two parts of one result."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "simd_level": simd_level(),
    }


def earlier_parts(options: argparse.Namespace, document: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an earlier run of the same settings, versions and machine that this one leaves alone.

    Raises:
        ArgumentError: If the file is of other settings, versions or machine.
    """
    if options.only is None or options.out is None or not options.out.is_file():
        return {}
    earlier = json.loads(options.out.read_text(encoding="utf-8"))
    for name in ("settings", "versions", "machine"):
        now = document[name]
        if {key: earlier[name].get(key) for key in now} != now:
            raise ArgumentError(
                f"{options.out}: expected the same {name} to keep its other parts, got others. Choose another --out."
            )
    return {part: earlier[part] for part in PARTS if part in earlier and part != options.only}


def finished(document: dict[str, Any]) -> dict[str, Any]:
    """Return the result with its parts in order and the targets of the parts that are there."""
    parts = {part: document[part] for part in PARTS if part in document}
    head = {key: value for key, value in document.items() if key not in PARTS and key != "targets"}
    targets = [row for part, values in parts.items() for row in PARTS[part].targets(values)]
    return head | {"targets": targets} | parts


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write, and return the result.

    Raises:
        FlawscopeError: If something needed is not there, or two contestants disagree.
    """
    check_installation(options)
    threads = use_threads()
    document: dict[str, Any] = {
        "suite": "kernels",
        "settings": settings_of(options, threads),
        "machine": machine(),
        "versions": versions(),
    }
    document |= earlier_parts(options, document)
    document["cuda"] = "compiled, not run" if HAVE_CUDA else "not built"
    sgemm = sgemm_gflops(256 if options.quick else SGEMM_SIZE)
    for part in [options.only] if options.only else PARTS:
        before, started, elsewhere = os.getloadavg(), time.perf_counter(), kernels_measure.Elsewhere()
        extra = {}
        if part == "kcenter":
            extra["anomalib"] = options.anomalib_python
            if options.anomalib_python is None and not options.quick:
                extra["anomalib"] = ensure_environment()
        document[part] = PARTS[part].measure(options.quick, SEED, threads, say, **extra)
        document[part]["conditions"] = {
            "seconds": time.perf_counter() - started,
            "load_average": {"before": before, "after": os.getloadavg()},
            "share_of_cores_elsewhere": elsewhere.share(),
        }
        document["machine"] = machine() | {"load_average": os.getloadavg(), "sgemm_gflops": sgemm}
        document = finished(document)
        if options.out is not None:
            write_text(options.out, json.dumps(document, indent=1) + "\n")
    return document


def say(line: str) -> None:
    """Print progress on stderr: the tables alone go to stdout."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 when done, a missed target included, and 2 when the request was wrong."""
    try:
        print_tables(run(parse_arguments(arguments)))
    except FlawscopeError as err:
        print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
        return err.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
