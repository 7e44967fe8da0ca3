"""How cost grows: image to decision with bank rows and image size, search with bank rows, fitting with images.

Every case is a process of its own, whose peak memory stands beside its time. Exponents are the slopes of straight lines
through the logarithms, over all points and between the last two. A run that was broken off goes on where it was.

    python benchmarks/growth.py --weights FILE --out results/NAME.json --plot results/NAME.svg
    python benchmarks/growth.py --quick --out FILE                     # fixed filters, small: does it run?
    python benchmarks/growth.py --rival-python PATH --out FILE         # anomalib's selection of a bank as well

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import safetensors.numpy
from growth_cases import measure_case, synthetic
from result_file import earlier_result, machine

from flawscope.files import write_bytes, write_text
from flawscope.versions import package_versions

HERE = Path(__file__).resolve().parent
TITLES = {
    "decision_by_rows": "image to decision, by rows of the bank",
    "decision_by_side": "image to decision, by the side of the image",
    "search_by_rows": "search of one image's patches, by rows of the bank",
    "fit_patchcore_by_images": "selection of a bank, by images",
    "fit_padim_by_images": "Gaussians of all positions, by images",
}
AXES = {"rows": "rows", "side": "side in pixels", "images": "images"}
RIVAL_IMAGES = 1000
"""Most images for anomalib's selection: it works on all patches at once, row by row in torch."""


# ---- The bundles -----------------------------------------------------------------------------------------------------


def make_bundles(folder: Path, options: argparse.Namespace) -> dict[tuple[int, int], tuple[Path, Path]]:
    """Return bundle and image for each (side, rows) that is needed; rows are made up around those of a fit."""
    # Here: a process that measures a decision imports no torch.
    from flawscope.config import build_config
    from flawscope.datasets import open_dataset
    from flawscope.datasets.parts import KINDS, render
    from flawscope.export.detectors.detector_export import export_run
    from flawscope.training.detectors.detector_training import train_detector

    backbone: dict[str, Any] = {"backbone": "scattering"}
    if options.weights is not None:
        half = [128 / 255] * 3
        backbone = {"backbone": "mobilenetv2_100", "backbone_options": {"pad_type": "same"}, "mean": half, "std": half}
    made = {}
    for side in dict.fromkeys([options.side, *options.sides]):
        root = folder / f"parts{side}"
        for index in range(12):
            image = root / "train" / "good" / f"{index:03d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(image, cv2.imencode(".jpg", render(KINDS[0], 0, index, side)[0][..., ::-1])[1].tobytes())
        run, bundle = folder / f"{side}.run", folder / f"{side}.flaw"
        config = build_config("patchcore", {**backbone, "resize": side, "coreset": 200})[0]
        train_detector(config, open_dataset(root), run, weights=options.weights, drawn_check=False)
        export_run(run, bundle, max_batch=1)
        for rows in options.rows if side == options.side else [options.side_rows]:
            made[side, rows] = (with_rows(bundle, folder / f"{side}-{rows}.flaw", rows), image)
    return made


def with_rows(bundle: Path, target: Path, rows: int) -> Path:
    """Write a bundle with as many rows as wanted: those of another one, with noise. It scores, and decides nothing."""
    from flawscope.bundle import PatchcoreHead, Threshold, Thresholds, open_bundle, write_bundle

    with open_bundle(bundle) as opened:
        manifest, bank = opened.manifest, opened.tensors()["bank"]
        assert isinstance(manifest.head, PatchcoreHead)
        generator = np.random.default_rng(0)
        noise = generator.standard_normal((rows, bank.shape[1]), np.float32) * (0.1 * bank.std())
        more = bank[generator.integers(0, len(bank), rows)] + noise
        high = Threshold(1e9, "manual")
        changed = msgspec.structs.replace(
            manifest,
            graphs={"features": manifest.graphs["features"]},
            # The table of neighbours of a million rows takes hours, and reading it no time.
            head=msgspec.structs.replace(manifest.head, reweight="none", neighbors=1),
            golden=(),
            upkeep=None,
            thresholds=Thresholds(image=high, pixel=high),
        )
        assert manifest.bank is not None
        sources: dict[str, Path | bytes] = {
            name: opened.read(name) for name in (manifest.graphs["features"].file, manifest.provenance.images)
        }
        sources[manifest.bank] = safetensors.numpy.save({"bank": np.ascontiguousarray(more, np.float32)})
        write_bundle(target, changed, sources)
    return target


