"""Writes a bundle into a Triton model repository: `REPOSITORY/NAME/` with configuration, graph, labels and a record.

Triton Inference Server runs `score.onnx` in its ONNX Runtime backend and batches the requests of several clients. It
neither decodes images nor applies thresholds: clients prepare images (`flawscope.imaging.images`) and decide, with the
numbers in `flawscope.json`.

Source: Triton's user guide (model repository, model configuration, batchers) and `model_config.proto` of
triton-inference-server/common. There a graph with external data is a folder `1/model.onnx/`, and an output of one
number per image is declared as `dims: [ 1 ]` with an empty `reshape`, because dims may not be empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from flawscope.bundle import Bundle, FileEntry, Golden, Manifest, Thresholds, making, open_bundle, thresholds_in_force
from flawscope.errors import ArgumentError, BackendError, BundleError, GateError
from flawscope.export.source_kind import is_run
from flawscope.files import atomic_folder, check_replaceable, sha256_file, storage_errors, temporary_folder
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular, walk_folder
from flawscope.runtime.backends.ort import import_onnxruntime
from flawscope.runtime.backends.table import GOLDEN_TOLERANCE, precision_problem
from flawscope.runtime.scorers.scorer import ScorerOptions, open_scorer
from flawscope.text import NOT_JSON, encode_json

RECORD = "flawscope.json"
"""Beside `config.pbtxt`: thresholds and preprocessing for clients; also marks the folder as written by flawscope."""

VERSION = "1"
"""Folder of the model's only version."""

GRAPH = f"{VERSION}/model.onnx/model.onnx"
"""The graph: Triton expects one of several files in a folder that has the name of the model file."""

LABEL = "anomaly_score"
"""Label of the only element of `score`: it names a number, not a decision, since Triton makes none."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_OUTPUTS = ("anomaly_map", "score")
_RULES = (
    "flawscope.imaging.images.decode_image with the bits of the preprocessing, then flawscope.imaging.images.prepare: "
    "uint8 RGB [H, W, 3]; cast and normalisation are in the graph"
)
_DECISION = (
    "fault if score or anomaly_map is not finite, if there is no answer or if thresholds is null; "
    "reject if score > thresholds.image.value; accept otherwise"
)


_TF32_OFF = """\
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
"""As in OrtSession: TF32 keeps ten bits of every product's factors, and the scores would no longer be those that the
thresholds were set on."""


