"""Build, check and measure the CUDA part on this machine's GPU; write one JSON file, whole after every stage.

    python tools/gpu_check.py --out FILE.json [--minutes 5] [--stage NAME]... [--resume] [--wheels FOLDER]

Every stage is a process of its own with a limit. What is not here is recorded as absent, with the reason; where there
is no GPU, stages run as their twins on the CPU. What a machine lacks and cannot fetch lies in the folder of --wheels.
Exit status 0 where no stage failed, 1 where one did, 2 where the request was wrong. See docs/gpu-check.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gpu_stages import document
from gpu_stages.document import ROOT, Refused
from gpu_stages.runner import Plan, ask_here, machine, run
from gpu_stages.table import STAGES, stage_named

WORK = ROOT / "build" / "gpu-check"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--minutes", type=float, help="begin nothing after so many; the most telling stages come first")
    parser.add_argument(
        "--stage", action="append", default=[], choices=[stage.name for stage in STAGES], help="run this one alone"
    )
    parser.add_argument("--resume", action="store_true", help="go on with --out: what is finished is not run again")
    parser.add_argument("--wheels", type=Path, help="folder with wheels, and PyCUDA's source, that this machine lacks")
    parser.add_argument("--bundle", type=Path, help="bundle for the stages of backends; made where torch is here")
    parser.add_argument("--twins", action="store_true", help="run the twins on the CPU although there is a GPU")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is built; build/gpu-check")
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    options = parser.parse_args(arguments)
    if options.out is None and not options.list:
        parser.error("--out: expected a JSON file to write.")
    if options.minutes is not None and not 0 < options.minutes < 1e4:
        parser.error(f"--minutes: expected more than 0, got {options.minutes:g}.")
    for name in ("wheels", "bundle"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name}: expected something that is there, got {path}.")
    return options


def unpack(wheels: Path, site: Path) -> list[str]:
    """Put the wheels of a folder into another; return the names of their files. Nothing is fetched.

    Raises:
        Refused: If one is no wheel.
    """
    files = sorted(wheels.glob("*.whl"))
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for path in files:
        # A wheel is a zip. Not by pip, which a bare machine may lack, and which would look for what they depend on.
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(site)
        except zipfile.BadZipFile as err:
            raise Refused(f"{path}: expected a wheel, got a file that is none ({err}).") from err
    return [path.name for path in files]


def commit() -> str | None:
    """Return the commit of this source, None where it is no clone or git is not here."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def check(options: argparse.Namespace) -> bool:
    """Run what was asked for; return whether no stage failed.

    Raises:
        Refused: If --out is there unasked, or is of another machine or other sources.
    """
    # Absolute, as every stage works in the folder of what is built.
    out, work = options.out.resolve(), options.work.resolve()
    extra: list[object] = []
    for name in ("wheels", "bundle"):
        if getattr(options, name) is not None:
            extra += [f"--{name}", getattr(options, name).resolve()]
    work.mkdir(parents=True, exist_ok=True)
    wheels = unpack(options.wheels, work / "site") if options.wheels is not None else []
    here = ask_here(work, options.wheels.resolve() if options.wheels else None)
    head = {"suite": "gpu_check", "version": document.version(), "sources": document.sources()}
    record = document.begin(out, head | {"machine": machine(here["gpu"])}, options.resume)
    record |= {"commit": commit(), "wheels": wheels, "missing": here["missing"]}
    document.write(out, record)
    stages = [stage_named(name) for name in options.stage] or STAGES
    plan = Plan(stages, bool(options.stage), options.minutes, options.twins, extra)
    run(plan, record, out, work, here["missing"])
    print(f"\n{document.table(record)}\nwritten to {out}")
    return not any(entry["state"] in document.BAD for entry in record["stages"].values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = parse_arguments(arguments)
    if options.list:
        for stage in STAGES:
            print(f"{stage.name:<12} {stage.limit_s:>4} s  {stage.does}")
        return 0
    try:
        return 0 if check(options) else 1
    except Refused as err:
        print(f"error: {err}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
