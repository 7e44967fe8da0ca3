"""Compare flawscope with anomalib: the same images, backbone, weights, stages, size and bank size, in one run.

For every method and seed both systems are trained and tested in turn, each in a process of its own. Both learn from
all normal training images (flawscope's held-out share is set to 0) and test every image alone on the CPU. The same
metric code measures the scores and maps of both. flawscope is measured on its exported bundle.

    python benchmarks/end_to_end.py --data CATEGORY_FOLDER --weights FILE [options] --out results/NAME.json

With `--rivals anomalib,openvino` exported detectors are compared in their runtimes, by `edge_rivals.py`.

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from anomalib_env import ensure_environment
from result_file import earlier_result, machine

from flawscope.calibration.evaluation.metrics import (
    aupro,
    auroc,
    pixel_auroc,
    pixel_average_precision,
    rank_pixels,
    stack_masks,
)
from flawscope.datasets import Dataset, open_dataset
from flawscope.files import write_text
from flawscope.imaging.images import Preprocessing, prepare_mask
from flawscope.runtime import Inspector
from flawscope.versions import package_versions

HERE = Path(__file__).resolve().parent
WARM_UP_IMAGES = 20
BATCH = 8
ACCURACIES = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "aupro_05")
FIGURES = (*ACCURACIES, "train_s", "from_file_p50_ms", "peak_rss_mb")


def run_measured(command: list[str]) -> tuple[float, float]:
    """Run a process to its end; return wall-clock seconds and its peak resident memory in MB.

    Raises:
        SystemExit: If it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command)
    # wait4 gives the peak of this child; RUSAGE_CHILDREN has the largest of all children that ended before.
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"failed with status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def measure_accuracy(
    dataset: Dataset, size: int, scores: npt.NDArray[np.float32], maps: npt.NDArray[np.float32]
) -> dict[str, float | None]:
    """Return the accuracy figures of scores [N] and maps [N, H, W] in the order of `dataset.test`."""
    spec = Preprocessing(resize=(size, size))
    labels = np.array([sample.is_anomalous for sample in dataset.test])
    full_size = [sample.read_mask() for sample in dataset.test]
    masks = stack_masks([None if mask is None else prepare_mask(mask, spec) for mask in full_size], spec.size)
    # Anomalous images without pixel truth would count as normal pixels.
    use = ~labels | masks.any(axis=(1, 2))
    ranking = rank_pixels(np.ascontiguousarray(maps), masks, use)
    return {
        "image_auroc": auroc(scores.astype(np.float64), labels),
        "pixel_auroc": None if ranking is None else pixel_auroc(ranking),
        "pixel_ap": None if ranking is None else pixel_average_precision(ranking),
        "aupro": None if ranking is None else aupro(ranking),
        "aupro_05": None if ranking is None else aupro(ranking, 0.05),
    }


