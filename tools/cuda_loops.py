"""Count the instructions of the search kernels' loops: a step of 32 channels, a tile, and what its end takes at least.

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
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cuda_resources import CUDA, OPTIONS, RESULTS, ROOT, kernel_name, run

import flawscope
from flawscope.files import write_text
from flawscope.versions import cpu_name, package_versions

ARCHITECTURES = ("7.5", "8.7", "9.0", "12.0")
"""One for each way of copying, shared memory and set of instructions."""

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ +)?([A-Z][\w.]*)([^;]*);")
_TARGET = re.compile(r"(0x[0-9a-f]+)")
_PREDICATE = re.compile(r"^ !?U?P\d")


class Instruction(NamedTuple):
    """An instruction of a function.

    Attributes:
        at: Its address.
        name: Its name without suffixes.
        guarded: Whether a predicate decides on it.
        target: Of a branch, the address that it goes to; else None.
    """

    at: int
    name: str
    guarded: bool
    target: int | None


class Loop(NamedTuple):
    """What lies between a branch and its earlier target, as addresses: the target, and the branch."""

    first: int
    last: int


def functions(sass: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Give the functions in the output of `cuobjdump -sass`; what is never executed (@!PT, @!UPT) is left out."""
    for part in sass.split("Function : ")[1:]:
        code = []
        for at, guard, name, rest in _INSTRUCTION.findall(_executed(part)):
            kind, target = name.split(".")[0], _TARGET.search(rest)
            # The predicate of a branch may also stand behind it, and BRA.DIV asks whether the warp is together.
            guarded = bool(guard) or name == "BRA.DIV" or _PREDICATE.search(rest) is not None
            code.append(
                Instruction(int(at, 16), kind, guarded, int(target[1], 16) if kind == "BRA" and target else None)
            )
        yield part.split(maxsplit=1)[0], code


def loops_of(code: list[Instruction]) -> list[tuple[Loop, Counter[str]]]:
    """Return the loops of a function, shortest first: how often an instruction stands in each; NOP is left out."""
    found = []
    for instruction in code:
        if instruction.target is not None and instruction.target < instruction.at:
            loop = Loop(instruction.target, instruction.at)
            found.append((loop, Counter(c.name for c in code if loop.first <= c.at <= loop.last and c.name != "NOP")))
    return sorted(found, key=lambda row: row[1].total())


def loops(sass: str) -> list[tuple[str, list[Counter[str]]]]:
    """Return the loops with tensor-core products of every function that has any, innermost first."""
    found = [(symbol, [body for _, body in loops_of(code) if body["HMMA"]]) for symbol, code in functions(sass)]
    return [(symbol, bodies) for symbol, bodies in found if bodies]


def tile_end(code: list[Instruction]) -> dict[str, int]:
    """Return what the end of a tile takes of a warp at least, by what it has to do.

    Keys: `always`: where nothing is kept. Of a kernel for one neighbour `changed`: more for a query of a thread whose
    least value has changed. Of one for several `live`: more for a query of which values are looked at one by one;
    `offer`: more for a value of it that goes into the buffer; `stage`: of a stage of the sort that a merge is.
    """
    found = [(loop, body) for loop, body in loops_of(code) if body["HMMA"]]
    (step, _), (tile, _) = found[0], found[-1]
    # From the last instruction of the step on: the shortest turn of all would be one of a tile without a step.
    ahead = _fewest(code, step.last, (step, tile), forwards=True)
    back = _fewest(code, tile.last, (step, tile), forwards=False)
    before = _fewest(code, tile.first, (step, tile), forwards=True)[step.last]
    own = _fewest(code, step.first, (step, tile), forwards=True)[step.last]
    always = before - own + ahead[tile.last] - 1

    def more(name: str) -> list[int]:
        """Return by how much more the turns take that pass an instruction of a name, of those that take more."""
        ways = (ahead[c.at] + back[c.at] - 1 for c in code if c.name == name and c.at in ahead and c.at in back)
        return sorted(way - ahead[tile.last] for way in ways if way > ahead[tile.last])

    offers, looked = more("ATOMS"), more("FSETP")[0]
    if not offers:
        return {"always": always, "changed": looked}
    (stage, *_) = [body for _, body in loops_of(code) if body["SHFL"] and not body["HMMA"]]
    offer = offers[len(offers) // 2] - looked
    return {"always": always, "live": looked, "offer": offer, "stage": stage.total()}


def _fewest(code: list[Instruction], begin: int, turns: Sequence[Loop], *, forwards: bool) -> dict[int, int]:
    """Return how many instructions lie between an address and those that follow, or come before, by their addresses.

    Both ends are counted, and the branches back of `turns` are not taken. Others are: what is seldom done stands
    behind.
    """
    ways: dict[int, list[int]] = {}
    for instruction, after in zip(code, [*code[1:], None], strict=True):
        ends = instruction.name in ("EXIT", "BRA") and not instruction.guarded
        follow = [after.at] if after is not None and not ends else []
        if instruction.target is not None and Loop(instruction.target, instruction.at) not in turns:
            follow.append(instruction.target)
        for following in follow:
            one, other = (instruction.at, following) if forwards else (following, instruction.at)
            ways.setdefault(one, []).append(other)
    weights = {c.at: int(c.name != "NOP") for c in code}
    fewest, waiting = {begin: weights[begin]}, deque([begin])
    while waiting:
        at = waiting.popleft()
        for following in ways.get(at, ()):
            length = fewest[at] + weights.get(following, 0)
            if length < fewest.get(following, length + 1):
                fewest[following] = length
                waiting.append(following)
    return fewest


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
    codes = dict(functions(text))
    return [
        {
            "sources": label,
            "kernel": kernel_name(symbol),
            "compute_capability": architecture,
            "step": {"instructions": bodies[0].total(), **dict(bodies[0].most_common())},
            "tile": {"instructions": bodies[-1].total(), **dict(bodies[-1].most_common())},
            **({"tile_end": tile_end(codes[symbol])} if folder == CUDA else {}),
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
