"""The JSON file of a run, whole after every stage; what a later run may go on with; and a table of it for people."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = (
    *("cpp_ext/cuda", "cpp_ext/include", "cpp_ext/src", "core/diffusion", "runtime/backends", "tools/gpu_stages"),
    "tests/cpp_ext",
)
ENDINGS = {".cu", ".cuh", ".h", ".cpp", ".cmake", ".py"}

PASSED, FAILED, CRASHED, OUT_OF_TIME, ABSENT, LEFT_OUT = (
    *("passed", "failed", "crashed", "out of time"),
    *("absent", "left out"),
)
BAD = (FAILED, CRASHED, OUT_OF_TIME)
"""States after which the run as a whole has failed."""
FINISHED = (PASSED, FAILED)
"""States that --resume keeps: the others were never brought to an end, or may be there by now."""


class Refused(Exception):
    """A request that cannot be done, in words for whoever made it."""


def sources() -> str:
    """Return the first digits of a SHA-256 over what is built and measured: two runs with equal ones are alike."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in ENDINGS and path.is_file():
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def version() -> str:
    """Return the version of this source, without importing it."""
    text = (ROOT / "core" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "([^"]+)"', text)
    return match[1] if match else "unknown"


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document so that whoever reads the file finds the old one or the new one, and never a part."""
    # Not flawscope's own `write_text`: the package may not be importable here, for want of what it depends on.
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def clean(value: Any) -> Any:
    """Return figures as JSON has them: NaN and infinity, which it lacks, as text; names of dicts as text."""
    if isinstance(value, Mapping):
        return {str(key): clean(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(part) for part in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy
        return clean(value.item())
    return value


def begin(path: Path, head: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Return the document to go on with: a new one, or that of the file.

    Args:
        path: The file of --out.
        head: What must be the same in both: suite, version, sources, machine.
        resume: Whether the file may be there.

    Raises:
        Refused: If it is there unasked, is no such file, or is of another machine or other sources.
    """
    if not path.exists():
        return {**head, "stages": {}}
    if not resume:
        raise Refused(f"{path}: expected a new file, got one that is there. --resume goes on with it.")
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in head if earlier.get(name) != head[name]]
        stages = earlier["stages"]
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise Refused(f"{path}: expected the file of an earlier run, got one that cannot be read: {err}.") from err
    if differing:
        raise Refused(
            f"{path}: expected a run of the same {' and '.join(differing)} to go on with, got another. Choose another "
            "--out."
        )
    return {**head, "stages": stages}


def table(document: Mapping[str, Any]) -> str:
    """Return a table for people: a line for each stage, and below it what failed."""
    lines = [f"{'stage':<12} {'state':<12} {'on':<9} {'seconds':>8}  what"]
    for name, entry in document["stages"].items():
        seconds = "" if entry.get("seconds") is None else f"{entry['seconds']:.1f}"
        what = entry.get("reason") or entry.get("summary") or ""
        lines.append(f"{name:<12} {entry['state']:<12} {entry.get('on') or '':<9} {seconds:>8}  {what}".rstrip())
        lines += [f"{'':<12}   {failure}" for failure in entry.get("failures", [])[:5]]
    states = [entry["state"] for entry in document["stages"].values()]
    counts = [f"{states.count(state)} {state}" for state in (PASSED, *BAD, ABSENT, LEFT_OUT) if state in states]
    return "\n".join([*lines, f"{len(states)} stages: {', '.join(counts)}"])