# ---- The cases -------------------------------------------------------------------------------------------------------


def cases_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all cases, small ones of a series first."""
    timed = {"rounds": options.rounds, "seconds": options.seconds}
    shape = {"channels": options.channels, "threads": options.threads}
    systems = ["flawscope", *(["faiss"] if importlib.util.find_spec("faiss") else [])]
    cases: list[dict[str, Any]] = []
    for series, axis, count in (
        ("decision_by_rows", "rows", options.rows),
        ("decision_by_side", "side", options.sides),
        ("search_by_rows", "rows", options.rows),
        ("fit_patchcore_by_images", "images", options.images),
        ("fit_padim_by_images", "images", options.images),
    ):
        for n in count:
            case = {"series": series, "axis": axis, "system": "flawscope", "n": n}
            if series.startswith("decision"):
                side, rows = (options.side, n) if axis == "rows" else (n, options.side_rows)
                cases.append({**case, **timed, "side": side, "rows": rows})
            elif series == "search_by_rows":
                cases += [{**case, **timed, **shape, "system": s, "patches": options.patches} for s in systems]
            else:
                fitted = {**case, **shape, "patches": options.fit_patches, "bank_rows": options.bank_rows}
                cases.append(fitted)
                if options.rival_python and series == "fit_patchcore_by_images" and n <= RIVAL_IMAGES:
                    cases.append({**fitted, "system": "anomalib"})
    return cases


def run_case(case: dict[str, Any], files: tuple[Path, Path] | None, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one case, from a process of its own; `failed` in their place where it ends early."""
    if case["system"] == "anomalib":
        return run_rival(case, options.rival_python)
    full = case if files is None else {**case, "bundle": str(files[0]), "image": str(files[1])}
    command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(full)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        # Kept as a point where a system cannot go: too little memory, for one.
        return {"failed": (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1]}
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures


