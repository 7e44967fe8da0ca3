"""Compile every CUDA kernel for every architecture and write its resources: registers, spills, shared memory.

Needs nvcc and c++filt, and no GPU: the figures are those of the assembler. Exit status 1 if a kernel spills registers.

    python tools/cuda_resources.py [--nvcc NVCC] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flawscope.files import write_text
from flawscope.versions import cpu_name, package_versions

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "cpp_ext" / "cuda"
RESULTS = ROOT / "benchmarks" / "results" / "0.1.0"
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0")
OPTIONS = ("-std=c++17", "-O3", "-Xptxas=-v", "-cubin")

_KERNEL = re.compile(r"Compiling entry function '(?P<symbol>\w+)' for")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def run(*command: object) -> str:
    """Run a command; return its output on both streams, or exit with it if the command fails."""
    process = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if process.returncode:
        sys.exit(f"failed ({process.returncode}): {' '.join(map(str, command))}\n{process.stdout}")
    return process.stdout


def kernel_name(symbol: str) -> str:
    """Return the readable name of a symbol of the object file, such as `search_kernel<8>`."""
    name = run("c++filt", symbol).strip().replace("(anonymous namespace)::", "").replace("flawscope::cuda::", "")
    return re.sub(r"\(int\)", "", name.removeprefix("void ").partition("_kernel")[0] + "_kernel" + _arguments(name))


def _arguments(name: str) -> str:
    match = re.search(r"_kernel(<.*?>)\(", name)
    return match.group(1) if match else ""


def resources(nvcc: str, source: Path, architecture: str, folder: Path) -> list[dict[str, Any]]:
    """Compile one file for one architecture; return a row for each of its kernels, sorted by name."""
    target = f"-arch=sm_{architecture.replace('.', '')}"
    include = f"-I{ROOT / 'cpp_ext' / 'include'}"
    text = run(nvcc, *OPTIONS, target, include, source, "-o", folder / "kernels.cubin")
    rows = []
    # ptxas reports one kernel after another, each from such a line on; the text before the first is no kernel.
    for part in re.split(r"(?=Compiling entry function)", text)[1:]:
        symbol, spills, registers, shared = (
            pattern.search(part) for pattern in (_KERNEL, _SPILLS, _REGISTERS, _SHARED)
        )
        if symbol is None or spills is None or registers is None:
            sys.exit(f"{source.name} for {architecture}: expected the assembler's report, got:\n{part}")
        rows.append(
            {
                "kernel": kernel_name(symbol["symbol"]),
                "compute_capability": architecture,
                "registers": int(registers[1]),
                "spill_store_bytes": int(spills[2]),
                "spill_load_bytes": int(spills[3]),
                "stack_bytes": int(spills[1]),
                "static_shared_bytes": int(shared[1]) if shared else 0,
            }
        )
    return sorted(rows, key=lambda row: row["kernel"])


def main() -> None:
    """Write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda_resources--nvcc.json")
    options = parser.parse_args()
    version = re.search(r"release ([\d.]+), V([\d.]+)", run(options.nvcc, "--version"))
    if version is None:
        sys.exit(f"{options.nvcc}: expected a version of nvcc")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for source in sorted(CUDA.glob("*.cu"))
            for architecture in ARCHITECTURES
            for row in resources(options.nvcc, source, architecture, Path(folder))
        ]
    spilling = [row for row in rows if row["spill_store_bytes"] or row["spill_load_bytes"]]
    document = {
        "suite": "cuda_resources",
        "state": "compiled, not run",
        "settings": {"options": list(OPTIONS), "compute_capabilities": list(ARCHITECTURES)},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {**package_versions(), "nvcc": version[2]},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(f"{row['kernel']:34} {row['compute_capability']:>5} {row['registers']:4} registers", end="")
        print(f" {row['spill_store_bytes']:4} + {row['spill_load_bytes']:4} bytes spilled", end="")
        print(f" {row['static_shared_bytes']:6} bytes shared")
    print(f"{len(rows)} kernels and architectures, {len(spilling)} with spills")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