def run_flawscope(options: argparse.Namespace, method: str, seed: int, work: Path) -> dict[str, Any]:
    """Train, export and test one bundle."""
    dataset = open_dataset(options.data)
    run, bundle = work / "run", work / "bundle.flaw"
    images = len(dataset.train_good)
    settings = {
        "backbone_options": options.backbone_options,
        "mean": json.dumps([options.mean] * 3),
        "std": json.dumps([options.std] * 3),
        "stages": stages_of(options, method),
        "held_out": "0",
    }
    if method == "padim":
        settings["channels"] = str(options.channels)
    elif method == "stfpm":
        settings |= {"epochs": str(options.epochs), "validation": str(options.validation)}
    else:
        grid = options.size // 2 ** (int(stages_of(options, method).split(",")[0]) + 1)
        # Rows and not the share: as many as the rival keeps, which rounds down.
        settings["coreset"] = str(int(images * grid * grid * options.coreset))
    command = [sys.executable, "-m", "flawscope", "train", method, "--data", str(options.data)]
    command += ["--backbone", options.backbone, "--weights", str(options.weights), "--image-size", str(options.size)]
    command += ["--seed", str(seed), "--out", str(run)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    train_s, train_mb = run_measured(command)
    export_s, _ = run_measured([sys.executable, "-m", "flawscope", "export", str(run), "--out", str(bundle)])
    record = json.loads((run / "run.json").read_text())
    with Inspector.load(bundle, "cpu") as inspector:
        paths = [sample.path for sample in dataset.test]
        for path in paths[:WARM_UP_IMAGES]:
            inspector(path)
        results = list(inspector.stream(paths))
        # One batch of images as well: what a stage costs an image, and how many images a second.
        batch = min(BATCH, inspector.manifest.max_batch)
        list(inspector.stream(paths[:WARM_UP_IMAGES], batch))
        started = time.perf_counter()
        batched = list(inspector.stream(paths, batch))
        batched_s = time.perf_counter() - started
    faults = [result.reason for result in results if result.score is None or result.anomaly_map is None]
    if faults:
        raise SystemExit(f"a test image faulted: {faults[0]}")
    scores = np.array([result.score for result in results], np.float32)
    maps = np.stack([result.anomaly_map for result in results if result.anomaly_map is not None])
    times = [result.timings_ms for result in results]
    return {
        "system": "flawscope",
        "method": method,
        "seed": seed,
        **measure_accuracy(dataset, options.size, scores, maps),
        "train_s": train_s,
        "train_parts_s": record["seconds"],
        "export_s": export_s,
        "from_file_p50_ms": float(np.percentile([t["total"] for t in times], 50)),
        "from_file_p90_ms": float(np.percentile([t["total"] for t in times], 90)),
        "infer_p50_ms": float(np.percentile([t["infer"] for t in times], 50)),
        "stages_p50_ms": stages_p50(times),
        "batched": {
            "batch": batch,
            "stages_p50_ms": stages_p50([result.timings_ms for result in batched]),
            "images_per_second": len(batched) / batched_s,
        },
        "peak_rss_mb": train_mb,
        "facts": record["facts"],
        "command": " ".join(command),
    }


def stages_p50(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of every stage, read, prepare, infer and decide, of an image.

    `flawscope bench` has the parts of `infer`.
    """
    return {stage: float(np.percentile([each[stage] for each in times], 50)) for stage in times[0] if stage != "total"}


def run_rival(options: argparse.Namespace, python: Path, method: str, seed: int, work: Path) -> dict[str, Any]:
    """Train and test anomalib in its own environment."""
    dataset = open_dataset(options.data)
    out = work / "rival"
    command = [str(python), str(HERE / "rival_anomalib.py"), "--method", method, "--data", str(options.data)]
    command += ["--backbone", options.backbone, "--weights", str(options.weights), "--size", str(options.size)]
    command += ["--backbone-options", options.backbone_options, "--mean", str(options.mean), "--std", str(options.std)]
    command += ["--stages", stages_of(options, method), "--seed", str(seed), "--out", str(out)]
    method_options = {
        "padim": ["--channels", str(options.channels)],
        "patchcore": ["--coreset", str(options.coreset)],
        "stfpm": ["--epochs", str(options.epochs)],
    }
    command += method_options[method]
    train_and_test_s, _ = run_measured(command)
    result = json.loads((out / "result.json").read_text())
    tensors = safetensors.numpy.load_file(out / "scores.safetensors")
    order = {name: index for index, name in enumerate(json.loads((out / "images.json").read_text()))}
    # The rival sorts its images by path: rows are brought to the order of our samples.
    rows = [order[sample.path.relative_to(dataset.root).as_posix()] for sample in dataset.test]
    return {
        "system": "anomalib",
        "method": method,
        "seed": seed,
        **measure_accuracy(dataset, options.size, tensors["score"][rows], tensors["anomaly_map"][rows]),
        "train_s": result["train_s"]["total"],
        "train_parts_s": result["train_s"],
        "process_s": train_and_test_s,
        "from_file_p50_ms": result["latency_ms"]["from_file"]["p50"],
        "from_file_p90_ms": result["latency_ms"]["from_file"]["p90"],
        "model_p50_ms": result["latency_ms"]["model"]["p50"],
        "peak_rss_mb": result["peak_rss_mb"]["train"],
        "facts": result["bank"],
        "versions": result["versions"],
        "command": " ".join(command),
    }


def stages_of(options: argparse.Namespace, method: str) -> str:
    """Return the stages of a method, as typed."""
    return str(options.patchcore_stages if method == "patchcore" else options.padim_stages)


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per method, means and deviations over seeds of both systems, and their ratio (accuracy: difference)."""
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        for figure in FIGURES:
            values = {
                system: [run[figure] for run in runs if run["method"] == method and run["system"] == system]
                for system in ("flawscope", "anomalib")
            }
            if not all(values.values()) or None in (*values["flawscope"], *values["anomalib"]):
                continue
            ours, theirs = statistics.mean(values["flawscope"]), statistics.mean(values["anomalib"])
            is_accuracy = figure in ACCURACIES
            comparison = {"difference": ours - theirs} if is_accuracy else {"ratio": ours / theirs}
            spread = {f"{system}_deviation": statistics.stdev(each) for system, each in values.items() if len(each) > 1}
            means = {"flawscope": ours, "anomalib": theirs}
            rows.append({"method": method, "figure": figure, **means, **comparison, **spread})
    return rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rivals = "anomalib,openvino: exported detectors in their runtimes, with options of its own (edge_rivals.py --help)"
    parser.add_argument("--rivals", default="anomalib", help=f"anomalib: in torch; {rivals}")
    parser.add_argument("--data", type=Path, required=True, help="category folder in MVTec AD layout")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file with timm's names")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--backbone-options", default='{"pad_type": "same"}', help="JSON")
    parser.add_argument("--mean", type=float, default=128 / 255)
    parser.add_argument("--std", type=float, default=128 / 255)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--methods", default="padim,patchcore")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--padim-stages", default="1,2,3", help="of padim and stfpm")
    parser.add_argument("--channels", type=int, default=100)
    parser.add_argument("--patchcore-stages", default="2,3")
    parser.add_argument("--coreset", type=float, default=0.0015, help="share of all patches")
    parser.add_argument("--epochs", type=int, default=100, help="stfpm")
    parser.add_argument("--validation", type=float, default=0.1, help="stfpm: share that chooses our best epoch")
    parser.add_argument("--rival-python", type=Path, help="Python of an environment with anomalib; made if not given")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written anew after every run")
    parser.add_argument("--resume", action="store_true", help="keep the runs that --out already has")
    return parser.parse_args(arguments)


def rivals_of(arguments: Sequence[str]) -> list[str]:
    """Return the names after --rivals; anomalib alone, in torch, where there are none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rivals", default="anomalib")
    return str(parser.parse_known_args(arguments)[0].rivals).split(",")


def main() -> None:
    """Run everything and write the results."""
    if rivals_of(sys.argv[1:]) != ["anomalib"]:
        # Another comparison, with options of its own: exported detectors, in their runtimes.
        import edge_rivals

        edge_rivals.main(sys.argv[1:])
        return
    options = parse_arguments()
    options.data, options.weights = options.data.resolve(), options.weights.resolve()
    python = options.rival_python or ensure_environment()
    runs = earlier_runs(options)
    for method in options.methods.split(","):
        for seed in (int(text) for text in options.seeds.split(",")):
            for system in ("flawscope", "anomalib"):
                if any((run["system"], run["method"], run["seed"]) == (system, method, seed) for run in runs):
                    continue
                with tempfile.TemporaryDirectory(prefix="flawscope-bench-") as folder:
                    if system == "flawscope":
                        run = run_flawscope(options, method, seed, Path(folder))
                    else:
                        run = run_rival(options, python, method, seed, Path(folder))
                runs.append(run)
                figures = ", ".join(f"{name} {run[name]:.4g}" for name in FIGURES if run[name] is not None)
                print(f"{system} {method} seed {seed}: {figures}", flush=True)
                write_results(options, runs)
    for row in summarise(runs):
        change = f"{row['difference']:+.4f}" if "difference" in row else f"x{row['ratio']:.3f}"
        name = f"{row['method']} {row['figure']}"
        print(f"{name:<28} flawscope {row['flawscope']:.4g} anomalib {row['anomalib']:.4g} {change}")


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the options that decide the figures, for the record and for --resume."""
    without = ("out", "rival_python", "resume", "methods", "seeds", "rivals")
    names = {"data": options.data.name, "weights": options.weights.name}
    return {key: str(value) for key, value in vars(options).items() if key not in without} | names


def earlier_runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs of an interrupted benchmark of the same settings, or none."""
    found = earlier_result(options.out if options.resume else None, settings_of(options))
    return [] if found is None else list(found["runs"])


def write_results(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """Write settings, machine, every run and the means so far; paths are cut to their names."""
    document = {
        "suite": "end_to_end",
        "settings": settings_of(options),
        "machine": machine(),
        "versions": package_versions(),
        "summary": summarise(runs),
        "runs": runs,
    }
    write_text(options.out, without_folders(json.dumps(document, indent=1)) + "\n")


def without_folders(text: str) -> str:
    """Cut absolute paths to their last part: results are published, folders of a machine are not."""
    return re.sub(r"(?<=[\s\"=])(?:/[\w.@+-]+)+/([\w.@+-]+)", r"\1", text)


if __name__ == "__main__":
    main()
