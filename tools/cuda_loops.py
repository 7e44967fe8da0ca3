"""Count the instructions of the search kernels' loops: a step of 32 channels, and a tile with its end.

Needs nvcc, cuobjdump (of the CUDA toolkit; the package triton has one, too) and c++filt, and no GPU. Another version of
the sources is counted beside this one:

    git worktree add ../earlier COMMIT
    python tools/cuda_loops.py --beside before=../earlier/cpp_ext/cuda [--out FILE.json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cuda_resources import CUDA, OPTIONS, RESULTS, ROOT, kernel_name, run

import flawscope
from flawscope.files import write_text
from flawscope.versions import cpu_name, package_versions

ARCHITECTURES = ("7.5", "8.7", "9.0", "12.0")
"""One for each way of copying, shared memory and set of instructions."""

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);")
_TARGET = re.compile(r"(0x[0-9a-f]+)")


def loops(sass: str) -> list[tuple[str, list[Counter[str]]]]:
    """Return the loops with tensor-core products of every function in the output of `cuobjdump -sass`, innermost first.

    A loop is what lies between a branch and its earlier target. Of each: how often an instruction stands in it, without
    its suffixes; NOP is left out, and so are instructions that are never executed (@!PT, @!UPT).
    """
    found = []
    for part in sass.split("Function : ")[1:]:
        symbol = part.split(maxsplit=1)[0]
        code = [(int(at, 16), name.split(".")[0], rest) for at, name, rest in _INSTRUCTION.findall(_executed(part))]
        bodies = []
        for at, name, rest in code:
            target = _TARGET.search(rest) if name == "BRA" else None
            if target is not None and int(target[1], 16) < at:
                body = Counter(other for place, other, _ in code if int(target[1], 16) <= place <= at)
                del body["NOP"]
                if body["HMMA"]:
                    bodies.append(body)
        if bodies:
            found.append((symbol, sorted(bodies, key=Counter.total)))
    return found


def _executed(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "@!PT " not in line and "@!UPT " not in line)


def rows_of(label: str, folder: Path, architecture: str, nvcc: str, cuobjdump: str) -> list[dict[str, Any]]:
    """Compile the search of a folder for one architecture; return a row for each kernel."""
    with tempfile.TemporaryDirectory() as temporary:
        cubin = Path(temporary) / "search.cubin"
        includes = [f"-I{ROOT / 'cpp_ext' / 'include'}", f"-I{ROOT / 'cpp_ext' / 'src'}"]
        target = f"-arch=sm_{architecture.replace('.', '')}"
        run(nvcc, *OPTIONS, target, *includes, folder / "search.cu", "-o", cubin)
        text = run(cuobjdump, "-sass", cubin)
    return [
        {
            "sources": label,
            "kernel": kernel_name(symbol),
            "compute_capability": architecture,
            "step": {"instructions": bodies[0].total(), **dict(bodies[0].most_common())},
            "tile": {"instructions": bodies[-1].total(), **dict(bodies[-1].most_common())},
        }
        for symbol, bodies in loops(text)
    ]


def find_cuobjdump() -> str:
    """Return the program of the toolkit, or that of triton."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        found = str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    if found is None:
        sys.exit("cuobjdump: expected it on the PATH, got none. Give its path with --cuobjdump.")
    return found


def main() -> None:
    """Write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--cuobjdump", default=None)
    parser.add_argument("--beside", metavar="LABEL=FOLDER", action="append", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda_loops--nvcc.json")
    options = parser.parse_args()
    cuobjdump = options.cuobjdump or find_cuobjdump()
    others = [(label, Path(folder)) for label, _, folder in (text.partition("=") for text in options.beside)]
    rows = [
        row
        for label, folder in [*others, ("now", CUDA)]
        for architecture in ARCHITECTURES
        for row in rows_of(label, folder, architecture, options.nvcc, cuobjdump)
    ]
    document = {
        "suite": "cuda_loops",
        "state": "compiled, not run",
        "settings": {"options": list(OPTIONS), "compute_capabilities": list(ARCHITECTURES)},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {**package_versions(), "flawscope": flawscope.__version__},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(document, indent=1) + "\n")
    for row in rows:
        step, tile = row["step"], row["tile"]
        print(f"{row['sources']:8} {row['kernel']:52} {row['compute_capability']:>5}", end="")
        print(f" step {step['instructions']:4} with {step['HMMA']} HMMA, {step['LDSM']} LDSM", end="")
        print(f"; end of a tile {tile['instructions'] - step['instructions']:5}")


if __name__ == "__main__":
    main()
