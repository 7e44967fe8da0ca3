"""Fuzz what opens strangers' files, for as long as you like; replay what was found.

    python tools/fuzz.py [--bundles 100000] [--images 100000] [--jobs N] [--seed S] [--minutes M] [--out FOLDER]
    python tools/fuzz.py --replay FOLDER/FINDING...

Bundles are changed in four ways, a quarter each: manifest, zip file, memory bank, ONNX graph. Every bundle is opened,
verified, made ready and given an image; every image is decoded and prepared. A case has to succeed, or to be refused in
one line by an error of flawscope. It is a finding if it crashes, takes over 5 s of processor time or 1 GiB of memory,
raises anything else, opens or changes a file outside, makes a library print, or leaves something behind. Findings are
kept, each in a folder of its own. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from fuzzing import campaign
from fuzzing.targets import BUNDLES


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, default=100_000, help="changed bundles to try")
    parser.add_argument("--images", type=int, default=100_000, help="changed images to try")
    parser.add_argument("--only", action="append", choices=[*BUNDLES, "image"], help="only this kind; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after this time")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for findings and summary.json")
    parser.add_argument("--replay", type=Path, nargs="+", help="try kept findings again instead")
    options = parser.parse_args()
    if options.replay:
        results = {str(path): campaign.replay(path, options.out / "replayed") for path in options.replay}
        for path, found in results.items():
            print(f"{path}: {', '.join(found) or 'nothing found'}")
        return 1 if any(results.values()) else 0
    counts = {**dict.fromkeys(BUNDLES, options.bundles // len(BUNDLES)), "image": options.images}
    chosen = {name: count for name, count in counts.items() if name in (options.only or counts)}
    summary = campaign.run(
        chosen,
        options.out,
        seed=options.seed,
        jobs=options.jobs,
        limit_s=60 * options.minutes,
        tell=lambda line: print(line, flush=True),
    )
    text = json.dumps(summary.as_dict(), indent=1)
    (options.out / "summary.json").write_text(text + "\n")
    print(text)
    return 1 if summary.found else 0


if __name__ == "__main__":
    sys.exit(main())
