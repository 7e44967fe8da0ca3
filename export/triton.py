"""A Triton model repository from a bundle: `REPOSITORY/NAME/` with configuration, graph, labels and a record.

Triton Inference Server runs `score.onnx` in its ONNX Runtime backend and batches requests of several clients. It knows
neither images nor thresholds: clients decode and resize before (`flawscope.imaging.images`) and decide afterwards,
with the numbers of `flawscope.json`.

Source: Triton's user guide (model repository, model configuration, batchers) and `model_config.proto` of
triton-inference-server/common. A graph with external data is a folder `1/model.onnx/` there, and an output of one
number an image has `dims: [ 1 ]` with an empty reshape, because no shape may be empty.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from flawscope.bundle import Bundle, FileEntry, Golden, Manifest, Thresholds, open_bundle
from flawscope.errors import ArgumentError, BackendError, BundleError, GateError
from flawscope.export.source_kind import is_run
from flawscope.files import atomic_folder, sha256_file, storage_errors
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.runtime.backends.ort import import_onnxruntime
from flawscope.runtime.backends.table import GOLDEN_TOLERANCE
from flawscope.runtime.scorers.base import scorer_kind

RECORD = "flawscope.json"
"""Beside `config.pbtxt`: what a client has to know; also marks a model folder as written by flawscope."""

VERSION = "1"
"""Folder of the only version that is written."""

GRAPH = f"{VERSION}/model.onnx/model.onnx"
"""The graph: Triton wants a graph of several files in a folder with the name of the model file."""

LABEL = "anomaly_score"
"""The one label of the one element of `score`. It names a number; there is no decision in Triton to name."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_OUTPUTS = ("anomaly_map", "score")
_RULES = (
    "flawscope.imaging.images.decode_image, then flawscope.imaging.images.prepare: uint8 RGB [H, W, 3]; cast and "
    "normalisation are in the graph"
)
_DECISION = (
    "fault if score or anomaly_map is not finite, if there is no answer or if thresholds is null; "
    "reject if score > thresholds.image.value; accept otherwise"
)


class TritonOptions(msgspec.Struct, frozen=True):
    """What of `config.pbtxt` does not follow from the bundle.

    Attributes:
        name: Name of the model in Triton; None takes the bundle's.
        device: Where the instances run. There is no `auto`: it would fall back to the CPU without a word.
        instances: Instances a device (all GPUs of the server with `gpu`).
        queue_delay_us: Longest time a request waits for others to share a batch, in microseconds. An image that
            comes alone always waits as long, so it is 0 until somebody has measured that waiting pays.
        preferred_batches: Batches to aim for. Triton's guide advises against any unless one is known to be faster.
        precision: Which of the bundle's graphs is served, with its own thresholds and golden scores.
    """

    name: str | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    instances: int = 1
    queue_delay_us: int = 0
    preferred_batches: tuple[int, ...] = ()
    precision: str = "fp32"


class TritonRecord(msgspec.Struct, frozen=True):
    """The content of `flawscope.json`.

    Attributes:
        name: Name of the model in Triton.
        bundle: Name of the bundle.
        digest: Digest of the bundle; `config.pbtxt` has it as the parameter `flawscope_digest`, so a client can see
            whether the server runs what these thresholds are for.
        method: What the bundle detects with.
        precision: Precision of the graph; thresholds and golden scores are those of it.
        flawscope: Version that wrote it.
        thresholds: The thresholds in force, or null where the bundle was not calibrated.
        decision: How a client decides.
        min_area_px: Smaller regions of the map above the pixel threshold are no boxes; in pixels of the map.
        preprocessing: Sizes and version of the rules that make the input.
        preprocessing_rules: The functions that do it.
        golden: Images below this folder and what the graph must give for them, within `golden_tolerance`.
        golden_tolerance: Largest relative difference.
        golden_least: Scores are compared relative to at least this number; smaller ones are rounding.
        files: Every other file of the folder: SHA-256 and size.
        schema: Version of this struct.
    """

    name: str
    bundle: str
    digest: str
    method: str
    precision: str
    flawscope: str
    thresholds: Thresholds | None
    decision: str
    min_area_px: int
    preprocessing: Preprocessing
    preprocessing_rules: str
    golden: tuple[Golden, ...]
    golden_tolerance: float
    golden_least: float
    files: dict[str, FileEntry]
    schema: int = 1


