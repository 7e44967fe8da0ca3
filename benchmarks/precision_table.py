"""Every method in every precision on every backend that is here: what passes the gate, and what it changes.

    python benchmarks/precision_table.py --data CATEGORY_FOLDER --weights FILE --work FOLDER --out FILE.json

Methods, precisions and backends are those of the product's tables. Each method is trained once, small and short (the
settings are in the result): the question is what a precision changes, not how good a detector is. Each precision is
then exported for one backend at a time, through the product's own gate; what is refused is a row too, with the reason
and, where the gate was reached, the figures. Runs and bundles stay in `--work` and rows in `--out`: a run that was
broken off goes on where it was, rows whose gate limits have changed since are judged again by their figures, and no
method is begun after `--minutes`. `--speed` measures the bundles that passed
against FP32 on the same backend, in alternation, on a machine that has nothing else to do. A table in Markdown is
written beside the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from result_file import machine

from flawscope import methods
from flawscope.bundle import COMPUTED, PRECISIONS, Gate
from flawscope.calibration.quantization.gate_limits import LIMITS, failures
from flawscope.datasets import Dataset, open_dataset
from flawscope.errors import FlawscopeError
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.exporter import exporter_named
from flawscope.export.precisions import GATE_BACKENDS, PrecisionRefused, Wanted
from flawscope.files import write_text
from flawscope.runtime.backends.table import ROWS, is_there, precision_problem
from flawscope.runtime.bench.alternation import Configuration, compare
from flawscope.versions import package_versions

HALF = [0.502, 0.502, 0.502]
NETWORK: dict[str, Any] = {
    "backbone": "mobilenetv2_100",
    "backbone_options": {"pad_type": "same"},
    "mean": HALF,
    "std": HALF,
}
"""What the given weights were trained with."""
SHORT: dict[str, Any] = {"epochs": 4, "preview_every": 100}
LABELLED: dict[str, Any] = {**SHORT, "procedural": True, "epoch_batches": 20, "batch_size": 8, "resize": 128}
DIFFUSION: dict[str, Any] = {**SHORT, "resize": 64, "batch_size": 16, "learning_rate": 5e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": {**NETWORK, "resize": 128, "coreset": 0.02},
    "padim": {**NETWORK, "resize": 128},
    "stfpm": {**NETWORK, **SHORT, "resize": 128},
    "segmenter": {**NETWORK, **LABELLED},
    "draem": {**LABELLED, "width": 16, "depth": 3, "segmentation_width": 16, "segmentation_depth": 3}
    | {"learning_rate": 1e-3},
    "destseg": {**NETWORK, **LABELLED, "width": 16, "blocks": 1, "head_width": 64},
    "ddad": {**NETWORK, **DIFFUSION, "widths": [16, 32, 32], "layers": 1, "steps": 5, "warmup_steps": 20},
    "autoencoder": {"resize": 64, "epochs": 4, "batch_size": 16, "accumulate": 1, "widths": [16, 32, 32], "layers": 1}
    | {"learning_rate": 1e-3, "preview_every": 100},
    "dsad": {**NETWORK, **DIFFUSION, "widths": [16, 32], "layers": 1, "heads": 2, "context": 16, "accumulate": 1}
    | {"hint_widths": [8, 16, 32], "sketch_size": 32, "steps": 5, "pooling": 2, "sigma": 2.0},
    "lafite": {**NETWORK, **SHORT, "resize": 128, "grid": [16, 16], "widths": [32, 48], "attention": 8, "steps": 3}
    | {"stages": [1, 2, 3], "score_window": 8},
}
"""Method -> what makes it small and short. A method that is not here is trained as it is by default."""
NEEDS = {"dsad": {"autoencoder": "autoencoder"}}
"""Method -> setting -> the method whose run it names."""


def train(method: str, options: argparse.Namespace) -> Path:
    """Train a method, and first what it needs; return its run. A run that is there already is taken."""
    run: Path = options.work / method / "run"
    if (run / "run.json").exists():
        return run
    run.parent.mkdir(parents=True, exist_ok=True)
    chosen = dict(SETTINGS.get(method, {}))
    for setting, other in NEEDS.get(method, {}).items():
        chosen[setting] = str(train(other, options))
    command = [sys.executable, "-m", "flawscope", "train", method, "--data", str(options.data), "--out", str(run)]
    if methods.method(method).kind == "detector":
        command.append("--no-drawn-check")
    if "backbone" in chosen:
        command += ["--weights", str(options.weights)]
    for key, value in chosen.items():
        command += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{method}: {done.stderr.strip().splitlines()[-1]}")
    return run


def refusal(method: str, precision: str, backend: str) -> str | None:
    """Return why there is nothing to measure, or None."""
    reducible = exporter_named(method).reducible
    converted = () if reducible is None else reducible.precisions
    if precision not in (*COMPUTED, *converted):
        return "the method does not offer it"
    if backend not in GATE_BACKENDS[precision]:
        return "not gated on this backend"
    return precision_problem(backend, precision)


def measure(method: str, precision: str, backend: str, dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Export a precision for one backend through the gate; return its row."""
    key = {"method": method, "precision": precision, "backend": backend}
    problem = refusal(method, precision, backend)
    if problem is not None:
        return {**key, "verdict": "not offered", "reason": problem}
    run, out = train(method, options), bundle_of(options.work, key)
    wanted = Wanted((precision,), dataset, labelled=dataset, backends=(backend,))
    try:
        manifest = export_run(run, out, max_batch=8, wanted=wanted, overwrite=True)
    except PrecisionRefused as error:
        (gate,) = error.gates
        return judged({**key, "verdict": "refused", "reason": "", "gate": msgspec.to_builtins(gate)})
    except FlawscopeError as error:
        return {**key, "verdict": "refused", "reason": str(error)}
    made = manifest.precisions[precision]
    reduced = {"operators": made.quantised, "kept_in_fp32": len(made.kept)}
    return {**key, "verdict": "passed", "reason": "", "gate": msgspec.to_builtins(made.gate), **reduced}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the verdict and reason that today's limits give its figures; one without a gate as it is."""
    if "gate" not in row:
        return row
    phrases = failures(msgspec.convert(row["gate"], Gate), LIMITS[row["precision"]])
    return {**row, "verdict": "refused" if phrases else "passed", "reason": "; ".join(phrases)}


