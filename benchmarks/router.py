"""Several bundles in one process: memory, loading and the time of an image, with a shared session and without.

PatchCore is fitted on rendered parts, each time on other images, and exported. Then every case runs in a process of its
own, which loads K of the bundles, with one `Router` or with an `Inspector` each, and inspects: with another bundle for
every image, and with one bundle for a block of images. Both orders take turns. Scores of the two ways must be equal to
the last bit.

    python benchmarks/router.py --weights FILE --out results/NAME.json
    python benchmarks/router.py --quick                                     # fixed filters, small, two bundles

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
from result_file import machine

from flawscope.errors import FlawscopeError
from flawscope.files import write_text
from flawscope.versions import package_versions

ROLLUP = Path("/proc/self/smaps_rollup")
FIGURES = ("load_s", "uss_mb", "growth_mb", "staying_ms", "alternating_ms")
MORE_ROUNDS = 2  # left out at the start: caches and arenas are filled


# ---- The bundles -----------------------------------------------------------------------------------------------------


def make_bundles(folder: Path, count: int, options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Fit and export `count` detectors, each on images of its own; return their bundles, and images to inspect."""
    # Here: a process that measures imports no torch.
    from flawscope.config import build_config
    from flawscope.datasets import open_dataset
    from flawscope.datasets.parts import KINDS, render
    from flawscope.export.detectors.detector_export import export_run
    from flawscope.training.detectors.detector_training import train_detector

    # The statistics that fixed filters are standardized by would be part of the graph, and no two graphs equal.
    backbone: dict[str, Any] = {"backbone": "scattering", "standardize": "none"}
    if options.weights is not None:
        half = [128 / 255] * 3
        backbone = {"backbone": "mobilenetv2_100", "backbone_options": {"pad_type": "same"}, "mean": half, "std": half}
    bundles, images = [], []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        root = folder / f"{number}-{kind}"
        for index in range(options.train):
            image = root / "train" / "good" / f"{index:03d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), render(kind, number, index, options.size)[0][..., ::-1])
            if number == 0 and index < options.images:
                images.append(image)
        settings = {**backbone, "resize": options.size, "coreset": options.rows, "seed": number}
        run, bundle = folder / f"{number}.run", folder / f"{number}.flaw"
        train_detector(
            build_config("patchcore", settings)[0],
            open_dataset(root),
            run,
            weights=options.weights,
            drawn_check=False,
        )
        export_run(run, bundle, max_batch=1)
        bundles.append(bundle)
    return bundles, images


# ---- One case, in a process of its own -------------------------------------------------------------------------------


def unique_mb() -> float:
    """Return the memory that this process has for itself (USS) in MB: its private pages, clean and dirty."""
    fields = (line.split() for line in ROLLUP.read_text().splitlines())
    return sum(int(line[1]) for line in fields if line[0] in ("Private_Clean:", "Private_Dirty:")) / 1024


def measure_here(case: dict[str, Any]) -> dict[str, Any]:
    """Load the bundles of a case and inspect with them.

    Args:
        case: Paths of `bundles` and `images`, `shares`, and the `rounds` of each order.

    Returns:
        The figures, all image times, and the scores of the first round as hexadecimal numbers.
    """
    from flawscope.runtime import Inspector, Result, Router

    names = [str(number) for number in range(len(case["bundles"]))]
    images = [Path(path).read_bytes() for path in case["images"]]
    before = unique_mb()
    with contextlib.ExitStack() as stack:
        inspect: Callable[[bytes, str], Result]
        started = time.perf_counter()
        if case["shares"]:
            router = stack.enter_context(Router(dict(zip(names, case["bundles"], strict=True)), "cpu", "kernel"))
            inspect = router.inspect
        else:
            alone = {
                name: stack.enter_context(Inspector.load(path, "cpu", "kernel"))
                for name, path in zip(names, case["bundles"], strict=True)
            }
            inspect = lambda image, name: alone[name](image)  # noqa: E731
        loaded = time.perf_counter() - started
        # The first images fill caches and arenas, which belong to what a line needs.
        scores = [inspect(image, name).score for name in names for image in images]
        after = unique_mb()
        staying = [(image, name) for name in names for image in images]
        alternating = [(image, name) for image in images for name in names]
        times: dict[str, list[float]] = {"staying": [], "alternating": []}
        for number in range(case["rounds"] + MORE_ROUNDS):
            orders = [("staying", staying), ("alternating", alternating)]
            for order, sequence in orders if number % 2 else orders[::-1]:
                taken = [_timed(inspect, image, name) for image, name in sequence]
                if number >= MORE_ROUNDS:
                    times[order] += taken
        sessions = len(router.sharing) if case["shares"] else len(names)
    return {
        "load_s": loaded,
        "uss_mb": after,
        "growth_mb": after - before,
        **{f"{order}_ms": statistics.median(taken) for order, taken in times.items()},
        "sessions": sessions,
        "scores": [None if score is None else float(score).hex() for score in scores],
    }


