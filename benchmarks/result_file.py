"""What result files of several benchmarks have in common: the machine, and going on with a run that was broken off."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from flawscope.versions import cpu_name


def machine() -> dict[str, Any]:
    """Return what a result says of the machine."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg(),
    }


def earlier_result(out: Path | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a run of the same settings that was broken off, or None where there is no file.

    Raises:
        SystemExit: If the file is of other settings.
    """
    if out is None or not out.is_file():
        return None
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if document["settings"] != settings:
        raise SystemExit(f"{out}: expected the same settings to resume, got others. Choose another --out.")
    return document