class TritonOptions(msgspec.Struct, frozen=True):
    """The choices in `config.pbtxt` that do not follow from the bundle.

    Attributes:
        name: Name of the model in Triton; None takes the bundle's.
        device: Where the instances run. There is no `auto`, because it would fall back to the CPU silently.
        instances: Instances per device; with `gpu`, on every GPU of the server.
        queue_delay_us: Longest time in microseconds that a request waits for others to share its batch. A lone request
            always waits that long, so the default is 0.
        preferred_batches: Batch sizes to aim for. Triton's guide advises to leave them out unless they are known to be
            faster.
        precision: Precision of the graph that is served, with its own thresholds and golden scores.
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
        digest: Digest of the bundle, also the parameter `flawscope_digest` of `config.pbtxt`: a client compares both to
            see whether the server runs the model that these thresholds are for.
        method: Method of the detector.
        precision: Precision of the graph that thresholds and golden scores belong to.
        flawscope: Version that wrote it.
        thresholds: The thresholds, or null where the bundle is not calibrated.
        decision: The rule by which a client decides.
        min_area_px: Regions of the map above the pixel threshold that are smaller give no box; in pixels of the map.
        preprocessing: Sizes and version of the preprocessing.
        preprocessing_rules: The functions that do the preprocessing.
        golden: Images below this folder and the scores that the graph must give for them, within `golden_tolerance`.
        golden_tolerance: Largest relative difference.
        golden_least: Differences are relative to at least this number: below it a score is only rounding.
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
    """Yield the bundle at `source`; a run is exported to a temporary bundle first.

    Args:
        source: A bundle, folder or packed, or a run.
        export: Called only for a run, with the path of the bundle folder to write.

    Raises:
        BundleError: If the bundle is missing, broken or of another kind.
    """
    if not is_run(source):
        with open_bundle(source) as bundle:
            yield bundle
        return
    with temporary_folder() as folder:
        out = folder / f"{source.resolve().name}.flaw"
        with making():
            export(out)
            bundle = open_bundle(out)
        with bundle:
            yield bundle


def write_triton(
    bundle: Bundle, repository: Path, options: TritonOptions | None = None, *, overwrite: bool = False
) -> TritonRecord:
    """Write a bundle as one model of a Triton model repository, atomically.

    Before the model appears, ONNX Runtime loads the graph from the written files, its inputs and outputs are compared
    with the configuration as strictly as Triton does it, and the golden images must give their scores on the CPU.

    Args:
        bundle: The bundle; without calibration the record has no thresholds.
        repository: The model repository. Other models in it stay.
        options: Name, device and batching.
        overwrite: Whether a model of this name may be replaced; only if its files are exactly as this function wrote
            them.

    Returns:
        The record as written to `flawscope.json`.

    Raises:
        ArgumentError: If an option is out of range, the bundle lacks the precision, or the place of the model is taken
            by something else.
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
            f"export-triton: expected a bundle that takes whole images, got {bundle.path}, which takes tiles. Triton "
            "cuts no tiles: run it with flawscope."
        )
    if manifest.region is not None or manifest.drawn_zones is not None:
        what = "a region of interest. It is" if manifest.region is not None else "zones. They are"
        raise ArgumentError(
            f"export-triton: expected a bundle in which defects count everywhere, got {bundle.path}, which has {what} "
            "no part of the graph: run it with flawscope, or flawscope bundle region --clear."
        )
    # An overlay that lies beside the bundle counts on the server too.
    in_force = thresholds_in_force(bundle.path, manifest, options.precision)
    name = _checked_name(manifest.name if options.name is None else options.name)
    _check_options(options, manifest.max_batch)
    check_precision(options.precision)
    _check_kind(bundle, options.precision)
    # Checked before anything is written below the repository, which a running Triton may be polling.
    folder = repository / name
    with storage_errors(folder):
        _check_repository(repository)
        _check_unchanged(folder)
        check_replaceable(folder, RECORD, overwrite=overwrite)
    golden = manifest.golden_of(options.precision)
    with atomic_folder(folder, replace_if=RECORD, overwrite=overwrite) as temporary:
        for target, source in _copies(bundle, options.precision).items():
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            with (temporary / target).open("wb") as file:
                bundle.copy(source, file)
        (temporary / "labels.txt").write_text(f"{LABEL}\n", encoding="utf-8")
        (temporary / "config.pbtxt").write_text(config_text(name, manifest, options), encoding="utf-8")
        session = _load_graph(temporary, manifest)
        with closing(open_scorer(bundle, ScorerOptions("cpu", "graph", options.precision))) as scorer:
            least = scorer.least_score
        _check_golden(session, temporary, manifest, golden, least)
        # Last, since it lists the hashes of all other files.
        record = TritonRecord(
            name=name,
            bundle=manifest.name,
            digest=manifest.digest,
            method=manifest.method,
            precision=options.precision,
            flawscope=manifest.flawscope,
            thresholds=in_force.thresholds,
            decision=_DECISION,
            min_area_px=in_force.min_area_px,
            preprocessing=manifest.input,
            preprocessing_rules=_RULES,
            golden=golden,
            golden_tolerance=GOLDEN_TOLERANCE,
            golden_least=least,
            files=_entries(temporary),
        )
        data = msgspec.json.format(encode_json(record, order="deterministic"), indent=1)
        (temporary / RECORD).write_bytes(data + b"\n")
    return record


def config_text(name: str, manifest: Manifest, options: TritonOptions) -> str:
    """Return `config.pbtxt`: an `inference.ModelConfig` in the text format of protobuf."""
    height, width = manifest.input.size
    batching = _batching_text(manifest.max_batch, options)
    # No quoting is needed: `_checked_name` has refused everything that would end a string of the text format.
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
{batching}{_TF32_OFF if options.device == "gpu" else ""}parameters {{
  key: "flawscope_digest"
  value {{ string_value: "{manifest.digest}" }}
}}
"""


def _batching_text(max_batch: int, options: TritonOptions) -> str:
    """Return the dynamic batcher; empty where no two requests fit into one batch, so that it could only delay."""
    if max_batch == 1:
        return ""
    preferred = ", ".join(map(str, options.preferred_batches))
    return (
        "dynamic_batching {\n"
        + (f"  preferred_batch_size: [ {preferred} ]\n" if preferred else "")
        + f"  max_queue_delay_microseconds: {options.queue_delay_us}\n}}\n"
    )


def _checked_name(name: str) -> str:
    # Triton itself refuses `/` and `..`; the rest must need no quoting in URLs, shells, file systems and config.pbtxt.
    if not _NAME.fullmatch(name) or ".." in name:
        raise ArgumentError(
            f"model name: expected letters, digits, '_', '-' and '.', not beginning with '-' or '.', without '..', "
            f"128 at most, got {name!r}. Choose another one with --model-name."
        )
    return name


def _check_options(options: TritonOptions, max_batch: int) -> None:
    if options.device not in ("cpu", "gpu"):
        raise ArgumentError(f"device: expected cpu or gpu, got {options.device!r}.")
    for name, value, least, most in (
        ("instances", options.instances, 1, 1024),
        ("queue delay", options.queue_delay_us, 0, 60_000_000),
        *(("preferred batch", batch, 1, max_batch) for batch in options.preferred_batches),
    ):
        if not least <= value <= most:
            raise ArgumentError(f"{name}: expected {least} to {most}, got {value}.")


def _copies(bundle: Bundle, precision: str) -> dict[str, str]:
    """Return path below the model folder -> file of the bundle, for every file that is copied unchanged."""
    graph, *external = bundle.graph_files("score", precision)
    return {
        **{f"{Path(GRAPH).parent}/{name}": name for name in external},
        GRAPH: graph,
        **{golden.file: golden.file for golden in bundle.manifest.golden_of(precision)},
    }


def check_precision(precision: str) -> None:
    """Raise ArgumentError unless Triton's ONNX Runtime computes in a precision, as ours does on the CPU."""
    if problem := precision_problem("cpu", precision):
        raise ArgumentError(
            f"--precision {precision}: expected one that ONNX Runtime computes, in which Triton runs the graph, got "
            f"another: {problem} Take another --precision."
        )