@contextmanager
def bundle_of(source: Path, export: Callable[[Path], object]) -> Iterator[Bundle]:
    """Yield the bundle at `source`, or the one that `export` makes of the run there.

    Args:
        source: A bundle, folder or packed, or a run.
        export: Called for a run alone, with the temporary path of the bundle folder to write.

    Raises:
        BundleError: If the bundle is missing, broken or of another kind.
    """
    if not is_run(source):
        with open_bundle(source) as bundle:
            yield bundle
        return
    with storage_errors(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="flawscope-"))
    try:
        out = folder / f"{source.resolve().name}.flaw"
        export(out)
        with open_bundle(out) as bundle:
            yield bundle
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_triton(bundle: Bundle, repository: Path, options: TritonOptions | None = None) -> TritonRecord:
    """Write a bundle as one model of a Triton model repository, whole or not at all.

    The graph is loaded by ONNX Runtime from where it was written, its inputs and outputs are compared with the
    configuration as exactly as Triton does, and its golden images must give their scores there, on the CPU.

    Args:
        bundle: The bundle; it may be uncalibrated, and the record then has no thresholds.
        repository: The model repository. Other models in it stay; a model of this name is replaced if it is as it was
            written by this function.
        options: Name, device and batching.

    Returns:
        The record as written to `flawscope.json`.

    Raises:
        ArgumentError: If an option is out of range, the bundle lacks the precision, or something else lies where the
            model would go.
        BundleError: If the bundle is of another kind.
        BackendError: If ONNX Runtime cannot load the graph.
        GateError: If the graph does not match its configuration or does not give its golden scores.
        MissingExtra: If ONNX Runtime is not installed.
        StorageError: If the system refuses to write.
    """
    options = options or TritonOptions()
    manifest = bundle.manifest
    if manifest.tiling is not None:
        raise ArgumentError(
            f"export-triton: expected a bundle that takes images whole, got {bundle.path}, which takes them in "
            "tiles. Triton cuts no tiles: run it with flawscope."
        )
    name = _checked_name(manifest.name if options.name is None else options.name)
    _check_options(options, manifest.max_batch)
    _check_kind(bundle, options.precision)
    folder = repository / name
    with storage_errors(folder):
        _check_repository(repository)
        _check_unchanged(folder)
    golden = manifest.golden_of(options.precision)
    least = scorer_kind(bundle).least_score(bundle)
    with atomic_folder(folder, replace_if=RECORD) as temporary:
        for target, source in _copies(bundle, options.precision).items():
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary / target)
        (temporary / "labels.txt").write_text(f"{LABEL}\n", encoding="utf-8")
        (temporary / "config.pbtxt").write_text(config_text(name, manifest, options), encoding="utf-8")
        _check_graph(temporary, manifest, golden, least)
        record = TritonRecord(
            name=name,
            bundle=manifest.name,
            digest=manifest.digest,
            method=manifest.method,
            precision=options.precision,
            flawscope=manifest.flawscope,
            thresholds=manifest.thresholds_of(options.precision),
            decision=_DECISION,
            min_area_px=manifest.min_area_px,
            preprocessing=manifest.input,
            preprocessing_rules=_RULES,
            golden=golden,
            golden_tolerance=GOLDEN_TOLERANCE,
            golden_least=least,
            files=_entries(temporary),
        )
        data = msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=1)
        (temporary / RECORD).write_bytes(data + b"\n")
    return record


def config_text(name: str, manifest: Manifest, options: TritonOptions) -> str:
    """Return `config.pbtxt`: an `inference.ModelConfig` in the text format of protobuf."""
    height, width = manifest.input.size
    # Preferred batches and a delay mean nothing where no two requests fit into one batch.
    batching = ""
    if manifest.max_batch > 1:
        preferred = ", ".join(map(str, options.preferred_batches))
        batching = (
            "dynamic_batching {\n"
            + (f"  preferred_batch_size: [ {preferred} ]\n" if preferred else "")
            + f"  max_queue_delay_microseconds: {options.queue_delay_us}\n}}\n"
        )
    # What OrtSession does too: TF32 would keep ten bits of every product, and scores would no longer be those the
    # thresholds were set on.
    exact = """\
optimization {
  execution_accelerators {
    gpu_execution_accelerator [
      {
        name: "cuda"
        parameters { key: "use_tf32" value: "0" }
      }
    ]
  }
}
"""
    return f"""\
# Written by flawscope; thresholds and preprocessing are in {RECORD}.
name: "{name}"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {manifest.max_batch}
input [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: [ {height}, {width}, 3 ]
  }}
]
output [
  {{
    name: "anomaly_map"
    data_type: TYPE_FP32
    dims: [ {height}, {width} ]
  }},
  {{
    name: "score"
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape {{ shape: [ ] }}
    label_filename: "labels.txt"
  }}
]
version_policy {{ latest {{ num_versions: 1 }} }}
instance_group [
  {{
    kind: KIND_{options.device.upper()}
    count: {options.instances}
  }}
]
{batching}{exact if options.device == "gpu" else ""}parameters {{
  key: "flawscope_digest"
  value {{ string_value: "{manifest.digest}" }}
}}
"""


def _checked_name(name: str) -> str:
    # Triton itself refuses `/` and `..`; the rest has to survive URLs, shells and file systems unquoted.
    if not _NAME.fullmatch(name) or ".." in name:
        raise ArgumentError(
            f"model name: expected letters, digits, '_', '-' and '.', not beginning with '-' or '.', without '..', "
            f"128 at most, got {name!r}. Choose another one with --model-name."
        )
    return name


