"""What the contestants of edge_rivals.py run: sets of images, weights, bundles, and the networks alone.

All of it lies in one folder (`--work`) and is made once: a run that was broken off finds it there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch

from flawscope.bundle import open_bundle
from flawscope.bundle.manifest import PRECISIONS
from flawscope.datasets import open_dataset
from flawscope.files import atomic_file, atomic_folder, write_bytes, write_text
from flawscope.imaging.images import Preprocessing, prepare, read_image

HERE = Path(__file__).resolve().parent
STAGES = {"patchcore": "2,3", "padim": "1,2,3"}
HALF, IMAGENET = ([0.5019607843137255] * 3,) * 2, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GIVEN = "mobilenetv2_100"
"""The backbone that `--weights` are of."""
_STATISTICS, _BATCH = 32, 8
"""Images from which random weights get the statistics of their normalizations, and how many at a time."""


@dataclass(frozen=True)
class Case:
    """A method on a backbone, with what it learns from.

    Attributes:
        is_given: Whether the weights are given ones; others are random, and say nothing about accuracy.
        data: Category folder that both systems learn from.
        held: Category folder with normal images that neither has learned from, for thresholds and the gate.
        coreset: Share of the patches in a bank.
    """

    method: str
    backbone: str
    is_given: bool
    data: Path
    held: Path
    weights: Path
    coreset: float
    folder: Path

    @property
    def name(self) -> str:
        """Name of the case, and of its folder."""
        return f"{self.method}-{self.backbone}"

    @property
    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the weights."""
        return HALF if self.is_given else IMAGENET

    @property
    def backbone_options(self) -> dict[str, Any]:
        """What timm is given to build the backbone."""
        return {"pad_type": "same"} if self.is_given else {}


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Return all cases; their sets of images and weights are there afterwards."""
    cases = []
    for backbone in options.backbones.split(","):
        is_given = backbone == GIVEN and options.weights is not None
        weights = options.weights if is_given else random_weights(options, backbone)
        learn, held = image_sets(options, None if is_given else options.images)
        for method in options.methods.split(","):
            cases.append(
                Case(
                    method,
                    backbone,
                    is_given,
                    data=learn,
                    held=held,
                    weights=weights,
                    coreset=options.full_coreset if is_given else options.coreset,
                    folder=options.work / f"{method}-{backbone}",
                )
            )
    return cases


def image_sets(options: argparse.Namespace, count: int | None) -> tuple[Path, Path]:
    """Return two category folders: one to learn from, and one with normal images that are in none of them.

    Args:
        options: `held` of the normal training images are kept back, to set thresholds by and for the gate.
        count: Images to learn from; None for all but those that are kept back.

    Returns:
        The first has `train/good`; the second too, with the images kept back and as many of those to learn from, for
        value ranges in INT8.
    """
    learn, held = options.work / f"learn-{count or 'all'}", options.work / f"held-{count or 'all'}"
    if not held.is_dir():
        paths = [sample.path for sample in open_dataset(options.data).train_good]
        kept_back, first = paths[-options.held :], paths[: -options.held][:count]
        for target, chosen in ((learn, first), (held, [*kept_back, *first[: options.held]])):
            shutil.rmtree(target, ignore_errors=True)
            with atomic_folder(target) as folder:
                (folder / "train" / "good").mkdir(parents=True)
                for path in chosen:
                    shutil.copyfile(path, folder / "train" / "good" / path.name)
    return learn, held


def labelled_set(options: argparse.Namespace) -> Path:
    """Return a category folder with labelled test images for the gate, spread over all; without masks.

    Scores of normal images alone lie so close together that rounding changes their order, and the gate would refuse
    what no decision depends on.
    """
    target: Path = options.work / f"labelled-{options.gate_images}"
    if not target.is_dir():
        dataset = open_dataset(options.data)
        step = max(1, len(dataset.test) // options.gate_images)
        with atomic_folder(target) as folder:
            for part, samples in (("train", dataset.train_good[:1]), ("test", dataset.test[::step])):
                for sample in samples:
                    place = folder / part / sample.path.parent.name
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(sample.path, place / sample.path.name)
    return target


def random_weights(options: argparse.Namespace, backbone: str) -> Path:
    """Return a file with random weights of a backbone, the same for all contestants.

    Every layer reaches the scores, so that a gate judges what is rounded in it: timm starts the last normalization of
    a residual branch at zero, here it is one. Means and variances of normalizations are those of `_STATISTICS` normal
    images, as after training. These weights still have learned nothing: accuracy with them is no figure.
    """
    path: Path = options.work / f"{backbone}-seed{options.seed}.safetensors"
    if not path.is_file():
        import timm
        import torch

        torch.manual_seed(options.seed)
        network = timm.create_model(backbone, pretrained=False)
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            torch.nn.init.ones_(norm.weight)
            norm.momentum = None  # the mean over all batches, not a moving one that forgets the first
        spec = Preprocessing((options.size, options.size))
        paths = [sample.path for sample in open_dataset(options.data).train_good]
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        chosen = [paths[int(place)] for place in np.linspace(0, len(paths) - 1, _STATISTICS)]
        with torch.inference_mode():
            for start in range(0, _STATISTICS, _BATCH):
                images = np.stack([prepare(read_image(one), spec) for one in chosen[start : start + _BATCH]])
                network.train()((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std)
        with atomic_file(path) as part:
            safetensors.torch.save_file(network.state_dict(), str(part))
    return path


def run(command: list[str], log: Path) -> None:
    """Run a command to its end, its output to a file.

    Raises:
        SystemExit: If it fails.
    """
    with log.open("a", encoding="utf-8") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.run(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, check=False)
    if process.returncode != 0:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(command)}: {lines[-1]}; see {log}")


def train_command(case: Case, options: argparse.Namespace) -> list[str]:
    """Return the command that trains our detector of a case."""
    mean, std = case.mean_std
    settings = {"stages": STAGES[case.method], "held_out": "0", "mean": json.dumps(mean), "std": json.dumps(std)}
    settings["backbone_options"] = json.dumps(case.backbone_options)
    # Without `min_bank`, by which a bank of few images is larger than its share: the rivals have no such thing.
    bank = {"coreset": str(case.coreset), "min_bank": "0"}
    settings |= {"channels": str(options.channels)} if case.method == "padim" else bank
    command = [sys.executable, "-m", "flawscope", "train", case.method, "--data", str(case.data)]
    command += ["--backbone", case.backbone, "--weights", str(case.weights), "--image-size", str(options.size)]
    command += ["--seed", str(options.seed), "--out", str(case.folder / "run")]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return command


def export_command(case: Case, options: argparse.Namespace, precisions: list[str]) -> list[str]:
    """Return the command that exports it in FP32 and these precisions."""
    command = [sys.executable, "-m", "flawscope", "export", str(case.folder / "run")]
    command += ["--out", str(case.folder / "bundle.flaw"), "--max-batch", str(max(options.batches))]
    command += ["--precision", "fp32"] + [part for name in precisions for part in ("--precision", name)]
    if precisions:
        command += ["--calibration-data", str(case.held), "--min-gate-images", "2"]
        command += ["--labelled-data", str(labelled_set(options))]
        command += [part for name in options.gate_backends for part in ("--gate-backend", name)]
        if not case.is_given:
            # At chance, where random weights are, a few pairs of images in another order are a change of AUROC already.
            command += ["--max-auroc-change", "0.02"]
    if "int8" in precisions:
        command += ["--int8-budget", str(options.int8_budget)]
    return command


def our_bundle(case: Case, options: argparse.Namespace) -> tuple[Path, dict[str, str]]:
    """Return the calibrated bundle of a case, and why precisions are not in it.

    A precision that does not pass its gate ends an export: then each of the others is tried alone, and at last none.
    """
    done, bundle, log = case.folder / "done.json", case.folder / "bundle.flaw", case.folder / "log.txt"
    wanted = [name for name in ("bf16", "int8") if name in PRECISIONS and name not in options.without]
    if done.is_file():
        earlier = json.loads(done.read_text(encoding="utf-8"))
        if earlier["wanted"] == wanted:
            return bundle, earlier["refused"]
    case.folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    shutil.rmtree(bundle, ignore_errors=True)
    if not (case.folder / "run" / "run.json").is_file():
        run(train_command(case, options), log)
    refused = {}
    for attempt in (wanted, *([name] for name in reversed(wanted) if len(wanted) > 1), []):
        if len(attempt) == 1 and any(f"error: {attempt[0]}:" in reason for reason in refused.values()):
            continue  # it was what ended the export of all; a search for operators takes minutes
        try:
            run(export_command(case, options, attempt), log)
            break
        except SystemExit as err:
            refused["+".join(attempt)] = str(err)[-300:]
            if not attempt:
                raise
    run([sys.executable, "-m", "flawscope", "calibrate", str(bundle), "--data", str(case.held)], log)
    write_text(done, json.dumps({"wanted": wanted, "refused": refused}))
    return bundle, refused


def precisions_of(bundle: Path) -> list[tuple[str, str]]:
    """Return backend and precision of all ways to run a bundle, FP32 first; others where they passed the gate."""
    with open_bundle(bundle) as opened:
        reduced = opened.manifest.precisions
    gated = [(gate.backend, name) for name, precision in reduced.items() for gate in precision.all_gates]
    return [("cpu", "fp32"), ("openvino", "fp32"), *gated]


def gates_of(bundle: Path) -> dict[str, Any]:
    """Return how every reduced precision of a bundle was made, and what its gate measured, by backend."""
    with open_bundle(bundle) as opened:
        return {
            name: {
                **{"method": precision.method, "quantised": precision.quantised, "kept": len(precision.kept)},
                "gates": {gate.backend: msgspec.to_builtins(gate) for gate in precision.all_gates},
            }
            for name, precision in opened.manifest.precisions.items()
        }


def our_graphs(case: Case, bundle: Path) -> dict[str, Path]:
    """Return the feature graph of a bundle as a file, for every precision that passed its gate on OpenVINO."""
    graphs = {}
    with open_bundle(bundle) as opened:
        for backend, precision in precisions_of(bundle):
            if backend == "openvino":
                # BF16 has no graph of its own: it is how that of FP32 is computed.
                of_precision = {} if precision == "fp32" else opened.manifest.precisions[precision].graphs
                graph = of_precision.get("features", opened.manifest.graphs["features"])
                graphs[precision] = case.folder / f"features-{precision}.onnx"
                write_bytes(graphs[precision], opened.read(graph.file))
    return graphs


def raw_network(case: Case, options: argparse.Namespace) -> Path:
    """Return the backbone alone as ONNX: float images [N, 3, H, W] in, its stages out, without normalization."""
    path = case.folder / "backbone.onnx"
    if not path.is_file():
        import timm
        import torch

        stages = tuple(int(stage) for stage in STAGES[case.method].split(","))
        network = timm.create_model(
            case.backbone,
            pretrained=False,
            features_only=True,
            exportable=True,
            out_indices=stages,
            **case.backbone_options,
        )
        network.load_state_dict(safetensors.torch.load_file(case.weights), strict=False)
        example = torch.zeros(2, 3, options.size, options.size)
        with atomic_file(path) as part:
            torch.onnx.export(
                network.eval(),
                (example,),
                str(part),
                dynamo=True,
                external_data=False,
                input_names=["image"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    return path


def rival_exports(case: Case, options: argparse.Namespace, python: Path) -> dict[str, Any]:
    """Return what anomalib's training and export say of a case; its files lie in `anomalib` below its folder."""
    out = case.folder / "anomalib"
    done = out / "done.json"
    if not done.is_file():
        mean, std = case.mean_std
        request = {
            "method": case.method,
            "data": str(case.data),
            "backbone": case.backbone,
            "weights": str(case.weights),
            "backbone_options": case.backbone_options,
            "mean": mean,
            "std": std,
            "stages": [int(stage) for stage in STAGES[case.method].split(",")],
            "size": options.size,
            "seed": options.seed,
            "coreset": case.coreset,
            "neighbors": 9,
            "channels": options.channels,
            "epochs": 1,
            "workers": max(1, (os.cpu_count() or 2) - 1),
            "out": str(out),
            "batch": max(options.batches),
        }
        _prepare(out, python, "rival_inferencer.py", request)
    answer: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return answer


def _prepare(out: Path, python: Path, script: str, request: dict[str, Any]) -> None:
    """Let a rival's script make all files of an empty folder, its output beside it; `done.json` is the last of them."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run([str(python), str(HERE / script), "--prepare", json.dumps(request)], out.with_suffix(".txt"))


def anomavision_exports(case: Case, options: argparse.Namespace, python: Path) -> dict[str, str]:
    """Return the files that AnomaVision has exported: `onnx-BATCH` and `openvino-BATCH`, those that it could."""
    out = case.folder / "anomavision"
    done = out / "done.json"
    if not done.is_file():
        fields = ("size", "channels", "batches")
        request = {
            **{"method": case.method, "data": str(case.data), "backbone": case.backbone, "weights": str(case.weights)},
            **{name: getattr(options, name) for name in fields},
            **{"coreset": case.coreset, "out": str(out)},
        }
        _prepare(out, python, "rival_anomavision.py", request)
    answer: dict[str, str] = json.loads(done.read_text(encoding="utf-8"))
    return answer
