"""Run tests with other instruction sets, other numbers of threads, and other random examples.

    python tools/test_variants.py [--list] [--only NAME]... [--on PATH]... [PYTEST OPTION]...

Every variant runs pytest with its environment variables on the rooms that compute in floating point (`FLOAT_ROOMS`),
or on the given paths. Sums in another order round differently, so a test that passes by rounding alone fails in one of
them. The exit status is 1 if a variant failed. A variant that this processor cannot run is named and skipped.

The variables only lower the level that a library would choose: a processor with more levels than this one cannot be
simulated.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from typing import NamedTuple

FLOAT_ROOMS = (
    "tests/training",
    "tests/export",
    "tests/runtime/synthesis",
    "tests/core/diffusion",
    "tests/calibration/quantization",
)


class Variant(NamedTuple):
    """Environment and arguments of a run of pytest, and the reason for it."""

    environment: dict[str, str]
    reason: str
    arguments: tuple[str, ...] = ()
    level: str | None = None
    """SIMD level of our own kernels that is forced; the variant is skipped if the processor lacks it."""


VARIANTS = {
    "avx2": Variant(
        {
            "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops
            "ONEDNN_MAX_CPU_ISA": "AVX2",  # torch's convolutions; oneDNN names its levels in capitals
            "OPENBLAS_CORETYPE": "Haswell",  # NumPy's and SciPy's matrix products
            "FLAWSCOPE_SIMD": "avx2",
        },
        "a processor without AVX-512, as most desktops and build machines are",
        level="avx2",
    ),
    "scalar": Variant(
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OPENBLAS_CORETYPE": "Nehalem",
            "MKL_CBWR": "COMPATIBLE",  # torch's matrix products on Intel and AMD alike
            "FLAWSCOPE_SIMD": "scalar",
        },
        "no wide registers: every sum in another order than where the tests were written",
        level="scalar",
    ),
    "threads": Variant(
        {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
        "sums in two parts; the tests otherwise run with one thread",
    ),
    "examples": Variant(
        {"FLAWSCOPE_TEST_SEED": "1"},
        "other random networks, and other examples of Hypothesis; its message has the example that fails",
        ("--hypothesis-profile=other-examples", "--hypothesis-seed=1"),
    ),
}


def is_possible(variant: Variant) -> bool:
    """Return whether this processor can run a variant."""
    if variant.level is None:
        return True
    if platform.machine() not in ("x86_64", "AMD64"):  # the variables are names of x86's instruction sets
        return False
    from flawscope.cpp_ext import native

    return not native.HAVE_NATIVE or variant.level in native.MODULE.simd_levels()


def run(name: str, paths: list[str], arguments: list[str]) -> int:
    """Run pytest under a variant; return its exit status."""
    variant = VARIANTS[name]
    print(f"variant {name}: {variant.reason}", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *variant.arguments, *(paths or FLOAT_ROOMS), *arguments]
    status = subprocess.run(command, env={**os.environ, **variant.environment}, check=False).returncode
    print(f"variant {name}: exit status {status} after {time.monotonic() - started:.0f} s", flush=True)
    return status


def main() -> int:
    """Run the chosen variants; return the exit status."""
    parser = argparse.ArgumentParser(description="Run tests as other machines would compute them.", allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="name the variants and end")
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="run this variant; may be repeated")
    parser.add_argument("--on", action="append", default=[], help="a path of tests instead of all; may be repeated")
    options, arguments = parser.parse_known_args()  # what is not known here is for pytest
    if options.list:
        for name, variant in VARIANTS.items():
            print(f"{name}: {variant.reason}")
        return 0
    chosen = options.only or list(VARIANTS)
    for name in chosen:
        if not is_possible(VARIANTS[name]):
            print(f"variant {name} is skipped: this processor has no {VARIANTS[name].level}")
    statuses = {name: run(name, options.on, arguments) for name in chosen if is_possible(VARIANTS[name])}
    failed = [name for name, status in statuses.items() if status]
    print(f"{len(statuses)} variants ran, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