def _check_kind(bundle: Bundle, precision: str) -> None:
    graph = bundle.manifest.graphs_of(precision).get("score")
    if graph is None or graph.outputs != _OUTPUTS:
        got = "none" if graph is None else f"one with {', '.join(graph.outputs)}"
        raise BundleError(
            f"{bundle.path}: expected a graph called score with the outputs {', '.join(_OUTPUTS)}, got {got}. "
            "Only bundles whose score is one graph can be served."
        )


def _check_repository(repository: Path) -> None:
    """Refuse a folder that is no model repository: Triton would try to load every folder in it as a model."""
    if not repository.exists():
        return
    problem = "a file" if not repository.is_dir() else ""
    for entry in list_folder(repository) if repository.is_dir() else ():
        if entry.name.startswith("."):
            continue
        if not entry.is_dir() or ((inside := list_folder(entry)) and not _is_model(inside)):
            problem = f"a folder with {entry.name}, which is no model"
            break
    if problem:
        raise ArgumentError(
            f"{repository}: expected a new folder or a Triton model repository, got {problem}. Choose another folder."
        )


def _is_model(entries: list[Path]) -> bool:
    """Return whether these are entries of a model's folder: its configuration, or a version, which is a number."""
    return any(path.name == "config.pbtxt" or (path.name[:1] in "123456789" and path.is_dir()) for path in entries)


def _check_unchanged(folder: Path) -> None:
    """Refuse to replace a model folder with any file changed, added or removed: the change would be lost."""
    if not folder.is_dir() or not list_folder(folder):
        return
    # A record without these fields is another schema, so its folder is nobody's to replace.
    try:
        listed = msgspec.json.decode(read_regular(folder / RECORD, RECORD_BYTES), type=TritonRecord).files
    except (OSError, ArgumentError, *NOT_JSON):
        raise ArgumentError(
            f"{folder}: expected a free name or a model written by flawscope, got a folder without a valid {RECORD}. "
            "Choose another name with --model-name."
        ) from None
    present = _entries(folder)
    changed = sorted(name for name in {*listed, *present} if listed.get(name) != present.get(name))
    if changed:
        raise ArgumentError(
            f"{folder}: expected a model as it was exported, got {changed[0]} changed, added or removed since. "
            "Move the folder away, or choose another name with --model-name."
        )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in walk_folder(folder) if not path.is_dir() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): FileEntry(sha256_file(path), path.stat().st_size) for path in files}


def _load_graph(folder: Path, manifest: Manifest) -> Any:
    """Return a session of the graph in its final layout, its tensors compared with the configuration."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: errors are raised as well, and those are reported here
    try:
        # On the CPU also for `gpu`: the machine that exports may have none. Triton's GPU runs the same FP32 graph.
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
    tensors = {
        tensor.name: (tensor.type, list(tensor.shape[1:]))
        for tensor in (*session.get_inputs(), *session.get_outputs())
        # With max_batch_size > 0 Triton takes the first dimension as the batch, which must be dynamic in the graph.
        if tensor.shape and not isinstance(tensor.shape[0], int)
    }
    if tensors != expected:
        raise GateError(
            f"triton: expected the tensors {expected} with a dynamic batch in the graph, got {tensors}. "
            "Triton would refuse it; export the bundle again."
        )
    return session


def _check_golden(session: Any, folder: Path, manifest: Manifest, golden: tuple[Golden, ...], least: float) -> None:
    """Raise GateError unless the graph reproduces the golden scores."""
    for entry in golden:
        image = prepare(read_image(folder / entry.file), manifest.input)
        anomaly_map, score = session.run(list(_OUTPUTS), {"image": image[None]})
        for name, got, stored in (
            ("score", float(score[0]), entry.score),
            ("map", float(np.max(anomaly_map)), entry.map_max),
        ):
            # Written as `not <=`, so that NaN is refused too.
            if not abs(got - stored) <= GOLDEN_TOLERANCE * max(abs(stored), least):
                raise GateError(
                    f"triton: golden image {entry.file}: expected {name} {stored:.6g} as at export, got {got:.6g}. "
                    "Nothing was written; see flawscope doctor."
                )
