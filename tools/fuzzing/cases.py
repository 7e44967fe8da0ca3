"""A case of fuzzing: what is laid into a folder, and how it is then tried."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

INPUT, OPTIONS = "input", "options.json"
"""Names in the folder of a case: the file or folder that is tried, and the options."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        content: The bytes of a file, or name -> bytes of a folder.
        options: How it is tried.
    """

    content: bytes | Mapping[str, bytes]
    options: Mapping[str, str] = field(default_factory=dict)

    def lay(self, folder: Path) -> None:
        """Write the case into a folder, in place of the one before."""
        place = folder / INPUT
        for entry in folder.iterdir():  # also what an earlier case left behind, which was told of
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (folder / OPTIONS).write_text(json.dumps(dict(self.options)))
        if isinstance(self.content, bytes):
            place.write_bytes(self.content)
            return
        for name, data in self.content.items():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def read_options(folder: Path) -> dict[str, str]:
    """Return the options of a case that lies in a folder."""
    options: dict[str, str] = json.loads((folder / OPTIONS).read_bytes())
    return options
