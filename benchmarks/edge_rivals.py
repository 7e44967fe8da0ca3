"""Compare flawscope with what runs where there is no GPU: anomalib in OpenVINO, AnomaVision, bare networks.

    python benchmarks/end_to_end.py --rivals anomalib,openvino --data CATEGORY_FOLDER --weights FILE --work DIR
                                    --out FILE
    python benchmarks/end_to_end.py --rivals openvino --quick --data CATEGORY_FOLDER --work DIR --out FILE

For every method and backbone all contestants learn from the same images with the same weights, stages, size and share
of the patches. Then they take turns: each a turn of so many seconds, round after round, every round begun by another
one. Contestants of one environment share a process, which waits while another one measures. What was measured is kept
in --out, what was prepared in --work: a run that was broken off goes on there with --resume.

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anomalib_env import ensure_environment
from edge_accuracy import add_differences, truth_of
from edge_prepare import (
    Case,
    anomavision_exports,
    cases_of,
    gates_of,
    our_bundle,
    our_graphs,
    precisions_of,
    raw_network,
    rival_exports,
)
from edge_tables import summarise, tables
from end_to_end import measure_accuracy, without_folders
from result_file import earlier_result, machine

from flawscope.calibration.evaluation.paired_differences import tally
from flawscope.datasets import open_dataset
from flawscope.files import write_text
from flawscope.versions import package_versions

HERE = Path(__file__).resolve().parent
SCRIPTS = {"flawscope": "edge_contestants.py", "anomalib": "rival_inferencer.py", "anomavision": "rival_anomavision.py"}
RIVALS = ("anomalib", "openvino", "anomavision")
STARTS = 3
"""Fresh processes of each cold start."""


class Server:
    """A process with contestants; see rival_server.py."""

    def __init__(self, python: str, script: str, work: Path) -> None:
        self.command = [python, str(HERE / script)]
        self.work = work
        self.log = (work / f"{script}.log").open("a", encoding="utf-8")
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Return a new process."""
        return subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            # anomalib's inferencer makes a folder of cached networks where it is started.
            cwd=self.work,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request; `failed` if the process has ended, of which the system may say no reason."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            # What takes more memory than there is ends whatever shares its process, and is a row like others.
            return {"failed": f"its process ended with status {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open_all(self, requests: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Open contestants; return name -> answer.

        One that ends the process (OpenVINO ends when it compiles anomalib's PaDiM in INT8 for eight images) takes only
        itself out of the run: the others are opened in a new process.
        """
        answers: dict[str, dict[str, Any]] = {}
        left = list(requests)
        while left:
            for request in left:
                answers[request["name"]] = self.ask(do="open", **request)
                if self.process.poll() is not None:
                    break
            else:
                break
            left = [one for one in requests if "failed" not in answers.get(one["name"], {})]
            self.end()
            self.process = self.start()
        return answers

    def close(self) -> None:
        """End the process and its log."""
        self.end()
        self.log.close()

    def end(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def servers(pythons: dict[str, str], work: Path) -> Iterator[dict[str, Server]]:
    """Yield a process for each system, and end them."""
    with contextlib.ExitStack() as stack:
        started = {system: Server(python, SCRIPTS[system], work) for system, python in pythons.items()}
        for server in started.values():
            stack.callback(server.close)
        yield started


# ---- Contestants -----------------------------------------------------------------------------------------------------


def contestants_of(
    case: Case, batch: int, options: argparse.Namespace, pythons: dict[str, str]
) -> list[dict[str, Any]]:
    """Return requests that open all contestants of a case and batch, with the system, its variant and its process."""
    bundle, _ = our_bundle(case, options)
    found: list[dict[str, Any]] = []
    for backend, precision in precisions_of(bundle):
        ours = {"server": "flawscope", "bundle": str(bundle), "backend": backend, "precision": precision}
        for kind, system in (("whole", "flawscope"), ("graph", "flawscope backbone")):
            found.append({**ours, "system": system, "variant": f"{backend} {precision}", "kind": kind})
    raw = {"server": "flawscope", "kind": "raw", "size": [options.size] * 2, "graph": str(raw_network(case, options))}
    found.append({**raw, "system": "raw", "variant": "onnxruntime fp32", "library": "onnxruntime"})
    for precision, graph in our_graphs(case, bundle).items():
        same = {"library": "openvino", "precision": precision, "graph": str(graph), "is_ours": True}
        found.append({**raw, **same, "system": "raw", "variant": f"openvino {precision}, our graph"})
    for precision in ("fp32", "default"):
        openvino = {"library": "openvino", "precision": precision, "variant": f"openvino {precision}"}
        found.append({**raw, **openvino, "system": "raw"})
    if "anomalib" in pythons:
        facts = rival_exports(case, options, Path(pythons["anomalib"]))
        folder = case.folder / "anomalib"
        int8 = folder / "backbone-int8.xml"
        if int8.is_file():
            quantized = {"graph": str(int8), "library": "openvino", "precision": "int8", "variant": "openvino int8"}
            found.append({**raw, **quantized, "system": "raw"})
        for form in ("file", "array") if batch == 1 else ("batch",):
            for precision in ("default", "fp32", "int8"):
                if precision == "int8" and form == "file":
                    continue
                rival = {"server": "anomalib", "kind": "openvino", "folder": str(folder), "size": options.size}
                rival |= {"form": form, "precision": precision, "bank": facts["bank"]}
                found.append({**rival, "system": "anomalib", "variant": f"{form} {precision}"})
    if "anomavision" in pythons and not case.is_given:
        exported = anomavision_exports(case, options, Path(pythons["anomavision"]))
        for name in ("onnx", "openvino"):
            if f"{name}-{batch}" in exported:
                rival = {"server": "anomavision", "path": exported[f"{name}-{batch}"], "size": options.size}
                found.append({**rival, "system": "anomavision", "variant": name})
    for request in found:
        request |= {"batch": batch, "name": f"{request['system']} {request['variant']}"}
    return found


def measure(case: Case, batch: int, options: argparse.Namespace, pythons: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row for every contestant of a case and batch, measured in turns; `failed` in place of figures."""
    requests = contestants_of(case, batch, options, pythons)
    paths = image_paths(options)
    rows = []
    with servers({name: pythons[name] for name in {r["server"] for r in requests}}, options.work) as running:
        answers: dict[str, dict[str, Any]] = {}
        for name, server in running.items():
            answers |= server.open_all([request for request in requests if request["server"] == name])
        for request in requests:
            rows.append(
                {
                    **{"method": case.method, "backbone": case.backbone, "batch": batch},
                    **{key: request[key] for key in ("system", "variant")},
                    **answers[request["name"]],
                    "turns": [],
                }
            )
        seconds = options.minutes * 60 / options.units / options.rounds / len(requests)
        for turn in range(options.rounds):
            for step in range(len(requests)):
                place = (turn + step) % len(requests)
                row, request = rows[place], requests[place]
                if "failed" in row:
                    continue
                start = turn * batch % len(paths)
                answer = running[request["server"]].ask(
                    do="time",
                    name=request["name"],
                    paths=paths[start:] + paths[:start],
                    batch=batch,
                    seconds=seconds,
                    least=options.least,
                )
                row["turns"].append(answer)
                if "failed" in answer:
                    row["failed"] = answer["failed"]
    return [figures(row, batch) for row in rows]


def figures(row: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return a row with percentiles in place of its turns, and the median of every turn, for ratios turn by turn."""
    turns = row.pop("turns")
    if "failed" in row:
        return row
    is_network = row["system"] in ("raw", "flawscope backbone")
    parts = ("model",) if is_network else ("whole", "model")
    for part in parts:
        times = [time for turn in turns for time in turn[part]]
        p50, p99 = (float(value) for value in np.percentile(times, (50, 99)))
        row[f"{part}_ms"] = {"p50": p50, "p99": p99, "turns": [statistics.median(turn[part]) for turn in turns]}
    calls = [time for turn in turns for time in turn[parts[0]]]
    row |= {"calls": len(calls), "images_per_second": 1e3 * batch * len(calls) / sum(calls)}
    return row


def image_paths(options: argparse.Namespace) -> list[str]:
    """Return test images, normal and anomalous ones, evenly taken from all."""
    paths = [str(sample.path) for sample in open_dataset(options.data).test]
    return paths[:: max(1, len(paths) // options.timed_images)][: options.timed_images]


# ---- Accuracy and cold start -----------------------------------------------------------------------------------------


def measure_accuracies(case: Case, options: argparse.Namespace, pythons: dict[str, str]) -> list[dict[str, Any]]:
    """Return AUROC of all contestants of a case on all test images."""
    dataset = open_dataset(options.data)
    truth, tallies = truth_of(dataset, options.size), {}
    paths = [str(sample.path) for sample in dataset.test]
    requests = [r for r in contestants_of(case, 1, options, pythons) if r["system"] in ("flawscope", "anomalib")]
    rows = []
    with servers({name: pythons[name] for name in {r["server"] for r in requests}}, options.work) as running:
        for request in requests:
            server, out = running[request["server"]], options.work / "scores.npz"
            answer = server.ask(do="open", **request)
            if "failed" not in answer:
                answer = server.ask(do="score", name=request["name"], paths=paths, out=str(out))
                server.ask(do="close", name=request["name"])
            row = {"method": case.method, "backbone": case.backbone, **{k: request[k] for k in ("system", "variant")}}
            if "failed" not in answer:
                with np.load(out, allow_pickle=False) as arrays:
                    scores, maps = arrays["score"], arrays["anomaly_map"]
                answer = dict(measure_accuracy(dataset, options.size, scores, maps))
                tallies[row["system"], row["variant"]] = tally(maps, scores.astype(np.float64), truth, {})
            rows.append({**row, **answer})
    add_differences(rows, tallies, truth)
    return rows


def measure_starts(case: Case, options: argparse.Namespace, pythons: dict[str, str]) -> list[dict[str, Any]]:
    """Return seconds from the start of a fresh process to its first decision, and its memory; medians."""
    requests = [
        request
        for request in contestants_of(case, 1, options, pythons)
        # A start of anomalib takes seconds; precisions change little of it.
        if request["system"] == "flawscope" or (request["system"], request.get("precision")) == ("anomalib", "default")
    ]
    if "anomalib" in pythons:
        torch = {"server": "anomalib", "kind": "torch", "folder": str(case.folder / "anomalib")}
        requests.append({**torch, "system": "anomalib", "variant": "torch"})
    rows: list[dict[str, Any]] = [{key: request[key] for key in ("system", "variant")} for request in requests]
    starts: list[list[dict[str, float]]] = [[] for _ in requests]
    for _ in range(STARTS + 1):  # the first reads files that no one has read yet
        for place, request in enumerate(requests):
            asked = {**request, "path": image_paths(options)[0], "started_ns": time.time_ns()}
            command = [pythons[request["server"]], str(HERE / SCRIPTS[request["server"]]), "--once", json.dumps(asked)]
            process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=options.work)
            if process.returncode != 0:
                rows[place]["failed"] = (process.stderr.strip().splitlines() or ["no output"])[-1]
                continue
            starts[place].append(json.loads(process.stdout))
    for row, taken in zip(rows, starts, strict=True):
        row |= {"method": case.method, "backbone": case.backbone}
        if len(taken) > 1:
            row |= {key: statistics.median(start[key] for start in taken[1:]) for key in taken[0]}
    return rows


# ---- All of it -------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", required=True, help=f"of {', '.join(RIVALS)}, with commas; openvino is among them")
    parser.add_argument("--data", type=Path, required=True, help="category folder in MVTec AD layout")
    parser.add_argument("--weights", type=Path, help="safetensors file of mobilenetv2_100; others get random weights")
    parser.add_argument("--work", type=Path, required=True, help="folder of bundles and exports, kept")
    parser.add_argument("--methods", default="patchcore,padim")
    parser.add_argument("--backbones", default="mobilenetv2_100,resnet18,wide_resnet50_2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=100, help="padim")
    parser.add_argument("--images", type=int, default=60, help="normal images to learn from, with random weights")
    parser.add_argument("--held", type=int, default=60, help="normal images kept back, for thresholds and the gate")
    parser.add_argument("--gate-images", type=int, default=120, help="labelled test images of the gate")
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the patches, with random weights")
    parser.add_argument("--full-coreset", type=float, default=0.0015, help="the same with given ones and all images")
    parser.add_argument("--int8-budget", type=float, default=2, help="minutes of the search for operators in INT8")
    parser.add_argument(
        # ONNX Runtime gains nothing from INT8 on a CPU, and a search for its operators would take time of OpenVINO's.
        "--gate-backends",
        nargs="+",
        default=["openvino"],
        help="backends of ours that run reduced precisions",
    )
    parser.add_argument("--without", nargs="*", default=[], help="precisions of ours to leave out")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=12, help="of all turns together")
    parser.add_argument("--least", type=int, default=2, help="calls of a turn, at least")
    parser.add_argument("--timed-images", type=int, default=40, help="test images that are timed")
    parser.add_argument("--rival-python", type=Path, help="Python of an environment with anomalib; made if not given")
    parser.add_argument("--anomavision-python", type=Path, help="Python of an environment with AnomaVision")
    parser.add_argument("--quick", action="store_true", help="small, two rounds: does it run?")
    parser.add_argument(
        "--prepare-only", action="store_true", help="end before anything is timed; accuracy is measured"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --out already has")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written anew after every step")
    options = parser.parse_args(arguments)
    if options.quick:
        options.backbones, options.size, options.images, options.int8_budget = "resnet18", 64, 12, 0.1
        options.rounds, options.minutes, options.batches, options.timed_images, options.held = 2, 0.01, [1, 2], 4, 8
    wanted = options.rivals.split(",")
    if "openvino" not in wanted or not set(wanted) <= set(RIVALS):
        parser.error(f"--rivals: expected openvino and others of {', '.join(RIVALS)}, got {options.rivals}")
    if "anomavision" in wanted and options.anomavision_python is None:
        parser.error("--rivals anomavision: expected --anomavision-python PATH with it, got none")
    options.units = len(options.methods.split(",")) * len(options.backbones.split(",")) * len(options.batches)
    for name in ("data", "weights", "work", "out"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    return options


def pythons_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the Python of every environment."""
    pythons = {"flawscope": sys.executable}
    if "anomalib" in options.rivals.split(","):
        # Not resolved: the link of a virtual environment says which one it is.
        pythons["anomalib"] = str(Path(options.rival_python or ensure_environment()).absolute())
    if "anomavision" in options.rivals.split(","):
        pythons["anomavision"] = str(options.anomavision_python.absolute())
    return pythons


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the options that decide the figures, for the record and for --resume."""
    without = ("out", "work", "resume", "prepare_only", "rival_python", "anomavision_python", "units")
    names = {"data": options.data.name, "weights": "random" if options.weights is None else options.weights.name}
    return {key: str(value) for key, value in vars(options).items() if key not in without} | names


def earlier(options: argparse.Namespace) -> dict[str, Any]:
    """Return what an interrupted run of the same settings has measured, or nothing.

    Raises:
        SystemExit: If it had other settings.
    """
    nothing: dict[str, Any] = {"runs": [], "accuracy": [], "starts": [], "prepared": {}}
    found = earlier_result(options.out if options.resume else None, settings_of(options))
    return nothing if found is None else {key: found[key] for key in nothing}


def versions_of(pythons: dict[str, str]) -> dict[str, Any]:
    """Return the versions of our packages, and of those of the rivals."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    packages = {"anomalib": ["anomalib", "openvino", "nncf", "torch"]}
    packages["anomavision"] = ["anomavision", "openvino", "onnxruntime", "torch"]
    versions: dict[str, Any] = dict(package_versions())
    for system, names in packages.items():
        if system in pythons:
            answer = subprocess.run([pythons[system], "-c", code, *names], capture_output=True, text=True, check=True)
            versions[f"of_{system}"] = json.loads(answer.stdout)
    return versions


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare and measure everything, and write the results."""
    options = parse_arguments(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    pythons = pythons_of(options)
    kept = earlier(options)
    versions = versions_of(pythons)

    def write() -> None:
        document = {
            "suite": "edge_rivals",
            "settings": settings_of(options),
            "machine": machine(),
            "versions": versions,
            "goals": summarise(kept["runs"], kept["accuracy"]),
            **kept,
        }
        write_text(options.out, without_folders(json.dumps(document, indent=1)) + "\n")

    cases = cases_of(options)
    for case in cases:
        bundle, refused = our_bundle(case, options)
        facts: dict[str, Any] = {"refused": refused, "precisions": gates_of(bundle)}
        contestants_of(case, options.batches[0], options, pythons)  # exports what is not there yet
        if "anomalib" in pythons:
            facts["anomalib"] = rival_exports(case, options, Path(pythons["anomalib"]))
        kept["prepared"][case.name] = facts
        key = {"method": case.method, "backbone": case.backbone}
        if case.is_given and not any(key.items() <= row.items() for row in kept["accuracy"]):
            kept["accuracy"] += measure_accuracies(case, options, pythons)
        write()
        print(f"{case.name}: prepared", flush=True)
    if options.prepare_only:
        return
    for case in cases:
        key = {"method": case.method, "backbone": case.backbone}
        for batch in options.batches:
            if not any({**key, "batch": batch}.items() <= row.items() for row in kept["runs"]):
                kept["runs"] += measure(case, batch, options, pythons)
                write()
            print(f"{case.name}, batch {batch}: measured", flush=True)
    if not kept["starts"]:
        kept["starts"] = measure_starts(cases[0], options, pythons)
        write()
    print(tables(kept, summarise(kept["runs"], kept["accuracy"])))


if __name__ == "__main__":
    main()
