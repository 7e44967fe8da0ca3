"""The process of one stage. The runner starts it.

    python -m gpu_stages.child PLACE --result FILE --seconds S --work FOLDER [--wheels FOLDER] [--bundle BUNDLE]

Nothing that stages import may be defined here: this file is `__main__`, and they would import it a second time.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from gpu_stages.report import Absent, Report


def main() -> None:
    """Run the stage; anything but `Absent` that is raised ends the process with a traceback for the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    report = Report(options.result, options.seconds, options.work, options.wheels, options.bundle)
    module, _, function = options.place.partition(":")
    try:
        getattr(importlib.import_module(module), function)(report)
        report.end()
    except Absent as err:
        report.absent(str(err))
    # At once: libraries of a device that has failed may hang or crash while the interpreter takes itself apart.
    os._exit(0)


if __name__ == "__main__":
    main()