def resumed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of an earlier run by today's limits, without those that have to be measured once more.

    These are those of INT8 whose verdict changes: their operators were chosen for the limits of that time.
    """
    known = []
    for row in rows:
        again = judged(row)
        if again["verdict"] != row["verdict"] and row["precision"] == "int8":
            print(row["method"], row["precision"], row["backend"], "is to be measured again: its limits changed")
            continue
        known.append(again)
    return known


def measure_speeds(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Give every row that passed its speed against FP32 on its backend, and against FP32 on `cpu`."""
    for row in rows:
        bundle = bundle_of(options.work, row)
        if row["verdict"] != "passed" or not bundle.exists() or (row.get("speed") and not options.again):
            continue
        names = [Configuration(row["backend"]), Configuration(row["backend"], precision=row["precision"])]
        if row["backend"] != "cpu":
            names.append(Configuration("cpu"))
        figures = compare(bundle, names, seconds=options.seconds)
        medians = [entry["latency_ms"]["total"]["p50"] for entry in figures["compare"]]
        row["speed"] = {
            "fp32_ms": medians[0],
            "ms": medians[1],
            "ratio": medians[1] / medians[0],
            "ratio_to_cpu_fp32": medians[1] / medians[-1 if row["backend"] != "cpu" else 0],
            "load_average": os.getloadavg()[0],
        }


def bundle_of(work: Path, row: dict[str, Any]) -> Path:
    """Return where the bundle of a row lies."""
    return work / row["method"] / f"{row['precision']}-{row['backend'].replace(':', '-')}.flaw"


def thinned(dataset: Dataset, most: int | None) -> Dataset:
    """Return the dataset with at most so many test images, evenly spread: they are sorted by defect type."""
    if most is None or len(dataset.test) <= most:
        return dataset
    kept = {dataset.test[int(place)].path for place in np.linspace(0, len(dataset.test) - 1, most).round()}
    samples = tuple(one for one in dataset.samples if one.split != "test" or one.path in kept)
    return msgspec.structs.replace(dataset, samples=samples)