def _check_options(options: TritonOptions, max_batch: int) -> None:
    if options.device not in ("cpu", "gpu"):
        raise ArgumentError(f"device: expected cpu or gpu, got {options.device!r}.")
    for what, value, least, most in (
        ("instances", options.instances, 1, 1024),
        ("queue delay", options.queue_delay_us, 0, 60_000_000),
        *(("preferred batch", batch, 1, max_batch) for batch in options.preferred_batches),
    ):
        if not least <= value <= most:
            raise ArgumentError(f"{what}: expected {least} to {most}, got {value}.")


def _copies(bundle: Bundle, precision: str) -> dict[str, Path]:
    """Return name below the model folder -> file of the bundle, for all that is copied as it is."""
    graph = bundle.graph("score", precision)
    data = graph.read_bytes()
    # Large constants lie in other files, which the graph names in plain UTF-8, relative to itself. A name that stands
    # in it for another reason costs a copy; one that was missed would be found when the graph is loaded.
    parts = [name for name in bundle.manifest.files if name != graph.name and "/" not in name and name.encode() in data]
    return {
        **{f"{Path(GRAPH).parent}/{name}": bundle.file(name) for name in parts},
        GRAPH: graph,
        **{golden.file: bundle.file(golden.file) for golden in bundle.manifest.golden_of(precision)},
    }


def _check_kind(bundle: Bundle, precision: str) -> None:
    graph = bundle.manifest.graphs_of(precision).get("score")
    if graph is None or graph.outputs != _OUTPUTS:
        got = "none" if graph is None else f"one with {', '.join(graph.outputs)}"
        raise BundleError(
            f"{bundle.path}: expected a graph called score with the outputs {', '.join(_OUTPUTS)}, got {got}. "
            "Only bundles whose score is one graph can be served."
        )


def _check_repository(repository: Path) -> None:
    """Refuse a folder that is no model repository: Triton would try to load everything in it."""
    if not repository.exists():
        return
    problem = "a file" if not repository.is_dir() else ""
    for entry in sorted(repository.iterdir()) if repository.is_dir() else ():
        if entry.name.startswith("."):
            continue
        is_model = entry.is_dir() and ((entry / "config.pbtxt").is_file() or any(entry.glob("[1-9]*/")))
        if not is_model and not (entry.is_dir() and not any(entry.iterdir())):
            problem = f"a folder with {entry.name}, which is no model"
            break
    if problem:
        raise ArgumentError(
            f"{repository}: expected a new folder or a Triton model repository, got {problem}. Choose another folder."
        )


def _check_unchanged(folder: Path) -> None:
    """Refuse to replace a model folder that holds anything else than what was written there: it would be lost."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        listed = msgspec.json.decode((folder / RECORD).read_bytes(), type=TritonRecord).files
    except (FileNotFoundError, msgspec.DecodeError, ArgumentError):
        raise ArgumentError(
            f"{folder}: expected a free name or a model written by flawscope, got a folder without a valid {RECORD}. "
            "Choose another name with --model-name."
        ) from None
    found = _entries(folder)
    changed = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    if changed:
        raise ArgumentError(
            f"{folder}: expected a model as it was exported, got {changed[0]} changed, added or removed since. "
            "Move the folder away, or choose another name with --model-name."
        )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): FileEntry(sha256_file(path), path.stat().st_size) for path in files}


def _check_graph(folder: Path, manifest: Manifest, golden: tuple[Golden, ...], least: float) -> None:
    """Load the graph where Triton will, compare its tensors with the configuration, score the golden images."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    except Exception as err:
        # ONNX Runtime's exceptions share no base class of their own.
        raise BackendError(
            f"triton: ONNX Runtime could not load {GRAPH}: {str(err).splitlines()[0]} Export the bundle again."
        ) from err
    height, width = manifest.input.size
    expected = {
        "image": ("tensor(uint8)", [height, width, 3]),
        "anomaly_map": ("tensor(float)", [height, width]),
        "score": ("tensor(float)", []),
    }
    found = {
        tensor.name: (tensor.type, list(tensor.shape[1:]))
        for tensor in (*session.get_inputs(), *session.get_outputs())
        # Triton takes the first dimension as the batch, which the graph has to leave open.
        if tensor.shape and not isinstance(tensor.shape[0], int)
    }
    if found != expected:
        raise GateError(
            f"triton: expected the tensors {expected} with an open batch in the graph, got {found}. "
            "Triton would refuse it; export the bundle again."
        )
    for known in golden:
        image = prepare(read_image(folder / known.file), manifest.input)
        anomaly_map, score = session.run(list(_OUTPUTS), {"image": image[None]})
        for what, got, stored in (
            ("score", float(score[0]), known.score),
            ("map", float(np.max(anomaly_map)), known.map_max),
        ):
            if not abs(got - stored) <= GOLDEN_TOLERANCE * max(abs(stored), least):
                raise GateError(
                    f"triton: golden image {known.file}: expected {what} {stored:.6g} as at export, got {got:.6g}. "
                    "Nothing was written; see flawscope doctor."
                )