def _timed(inspect: Callable[[bytes, str], Any], image: bytes, name: str) -> float:
    started = time.perf_counter()
    inspect(image, name)
    return 1e3 * (time.perf_counter() - started)


def measure_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one case, measured in a fresh process.

    Raises:
        FlawscopeError: If the process fails.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(case)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no output"]
        raise FlawscopeError(f"router: expected a result, got status {process.returncode}: {lines[-1]}")
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures


# ---- All of them -----------------------------------------------------------------------------------------------------


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a case, medians over its runs; and what a change of bundles costs, in images.

    Raises:
        FlawscopeError: If the two ways gave other scores.
    """
    rows = []
    for count in dict.fromkeys(run["bundles"] for run in runs):
        if len({tuple(run["scores"]) for run in runs if run["bundles"] == count}) != 1:
            raise FlawscopeError(
                f"router, {count} bundles: expected equal scores with and without sharing, got others. One of the two "
                "is wrong; its speed says nothing."
            )
        for shares in (True, False):
            mine = [run for run in runs if (run["bundles"], run["shares"]) == (count, shares)]
            row = {figure: statistics.median(run[figure] for run in mine) for figure in FIGURES}
            changing = row["alternating_ms"] - row["staying_ms"]
            rows.append(
                {
                    "bundles": count,
                    "shares": shares,
                    "sessions": mine[0]["sessions"],
                    **row,
                    "change_ms": changing,
                    "change_in_images": changing / row["staying_ms"],
                    "loading_in_images": 1e3 * row["load_s"] / count / row["staying_ms"],
                    "runs": len(mine),
                }
            )
    return rows


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2; without it: fixed filters")
    parser.add_argument("--bundles", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--size", type=int, default=224, help="input size, and size of the rendered parts")
    parser.add_argument("--rows", type=int, default=1000, help="rows of every bank")
    parser.add_argument("--train", type=int, default=40, help="images that each detector learns from")
    parser.add_argument("--images", type=int, default=5, help="images that are inspected with every bundle in a round")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each order through all bundles and images")
    parser.add_argument("--repeats", type=int, default=3, help="processes of every case, in turns")
    parser.add_argument("--quick", action="store_true", help="two small bundles, once: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.bundles, options.size, options.rows, options.train = [1, 2], 64, 50, 12
        options.images, options.rounds, options.repeats = 2, 2, 1
    return options


def main() -> None:
    """Measure every number of bundles, with sharing and without, in turns."""
    options = parse_arguments()
    if options.case is not None:
        print(json.dumps(measure_here(json.loads(options.case))))
        return
    if not ROLLUP.is_file():
        raise SystemExit(f"{ROLLUP}: expected Linux, which counts the memory of a process there.")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="flawscope-bench-") as folder:
        bundles, images = make_bundles(Path(folder), max(options.bundles), options)
        for repeat in range(options.repeats):
            for count in options.bundles:
                case = {
                    "bundles": [str(path) for path in bundles[:count]],
                    "images": [str(path) for path in images],
                    "rounds": options.rounds,
                }
                for shares in (True, False) if repeat % 2 == 0 else (False, True):
                    runs.append({"bundles": count, "shares": shares, **measure_case({**case, "shares": shares})})
    rows = summarise(runs)
    for row in rows:
        figures = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print("  ".join(figures))
    document = {
        "suite": "router",
        "settings": {
            "weights": options.weights.name if options.weights else "scattering",
            **{name: value for name, value in vars(options).items() if name not in ("weights", "quick", "out", "case")},
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "runs": [{key: value for key, value in run.items() if key != "scores"} for run in runs],
    }
    if options.out is not None:
        write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
