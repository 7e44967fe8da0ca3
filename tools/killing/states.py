"""What lies in a folder: whether every artefact is as before a command, or as after it, and never between."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from flawscope.errors import FlawscopeError

SCRATCH = ".flawscope-"
"""How names of scratch begin."""

PLACES = ("engines", "report")
"""Folders that hold artefacts and are none: every engine of a cache is one, and the file of a report."""

Files = dict[str, str]
"""Path below an artefact -> SHA-256 of the file."""


def artefacts(folder: Path) -> dict[str, Files]:
    """Return the artefacts of a folder, without scratch: name -> files; of a single file, its own name is empty."""
    found: dict[str, Files] = {}
    for entry in sorted((*folder.iterdir(), *(path for place in PLACES for path in folder.glob(f"{place}/*")))):
        if entry.name.startswith(SCRATCH) or entry.name in PLACES:
            continue
        files = [entry] if entry.is_file() else sorted(path for path in entry.rglob("*") if not path.is_dir())
        found[entry.relative_to(folder).as_posix()] = {
            "" if path == entry else path.relative_to(entry).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
    return found


def scratch(folder: Path) -> list[str]:
    """Return scratch anywhere in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"{SCRATCH}*"))


class Expected:
    """What a command makes of a folder, learned from two runs of it.

    Args:
        before: The artefacts before.
        first: Those after one run.
        second: Those after another run from the same artefacts: files that differ hold the time, or the like.
    """

    def __init__(self, before: dict[str, Files], first: dict[str, Files], second: dict[str, Files]) -> None:
        self.before, self.after = before, first
        if {name: set(files) for name, files in first.items()} != {name: set(files) for name, files in second.items()}:
            raise RuntimeError(f"two runs of one command left other files: {sorted(first)}, {sorted(second)}")
        self._varying = {
            (name, path) for name, files in first.items() for path in files if files[path] != second[name][path]
        }

    def problems(self, folder: Path, *, is_done: bool) -> list[str]:
        """Return what is wrong with the artefacts of a folder.

        Args:
            folder: Where the command was killed, or ran.
            is_done: Whether all artefacts have to be as after the command.
        """
        found, problems = artefacts(folder), []
        for name in sorted({*found, *self.before, *self.after}):
            files = found.get(name)
            is_before, is_after = files == self.before.get(name), self._is_after(name, files)
            if not is_after and (is_done or not is_before):
                problems.append(f"{name}: {'missing' if files is None else _difference(files, self.after.get(name))}")
            elif files is not None and (problem := _unreadable(folder / name)):
                problems.append(f"{name}: {problem}")
        return problems

    def _is_after(self, name: str, files: Files | None) -> bool:
        after = self.after.get(name)
        if files is None or after is None:
            return files is after
        same = {path for path in files if (name, path) not in self._varying}
        return set(files) == set(after) and all(files[path] == after[path] for path in same)


def _difference(files: Files, after: Files | None) -> str:
    if after is None:
        return f"unexpected, with {sorted(files)[:5]}"
    missing, more = sorted({*after} - {*files}), sorted({*files} - {*after})
    changed = sorted(path for path in files if path in after and files[path] != after[path])
    return f"neither before nor after: missing {missing[:5]}, more {more[:5]}, other {changed[:5]}"


def _unreadable(path: Path) -> str | None:
    """Return why an artefact cannot be read back, or None if it can."""
    from flawscope.bundle import open_bundle
    from flawscope.runs import run_kind
    from flawscope.runtime.engines import EngineCache
    from flawscope.runtime.synthesis import read_generated

    try:
        if path.suffix == ".flaw":
            with open_bundle(path) as bundle:
                bundle.verify()
        elif path.suffix == ".run":
            return None if run_kind(path) else "no run"
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".html":
            return None if path.read_text().rstrip().endswith("</html>") else "a torn report"
        elif path.name == "drawn":
            read_generated(path)
        elif path.parent.name == "engines":
            stored = [engine for engine in EngineCache(path.parent).all() if engine.folder.name == path.name]
            return stored[0].problem if stored else "no engine"
    except (FlawscopeError, OSError, ValueError) as err:
        return f"{type(err).__name__}: {err}"
    return None
