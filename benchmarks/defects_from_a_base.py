"""From a base model and a few real defects to detectors that have learned from drawn ones: every command, in one run.

    python benchmarks/defects_from_a_base.py --base sd15-inpainting --data MVTec-AD --category bottle --work DIR \
        --out FILE.json                                                  # Stable Diffusion 1.5 for inpainting, on a GPU
    python benchmarks/defects_from_a_base.py --base runs/base --data ROOT --category NAME --image-size 64 \
        --train epochs=16 --train adapt=full --work DIR --out FILE.json  # a run of `train base`, on a CPU

Steps: support set from the test split, boxes, inpainting model, bundle, drawn defects (diffusion), pasted defects,
Perlin anomalies, and `synth judge`, which trains detectors with the real defects alone, with each kind of drawing, and
with mixtures. Each step is a process of its own; its command, seconds, peak memory and last lines are recorded. A step
whose output is there already is not run again. docs/defects-from-a-base.md says what it needs and what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawscope.files import write_text
from flawscope.versions import cpu_name, package_versions

FLAWSCOPE = (sys.executable, "-m", "flawscope")
LAST_LINES = 12
JUDGED, GENERATED = "judge.json", "generate.json"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Its name in the record.
        output: Folder or file that it makes; where it is there, the step is done.
        arguments: Arguments of flawscope.
        may_fail: Whether exit status 1 is a result: nothing was accepted, or nothing is recommended.
    """

    name: str
    output: Path
    arguments: tuple[str, ...]
    may_fail: bool = False


def steps_of(options: argparse.Namespace) -> list[Step]:
    """Return all steps, in their order."""
    work: Path = options.work
    source = ("--data", str(options.data), *(("--category", options.category) if options.category else ()))
    defects = tuple(argument for name in options.defects for argument in ("--defect", name))
    support, boxes, run = work / "support", work / "boxes", work / "inpainting.run"
    bundle, seed = work / "inpainting.flaw", ("--seed", str(options.seed))
    number = ("--per-defect", str(options.per_defect))
    types = len(options.defects) or 1
    drawn, pasted, perlin = work / "diffusion", work / "paste", work / "perlin"
    side = str(options.image_size)
    training = (
        "--set", f"base={options.base}", "--set", f"support={support}", "--image-size", side,
        *(("--config", options.config) if options.config else ()),
        *(argument for text in options.train for argument in ("--set", text)),
    )  # fmt: skip
    judged = [str(drawn), str(pasted), str(perlin), f"{drawn}+{pasted}+{perlin}"]
    judge = (
        *source, "--support", str(support), "--seeds", options.seeds, "--per-defect",
        *(argument for text in options.judge for argument in text.split(maxsplit=1)),
    )  # fmt: skip
    rows = [
        Step("support", support, ("synth", "support", *source, "--split", "test", "--shots", str(options.shots),
                                  *defects, *seed, "--out", str(support))),
        Step("boxes", boxes, ("synth", "boxes", *source, "--support", str(support), "--within", options.within,
                              "--num", str(options.per_defect * types), *seed, "--out", str(boxes))),
        Step("train", run, ("train", "inpainting", *source, *training, *seed, "--out", str(run))),
        Step("export", bundle, ("export", str(run), "--out", str(bundle))),
        Step("diffusion", drawn, ("synth", "generate", str(bundle), *source, "--boxes", str(boxes), *number,
                                  *options.draw, *seed, "--out", str(drawn)), may_fail=True),
        Step("paste", pasted, ("synth", "paste", *source, "--support", str(support), "--within", options.within,
                               *number, *seed, "--out", str(pasted))),
        Step("perlin", perlin, ("synth", "perlin", *source, "--num", str(options.per_defect * types),
                                "--within", options.within, *seed, "--out", str(perlin))),
    ]  # fmt: skip
    return rows + [
        Step(
            f"judge {method}",
            work / f"judged-{method}" / JUDGED,
            ("synth", "judge", *judged, *judge, "--method", method, "--out", str(work / f"judged-{method}")),
            may_fail=True,
        )
        for method in options.methods
    ]


def run_step(step: Step) -> dict[str, Any]:
    """Run a command and return what it took, and its last lines.

    Raises:
        SystemExit: If it fails.
    """
    print(f"== {step.name}: flawscope {' '.join(step.arguments)}", flush=True)
    started = time.perf_counter()
    lines: list[str] = []
    with subprocess.Popen(
        [*FLAWSCOPE, *step.arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        # wait4 and not wait: the system has the peak memory of this one child alone.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in ((0, 1) if step.may_fail else (0,)):
        raise SystemExit(f"{step.name} failed with exit status {process.returncode}; see above.")
    return {
        "command": f"flawscope {' '.join(step.arguments)}",
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": usage.ru_maxrss // 1024,
        "exit_status": process.returncode,
        "last_lines": lines[-LAST_LINES:],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the record after every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="Folder of diffusers, or a run of train base.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category")
    parser.add_argument("--defects", nargs="*", default=[], help="Defect types; default: all.")
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--config", help="Preset or YAML file of the training, such as defectfill.")
    parser.add_argument("--train", action="append", default=[], metavar="KEY=VALUE", help="A setting of the training.")
    parser.add_argument(
        "--draw", action="append", default=[], metavar="OPTION", help="Of synth generate: --draw=--best-of=4."
    )
    parser.add_argument("--judge", action="append", default=[], help="An option of synth judge with its value.")
    parser.add_argument("--methods", nargs="*", default=["segmenter", "draem"], help="Detectors that are judged.")
    parser.add_argument("--within", choices=["foreground", "image"], default="foreground")
    parser.add_argument("--per-defect", type=int, default=100)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {"steps": {}}
    record |= {"machine": cpu_name(), "cores": os.cpu_count(), "versions": package_versions()}
    for step in steps_of(options):
        if step.output.exists():
            print(f"== {step.name}: {step.output} is there already", flush=True)
        else:
            record["steps"][step.name] = run_step(step)
        if (step.output / GENERATED).is_file():
            drawn = json.loads((step.output / GENERATED).read_text("utf-8"))
            record.setdefault("drawn", {})[step.name] = {
                name: drawn[name] for name in ("defects", "summary", "seconds_per_accepted") if name in drawn
            }
        if step.output.name == JUDGED and step.output.is_file():
            judged = json.loads(step.output.read_text("utf-8"))
            record.setdefault("judged", {})[step.name] = {
                name: value for name, value in judged.items() if name not in ("left_out", "dataset")
            }
        record["load_average"] = os.getloadavg()
        write_text(options.out, json.dumps(record, indent=1) + "\n")
    print(f"record: {options.out}")


if __name__ == "__main__":
    main()