def time_ratio(row: dict[str, Any]) -> str:
    """Return the time to that of FP32 on the same backend; that of the gate, marked, where no better one was taken."""
    if row.get("speed"):
        return f"{row['speed']['ratio']:.2f}"
    gate = row.get("gate")
    return "-" if gate is None else f"~{gate['images_per_second_fp32'] / gate['images_per_second']:.2f}"


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table: one line a method, precision and backend; what is not offered is gathered below it."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form).replace("-", "−")

    lines = [
        "| method | precision | backend | verdict | image AUROC: FP32, change | pixel AUROC: FP32, change "
        "| score, largest change | false rejects | time to FP32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["verdict"] == "not offered":
            continue
        gate = row.get("gate")
        verdict = row["verdict"] if row["verdict"] == "passed" else f"refused: {row['reason']}"
        cells = [row["method"], row["precision"], row["backend"], verdict]
        if gate is None:
            cells += ["-"] * 4
        else:
            cells += [
                f"{shown(gate[name], '.4f')}, {shown(gate[f'{name}_change'], '+.4f')}"
                for name in ("image_auroc", "pixel_auroc")
            ]
            cells += [f"{gate['score_max_relative']:.2%}", f"{gate['false_reject_shift']:.1%}"]
        cells.append(time_ratio(row))
        lines.append(f"| {' | '.join(cells)} |")
    left_out: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["verdict"] == "not offered":
            left_out.setdefault((f"{row['precision']} on {row['backend']}", row["reason"]), []).append(row["method"])
    for (place, reason), names in left_out.items():
        lines += ["", f"{place}, {', '.join(names)}: {reason}"]
    return "\n".join(lines) + "\n"


def write(options: argparse.Namespace, rows: list[dict[str, Any]], trained: dict[str, dict[str, Any]]) -> None:
    """Write what has been measured so far, as JSON and as Markdown."""
    document = {
        "suite": "precision_table",
        "settings": {"data": options.data.name, "weights": options.weights.name, "methods": trained},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")
    write_text(options.out.with_suffix(".md"), as_markdown(rows))


def main() -> None:
    """Measure one method after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a category folder")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of MobileNetV2")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs and bundles")
    parser.add_argument("--methods", nargs="+", choices=methods.names("detector"), default=methods.names("detector"))
    parser.add_argument("--precisions", nargs="+", choices=[name for name in PRECISIONS if name != "fp32"])
    parser.add_argument("--most-labelled", type=int, help="most test images of the gate  [default: all]")
    parser.add_argument("--minutes", type=float, help="begin no row after so many minutes")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already once more")
    parser.add_argument("--speed", action="store_true", help="measure the speed of what has passed, nothing else")
    parser.add_argument("--seconds", type=float, default=4.0, help="--speed: seconds a bundle")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {"rows": [], "settings": {}}
    rows, trained = resumed(earlier["rows"]), earlier["settings"].get("methods", {})
    if options.speed:
        measure_speeds(rows, options)
        write(options, rows, trained)
        return
    dataset = thinned(open_dataset(options.data), options.most_labelled)
    precisions = options.precisions or [name for name in PRECISIONS if name != "fp32"]
    order = list(methods.names("detector"))
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for method in options.methods:
        for precision in precisions:
            for backend in (name for name in ROWS if is_there(name)):
                key = {"method": method, "precision": precision, "backend": backend}
                known = [row for row in rows if key.items() <= row.items()]
                if (known and not options.again) or (until is not None and time.monotonic() > until):
                    continue
                row = measure(method, precision, backend, dataset, options)
                if row["verdict"] != "not offered":
                    trained[method] = SETTINGS.get(method, {})
                rows = [other for other in rows if other not in known] + [row]
                rows.sort(key=lambda one: (order.index(one["method"]), PRECISIONS.index(one["precision"])))
                print(method, precision, backend, row["verdict"], row["reason"], flush=True)
                write(options, rows, trained)


if __name__ == "__main__":
    main()