def run_rival(case: dict[str, Any], python: Path) -> dict[str, Any]:
    """Return the milliseconds that anomalib's selection takes without its projection, and the peak of its process."""
    with tempfile.TemporaryDirectory(prefix="flawscope-bench-") as folder:
        features, out = Path(folder) / "features.npy", Path(folder) / "result.json"
        np.save(features, synthetic(case["n"] * case["patches"], case["channels"], 1))
        command = [str(python), str(HERE / "kernels_rival.py"), "--features", str(features)]
        command += ["--count", str(case["bank_rows"]), "--threads", str(case["threads"]), "--out", str(out)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            return {"failed": (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1]}
        result = json.loads(out.read_text(encoding="utf-8"))
        seconds = result["unprojected"]["seconds"]
        return {"ms": 1e3 * statistics.median(seconds), "calls": len(seconds), "peak_kib": result["peak_kib"]}


# ---- Exponents and the plot ------------------------------------------------------------------------------------------


def exponents(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each series and system the exponents of time and of peak memory.

    `exponent` is the slope of the line through the logarithms of all points, `last` that between the last two: fixed
    costs hide the growth of small cases.
    """
    rows = []
    for series, system in dict.fromkeys((run["series"], run["system"]) for run in runs):
        mine = sorted((run for run in runs if (run["series"], run["system"]) == (series, system)), key=lambda r: r["n"])
        row: dict[str, Any] = {"series": series, "system": system}
        for figure in ("ms", "peak_kib"):
            points = [(run["n"], run[figure]) for run in mine if run.get(figure)]
            if len(points) < 2:
                continue
            n, values = np.log(np.array(points, np.float64)).T
            row[figure] = {
                "exponent": float(np.polyfit(n, values, 1)[0]),
                "last": float((values[-1] - values[-2]) / (n[-1] - n[-2])),
            }
        rows.append(row)
    return rows


def _label(axis: Any, across: str, up: str, measured: Sequence[int]) -> None:
    """Name the axes; ticks stand at what was measured, and upwards a decade is shown at least."""
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.set_xticks(measured, [f"{n:,}" for n in measured])
    axis.set_xticks([], minor=True)
    low, high = axis.get_ylim()
    if high < 10 * low:
        middle = (low * high) ** 0.5
        axis.set_ylim(middle / 10**0.5, middle * 10**0.5)
    axis.grid(True, linewidth=0.4)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time and peak memory of all series, logarithms on both axes, to an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    series = [name for name in TITLES if any(run["series"] == name for run in runs)]
    with matplotlib.rc_context({"svg.hashsalt": "flawscope-growth", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(len(series), 2, figsize=(9, 2.6 * len(series)), squeeze=False)
        for name, (time_axis, memory_axis) in zip(series, axes, strict=True):
            mine = [run for run in runs if run["series"] == name]
            for axis, field, scale, label in (
                (time_axis, "ms", 1.0, "milliseconds"),
                (memory_axis, "peak_kib", 1 / 1024, "peak memory, MiB"),
            ):
                for system in dict.fromkeys(run["system"] for run in mine):
                    points = sorted((r["n"], scale * r[field]) for r in mine if r["system"] == system and r.get(field))
                    if points:
                        axis.loglog(*zip(*points, strict=True), marker="o", label=system)
                _label(axis, AXES[mine[0]["axis"]], label, sorted({run["n"] for run in mine}))
            time_axis.set_title(TITLES[name], loc="left", fontsize=10)
            if time_axis.lines:
                time_axis.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


# ---- All of them -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2; without it: fixed filters")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--side", type=int, default=224, help="side of the images, by rows")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 224, 448, 896])
    parser.add_argument("--side-rows", type=int, default=1000, help="rows of the bank, by side")
    parser.add_argument("--images", type=int, nargs="+", default=[10**2, 10**3, 10**4, 10**5])
    parser.add_argument("--patches", type=int, default=784, help="patches of an image, of the search")
    parser.add_argument("--fit-patches", type=int, default=64, help="patches of an image, of fitting")
    parser.add_argument("--channels", type=int, default=128, help="of search and fitting")
    parser.add_argument("--bank-rows", type=int, default=1000, help="rows that are selected")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of search and fitting")
    parser.add_argument("--rounds", type=int, default=20, help="least calls of a case that is repeated")
    parser.add_argument("--seconds", type=float, default=10.0, help="time of a case that is repeated")
    parser.add_argument("--rival-python", type=Path, help="Python of an environment with anomalib")
    parser.add_argument("--quick", action="store_true", help="small cases: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file, written anew after every case; its cases are kept")
    parser.add_argument("--plot", type=Path, help="SVG file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.sides, options.images = [50, 200], [64, 96], [20, 60]
        options.side, options.side_rows, options.patches, options.fit_patches = 64, 50, 16, 4
        options.channels, options.bank_rows, options.rounds, options.seconds = 8, 20, 3, 0.05
    return options


def earlier_runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs of a benchmark that was broken off, of the same settings, or none.

    Raises:
        SystemExit: If the file is of other settings.
    """
    found = earlier_result(options.out, settings_of(options))
    return [] if found is None else list(found["runs"])


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide the figures."""
    without = ("out", "plot", "case", "quick", "rival_python", "weights", "rows", "sides", "images")
    return {
        "weights": options.weights.name if options.weights else "scattering",
        **{name: value for name, value in vars(options).items() if name not in without},
    }


def write_results(options: argparse.Namespace, runs: Sequence[dict[str, Any]]) -> None:
    """Write settings, machine, versions, exponents and all runs."""
    document = {
        "suite": "growth",
        "settings": settings_of(options),
        "machine": machine(),
        "versions": package_versions(),
        "exponents": exponents(runs),
        "runs": runs,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case that the file does not have yet."""
    options = parse_arguments(arguments)
    if options.case is not None:
        print(json.dumps(measure_case(json.loads(options.case))))
        return
    runs = earlier_runs(options)
    done = {(run["series"], run["system"], run["n"]) for run in runs if "failed" not in run}
    runs = [run for run in runs if "failed" not in run]
    missing = [case for case in cases_of(options) if (case["series"], case["system"], case["n"]) not in done]
    with tempfile.TemporaryDirectory(prefix="flawscope-bench-") as folder:
        needs_bundles = any(case["series"].startswith("decision") for case in missing)
        bundles = make_bundles(Path(folder), options) if needs_bundles else {}
        for case in missing:
            files = bundles[case["side"], case["rows"]] if case["series"].startswith("decision") else None
            runs.append({**case, **run_case(case, files, options)})
            print(json.dumps(runs[-1]), flush=True)
            if options.out is not None:
                write_results(options, runs)
    for row in exponents(runs):
        print(row)
    if options.plot is not None:
        draw(runs, options.plot)


if __name__ == "__main__":
    main()
